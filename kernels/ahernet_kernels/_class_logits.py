"""Class logits of a tile of cells and classes: a matrix product that stays in registers.

The feature map of a scale is read as `(B, d, T)` lies in memory, or as `(B, T, d)` does (channels last). Products are
summed in fp32: on tensor cores for fp16 and bf16, without TF32 for fp32. Loads have no masks for rows and classes that
are too many: they read the last one again, and what comes of it is dropped.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ahernet_kernels._anchors import MAX_SCALES, of_scale
from ahernet_kernels._arguments import FLOATS, check_scales, check_tensor

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Scales(NamedTuple):
    """What a kernel is given of the scales, in an order of its own; absent ones have no cells."""

    tensors: list[Tensor]
    """Feature map, weights and bias of each scale, by kind."""
    constants: dict[str, int]
    """Of each scale: T cells, D channels."""


def scales_in(order: list[int], features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> Scales:
    """The scales for a launch, in the given order."""
    absent = [0] * (MAX_SCALES - len(order))
    tensors = [per_scale[j] for per_scale in (features, weights, biases) for j in [*order, *absent]]
    constants = dict.fromkeys((f"{size}{place}" for size in "TD" for place in range(MAX_SCALES)), 0)
    for place, j in enumerate(order):
        constants |= {f"T{place}": features[j].shape[2], f"D{place}": features[j].shape[1]}
    return Scales(tensors, constants)


def check_classifier(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> None:
    """Check what `classify` and `classification_loss` take."""
    check_scales(features=features, weights=weights, biases=biases)
    sizes: dict[str, int] = {}
    check_tensor("features[0]", features[0], FLOATS, ("B", "d_0", "T_0"), sizes)
    device, dtype = features[0].device, (features[0].dtype,)
    for j in range(len(features)):
        check_tensor(f"features[{j}]", features[j], dtype, ("B", f"d_{j}", f"T_{j}"), sizes, device)
        check_tensor(f"weights[{j}]", weights[j], dtype, ("C", f"d_{j}"), sizes, device)
        check_tensor(f"biases[{j}]", biases[j], dtype, ("C",), sizes, device)
        if sizes["C"] == 0 or sizes[f"d_{j}"] == 0:
            raise ValueError(f"weights[{j}]: expected at least one class and one channel")


@triton.jit
def tile_of_rows(
    tile, videos,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Scale of a tile and its first row there: a scale has a row for each cell of each video."""
    n1 = tl.cdiv(videos * T0, BLOCK_ROWS)  # first tile of scale 1, and so on
    n2 = n1 + tl.cdiv(videos * T1, BLOCK_ROWS)
    n3 = n2 + tl.cdiv(videos * T2, BLOCK_ROWS)
    n4 = n3 + tl.cdiv(videos * T3, BLOCK_ROWS)
    n5 = n4 + tl.cdiv(videos * T4, BLOCK_ROWS)
    n6 = n5 + tl.cdiv(videos * T5, BLOCK_ROWS)
    n7 = n6 + tl.cdiv(videos * T6, BLOCK_ROWS)
    scale = (tile >= n1).to(tl.int32) + (tile >= n2).to(tl.int32) + (tile >= n3).to(tl.int32)
    scale += (tile >= n4).to(tl.int32) + (tile >= n5).to(tl.int32) + (tile >= n6).to(tl.int32)
    scale += (tile >= n7).to(tl.int32)
    return scale, (tile - of_scale(scale, 0, n1, n2, n3, n4, n5, n6, n7)) * BLOCK_ROWS


@triton.jit
def multiply(a, b, total):
    """`total + a @ b`."""
    if INTERPRETED:  # whose bf16 products are wrong
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def map_offset(video, cell, cells, dimension, CHANNELS_LAST: tl.constexpr):
    """Where channel 0 of a cell is in a feature map."""
    return (video * cells + cell) * dimension if CHANNELS_LAST else video * dimension * cells + cell


@triton.jit
def load_features(features_ptr, at, channel, cells, dimension, CHANNELS_LAST: tl.constexpr):
    """Rows of cells, columns of channels; 0 where there is no channel."""
    step = 1 if CHANNELS_LAST else cells
    at = features_ptr + at[:, None] + channel.to(tl.int64)[None, :] * step
    return tl.load(at, mask=(channel < dimension)[None, :], other=0.0)


@triton.jit
def load_weights(weights_ptr, index, classes, channel, dimension):
    """Rows of classes, columns of channels; 0 where there is no channel, the last class again where there is none."""
    at = tl.minimum(index, classes - 1).to(tl.int64)[:, None] * dimension + channel[None, :]
    return tl.load(weights_ptr + at, mask=(channel < dimension)[None, :], other=0.0)


@triton.jit
def class_logits(
    features_ptr, weights_ptr, biases_ptr, at, index, cells, classes, dimension,
    CHANNELS_LAST: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logits in fp32, rows of cells and columns of classes; -inf where there is no class."""
    total = tl.zeros([BLOCK_ROWS, BLOCK_CLASSES], tl.float32)
    for first in range(0, dimension, BLOCK_D):
        channel = first + tl.arange(0, BLOCK_D)
        x = load_features(features_ptr, at, channel, cells, dimension, CHANNELS_LAST)
        w = load_weights(weights_ptr, index, classes, channel, dimension)
        total = multiply(x, tl.trans(w), total)
    bias = tl.load(biases_ptr + index, mask=index < classes, other=float("-inf")).to(tl.float32)
    return total + bias[None, :]
