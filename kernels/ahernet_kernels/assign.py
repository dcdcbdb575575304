"""Label assignment: `match` fused with the thresholds of foreground and background."""

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels import _cpu_form
from ahernet_kernels._arguments import (
    FLOATS,
    INTEGERS,
    check_fraction,
    check_offset_values,
    check_offsets,
    check_tensor,
)
from ahernet_kernels._assign_numpy import assign_numpy
from ahernet_kernels._tiou import intersection_and_union, load_anchor_as_segment, load_segment, tiou_of
from ahernet_kernels._tuning import launch_settings
from ahernet_kernels.match import closest_ground_truth

FOREGROUND = 1
BACKGROUND = 0
IGNORED = -1

DEFAULTS = {"BLOCK_A": 256, "num_warps": 4}
DEFAULTS_FORCED = {"BLOCK_A": 1024, "num_warps": 16}  # the anchors of a video in one tile: no program repeats a search


class Assignment(NamedTuple):
    """What each anchor is and should become; `A` anchors of `B` videos."""

    kind: Tensor
    """`(B, A)` int64: FOREGROUND, BACKGROUND or IGNORED."""
    labels: Tensor
    """`(B, A)` int64: label of the closest ground truth, -1 where nothing overlaps."""
    targets: Tensor
    """`(B, A, 2)` fp32: start, end of the closest ground truth, 0 where nothing overlaps."""
    tiou: Tensor
    """`(B, A)` fp32: temporal IoU with the closest ground truth (g_iou of the paper)."""


@triton.jit
def best_anchor(gt_start, gt_end, anchors_ptr, anchors, BLOCK_A: tl.constexpr):
    """Anchor with the highest temporal IoU, ties to the lowest, and that IoU; -1 and 0 if none overlaps."""
    best = -1
    best_tiou = 0.0
    for tile in range(0, anchors, BLOCK_A):
        anchor = tile + tl.arange(0, BLOCK_A)
        start, end = load_anchor_as_segment(anchors_ptr, anchor, anchor < anchors)
        intersection, union = intersection_and_union(start, end, gt_start, gt_end)
        tiou, lowest = tl.max(tiou_of(intersection, union), 0, return_indices=True)
        closer = tiou > best_tiou
        best = tl.where(closer, tile + lowest, best)
        best_tiou = tl.where(closer, tiou, best_tiou)
    return best, best_tiou


@triton.jit
def forced_ground_truth(anchor, anchors_ptr, gt_segments_ptr, first, last, anchors, BLOCK_A: tl.constexpr):
    """Row of the ground truth whose best anchor this is, or -1; the higher temporal IoU wins, ties to the lowest."""
    forced = tl.full([BLOCK_A], -1, tl.int32)
    forced_tiou = tl.zeros([BLOCK_A], tl.float32)
    for row in range(first, last):
        gt_start, gt_end = load_segment(gt_segments_ptr, row, True)
        best, tiou = best_anchor(gt_start, gt_end, anchors_ptr, anchors, BLOCK_A)
        wins = (anchor == best) & (tiou > forced_tiou)
        forced = tl.where(wins, row, forced)
        forced_tiou = tl.where(wins, tiou, forced_tiou)
    return forced, forced_tiou


@triton.jit
def assign_kernel(
    anchors_ptr,
    gt_segments_ptr,
    gt_labels_ptr,
    gt_offsets_ptr,
    kind_ptr,
    labels_ptr,
    targets_ptr,
    tiou_ptr,
    anchors,
    FOREGROUND_THRESHOLD: tl.constexpr,
    BACKGROUND_THRESHOLD: tl.constexpr,
    FORCE_MATCH: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """A tile of anchors of one video: closest ground truth, thresholds, targets."""
    video = tl.program_id(0).to(tl.int64)
    anchor = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)
    mask = anchor < anchors
    start, end = load_anchor_as_segment(anchors_ptr, anchor, mask)
    first = tl.load(gt_offsets_ptr + video).to(tl.int32)
    last = tl.load(gt_offsets_ptr + video + 1).to(tl.int32)
    index, tiou = closest_ground_truth(start, end, gt_segments_ptr, first, last)
    matched = mask & (index >= 0)
    gt_start, gt_end = load_segment(gt_segments_ptr, index.to(tl.int64), matched)
    intersection, union = intersection_and_union(start, end, gt_start, gt_end)
    union = tl.where(matched, union, 1.0)
    foreground = intersection > FOREGROUND_THRESHOLD * union
    background = intersection < BACKGROUND_THRESHOLD * union
    if FORCE_MATCH:
        forced, forced_tiou = forced_ground_truth(anchor, anchors_ptr, gt_segments_ptr, first, last, anchors, BLOCK_A)
        is_forced = forced >= 0
        index = tl.where(is_forced, forced, index)
        tiou = tl.where(is_forced, forced_tiou, tiou)
        foreground = foreground | is_forced
        gt_start, gt_end = load_segment(gt_segments_ptr, index.to(tl.int64), matched)
    label = tl.load(gt_labels_ptr + index.to(tl.int64), mask=matched, other=-1)
    at = video * anchors + anchor
    kind = tl.where(foreground, 1, tl.where(background, 0, -1))  # FOREGROUND, BACKGROUND, IGNORED
    tl.store(kind_ptr + at, kind, mask=mask)
    tl.store(labels_ptr + at, label, mask=mask)
    tl.store(targets_ptr + at * 2, gt_start, mask=mask)
    tl.store(targets_ptr + at * 2 + 1, gt_end, mask=mask)
    tl.store(tiou_ptr + at, tiou, mask=mask)


