"""The temporal IoU matrix as it is common elsewhere; returns what `ahernet_kernels` does."""

import numpy as np
import torch
from torch import Tensor


def torch_broadcast(a: Tensor, b: Tensor) -> Tensor:
    """All pairs at once; on any device."""
    shared = (torch.minimum(a[:, None, 1], b[:, 1]) - torch.maximum(a[:, None, 0], b[:, 0])).clamp(min=0)
    union = (a[:, 1] - a[:, 0]).clamp(min=0)[:, None] + (b[:, 1] - b[:, 0]).clamp(min=0) - shared
    return torch.where(union > 0, shared / union, 0.0)


def numpy_loop(a: Tensor, b: Tensor) -> Tensor:
    """A Python loop over rows: the form of the toolkits' `segment_iou`."""
    start, end = b.numpy().T
    length = np.maximum(end - start, 0)
    table = np.zeros((len(a), len(b)), np.float32)
    for row, (own_start, own_end) in zip(table, a.numpy(), strict=True):
        shared = np.maximum(np.minimum(own_end, end) - np.maximum(own_start, start), 0)
        union = np.maximum(own_end - own_start, 0) + length - shared
        np.divide(shared, union, out=row, where=union > 0)
    return torch.from_numpy(table)
