"""The score from which detections of a class are best taken for true: where F1 is highest at tIoU 0.5."""

from dataclasses import dataclass

import numpy as np

from ahernet.data.detections import Detections
from ahernet.evaluation.average_precision import Matches
from ahernet.evaluation.ground_truth import Floats, Integers

OPERATING_TIOU = 0.5


@dataclass(frozen=True)
class OperatingPoints:
    """One point per class, in the order of the classes; NaN and 0 for a class of which no detection is right.

    Attributes:
        classes: their names.
        score: (C,) lowest score that is taken.
        precision: (C,) of the detections with at least this score.
        recall: (C,) of the ground truths, by these.
        f1: (C,) harmonic mean of both.
        kept: (C,) detections with at least this score.
    """

    classes: tuple[str, ...]
    score: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    kept: Integers

    def minimum_scores(self) -> dict[str, float]:
        """Return by class what a score has to exceed, as `localize` asks; classes without a right detection lack.

        A detection at the point itself is to be kept: the minimum is the next number below its score.
        """
        with np.errstate(over="ignore"):
            minimum = np.nextafter(self.score, -np.inf).tolist()
        return {name: score for name, score in zip(self.classes, minimum, strict=True) if np.isfinite(score)}


def operating_points(matches: Matches, detections: Detections) -> OperatingPoints:
    """Return for each class the score with the best F1; the highest such score if there are several.

    Detections of equal score are taken together. A detection counts as right as in average precision.

    Args:
        matches: of `detections`, at thresholds that include 0.5.
        detections: as matched.

    Raises:
        ValueError: 0.5 is none of the thresholds.
    """
    limit = np.flatnonzero(np.isclose(matches.thresholds, OPERATING_TIOU))
    if not len(limit):
        raise ValueError(f"expected matches at tIoU {OPERATING_TIOU}, got {matches.thresholds.tolist()}")
    classes, instances, label = len(matches.classes), matches.instances, matches.label
    is_right = np.zeros(len(label), dtype=bool)
    is_right[matches.rank[matches.limit == limit[0]]] = True
    before = np.concatenate([[0], np.cumsum(is_right)])
    right = before[1:] - before[np.searchsorted(label, label)]
    kept = matches.rank_in_class + 1
    f1 = 2 * right / (kept + instances[label])
    scores = detections.scores[matches.row]
    # A score is a choice at its last detection alone.
    ends = np.flatnonzero(np.append((label[1:] != label[:-1]) | (scores[1:] != scores[:-1]), len(scores) > 0))
    order = ends[np.lexsort((ends, -f1[ends], label[ends]))]
    best = order[np.flatnonzero(np.diff(label[order], prepend=-1))]
    best = best[right[best] > 0]
    rows = label[best]

    def per_class(values: Floats, empty: float) -> Floats:
        column = np.full(classes, empty, np.float64)
        column[rows] = values
        return column

    return OperatingPoints(
        classes=matches.classes,
        score=per_class(scores[best], np.nan),
        precision=per_class(right[best] / kept[best], 0),
        recall=per_class(right[best] / instances[rows], 0),
        f1=per_class(f1[best], 0),
        kept=per_class(kept[best], 0).astype(np.int64),
    )
