"""Long videos: overlapping windows that go through the network like videos, and one suppression over all of them.

The network looks at a fixed number of steps, so that an action of seconds vanishes in a video of hours. Windows give it
the resolution that it was trained with, whatever the length of the video.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahernet.config import LARGEST_COUNT, InferenceConfig
from ahernet.inference.step import Candidates, Found, suppress

# Candidates, padding included, that one call of suppression is given: a bound of memory, not of what a video may have.
TOGETHER = 1 << 22
# Windows whose candidates are in memory at a time, unless one video has more.
HELD = 1 << 10


@dataclass(frozen=True)
class Windows:
    """W windows of V videos, video by video.

    Attributes:
        video: (W,) int64, which of the videos.
        first: (W,) int64, first row in the video.
        last: (W,) int64, row after the last.
        counts: (V,) int64, windows of each video.
    """

    video: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    counts: NDArray[np.int64]


def split_into_windows(
    lengths: NDArray[np.int64], durations: NDArray[np.float64], window: float, overlap: float
) -> Windows:
    """Cut videos into windows of equal length that cover them, evenly spaced.

    A window has the rows of `window` seconds, at least one, and shares at least `overlap` of them with the next one
    (but for rounding to rows); a video that is not longer is one window.

    Args:
        lengths: (V,) rows of the videos.
        durations: (V,) their seconds.
        window: seconds, above 0.
        overlap: in [0, 1).
    """
    rows = np.clip(np.rint(window * lengths / durations).astype(np.int64), 1, lengths)
    counts = 1 + np.ceil((lengths - rows) / (rows * (1 - overlap)) - 1e-9).astype(np.int64)
    video = np.repeat(np.arange(len(lengths)), counts)
    rank = np.arange(len(video)) - np.repeat(np.cumsum(counts) - counts, counts)
    apart = (lengths - rows) / np.maximum(counts - 1, 1)
    first = np.rint(rank * apart[video]).astype(np.int64)
    return Windows(video, first, first + rows[video], counts)


def windows_together(
    lengths: NDArray[np.int64], durations: NDArray[np.float64], config: InferenceConfig
) -> Iterator[tuple[int, int]]:
    """Yield ranges of videos whose windows together are at most `HELD`; or of one video."""
    counts = split_into_windows(lengths, durations, config.window, config.window_overlap).counts
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        held = ends - (ends[first - 1] if first else 0)
        last = max(int(np.searchsorted(held, HELD, side="right")), first + 1)
        yield first, last
        first = last


def batches_of(windows: Windows, size: int) -> Iterator[slice]:
    """Yield the windows in slices of at most `size`."""
    for first in range(0, len(windows.video), size):
        yield slice(first, min(first + size, len(windows.video)))


def in_video_time(candidates: Candidates, windows: Windows, batch: slice, lengths: NDArray[np.int64]) -> Candidates:
    """Map segments in [0, 1] of the windows of a batch to [0, 1] of their videos."""
    first, last = windows.first[batch], windows.last[batch]
    whole = lengths[windows.video[batch]]
    shift, scale = (torch.from_numpy(x / whole)[:, None, None] for x in (first, last - first))
    segments = candidates.segments
    moved = segments.double() * scale.to(segments.device) + shift.to(segments.device)
    return candidates._replace(segments=moved.float())


def best_of_each(candidates: Candidates, count: int) -> Candidates:
    """Keep the best `count` candidates of every window, ties to the lowest."""
    if not 0 < count < candidates.scores.shape[1]:
        return candidates
    order = candidates.scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    segments = candidates.segments.gather(1, order.unsqueeze(2).expand(-1, -1, 2))
    scores, labels = (x.gather(1, order) for x in (candidates.scores, candidates.labels))
    return Candidates(segments, scores, labels, candidates.finite)


def merge(candidates: Candidates, counts: NDArray[np.int64], config: InferenceConfig) -> Iterator[tuple[slice, Found]]:
    """Suppress among the candidates of all windows of each video.

    What a video keeps depends on its own windows alone: at most `top_k` times their number.

    Args:
        candidates: of W windows in the time of their videos, video by video.
        counts: (V,) windows of each video, W in all.
        config: of suppression; `top_k_before` has been applied to each window.

    Yields:
        Some videos in order, and what was found in them.
    """
    ends = np.cumsum(counts)
    per_window = candidates.scores.shape[1]
    for first, last in _together(counts, max(TOGETHER // per_window, 1)):
        here = counts[first:last]
        start = int(ends[first - 1]) if first else 0
        windows = slice(start, int(ends[last - 1]))
        most = int(here.max())
        video = np.repeat(np.arange(len(here)), here)
        rank = np.arange(len(video)) - np.repeat(np.cumsum(here) - here, here)
        place = torch.from_numpy(video * most + rank).to(candidates.scores.device)
        segments, scores, labels = (
            _padded(x[windows], place, len(here) * most, value).view(len(here), most * per_window, *x.shape[2:])
            for x, value in zip(candidates[:3], (0.0, -torch.inf, 0), strict=True)
        )
        settings = replace(config, top_k=min(config.top_k * most, LARGEST_COUNT), top_k_before=0)
        segments, scores, labels, found = suppress(segments, scores, labels, settings)
        found = found.minimum(torch.from_numpy(config.top_k * here).to(found.device))
        finite = _padded(candidates.finite[windows], place, len(here) * most, True).view(len(here), most).all(dim=1)
        yield slice(first, last), Found(segments, scores, labels, found, finite)


def _together(counts: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of videos whose windows, padded to the most that one of them has, are at most `most`; or of one."""
    first = 0
    while first < len(counts):
        padded = np.maximum.accumulate(counts[first:]) * np.arange(1, len(counts) - first + 1)
        last = first + max(int(np.searchsorted(padded, most, side="right")), 1)
        yield first, last
        first = last


def _padded(values: Tensor, place: Tensor, count: int, value: float) -> Tensor:
    """Return (count, ...) with `values` at `place` and `value` elsewhere."""
    return values.new_full((count, *values.shape[1:]), value).index_copy(0, place, values)
