"""How sure a score is, and what it is made of, as text and as data: the interval, and parts of the ground truth."""

import math
from collections.abc import Sequence
from typing import Any

from ahernet.evaluation.bootstrap import BootstrapInterval
from ahernet.evaluation.characteristics import Characteristic
from ahernet.evaluation.sensitivity import PartScore

PartScores = dict[str, dict[str, PartScore]]
"""By the name of the characteristic and of the bin, as `sensitivity` returns them."""


def format_interval(interval: BootstrapInterval) -> str:
    """Return one line: the bootstrap interval of the mean, in percent."""
    low, high = (f"{100 * end:.2f}" for end in interval.mean)
    return (
        f"{100 * interval.level:g} % interval of the mean over {interval.draws:,} draws of the videos: {low} to {high}"
    )


def interval_dictionary(interval: BootstrapInterval) -> dict[str, Any]:
    """Return the interval as plain data for JSON, ends as fractions; None where no draw had any ground truth."""
    return {
        "level": interval.level,
        "draws": interval.draws,
        "mean": _rounded(interval.mean),
        "per_threshold": [_rounded(ends) for ends in interval.per_threshold.tolist()],
    }


def format_parts(characteristics: Sequence[Characteristic], scores: PartScores) -> str:
    """Return a table: a line for each bin of each characteristic, mean over the thresholds, in percent."""
    rows: list[tuple[str, ...]] = [("part", "instances", "mAP", "normalized", "recall")]
    for characteristic in characteristics:
        for name, low, high in _bins(characteristic):
            score = scores[characteristic.name][name]
            end = "" if high == math.inf else f"{high:g}"
            values = (score.mean_average_precision, score.normalized, score.recall)
            shown = ("-" if score.instances == 0 else f"{100 * value.mean():.2f}" for value in values)
            rows.append((f"{characteristic.name} {name} ({low:g}-{end})", f"{score.instances:,}", *shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def parts_dictionary(characteristics: Sequence[Characteristic], scores: PartScores) -> dict[str, Any]:
    """Return the parts as plain data for JSON; what is not a number, or has no end, is None."""
    return {
        characteristic.name: {
            name: {
                "from": low,
                "to": None if high == math.inf else high,
                "instances": scores[characteristic.name][name].instances,
                **{
                    measure: _rounded(values.tolist())
                    for measure, values in (
                        ("mean_average_precision", scores[characteristic.name][name].mean_average_precision),
                        ("normalized", scores[characteristic.name][name].normalized),
                        ("recall", scores[characteristic.name][name].recall),
                    )
                },
            }
            for name, low, high in _bins(characteristic)
        }
        for characteristic in characteristics
    }


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else round(value, 9) for value in values]


def _bins(characteristic: Characteristic) -> list[tuple[str, float, float]]:
    return list(zip(characteristic.bins, characteristic.edges[:-1], characteristic.edges[1:], strict=True))
