"""`match`, `assign` and `nms` on a CPU as loops that numba compiles, where it is installed.

The same results, bit for bit, as the NumPy forms. Whatever is compiled stands in this one file: numba keeps machine
code beside it, and makes it anew when this file changes, not when another does. Nothing in a loop checks an index.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from ahernet_kernels._nms_numpy import Integers, is_candidate, nms_numpy, ordered_bits, rank_order, sorted_keys
from ahernet_kernels._tiou import Floats, anchors_as_segments_numpy, finite_segments_numpy

ZERO = np.float32(0)
ONE = np.float32(1)
MARGIN = np.float32(8e-6)  # covers the rounding of the fp32 test, for coordinates of the size of the segment's
LEAST_THRESHOLD = 0.01  # of `nms`: below it a segment reaches back for more than a hundred of its lengths

compiled = numba.njit(error_model="numpy", nogil=True)


def compiled_and_kept(loop: Callable[..., None]) -> Callable[..., None]:
    """`loop`, compiled at its first call; later processes find the code, unless it cannot be kept or is damaged."""
    alone = compiled(loop)
    try:
        kept = numba.njit(cache=True, error_model="numpy", nogil=True)(loop)
    except RuntimeError:  # no folder that it could be kept in
        return alone
    chosen = kept

    @functools.wraps(kept)
    def call(*arguments: Any) -> None:
        nonlocal chosen
        used = chosen
        try:
            used(*arguments)
        except Exception as error:  # of writing to a full disk, or whatever damaged pickles raise
            if used is alone:
                raise
            warnings.warn(f"numba cannot keep machine code: {type(error).__name__}: {error}", stacklevel=2)
            chosen = alone
            alone(*arguments)

    return call


def match_loops(anchors: Floats, gt_segments: Floats, gt_offsets: Integers) -> tuple[Integers, Floats]:
    """`match` of checked arguments."""
    shape = (len(gt_offsets) - 1, len(anchors))
    index, tiou = np.empty(shape, np.int64), np.empty(shape, np.float32)
    truths = finite_segments_numpy(gt_segments)
    _match(*anchors_as_segments_numpy(anchors), *truths, gt_offsets, index, tiou)
    return index, tiou


def assign_loops(
    anchors: Floats,
    gt_segments: Floats,
    gt_labels: Integers,
    gt_offsets: Integers,
    foreground_threshold: np.float32,
    background_threshold: np.float32,
    force_match: bool,
) -> tuple[Integers, Integers, Floats, Floats]:
    """`assign` of checked arguments."""
    shape = (len(gt_offsets) - 1, len(anchors))
    kind, labels = np.empty(shape, np.int64), np.empty(shape, np.int64)
    targets, tiou = np.empty((*shape, 2), np.float32), np.empty(shape, np.float32)
    _assign(
        *anchors_as_segments_numpy(anchors),
        *finite_segments_numpy(gt_segments),
        gt_labels,
        gt_offsets,
        foreground_threshold,
        background_threshold,
        force_match,
        kind,
        labels,
        targets,
        tiou,
    )
    return kind, labels, targets, tiou


def nms_loops(
    segments: Floats,
    scores: Floats,
    labels: npt.NDArray[np.int32] | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float,
) -> tuple[Integers, Integers]:
    """`nms` of checked arguments: segments (B, N, 2), scores (B, N), labels (B, N) -> index (B, K), count (B,)."""
    if tiou_threshold < LEAST_THRESHOLD:
        return nms_numpy(segments, scores, labels, tiou_threshold, max_output, min_score)
    eligible = is_candidate(segments, scores, min_score)
    order = rank_order(scores, eligible)
    own_labels = np.zeros(scores.shape, np.int32) if labels is None else labels
    with np.errstate(invalid="ignore"):
        start = ordered_bits(segments[..., 0]).view(np.uint32) ^ np.uint32(1 << 31)  # orders as unsigned numbers
    _, by_start = sorted_keys((own_labels.astype(np.int64) << 32) | start)
    index, count = np.empty((len(scores), max_output), np.int64), np.empty(len(scores), np.int64)
    _nms(segments, own_labels, eligible, order, by_start, np.float32(tiou_threshold), index, count)
    return index, count


@compiled
def _intersection_and_union(start, end, other_start, other_end):
    intersection = max(min(end, other_end) - max(start, other_start), ZERO)
    return intersection, max(end - start, ZERO) + max(other_end - other_start, ZERO) - intersection


@compiled
def _closest(start, end, gt_start, gt_end, first, last, index, tiou):
    """Of one video: for every anchor the row in [first, last) of the closest ground truth, and that temporal IoU."""
    index[:] = -1
    tiou[:] = 0
    for row in range(first, last):
        truth = np.int32(row)  # as wide as a temporal IoU: both are chosen by one vector of comparisons
        for i in range(len(start)):
            intersection, union = _intersection_and_union(start[i], end[i], gt_start[row], gt_end[row])
            candidate = intersection / union if union > ZERO else ZERO
            closer = candidate > tiou[i]
            index[i] = truth if closer else index[i]
            tiou[i] = candidate if closer else tiou[i]


@compiled_and_kept
def _match(start, end, gt_start, gt_end, offsets, index, tiou):
    row = np.empty(len(start), np.int32)
    for video in range(len(offsets) - 1):
        _closest(start, end, gt_start, gt_end, offsets[video], offsets[video + 1], row, tiou[video])
        index[video, :] = row


@compiled
def _force(start, end, gt_start, gt_end, first, last, forced, index, tiou):
    """Of one video: mark the best anchor of every ground truth as `forced`, and give it that ground truth."""
    forced[:] = False
    for row in range(first, last):
        best, best_tiou = -1, ZERO
        for i in range(len(start)):
            intersection, union = _intersection_and_union(start[i], end[i], gt_start[row], gt_end[row])
            candidate = intersection / union if union > ZERO else ZERO
            if candidate > best_tiou:
                best, best_tiou = i, candidate
        if best >= 0 and (not forced[best] or best_tiou > tiou[best]):
            forced[best], index[best], tiou[best] = True, row, best_tiou


@compiled_and_kept
def _assign(
    start,
    end,
    gt_start,
    gt_end,
    gt_labels,
    offsets,
    foreground_threshold,
    background_threshold,
    force_match,
    kind,
    labels,
    targets,
    tiou,
):
    index = np.empty(len(start), np.int32)
    forced = np.zeros(len(start), np.bool_)
    for video in range(len(offsets) - 1):
        first, last = offsets[video], offsets[video + 1]
        _closest(start, end, gt_start, gt_end, first, last, index, tiou[video])
        for i in range(len(start)):
            row = index[i]
            truth_start, truth_end = (gt_start[row], gt_end[row]) if row >= 0 else (ZERO, ZERO)
            intersection, union = _intersection_and_union(start[i], end[i], truth_start, truth_end)
            union = union if row >= 0 else ONE
            foreground = intersection > foreground_threshold * union
            background = intersection < background_threshold * union
            kind[video, i] = 1 if foreground else 0 if background else -1
        if force_match:
            _force(start, end, gt_start, gt_end, first, last, forced, index, tiou[video])
        for i in range(len(start)):
            row = index[i]
            if forced[i]:
                kind[video, i] = 1
            labels[video, i] = gt_labels[row] if row >= 0 else -1
            targets[video, i, 0] = gt_start[row] if row >= 0 else ZERO
            targets[video, i, 1] = gt_end[row] if row >= 0 else ZERO


@compiled_and_kept
def _nms(segments, labels, eligible, order, by_start, threshold, index, kept_count):
    """Candidates by class and start; one after the other by rank, each kept one strikes those within reach of it.

    Temporal IoU > t bounds the distance of two starts by 1 - t times the length of the earlier segment and by
    (1 - t) / t times that of the later.
    """
    size = order.shape[1]
    start, end, label = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.int32)
    place, suppressed = np.empty(size, np.int64), np.empty(size, np.bool_)
    ahead = ONE - threshold
    behind = ahead / threshold
    for video in range(len(order)):
        count = 0
        longest = ZERO
        for source in by_start[video]:
            if eligible[video, source]:
                start[count], end[count] = segments[video, source, 0], segments[video, source, 1]
                label[count], place[source], suppressed[count] = labels[video, source], count, False
                longest = max(longest, end[count] - start[count])
                count += 1
        kept = 0
        for rank in range(count):
            if kept == index.shape[1]:
                break
            source = order[video, rank]
            at = place[source]
            if suppressed[at]:
                continue
            index[video, kept] = source
            kept += 1
            length = end[at] - start[at]
            if length <= ZERO or ahead <= ZERO:
                continue  # overlaps nothing by more than the threshold
            margin = MARGIN * (abs(start[at]) + abs(end[at]) + ONE)
            furthest = start[at] + (length * ahead + margin)
            reach = length * behind
            reach = longest if longest < reach else reach
            nearest = start[at] - (reach * (ONE + MARGIN) + margin)
            for other in range(at + 1, count):
                if label[other] != label[at] or start[other] > furthest:
                    break
                suppressed[other] |= _is_over(start, end, at, other, threshold)
            for other in range(at - 1, -1, -1):
                if label[other] != label[at] or start[other] < nearest:
                    break
                suppressed[other] |= _is_over(start, end, at, other, threshold)
        index[video, kept:] = -1
        kept_count[video] = kept


@compiled
def _is_over(start, end, at, other, threshold):
    intersection, union = _intersection_and_union(start[at], end[at], start[other], end[other])
    return intersection > threshold * union
