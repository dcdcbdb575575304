"""Context generation: what could have come before and after a moment (section 3.3 of the paper, eq. 2)."""

import ahernet_kernels as kernels
import torch
from torch import Tensor, nn

from ahernet.config import ModelConfig
from ahernet.model.convolution import Convolution


class ContextGenerators(nn.Module):
    """G1 and G2: two convolutions each that map a moment to what comes before it and what comes after.

    The first keeps the length and halves the channels, the second halves the length and restores the channels.
    There is no noise: context follows from the moment. Each step of it sees a few steps of the moment, and which ones
    is a matter of place: as the paper has it, the last steps before a moment follow from its end. `mirrored_context`
    turns the moment around, as padding by reflection does: they follow from its beginning.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = max(config.minimum_channels, config.feature_dimension // 2)
        self.mirrored = config.mirrored_context
        self.before = _generator(config.feature_dimension, hidden)
        self.after = _generator(config.feature_dimension, hidden)

    def forward(self, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Map moments (B, S, D) to the context before and after, (B, ceil(S / 2), D) each."""
        x = (moment.flip(1) if self.mirrored else moment).transpose(1, 2)
        return self.before(x).transpose(1, 2), self.after(x).transpose(1, 2)


def synthesize(before: Tensor, moment: Tensor, after: Tensor, first: Tensor, length: Tensor, steps: int) -> Tensor:
    """Join moments and their contexts to synthetic videos, A of eq. 2.

    Each moment of a video fills exactly the steps first to first + length, so that its ground truth is
    [first / steps, (first + length) / steps]. Its contexts are stretched over all steps before and after; where a video
    has several moments, each is shown with its contexts up to the middle between it and the next.

    Args:
        before: (B * M, K, D), of the moments of the first video, of the second, and so on.
        moment: (B * M, S, D), those of a video later and later.
        after: (B * M, K, D).
        first: (B, M) int64, step at which each moment starts.
        length: (B, M) int64, steps of each moment; first + length <= steps. From the first that is 0 on, a video has no
            further moment.
        steps: length of the synthetic videos.

    Returns:
        (B, steps, D), at least fp32.
    """
    lengths = torch.stack([first, length, steps - first - length], dim=-1)
    middles = (first[:, :-1] + length[:, :-1] + first[:, 1:]) // 2
    middles = middles.where(length[:, 1:] > 0, steps)
    step = torch.arange(steps, device=first.device)
    shown = (step >= middles[:, :, None]).sum(dim=1)
    return kernels.stretch(before, moment, after, lengths.flatten(0, 1), shown)


def _generator(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        Convolution(channels, hidden),
        nn.ReLU(),
        Convolution(hidden, channels, stride=2),
    )
