"""What a report says, as plain data: every number of the page, and a sample of the videos for its timelines.

The page embeds this as JSON, so its size is bounded whatever the number of videos and classes: means and counts are
those of all, lists are cut, and what was cut is counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ahernet import __version__
from ahernet.data.annotations import Annotations
from ahernet.data.detections import Detections
from ahernet.evaluation.average_precision import Matches, match_detections, precision_of
from ahernet.evaluation.average_recall import AverageRecall, average_recall
from ahernet.evaluation.bootstrap import bootstrap_interval
from ahernet.evaluation.characteristics import BINS, Characteristic
from ahernet.evaluation.false_positives import KINDS, detection_kinds, false_positives
from ahernet.evaluation.operating_points import OPERATING_TIOU, OperatingPoints, operating_points
from ahernet.evaluation.report import coverage
from ahernet.evaluation.sensitivity import PartScore, score_part, sensitivity
from ahernet.reporting.names import Names, shown
from ahernet.reporting.numbers import all_rounded, rounded
from ahernet.reporting.sample import sampled_videos

MOST_CLASSES = 3000  # rows of the table of classes
MOST_LOSS_TERMS = 12
LOSS_POINTS = 400  # of a loss curve: means of equal stretches
BROKEN = 1e300  # a loss from which there is no number to show
CLASS_COLUMNS = (
    *("instances", "detections", "AP@0.50", "AP@0.75", "AP@0.95", "average AP"),
    *("score", "kept", "precision", "recall", "F1"),
)
SHOWN_THRESHOLDS = (0.50, 0.75, 0.95)


@dataclass(frozen=True)
class ReportSettings:
    """How a report is made.

    Attributes:
        title: of the page.
        sources: what it is of, by kind: names of files, the subset.
        bins: name of the bins of the ground truth, a key of `BINS`.
        draws: of the bootstrap.
        groups: classes to give means for, by the name of the group, beside the mean over all classes.
    """

    title: str
    sources: Mapping[str, str]
    bins: str = "activitynet"
    draws: int = 500
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)


def report_content(
    detections: Detections,
    annotations: Annotations,
    settings: ReportSettings,
    losses: Sequence[Mapping[str, float]] | None = None,
) -> tuple[dict[str, Any], OperatingPoints]:
    """Score `detections` in every way that the page shows.

    Args:
        detections: of the videos of `annotations`.
        annotations: with the subset selected.
        settings: how.
        losses: entries of the loss log of the run, None where none is given.

    Returns:
        plain data for JSON, in which what is undefined is None, and the operating points.

    Raises:
        UserError: as `average_precision`, or a group of classes none of which occurs.
    """
    matches = match_detections(detections, annotations)
    kinds = detection_kinds(matches, detections, annotations)
    points = operating_points(matches, detections)
    names = Names()
    content = {
        "title": shown(settings.title),
        "sources": {kind: shown(name) for kind, name in settings.sources.items()},
        "version": __version__,
        "coverage": shown(coverage(precision_of(matches)), 1000),
        "videos": len(annotations.videos),
        "instances": len(matches.truth_label),
        "detections": len(detections),
        "precision": _precision(matches, settings),
        "classes": _classes(matches, points, names),
        "recall": _recall(average_recall(detections, annotations)),
        "losses": None if losses is None else _losses(losses),
        "errors": _errors(matches, kinds),
        "sensitivity": _sensitivity(matches, annotations, BINS[settings.bins]),
        "bins": settings.bins,
        "first_score": rounded(np.nanmedian(points.score), 3) if len(points.minimum_scores()) else 0.0,
        "timelines": sampled_videos(matches, kinds, detections, annotations, names),
    }
    return {**content, "names": names.listed()}, points


def _precision(matches: Matches, settings: ReportSettings) -> dict[str, Any]:
    result, interval = precision_of(matches), bootstrap_interval(matches, settings.draws)
    groups = {name: result.select(classes) for name, classes in settings.groups.items()}
    return {
        "thresholds": all_rounded(result.thresholds),
        "mean_per_threshold": all_rounded(result.mean_per_threshold),
        "mean": rounded(result.mean),
        "interval": {
            "level": interval.level,
            "draws": interval.draws,
            "mean": all_rounded(interval.mean),
            "per_threshold": [all_rounded(ends) for ends in interval.per_threshold],
        },
        "groups": [
            {
                "name": shown(name),
                "classes": len(part.classes),
                "mean": rounded(part.mean),
                "mean_per_threshold": all_rounded(part.mean_per_threshold),
            }
            for name, part in groups.items()
        ],
    }


def _classes(matches: Matches, points: OperatingPoints, names: Names) -> dict[str, Any]:
    """Return a row per class: its name and `CLASS_COLUMNS`; the classes with most ground truths if there are many."""
    result = precision_of(matches)
    columns = [int(np.argmin(abs(result.thresholds - threshold))) for threshold in SHOWN_THRESHOLDS]
    order = np.argsort(-result.instances, kind="stable")[:MOST_CLASSES]
    rows = []
    for row in sorted(order.tolist()):
        average = [*result.per_class[row, columns], result.per_class[row].mean()]
        counts = [int(result.instances[row]), int(result.detections[row])]
        point = [rounded(points.score[row]), int(points.kept[row])]
        shares = all_rounded([points.precision[row], points.recall[row], points.f1[row]])
        rows.append([names.number(result.classes[row]), *counts, *all_rounded(average), *point, *shares])
    return {
        "columns": CLASS_COLUMNS,
        "tiou": OPERATING_TIOU,
        "rows": rows,
        "left_out": len(result.classes) - len(rows),
    }


def _recall(recall: AverageRecall) -> dict[str, Any]:
    curves = {"average": recall.average_recall}
    for threshold in SHOWN_THRESHOLDS:
        curves[f"tIoU {threshold:.2f}"] = recall.recall[int(np.argmin(abs(recall.thresholds - threshold)))]
    return {
        "proposals": all_rounded(recall.proposals_per_video),
        "curves": {name: all_rounded(curve) for name, curve in curves.items()},
        "area": rounded(recall.area),
    }


def _losses(entries: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the (iteration, mean) points of each term; what is not finite is left out and counted."""
    terms = list(
        dict.fromkeys(term for entry in entries for term in entry if term not in ("iteration", "learning_rate"))
    )
    curves = {}
    broken = 0
    for term in terms[:MOST_LOSS_TERMS]:
        pairs = [(entry["iteration"], entry[term]) for entry in entries if term in entry]
        points = [(x, y) for x, y in pairs if abs(x) < BROKEN and abs(y) < BROKEN]
        broken += len(pairs) - len(points)
        stretches = np.array_split(np.array(points, np.float64).reshape(-1, 2), LOSS_POINTS)
        curves[shown(term)] = [all_rounded(stretch.mean(axis=0)) for stretch in stretches if len(stretch)]
    return {"iterations": len(entries), "curves": curves, "broken": broken}


