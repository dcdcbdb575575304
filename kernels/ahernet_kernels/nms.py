"""Exact greedy temporal NMS of a batch, per class or over all classes.

Up to 1,024 candidates a video, one program per video does everything in one launch: it sorts (score, position)
keys, then decides 32 rows at a time. The rows of a block become the bits of one word per column; inside the block
the fixed point of "kept unless an earlier kept row overlaps" equals the greedy decision, because a row depends on
earlier rows only. So barriers come by the block, not by the row. More candidates: `nms_large`.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels import _cpu_form
from ahernet_kernels._arguments import FLOATS, INTEGERS, check_count, check_fraction, check_tensor
from ahernet_kernels._decide import finisher_kernel, round_kernel
from ahernet_kernels._nms_numpy import nms_numpy
from ahernet_kernels._rank import NOT_A_CANDIDATE, ordered_bits, position_of, rank_key
from ahernet_kernels._tiou import intersection_and_union
from ahernet_kernels._tuning import launch_settings
from ahernet_kernels.nms_large import (
    Kernels,
    kept_kernel,
    lay_out_kernel,
    nms_large_launch,
    output_kernel,
    place_key_kernel,
    rank_key_kernel,
)

ONE_LAUNCH_LIMIT = 1024
DEFAULTS = {"num_warps": 8}


@triton.jit
def nms_kernel(
    segments_ptr,
    scores_ptr,
    labels_ptr,
    ranked_segments_ptr,
    ranked_labels_ptr,
    index_ptr,
    count_ptr,
    candidates,
    outputs,
    MIN_SCORE_BITS: tl.constexpr,
    TIOU_THRESHOLD: tl.constexpr,
    CLASS_AWARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All candidates of one video: sort, decide 32 rows at a time, compact."""
    video = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < candidates
    at = video * candidates + column
    start = tl.load(segments_ptr + at * 2, mask=inside, other=0.0).to(tl.float32)
    end = tl.load(segments_ptr + at * 2 + 1, mask=inside, other=0.0).to(tl.float32)
    score = tl.load(scores_ptr + at, mask=inside, other=0.0).to(tl.float32)
    key = tl.sort(rank_key(score, start, end, column, inside, MIN_SCORE_BITS), descending=True)
    alive = key != NOT_A_CANDIDATE
    live = tl.sum(alive.to(tl.int32), 0)
    source = position_of(key)

    # From here on columns are in rank order; the copy in memory is where a row's scalars are read from.
    at = video * candidates + source
    start = tl.load(segments_ptr + at * 2, mask=alive, other=0.0).to(tl.float32)
    end = tl.load(segments_ptr + at * 2 + 1, mask=alive, other=0.0).to(tl.float32)
    ranked_segments_ptr += video * BLOCK * 2
    ranked_labels_ptr += video * BLOCK
    tl.store(ranked_segments_ptr + column * 2, start)
    tl.store(ranked_segments_ptr + column * 2 + 1, end)
    label = column
    if CLASS_AWARE:
        label = tl.load(labels_ptr + at, mask=alive, other=0).to(tl.int32)
        tl.store(ranked_labels_ptr + column, label)
    tl.debug_barrier()

    bit = tl.full([BLOCK], 1, tl.int32) << (column & 31)
    first = 0
    kept = 0
    while (first < live) & (kept < outputs):
        in_block = (column >= first) & (column < first + 32)
        candidate = in_block & alive
        keep_word = tl.sum(tl.where(candidate, bit, 0), 0)
        overlaps = tl.zeros([BLOCK], tl.int32)  # bit r: row first + r is over the threshold with this column
        for r in range(32):
            if ((keep_word >> r) & 1) != 0:
                row_start = tl.load(ranked_segments_ptr + (first + r) * 2)
                row_end = tl.load(ranked_segments_ptr + (first + r) * 2 + 1)
                intersection, union = intersection_and_union(row_start, row_end, start, end)
                over = intersection > TIOU_THRESHOLD * union
                if CLASS_AWARE:
                    over = over & (tl.load(ranked_labels_ptr + first + r) == label)
                overlaps |= tl.where(over, 1 << r, 0)
        from_earlier_rows = overlaps & (bit - 1)
        changed = 1
        while changed != 0:
            unsuppressed = candidate & ((from_earlier_rows & keep_word) == 0)
            next_word = tl.sum(tl.where(unsuppressed, bit, 0), 0)
            changed = next_word ^ keep_word
            keep_word = next_word
        survives = tl.where(in_block, (keep_word & bit) != 0, (overlaps & keep_word) == 0)
        alive = alive & ((column < first) | survives)
        kept += tl.sum((in_block & alive).to(tl.int32), 0)
        first += 32

    keep = alive & (column < first)
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    count = tl.minimum(kept, outputs)
    index_ptr += video * outputs
    tl.store(index_ptr + place, source, mask=keep & (place < outputs))
    tl.store(index_ptr + column, tl.full([BLOCK], -1, tl.int64), mask=(column >= count) & (column < outputs))
    tl.store(count_ptr + video, count)


