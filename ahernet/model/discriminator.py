"""Discriminators between the background of untrimmed videos and of synthetic ones (section 3.3 of the paper)."""

from torch import Tensor, nn

from ahernet.config import ModelConfig
from ahernet.model.anchors import scale_channels
from ahernet.model.convolution import Convolution


class Discriminators(nn.Module):
    """One convolution of width 3 per scale: for every anchor the logit that its surroundings are real."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            Convolution(channels, config.ratios_per_cell) for channels in scale_channels(config)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map feature maps (B, d_j, T_j) to logits (B, R, T_j) of each scale, R ratios a cell."""
        return [head(x) for head, x in zip(self.scales, maps, strict=True)]
