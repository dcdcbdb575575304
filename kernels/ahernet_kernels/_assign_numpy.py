"""`assign` on a CPU: `match`, then kinds by threshold, and the best anchor of each ground truth."""

import numpy as np
import numpy.typing as npt

from ahernet_kernels._tiou import (
    Floats,
    anchors_as_segments_numpy,
    finite_segments_numpy,
    intersection_and_union_numpy,
    unclamped_tiou_numpy,
)
from ahernet_kernels.match import CPU_BLOCK_ELEMENTS, match_numpy

Integers = npt.NDArray[np.int64]


def assign_numpy(
    anchors: Floats,
    gt_segments: Floats,
    gt_labels: Integers,
    gt_offsets: Integers,
    foreground_threshold: np.float32,
    background_threshold: np.float32,
    force_match: bool,
) -> tuple[Integers, Integers, Floats, Floats]:
    """`assign` of checked arguments."""
    index, tiou = match_numpy(anchors, gt_segments, gt_offsets)
    kind = _kinds(anchors, gt_segments, index, foreground_threshold, background_threshold)
    if force_match and index.size:
        kind[_force_matches(anchors, gt_segments, gt_offsets, index, tiou)] = 1
    # One more row stands for "nothing overlaps": index -1 finds it. A pair of numbers moves as one complex number.
    labels = np.append(gt_labels, -1).take(index)
    truths = np.append(np.stack(finite_segments_numpy(gt_segments), axis=-1).view(np.complex64), np.complex64(0))
    return kind, labels, truths.take(index).view(np.float32).reshape(*index.shape, 2), tiou


def _kinds(
    anchors: Floats,
    gt_segments: Floats,
    index: Integers,
    foreground_threshold: np.float32,
    background_threshold: np.float32,
) -> Integers:
    """1 (foreground), 0 (background) or -1 (ignored) of anchors whose closest ground truth is `index`, -1 for none."""
    start, end = anchors_as_segments_numpy(anchors)
    gt_start, gt_end = (np.append(ends, np.float32(0)) for ends in finite_segments_numpy(gt_segments))
    kind = np.empty_like(index)
    size = max(1, CPU_BLOCK_ELEMENTS // 4 // max(1, len(anchors)))
    for block in (slice(first, first + size) for first in range(0, len(index), size)):
        closest = index[block]
        intersection, union = intersection_and_union_numpy(start, end, gt_start.take(closest), gt_end.take(closest))
        union[closest < 0] = 1
        foreground = intersection > foreground_threshold * union
        ignored = ~(foreground | (intersection < background_threshold * union))
        np.subtract(foreground, ignored, out=kind[block], dtype=np.int64)
    return kind


def _force_matches(
    anchors: Floats,
    gt_segments: Floats,
    gt_offsets: Integers,
    index: Integers,
    tiou: Floats,
) -> tuple[Integers, Integers]:
    """Give every overlapping ground truth its best anchor in `index` and `tiou`; return (video, anchor) of them."""
    start, end = anchors_as_segments_numpy(anchors)
    first_row = gt_offsets[0]
    gt_segments = gt_segments[first_row : gt_offsets[-1]]  # other rows are of no video
    gt_start, gt_end = finite_segments_numpy(gt_segments)
    best, best_tiou = np.zeros(len(gt_segments), np.int64), np.zeros(len(gt_segments), np.float32)
    size = max(1, CPU_BLOCK_ELEMENTS // len(anchors))
    for rows in (slice(first, first + size) for first in range(0, len(gt_segments), size)):
        pairs = unclamped_tiou_numpy(start, end, gt_start[rows, None], gt_end[rows, None])
        np.fmax(pairs, 0, out=pairs)
        best[rows] = pairs.argmax(axis=1)
        best_tiou[rows] = pairs.max(axis=1)
    video = np.repeat(np.arange(len(gt_offsets) - 1), np.diff(gt_offsets))
    # Written from the lowest to the highest claim, so that the highest temporal IoU, lowest row, stays.
    rows_by_claim = np.lexsort((-np.arange(len(best)), best_tiou))
    rows_by_claim = rows_by_claim[best_tiou[rows_by_claim] > 0]
    place = (video[rows_by_claim], best[rows_by_claim])
    index[place] = rows_by_claim + first_row
    tiou[place] = best_tiou[rows_by_claim]
    return place
