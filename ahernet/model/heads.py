"""Anchor-level heads: class logits per cell, offsets and overlap per anchor (section 3.4 of the paper)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahernet.config import ModelConfig
from ahernet.model.anchors import scale_channels
from ahernet.model.convolution import Convolution

# sigmoid(-2) = 0.12, about the mean tiou of a default anchor with its closest ground truth.
INITIAL_OVERLAP = -2.0


class ClassWeights(NamedTuple):
    """Classification weights of every scale: `weights[j]` (C, d_j) and `biases[j]` (C,)."""

    weights: list[Tensor]
    biases: list[Tensor]

    def select(self, rows: Tensor) -> "ClassWeights":
        """Return the weights of some classes: those in the given rows (K,) int64, in this order."""
        return ClassWeights([weight[rows] for weight in self.weights], [bias[rows] for bias in self.biases])

    def detach(self) -> "ClassWeights":
        """Return the same numbers as constants, through which no gradient reaches what they came from."""
        return ClassWeights([weight.detach() for weight in self.weights], [bias.detach() for bias in self.biases])


class ProposalHeads(nn.Module):
    """Convolutions of width 3 that predict, for every anchor, two offsets and the overlap."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, ratios = scale_channels(config), config.ratios_per_cell
        offsets = [Convolution(d, 2 * ratios) for d in channels]
        overlaps = [Convolution(d, ratios) for d in channels]
        for head in (*offsets, *overlaps):
            weight = nn.init.normal_(torch.empty(head.weight.shape), std=0.01)
            head.start_from(weight, INITIAL_OVERLAP if head in overlaps else 0.0)
        self.offsets, self.overlaps = nn.ModuleList(offsets), nn.ModuleList(overlaps)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map feature maps (B, d_j, T_j) to offsets (B, 2R, T_j) and overlaps (B, R, T_j), R ratios a cell.

        Channels of the offsets are dc_0, dw_0, dc_1, dw_1, ...; overlaps are before the sigmoid.
        """
        offsets = [head(x) for head, x in zip(self.offsets, maps, strict=True)]
        overlaps = [head(x) for head, x in zip(self.overlaps, maps, strict=True)]
        return offsets, overlaps


def class_logits(maps: list[Tensor], class_weights: ClassWeights) -> list[Tensor]:
    """Classify every cell by a convolution of width 1 with given weights W_clsa, classes last in memory.

    Args:
        maps: (B, d_j, T_j) per scale.
        class_weights: of the same scales.

    Returns:
        (B, C, T_j) logits per scale.
    """
    return [
        F.linear(x.transpose(1, 2), weight, bias).transpose(1, 2)
        for x, weight, bias in zip(maps, class_weights.weights, class_weights.biases, strict=True)
    ]
