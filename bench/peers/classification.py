"""Classification as model code has it: a convolution of width 1, a softmax, its maximum; all logits in memory.

And its loss: cross-entropy of all cells, where those without a label are ignored, or of the labelled ones alone.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def classify(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Of all videos and cells at once; on any device."""
    best = _logits(features, weights, biases).softmax(dim=1).max(dim=1)
    return best.values, best.indices


def classify_loop(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One video after the other."""
    videos = [classify([x[video : video + 1] for x in features], weights, biases) for video in range(len(features[0]))]
    probability, labels = zip(*videos, strict=True)
    return torch.cat(probability), torch.cat(labels)


def classification_loss(features: list[Tensor], weights: list[Tensor], biases: list[Tensor], labels: Tensor) -> Tensor:
    """Logits of all cells; nothing waits for the device."""
    logits = _logits(features, weights, biases)
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def classification_loss_selected(
    features: list[Tensor], weights: list[Tensor], biases: list[Tensor], labels: Tensor
) -> Tensor:
    """Labelled cells selected by index, of which there must be some; on a GPU the host waits for their number."""
    losses, per_scale = [], labels.split([x.shape[2] for x in features], dim=1)
    for x, weight, bias, label in zip(features, weights, biases, per_scale, strict=True):
        video, cell = (label >= 0).nonzero(as_tuple=True)
        logits = F.linear(x.transpose(1, 2)[video, cell], weight, bias).float()
        losses.append(F.cross_entropy(logits, label[video, cell], reduction="sum"))
    return torch.stack(losses).sum() / (labels >= 0).sum()


def _logits(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """(B, C, cells) of all scales."""
    logits = [F.conv1d(x, weight[..., None], bias) for x, weight, bias in zip(features, weights, biases, strict=True)]
    return torch.cat(logits, dim=2).float()
