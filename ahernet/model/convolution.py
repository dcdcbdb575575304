"""The convolution of every network here: over time, with channels last in memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Convolution(nn.Conv1d):
    """A `Conv1d` of width 3, (B, I, T) -> (B, O, T'), that keeps channels last.

    In memory its input is (B, T, I), its output (B, T', O) and its weight (O, 3, I). So features come, and so the
    matrix products of a GPU want them: nothing is transposed, forward or backward, as it is by `Conv1d` itself.
    """

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.weight = nn.Parameter(self.weight.detach().transpose(1, 2).contiguous().transpose(1, 2))

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: float) -> None:
        """Take initial values: a weight (O, I, 3), drawn in this order whatever the layout, and one for all biases."""
        self.weight.copy_(weight)
        if self.bias is not None:
            self.bias.fill_(bias)

    @property
    def stride_and_padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the same convolution over a picture one row high: only pictures may have their channels last."""
        return (1, self.stride[0]), (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; shapes as above."""
        return F.conv2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, *self.stride_and_padding).squeeze(2)


def rectified(convolution: nn.Module, x: Tensor) -> Tensor:
    """Convolve and clamp at 0."""
    clamped: Tensor = convolution(x).relu()
    return clamped
