"""The CPU form of `classification_loss`: matrix products of the labelled cells of a scale and a chunk of classes."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from ahernet_kernels._packed import unpacked

CPU_BLOCK_ELEMENTS = 1 << 20  # of the table of a chunk


class _LabelledCells(NamedTuple):
    """The `n` labelled cells of a scale."""

    features: Tensor
    """`(n, D_j)` fp32."""
    video: Tensor
    cell: Tensor
    label: Tensor
    rows: slice
    """Which rows of `order` they are."""


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
    log_sum = labels.new_zeros((labels.numel(),), dtype=torch.float32)
    loss = labels.new_zeros((), dtype=torch.float32)
    for j, labelled in enumerate(_labelled_cells(features, labels, order, ends)):
        parts = _logits_in_chunks(labelled.features, weights[j], biases[j])
        total = functools.reduce(torch.logaddexp, (logits.logsumexp(dim=1) for _, logits in parts))
        weight, bias = weights[j][labelled.label].float(), biases[j][labelled.label].float()
        picked = (labelled.features * weight).sum(dim=1) + bias
        log_sum[labelled.rows] = total
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
    of_features = features[0].new_zeros(sum(x.numel() for x in features))
    of_weights, of_biases = (x[0].new_empty(sum(y.numel() for y in x)) for x in (weights, biases))
    feature_outputs = unpacked(of_features, [x.shape for x in features], channels_last=True)
    weight_outputs = unpacked(of_weights, [x.shape for x in weights], channels_last=False)
    bias_outputs = unpacked(of_biases, [x.shape for x in biases], channels_last=False)
    for j, labelled in enumerate(_labelled_cells(features, labels, order, ends)):
        x, label, log_sums = labelled.features, labelled.label, log_sum[labelled.rows, None]
        total = torch.zeros_like(x)
        for part, logits in _logits_in_chunks(x, weights[j], biases[j]):
            difference = logits.sub_(log_sums).exp_()
            (here,) = ((label >= part.start) & (label < part.stop)).nonzero(as_tuple=True)
            difference[here, label[here] - part.start] -= 1
            total.addmm_(difference, weights[j][part].float())
            torch.mul(difference.T @ x, gradient, out=weight_outputs[j][part])
            torch.mul(difference.sum(dim=0), gradient, out=bias_outputs[j][part])
        feature_outputs[j].transpose(1, 2)[labelled.video, labelled.cell] = (gradient * total).to(features[j].dtype)
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


def _labelled_cells(features: list[Tensor], labels: Tensor, order: Tensor, ends: Tensor) -> Iterator[_LabelledCells]:
    """The labelled cells of each scale."""
    videos, all_cells = labels.shape
    video, cell, label = order // all_cells, order % all_cells, labels.flatten()[order]
    first = 0
    for x, end in zip(features, ends.tolist(), strict=True):
        rows = slice(videos * first, end)
        at = video[rows], cell[rows] - first
        yield _LabelledCells(x.transpose(1, 2)[at].float(), *at, label[rows], rows)
        first += x.shape[2]


def _logits_in_chunks(x: Tensor, weights: Tensor, biases: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Logits (n, chunk) in fp32 of a chunk of classes at a time, and which classes they are."""
    size = max(1, CPU_BLOCK_ELEMENTS // max(1, *x.shape))  # the chunk's gradient of the weights is no larger either
    for first in range(0, len(weights), size):
        part = slice(first, min(first + size, len(weights)))
        yield part, torch.addmm(biases[part].float(), x, weights[part].float().T)
