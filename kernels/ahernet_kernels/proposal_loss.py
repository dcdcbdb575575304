"""Losses of offsets and overlaps with their gradients, in one pass over the network's outputs (eq. 5 to 7).

A program takes a tile of cells of one scale of one video, reads the network's per-scale tensors where they are,
and the offsets only of foreground anchors. It writes partial sums, and the gradients of the two
sums; a second launch adds the partial sums up in a fixed order and divides by the counts, which stay on the
device. So backward is a multiplication. Gradients are packed in one buffer: the offsets of all scales, then the
overlaps of all scales, each scale laid out as the network's tensor is, channels last or not.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ahernet_kernels._anchors import MAX_SCALES, first_value, of_scale, tile_of_cells
from ahernet_kernels._arguments import FLOATS, INTEGERS, check_scales, check_tensor, is_channels_last
from ahernet_kernels._packed import unpacked
from ahernet_kernels._proposal_loss_cpu import proposal_loss_backward_cpu, proposal_loss_cpu
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK_CELLS": 32, "num_warps": 1}
DEFAULTS_MEAN = {"BLOCK": 1024, "num_warps": 4}
DEFAULTS_BACKWARD = {"BLOCK": 1024, "num_warps": 4}


class ProposalLoss(NamedTuple):
    """Two fp32 scalars."""

    offset: Tensor
    """Smooth-L1 distance of decoded centre and width to the target's, mean over the foreground anchors (L_of)."""
    overlap: Tensor
    """Squared error of the predicted overlap, mean over all anchors (L_ov)."""


@triton.jit
def smooth_l1(x):
    """Smooth-L1 of a difference, and its slope; not a number where the difference is not."""
    distance = tl.abs(x)
    slope = tl.where(x >= 1.0, 1.0, tl.where(x <= -1.0, -1.0, x))
    return tl.where(distance < 1.0, 0.5 * x * x, distance - 0.5), slope


@triton.jit
def proposal_loss_kernel(
    offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7,
    overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7,
    anchors_ptr, kind_ptr, targets_ptr, tiou_ptr, gradient_ptr, sums_ptr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    RATIOS: tl.constexpr, CENTRE_SCALE: tl.constexpr, WIDTH_SCALE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
):  # fmt: skip
    """A tile of cells of one scale of one video: sums over its anchors, how many are foreground, all gradients."""
    videos, video = tl.num_programs(0).to(tl.int64), tl.program_id(0).to(tl.int64)
    scale, cells, cell, earlier_cells = tile_of_cells(tl.program_id(1), T0, T1, T2, T3, T4, T5, T6, T7, BLOCK_CELLS)
    inside = cell < cells
    offsets_ptr = of_scale(
        scale, offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7
    )
    overlaps_ptr = of_scale(
        scale, overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7
    )
    anchors = (T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7) * RATIOS
    earlier = videos * earlier_cells * RATIOS  # anchors of earlier scales, two offsets and one overlap each
    offset_gradient_ptr = gradient_ptr + 2 * earlier
    overlap_gradient_ptr = gradient_ptr + 2 * videos * anchors + earlier
    step = 1 if CHANNELS_LAST else cells
    offset_sum = tl.zeros([BLOCK_CELLS], tl.float32)
    overlap_sum = tl.zeros([BLOCK_CELLS], tl.float32)
    foreground_count = tl.zeros([BLOCK_CELLS], tl.float32)
    for ratio in tl.static_range(RATIOS):
        anchor = (earlier_cells + cell) * RATIOS + ratio
        at = video * anchors + anchor
        foreground = inside & (tl.load(kind_ptr + at, mask=inside, other=0) == 1)  # FOREGROUND
        anchor_centre = tl.load(anchors_ptr + anchor * 2, mask=foreground, other=0.0).to(tl.float32)
        anchor_width = tl.load(anchors_ptr + anchor * 2 + 1, mask=foreground, other=0.0).to(tl.float32)
        start = tl.load(targets_ptr + at * 2, mask=foreground, other=0.0).to(tl.float32)
        end = tl.load(targets_ptr + at * 2 + 1, mask=foreground, other=0.0).to(tl.float32)
        # Where nothing is to be learnt all of these are 0, and so are the distances and the gradients.
        of_centre = first_value(video, 2 * RATIOS, cell, cells, CHANNELS_LAST) + 2 * ratio * step
        centre_offset = tl.load(offsets_ptr + of_centre, mask=foreground, other=0.0).to(tl.float32)
        width_offset = tl.load(offsets_ptr + of_centre + step, mask=foreground, other=0.0).to(tl.float32)
        centre_step = CENTRE_SCALE * anchor_width
        width = anchor_width * tl.exp(WIDTH_SCALE * width_offset)
        centre_distance, centre_slope = smooth_l1(anchor_centre + centre_step * centre_offset - (start + end) * 0.5)
        width_distance, width_slope = smooth_l1(width - (end - start))
        offset_sum += centre_distance + width_distance
        foreground_count += foreground.to(tl.float32)
        tl.store(offset_gradient_ptr + of_centre, centre_slope * centre_step, mask=inside)
        tl.store(offset_gradient_ptr + of_centre + step, width_slope * width * WIDTH_SCALE, mask=inside)

        of_overlap = first_value(video, RATIOS, cell, cells, CHANNELS_LAST) + ratio * step
        overlap = tl.load(overlaps_ptr + of_overlap, mask=inside, other=0.0).to(tl.float32)
        predicted = tl.div_rn(1.0, 1.0 + tl.exp(-overlap))
        tiou = tl.load(tiou_ptr + at, mask=inside, other=0.0).to(tl.float32)
        error = tl.where(inside, predicted - tiou, 0.0)
        overlap_sum += error * error
        tl.store(overlap_gradient_ptr + of_overlap, 2.0 * error * predicted * (1.0 - predicted), mask=inside)
    tiles = videos * tl.num_programs(1)
    sums_ptr += video * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums_ptr, tl.sum(offset_sum, 0))
    tl.store(sums_ptr + tiles, tl.sum(overlap_sum, 0))
    tl.store(sums_ptr + 2 * tiles, tl.sum(foreground_count, 0))