def nms_launch(
    kernel: Any,
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    """Launch `kernel`, one program a video; shapes as in `nms`, at most `ONE_LAUNCH_LIMIT` candidates."""
    videos, candidates = scores.shape
    outputs = min(max_output, candidates)
    index = torch.empty((videos, outputs), dtype=torch.int64, device=scores.device)
    count = torch.empty((videos,), dtype=torch.int64, device=scores.device)
    if videos == 0 or outputs == 0:
        return index, count.zero_()
    block = max(32, triton.next_power_of_2(candidates))
    ranked_segments = torch.empty((videos, block, 2), dtype=torch.float32, device=scores.device)
    ranked_labels = torch.empty((videos, block), dtype=torch.int32, device=scores.device)
    kernel[(videos,)](
        segments,
        scores,
        scores if labels is None else labels,
        ranked_segments,
        ranked_labels,
        index,
        count,
        candidates,
        outputs,
        MIN_SCORE_BITS=ordered_bits(min_score),
        TIOU_THRESHOLD=tiou_threshold,
        CLASS_AWARE=labels is not None,
        BLOCK=block,
        **launch_settings("nms", DEFAULTS),
    )
    return index, count


@custom_op("ahernet_kernels::nms_cpu", mutates_args=(), device_types="cpu")
def _nms_cpu(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    loops = _cpu_form.numba_loops()
    form = loops.nms_loops if loops else nms_numpy
    index, count = form(
        segments.float().numpy(),
        scores.float().numpy(),
        None if labels is None else labels.to(torch.int32).numpy(),
        tiou_threshold,
        min(max_output, scores.shape[1]),
        min_score,
    )
    return torch.from_numpy(index), torch.from_numpy(count)


@_nms_cpu.register_fake
def _(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    videos, candidates = scores.shape
    index = scores.new_empty((videos, min(max_output, candidates)), dtype=torch.int64)
    return index, scores.new_empty((videos,), dtype=torch.int64)


@triton_op("ahernet_kernels::nms", mutates_args=())
def _nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    arguments = (segments, scores, labels, tiou_threshold, max_output, min_score)
    if scores.device.type == "cpu":
        return _nms_cpu(*arguments)
    if scores.shape[1] <= ONE_LAUNCH_LIMIT:
        return nms_launch(wrap_triton(nms_kernel), *arguments)
    kernels = Kernels(
        wrap_triton(rank_key_kernel),
        wrap_triton(place_key_kernel),
        wrap_triton(lay_out_kernel),
        wrap_triton(round_kernel),
        wrap_triton(finisher_kernel),
        wrap_triton(kept_kernel),
        wrap_triton(output_kernel),
    )
    return nms_large_launch(kernels, *arguments)


def nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float = -math.inf,
) -> tuple[Tensor, Tensor]:
    """Exact greedy non-maximum suppression of every video of a batch.

    Candidates are taken by descending score (ties: the lowest position first). One is kept unless its temporal IoU
    with a kept one of its class is > `tiou_threshold`, decided as `intersection > threshold * union` in fp32. NaN or
    -inf scores, scores not above `min_score` and non-finite segments are never kept and never suppress.

    On a GPU up to 1,024 candidates a video are one launch; more take a fixed number of launches of many programs,
    whose work grows with how many candidates are within reach of each, and are possible for up to 65,535 videos.

    Args:
        segments: `(B, N, 2)` start, end in any unit; fp16, bf16 or fp32.
        scores: `(B, N)`; fp16, bf16 or fp32.
        labels: `(B, N)` int64 within the range of int32: candidates of different labels do not suppress each
            other. None: all compete.
        tiou_threshold: in [0, 1].
        max_output: how many a video keeps at most, >= 1.
        min_score: only scores above it are candidates.

    Returns:
        index: `(B, K)` int64, K = min(max_output, N): positions of the kept in rank order, -1 beyond the count.
        count: `(B,)` int64, how many each video keeps.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    check_candidates(segments, scores, labels, max_output, min_score)
    check_fraction("tiou_threshold", tiou_threshold)
    return _nms(
        segments.detach().contiguous(),
        scores.detach().contiguous(),
        None if labels is None else labels.contiguous(),
        tiou_threshold,
        max_output,
        min_score,
    )


def check_candidates(
    segments: Tensor, scores: Tensor, labels: Tensor | None, max_output: int, min_score: float
) -> None:
    """Check what `nms` and `soft_nms` take."""
    sizes: dict[str, int] = {}
    check_tensor("scores", scores, FLOATS, ("B", "N"), sizes)
    check_tensor("segments", segments, FLOATS, ("B", "N", 2), sizes, scores.device)
    if labels is not None:
        check_tensor("labels", labels, INTEGERS, ("B", "N"), sizes, scores.device)
    check_count("max_output", max_output)
    if min_score != min_score:
        raise ValueError("min_score: expected a number, got NaN")
