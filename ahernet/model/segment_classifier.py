"""Segment-level classification of moments and foreground segments (section 3.2 of the paper, eq. 4)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahernet.config import ModelConfig
from ahernet.model.anchors import scale_channels
from ahernet.model.heads import ClassWeights


class SegmentClassifier(nn.Module):
    """One linear classifier W_regv (C, d_j) with bias per scale, on the average of the feature map."""

    def __init__(self, config: ModelConfig, class_count: int) -> None:
        super().__init__()
        channels = scale_channels(config)
        self.weights = nn.ParameterList(nn.init.normal_(torch.empty(class_count, d), std=0.01) for d in channels)
        self.biases = nn.ParameterList(torch.zeros(class_count) for _ in channels)

    def class_weights(self) -> ClassWeights:
        """Return W_regv and its bias of every scale."""
        return ClassWeights(list(self.weights), list(self.biases))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map feature maps (B, d_j, T_j) to logits (B, C) of each scale."""
        return [
            F.linear(x.mean(dim=2), weight, bias)
            for x, weight, bias in zip(maps, self.weights, self.biases, strict=True)
        ]
