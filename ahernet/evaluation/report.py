"""Average precision and recall as text for a terminal and as a dictionary for a JSON file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ahernet.evaluation.average_precision import AveragePrecision
from ahernet.evaluation.average_recall import AverageRecall

SHOWN_THRESHOLDS = (0.50, 0.75, 0.95)
SHOWN_PROPOSALS = (1, 10, 100)  # per video on average
NAME_WIDTH = 40
LISTED_IDS = 3

# Named class subsets to average over, e.g. {"base": [...], "novel": [...]}.
Groups = Mapping[str, Sequence[str]]


def coverage(result: AveragePrecision) -> str:
    """Say in one line which videos were scored, e.g. `scored 4,728 of 4,926 videos; 198 without ...`."""
    annotated = len(result.scored) + len(result.missing)
    parts = [f"scored {len(result.scored):,} of {annotated:,} videos"]
    if result.missing:
        parts.append(
            f"{len(result.missing):,} not in the detections, their instances count as not found"
            f" ({_first(result.missing)})"
        )
    if result.unknown:
        parts.append(
            f"{len(result.unknown):,} not annotated, their detections count as false ({_first(result.unknown)})"
        )
    return "; ".join(parts)


def format_report(
    result: AveragePrecision,
    groups: Groups | None = None,
    recall: AverageRecall | None = None,
    recalls: Mapping[str, AverageRecall] | None = None,
) -> str:
    """Return the coverage line and a table of the classes, best first, then the means (AP and AR in percent).

    Args:
        result: what `average_precision` returned.
        groups: class subsets to give means for, beside the mean over all classes.
        recall: what `average_recall` returned for the same detections; adds a last line.
        recalls: the same of each group, with a line each.

    Raises:
        UserError: a group none of whose classes occurs in the ground truth.
    """
    columns = _shown_columns(result)
    averages = result.per_class.mean(axis=1)
    order = sorted(range(len(result.classes)), key=lambda row: (-averages[row], result.classes[row]))
    header = [
        "class",
        "instances",
        "detections",
        *(f"AP@{result.thresholds[column]:.2f}" for column in columns),
        "average",
    ]
    rows = [
        [
            _printable(result.classes[row]),
            f"{result.instances[row]:,}",
            f"{result.detections[row]:,}",
            *(_percent(result.per_class[row, column]) for column in columns),
            _percent(averages[row]),
        ]
        for row in order
    ]
    means = [
        [
            f"mean of {title}",
            f"{part.instances.sum():,}",
            f"{part.detections.sum():,}",
            *(_percent(part.mean_per_threshold[column]) for column in columns),
            _percent(part.mean),
        ]
        for title, part in _titled_parts(result, groups)
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, *means, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    table = [_line(header, widths), rule, *(_line(row, widths) for row in rows), rule]
    proposals = [] if recall is None else [f"proposals: {_proposals_text(recall)}"]
    proposals += [f"of {_printable(name)}: {_proposals_text(of_group)}" for name, of_group in (recalls or {}).items()]
    return "\n".join([coverage(result), "", *table, *(_line(row, widths) for row in means), *proposals])


def report_dictionary(
    result: AveragePrecision,
    groups: Groups | None = None,
    recall: AverageRecall | None = None,
    recalls: Mapping[str, AverageRecall] | None = None,
) -> dict[str, Any]:
    """Return the whole result as plain data for JSON; AP and AR as fractions, classes in alphabetical order.

    Args:
        result: what `average_precision` returned.
        groups: class subsets to give means for, beside the mean over all classes.
        recall: what `average_recall` returned for the same detections; adds the entry "proposals".
        recalls: the same of each group; adds the entry "proposals_of".

    Raises:
        UserError: a group none of whose classes occurs in the ground truth.
    """
    return {
        "tiou_thresholds": _rounded(result.thresholds),
        "means": {
            "all": _means(result),
            **{name: _means(result.select(classes)) for name, classes in (groups or {}).items()},
        },
        "classes": {
            name: {
                "instances": int(result.instances[row]),
                "detections": int(result.detections[row]),
                "average_precision": _rounded(result.per_class[row]),
                "average": round(float(result.per_class[row].mean()), 9),
            }
            for row, name in enumerate(result.classes)
        },
        "videos": {
            "scored": len(result.scored),
            "missing": list(result.missing),
            "unknown": list(result.unknown),
        },
        **({} if recall is None else {"proposals": _proposals(recall)}),
        **({} if not recalls else {"proposals_of": {name: _proposals(part) for name, part in recalls.items()}}),
    }


def _means(result: AveragePrecision) -> dict[str, Any]:
    return {
        "classes": len(result.classes),
        "mean_average_precision": _rounded(result.mean_per_threshold),
        "average": round(result.mean, 9),
    }


def _proposals(recall: AverageRecall) -> dict[str, Any]:
    return {
        "average_recall": {str(number): round(value, 9) for number, value in _shown_recall(recall).items()},
        "area": round(recall.area, 9),
    }


def _proposals_text(recall: AverageRecall) -> str:
    shown = [f"AR@{number} {_percent(value)}" for number, value in _shown_recall(recall).items()]
    return ", ".join([*shown, f"AUC {_percent(recall.area)} %"])


def _shown_recall(recall: AverageRecall) -> dict[int, float]:
    """Return AR by number of proposals, for the usual numbers that are points of the curve."""
    averages = recall.average_recall
    return {
        number: float(averages[point])
        for number in SHOWN_PROPOSALS
        for point in np.flatnonzero(np.isclose(recall.proposals_per_video, number))
    }


def _titled_parts(result: AveragePrecision, groups: Groups | None) -> list[tuple[str, AveragePrecision]]:
    parts = [(_counted(len(result.classes), "class", "classes"), result)]
    for name, classes in (groups or {}).items():
        part = result.select(classes)
        given = len(set(classes))
        count = f"{len(part.classes):,}" + (f" of {given:,}" if given != len(part.classes) else "")
        parts.append((f"{count} {_printable(name)} classes", part))
    return parts


def _shown_columns(result: AveragePrecision) -> list[int]:
    """Return the columns of the usual thresholds that were computed, else the first, middle and last."""
    usual = [
        column for column, threshold in enumerate(result.thresholds) if np.isclose(threshold, SHOWN_THRESHOLDS).any()
    ]
    last = len(result.thresholds) - 1
    return usual or sorted({0, last // 2, last})


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers = cells
    padded = [f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True)]
    return "  ".join([f"{name:<{widths[0]}}", *padded])


def _first(video_ids: Sequence[str]) -> str:
    shown = ", ".join(map(_printable, video_ids[:LISTED_IDS]))
    return shown + (", ..." if len(video_ids) > LISTED_IDS else "")


def _printable(name: str) -> str:
    """Return `name` fit for one cell: no control characters (labels come from files), cut when too long."""
    plain = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
    return plain if len(plain) <= NAME_WIDTH else f"{plain[: NAME_WIDTH - 3]}..."


def _counted(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _rounded(numbers: npt.NDArray[np.float64]) -> list[float]:
    """Return the numbers without the last digits, which depend on the order of summation."""
    return [round(number, 9) for number in numbers.tolist()]
