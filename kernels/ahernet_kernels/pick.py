"""Rows of candidates by position: what `nms` and `soft_nms` kept becomes detections in one launch."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._arguments import FLOATS, INTEGERS, check_tensor
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK": 256, "num_warps": 4}


@triton.jit
def pick_kernel(
    segments_ptr,
    scores_ptr,
    labels_ptr,
    index_ptr,
    picked_segments_ptr,
    picked_scores_ptr,
    picked_labels_ptr,
    rows,
    candidates,
    outputs,
    BLOCK: tl.constexpr,
):
    """A tile of picked rows, of whatever videos they are."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    position = tl.load(index_ptr + row, mask=inside, other=-1)
    found = position >= 0
    at = row // outputs * candidates + position
    start = tl.load(segments_ptr + at * 2, mask=found, other=0.0).to(tl.float32)
    end = tl.load(segments_ptr + at * 2 + 1, mask=found, other=0.0).to(tl.float32)
    score = tl.load(scores_ptr + at, mask=found, other=0.0).to(tl.float32)
    label = tl.load(labels_ptr + at, mask=found, other=-1)
    tl.store(picked_segments_ptr + row * 2, start, mask=inside)
    tl.store(picked_segments_ptr + row * 2 + 1, end, mask=inside)
    tl.store(picked_scores_ptr + row, score, mask=inside)
    tl.store(picked_labels_ptr + row, label, mask=inside)


def pick_launch(
    kernel: Any, segments: Tensor, scores: Tensor, labels: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `kernel` on tiles of rows; shapes as in `pick`."""
    videos, outputs = index.shape
    picked_segments = torch.empty((videos, outputs, 2), dtype=torch.float32, device=index.device)
    picked_scores = torch.empty((videos, outputs), dtype=torch.float32, device=index.device)
    picked_labels = torch.empty((videos, outputs), dtype=torch.int64, device=index.device)
    rows = videos * outputs
    if rows > 0:
        settings = launch_settings("pick", DEFAULTS)
        kernel[(triton.cdiv(rows, settings["BLOCK"]),)](
            segments,
            scores,
            labels,
            index,
            picked_segments,
            picked_scores,
            picked_labels,
            rows,
            scores.shape[1],
            outputs,
            **settings,
        )
    return picked_segments, picked_scores, picked_labels


@custom_op("ahernet_kernels::pick_cpu", mutates_args=(), device_types="cpu")
def _pick_cpu(segments: Tensor, scores: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = index >= 0
    videos, outputs = index.shape
    if scores.shape[1] == 0:  # then every position is -1, and there is nothing to gather from
        return torch.zeros((videos, outputs, 2)), torch.zeros((videos, outputs)), torch.full_like(index, -1)
    position = index.clamp(min=0)
    return (
        segments.float().gather(1, position[..., None].expand(-1, -1, 2)).where(found[..., None], 0.0),
        scores.float().gather(1, position).where(found, 0.0),
        labels.gather(1, position).where(found, -1),
    )


@_pick_cpu.register_fake
def _(segments: Tensor, scores: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        segments.new_empty((*index.shape, 2), dtype=torch.float32),
        scores.new_empty(index.shape, dtype=torch.float32),
        labels.new_empty(index.shape),
    )


@triton_op("ahernet_kernels::pick", mutates_args=())
def _pick(segments: Tensor, scores: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if index.device.type == "cpu":
        return _pick_cpu(segments, scores, labels, index)
    return pick_launch(wrap_triton(pick_kernel), segments, scores, labels, index)


def pick(segments: Tensor, scores: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take rows of every video by position; where the position is -1, a row of 0, 0 and label -1.

    Args:
        segments: `(B, N, 2)` fp16, bf16 or fp32.
        scores: `(B, N)` fp16, bf16 or fp32.
        labels: `(B, N)` int64.
        index: `(B, K)` int64 positions below N, or -1: as `nms` and `soft_nms` return them.

    Returns:
        segments: `(B, K, 2)` fp32.
        scores: `(B, K)` fp32.
        labels: `(B, K)` int64.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device; the message names it.
    """
    sizes: dict[str, int] = {}
    check_tensor("scores", scores, FLOATS, ("B", "N"), sizes)
    check_tensor("segments", segments, FLOATS, ("B", "N", 2), sizes, scores.device)
    check_tensor("labels", labels, INTEGERS, ("B", "N"), sizes, scores.device)
    check_tensor("index", index, INTEGERS, ("B", "K"), sizes, scores.device)
    return _pick(segments.detach().contiguous(), scores.detach().contiguous(), labels.contiguous(), index.contiguous())