@triton.jit
def proposal_loss_mean_kernel(sums_ptr, offset_ptr, overlap_ptr, divisor_ptr, tiles, anchors, BLOCK: tl.constexpr):
    """One program adds up the sums of all tiles, always in the same order, and divides."""
    offset_sum = tl.zeros([BLOCK], tl.float32)
    overlap_sum = tl.zeros([BLOCK], tl.float32)
    foreground_count = tl.zeros([BLOCK], tl.float32)
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        offset_sum += tl.load(sums_ptr + tile, mask=tile < tiles, other=0.0)
        overlap_sum += tl.load(sums_ptr + tiles + tile, mask=tile < tiles, other=0.0)
        foreground_count += tl.load(sums_ptr + 2 * tiles + tile, mask=tile < tiles, other=0.0)
    divisor = tl.maximum(tl.sum(foreground_count, 0), 1.0)
    tl.store(offset_ptr, tl.div_rn(tl.sum(offset_sum, 0), divisor))
    tl.store(overlap_ptr, tl.div_rn(tl.sum(overlap_sum, 0), anchors * 1.0))
    tl.store(divisor_ptr, divisor)


@triton.jit
def proposal_loss_backward_kernel(
    gradient_ptr, offset_gradient_ptr, overlap_gradient_ptr, divisor_ptr, output_ptr, anchors, BLOCK: tl.constexpr
):
    """Gradients of the two sums times those of the two losses; what is 0 stays 0, whatever it is multiplied by."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < 3 * tl.cast(anchors, tl.int64)
    of_offsets = at < 2 * tl.cast(anchors, tl.int64)
    by_offset = tl.div_rn(tl.load(offset_gradient_ptr).to(tl.float32), tl.load(divisor_ptr))
    by_overlap = tl.div_rn(tl.load(overlap_gradient_ptr).to(tl.float32), anchors * 1.0)
    gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0)
    scaled = tl.where(gradient == 0.0, 0.0, gradient * tl.where(of_offsets, by_offset, by_overlap))
    tl.store(output_ptr + at, scaled, mask=inside)


def proposal_loss_launch(
    kernel: Any,
    mean_kernel: Any,
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    kind: Tensor,
    targets: Tensor,
    tiou: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch `kernel` on tiles of cells and `mean_kernel` on their sums: losses, packed gradients, divisor."""
    videos, count = kind.shape
    gradient = torch.empty((3 * videos * count,), dtype=torch.float32, device=anchors.device)
    if videos == 0 or count == 0:
        offset, overlap = (torch.zeros((), dtype=torch.float32, device=anchors.device) for _ in range(2))
        return offset, overlap, gradient, torch.ones_like(offset)
    offset, overlap, divisor = (torch.empty((), dtype=torch.float32, device=anchors.device) for _ in range(3))
    settings = launch_settings("proposal_loss", DEFAULTS)
    cells = [tensor.shape[2] for tensor in offsets]
    tiles = sum(triton.cdiv(length, settings["BLOCK_CELLS"]) for length in cells)
    sums = torch.empty((3, videos * tiles), dtype=torch.float32, device=anchors.device)
    absent = MAX_SCALES - len(cells)
    lengths = [*cells, *[0] * absent]
    kernel[(videos, tiles)](
        *offsets, *offsets[:1] * absent, *overlaps, *overlaps[:1] * absent,
        anchors, kind, targets, tiou, gradient, sums,
        T0=lengths[0], T1=lengths[1], T2=lengths[2], T3=lengths[3],
        T4=lengths[4], T5=lengths[5], T6=lengths[6], T7=lengths[7],
        RATIOS=overlaps[0].shape[1], CENTRE_SCALE=centre_scale, WIDTH_SCALE=width_scale,
        CHANNELS_LAST=is_channels_last([*offsets, *overlaps]), **settings,
    )  # fmt: skip
    settings = launch_settings("proposal_loss_mean", DEFAULTS_MEAN)
    mean_kernel[(1,)](sums, offset, overlap, divisor, videos * tiles, videos * count, **settings)
    return offset, overlap, gradient, divisor


