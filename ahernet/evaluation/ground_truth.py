"""What every measure needs: ground truth as columns, which videos pair, and which rows belong together."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ahernet.data.annotations import Annotations, match_video_ids
from ahernet.data.detections import Detections
from ahernet.errors import UserError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairedVideos:
    """The videos of a detection file beside those of the annotations.

    Attributes:
        row: for each video of the detections its row in the annotations, -1 if it has none.
        scored: annotated videos that the detections list, in the order of the annotations.
        missing: annotated videos that the detections do not list.
        unknown: listed videos without annotations.
    """

    row: Integers
    scored: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]


def pair_videos(detections: Detections, annotations: Annotations) -> PairedVideos:
    """Pair the video ids of both, with or without the prefix `v_`."""
    own_ids = match_video_ids(list(annotations.videos), detections.video_ids)
    row_of = {own_ids[name]: row for row, name in enumerate(annotations.videos) if name in own_ids}
    return PairedVideos(
        row=np.array([row_of.get(name, -1) for name in detections.video_ids], dtype=np.int64),
        scored=tuple(video_id for video_id in annotations.videos if video_id in own_ids),
        missing=tuple(video_id for video_id in annotations.videos if video_id not in own_ids),
        unknown=tuple(video_id for video_id in detections.video_ids if video_id not in row_of),
    )


def truth_columns(annotations: Annotations) -> tuple[Integers, Floats]:
    """Return the row of the video (G,), ascending, and the segment (G, 2) of every ground truth.

    Raises:
        UserError: no ground truth at all.
    """
    videos = list(annotations.videos.values())
    counts = [len(video.labels) for video in videos]
    if not sum(counts):
        raise UserError(f"{annotations.source}: no annotated instance to score against, expected at least one")
    segments = np.concatenate([np.asarray(video.segments, np.float64).reshape(-1, 2) for video in videos])
    return np.repeat(np.arange(len(videos)), counts), segments


def checked_thresholds(thresholds: npt.ArrayLike) -> Floats:
    """Return tiou thresholds as an array.

    Raises:
        ValueError: they are not a list of numbers in (0, 1].
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.ndim != 1 or not limits.size or not ((limits > 0) & (limits <= 1)).all():
        raise ValueError(f"thresholds: expected a list of numbers in (0, 1], got {thresholds!r}")
    return limits


def rows_of_one_key(key: Integers, sorted_key: Integers, at_once: int) -> Iterator[tuple[Integers, Integers]]:
    """Yield all pairs (row of `key`, row of `sorted_key`) of equal keys, ordered by both, in blocks.

    A block holds about `at_once` pairs: the rows of `key` are never split.
    """
    first = np.searchsorted(sorted_key, key, side="left")
    count = np.searchsorted(sorted_key, key, side="right") - first
    block = np.cumsum(count) // at_once
    bounds = np.flatnonzero(np.diff(block, prepend=-1, append=-1))
    for start, stop in pairwise(bounds.tolist()):
        repeats = count[start:stop]
        row = np.repeat(np.arange(start, stop), repeats)
        within = np.arange(len(row)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        yield row, first[row] + within
