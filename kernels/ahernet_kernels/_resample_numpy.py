"""The banded matrices of `resample` and `stretch` on a CPU: which rows a step is made of, and by how much."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Band(NamedTuple):
    """A banded matrix of steps and rows, non-zeros row by row as `embedding_bag` takes them."""

    starts: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]

    def transposed(self, columns: int) -> "Band":
        """The `(columns, rows)` matrix."""
        rows = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        order = np.argsort(self.columns, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.columns, minlength=columns))])
        return Band(starts, rows[order], self.weights[order])

    def multiply(self, dense: Tensor) -> Tensor:
        """This matrix times `(columns, D)` fp32 or fp64."""
        if len(self.columns) == 0:
            return dense.new_zeros((len(self.starts) - 1, dense.shape[1]))
        return torch.nn.functional.embedding_bag(
            torch.from_numpy(self.columns),
            dense,
            torch.from_numpy(self.starts),
            mode="sum",
            per_sample_weights=torch.from_numpy(self.weights).to(dense.dtype),
            include_last_offset=True,
        )


def resample_band(offsets: npt.NDArray[np.int64], steps: int) -> Band:
    """Which of all rows each output step of `resample` is made of, and by how much."""
    step = np.tile(np.arange(steps), len(offsets) - 1)
    rows, first_row = (np.repeat(values, steps) for values in (np.diff(offsets), offsets[:-1]))
    return _band(step, np.full_like(step, steps), rows, first_row)


def stretch_band(lengths: npt.NDArray[np.int64], shown: npt.NDArray[np.int64], rows: list[int]) -> Band:
    """Which of the joined rows each step of `stretch` is made of.

    Args:
        lengths: (B * M, P) steps of the pieces of each sequence.
        shown: (B, T) which of the M sequences of its video each step is of.
        rows: of each piece.

    Raises:
        ValueError: lengths do not add up to T, or one is negative; a video has no such sequence.
    """
    videos, steps = shown.shape
    if (lengths.sum(axis=1) != steps).any() or (lengths < 0).any():
        raise ValueError(f"lengths: expected numbers >= 0 that add up to {steps} in every sequence")
    sequences = len(lengths) // max(videos, 1)
    if (shown < 0).any() or (shown >= sequences).any():
        raise ValueError(f"shown: expected numbers from 0 to {sequences - 1}")
    sequence, piece, step = _places(lengths, shown)
    first_row = sum(rows) * sequence + np.cumsum([0, *rows[:-1]])[piece]
    return _band(step, lengths[sequence, piece], np.array(rows)[piece], first_row)


def stretch_backward_band(lengths: npt.NDArray[np.int64], shown: npt.NDArray[np.int64], piece: int, rows: int) -> Band:
    """Which of all steps each row of one piece is shown in, and by how much; as in `stretch_band`."""
    sequence, pieces, step = _places(lengths, shown)
    at = np.flatnonzero(pieces == piece)
    sequence, step = sequence[at], step[at]
    band = _band(step, lengths[sequence, piece], np.full_like(step, rows), rows * sequence)
    by_row = band.transposed(rows * len(lengths))
    return by_row._replace(columns=at[by_row.columns])


def _places(
    lengths: npt.NDArray[np.int64], shown: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The sequence of all that each step (B * T,) shows, the piece of that, and the step of the piece."""
    videos, steps = shown.shape
    sequence = (len(lengths) // max(videos, 1) * np.arange(videos)[:, None] + shown).ravel()
    ends = lengths.cumsum(axis=1)
    step = np.tile(np.arange(steps), videos)
    piece = (step[:, None] >= ends[sequence]).sum(axis=1)
    return sequence, piece, step - (ends - lengths)[sequence, piece]


def _band(
    step: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    first_row: npt.NDArray[np.int64],
) -> Band:
    """Of what each step is made: its place in its piece, the steps and rows of that, and the first of these rows."""
    first = np.maximum(2 * step * rows - steps, 0) // (2 * steps)
    last = np.minimum((2 * (step + 1) * rows - steps) // (2 * steps) + 1, rows - 1)
    counts = last - first + 1
    starts = np.concatenate([[0], np.cumsum(counts)])
    bin_of = np.repeat(np.arange(len(step)), counts)
    row = np.arange(starts[-1]) - (starts[:-1] - first)[bin_of]
    weights = _bin_weight_numpy(step[bin_of], row, rows[bin_of], steps[bin_of])
    # The row at an edge of a step weighs nothing, and NaN or infinity times nothing would be NaN.
    weighs = weights != 0
    starts = np.concatenate([[0], np.cumsum(weighs)])[starts]
    return Band(starts, (row + first_row[bin_of])[weighs], weights[weighs])


def _bin_weight_numpy(
    step: npt.NDArray[np.int64], row: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    left, right = step * rows / steps - row - 0.5, (step + 1) * rows / steps - row - 0.5
    is_first, is_last = row == 0, row == rows - 1
    a, b = np.where(is_first, left, np.maximum(left, -1)), np.minimum(right, 0)
    rising = np.maximum(b - a, 0) * np.where(is_first, 1, 1 + (a + b) / 2)
    a, b = np.maximum(left, 0), np.where(is_last, right, np.minimum(right, 1))
    falling = np.maximum(b - a, 0) * np.where(is_last, 1, 1 - (a + b) / 2)
    weights: npt.NDArray[np.float64] = (rising + falling) * (steps / rows)
    return weights
