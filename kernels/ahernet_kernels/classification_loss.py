"""Softmax cross-entropy of labelled cells straight from feature maps and class weights: no logits in memory.

Cells with a label stand in front of their scale (`_labelled_cells`), so that every direction works on those alone, a
few per cent of all where the class loss looks at the foreground. Forward a program takes a tile of them and a chunk of
classes and stores the logarithm of its sum of exponentials; a second launch merges the chunks. Backward the logits of
a tile are computed again (`_classification_gradients`). No atomics: every sum has one order. All scales share a launch:
their depths are constants of it, so that loads of features and weights are 16 bytes wide and kept in flight.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ahernet_kernels._anchors import first_of_scale, of_scale
from ahernet_kernels._arguments import INTEGERS, check_tensor
from ahernet_kernels._class_logits import check_classifier, class_logits, map_offset, scales_in, tile_of_rows
from ahernet_kernels._classification_gradients import (
    feature_gradient_kernel,
    gradients_launch,
    weight_gradient_kernel,
)
from ahernet_kernels._classification_loss_cpu import classification_loss_backward_cpu, classification_loss_cpu
from ahernet_kernels._labelled_cells import labelled_cells
from ahernet_kernels._packed import unpacked
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK_ROWS": 64, "BLOCK_CLASSES": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}
DEFAULTS_FP32 = {"BLOCK_ROWS": 64, "BLOCK_CLASSES": 64, "BLOCK_D": 16, "num_warps": 8, "num_stages": 3}
DEFAULTS_MERGE = {"BLOCK": 128, "num_warps": 4}


@triton.jit
def log_sum_kernel(
    features_0, features_1, features_2, features_3, features_4, features_5, features_6, features_7,
    weights_0, weights_1, weights_2, weights_3, weights_4, weights_5, weights_6, weights_7,
    biases_0, biases_1, biases_2, biases_3, biases_4, biases_5, biases_6, biases_7,
    labels_ptr, order_ptr, ends_ptr, part_ptr, picked_ptr, videos, classes,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, D3: tl.constexpr,
    D4: tl.constexpr, D5: tl.constexpr, D6: tl.constexpr, D7: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of labelled cells of one scale and a chunk of classes: log-sum of exponentials, logit of the label."""
    chunks = tl.cdiv(classes, BLOCK_CLASSES)
    chunk = tl.program_id(0) % chunks
    tile = tl.program_id(0) // chunks
    scale, first = tile_of_rows(tile, videos, T0, T1, T2, T3, T4, T5, T6, T7, BLOCK_ROWS)
    earlier = first_of_scale(scale, T0, T1, T2, T3, T4, T5, T6)
    row = videos * earlier + first + tl.arange(0, BLOCK_ROWS)
    end = tl.load(ends_ptr + scale).to(tl.int32)
    if videos * earlier + first < end:
        cells = of_scale(scale, T0, T1, T2, T3, T4, T5, T6, T7)
        dimension = of_scale(scale, D0, D1, D2, D3, D4, D5, D6, D7)
        features_ptr = of_scale(
            scale, features_0, features_1, features_2, features_3, features_4, features_5, features_6, features_7
        )
        weights_ptr = of_scale(
            scale, weights_0, weights_1, weights_2, weights_3, weights_4, weights_5, weights_6, weights_7
        )
        biases_ptr = of_scale(scale, biases_0, biases_1, biases_2, biases_3, biases_4, biases_5, biases_6, biases_7)
        all_cells = T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7
        inside = row < end
        source = tl.load(order_ptr + tl.minimum(row, end - 1))
        label = tl.load(labels_ptr + source).to(tl.int32)
        at = map_offset(source // all_cells, source % all_cells - earlier, cells, dimension, True)
        index = chunk * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
        logits = class_logits(
            features_ptr, weights_ptr, biases_ptr, at, index, cells, classes, dimension,
            True, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D,
        )  # fmt: skip
        top = tl.max(logits, 1)
        top = tl.where(top > float("-inf"), top, 0.0)
        part = top + tl.log(tl.sum(tl.exp(logits - top[:, None]), 1))
        rows = tl.cast(videos, tl.int64) * all_cells
        tl.store(part_ptr + chunk * rows + row, part, mask=inside)
        is_label = index[None, :] == label[:, None]
        picked = tl.sum(tl.where(is_label, logits, 0.0), 1)
        tl.store(picked_ptr + row, picked, mask=inside & (label // BLOCK_CLASSES == chunk))


@triton.jit
def merge_log_sums_kernel(
    order_ptr, part_ptr, picked_ptr, loss_ptr, log_sum_ptr, rows, chunks, BLOCK: tl.constexpr
):  # fmt: skip
    """Loss and log-sum of each row over all chunks of classes; 0 for rows without a label."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    labelled = tl.load(order_ptr + row, mask=row < rows, other=-1) >= 0
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    at = row.to(tl.int64)
    for _ in range(chunks):
        part = tl.load(part_ptr + at, mask=labelled, other=float("-inf")).to(tl.float32)
        rising = tl.maximum(top, part)
        reference = tl.where(rising > float("-inf"), rising, 0.0)
        total = total * tl.exp(top - reference) + tl.exp(part - reference)
        top = rising
        at += rows
    log_sum = tl.where(top > float("-inf"), top, 0.0) + tl.log(tl.where(labelled, total, 1.0))
    picked = tl.load(picked_ptr + row, mask=labelled, other=0.0).to(tl.float32)
    tl.store(loss_ptr + row, tl.where(labelled, log_sum - picked, 0.0), mask=row < rows)
    tl.store(log_sum_ptr + row, tl.where(labelled, log_sum, 0.0), mask=row < rows)


def classification_loss_launch(
    kernel: Any,
    merge_kernel: Any,
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
) -> tuple[Tensor, Tensor]:
    """Launch `kernel` on tiles of labelled cells, then `merge_kernel`; sum of losses and log-sum of each row."""
    rows, classes = labels.numel(), weights[0].shape[0]
    loss = torch.empty((rows,), dtype=torch.float32, device=labels.device)
    log_sum = torch.empty((rows,), dtype=torch.float32, device=labels.device)
    if rows == 0:
        return loss.sum(), log_sum
    is_fp32 = features[0].dtype == torch.float32
    settings = launch_settings("log_sum_fp32", DEFAULTS_FP32) if is_fp32 else launch_settings("log_sum", DEFAULTS)
    chunks = triton.cdiv(classes, settings["BLOCK_CLASSES"])
    part = torch.empty((chunks, rows), dtype=torch.float32, device=labels.device)
    picked = torch.empty((rows,), dtype=torch.float32, device=labels.device)
    videos = labels.shape[0]
    tiles = sum(triton.cdiv(videos * x.shape[2], settings["BLOCK_ROWS"]) for x in features)
    scales = scales_in(list(range(len(features))), features, weights, biases)
    kernel[(tiles * chunks,)](
        *scales.tensors, labels, order, ends, part, picked, videos, classes, **scales.constants, **settings
    )
    settings = launch_settings("merge_log_sums", DEFAULTS_MERGE)
    merge_kernel[(triton.cdiv(rows, settings["BLOCK"]),)](order, part, picked, loss, log_sum, rows, chunks, **settings)
    return loss.sum(), log_sum


@triton_op("ahernet_kernels::classification_loss", mutates_args=())
def _classification_loss(
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
) -> tuple[Tensor, Tensor]:
    arguments = (features, weights, biases, labels, order, ends)
    if labels.device.type == "cpu":
        return classification_loss_cpu(*arguments)
    return classification_loss_launch(wrap_triton(log_sum_kernel), wrap_triton(merge_log_sums_kernel), *arguments)


@triton_op("ahernet_kernels::classification_loss_backward", mutates_args=())
def _classification_loss_backward(
    gradient: Tensor,
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
    log_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (gradient, features, weights, biases, labels, order, ends, log_sum)
    if labels.device.type == "cpu":
        return classification_loss_backward_cpu(*arguments)
    return gradients_launch(wrap_triton(feature_gradient_kernel), wrap_triton(weight_gradient_kernel), *arguments)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, weights, biases, labels, order, ends = inputs
    ctx.scales = len(features)
    ctx.save_for_backward(*features, *weights, *biases, labels, order, ends, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    saved, n = list(ctx.saved_tensors), ctx.scales
    per_scale = [saved[:n], saved[n : 2 * n], saved[2 * n : 3 * n]]
    packed = _classification_loss_backward(gradient, *per_scale, *saved[3 * n :])
    return *gradients_per_scale(packed, *per_scale), None, None, None


_classification_loss.register_autograd(_backward, setup_context=_save_for_backward)


def gradients_per_scale(
    packed: tuple[Tensor, Tensor, Tensor], features: list[Tensor], weights: list[Tensor], biases: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Views of packed gradients: of features, channels last, of weights and of biases."""
    of_features, of_weights, of_biases = packed
    return (
        unpacked(of_features, [x.shape for x in features], channels_last=True),
        unpacked(of_weights, [x.shape for x in weights], channels_last=False),
        unpacked(of_biases, [x.shape for x in biases], channels_last=False),
    )


def classification_loss(features: list[Tensor], weights: list[Tensor], biases: list[Tensor], labels: Tensor) -> Tensor:
    """Mean softmax cross-entropy of the cells that have a label (eq. 4 per cell); once differentiable, not in labels.

    Args:
        features, weights, biases: as in `classify`; maps that are not channels-last are copied.
        labels: `(B, sum of T_j)` int64, ordered by scale, cell; cells with a label outside [0, C) are left out.

    Returns:
        A scalar, fp32; 0 where no cell has a label.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    check_classifier(features, weights, biases)
    cells = [x.shape[2] for x in features]
    check_tensor("labels", labels, INTEGERS, (features[0].shape[0], sum(cells)), {}, features[0].device)
    labels = labels.contiguous()
    order, ends = labelled_cells(labels, cells, weights[0].shape[0])
    loss, _ = _classification_loss(
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in features],
        [x.contiguous() for x in weights],
        [x.contiguous() for x in biases],
        labels,
        order,
        ends,
    )
    return loss / (order >= 0).sum().clamp(min=1)