def assign_launch(
    kernel: Any,
    anchors: Tensor,
    gt_segments: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    foreground_threshold: float,
    background_threshold: float,
    force_match: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch `kernel` on a grid of videos and anchor tiles; shapes as in `assign`."""
    videos, count = gt_offsets.shape[0] - 1, anchors.shape[0]
    kind = torch.empty((videos, count), dtype=torch.int64, device=anchors.device)
    labels = torch.empty_like(kind)
    targets = torch.empty((videos, count, 2), dtype=torch.float32, device=anchors.device)
    tiou = torch.empty((videos, count), dtype=torch.float32, device=anchors.device)
    if videos == 0 or count == 0:
        return kind, labels, targets, tiou
    settings = launch_settings("assign_forced", DEFAULTS_FORCED) if force_match else launch_settings("assign", DEFAULTS)
    kernel[(videos, triton.cdiv(count, settings["BLOCK_A"]))](
        anchors,
        gt_segments,
        gt_labels,
        gt_offsets,
        kind,
        labels,
        targets,
        tiou,
        count,
        FOREGROUND_THRESHOLD=foreground_threshold,
        BACKGROUND_THRESHOLD=background_threshold,
        FORCE_MATCH=force_match,
        **settings,
    )
    return kind, labels, targets, tiou


@custom_op("ahernet_kernels::assign_cpu", mutates_args=(), device_types="cpu")
def _assign_cpu(
    anchors: Tensor,
    gt_segments: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    foreground_threshold: float,
    background_threshold: float,
    force_match: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_offset_values("gt_offsets", gt_offsets.numpy(), len(gt_segments))
    loops = _cpu_form.numba_loops()
    form = loops.assign_loops if loops else assign_numpy
    kind, labels, targets, tiou = form(
        anchors.float().numpy(),
        gt_segments.float().numpy(),
        gt_labels.numpy(),
        gt_offsets.numpy(),
        np.float32(foreground_threshold),
        np.float32(background_threshold),
        force_match,
    )
    return torch.from_numpy(kind), torch.from_numpy(labels), torch.from_numpy(targets), torch.from_numpy(tiou)


@_assign_cpu.register_fake
def _(
    anchors: Tensor,
    gt_segments: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    foreground_threshold: float,
    background_threshold: float,
    force_match: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (gt_offsets.shape[0] - 1, anchors.shape[0])
    return (
        anchors.new_empty(shape, dtype=torch.int64),
        anchors.new_empty(shape, dtype=torch.int64),
        anchors.new_empty((*shape, 2), dtype=torch.float32),
        anchors.new_empty(shape, dtype=torch.float32),
    )


@triton_op("ahernet_kernels::assign", mutates_args=())
def _assign(
    anchors: Tensor,
    gt_segments: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    foreground_threshold: float,
    background_threshold: float,
    force_match: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arguments = (anchors, gt_segments, gt_labels, gt_offsets)
    settings = (foreground_threshold, background_threshold, force_match)
    if anchors.device.type == "cpu":
        return _assign_cpu(*arguments, *settings)
    return assign_launch(wrap_triton(assign_kernel), *arguments, *settings)


def assign(
    anchors: Tensor,
    gt_segments: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    foreground_threshold: float = 0.8,
    background_threshold: float = 0.3,
    force_match: bool = False,
) -> Assignment:
    """Decide for every anchor whether it is foreground, background or ignored, and what it should become.

    Foreground when its temporal IoU with the closest ground truth is > `foreground_threshold`, background when it
    is < `background_threshold`, ignored between; both strict, decided as `intersection > threshold * union`.

    Args:
        anchors: `(A, 2)` centre, width, shared by all videos; fp16, bf16 or fp32.
        gt_segments: `(G, 2)` start, end of all videos' ground truths, in the unit of the anchors.
        gt_labels: `(G,)` int64, labels >= 0.
        gt_offsets: `(B + 1,)` int64; rows `gt_offsets[b]:gt_offsets[b + 1]` belong to video b, those before the
            first and behind the last to none. The values are checked on a CPU alone.
        foreground_threshold: in [0, 1].
        background_threshold: in [0, 1].
        force_match: also make the best anchor of each ground truth (ties: the lowest) foreground of that ground
            truth. An anchor that is the best of several goes to the highest temporal IoU (ties: the lowest row).

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    sizes: dict[str, int] = {}
    check_tensor("anchors", anchors, FLOATS, ("A", 2), sizes)
    check_tensor("gt_segments", gt_segments, FLOATS, ("G", 2), sizes, anchors.device)
    check_tensor("gt_labels", gt_labels, INTEGERS, ("G",), sizes, anchors.device)
    check_offsets("gt_offsets", gt_offsets, anchors.device)
    check_fraction("foreground_threshold", foreground_threshold)
    check_fraction("background_threshold", background_threshold)
    return Assignment(
        *_assign(
            anchors.detach().contiguous(),
            gt_segments.detach().contiguous(),
            gt_labels.contiguous(),
            gt_offsets.contiguous(),
            foreground_threshold,
            background_threshold,
            force_match,
        )
    )
