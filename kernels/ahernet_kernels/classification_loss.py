"""Softmax cross-entropy of labelled cells straight from feature maps and class weights: no logits in memory.

Cells with a label are sorted to the front of their scale, so that every direction works on those alone, a few per cent
of all where the class loss looks at the foreground. Forward a program takes a tile of them and a chunk of classes and
stores the logarithm of its sum of exponentials; a second launch merges the chunks. Backward the logits of a tile are
computed again (`_classification_gradients`). No atomics: every sum has one order.

A scale is a launch: with its depth known, loads of features and weights are 16 bytes wide and kept in flight.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._arguments import INTEGERS, check_tensor
from ahernet_kernels._class_logits import check_classifier, class_logits, map_offset
from ahernet_kernels._classification_gradients import (
    feature_gradient_kernel,
    gradients_launch,
    gradients_torch,
    labelled_rows,
    logits_in_chunks,
    weight_gradient_kernel,
)
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {"BLOCK_ROWS": 64, "BLOCK_CLASSES": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}
DEFAULTS_FP32 = {"BLOCK_ROWS": 64, "BLOCK_CLASSES": 64, "BLOCK_D": 16, "num_warps": 8, "num_stages": 3}
DEFAULTS_MERGE = {"BLOCK": 128, "num_warps": 4}


@triton.jit
def log_sum_kernel(
    features_ptr, weights_ptr, biases_ptr, labels_ptr, order_ptr, ends_ptr, part_ptr, picked_ptr,
    scale, first_row, rows, first_cell, cells, all_cells, classes, dimension,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of labelled cells of one scale and a chunk of classes: log-sum of exponentials, logit of the label."""
    chunks = tl.cdiv(classes, BLOCK_CLASSES)
    chunk = tl.program_id(0) % chunks
    first = first_row + tl.program_id(0) // chunks * BLOCK_ROWS
    end = tl.load(ends_ptr + scale).to(tl.int32)
    if first < end:
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = row < end
        source = tl.load(order_ptr + tl.minimum(row, end - 1))
        label = tl.load(labels_ptr + source).to(tl.int32)
        at = map_offset(source // all_cells, source % all_cells - first_cell, cells, dimension, True)
        index = chunk * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
        logits = class_logits(
            features_ptr, weights_ptr, biases_ptr, at, index, cells, classes, dimension,
            True, BLOCK_ROWS, BLOCK_CLASSES, BLOCK_D,
        )  # fmt: skip
        top = tl.max(logits, 1)
        top = tl.where(top > float("-inf"), top, 0.0)
        part = top + tl.log(tl.sum(tl.exp(logits - top[:, None]), 1))
        tl.store(part_ptr + chunk.to(tl.int64) * rows + row, part, mask=inside)
        is_label = index[None, :] == label[:, None]
        picked = tl.sum(tl.where(is_label, logits, 0.0), 1)
        tl.store(picked_ptr + row, picked, mask=inside & (label // BLOCK_CLASSES == chunk))


@triton.jit
def merge_log_sums_kernel(
    labels_ptr, order_ptr, part_ptr, picked_ptr, loss_ptr, log_sum_ptr, rows, classes, chunks, BLOCK: tl.constexpr
):
    """Loss and log-sum of each row over all chunks of classes; 0 for rows without a label."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    label = tl.load(labels_ptr + tl.load(order_ptr + row, mask=inside, other=0), mask=inside, other=-1)
    labelled = (label >= 0) & (label < classes)
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
    tl.store(loss_ptr + row, tl.where(labelled, log_sum - picked, 0.0), mask=inside)
    tl.store(log_sum_ptr + row, tl.where(labelled, log_sum, 0.0), mask=inside)


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
    """Launch `kernel` on each scale, then `merge_kernel`; sum of losses and log-sum of each row."""
    videos, all_cells = labels.shape
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
    first_cell = 0
    for j, x in enumerate(features):
        _, dimension, cells = x.shape
        if cells > 0:
            kernel[(triton.cdiv(videos * cells, settings["BLOCK_ROWS"]) * chunks,)](
                x, weights[j], biases[j], labels, order, ends, part, picked,
                j, videos * first_cell, rows, first_cell, cells, all_cells, classes, dimension,
                **settings,
            )  # fmt: skip
        first_cell += cells
    settings = launch_settings("merge_log_sums", DEFAULTS_MERGE)
    merge_kernel[(triton.cdiv(rows, settings["BLOCK"]),)](
        labels, order, part, picked, loss, log_sum, rows, classes, chunks, **settings
    )
    return loss.sum(), log_sum


def labelled_first(labels: Tensor, cells: list[int], classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order cells by scale, labelled ones first: rows (B * cells,), where those of each scale end, how many in all."""
    labelled = (labels >= 0) & (labels < classes)
    number = torch.arange(labels.shape[1], device=labels.device)
    scale = torch.zeros_like(number)
    for j in range(1, len(cells)):
        scale += number >= sum(cells[:j])
    key, order = (2 * scale + ~labelled).flatten().sort(stable=True)
    ends = torch.searchsorted(key, 2 * torch.arange(len(cells), device=labels.device), right=True)
    return order, ends, labelled.sum()


@custom_op("ahernet_kernels::classification_loss_cpu", mutates_args=(), device_types="cpu")
def _classification_loss_cpu(
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
) -> tuple[Tensor, Tensor]:
    log_sum = torch.zeros((labels.numel(),))
    loss = torch.zeros(())
    for j, (x, _, _, rows) in enumerate(labelled_rows(features, order, ends)):
        label = labels.flatten()[order[rows]]
        total = torch.full((len(x),), -torch.inf)
        for _, logits in logits_in_chunks(x, weights[j], biases[j]):
            total = torch.logaddexp(total, logits.logsumexp(dim=1))
        picked = (x * weights[j][label].float()).sum(dim=1) + biases[j][label].float()
        log_sum[rows] = total
        loss += (total - picked).sum()
    return loss, log_sum


@_classification_loss_cpu.register_fake
def _(
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
) -> tuple[Tensor, Tensor]:
    return (
        features[0].new_empty((), dtype=torch.float32),
        features[0].new_empty((labels.numel(),), dtype=torch.float32),
    )


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
        return _classification_loss_cpu(*arguments)
    return classification_loss_launch(wrap_triton(log_sum_kernel), wrap_triton(merge_log_sums_kernel), *arguments)


@custom_op("ahernet_kernels::classification_loss_backward_cpu", mutates_args=(), device_types="cpu")
def _backward_cpu(
    gradient: Tensor,
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
    log_sum: Tensor,
) -> list[Tensor]:
    return gradients_torch(gradient, features, weights, biases, labels, order, ends, log_sum)


@_backward_cpu.register_fake
def _(
    gradient: Tensor,
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
    log_sum: Tensor,
) -> list[Tensor]:
    return [torch.empty_like(x) for x in (*features, *weights, *biases)]


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
) -> list[Tensor]:
    arguments = (gradient, features, weights, biases, labels, order, ends, log_sum)
    if labels.device.type == "cpu":
        return _backward_cpu(*arguments)
    return gradients_launch(wrap_triton(feature_gradient_kernel), wrap_triton(weight_gradient_kernel), *arguments)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, weights, biases, labels, order, ends = inputs
    ctx.scales = len(features)
    ctx.save_for_backward(*features, *weights, *biases, labels, order, ends, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    saved, n = list(ctx.saved_tensors), ctx.scales
    per_scale = [saved[:n], saved[n : 2 * n], saved[2 * n : 3 * n]]
    gradients = _classification_loss_backward(gradient, *per_scale, *saved[3 * n :])
    return gradients[:n], gradients[n : 2 * n], gradients[2 * n :], None, None, None


_classification_loss.register_autograd(_backward, setup_context=_save_for_backward)


def classification_loss(features: list[Tensor], weights: list[Tensor], biases: list[Tensor], labels: Tensor) -> Tensor:
    """Mean softmax cross-entropy of the cells that have a label (eq. 4 per cell); differentiable but in the labels.

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
    order, ends, count = labelled_first(labels, cells, weights[0].shape[0])
    loss, _ = _classification_loss(
        [x.transpose(1, 2).contiguous().transpose(1, 2) for x in features],
        [x.contiguous() for x in weights],
        [x.contiguous() for x in biases],
        labels,
        order,
        ends,
    )
    return loss / count.clamp(min=1)
