"""Tensors of all scales one behind the other in one buffer: an op can return it, which it cannot return views of."""

import torch
from torch import Tensor


def unpacked(packed: Tensor, shapes: list[torch.Size], channels_last: bool) -> list[Tensor]:
    """Views of a packed buffer in the given shapes; maps `(B, d, T)` that have channels last are `(B, T, d)` in it."""
    parts = zip(packed.split([shape.numel() for shape in shapes]), shapes, strict=True)
    if not channels_last:
        return [part.view(shape) for part, shape in parts]
    return [part.view(videos, cells, channels).transpose(1, 2) for part, (videos, channels, cells) in parts]
