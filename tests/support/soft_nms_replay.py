"""Gaussian soft-NMS held to its contract by doing its picks again in fp64.

An exponential is rounded in its own way everywhere, and scores that are nearly equal may change places by it. So the
order of picks is taken as given, and every pick must be one that the exact scores allow within their rounding.
"""

import kernel_references_batched as batched
import numpy as np
import numpy.typing as npt
from kernel_references_batched import Booleans
from torch import Tensor

EPSILON = 2.0**-24  # half a unit in the last place of 1 in fp32
TINIEST = 2.0**-126  # what is below it may be flushed to 0

Doubles = npt.NDArray[np.float64]


def wrong_videos(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    sigma: float,
    min_score: float,
    picked: tuple[Tensor, Tensor, Tensor],
) -> Booleans:
    """Of each video, whether index, scores and count are none that soft-NMS may give.

    A decayed score may be off by 16 (1 + x) units of rounding for each decay by exp(-x), for the temporal IoU is off
    by some and the exponential of x by x times as many.
    """
    index, kept_scores, count = (x.numpy() for x in picked)
    eligible, _ = batched.candidates_of(segments, scores, min_score)
    rows = batched.segments_of(batched.array_of(segments))
    left = np.where(eligible, batched.array_of(scores).astype(np.float64), -np.inf)
    error, first = np.zeros_like(left), np.abs(left)
    wrong = (count != (index >= 0).sum(axis=1)) | ((index < 0) & (kept_scores != 0)).any(axis=1)
    minimum, video = float(np.float32(min_score)), np.arange(len(left))
    for number in range(index.shape[1]):
        best, found = np.maximum(index[:, number], 0), index[:, number] >= 0
        place = (video, best)
        certain = left - error > minimum
        wrong |= certain.any(axis=1) & ~found
        highest = np.where(certain, left - error, -np.inf).max(axis=1)
        allowed = (left[place] > -np.inf) & (left[place] + error[place] >= highest)
        with np.errstate(invalid="ignore"):
            allowed &= np.abs(kept_scores[:, number] - left[place]) <= error[place]
        allowed &= ~(_equals_of_lower_position(segments, scores, labels, best) & (left > -np.inf)).any(axis=1)
        wrong |= found & ~allowed
        left[place] = np.where(found, -np.inf, left[place])
        competes = found[:, None] & _same_class(labels, best) & (left > -np.inf)
        tiou = batched.tiou_of(batched.at(rows, (*place, None)), rows).astype(np.float64)
        x = np.where(competes, tiou * tiou / np.float64(np.float32(sigma)), 0)
        left, error = _decayed(left, error, first, x)
        left[left + error <= minimum] = -np.inf
    return wrong


def _decayed(left: Doubles, error: Doubles, first: Doubles, x: Doubles) -> tuple[Doubles, Doubles]:
    factor = np.exp(-x)
    alive = left > -np.inf
    decayed = np.where(alive, np.where(alive, left, 0) * factor, -np.inf)
    rounding = np.where(alive, np.abs(np.where(alive, decayed, 0)) * 16 * (1 + x) * EPSILON, 0)
    flushed = np.where(alive, np.where(alive, first, 0) * TINIEST + TINIEST, 0)
    return decayed, np.where(x > 0, error * factor + rounding + flushed, error)


def _same_class(labels: Tensor | None, best: npt.NDArray[np.int64]) -> Booleans:
    if labels is None:
        return np.ones((1, 1), np.bool_)
    classes = labels.numpy()
    same: Booleans = classes == classes[np.arange(len(best)), best][:, None]
    return same


def _equals_of_lower_position(
    segments: Tensor, scores: Tensor, labels: Tensor | None, best: npt.NDArray[np.int64]
) -> Booleans:
    """Candidates before the best one that are the same in all: whatever the rounding, they go first."""
    rows = np.concatenate([batched.array_of(segments), batched.array_of(scores)[..., None]], axis=-1)
    same = (rows == rows[np.arange(len(best)), best][:, None]).all(axis=-1)
    return same & _same_class(labels, best) & (np.arange(rows.shape[1]) < best[:, None])
