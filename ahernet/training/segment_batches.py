"""Segments of a batch: moments, foreground segments of untrimmed videos, and the background around these.

Cut on the host, in the thread that reads ahead, from rows that are read anyway; no loop over videos or segments.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahernet.device import to_device
from ahernet.training.batches import Batch
from ahernet.video_time import unit_to_rows

FOREGROUND_STREAM = 2  # of random numbers


class SegmentBatch(NamedTuple):
    """Feature rows (R, D) of B segments with offsets (B + 1,), their labels (B,) int64, and the ids of their videos."""

    video_ids: tuple[str, ...]
    rows: Tensor
    offsets: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "SegmentBatch":
        """Return the batch with its tensors on `device`."""
        return SegmentBatch(self.video_ids, *(to_device(tensor, device) for tensor in self[1:]))


class Surroundings(NamedTuple):
    """Real background before and after the foreground segments of a batch, as ragged rows of B videos each.

    `has_before` and `has_after` (B,) bool say where there is any; elsewhere the one row means nothing.
    """

    before: Tensor
    before_offsets: Tensor
    has_before: Tensor
    after: Tensor
    after_offsets: Tensor
    has_after: Tensor

    def to(self, device: torch.device) -> "Surroundings":
        """Return the same with its tensors on `device`."""
        return Surroundings(*(to_device(tensor, device) for tensor in self))


def choose_foregrounds(batch: Batch, seed: int, iteration: int, earlier: int = 0) -> NDArray[np.int64]:
    """Draw one ground truth of every video (rows of the batch's segments, (B,)), each as likely as the others.

    Depends on nothing but the arguments; over the epochs every annotation has its turn. If `batch` is a part of a
    batch, with `earlier` videos before it, what is drawn is that part of what is drawn for the whole.
    """
    offsets = batch.ground_truth.offsets.numpy()
    draws = np.random.default_rng([seed, iteration, FOREGROUND_STREAM]).random(earlier + len(offsets) - 1)[earlier:]
    return offsets[:-1] + np.floor(draws * np.diff(offsets)).astype(np.int64)


def cut_foregrounds(batch: Batch, chosen: NDArray[np.int64]) -> SegmentBatch:
    """Cut one ground truth out of every video of the batch: the rows whose centre lies inside."""
    segments = batch.ground_truth.segments.numpy()[chosen]
    rows, offsets = _cut(batch, segments)
    return SegmentBatch(batch.video_ids, rows, offsets, batch.ground_truth.labels[torch.from_numpy(chosen)])


def cut_surroundings(batch: Batch, chosen: NDArray[np.int64]) -> Surroundings:
    """Cut the background next to the chosen ground truths, up to the next instance or the end of the video."""
    segments = batch.ground_truth.segments.numpy().astype(np.float64)
    owner = np.repeat(np.arange(len(chosen)), np.diff(batch.ground_truth.offsets.numpy()))
    start, end = segments[chosen].T
    left, right = np.zeros(len(chosen)), np.ones(len(chosen))
    earlier, later = segments[:, 0] < start[owner], segments[:, 1] > end[owner]
    np.maximum.at(left, owner[earlier], segments[earlier, 1])
    np.minimum.at(right, owner[later], segments[later, 0])
    before, after = np.stack([np.minimum(left, start), start], 1), np.stack([end, np.maximum(right, end)], 1)
    lengths = np.diff(batch.offsets.numpy())
    has_before, has_after = ((span[:, 1] - span[:, 0]) * lengths >= 1 for span in (before, after))
    return Surroundings(
        *_cut(batch, before), torch.from_numpy(has_before), *_cut(batch, after), torch.from_numpy(has_after)
    )


def _cut(batch: Batch, segments: NDArray[np.floating]) -> tuple[Tensor, Tensor]:
    """Return the rows of one segment (B, 2) in [0, 1] of every video, with their offsets (B + 1,)."""
    starts = batch.offsets.numpy()[:-1]
    first, last = unit_to_rows(segments, np.diff(batch.offsets.numpy()))
    offsets = np.concatenate([[0], np.cumsum(last - first)])
    source = np.repeat(starts + first - offsets[:-1], last - first) + np.arange(offsets[-1])
    return batch.rows[torch.from_numpy(source)], torch.from_numpy(offsets)
