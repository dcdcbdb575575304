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

    def stride_and_padding(self, x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the same convolution over a picture one row high: only pictures may have their channels last."""
        # Of one step any stride makes one. With a stride of 2 most CPUs leave the gradient in bfloat16 undefined of the
        # weights that then see padding alone; single precision keeps it, and with it the last bits of what was trained.
        lone = x.dtype == torch.bfloat16 and x.shape[2] == 1
        return (1, 1 if lone else self.stride[0]), (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; shapes as above."""
        picture = F.conv2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, *self.stride_and_padding(x))
        return picture.squeeze(2)


def rectified(convolution: nn.Module, x: Tensor) -> Tensor:
    """Convolve and clamp at 0."""
    clamped: Tensor = convolution(x).relu()
    return clamped
