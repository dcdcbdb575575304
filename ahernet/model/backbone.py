"""The weight-sharing 1-D convolutional network (section 3.1 of the paper)."""

from itertools import pairwise

from torch import Tensor, nn

from ahernet.config import ModelConfig
from ahernet.model.anchors import scale_channels, stem_channels


class Backbone(nn.Module):
    """Two convolutions, a max-pooling, and eight convolutions of stride 2 that give the feature maps.

    No normalisation and no dropout. Every convolution and the pooling pad by 1, so that a map of n cells
    becomes one of ceil(n / 2).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stem = (config.feature_dimension, *stem_channels(config))
        scales = (stem[-1], *scale_channels(config))
        self.stem = nn.ModuleList(nn.Conv1d(i, o, kernel_size=3, padding=1) for i, o in pairwise(stem))
        self.scales = nn.ModuleList(nn.Conv1d(i, o, kernel_size=3, padding=1, stride=2) for i, o in pairwise(scales))
        for convolution in (*self.stem, *self.scales):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)

    def forward(self, sequence: Tensor) -> list[Tensor]:
        """Map sequences (B, steps, D) to eight feature maps (B, d_j, T_j)."""
        x = sequence.transpose(1, 2)
        for convolution in self.stem:
            x = convolution(x).relu()
        x = nn.functional.max_pool1d(x, kernel_size=3, stride=2, padding=1)
        maps = []
        for convolution in self.scales:
            x = convolution(x).relu()
            maps.append(x)
        return maps
