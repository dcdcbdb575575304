"""Gradients of `classification_loss`, from logits that are computed again tile by tile: a launch each for all scales.

The gradient of a logit is the probability of its class, less 1 for the label. Features: a program takes a tile of
labelled cells and of channels and walks over the classes. Weights and biases: a program takes a tile of classes and of
channels of a scale and walks over its labelled cells, most of them in the first scale, which therefore begins. Each
computes the logits of its tile anew, so wide tiles of channels are what saves work: at 256 channels a tile a map of
depth d costs 1 + d / 256 products instead of one. Maps have their channels last. Gradients of all scales are packed,
those of the maps zero where a cell has no label.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ahernet_kernels._anchors import first_of_scale, of_scale
from ahernet_kernels._class_logits import (
    class_logits,
    load_features,
    load_weights,
    map_offset,
    multiply,
    scales_in,
    tile_of_rows,
)
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK_ROWS": 64, "BLOCK_CLASSES": 64, "BLOCK_D": 64, "BLOCK_OUT": 128, "num_warps": 8, "num_stages": 2}
DEFAULTS_FEATURE_FP32 = {**DEFAULTS, "BLOCK_D": 16, "BLOCK_OUT": 64}
DEFAULTS_WEIGHT_FP32 = {**DEFAULTS_FEATURE_FP32, "BLOCK_ROWS": 32, "BLOCK_CLASSES": 32}


@triton.jit
def logit_gradient(
    row, end, features_ptr, weights_ptr, biases_ptr, labels_ptr, order_ptr, log_sum_ptr, index,
    earlier, cells, all_cells, classes, dimension,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of the loss of some rows in the logits of some classes, and where the rows are in the feature map."""
    source = tl.load(order_ptr + tl.minimum(row, end - 1))
    label = tl.where(row < end, tl.load(labels_ptr + source).to(tl.int32), -1)
    log_sum = tl.load(log_sum_ptr + row, mask=row < end, other=float("inf")).to(tl.float32)
    at = map_offset(source // all_cells, source % all_cells - earlier, cells, dimension, True)
    logits = class_logits(
        features_ptr, weights_ptr, biases_ptr, at, index, cells, classes, dimension,
        True, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D,
    )  # fmt: skip
    is_label = index[None, :] == label[:, None]
    return tl.exp(logits - log_sum[:, None]) - tl.where(is_label, 1.0, 0.0), at


@triton.jit
def feature_gradient_kernel(
    features_0, features_1, features_2, features_3, features_4, features_5, features_6, features_7,
    weights_0, weights_1, weights_2, weights_3, weights_4, weights_5, weights_6, weights_7,
    biases_0, biases_1, biases_2, biases_3, biases_4, biases_5, biases_6, biases_7,
    gradient_ptr, labels_ptr, order_ptr, ends_ptr, log_sum_ptr, output_ptr, videos, classes,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, D3: tl.constexpr,
    D4: tl.constexpr, D5: tl.constexpr, D6: tl.constexpr, D7: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """A tile of labelled cells of one scale and of channels."""
    scale, first = tile_of_rows(tl.program_id(0), videos, T0, T1, T2, T3, T4, T5, T6, T7, BLOCK_ROWS)
    cells = of_scale(scale, T0, T1, T2, T3, T4, T5, T6, T7)
    dimension = of_scale(scale, D0, D1, D2, D3, D4, D5, D6, D7)
    earlier = first_of_scale(scale, T0, T1, T2, T3, T4, T5, T6)
    row = videos * earlier + first + tl.arange(0, BLOCK_ROWS)
    end = tl.load(ends_ptr + scale).to(tl.int32)
    channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    if (videos * earlier + first < end) & (tl.program_id(1) * BLOCK_OUT < dimension):
        features_ptr = of_scale(
            scale, features_0, features_1, features_2, features_3, features_4, features_5, features_6, features_7
        )
        weights_ptr = of_scale(
            scale, weights_0, weights_1, weights_2, weights_3, weights_4, weights_5, weights_6, weights_7
        )
        biases_ptr = of_scale(scale, biases_0, biases_1, biases_2, biases_3, biases_4, biases_5, biases_6, biases_7)
        all_cells = T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7
        source = tl.load(order_ptr + tl.minimum(row, end - 1))
        at = map_offset(source // all_cells, source % all_cells - earlier, cells, dimension, True)
        total = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
        for first_class in range(0, classes, BLOCK_CLASSES):
            index = first_class + tl.arange(0, BLOCK_CLASSES)
            difference, _ = logit_gradient(
                row, end, features_ptr, weights_ptr, biases_ptr, labels_ptr, order_ptr, log_sum_ptr, index,
                earlier, cells, all_cells, classes, dimension, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D,
            )  # fmt: skip
            w = load_weights(weights_ptr, index, classes, channel, dimension)
            total = multiply(difference.to(w.dtype), w, total)
        total *= tl.load(gradient_ptr).to(tl.float32)
        maps = first_of_scale(scale, T0 * D0, T1 * D1, T2 * D2, T3 * D3, T4 * D4, T5 * D5, T6 * D6)
        output_ptr += tl.cast(videos, tl.int64) * maps
        tl.store(
            output_ptr + at[:, None] + channel[None, :],
            total,
            mask=(row < end)[:, None] & (channel < dimension)[None, :],
        )


@triton.jit
def weight_gradient_kernel(
    features_0, features_1, features_2, features_3, features_4, features_5, features_6, features_7,
    weights_0, weights_1, weights_2, weights_3, weights_4, weights_5, weights_6, weights_7,
    biases_0, biases_1, biases_2, biases_3, biases_4, biases_5, biases_6, biases_7,
    gradient_ptr, labels_ptr, order_ptr, ends_ptr, log_sum_ptr, weight_output_ptr, bias_output_ptr, videos, classes,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, D3: tl.constexpr,
    D4: tl.constexpr, D5: tl.constexpr, D6: tl.constexpr, D7: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """A tile of classes and channels of one scale; that of the first channels has the biases, too."""
    scale = tl.program_id(2)
    cells = of_scale(scale, T0, T1, T2, T3, T4, T5, T6, T7)
    dimension = of_scale(scale, D0, D1, D2, D3, D4, D5, D6, D7)
    earlier = first_of_scale(scale, T0, T1, T2, T3, T4, T5, T6)
    index = tl.program_id(0) * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
    channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    if tl.program_id(1) * BLOCK_OUT < dimension:
        features_ptr = of_scale(
            scale, features_0, features_1, features_2, features_3, features_4, features_5, features_6, features_7
        )
        weights_ptr = of_scale(
            scale, weights_0, weights_1, weights_2, weights_3, weights_4, weights_5, weights_6, weights_7
        )
        biases_ptr = of_scale(scale, biases_0, biases_1, biases_2, biases_3, biases_4, biases_5, biases_6, biases_7)
        all_cells = T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7
        end = tl.load(ends_ptr + scale).to(tl.int32)
        total = tl.zeros([BLOCK_CLASSES, BLOCK_OUT], tl.float32)
        bias_total = tl.zeros([BLOCK_CLASSES], tl.float32)
        for first in range(videos * earlier, end, BLOCK_ROWS):
            row = first + tl.arange(0, BLOCK_ROWS)
            difference, at = logit_gradient(
                row, end, features_ptr, weights_ptr, biases_ptr, labels_ptr, order_ptr, log_sum_ptr, index,
                earlier, cells, all_cells, classes, dimension, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D,
            )  # fmt: skip
            x = load_features(features_ptr, at, channel, cells, dimension, True)
            total = multiply(tl.trans(difference.to(x.dtype)), x, total)
            bias_total += tl.sum(difference, 0)
        loss_gradient = tl.load(gradient_ptr).to(tl.float32)
        weight_output_ptr += tl.cast(classes, tl.int64) * first_of_scale(scale, D0, D1, D2, D3, D4, D5, D6)
        at = weight_output_ptr + index.to(tl.int64)[:, None] * dimension + channel[None, :]
        tl.store(at, total * loss_gradient, mask=(index < classes)[:, None] & (channel < dimension)[None, :])
        at = bias_output_ptr + scale * classes + index
        if tl.program_id(1) == 0:
            tl.store(at, bias_total * loss_gradient, mask=index < classes)


def gradients_launch(
    feature_kernel: Any,
    weight_kernel: Any,
    gradient: Tensor,
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
    log_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch both kernels; packed gradients of features, of weights and of biases."""
    videos, classes = labels.shape[0], weights[0].shape[0]
    if features[0].dtype == torch.float32:
        by_rows = launch_settings("feature_gradient_fp32", DEFAULTS_FEATURE_FP32)
        by_classes = launch_settings("weight_gradient_fp32", DEFAULTS_WEIGHT_FP32)
    else:
        by_rows = launch_settings("feature_gradient", DEFAULTS)
        by_classes = launch_settings("weight_gradient", DEFAULTS)
    sizes = [sum(x.numel() for x in per_scale) for per_scale in (features, weights, biases)]
    feature_output = torch.zeros(sizes[0], dtype=features[0].dtype, device=gradient.device)
    weight_output, bias_output = (
        torch.empty(size, dtype=features[0].dtype, device=gradient.device) for size in sizes[1:]
    )
    scales = scales_in(list(range(len(features))), features, weights, biases)
    tensors = (*scales.tensors, gradient, labels, order, ends, log_sum)
    deepest = max(x.shape[1] for x in features)
    if labels.numel() > 0:
        tiles = sum(triton.cdiv(videos * x.shape[2], by_rows["BLOCK_ROWS"]) for x in features)
        feature_kernel[(tiles, triton.cdiv(deepest, by_rows["BLOCK_OUT"]))](
            *tensors, feature_output, videos, classes, **scales.constants, **by_rows
        )
    grid = (
        triton.cdiv(classes, by_classes["BLOCK_CLASSES"]),
        triton.cdiv(deepest, by_classes["BLOCK_OUT"]),
        len(features),
    )
    weight_kernel[grid](*tensors, weight_output, bias_output, videos, classes, **scales.constants, **by_classes)
    return feature_output, weight_output, bias_output
