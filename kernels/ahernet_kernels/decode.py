"""Network outputs of all scales to segments, scores and labels in one launch (eq. 5 of the AherNet paper).

A program takes a tile of cells of one video and walks over the classes. Each lane keeps its running maximum and the
sum of exponentials; lanes merge once at the end. The probability of the best class is 1 / sum, so no softmax is ever in
memory. The network's per-scale tensors are read where they are, channels first or last.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._anchors import (
    MAX_SCALES,
    decode_anchors,
    decode_anchors_torch,
    first_value,
    of_scale,
    scale_of_cell,
    tile_of_cells,
)
from ahernet_kernels._arguments import FLOATS, check_scales, check_tensor, constant, in_one_layout, is_channels_last
from ahernet_kernels._tiou import FLOAT_MAX
from ahernet_kernels._tuning import launch_settings

LOG2_E = tl.constexpr(1.4426950408889634)
DEFAULTS = {"GROUP": 8, "BLOCK_CLASSES": 64, "BLOCK_CELLS": 8, "num_warps": 1}
DEFAULTS_CHANNELS_FIRST = {"GROUP": 4, "BLOCK_CLASSES": 16, "BLOCK_CELLS": 16, "num_warps": 1}


@triton.jit
def load_logits(at, mask):
    """Logits as the contract counts them: NaN is -inf, and infinity the largest number."""
    return as_counted(tl.load(at, mask=mask, other=float("-inf")))


@triton.jit
def as_counted(x):
    """NaN as -inf, and infinity as the largest number."""
    x = x.to(tl.float32)
    return tl.minimum(tl.where(x == x, x, float("-inf")), FLOAT_MAX)


@triton.jit
def walk_over_classes(
    at, index, inside, step, classes,
    ANY_VALUE: tl.constexpr, BLOCK_CLASSES: tl.constexpr, LANES: tl.constexpr, BLOCK_CELLS: tl.constexpr,
):  # fmt: skip
    """Maximum of each lane, its sum of exponentials, and the first class of the step in which the maximum came up."""
    best = tl.full([LANES, BLOCK_CELLS], float("-inf"), tl.float32)
    total = tl.zeros([LANES, BLOCK_CELLS], tl.float32)
    best_first = tl.zeros([LANES, BLOCK_CELLS], tl.int32)
    raw = tl.load(at, mask=inside & (index < classes), other=float("-inf"))
    for first in range(0, classes, BLOCK_CLASSES):
        x = as_counted(raw) if ANY_VALUE else raw.to(tl.float32)
        at += BLOCK_CLASSES * step
        # On its way while this step is counted.
        raw = tl.load(at, mask=inside & (first + BLOCK_CLASSES + index < classes), other=float("-inf"))
        top = tl.max(x, 0)
        best_first = tl.where(top > best, first, best_first)
        top = tl.maximum(best, top)
        reference = tl.where(top > float("-inf"), top, 0.0)
        total = total * tl.exp2((best - reference) * LOG2_E)
        total += tl.sum(tl.exp2((x - reference[None, :, :]) * LOG2_E), 0)
        best = top
    return best, total, best_first


@triton.jit
def best_class(
    cell_ptr, inside, step, classes,
    GROUP: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_CELLS: tl.constexpr,
):  # fmt: skip
    """Probability and label of the best class of each cell; a cell without a finite logit has 0 and class 0.

    A lane takes `GROUP` neighbouring classes of a cell at a time: 16 bytes, where channels are last.
    """
    LANES: tl.constexpr = BLOCK_CLASSES // GROUP
    index = tl.arange(0, LANES)[None, :, None] * GROUP + tl.arange(0, GROUP)[:, None, None]
    at = cell_ptr[None, None, :] + index.to(tl.int64) * step
    mask = inside[None, None, :]
    best, total, best_first = walk_over_classes(
        at, index, mask, step, classes, False, BLOCK_CLASSES, LANES, BLOCK_CELLS
    )
    # NaN and infinity make a sum NaN. They are rare: only then the walk is repeated with every value looked at.
    if tl.max(tl.max((total != total).to(tl.int32), 0), 0) != 0:
        best, total, best_first = walk_over_classes(
            at, index, mask, step, classes, True, BLOCK_CLASSES, LANES, BLOCK_CELLS
        )
    top = tl.max(best, 0)
    reference = tl.where(top > float("-inf"), top, 0.0)
    total = tl.sum(total * tl.exp2((best - reference[None, :]) * LOG2_E), 0)
    # Which class it was is looked up once, among those that the best lane took in that step; ties: the lowest.
    own_first = best_first + tl.arange(0, LANES)[:, None] * GROUP
    start = tl.min(tl.where(best == top[None, :], own_first, classes), 0)
    index = start[None, :] + tl.arange(0, GROUP)[:, None]
    x = load_logits(cell_ptr[None, :] + index.to(tl.int64) * step, inside[None, :] & (index < classes))
    label = tl.min(tl.where(x == top[None, :], index, classes), 0)
    return tl.where(top > float("-inf"), tl.div_rn(1.0, total), 0.0), tl.where(top > float("-inf"), label, 0)


@triton.jit
def decode_kernel(
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,
    offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7,
    overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7,
    anchors_ptr, probability_ptr, cell_labels_ptr, segments_ptr, scores_ptr, labels_ptr, classes,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    RATIOS: tl.constexpr, CENTRE_SCALE: tl.constexpr, WIDTH_SCALE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    CLASSES_DIVISOR: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_CELLS: tl.constexpr, BLOCK_ANCHORS: tl.constexpr,
):  # fmt: skip
    """A tile of cells of one video: best class of each, then their anchors.

    Where channels are last, cells of whatever scales fill a tile. Where they are first, a tile keeps to one scale,
    whose cells are neighbours in memory.
    """
    video, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    all_cells = T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7
    if CHANNELS_LAST:
        first = tile * BLOCK_CELLS
        number = first + tl.arange(0, BLOCK_CELLS)
        scale, cells, earlier_cells = scale_of_cell(number, T0, T1, T2, T3, T4, T5, T6, T7)
        cell = number - earlier_cells
        last = tl.minimum(first + BLOCK_CELLS, all_cells)
    else:
        scale, cells, cell, earlier_cells = tile_of_cells(tile, T0, T1, T2, T3, T4, T5, T6, T7, BLOCK_CELLS)
        number = earlier_cells + cell
        first = tl.min(number, 0)
        last = tl.minimum(first + BLOCK_CELLS, earlier_cells + cells)
    inside = number < last
    classes = classes // CLASSES_DIVISOR * CLASSES_DIVISOR  # as it is: now the compiler can see it, too
    cell_ptr = of_scale(scale, logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    cell_ptr += first_value(video, classes, cell, cells, CHANNELS_LAST)
    probability, label = best_class(
        cell_ptr, inside, 1 if CHANNELS_LAST else cells, classes, GROUP, BLOCK_CLASSES, BLOCK_CELLS
    )
    # By way of memory, so that anchors are spread over all threads: registers hold copies of a cell in many of them.
    tl.store(probability_ptr + video * all_cells + number, probability, mask=inside)
    tl.store(cell_labels_ptr + video * all_cells + number, label, mask=inside)
    tl.debug_barrier()
    lane = tl.arange(0, BLOCK_ANCHORS)
    anchor = first * RATIOS + lane
    in_tile = anchor < last * RATIOS
    decode_anchors(
        video, anchor, in_tile, probability_ptr, cell_labels_ptr,
        offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7,
        overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7,
        anchors_ptr, segments_ptr, scores_ptr, labels_ptr, T0, T1, T2, T3, T4, T5, T6, T7,
        RATIOS, CENTRE_SCALE, WIDTH_SCALE, CHANNELS_LAST,
    )  # fmt: skip


def decode_launch(
    kernel: Any,
    logits: list[Tensor],
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `kernel` on tiles of cells and videos; shapes as in `decode`."""
    videos, classes, _ = logits[0].shape
    cells = [tensor.shape[2] for tensor in logits]
    count, ratios = anchors.shape[0], overlaps[0].shape[1]
    segments = torch.empty((videos, count, 2), dtype=torch.float32, device=anchors.device)
    scores = torch.empty((videos, count), dtype=torch.float32, device=anchors.device)
    labels = torch.empty((videos, count), dtype=torch.int64, device=anchors.device)
    if videos == 0 or count == 0:
        return segments, scores, labels
    probability = torch.empty((videos, sum(cells)), dtype=torch.float32, device=anchors.device)
    cell_labels = torch.empty((videos, sum(cells)), dtype=torch.int32, device=anchors.device)
    absent = MAX_SCALES - len(cells)
    lengths = [*cells, *[0] * absent]
    channels_last = is_channels_last(offsets)
    names = ("decode", DEFAULTS) if channels_last else ("decode_channels_first", DEFAULTS_CHANNELS_FIRST)
    settings = launch_settings(*names)
    tiled = [sum(cells)] if channels_last else cells
    kernel[(videos, sum(triton.cdiv(length, settings["BLOCK_CELLS"]) for length in tiled))](
        *logits, *logits[:1] * absent,
        *offsets, *offsets[:1] * absent,
        *overlaps, *overlaps[:1] * absent,
        anchors, probability, cell_labels, segments, scores, labels, classes,
        T0=lengths[0], T1=lengths[1], T2=lengths[2], T3=lengths[3],
        T4=lengths[4], T5=lengths[5], T6=lengths[6], T7=lengths[7],
        RATIOS=ratios, CENTRE_SCALE=centre_scale, WIDTH_SCALE=width_scale,
        CHANNELS_LAST=channels_last, CLASSES_DIVISOR=math.gcd(classes, 16),
        BLOCK_ANCHORS=triton.next_power_of_2(settings["BLOCK_CELLS"] * ratios), **settings,
    )  # fmt: skip
    return segments, scores, labels


