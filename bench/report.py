"""Draws recorded runs and writes their tables, from the records alone.

    python -m bench report bench/results/gpu_<device>_<date>.json [...] --out FOLDER [--readme]

Of each record: its table in Markdown; the speed-up against each peer; of one of a GPU also the roofline, with the
ceilings that it measured itself, and the sweeps. `--readme` puts the tables into `bench/README.md` instead of the
records that stand there.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import MODES, OWN, is_gpu, load
from bench.tables import README, table, with_table

Record = dict[str, Any]
DOTS_PER_INCH = 120
ROW_INCHES = 0.22
COLUMNS = 3


def good(record: Record) -> list[Record]:
    """Entries that were timed, of whole calls."""
    return [entry for entry in record["lines"] if "failed" not in entry and not entry["way"].startswith("part: ")]


def median(entry: Record) -> float:
    """Seconds in the mode that speaks for a way: cold, else hot, else as called."""
    mode = next(mode for mode in MODES if mode in entry)
    seconds: float = entry[mode]["median_us"] * 1e-6
    return seconds


def points(record: Record) -> dict[str, list[tuple[float, float]]]:
    """Of our own lines by op: operations per byte, operations a second. Ops without counted operations are left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in good(record):
        operations = entry["operations"] + entry["matrix_operations"]
        if entry["way"] == OWN and operations:
            found.setdefault(entry["op"], []).append((operations / entry["bytes"], operations / median(entry)))
    return found


def speedups(record: Record) -> dict[str, dict[str, float]]:
    """In how many times our time each peer does the same, by case; sweeps and small cases are left out.

    A peer that cannot be replayed as a graph is compared as it is called, with our op as it is called.
    """
    found: dict[str, dict[str, float]] = {}
    if is_gpu(record):
        entries = {(entry["op"], entry["case"], entry["way"]): entry for entry in good(record)}
        for (op, case, way), entry in entries.items():
            own = entries.get((op, case, OWN))
            if way == OWN or own is None or entry.get("axis"):
                continue
            mode = next(mode for mode in MODES if mode in entry and mode in own)
            ratio = entry[mode]["median_us"] / own[mode]["median_us"]
            found.setdefault(f"{op}, {case}", {})[way] = ratio
        return found
    timed = [entry for entry in record["benchmarks"] if "way" in entry["extra_info"]]
    own_times = {x["group"]: x["stats"]["median"] for x in timed if x["extra_info"]["way"] == OWN}
    for entry in timed:
        group, way = entry["group"], entry["extra_info"]["way"]
        if way != OWN and not group.endswith(", small"):
            found.setdefault(group, {})[way] = entry["stats"]["median"] / own_times[group]
    return found


def sweeps(record: Record) -> dict[tuple[str, str], dict[str, list[tuple[float, float]]]]:
    """By op and axis, by way: value, seconds; in ascending order."""
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for entry in good(record):
        if entry.get("axis"):
            way = entry["way"]
            if entry["axis"] == "many":
                best = entry["case"].rpartition(" best ")[2]
                way = f"{way}, {'all' if best == str(entry['value']) else f'best {best}'}"
            ways = found.setdefault((entry["op"], entry["axis"]), {})
            ways.setdefault(way, []).append((entry["value"], median(entry)))
    return {key: {way: sorted(values) for way, values in ways.items()} for key, ways in found.items()}


def draw_roofline(record: Record, axes: Any) -> None:
    """The ceilings as lines, our ops as dots, on logarithmic axes."""
    ceilings, dots = record["ceilings"], points(record)
    intensities = [intensity for values in dots.values() for intensity, _ in values]
    x = np.logspace(np.log10(min(intensities)) - 0.5, np.log10(max(intensities)) + 0.7, 200)
    by_memory = x * ceilings["copy_bytes_per_second"]
    for name, label in (("bf16_operations_per_second", "bf16 products"), ("fp32_operations_per_second", "fp32")):
        if name not in ceilings:
            continue
        rate = ceilings[name]
        axes.plot(x, np.minimum(by_memory, rate), color="0.4", linewidth=1)
        axes.annotate(f"{label}, {rate / 1e12:.0f} TFLOP/s", (x[-1], rate), ha="right", va="bottom", color="0.3")
    label = f"copy, {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s"
    axes.annotate(label, (x[0], by_memory[0]), rotation=35, color="0.3", va="bottom")
    for number, (op, values) in enumerate(sorted(dots.items())):
        marker = "osD^v<>P*X"[number % 10]
        axes.scatter(*zip(*values, strict=True), label=op, marker=marker, s=36, color=f"C{number % 10}", zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="operations a second")
    axes.legend(fontsize=8, loc="lower right")


