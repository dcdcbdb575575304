"""The trained network as inference runs it: channels last in memory, weights laid out for that once.

A sequence (B, steps, D) has its channels last already. With every map kept so, as a picture one row high, no
convolution transposes what it reads, and `ahernet_kernels.decode` reads the outputs where they are.
"""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahernet.model.backbone import Backbone
from ahernet.model.heads import ClassWeights

Network = TypeVar("Network", bound=nn.Module)


class Convolution(nn.Module):
    """A trained `Conv1d` that maps (B, I, T) to (B, O, T'), in memory (B, T, I) to (B, T', O)."""

    def __init__(self, trained: nn.Module) -> None:
        super().__init__()
        assert isinstance(trained, nn.Conv1d)
        weight = trained.weight.detach().unsqueeze(2).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = trained.bias
        self.stride = (1, *trained.stride)
        self.padding = (0, *(int(cells) for cells in trained.padding))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; shapes as above."""
        return F.conv2d(x.unsqueeze(2), self.weight, self.bias, self.stride, self.padding).squeeze(2)


class RectifiedConvolution(Convolution):
    """A convolution whose result is clamped at 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and clamp: on an NVIDIA GPU in one pass, which spares two over the output."""
        if x.is_cuda and torch.version.cuda and not torch.compiler.is_compiling():
            picture: Tensor = torch.cudnn_convolution_relu(
                x.unsqueeze(2), self.weight, self.bias, self.stride, self.padding, dilation=(1, 1), groups=1
            )
            return picture.squeeze(2)
        return super().forward(x).relu()


class ChannelsLastBackbone(nn.Module):
    """A copy of a trained `Backbone` as inference runs it."""

    def __init__(self, trained: Backbone) -> None:
        super().__init__()
        self.stem = nn.ModuleList(map(RectifiedConvolution, deepcopy(trained.stem)))
        self.scales = nn.ModuleList(map(RectifiedConvolution, deepcopy(trained.scales)))
        self.requires_grad_(False)

    def forward(self, sequence: Tensor) -> list[Tensor]:
        """Map sequences (B, steps, D) to eight feature maps (B, d_j, T_j)."""
        x = sequence.transpose(1, 2)
        for convolution in self.stem:
            x = convolution(x)
        x = F.max_pool2d(x.unsqueeze(2), (1, 3), stride=(1, 2), padding=(0, 1)).squeeze(2)
        maps = []
        for convolution in self.scales:
            x = convolution(x)
            maps.append(x)
        return maps


def channels_last(trained: Network) -> Network:
    """Copy a network; the copy computes with channels last in memory, and learns no more."""
    network = deepcopy(trained).requires_grad_(False)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv1d):
                setattr(module, name, Convolution(child))
    return network


def class_logits(maps: list[Tensor], class_weights: ClassWeights) -> list[Tensor]:
    """Classify every cell of maps (B, d_j, T_j) as `ahernet.model.heads.class_logits` does, (B, C, T_j) per scale."""
    return [
        F.linear(x.transpose(1, 2), weight, bias).transpose(1, 2)
        for x, weight, bias in zip(maps, class_weights.weights, class_weights.biases, strict=True)
    ]
