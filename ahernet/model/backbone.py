"""The weight-sharing 1-D convolutional network (section 3.1 of the paper)."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahernet.config import ModelConfig
from ahernet.model.anchors import scale_channels, stem_channels
from ahernet.model.convolution import Convolution, rectified


class Backbone(nn.Module):
    """Two convolutions, a max-pooling, and eight convolutions of stride 2 that give the feature maps.

    No normalisation and no dropout. Every convolution and the pooling pad by 1, so that a map of n cells
    becomes one of ceil(n / 2).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stem = (config.feature_dimension, *stem_channels(config))
        scales = (stem[-1], *scale_channels(config))
        self.stem = nn.ModuleList(Convolution(i, o) for i, o in pairwise(stem))
        self.scales = nn.ModuleList(Convolution(i, o, stride=2) for i, o in pairwise(scales))
        for convolution in (*self.stem, *self.scales):
            weight = torch.empty(convolution.weight.shape)
            convolution.start_from(nn.init.kaiming_normal_(weight, nonlinearity="relu"), bias=0.0)

    def forward(self, sequence: Tensor, layer: Callable[[nn.Module, Tensor], Tensor] = rectified) -> list[Tensor]:
        """Map sequences (B, steps, D) to eight feature maps (B, d_j, T_j); `layer` convolves and clamps."""
        x = sequence.transpose(1, 2)
        for convolution in self.stem:
            x = layer(convolution, x)
        x = F.max_pool2d(x.unsqueeze(2), (1, 3), stride=(1, 2), padding=(0, 1)).squeeze(2)  # keeps channels last
        maps = []
        for convolution in self.scales:
            x = layer(convolution, x)
            maps.append(x)
        return maps
