"""Average precision and recall of parts of the ground truth: the short segments, the crowded videos and so on.

Detections are matched with the whole ground truth once. For a part, detections that took a ground truth outside it
are ignored, neither right nor wrong; those that took none stay false positives. So this is a view of one evaluation
and not an evaluation of its own, as in DETAD (see `characteristics`). Every threshold is by itself: a detection that
takes a ground truth outside at a lower threshold and none at a higher is a false positive at the higher, where the
program of DETAD leaves it out.

Parts of different size have different precision by chance alone: the false positives are the same, the true positives
are not. DETAD therefore normalizes precision (Hoiem et al., ECCV 2012): of n ground truths of a class it takes
recall * N / (recall * N + false positives), with N the average number per class of the whole set.
"""

from dataclasses import dataclass

import numpy as np

from ahernet.data.annotations import Annotations
from ahernet.evaluation.average_precision import Matches
from ahernet.evaluation.characteristics import Characteristic, characteristic_values
from ahernet.evaluation.curves import areas, counts_before
from ahernet.evaluation.ground_truth import Floats


@dataclass(frozen=True)
class PartScore:
    """Scores of a part of the ground truth, as fractions of 1; NaN where it is empty.

    Attributes:
        instances: ground truths of the part.
        mean_average_precision: (T,) at each threshold, the mean over the classes that the part has.
        normalized: (T,) the same with normalized precision.
        recall: (T,) share of the ground truths, of all classes together, that a detection takes.
    """

    instances: int
    mean_average_precision: Floats
    normalized: Floats
    recall: Floats


def sensitivity(
    matches: Matches, annotations: Annotations, characteristics: tuple[Characteristic, ...]
) -> dict[str, dict[str, PartScore]]:
    """Score each bin of each characteristic; ground truths in no bin (of unknown coverage, or above 1) are in none.

    Returns:
        scores by the name of the characteristic and of the bin, in their order.
    """
    values = characteristic_values(matches, annotations)
    scores: dict[str, dict[str, PartScore]] = {}
    for characteristic in characteristics:
        rows = characteristic.bin_of(values[characteristic.name])
        scores[characteristic.name] = {
            name: score_part(matches, rows == number) for number, name in enumerate(characteristic.bins)
        }
    return scores


def score_part(matches: Matches, is_inside: np.ndarray) -> PartScore:
    """Score the ground truths for which the (G,) `is_inside` holds."""
    classes, limits = len(matches.classes), len(matches.thresholds)
    instances = np.bincount(matches.truth_label[is_inside], minlength=classes)
    present = instances > 0
    total = int(instances.sum())
    if not total:
        nothing = np.full(limits, np.nan)
        return PartScore(0, nothing, nothing, nothing)
    average = len(matches.truth_label) / classes

    curve = matches.curve
    # Every hit is right or ignored, so false positives are what no hit explains.
    wrong = matches.rank_in_class[matches.rank] - counts_before(curve)
    kept = is_inside[matches.truth]
    curve, wrong, label = curve[kept], wrong[kept], matches.label[matches.rank[kept]]
    right = counts_before(curve) + 1
    recall = right / instances[label]
    gain = 1 / instances[label]
    precision = np.stack([right / (right + wrong), recall * average / (recall * average + wrong)])
    area = areas(curve, precision, gain, limits * classes).reshape(2, limits, classes)
    plain, normalized = area[..., present].mean(axis=2)
    found = np.bincount(matches.limit[kept], minlength=limits)
    return PartScore(total, plain, normalized, found / total)