def draw_speedups(record: Record, axes: Any) -> None:
    """One bar a peer and case, logarithmic; left of 1 the peer is faster."""
    bars = [(case, way, ratio) for case, ways in speedups(record).items() for way, ratio in ways.items()][::-1]
    ratios = [ratio for _, _, ratio in bars]
    colours = ["C0" if ratio >= 1 else "C3" for ratio in ratios]
    axes.barh(range(len(bars)), [ratio - 1 for ratio in ratios], left=1, color=colours)
    axes.set_yticks(range(len(bars)), [f"{case}: {way}" for case, way, _ in bars], fontsize=7)
    for row, ratio in enumerate(ratios):
        axes.annotate(
            f"{ratio:.2f}", (max(ratio, 1.0), row), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center"
        )
    axes.set(
        xscale="log",
        xlabel="times our time",
        ylim=(-0.7, len(bars) - 0.3),
        xlim=(min(0.5, *ratios) * 0.9, max(ratios) * 2),
    )
    axes.axvline(1, color="0.2", linewidth=0.8)


def draw_sweep(key: tuple[str, str], ways: dict[str, list[tuple[float, float]]], axes: Any) -> None:
    """Time against what is varied, one line a way."""
    for way, values in ways.items():
        x, seconds = zip(*values, strict=True)
        axes.plot(x, [s * 1e6 for s in seconds], marker="o", label=way, linewidth=2 if way.startswith(OWN) else 1)
    op, axis = key
    values = sorted({value for points_of_way in ways.values() for value, _ in points_of_way})
    axes.set(xscale="log", yscale="log", title=op, xlabel="candidates of one video" if axis == "many" else axis)
    axes.set_ylabel("us a call")
    axes.set_xticks(values, [f"{value:,.0f}" for value in values])
    axes.xaxis.minorticks_off()
    axes.legend(fontsize=7)


def write_pictures(record: Record, stem: str, folder: Path) -> list[Path]:
    """Draw everything that the record has something of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    subject = record["device"]["name"] if is_gpu(record) else record["machine_info"]["processor"]
    written = []

    def save(name: str, inches: tuple[float, float], draw: Callable[[Any], None]) -> None:
        figure = Figure(inches, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.suptitle(f"{subject}, {record['datetime'][:10]}", fontsize=10)
        figure.savefig(folder / f"{stem}_{name}.png", dpi=DOTS_PER_INCH)
        written.append(folder / f"{stem}_{name}.png")

    bars = sum(map(len, speedups(record).values()))
    if bars:
        save("speedups", (9, 1.2 + ROW_INCHES * bars), lambda figure: draw_speedups(record, figure.subplots()))
    if is_gpu(record) and points(record) and "copy_bytes_per_second" in record["ceilings"]:
        save("roofline", (8, 5.5), lambda figure: draw_roofline(record, figure.subplots()))
    swept = sweeps(record) if is_gpu(record) else {}
    if swept:
        rows = -(-len(swept) // COLUMNS)

        def draw(figure: Any) -> None:
            grid = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
            for axes, (key, ways) in zip(grid, swept.items(), strict=False):
                draw_sweep(key, ways, axes)
            for axes in grid[len(swept) :]:
                axes.set_visible(False)

        save("sweeps", (4 * COLUMNS, 3.2 * rows), draw)
    return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", type=Path, metavar="A.json")
    parser.add_argument("--out", type=Path, help="folder for pictures and tables")
    parser.add_argument("--readme", action="store_true", help="write the tables into bench/README.md")


def main(options: argparse.Namespace) -> int:
    for path in options.records:
        try:
            record = load(path)
        except (OSError, ValueError) as error:
            print(f"cannot read a record: {error}", file=sys.stderr)
            return 2
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            text = options.out / f"{path.stem}.md"
            text.write_text(table(record) + "\n", encoding="utf-8")
            print(*[text, *write_pictures(record, path.stem, options.out)], sep="\n")
        if options.readme:
            README.write_text(with_table(README.read_text(encoding="utf-8"), path.name, record), encoding="utf-8")
            print(f"wrote the table of {path.name} into {README.name}")
        if not options.out and not options.readme:
            print(table(record))
    return 0
