"""Best class of every cell straight from feature maps and class weights: no logits in memory.

Two launches for all scales. The first has a program for each tile of cells of one scale (of all videos) and chunk of
classes: a matrix product, of which it stores the maximum, the class of it and the sum of exponentials of each cell.
The second merges the chunks, in order, so ties go to the lowest class. Tiles are ordered by falling depth of their
scale, so that the many short ones fill the gaps at the end.

A tile of 128 cells by 128 classes does 64 multiply-adds for each 2-byte number that it reads, so that the second-level
cache keeps up with tensor cores; 64 channels a step and three steps in flight take 96 KiB of shared memory. Registers
leave room for one such program of 8 warps a multiprocessor. fp32 has no exact product on tensor cores; its smaller tile
keeps operands in registers. Channels-last maps are read 16 bytes at a time; of contiguous ones neighbours in memory are
neighbours in time, whose number differs by scale, so that they are read value by value.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._anchors import MAX_SCALES, of_scale
from ahernet_kernels._arguments import constant, is_channels_last
from ahernet_kernels._class_logits import (
    check_classifier,
    class_logits,
    map_offset,
    scales_in,
    tile_of_rows,
)
from ahernet_kernels._tiou import FLOAT_MAX
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK_ROWS": 128, "BLOCK_CLASSES": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}
DEFAULTS_FP32 = {"BLOCK_ROWS": 64, "BLOCK_CLASSES": 64, "BLOCK_D": 16, "num_warps": 8, "num_stages": 3}
DEFAULTS_MERGE = {"BLOCK": 128, "num_warps": 4}
CPU_BLOCK_ELEMENTS = 1 << 20


@triton.jit
def classify_kernel(
    features_0, features_1, features_2, features_3, features_4, features_5, features_6, features_7,
    weights_0, weights_1, weights_2, weights_3, weights_4, weights_5, weights_6, weights_7,
    biases_0, biases_1, biases_2, biases_3, biases_4, biases_5, biases_6, biases_7,
    top_ptr, total_ptr, label_ptr, videos, classes,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, D3: tl.constexpr,
    D4: tl.constexpr, D5: tl.constexpr, D6: tl.constexpr, D7: tl.constexpr,
    C0: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr, C3: tl.constexpr,
    C4: tl.constexpr, C5: tl.constexpr, C6: tl.constexpr, C7: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of cells of one scale and a chunk of classes: maximum, its class, sum of exponentials of each cell.

    Of the scales, in the order of the tiles: T cells, D channels, C cells of earlier scales in the output.
    """
    chunks = tl.cdiv(classes, BLOCK_CLASSES)
    chunk = tl.program_id(0) % chunks
    tile = tl.program_id(0) // chunks
    scale, first = tile_of_rows(tile, videos, T0, T1, T2, T3, T4, T5, T6, T7, BLOCK_ROWS)
    cells = of_scale(scale, T0, T1, T2, T3, T4, T5, T6, T7)
    dimension = of_scale(scale, D0, D1, D2, D3, D4, D5, D6, D7)
    features_ptr = of_scale(
        scale, features_0, features_1, features_2, features_3, features_4, features_5, features_6, features_7
    )
    weights_ptr = of_scale(
        scale, weights_0, weights_1, weights_2, weights_3, weights_4, weights_5, weights_6, weights_7
    )
    biases_ptr = of_scale(scale, biases_0, biases_1, biases_2, biases_3, biases_4, biases_5, biases_6, biases_7)

    row = first + tl.arange(0, BLOCK_ROWS)
    inside = row < videos * cells
    row = tl.minimum(row, videos * cells - 1)
    video, cell = (row // cells).to(tl.int64), row % cells
    index = chunk * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
    logits = class_logits(
        features_ptr, weights_ptr, biases_ptr, map_offset(video, cell, cells, dimension, CHANNELS_LAST), index,
        cells, classes, dimension, CHANNELS_LAST, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D,
    )  # fmt: skip

    logits = tl.minimum(tl.where(logits == logits, logits, float("-inf")), FLOAT_MAX)
    top = tl.max(logits, 1)
    shift = tl.where(top > float("-inf"), top, 0.0)
    total = tl.sum(tl.exp(logits - shift[:, None]), 1)
    label = tl.min(tl.where(logits == top[:, None], index[None, :], classes), 1)
    all_cells = T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7
    at = chunk.to(tl.int64) * videos * all_cells + video * all_cells
    at += of_scale(scale, C0, C1, C2, C3, C4, C5, C6, C7) + cell
    tl.store(top_ptr + at, top, mask=inside)
    tl.store(total_ptr + at, total, mask=inside)
    tl.store(label_ptr + at, label, mask=inside)


@triton.jit
def merge_chunks_kernel(top_ptr, total_ptr, label_ptr, probability_ptr, labels_ptr, cells, chunks, BLOCK: tl.constexpr):
    """Probability and label of each cell from what the chunks of classes found."""
    cell = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < cells
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    label = tl.zeros([BLOCK], tl.int32)
    at = cell
    for _ in range(chunks):
        top = tl.load(top_ptr + at, mask=inside, other=float("-inf")).to(tl.float32)
        rises = top > best
        decay = tl.where(top > float("-inf"), tl.exp(-tl.abs(top - best)), 0.0)
        part = tl.load(total_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total = tl.where(rises, total * decay + part, total + part * decay)
        label = tl.where(rises, tl.load(label_ptr + at, mask=inside, other=0), label)
        best = tl.where(rises, top, best)
        at += cells
    found = best > float("-inf")
    probability = tl.where(found, tl.div_rn(1.0, tl.where(found, total, 1.0)), 0.0)
    tl.store(probability_ptr + cell, probability, mask=inside)
    tl.store(labels_ptr + cell, label, mask=inside)


def classify_launch(
    kernel: Any,
    merge_kernel: Any,
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Launch `kernel` on tiles of cells and chunks of classes, then `merge_kernel`; shapes as in `classify`."""
    videos, classes = features[0].shape[0], weights[0].shape[0]
    cells = [x.shape[2] for x in features]
    device, is_fp32 = features[0].device, features[0].dtype == torch.float32
    probability = torch.empty((videos, sum(cells)), dtype=torch.float32, device=device)
    labels = torch.empty((videos, sum(cells)), dtype=torch.int64, device=device)
    if videos == 0 or sum(cells) == 0:
        return probability, labels
    channels_last = is_channels_last(features)
    if is_fp32:
        settings = launch_settings("classify_fp32", DEFAULTS_FP32)
    else:  # contiguous maps are read value by value, which takes registers: what is tuned for others would spill
        settings = launch_settings("classify" if channels_last else "classify_channels_first", DEFAULTS)
    chunks = triton.cdiv(classes, settings["BLOCK_CLASSES"])
    tiles = sum(triton.cdiv(videos * length, settings["BLOCK_ROWS"]) for length in cells)
    top = torch.empty((chunks, videos, sum(cells)), dtype=torch.float32, device=device)
    total, label = torch.empty_like(top), torch.empty_like(top, dtype=torch.int32)
    if not channels_last:
        features = [x.contiguous() for x in features]
    deepest_first = sorted(range(len(features)), key=lambda j: -features[j].shape[1])
    scales = scales_in(deepest_first, features, weights, biases)
    constants = scales.constants | dict.fromkeys((f"C{place}" for place in range(MAX_SCALES)), 0)
    constants |= {f"C{place}": sum(cells[:j]) for place, j in enumerate(deepest_first)}
    kernel[(tiles * chunks,)](
        *scales.tensors, top, total, label, videos, classes,
        **constants, CHANNELS_LAST=int(channels_last), **settings,
    )  # fmt: skip
    settings = launch_settings("merge_chunks", DEFAULTS_MERGE)
    merge_kernel[(triton.cdiv(videos * sum(cells), settings["BLOCK"]),)](
        top, total, label, probability, labels, videos * sum(cells), chunks, **settings
    )
    return probability, labels


@custom_op("ahernet_kernels::classify_cpu", mutates_args=(), device_types="cpu")
def _classify_cpu(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    rows = [x.float().transpose(1, 2).reshape(-1, x.shape[1]) for x in features]
    counts = [len(x) for x in rows]
    best = rows[0].new_full((sum(counts),), -torch.inf)
    total, label = torch.zeros_like(best), torch.zeros_like(best, dtype=torch.int64)
    classes = len(weights[0])
    size = min(classes, max(1, CPU_BLOCK_ELEMENTS // max(1, len(best))))
    for first in range(0, classes, size):
        part = slice(first, first + size)
        logits = best.new_empty((len(best), min(size, classes - first)))
        for scale, out in enumerate(logits.split(counts)):
            torch.addmm(biases[scale][part].float(), rows[scale], weights[scale][part].float().T, out=out)
        top, index = logits.max(dim=1)
        if not top.isfinite().all():
            logits.nan_to_num_(nan=-torch.inf, posinf=torch.finfo(torch.float32).max, neginf=-torch.inf)
            top, index = logits.max(dim=1)
        label = torch.where(top > best, index.add_(first), label)
        top = torch.maximum(best, top)
        reference = top.where(top > -torch.inf, 0.0)
        total = total * (best - reference).exp_() + logits.sub_(reference[:, None]).exp_().sum(dim=1)
        best = top
    probability = total.reciprocal().where(best > -torch.inf, 0.0)
    shapes = [(x.shape[0], x.shape[2]) for x in features]
    return _by_video(probability.split(counts), shapes), _by_video(label.split(counts), shapes)


def _by_video(per_scale: tuple[Tensor, ...], shapes: list[tuple[int, int]]) -> Tensor:
    return torch.cat([x.view(shape) for x, shape in zip(per_scale, shapes, strict=True)], dim=1)


@_classify_cpu.register_fake
def _(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    shape = (features[0].shape[0], sum(x.shape[2] for x in features))
    return features[0].new_empty(shape, dtype=torch.float32), features[0].new_empty(shape, dtype=torch.int64)


@triton_op("ahernet_kernels::classify", mutates_args=())
def _classify(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    if features[0].device.type == "cpu":
        return _classify_cpu(features, weights, biases)
    return classify_launch(wrap_triton(classify_kernel), wrap_triton(merge_chunks_kernel), features, weights, biases)


def classify(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Find the most probable class of every cell by the anchor-level classification weights (section 3.4).

    The logit of class c is `weights[c] @ x + biases[c]` for the features x of the cell, summed in fp32. A NaN logit
    counts as -inf; a cell without a finite logit has probability 0 and class 0, as in `decode`.

    Args:
        features: per scale `(B, d_j, T_j)`; at most 8 scales; all tensors share one of fp16, bf16 and fp32. Read
            where they are if all are contiguous or all are channels-last (`(B, T_j, d_j)` in memory), else copied.
        weights: per scale `(C, d_j)`.
        biases: per scale `(C,)`.

    Returns:
        probability: `(B, sum of T_j)` fp32, the largest softmax probability of each cell, ordered by scale, cell.
        labels: `(B, sum of T_j)` int64, the class of it; ties go to the lowest class.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    check_classifier(features, weights, biases)
    return _classify(
        [constant(x) for x in features],
        [constant(x).contiguous() for x in weights],
        [constant(x).contiguous() for x in biases],
    )
