"""The banded matrix of `resample` on a CPU: which rows an output step is made of, and by how much."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Band(NamedTuple):
    """The banded `(B * steps, R)` matrix of `resample`, non-zeros row by row as `embedding_bag` takes them."""

    starts: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def transposed(self, columns: int) -> "Band":
        """The `(columns, rows)` matrix."""
        rows = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        order = np.argsort(self.columns, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.columns, minlength=columns))])
        return Band(starts, rows[order], self.weights[order])

    def multiply(self, dense: Tensor) -> Tensor:
        """This matrix times `(columns, D)` fp32."""
        if len(self.columns) == 0:
            return dense.new_zeros((len(self.starts) - 1, dense.shape[1]))
        return torch.nn.functional.embedding_bag(
            torch.from_numpy(self.columns),
            dense,
            torch.from_numpy(self.starts),
            mode="sum",
            per_sample_weights=torch.from_numpy(self.weights),
            include_last_offset=True,
        )


def resample_band(offsets: npt.NDArray[np.int64], steps: int) -> Band:
    """Which rows each output step is made of, and by how much."""
    rows = np.repeat(np.diff(offsets), steps)
    step = np.tile(np.arange(steps), len(offsets) - 1)
    first = np.maximum(2 * step * rows - steps, 0) // (2 * steps)
    last = np.minimum((2 * (step + 1) * rows - steps) // (2 * steps) + 1, rows - 1)
    counts = last - first + 1
    starts = np.concatenate([[0], np.cumsum(counts)])
    bin_of = np.repeat(np.arange(len(rows)), counts)
    row = np.arange(starts[-1]) - (starts[:-1] - first)[bin_of]
    columns = row + np.repeat(offsets[:-1], steps)[bin_of]
    return Band(starts, columns, _bin_weight_numpy(step[bin_of], row, rows[bin_of], steps))


def _bin_weight_numpy(
    step: npt.NDArray[np.int64], row: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], steps: int
) -> npt.NDArray[np.float32]:
    left, right = step * rows / steps - row - 0.5, (step + 1) * rows / steps - row - 0.5
    is_first, is_last = row == 0, row == rows - 1
    a, b = np.where(is_first, left, np.maximum(left, -1)), np.minimum(right, 0)
    rising = np.maximum(b - a, 0) * np.where(is_first, 1, 1 + (a + b) / 2)
    a, b = np.maximum(left, 0), np.where(is_last, right, np.minimum(right, 1))
    falling = np.maximum(b - a, 0) * np.where(is_last, 1, 1 - (a + b) / 2)
    return ((rising + falling) * (steps / rows)).astype(np.float32)
