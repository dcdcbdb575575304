"""Gradients of `classification_loss`, from logits that are computed again tile by tile.

The gradient of a logit is the probability of its class, less 1 for the label. Features: a program takes a tile of
labelled cells and of channels and walks over the classes. Weights and biases: a program takes a tile of classes and of
channels and walks over the labelled cells. Each computes the logits of its tile anew, so wide tiles of channels are
what saves work: at 128 channels a tile a map of depth d costs 1 + d / 128 products instead of one. Maps have their
channels last.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ahernet_kernels._class_logits import (
    class_logits,
    load_features,
    load_weights,
    map_offset,
    multiply,
)
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK_ROWS": 64, "BLOCK_CLASSES": 64, "BLOCK_D": 64, "BLOCK_OUT": 128, "num_warps": 8, "num_stages": 2}
DEFAULTS_FEATURE_FP32 = {**DEFAULTS, "BLOCK_D": 16, "BLOCK_OUT": 64}
DEFAULTS_WEIGHT_FP32 = {**DEFAULTS_FEATURE_FP32, "BLOCK_ROWS": 32, "BLOCK_CLASSES": 32}
CPU_BLOCK_ELEMENTS = 1 << 20


@triton.jit
def logit_gradient(
    row, end, features_ptr, weights_ptr, biases_ptr, labels_ptr, order_ptr, log_sum_ptr, index,
    first_cell, cells, all_cells, classes, dimension,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of the loss of some rows in the logits of some classes, and where the rows are in the feature map."""
    source = tl.load(order_ptr + tl.minimum(row, end - 1))
    label = tl.where(row < end, tl.load(labels_ptr + source).to(tl.int32), -1)
    log_sum = tl.load(log_sum_ptr + row, mask=row < end, other=float("inf")).to(tl.float32)
    at = map_offset(source // all_cells, source % all_cells - first_cell, cells, dimension, True)
    logits = class_logits(
        features_ptr, weights_ptr, biases_ptr, at, index, cells, classes, dimension,
        True, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D,
    )  # fmt: skip
    is_label = index[None, :] == label[:, None]
    return tl.exp(logits - log_sum[:, None]) - tl.where(is_label, 1.0, 0.0), at


@triton.jit
def feature_gradient_kernel(
    gradient_ptr, features_ptr, weights_ptr, biases_ptr, labels_ptr, order_ptr, ends_ptr, log_sum_ptr, output_ptr,
    scale, first_row, first_cell, cells, all_cells, classes, dimension,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """A tile of labelled cells and channels."""
    first = first_row + tl.program_id(0) * BLOCK_ROWS
    end = tl.load(ends_ptr + scale).to(tl.int32)
    if first < end:
        row = first + tl.arange(0, BLOCK_ROWS)
        channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        source = tl.load(order_ptr + tl.minimum(row, end - 1))
        at = map_offset(source // all_cells, source % all_cells - first_cell, cells, dimension, True)
        total = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
        for first_class in range(0, classes, BLOCK_CLASSES):
            index = first_class + tl.arange(0, BLOCK_CLASSES)
            difference, _ = logit_gradient(
                row, end, features_ptr, weights_ptr, biases_ptr, labels_ptr, order_ptr, log_sum_ptr, index,
                first_cell, cells, all_cells, classes, dimension, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D,
            )  # fmt: skip
            w = load_weights(weights_ptr, index, classes, channel, dimension)
            total = multiply(difference.to(w.dtype), w, total)
        total *= tl.load(gradient_ptr).to(tl.float32)
        tl.store(
            output_ptr + at[:, None] + channel[None, :],
            total,
            mask=(row < end)[:, None] & (channel < dimension)[None, :],
        )


@triton.jit
def weight_gradient_kernel(
    gradient_ptr, features_ptr, weights_ptr, biases_ptr, labels_ptr, order_ptr, ends_ptr, log_sum_ptr,
    weight_output_ptr, bias_output_ptr, scale, first_row, first_cell, cells, all_cells, classes, dimension,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """A tile of classes and channels; that of the first channels has the biases, too."""
    index = tl.program_id(0) * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
    channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    end = tl.load(ends_ptr + scale).to(tl.int32)
    total = tl.zeros([BLOCK_CLASSES, BLOCK_OUT], tl.float32)
    bias_total = tl.zeros([BLOCK_CLASSES], tl.float32)
    for first in range(first_row, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        difference, at = logit_gradient(
            row, end, features_ptr, weights_ptr, biases_ptr, labels_ptr, order_ptr, log_sum_ptr, index,
            first_cell, cells, all_cells, classes, dimension, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D,
        )  # fmt: skip
        x = load_features(features_ptr, at, channel, cells, dimension, True)
        total = multiply(tl.trans(difference.to(x.dtype)), x, total)
        bias_total += tl.sum(difference, 0)
    loss_gradient = tl.load(gradient_ptr).to(tl.float32)
    at = weight_output_ptr + index.to(tl.int64)[:, None] * dimension + channel[None, :]
    tl.store(at, total * loss_gradient, mask=(index < classes)[:, None] & (channel < dimension)[None, :])
    tl.store(bias_output_ptr + index, bias_total * loss_gradient, mask=(index < classes) & (tl.program_id(1) == 0))


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
) -> list[Tensor]:
    """Launch both kernels on each scale; gradients of features, then of weights, then of biases."""
    (videos, all_cells), classes = labels.shape, weights[0].shape[0]
    if features[0].dtype == torch.float32:
        by_rows = launch_settings("feature_gradient_fp32", DEFAULTS_FEATURE_FP32)
        by_classes = launch_settings("weight_gradient_fp32", DEFAULTS_WEIGHT_FP32)
    else:
        by_rows, by_classes = (
            launch_settings("feature_gradient", DEFAULTS),
            launch_settings("weight_gradient", DEFAULTS),
        )
    feature_outputs = [torch.zeros_like(x) for x in features]
    weight_outputs, bias_outputs = ([torch.zeros_like(x) for x in per_scale] for per_scale in (weights, biases))
    first_cell = 0
    for j, x in enumerate(features):
        _, dimension, cells = x.shape
        tensors = (gradient, x, weights[j], biases[j], labels, order, ends, log_sum)
        sizes = (j, videos * first_cell, first_cell, cells, all_cells, classes, dimension)
        if videos * cells * dimension > 0:
            grid = (triton.cdiv(videos * cells, by_rows["BLOCK_ROWS"]), triton.cdiv(dimension, by_rows["BLOCK_OUT"]))
            feature_kernel[grid](*tensors, feature_outputs[j], *sizes, **by_rows)
            grid = (triton.cdiv(classes, by_classes["BLOCK_CLASSES"]), triton.cdiv(dimension, by_classes["BLOCK_OUT"]))
            weight_kernel[grid](*tensors, weight_outputs[j], bias_outputs[j], *sizes, **by_classes)
        first_cell += cells
    return [*feature_outputs, *weight_outputs, *bias_outputs]


def labelled_rows(
    features: list[Tensor], order: Tensor, ends: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
    """Of each scale its labelled cells: features (n, d) fp32, video and cell of each, and which rows they are."""
    all_cells = sum(x.shape[2] for x in features)
    first_cell = 0
    for x, end in zip(features, ends.tolist(), strict=True):
        rows = slice(x.shape[0] * first_cell, end)
        source = order[rows]
        video, cell = source // all_cells, source % all_cells - first_cell
        yield x.transpose(1, 2)[video, cell].float(), video, cell, rows
        first_cell += x.shape[2]


def logits_in_chunks(x: Tensor, weights: Tensor, biases: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Logits (n, chunk) in fp32 of a chunk of classes at a time, and which classes they are."""
    size = max(1, CPU_BLOCK_ELEMENTS // max(1, len(x)))
    for first in range(0, len(weights), size):
        part = slice(first, min(first + size, len(weights)))
        yield part, torch.addmm(biases[part].float(), x, weights[part].float().T)


def gradients_torch(
    gradient: Tensor,
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
    log_sum: Tensor,
) -> list[Tensor]:
    """The gradients on a CPU, of a chunk of classes at a time."""
    outputs = [[torch.zeros_like(x) for x in per_scale] for per_scale in (features, weights, biases)]
    for j, (x, video, cell, rows) in enumerate(labelled_rows(features, order, ends)):
        label = labels.flatten()[order[rows]]
        total = torch.zeros_like(x)
        for part, logits in logits_in_chunks(x, weights[j], biases[j]):
            difference = logits.sub_(log_sum[rows, None]).exp_()
            (here,) = ((label >= part.start) & (label < part.stop)).nonzero(as_tuple=True)
            difference[here, label[here] - part.start] -= 1
            total.addmm_(difference, weights[j][part].float())
            outputs[1][j][part] = (gradient * (difference.T @ x)).to(x.dtype)
            outputs[2][j][part] = (gradient * difference.sum(dim=0)).to(x.dtype)
        outputs[0][j].transpose(1, 2)[video, cell] = (gradient * total).to(features[j].dtype)
    return [x for per_scale in outputs for x in per_scale]
