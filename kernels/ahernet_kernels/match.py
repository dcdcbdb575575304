"""For each anchor the closest of its video's ragged ground truths: row and temporal IoU.

The `B x A x G` table is never in memory: on a GPU one program walks over a video's ground truths with a tile of
anchors in registers; on a CPU a loop does, or NumPy in cache-sized blocks of videos with a similar number of them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels import _cpu_form
from ahernet_kernels._arguments import FLOATS, check_offset_values, check_offsets, check_tensor
from ahernet_kernels._tiou import (
    Floats,
    anchors_as_segments_numpy,
    finite_segments_numpy,
    intersection_and_union,
    load_anchor_as_segment,
    load_segment,
    tiou_of,
    unclamped_tiou_numpy,
)
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK_A": 256, "num_warps": 4}
CPU_BLOCK_ELEMENTS = 1 << 17  # fp32 values of one (videos, ground truths, anchors) block: few calls, and still cached


@triton.jit
def closest_ground_truth(start, end, gt_segments_ptr, first, last):
    """Row of the ground truth in [first, last) with the highest temporal IoU, and that IoU; -1 and 0 if none."""
    best_tiou = tl.zeros_like(start)
    index = tl.full(start.shape, -1, tl.int32)
    for row in range(first, last):
        gt_start, gt_end = load_segment(gt_segments_ptr, row, True)
        intersection, union = intersection_and_union(start, end, gt_start, gt_end)
        tiou = tiou_of(intersection, union)
        closer = tiou > best_tiou
        best_tiou = tl.where(closer, tiou, best_tiou)
        index = tl.where(closer, row, index)
    return index, best_tiou


@triton.jit
def match_kernel(anchors_ptr, gt_segments_ptr, gt_offsets_ptr, index_ptr, tiou_ptr, anchors, BLOCK_A: tl.constexpr):
    """A tile of anchors of one video: row and temporal IoU of the closest ground truth."""
    video = tl.program_id(0).to(tl.int64)
    anchor = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)
    mask = anchor < anchors
    start, end = load_anchor_as_segment(anchors_ptr, anchor, mask)
    first = tl.load(gt_offsets_ptr + video).to(tl.int32)
    last = tl.load(gt_offsets_ptr + video + 1).to(tl.int32)
    index, tiou = closest_ground_truth(start, end, gt_segments_ptr, first, last)
    tl.store(index_ptr + video * anchors + anchor, index, mask=mask)
    tl.store(tiou_ptr + video * anchors + anchor, tiou, mask=mask)


def match_launch(kernel: Any, anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Launch `kernel` on a grid of videos and anchor tiles; shapes as in `match`."""
    videos, count = gt_offsets.shape[0] - 1, anchors.shape[0]
    index = torch.empty((videos, count), dtype=torch.int64, device=anchors.device)
    tiou = torch.empty((videos, count), dtype=torch.float32, device=anchors.device)
    if videos > 0 and count > 0:
        settings = launch_settings("match", DEFAULTS)
        grid = (videos, triton.cdiv(count, settings["BLOCK_A"]))
        kernel[grid](anchors, gt_segments, gt_offsets, index, tiou, count, **settings)
    return index, tiou


def match_numpy(
    anchors: Floats, gt_segments: Floats, gt_offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Floats]:
    """`match` of checked arguments."""
    start, end = anchors_as_segments_numpy(anchors)
    gt_start, gt_end = finite_segments_numpy(gt_segments)
    index = np.full((len(gt_offsets) - 1, len(anchors)), -1, np.int64)
    tiou = np.zeros(index.shape, np.float32)
    for videos, most in _blocks_of_similar_videos(np.diff(gt_offsets), len(anchors)):
        first, last = gt_offsets[videos, None], gt_offsets[videos + 1, None]
        row = np.minimum(first + np.arange(most), last - 1)[:, :, None]  # its last one fills a video up
        pairs = unclamped_tiou_numpy(start, end, gt_start.take(row), gt_end.take(row))
        best = np.fmax.reduce(pairs, axis=1, initial=0)
        # Where a pair is the best, how many slots are left from it on: the most has the lowest row.
        slots_left = np.arange(most, 0, -1, dtype=np.min_scalar_type(most))[:, None]
        slots_left = np.maximum.reduce((pairs == best[:, None]).view(np.uint8) * slots_left, axis=1)
        tiou[videos] = best + 0  # never -0.0
        index[videos] = np.where(best > 0, first + (most - slots_left), -1)
    return index, tiou


def _blocks_of_similar_videos(
    counts: npt.NDArray[np.int64], anchors: int
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Videos that have ground truths, in blocks, each with the largest count in it; little padding is needed."""
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    while len(order):
        most = int(counts[order[0]])
        size = max(1, CPU_BLOCK_ELEMENTS // (most * max(anchors, 1)))
        yield order[:size], most
        order = order[size:]


@custom_op("ahernet_kernels::match_cpu", mutates_args=(), device_types="cpu")
def _match_cpu(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    check_offset_values("gt_offsets", gt_offsets.numpy(), len(gt_segments))
    loops = _cpu_form.numba_loops()
    form = loops.match_loops if loops else match_numpy
    index, tiou = form(anchors.float().numpy(), gt_segments.float().numpy(), gt_offsets.numpy())
    return torch.from_numpy(index), torch.from_numpy(tiou)


@_match_cpu.register_fake
def _(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    shape = (gt_offsets.shape[0] - 1, anchors.shape[0])
    return anchors.new_empty(shape, dtype=torch.int64), anchors.new_empty(shape, dtype=torch.float32)


@triton_op("ahernet_kernels::match", mutates_args=())
def _match(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    if anchors.device.type == "cpu":
        return _match_cpu(anchors, gt_segments, gt_offsets)
    return match_launch(wrap_triton(match_kernel), anchors, gt_segments, gt_offsets)


def match(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the closest ground truth of every anchor.

    Args:
        anchors: `(A, 2)` centre, width, shared by all videos; fp16, bf16 or fp32.
        gt_segments: `(G, 2)` start, end of all videos' ground truths, in the unit of the anchors.
        gt_offsets: `(B + 1,)` int64; rows `gt_offsets[b]:gt_offsets[b + 1]` belong to video b, those before the
            first and behind the last to none. The values are checked on a CPU alone.

    Returns:
        index: `(B, A)` int64, the row of `gt_segments` with the highest temporal IoU (ties: the lowest row);
            -1 where no ground truth of the video overlaps the anchor.
        tiou: `(B, A)` fp32, that IoU; 0 where index is -1.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device; the message names it.
    """
    check_tensor("anchors", anchors, FLOATS, ("A", 2), {})
    check_tensor("gt_segments", gt_segments, FLOATS, ("G", 2), {}, anchors.device)
    check_offsets("gt_offsets", gt_offsets, anchors.device)
    return _match(anchors.detach().contiguous(), gt_segments.detach().contiguous(), gt_offsets.contiguous())
