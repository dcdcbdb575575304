"""Pseudo-3D residual networks (Qiu et al., "Learning Spatio-Temporal Representation with Pseudo-3D Residual
Networks", ICCV 2017), in the two arithmetics that are in use.

Tensors are named as in the public PyTorch port, so that weights published for it load by name. That port is not
the original network; where they differ, with S and T for the spatial and the temporal convolution of a block, each
followed by its normalisation:

    ============  =====================================  =================================
    where         variant "caffe" (the original)         variant "port" (PyTorch)
    ============  =====================================  =================================
    first pool    no padding, partial windows count      padding 1 in space
    block B       relu(relu(S) + T)                      relu(S) + relu(T)
    block C       relu(relu(S) / 2 + T(relu(S)) / 2)     relu(S) + relu(T(relu(S)))
    ============  =====================================  =================================
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Variant = Literal["caffe", "port"]

EXPANSION = 4
KINDS = "ABC"
P3D_199 = (3, 8, 36, 3)
RESIDUAL_SCALE = 0.2
FIRST_VARIANCE = {"caffe": 1e4, "port": 2.0}  # of what the untrained first convolution gives for pictures


class PseudoBottleneck(nn.Module):
    """A residual bottleneck whose 3 x 3 x 3 convolution is one in space (1 x 3 x 3) and one in time (3 x 1 x 1).

    Kind "A" runs them in a row, "B" side by side, "C" in a row with a shortcut around the one in time.

    Args:
        inputs: channels of the input.
        width: channels inside; four times as many leave the block.
        stride: in space, of the first convolution and of the shortcut.
        kind: "A", "B" or "C".
        variant: the arithmetic (see the module).
    """

    def __init__(self, inputs: int, width: int, stride: int, kind: str, variant: Variant) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.kind = kind
        self.variant = variant
        self.conv1 = nn.Conv3d(inputs, width, 1, stride=(1, stride, stride), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn3 = nn.BatchNorm3d(width)
        self.conv4 = nn.Conv3d(width, outputs, 1, bias=False)
        self.bn4 = nn.BatchNorm3d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv3d(inputs, outputs, 1, stride=(1, stride, stride), bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, T, H, W) to (B, 4 x width, T, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self._space_and_time(self.bn1(self.conv1(x)).relu_())
        return torch.relu(self.bn4(self.conv4(inner)) + shortcut)

    def _space_and_time(self, x: Tensor) -> Tensor:
        space: Tensor = self.bn2(self.conv2(x)).relu_()
        time: Tensor = self.bn3(self.conv3(x if self.kind == "B" else space))
        if self.kind == "A":
            return time.relu_()
        if self.variant == "port":
            return space + time.relu_()
        if self.kind == "B":
            return (space + time).relu_()
        return (0.5 * space + 0.5 * time).relu_()


class FlatBottleneck(nn.Module):
    """A residual bottleneck in space alone, for the last stage, where time has length one."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv_normal = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn_normal = nn.BatchNorm2d(width)
        self.conv4 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, H, W) to (B, 4 x width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.bn1(self.conv1(x)).relu_()
        inner = self.bn_normal(self.conv_normal(inner)).relu_()
        return torch.relu(self.bn4(self.conv4(inner)) + shortcut)


class P3D(nn.Module):
    """A Pseudo-3D ResNet that gives the features of clips: the globally pooled output of its last stage ("pool5").

    Three stages of pseudo-3D blocks, whose kinds take turns A, B, C over all of them, and one of blocks in space
    alone. Time is halved by the first pooling and after each of the three stages: 16 frames become one step.

    Args:
        variant: the arithmetic (see the module).
        depths: blocks of the four stages; those of P3D-199 by default.
        width: channels of the first stage; every other scales with it. Features have 32 times as many.
        classes: outputs of the classifier `fc`, which features do not need.
    """

    def __init__(
        self,
        variant: Variant = "caffe",
        depths: tuple[int, int, int, int] = P3D_199,
        width: int = 64,
        classes: int = 400,
    ) -> None:
        super().__init__()
        if variant not in ("caffe", "port"):
            raise ValueError(f"variant: expected 'caffe' or 'port', got {variant!r}")
        self.variant = variant
        self.conv1_custom = nn.Conv3d(3, width, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        channels = width
        number = 0
        stages = []
        for stage, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            inner = width << stage
            for place in range(depth):
                stride = 2 if stage and place == 0 else 1
                if stage < 3:
                    blocks.append(PseudoBottleneck(channels, inner, stride, KINDS[number % 3], variant))
                else:
                    blocks.append(FlatBottleneck(channels, inner, stride))
                channels = EXPANSION * inner
                number += 1
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, classes)
        self._initialize()

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips (B, 3, 16, H, W) to features (B, 32 x width); the networks were trained with H = W = 160.

        Raises:
            ValueError: the clips have another number of frames.
        """
        if clips.shape[2] != 16:
            raise ValueError(f"clips: expected 16 frames, got {clips.shape[2]}")
        x = self._first_pool(self.bn1(self.conv1_custom(clips)).relu_())
        for stage in (self.layer1, self.layer2, self.layer3):
            x = F.max_pool3d(stage(x), (2, 1, 1))
        features: Tensor = self.layer4(x.squeeze(2))
        return features.mean((2, 3), dtype=torch.float32)  # also where the network computes in bfloat16

    def _first_pool(self, x: Tensor) -> Tensor:
        if self.variant == "port":
            return F.max_pool3d(x, (2, 3, 3), stride=2, padding=(0, 1, 1))
        return F.max_pool3d(x, (2, 3, 3), stride=2, ceil_mode=True)

    def _initialize(self) -> None:
        # Untrained, features should still be of the size that features have: the scale of the input is taken out as
        # trained normalisations do, and fifty residual sums do not add up at full size.
        assert self.bn1.running_var is not None
        nn.init.constant_(self.bn1.running_var, FIRST_VARIANCE[self.variant])
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, PseudoBottleneck | FlatBottleneck):
                nn.init.constant_(module.bn4.weight, RESIDUAL_SCALE)
