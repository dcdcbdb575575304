"""Resampling as a dense matrix product a video; returns what `ahernet_kernels` does."""

import itertools

import numpy as np
import torch
from torch import Tensor


def weights(rows: int, steps: int) -> np.ndarray:
    """(steps, rows) float64: the share of each row in each bin, from the integral of its hat function.

    The first and the last row are repeated once beyond the ends: so far does the constant extension reach.
    """
    edge = np.arange(steps + 1) * rows / steps - 0.5
    u = np.clip(edge[:, None] - np.arange(-1, rows + 1), -1, 1)
    integral = np.where(u < 0, (1 + u) ** 2 / 2, 1 - (1 - u) ** 2 / 2)
    share = np.diff(integral, axis=0) * steps / rows
    share[:, 1] += share[:, 0]
    share[:, -2] += share[:, -1]
    return share[:, 1:-1]


def torch_loop(features: Tensor, offsets: Tensor, steps: int) -> Tensor:
    """A dense matrix product in torch a video; on any device."""
    bounds = offsets.tolist()
    output = features.new_empty((len(bounds) - 1, steps, features.shape[1]), dtype=torch.float32)
    for video, (first, last) in enumerate(itertools.pairwise(bounds)):
        matrix = torch.from_numpy(weights(last - first, steps)).to(features.device, torch.float32)
        output[video] = matrix @ features[first:last].float()
    return output


def numpy_loop(features: Tensor, offsets: Tensor, steps: int) -> Tensor:
    """A Python loop over output steps, numpy over the rows under the bin."""
    bounds, rows = offsets.tolist(), features.float().numpy()
    output = np.empty((len(bounds) - 1, steps, rows.shape[1]), np.float32)
    for video, (first, last) in enumerate(itertools.pairwise(bounds)):
        matrix = weights(last - first, steps).astype(np.float32)
        for step in range(steps):
            under = np.flatnonzero(matrix[step])
            output[video, step] = matrix[step, under] @ rows[first + under]
    return torch.from_numpy(output)
