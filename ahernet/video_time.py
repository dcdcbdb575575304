"""Seconds and positions in the video: the one place where they convert."""

import numpy as np
from numpy.typing import NDArray


def known_duration(*seconds: float) -> float | None:
    """Return the first duration of a video that is known, a finite number above 0; None if none is.

    Archives go before annotations: theirs is that of the features.
    """
    return next((float(duration) for duration in seconds if 0 < duration < np.inf), None)


def seconds_to_unit(segments: NDArray[np.floating], durations: NDArray[np.floating] | float) -> NDArray[np.float64]:
    """Map segments in seconds (..., 2) to [0, 1] of videos whose durations broadcast to (...).

    What lies outside the video is cut off, so that a segment wholly outside becomes empty.
    """
    durations = np.asarray(durations, np.float64)[..., None]
    return np.clip(np.asarray(segments, np.float64) / durations, 0.0, 1.0)


def unit_to_seconds(segments: NDArray[np.floating], durations: NDArray[np.floating] | float) -> NDArray[np.float64]:
    """Map segments in [0, 1] of the video (..., 2) to seconds; durations broadcast to (...)."""
    return np.asarray(segments, np.float64) * np.asarray(durations, np.float64)[..., None]


def unit_to_rows(
    segments: NDArray[np.floating], lengths: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the feature rows of segments in [0, 1] of the video (N, 2): those whose centre lies inside.

    Row i of a video of L rows is centred at (i + 0.5) / L. A segment that holds no centre gets the row that its
    middle lies in, so that none is empty.

    Args:
        segments: (N, 2) start, end, in [0, 1].
        lengths: (N,) rows of the video of each.

    Returns:
        (N,) first row and (N,) row after the last.
    """
    edges = np.asarray(segments, np.float64) * np.asarray(lengths)[:, None]
    first, last = np.ceil(edges - 0.5).astype(np.int64).T
    middle = np.clip(np.floor(edges.mean(axis=1)).astype(np.int64), 0, lengths - 1)
    empty = last <= first
    return np.where(empty, middle, first), np.where(empty, middle + 1, last)
