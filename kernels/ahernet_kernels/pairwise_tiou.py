"""Temporal intersection over union of every pair of two sets of segments."""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._arguments import FLOATS, check_tensor
from ahernet_kernels._tiou import (
    finite_segments_numpy,
    intersection_and_union,
    load_segment,
    tiou_of,
    unclamped_tiou_numpy,
)
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK_N": 16, "BLOCK_M": 128, "num_warps": 4}


@triton.jit
def pairwise_tiou_kernel(a_ptr, b_ptr, tiou_ptr, n, m, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """One tile of the matrix."""
    tiles = tl.cdiv(n, BLOCK_N)  # of rows; one axis has both, for no other one has room for any number
    row = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    start_a, end_a = load_segment(a_ptr, row, row < n)
    start_b, end_b = load_segment(b_ptr, column, column < m)
    intersection, union = intersection_and_union(start_a[:, None], end_a[:, None], start_b[None, :], end_b[None, :])
    mask = (row < n)[:, None] & (column < m)[None, :]
    tl.store(tiou_ptr + row[:, None] * m + column[None, :], tiou_of(intersection, union), mask=mask)


def pairwise_tiou_launch(kernel: Any, a: Tensor, b: Tensor) -> Tensor:
    """Launch `kernel` over tiles of the matrix; shapes as in `pairwise_tiou`."""
    n, m = a.shape[0], b.shape[0]
    tiou = torch.empty((n, m), dtype=torch.float32, device=a.device)
    if n > 0 and m > 0:
        settings = launch_settings("pairwise_tiou", DEFAULTS)
        grid = (triton.cdiv(n, settings["BLOCK_N"]) * triton.cdiv(m, settings["BLOCK_M"]),)
        kernel[grid](a, b, tiou, n, m, **settings)
    return tiou


@custom_op("ahernet_kernels::pairwise_tiou_cpu", mutates_args=(), device_types="cpu")
def _pairwise_tiou_cpu(a: Tensor, b: Tensor) -> Tensor:
    start_a, end_a = finite_segments_numpy(a.float().numpy())
    start_b, end_b = finite_segments_numpy(b.float().numpy())
    tiou = unclamped_tiou_numpy(start_a[:, None], end_a[:, None], start_b, end_b)
    return torch.from_numpy(np.fmax(tiou, 0, out=tiou))


@_pairwise_tiou_cpu.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return torch.empty((a.shape[0], b.shape[0]), dtype=torch.float32, device=a.device)


@triton_op("ahernet_kernels::pairwise_tiou", mutates_args=())
def _pairwise_tiou(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type == "cpu":
        return _pairwise_tiou_cpu(a, b)
    return pairwise_tiou_launch(wrap_triton(pairwise_tiou_kernel), a, b)


def pairwise_tiou(a: Tensor, b: Tensor) -> Tensor:
    """Temporal intersection over union of all pairs.

    Args:
        a: `(N, 2)` start, end in any unit; fp16, bf16 or fp32.
        b: `(M, 2)` in the same unit.

    Returns:
        `(N, M)` fp32. A pair whose union is zero or not finite has 0.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device; the message names it.
    """
    check_tensor("a", a, FLOATS, ("N", 2), {})
    check_tensor("b", b, FLOATS, ("M", 2), {}, a.device)
    return _pairwise_tiou(a.detach().contiguous(), b.detach().contiguous())