def _best_class_torch(logits: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    top, label = logits.max(dim=1)
    if not top.isfinite().all():
        largest = torch.finfo(torch.float32).max
        logits = logits.nan_to_num(nan=-torch.inf, posinf=largest, neginf=-torch.inf)
        top, label = logits.max(dim=1)
    probability = logits.softmax(dim=1).gather(1, label[:, None])[:, 0]
    return probability.where(top > -torch.inf, 0.0), label


@custom_op("ahernet_kernels::decode_cpu", mutates_args=(), device_types="cpu")
def _decode_cpu(
    logits: list[Tensor],
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    best = [_best_class_torch(scale) for scale in logits]
    probability, labels = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
    return decode_anchors_torch(probability, labels, offsets, overlaps, anchors, centre_scale, width_scale)


@_decode_cpu.register_fake
def _(
    logits: list[Tensor],
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (logits[0].shape[0], anchors.shape[0])
    return (
        anchors.new_empty((*shape, 2), dtype=torch.float32),
        anchors.new_empty(shape, dtype=torch.float32),
        anchors.new_empty(shape, dtype=torch.int64),
    )


@triton_op("ahernet_kernels::decode", mutates_args=())
def _decode(
    logits: list[Tensor],
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (logits, offsets, overlaps, anchors, centre_scale, width_scale)
    if anchors.device.type == "cpu":
        return _decode_cpu(*arguments)
    return decode_launch(wrap_triton(decode_kernel), *arguments)


def decode(
    logits: list[Tensor],
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float = 1.0,
    width_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode anchors (eq. 5) and score them: `max_c p_c * sigmoid(overlap)` with the softmax p of the anchor's cell.

    centre = m_c + centre_scale * m_w * dc, width = m_w * exp(width_scale * dw). A NaN logit counts as -inf. Where
    an offset makes the centre or the width meaningless the segment is (0, 0). Where there is nothing of
    the segment inside the video (end <= start), the score is -inf, and `nms` and `soft_nms` drop it.

    Args:
        logits: per scale `(B, C, T_j)` class logits of each cell; at most 8 scales; these, `offsets` and `overlaps`
            share one of fp16, bf16 and fp32. In memory all may have their channels last.
        offsets: per scale `(B, 2 * D, T_j)`, channels dc, dw of ratio 0, then of ratio 1, and so on.
        overlaps: per scale `(B, D, T_j)`, before the sigmoid.
        anchors: `(A, 2)` centre, width as fractions of the video, by scale, cell, ratio; A = D * sum of T_j.
        centre_scale: alpha1 of eq. 5.
        width_scale: alpha2 of eq. 5.

    Returns:
        segments: `(B, A, 2)` fp32 start, end, clipped to [0, 1].
        scores: `(B, A)` fp32.
        labels: `(B, A)` int64; ties go to the lowest class.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    check_scales(logits=logits, offsets=offsets, overlaps=overlaps)
    sizes: dict[str, int] = {}
    check_tensor("logits[0]", logits[0], FLOATS, ("B", "C", "T_0"), sizes)
    device, dtype = logits[0].device, (logits[0].dtype,)
    for j in range(len(logits)):
        check_tensor(f"logits[{j}]", logits[j], dtype, ("B", "C", f"T_{j}"), sizes, device)
        check_tensor(f"overlaps[{j}]", overlaps[j], dtype, ("B", "D", f"T_{j}"), sizes, device)
        check_tensor(f"offsets[{j}]", offsets[j], dtype, ("B", 2 * sizes["D"], f"T_{j}"), sizes, device)
    ratios = sizes["D"]
    if sizes["C"] == 0 or ratios == 0:
        raise ValueError("logits, overlaps: expected at least one class and one anchor a cell")
    check_tensor("anchors", anchors, FLOATS, (ratios * sum(scale.shape[2] for scale in logits), 2), {}, device)
    outputs = in_one_layout(logits, offsets, overlaps)
    return _decode(*outputs, constant(anchors).contiguous(), centre_scale, width_scale)
