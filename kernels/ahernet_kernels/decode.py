"""Network outputs of all scales to segments, scores and labels in one launch (eq. 5 of the AherNet paper).

A program takes a tile of cells of one scale of one video and walks over the classes. Each lane keeps its running
maximum, the class of it and the sum of exponentials; lanes merge once at the end. The probability of the best
class is 1 / sum, so no softmax is ever in memory. The network's per-scale tensors are read where they are.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._anchors import MAX_SCALES, decode_anchors, decode_anchors_torch, of_scale, tile_of_cells
from ahernet_kernels._arguments import FLOATS, check_tensor
from ahernet_kernels._tiou import FLOAT_MAX

BLOCK_CELLS = 16
BLOCK_CLASSES = 64


@triton.jit
def best_class(logits_ptr, cell, inside, cells, classes, BLOCK_CLASSES: tl.constexpr, BLOCK_CELLS: tl.constexpr):
    """Probability and label of the best class of each cell; a cell without a finite logit has 0 and class 0."""
    minus_infinity = float("-inf")
    best = tl.full([BLOCK_CLASSES, BLOCK_CELLS], minus_infinity, tl.float32)
    total = tl.zeros([BLOCK_CLASSES, BLOCK_CELLS], tl.float32)
    label = tl.zeros([BLOCK_CLASSES, BLOCK_CELLS], tl.int32)
    for first in range(0, classes, BLOCK_CLASSES):
        index = first + tl.arange(0, BLOCK_CLASSES)
        at = logits_ptr + index.to(tl.int64)[:, None] * cells + cell[None, :]
        mask = (index < classes)[:, None] & inside[None, :]
        x = tl.load(at, mask=mask, other=minus_infinity).to(tl.float32)
        x = tl.minimum(tl.where(x == x, x, minus_infinity), FLOAT_MAX)
        rises = x > best
        # One exponential an element: of the old sum's scale if the maximum rises, of the new term otherwise.
        decay = tl.where(x > minus_infinity, tl.exp(-tl.abs(x - best)), 0.0)
        total = tl.where(rises, total * decay + 1.0, total + decay)
        label = tl.where(rises, index[:, None], label)
        best = tl.where(rises, x, best)
    top = tl.max(best, 0)
    lane_scale = tl.where(best > minus_infinity, tl.exp(best - top[None, :]), 0.0)
    total = tl.sum(total * lane_scale, 0)
    label = tl.min(tl.where(best == top[None, :], label, classes), 0)
    return tl.where(top > minus_infinity, tl.div_rn(1.0, total), 0.0), label


@triton.jit
def decode_kernel(
    logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7,
    offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7,
    overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7,
    anchors_ptr, segments_ptr, scores_ptr, labels_ptr, classes,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    RATIOS: tl.constexpr, CENTRE_SCALE: tl.constexpr, WIDTH_SCALE: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr, BLOCK_CELLS: tl.constexpr,
):  # fmt: skip
    """A tile of cells of one scale of one video: best class, then every anchor of the cells."""
    video = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    scale, cells, cell, earlier_cells = tile_of_cells(tile, T0, T1, T2, T3, T4, T5, T6, T7, BLOCK_CELLS)
    logits_ptr = of_scale(scale, logits_0, logits_1, logits_2, logits_3, logits_4, logits_5, logits_6, logits_7)
    offsets_ptr = of_scale(
        scale, offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7
    )
    overlaps_ptr = of_scale(
        scale, overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7
    )
    probability, label = best_class(
        logits_ptr + video * classes * cells, cell, cell < cells, cells, classes, BLOCK_CLASSES, BLOCK_CELLS
    )
    all_cells = T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7
    decode_anchors(
        probability, label, video, cell, cells, earlier_cells, all_cells,
        offsets_ptr, overlaps_ptr, anchors_ptr, segments_ptr, scores_ptr, labels_ptr,
        RATIOS, CENTRE_SCALE, WIDTH_SCALE,
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
    absent = MAX_SCALES - len(cells)
    lengths = [*cells, *[0] * absent]
    tiles = sum(triton.cdiv(length, BLOCK_CELLS) for length in cells)
    kernel[(videos, tiles)](
        *logits, *logits[:1] * absent,
        *offsets, *offsets[:1] * absent,
        *overlaps, *overlaps[:1] * absent,
        anchors, segments, scores, labels, classes,
        T0=lengths[0], T1=lengths[1], T2=lengths[2], T3=lengths[3],
        T4=lengths[4], T5=lengths[5], T6=lengths[6], T7=lengths[7],
        RATIOS=ratios, CENTRE_SCALE=centre_scale, WIDTH_SCALE=width_scale,
        BLOCK_CLASSES=BLOCK_CLASSES, BLOCK_CELLS=BLOCK_CELLS,
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
            share one of fp16, bf16 and fp32.
        offsets: per scale `(B, 2 * D, T_j)`, channels dc, dw of ratio 0, then of ratio 1, and so on.
        overlaps: per scale `(B, D, T_j)`, before the sigmoid.
        anchors: `(A, 2)` centre, width as fractions of the video, ordered by scale, cell, ratio;
            A = D * sum of T_j.
        centre_scale: alpha1 of eq. 5.
        width_scale: alpha2 of eq. 5.

    Returns:
        segments: `(B, A, 2)` fp32 start, end, clipped to [0, 1].
        scores: `(B, A)` fp32.
        labels: `(B, A)` int64; ties go to the lowest class.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    if not 1 <= len(logits) <= MAX_SCALES:
        raise ValueError(f"logits: expected 1 to {MAX_SCALES} scales, got {len(logits)}")
    for name, per_scale in (("offsets", offsets), ("overlaps", overlaps)):
        if len(per_scale) != len(logits):
            raise ValueError(f"{name}: expected {len(logits)} scales as in logits, got {len(per_scale)}")
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
    cells = sum(tensor.shape[2] for tensor in logits)
    check_tensor("anchors", anchors, FLOATS, (ratios * cells, 2), {}, device)
    return _decode(
        [x.detach().contiguous() for x in logits],
        [x.detach().contiguous() for x in offsets],
        [x.detach().contiguous() for x in overlaps],
        anchors.detach().contiguous(),
        centre_scale,
        width_scale,
    )
