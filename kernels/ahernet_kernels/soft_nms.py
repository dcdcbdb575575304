"""Temporal soft-NMS of a batch, linear and gaussian.

Picking the best candidate and decaying the rest is sequential by nature; here each pick is one pass over a video's
candidates, one program a video, all videos at once.
"""

import math
from typing import Any, Literal, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._arguments import check_fraction
from ahernet_kernels._rank import NOT_A_CANDIDATE, is_above, ordered_bits, rank_key
from ahernet_kernels._soft_nms_numpy import soft_nms_numpy
from ahernet_kernels._tiou import intersection_and_union, tiou_of
from ahernet_kernels._tuning import launch_settings
from ahernet_kernels.nms import check_candidates

Method = Literal["linear", "gaussian"]

SMALLEST_SIGMA = torch.finfo(torch.float32).tiny  # of smaller ones fp32 has no inverse
DEFAULTS = {"BLOCK": 256, "num_warps": 8}  # one candidate a thread: few registers, and no spills on any target


@triton.jit
def soft_nms_kernel(
    segments_ptr,
    scores_ptr,
    labels_ptr,
    decayed_ptr,
    index_ptr,
    kept_scores_ptr,
    count_ptr,
    candidates,
    outputs,
    MIN_SCORE_BITS: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    PARAMETER: tl.constexpr,
    CLASS_AWARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All candidates of one video: pick the best, decay the rest, repeat."""
    video = tl.program_id(0).to(tl.int64)
    base = video * candidates
    minus_infinity = float("-inf")

    winner = -1
    winner_score = minus_infinity
    for tile in range(0, candidates, BLOCK):
        column = tile + tl.arange(0, BLOCK)
        inside = column < candidates
        start = tl.load(segments_ptr + (base + column) * 2, mask=inside, other=0.0).to(tl.float32)
        end = tl.load(segments_ptr + (base + column) * 2 + 1, mask=inside, other=0.0).to(tl.float32)
        score = tl.load(scores_ptr + base + column, mask=inside, other=0.0).to(tl.float32) + 0.0
        eligible = rank_key(score, start, end, column, inside, MIN_SCORE_BITS) != NOT_A_CANDIDATE
        score = tl.where(eligible, score, minus_infinity)
        tl.store(decayed_ptr + base + column, score, mask=inside)
        best, at = tl.max(score, 0, return_indices=True)
        better = best > winner_score
        winner = tl.where(better, tile + at, winner)
        winner_score = tl.where(better, best, winner_score)

    count = 0
    while (winner >= 0) & (count < outputs):
        tl.store(index_ptr + video * outputs + count, winner)
        tl.store(kept_scores_ptr + video * outputs + count, winner_score)
        count += 1
        winner_start = tl.load(segments_ptr + (base + winner) * 2).to(tl.float32)
        winner_end = tl.load(segments_ptr + (base + winner) * 2 + 1).to(tl.float32)
        winner_label = 0
        if CLASS_AWARE:
            winner_label = tl.load(labels_ptr + base + winner).to(tl.int32)
        tl.debug_barrier()
        tl.store(decayed_ptr + base + winner, minus_infinity)
        tl.debug_barrier()
        winner = -1
        winner_score = minus_infinity
        for tile in range(0, candidates, BLOCK):
            column = tile + tl.arange(0, BLOCK)
            inside = column < candidates
            score = tl.load(decayed_ptr + base + column, mask=inside, other=minus_infinity)
            open = score > minus_infinity
            start = tl.load(segments_ptr + (base + column) * 2, mask=open, other=0.0).to(tl.float32)
            end = tl.load(segments_ptr + (base + column) * 2 + 1, mask=open, other=0.0).to(tl.float32)
            intersection, union = intersection_and_union(winner_start, winner_end, start, end)
            if GAUSSIAN:
                # The exponential is approximate anyway: no exactly rounded division, whose slow path costs spills.
                tiou = tl.where(union > 0, intersection / tl.where(union > 0, union, 1.0), 0.0)
                decayed = score * tl.exp(tiou * tiou * (-1.0 / PARAMETER))
            else:
                decayed = score * (1.0 - tiou_of(intersection, union))
                decayed = tl.where(intersection > PARAMETER * union, decayed, score)
            if CLASS_AWARE:
                label = tl.load(labels_ptr + base + column, mask=open, other=0).to(tl.int32)
                decayed = tl.where(label == winner_label, decayed, score)
            stays = open & is_above(decayed, MIN_SCORE_BITS)
            decayed = tl.where(stays, decayed, minus_infinity)
            tl.debug_barrier()  # several threads may hold one candidate: all have read it before it changes
            tl.store(decayed_ptr + base + column, decayed, mask=inside)
            best, at = tl.max(decayed, 0, return_indices=True)
            better = best > winner_score
            winner = tl.where(better, tile + at, winner)
            winner_score = tl.where(better, best, winner_score)
    tl.store(count_ptr + video, count)


def soft_nms_launch(
    kernel: Any,
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    method: str,
    parameter: float,
    max_output: int,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `kernel`, one program a video; shapes as in `soft_nms`."""
    videos, candidates = scores.shape
    outputs = min(max_output, candidates)
    index = torch.full((videos, outputs), -1, dtype=torch.int64, device=scores.device)
    kept_scores = torch.zeros((videos, outputs), dtype=torch.float32, device=scores.device)
    count = torch.zeros((videos,), dtype=torch.int64, device=scores.device)
    if videos > 0 and outputs > 0:
        settings = launch_settings("soft_nms", DEFAULTS)
        settings["BLOCK"] = min(settings["BLOCK"], triton.next_power_of_2(candidates))
        kernel[(videos,)](
            segments,
            scores,
            scores if labels is None else labels,
            torch.empty((videos, candidates), dtype=torch.float32, device=scores.device),
            index,
            kept_scores,
            count,
            candidates,
            outputs,
            MIN_SCORE_BITS=ordered_bits(min_score),
            GAUSSIAN=method == "gaussian",
            PARAMETER=parameter,
            CLASS_AWARE=labels is not None,
            **settings,
        )
    return index, kept_scores, count


@custom_op("ahernet_kernels::soft_nms_cpu", mutates_args=(), device_types="cpu")
def _soft_nms_cpu(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    method: str,
    parameter: float,
    max_output: int,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor]:
    index, kept_scores, count = soft_nms_numpy(
        segments.float().numpy(),
        scores.float().numpy(),
        None if labels is None else labels.to(torch.int32).numpy(),
        method,
        parameter,
        min(max_output, scores.shape[1]),
        min_score,
    )
    return torch.from_numpy(index), torch.from_numpy(kept_scores), torch.from_numpy(count)


@_soft_nms_cpu.register_fake
def _(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    method: str,
    parameter: float,
    max_output: int,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (scores.shape[0], min(max_output, scores.shape[1]))
    return (
        scores.new_empty(shape, dtype=torch.int64),
        scores.new_empty(shape, dtype=torch.float32),
        scores.new_empty(shape[:1], dtype=torch.int64),
    )


@triton_op("ahernet_kernels::soft_nms", mutates_args=())
def _soft_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    method: str,
    parameter: float,
    max_output: int,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (segments, scores, labels, method, parameter, max_output, min_score)
    if scores.device.type == "cpu":
        return _soft_nms_cpu(*arguments)
    return soft_nms_launch(wrap_triton(soft_nms_kernel), *arguments)


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    method: Method,
    parameter: float,
    max_output: int,
    min_score: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pick candidates by score, decaying after each pick those that overlap it (Bodla et al., ICCV 2017).

    linear: a score falls to `score * (1 - tiou)` where tiou > `parameter`. gaussian: to
    `score * exp(-tiou^2 / parameter)`. A candidate whose score is no longer above `min_score` is out.

    Args:
        segments: `(B, N, 2)` start, end in any unit; fp16, bf16 or fp32.
        scores: `(B, N)`; fp16, bf16 or fp32. NaN scores and non-finite segments are never picked.
        labels: `(B, N)` int64 within the range of int32: candidates of different labels do not decay each other.
            None: all compete.
        method: "linear" or "gaussian".
        parameter: the threshold in [0, 1] of linear, sigma >= 2**-126 of gaussian.
        max_output: how many a video keeps at most, >= 1.
        min_score: only scores above it are candidates.

    Returns:
        index: `(B, K)` int64, K = min(max_output, N): positions in the order of picking, -1 beyond the count.
        scores: `(B, K)` fp32, the decayed score each had when it was picked, 0 beyond the count.
        count: `(B,)` int64.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    check_candidates(segments, scores, labels, max_output, min_score)
    if method not in get_args(Method):
        raise ValueError(f"method: expected linear or gaussian, got {method!r}")
    if method == "linear":
        check_fraction("parameter", parameter)
    elif not SMALLEST_SIGMA <= parameter < math.inf:
        raise ValueError(f"parameter: expected a sigma >= {SMALLEST_SIGMA}, got {parameter}")
    return _soft_nms(
        segments.detach().contiguous(),
        scores.detach().contiguous(),
        None if labels is None else labels.contiguous(),
        method,
        parameter,
        max_output,
        min_score,
    )