def _errors(matches: Matches, kinds: np.ndarray) -> dict[str, Any]:
    result = false_positives(matches, kinds)
    return {
        "kinds": KINDS,
        "counts": [all_rounded(row) for row in result.counts.mean(axis=2)],
        "mean": rounded(result.mean_average_precision),
        "gain": all_rounded(result.gain),
    }


def _sensitivity(
    matches: Matches, annotations: Annotations, characteristics: tuple[Characteristic, ...]
) -> dict[str, Any]:
    """Return the scores of the whole and of each bin, means over the thresholds."""
    scores = sensitivity(matches, annotations, characteristics)
    whole = score_part(matches, np.ones(len(matches.truth_label), dtype=bool))
    parts = []
    for characteristic in characteristics:
        own = scores[characteristic.name]
        upper_edges = [edge if edge < math.inf else None for edge in characteristic.edges[1:]]
        bins = [
            {"name": name, "low": low, "high": high, **_part(own[name])}
            for name, low, high in zip(characteristic.bins, characteristic.edges[:-1], upper_edges, strict=True)
        ]
        unsorted = whole.instances - sum(score.instances for score in own.values())
        parts.append({"name": characteristic.name, "bins": bins, "unsorted": unsorted})
    return {"whole": _part(whole), "parts": parts}


def _part(score: PartScore) -> dict[str, Any]:
    return {
        "instances": score.instances,
        "mean": rounded(score.mean_average_precision.mean()),
        "normalized": rounded(score.normalized.mean()),
        "recall": rounded(score.recall.mean()),
    }
