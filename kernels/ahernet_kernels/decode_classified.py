"""Anchors of cells that are classified already, by `classify` say: segments, scores and labels in one launch."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._anchors import MAX_SCALES, decode_anchors, decode_anchors_torch
from ahernet_kernels._arguments import (
    FLOATS,
    INTEGERS,
    check_scales,
    check_tensor,
    constant,
    in_one_layout,
    is_channels_last,
)
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK_ANCHORS": 128, "num_warps": 4}


@triton.jit
def decode_classified_kernel(
    probability_ptr, cell_labels_ptr,
    offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7,
    overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7,
    anchors_ptr, segments_ptr, scores_ptr, labels_ptr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    RATIOS: tl.constexpr, CENTRE_SCALE: tl.constexpr, WIDTH_SCALE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_ANCHORS: tl.constexpr,
):  # fmt: skip
    """A tile of anchors of one video, of whatever scales they are."""
    video = tl.program_id(0).to(tl.int64)
    anchor = tl.program_id(1) * BLOCK_ANCHORS + tl.arange(0, BLOCK_ANCHORS)
    all_cells = T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7
    decode_anchors(
        video, anchor, anchor < all_cells * RATIOS, probability_ptr, cell_labels_ptr,
        offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7,
        overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7,
        anchors_ptr, segments_ptr, scores_ptr, labels_ptr,
        T0, T1, T2, T3, T4, T5, T6, T7, RATIOS, CENTRE_SCALE, WIDTH_SCALE, CHANNELS_LAST,
    )  # fmt: skip


def decode_classified_launch(
    kernel: Any,
    probability: Tensor,
    labels: Tensor,
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `kernel` on videos and tiles of anchors; shapes as in `decode_classified`."""
    videos, count, ratios = probability.shape[0], anchors.shape[0], overlaps[0].shape[1]
    segments = torch.empty((videos, count, 2), dtype=torch.float32, device=anchors.device)
    scores = torch.empty((videos, count), dtype=torch.float32, device=anchors.device)
    anchor_labels = torch.empty((videos, count), dtype=torch.int64, device=anchors.device)
    if videos == 0 or count == 0:
        return segments, scores, anchor_labels
    absent = MAX_SCALES - len(offsets)
    lengths = [*(x.shape[2] for x in offsets), *[0] * absent]
    settings = launch_settings("decode_classified", DEFAULTS)
    kernel[(videos, triton.cdiv(count, settings["BLOCK_ANCHORS"]))](
        probability, labels, *offsets, *offsets[:1] * absent, *overlaps, *overlaps[:1] * absent,
        anchors, segments, scores, anchor_labels,
        T0=lengths[0], T1=lengths[1], T2=lengths[2], T3=lengths[3],
        T4=lengths[4], T5=lengths[5], T6=lengths[6], T7=lengths[7],
        RATIOS=ratios, CENTRE_SCALE=centre_scale, WIDTH_SCALE=width_scale,
        CHANNELS_LAST=is_channels_last(offsets), **settings,
    )  # fmt: skip
    return segments, scores, anchor_labels


@custom_op("ahernet_kernels::decode_classified_cpu", mutates_args=(), device_types="cpu")
def _decode_classified_cpu(
    probability: Tensor,
    labels: Tensor,
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return decode_anchors_torch(probability, labels, offsets, overlaps, anchors, centre_scale, width_scale)


@_decode_classified_cpu.register_fake
def _(
    probability: Tensor,
    labels: Tensor,
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (probability.shape[0], anchors.shape[0])
    return (
        anchors.new_empty((*shape, 2), dtype=torch.float32),
        anchors.new_empty(shape, dtype=torch.float32),
        anchors.new_empty(shape, dtype=torch.int64),
    )


@triton_op("ahernet_kernels::decode_classified", mutates_args=())
def _decode_classified(
    probability: Tensor,
    labels: Tensor,
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (probability, labels, offsets, overlaps, anchors, centre_scale, width_scale)
    if anchors.device.type == "cpu":
        return _decode_classified_cpu(*arguments)
    return decode_classified_launch(wrap_triton(decode_classified_kernel), *arguments)


def decode_classified(
    probability: Tensor,
    labels: Tensor,
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float = 1.0,
    width_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode anchors (eq. 5) and score them as `decode` does, from the best class of each cell instead of logits.

    Args:
        probability: `(B, cells)` fp32 of the best class of each cell, ordered by scale, cell; as of `classify`.
        labels: `(B, cells)` int64, that class.
        offsets: per scale `(B, 2 * D, T_j)`, channels dc, dw of ratio 0, then of ratio 1, and so on; these and
            `overlaps` share one of fp16, bf16 and fp32. In memory all may have their channels last.
        overlaps: per scale `(B, D, T_j)`, before the sigmoid.
        anchors: `(A, 2)` centre, width as fractions of the video, ordered by scale, cell, ratio;
            A = D * sum of T_j.
        centre_scale: alpha1 of eq. 5.
        width_scale: alpha2 of eq. 5.

    Returns:
        segments: `(B, A, 2)` fp32 start, end, clipped to [0, 1].
        scores: `(B, A)` fp32, `probability * sigmoid(overlap)`; -inf where `decode` gives that.
        labels: `(B, A)` int64.

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
    sizes["cells"] = sum(x.shape[2] for x in offsets)
    check_tensor("probability", probability, (torch.float32,), ("B", "cells"), sizes, device)
    check_tensor("labels", labels, INTEGERS, ("B", "cells"), sizes, device)
    check_tensor("anchors", anchors, FLOATS, (sizes["D"] * sizes["cells"], 2), {}, device)
    return _decode_classified(
        constant(probability).contiguous(),
        labels.contiguous(),
        *in_one_layout(offsets, overlaps),
        constant(anchors).contiguous(),
        centre_scale,
        width_scale,
    )