def proposal_loss_backward_launch(
    kernel: Any,
    gradient: Tensor,
    offset_gradient: Tensor,
    overlap_gradient: Tensor,
    divisor: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Launch `kernel` on tiles of the packed gradients of `proposal_loss_launch`; the gradients in `dtype`."""
    output = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    size = gradient.shape[0]
    if size > 0:
        settings = launch_settings("proposal_loss_backward", DEFAULTS_BACKWARD)
        grid = (triton.cdiv(size, settings["BLOCK"]),)
        kernel[grid](gradient, offset_gradient, overlap_gradient, divisor, output, size // 3, **settings)
    return output


@triton_op("ahernet_kernels::proposal_loss", mutates_args=())
def _proposal_loss(
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    kind: Tensor,
    targets: Tensor,
    tiou: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arguments = (offsets, overlaps, anchors, kind, targets, tiou, centre_scale, width_scale)
    if anchors.device.type == "cpu":
        return proposal_loss_cpu(*arguments)
    return proposal_loss_launch(wrap_triton(proposal_loss_kernel), wrap_triton(proposal_loss_mean_kernel), *arguments)


@triton_op("ahernet_kernels::proposal_loss_backward", mutates_args=())
def _proposal_loss_backward(
    gradient: Tensor, offset_gradient: Tensor, overlap_gradient: Tensor, divisor: Tensor, dtype: torch.dtype
) -> Tensor:
    arguments = (gradient, offset_gradient, overlap_gradient, divisor, dtype)
    if gradient.device.type == "cpu":
        return proposal_loss_backward_cpu(*arguments)
    return proposal_loss_backward_launch(wrap_triton(proposal_loss_backward_kernel), *arguments)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, _, gradient, divisor = output
    ctx.save_for_backward(gradient, divisor)
    ctx.mark_non_differentiable(divisor)  # not the gradients: by their graph a second derivative is refused
    ctx.set_materialize_grads(False)  # or backward would fill a buffer of zeros for them
    offsets, overlaps = inputs[:2]
    ctx.shapes = [scale.shape for scale in (*offsets, *overlaps)]
    ctx.channels_last = is_channels_last([*offsets, *overlaps])
    ctx.dtype = offsets[0].dtype


def _backward(ctx: Any, offset: Tensor | None, overlap: Tensor | None, *_: None) -> tuple[Any, ...]:
    gradient, divisor = ctx.saved_tensors
    offset, overlap = (torch.zeros_like(divisor) if x is None else x for x in (offset, overlap))
    packed = _proposal_loss_backward(gradient, offset, overlap, divisor, ctx.dtype)
    gradients, scales = unpacked(packed, ctx.shapes, ctx.channels_last), len(ctx.shapes) // 2
    return gradients[:scales], gradients[scales:], None, None, None, None, None, None


_proposal_loss.register_autograd(_backward, setup_context=_save_for_backward)


def proposal_loss(
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    kind: Tensor,
    targets: Tensor,
    tiou: Tensor,
    centre_scale: float = 1.0,
    width_scale: float = 1.0,
) -> ProposalLoss:
    """Compare offsets and overlaps with what `assign` makes of the anchors; once differentiable in both.

    centre = m_c + centre_scale * m_w * dc, width = m_w * exp(width_scale * dw) (eq. 5); smooth-L1 has beta 1; the
    overlap is sigmoid(overlaps). Offsets of anchors that are not foreground may be anything: they have gradient 0.
    A mean over nothing is 0. What is not finite elsewhere is so in the loss, as with torch's own losses.

    Args:
        offsets: per scale `(B, 2 * D, T_j)`, channels dc, dw of ratio 0, then of ratio 1, and so on; at most 8
            scales; these and `overlaps` share one of fp16, bf16 and fp32, and are read where they are if all are
            contiguous or all are channels-last (`(B, T_j, channels)` in memory), else copied.
        overlaps: per scale `(B, D, T_j)`, before the sigmoid.
        anchors: `(A, 2)` centre, width in the unit of the targets, by scale, cell, ratio; A = D * sum of T_j.
        kind: `(B, A)` int64, FOREGROUND where offsets are to be learnt.
        targets: `(B, A, 2)` fp32 start, end of what a foreground anchor should become.
        tiou: `(B, A)` fp32, what the overlap should be.
        centre_scale: alpha1 of eq. 5.
        width_scale: alpha2 of eq. 5.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    check_scales(offsets=offsets, overlaps=overlaps)
    sizes: dict[str, int] = {}
    check_tensor("overlaps[0]", overlaps[0], FLOATS, ("B", "D", "T_0"), sizes)
    device, dtype = overlaps[0].device, (overlaps[0].dtype,)
    for j in range(len(offsets)):
        check_tensor(f"overlaps[{j}]", overlaps[j], dtype, ("B", "D", f"T_{j}"), sizes, device)
        check_tensor(f"offsets[{j}]", offsets[j], dtype, ("B", 2 * sizes["D"], f"T_{j}"), sizes, device)
    if sizes["D"] == 0:
        raise ValueError("overlaps: expected at least one anchor a cell")
    count = sizes["D"] * sum(scale.shape[2] for scale in overlaps)
    check_tensor("anchors", anchors, FLOATS, (count, 2), sizes, device)
    check_tensor("kind", kind, INTEGERS, ("B", count), sizes, device)
    check_tensor("targets", targets, (torch.float32,), ("B", count, 2), sizes, device)
    check_tensor("tiou", tiou, (torch.float32,), ("B", count), sizes, device)
    if not is_channels_last([*offsets, *overlaps]):
        offsets, overlaps = ([scale.contiguous() for scale in per_scale] for per_scale in (offsets, overlaps))
    offset, overlap, _, _ = _proposal_loss(
        offsets,
        overlaps,
        *(constant.detach().contiguous() for constant in (anchors, kind, targets, tiou)),
        centre_scale,
        width_scale,
    )
    return ProposalLoss(offset, overlap)
