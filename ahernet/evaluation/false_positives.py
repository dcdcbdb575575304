"""What kind of error each detection is, and what each kind costs, as DETAD defines them.

DETAD: Alwassel et al., "Diagnosing Error in Temporal Action Detectors", ECCV 2018, section 4. Of each class with G
ground truths, the 10 G best-scored detections are looked at. One that takes no ground truth is judged by the ground
truth of its video that it overlaps most, whatever the class of that, with threshold t:

    tiou >= t     same class: double detection       other class: wrong label
    tiou >= 0.1   same class: localization error     other class: confusion
    below         background error
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ahernet.data.annotations import Annotations
from ahernet.data.detections import Detections
from ahernet.evaluation.average_precision import Matches
from ahernet.evaluation.curves import areas, counts_before
from ahernet.evaluation.diagnosis import closest_truth
from ahernet.evaluation.ground_truth import Floats, Integers

KINDS = (
    "true positive",
    "double detection",
    "wrong label",
    "localization error",
    "confusion",
    "background error",
)
NEAR = 0.1  # tiou below which a detection has nothing to do with a ground truth
MULTIPLES = 10  # of the ground truths of a class: how many of its detections are looked at


@dataclass(frozen=True)
class FalsePositives:
    """The errors among the best-scored detections.

    Attributes:
        counts: (10, 6, T) detections by multiple of the ground truths of their class (the first G of each class, the
            second G and so on), kind (`KINDS`) and threshold.
        mean_average_precision: of the detections looked at, mean over classes and thresholds, as fraction of 1.
        gain: (5,) what it would gain without the errors of each kind but the first of `KINDS`.
    """

    counts: Integers
    mean_average_precision: float
    gain: Floats


def detection_kinds(matches: Matches, detections: Detections, annotations: Annotations) -> npt.NDArray[np.int8]:
    """Return the (T, N) row of `KINDS` of every ranked detection at every threshold.

    Args:
        matches: of `detections` with `annotations`.
        detections: as matched.
        annotations: as matched.
    """
    tiou, truth = (column[matches.row] for column in closest_truth(detections, annotations))
    is_same = matches.truth_label[truth] == matches.label
    far = np.where(tiou < NEAR, 5, np.where(is_same, 3, 4))
    kinds = np.where(tiou >= matches.thresholds[:, None], np.where(is_same, 1, 2), far).astype(np.int8)
    kinds[matches.limit, matches.rank] = 0
    return kinds


def false_positives(matches: Matches, kinds: npt.NDArray[np.int8]) -> FalsePositives:
    """Count the kinds of `detection_kinds` and what each costs."""
    classes, limits = len(matches.classes), len(matches.thresholds)
    instances = matches.instances
    multiple = matches.rank_in_class // instances[matches.label]
    looked_at = multiple < MULTIPLES
    counts = np.stack(
        [
            np.bincount(multiple[looked_at] * len(KINDS) + row[looked_at], minlength=MULTIPLES * len(KINDS))
            for row in kinds
        ],
        axis=-1,
    ).reshape(MULTIPLES, len(KINDS), limits)

    curve = matches.curve
    kept = looked_at[matches.rank]
    # In ranking order a class loses its tail alone, so the counts before a hit stay what they were.
    right = (counts_before(curve) + 1)[kept]
    curve, rank, limit = curve[kept], matches.rank[kept], matches.limit[kept]
    wrong = matches.rank_in_class[rank] + 1 - right
    removed = np.stack([_of_kind_before(matches, row, rank, limit) for row in _each_kind(kinds)])
    precision = right / (right + wrong - np.concatenate([np.zeros((1, len(rank)), np.int64), removed]))
    gain = np.broadcast_to(1 / instances[matches.label[rank]], precision.shape)
    means = areas(curve, precision, gain, limits * classes).mean(axis=-1)
    return FalsePositives(counts, float(means[0]), means[1:] - means[0])


def _each_kind(kinds: npt.NDArray[np.int8]) -> list[npt.NDArray[np.bool_]]:
    return [kinds == number for number in range(1, len(KINDS))]


def _of_kind_before(matches: Matches, is_of_kind: npt.NDArray[np.bool_], rank: Integers, limit: Integers) -> Integers:
    """Return how many detections of a kind are before each hit in its class."""
    counts = np.zeros((len(is_of_kind), len(matches.label) + 1), np.int64)
    np.cumsum(is_of_kind, axis=1, out=counts[:, 1:])
    start = np.searchsorted(matches.label, matches.label[rank])
    before: Integers = counts[limit, rank] - counts[limit, start]
    return before
