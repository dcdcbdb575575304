"""The cells that have a label, those of a scale one behind the other: what a loss looks at where most have none.

A program takes a scale and walks over its cells, so that their order is always the same. Behind the labelled cells of
a scale stands -1, as often as cells are left.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._anchors import MAX_SCALES, first_of_scale, of_scale
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK": 2048, "num_warps": 8}


@triton.jit
def labelled_cells_kernel(
    labels_ptr, order_ptr, ends_ptr, videos, classes,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The labelled cells of one scale, and where they end."""
    scale = tl.program_id(0)
    cells = of_scale(scale, T0, T1, T2, T3, T4, T5, T6, T7)
    earlier = first_of_scale(scale, T0, T1, T2, T3, T4, T5, T6)
    all_cells = T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7
    end = videos * earlier
    for first in range(0, videos * cells, BLOCK):
        row = first + tl.arange(0, BLOCK)
        source = (row // cells).to(tl.int64) * all_cells + earlier + row % cells
        label = tl.load(labels_ptr + source, mask=row < videos * cells, other=-1)
        labelled = (label >= 0) & (label < classes)
        place = end + tl.cumsum(labelled.to(tl.int32), 0) - 1
        tl.store(order_ptr + place, source, mask=labelled)
        end += tl.sum(labelled.to(tl.int32), 0)
    tl.store(ends_ptr + scale, end.to(tl.int64))
    last = videos * (earlier + cells)
    for first in range(end, last, BLOCK):
        row = first + tl.arange(0, BLOCK)
        tl.store(order_ptr + row, tl.full([BLOCK], -1, tl.int64), mask=row < last)


def labelled_cells_launch(kernel: Any, labels: Tensor, cells: list[int], classes: int) -> tuple[Tensor, Tensor]:
    """Launch `kernel` on each scale; results as of `labelled_cells`."""
    order = torch.empty((labels.numel(),), dtype=torch.int64, device=labels.device)
    ends = torch.empty((len(cells),), dtype=torch.int64, device=labels.device)
    lengths = [*cells, *[0] * (MAX_SCALES - len(cells))]
    kernel[(len(cells),)](
        labels, order, ends, labels.shape[0], classes,
        T0=lengths[0], T1=lengths[1], T2=lengths[2], T3=lengths[3],
        T4=lengths[4], T5=lengths[5], T6=lengths[6], T7=lengths[7],
        **launch_settings("labelled_cells", DEFAULTS),
    )  # fmt: skip
    return order, ends


@custom_op("ahernet_kernels::labelled_cells_cpu", mutates_args=(), device_types="cpu")
def _labelled_cells_cpu(labels: Tensor, cells: list[int], classes: int) -> tuple[Tensor, Tensor]:
    videos, all_cells = labels.shape
    order, ends = torch.full((labels.numel(),), -1), []
    earlier = 0
    for length in cells:
        part = labels[:, earlier : earlier + length]
        video, cell = ((part >= 0) & (part < classes)).nonzero(as_tuple=True)
        ends.append(videos * earlier + len(video))
        order[videos * earlier : ends[-1]] = video * all_cells + earlier + cell
        earlier += length
    return order, torch.tensor(ends)


@_labelled_cells_cpu.register_fake
def _(labels: Tensor, cells: list[int], classes: int) -> tuple[Tensor, Tensor]:
    return labels.new_empty((labels.numel(),)), labels.new_empty((len(cells),))


@triton_op("ahernet_kernels::labelled_cells", mutates_args=())
def labelled_cells(labels: Tensor, cells: list[int], classes: int) -> tuple[Tensor, Tensor]:
    """Order the cells that have a class.

    Args:
        labels: `(B, sum of cells)` int64, ordered by scale, cell; a class is in [0, classes).
        cells: T_j of each scale.
        classes: C.

    Returns:
        order: `(B * sum of cells,)` int64; from B * (cells of earlier scales) on, where the labelled cells of a scale
            are in the flat `labels`, in their order; -1 behind them.
        ends: `(scales,)` int64, where in `order` those of each scale end.
    """
    if labels.device.type == "cpu":
        return _labelled_cells_cpu(labels, cells, classes)
    return labelled_cells_launch(wrap_triton(labelled_cells_kernel), labels, cells, classes)
