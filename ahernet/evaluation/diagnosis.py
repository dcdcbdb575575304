"""Where a localizer loses: in its proposals, in its classification or in its ranking.

The loss is split by repairing one thing after the other: detections that are given the true label measure what
classification costs; given the true ranking as well, what is left is what the proposals miss.
"""

from dataclasses import dataclass, replace

import numpy as np

from ahernet.data.annotations import Annotations
from ahernet.data.detections import Detections
from ahernet.evaluation.average_precision import PAIRS_AT_ONCE, average_precision, pair_tiou
from ahernet.evaluation.ground_truth import Floats, Integers, pair_videos, rows_of_one_key, truth_columns

FOUND_TIOU = 0.5  # from which a detection counts as one of its closest ground truth


@dataclass(frozen=True)
class Diagnosis:
    """Average mAP (tiou 0.50:0.05:0.95, as fractions of 1) of detections as they are and repaired.

    Attributes:
        as_detected: of the detections themselves.
        true_labels: if every detection had the label of its closest ground truth.
        true_ranking: if, in addition, detections were ranked by their tiou with it: the limit of the proposals.
        accuracy: share of the ground truths found at tiou 0.5 whose best-scored such detection has their label.
    """

    as_detected: float
    true_labels: float
    true_ranking: float
    accuracy: float


def diagnose(detections: Detections, annotations: Annotations) -> Diagnosis:
    """Repair labels and ranking of `detections` with `annotations` (select the subset before) and score each.

    The closest ground truth of a detection is that of its video with the highest tiou, the first of several.
    Detections that overlap none keep their label, and rank last when the ranking is repaired.

    Raises:
        UserError: as `average_precision`.
    """
    tiou, truth = closest_truth(detections, annotations)
    classes = tuple(dict.fromkeys([*detections.classes, *annotations.classes()]))
    number = {name: label for label, name in enumerate(classes)}
    truth_label = np.array([number[name] for video in annotations.videos.values() for name in video.labels], np.int64)
    label = np.where(tiou > 0, truth_label[truth], detections.label)
    labelled = replace(detections, classes=classes, label=label)
    return Diagnosis(
        as_detected=average_precision(detections, annotations).mean,
        true_labels=average_precision(labelled, annotations).mean,
        true_ranking=average_precision(replace(labelled, scores=tiou), annotations).mean,
        accuracy=_accuracy(detections, tiou, truth, truth_label),
    )


def closest_truth(detections: Detections, annotations: Annotations) -> tuple[Floats, Integers]:
    """Return for each detection the tiou with its closest ground truth and the row of that, 0 where none overlaps.

    The closest is that of its video with the highest tiou whatever its class, the first of several.
    """
    truth_video, truth_segments = truth_columns(annotations)
    video = pair_videos(detections, annotations).row[detections.video]
    tiou, closest = np.zeros(len(video)), np.zeros(len(video), np.int64)
    for row, truth in rows_of_one_key(video, truth_video, PAIRS_AT_ONCE):
        value = np.nan_to_num(pair_tiou(detections.segments[row], truth_segments[truth]))
        order = np.lexsort((truth, -value, row))
        first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
        tiou[row[first]], closest[row[first]] = value[first], truth[first]
    return tiou, closest


def _accuracy(detections: Detections, tiou: Floats, truth: Integers, truth_label: Integers) -> float:
    """Return the share of found ground truths whose best-scored detection has their label; NaN if none is found."""
    found = np.flatnonzero(tiou >= FOUND_TIOU)
    order = found[np.lexsort((-detections.scores[found], truth[found]))]
    best = order[np.flatnonzero(np.diff(truth[order], prepend=-1))]
    return float((detections.label[best] == truth_label[truth[best]]).mean()) if len(best) else float("nan")
