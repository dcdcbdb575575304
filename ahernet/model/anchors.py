"""Channel counts, map lengths and default segments of the network."""

import torch
from torch import Tensor

from ahernet.config import ModelConfig

STEM_CHANNELS = (2048, 1024)
SCALE_CHANNELS = (256, 256, 512, 512, 1024, 1024, 2048, 2048)
SCALES = len(SCALE_CHANNELS)


def stem_channels(config: ModelConfig) -> tuple[int, ...]:
    """Return the channel counts of the two convolutions before the pooling."""
    return tuple(_scaled(channels, config) for channels in STEM_CHANNELS)


def scale_channels(config: ModelConfig) -> tuple[int, ...]:
    """Return d_j, the channel count of each of the eight feature maps."""
    return tuple(_scaled(channels, config) for channels in SCALE_CHANNELS)


def scale_cells(steps: int) -> tuple[int, ...]:
    """Return T^j, the number of cells of each feature map for a sequence of `steps` steps.

    512 steps give 128, 64, 32, 16, 8, 4, 2, 1: pooling and every anchor layer halve, rounding up.
    """
    cells = []
    length = (steps + 1) // 2
    for _ in range(SCALES):
        length = (length + 1) // 2
        cells.append(length)
    return tuple(cells)


def make_anchors(config: ModelConfig) -> Tensor:
    """Return the default segments of a video (eq. 3): centre (t + 0.5) / T^j and width r_d / T^j.

    Returns:
        (A, 2) float32 centre and width in [0, 1] of the video, ordered scale, cell, ratio.
    """
    exponents = torch.arange(config.ratios_per_cell, dtype=torch.float64) / config.ratios_per_cell
    ratios = torch.pow(2.0, exponents)
    scales = []
    for cells in scale_cells(config.steps):
        centres = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
        scales.append(torch.cartesian_prod(centres, ratios / cells))
    return torch.cat(scales).float()


def _scaled(channels: int, config: ModelConfig) -> int:
    return max(config.minimum_channels, round(channels * config.width))
