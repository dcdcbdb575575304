"""Resampling as a dense matrix product a video; returns what `ahernet_kernels` does."""

import itertools

import numpy as np
import torch
from torch import Tensor


def weights(rows: int, steps: int, device: torch.device | str = "cpu") -> Tensor:
    """(steps, rows) float64: the share of each row in each bin, from the integral of its hat function.

    The first and the last row are repeated once beyond the ends: so far does the constant extension reach.
    """
    edge = torch.arange(steps + 1, dtype=torch.float64, device=device) * rows / steps - 0.5
    u = (edge[:, None] - torch.arange(-1, rows + 1, device=device)).clamp(-1, 1)
    integral = torch.where(u < 0, (1 + u) ** 2 / 2, 1 - (1 - u) ** 2 / 2)
    share = integral.diff(dim=0) * steps / rows
    share[:, 1] += share[:, 0]
    share[:, -2] += share[:, -1]
    return share[:, 1:-1]


def torch_loop(features: Tensor, offsets: Tensor, steps: int) -> Tensor:
    """A dense matrix product in torch a video; on any device."""
    bounds = offsets.tolist()
    output = features.new_empty((len(bounds) - 1, steps, features.shape[1]), dtype=torch.float32)
    for video, (first, last) in enumerate(itertools.pairwise(bounds)):
        output[video] = weights(last - first, steps, features.device).float() @ features[first:last].float()
    return output


def stretch_loop(before: Tensor, middle: Tensor, after: Tensor, lengths: Tensor, shown: Tensor) -> Tensor:
    """A dense matrix product a sequence and piece, whose steps the host has to know; on any device."""
    videos, steps = shown.shape
    output = before.new_empty((len(before), steps, before.shape[2]), dtype=torch.float32)
    for video, sizes in enumerate(lengths.tolist()):
        first = 0
        for piece, size in zip((before, middle, after), sizes, strict=True):
            share = weights(piece.shape[1], size, piece.device).float() if size else None
            if share is not None:
                output[video, first : first + size] = share @ piece[video].float()
            first += size
    if len(output) == videos:
        return output
    every = torch.arange(videos, device=shown.device)[:, None], shown, torch.arange(steps, device=shown.device)
    return output.unflatten(0, (videos, -1))[every]


def numpy_loop(features: Tensor, offsets: Tensor, steps: int) -> Tensor:
    """A Python loop over output steps, numpy over the rows under the bin."""
    bounds, rows = offsets.tolist(), features.float().numpy()
    output = np.empty((len(bounds) - 1, steps, rows.shape[1]), np.float32)
    for video, (first, last) in enumerate(itertools.pairwise(bounds)):
        matrix = weights(last - first, steps).float().numpy()
        for step in range(steps):
            under = np.flatnonzero(matrix[step])
            output[video, step] = matrix[step, under] @ rows[first + under]
    return torch.from_numpy(output)
