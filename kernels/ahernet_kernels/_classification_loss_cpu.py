"""The CPU form of `classification_loss`: matrix products of the labelled cells of a scale and a chunk of classes."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.library import custom_op

from ahernet_kernels._packed import unpacked

CPU_BLOCK_ELEMENTS = 1 << 20


@custom_op("ahernet_kernels::classification_loss_cpu", mutates_args=(), device_types="cpu")
def classification_loss_cpu(
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sum of losses and log-sum of each row, as the kernels return them."""
    log_sum = torch.zeros((labels.numel(),))
    loss = torch.zeros(())
    for j, (x, _, _, rows) in enumerate(_labelled_rows(features, order, ends)):
        label = labels.flatten()[order[rows]]
        total = torch.full((len(x),), -torch.inf)
        for _, logits in _logits_in_chunks(x, weights[j], biases[j]):
            total = torch.logaddexp(total, logits.logsumexp(dim=1))
        picked = (x * weights[j][label].float()).sum(dim=1) + biases[j][label].float()
        log_sum[rows] = total
        loss += (total - picked).sum()
    return loss, log_sum


@classification_loss_cpu.register_fake
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


@custom_op("ahernet_kernels::classification_loss_backward_cpu", mutates_args=(), device_types="cpu")
def classification_loss_backward_cpu(
    gradient: Tensor,
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
    log_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed gradients of features, weights and biases, of a chunk of classes at a time."""
    of_features, of_weights, of_biases = (
        per_scale[0].new_zeros(sum(x.numel() for x in per_scale)) for per_scale in (features, weights, biases)
    )
    feature_outputs = unpacked(of_features, [x.shape for x in features], channels_last=True)
    weight_outputs = unpacked(of_weights, [x.shape for x in weights], channels_last=False)
    bias_outputs = unpacked(of_biases, [x.shape for x in biases], channels_last=False)
    for j, (x, video, cell, rows) in enumerate(_labelled_rows(features, order, ends)):
        label = labels.flatten()[order[rows]]
        total = torch.zeros_like(x)
        for part, logits in _logits_in_chunks(x, weights[j], biases[j]):
            difference = logits.sub_(log_sum[rows, None]).exp_()
            (here,) = ((label >= part.start) & (label < part.stop)).nonzero(as_tuple=True)
            difference[here, label[here] - part.start] -= 1
            total.addmm_(difference, weights[j][part].float())
            weight_outputs[j][part] = (gradient * (difference.T @ x)).to(x.dtype)
            bias_outputs[j][part] = (gradient * difference.sum(dim=0)).to(x.dtype)
        feature_outputs[j].transpose(1, 2)[video, cell] = (gradient * total).to(features[j].dtype)
    return of_features, of_weights, of_biases


@classification_loss_backward_cpu.register_fake
def _(
    gradient: Tensor,
    features: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    labels: Tensor,
    order: Tensor,
    ends: Tensor,
    log_sum: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    of_features, of_weights, of_biases = (
        per_scale[0].new_empty(sum(x.numel() for x in per_scale)) for per_scale in (features, weights, biases)
    )
    return of_features, of_weights, of_biases


def _labelled_rows(
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


def _logits_in_chunks(x: Tensor, weights: Tensor, biases: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Logits (n, chunk) in fp32 of a chunk of classes at a time, and which classes they are."""
    size = max(1, CPU_BLOCK_ELEMENTS // max(1, len(x)))
    for first in range(0, len(weights), size):
        part = slice(first, min(first + size, len(weights)))
        yield part, torch.addmm(biases[part].float(), x, weights[part].float().T)
