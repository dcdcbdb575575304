"""Pictures of the tables of runs: average mAP of novel classes, with the deviation over the seeds."""

from pathlib import Path
from typing import Any

from ahernet.experiments.table import SHARES, share_name
from ahernet.files import replace_when_complete

BAR, LINE, INK = "#0072B2", "#D55E00", "#1F2933"


def draw_table(table: dict[str, Any], path: Path) -> None:
    """Draw the rows of a table as bars, or the `shares` of figure 6 as a curve beside the line of aher.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows = {
        name: tuple(100 * row[key]["novel.mean_average_precision"] for key in ("mean", "deviation"))
        for name, row in table["rows"].items()
    }
    shares = [share for share in SHARES if table["table"] == "shares" and share_name(share) in rows]
    figure = Figure(figsize=(6, 4 if shares else 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    if shares:
        means, deviations = zip(*(rows[share_name(share)] for share in shares), strict=True)
        axes.errorbar(
            [100 * share for share in shares], means, deviations, fmt="o-", capsize=3, label="aher*", color=LINE
        )
        if "aher" in rows:
            axes.axhline(rows["aher"][0], color=BAR, label="aher, from moments")
        axes.set(xlabel="share of the annotations (%)", ylabel="novel mAP (%)")
        axes.legend()
    else:
        means, deviations = zip(*rows.values(), strict=True)
        axes.barh(list(rows), means, xerr=deviations, color=BAR, ecolor=INK, capsize=3)
        axes.invert_yaxis()
        axes.set(xlabel="novel mAP (%)")
    axes.set_title(f"{table['table']} on {table['source']}, {len(table['seeds'])} seeds")
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
