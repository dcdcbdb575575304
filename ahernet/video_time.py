"""Seconds and positions in the video: the one place where they convert."""

import numpy as np
from numpy.typing import NDArray


def seconds_to_unit(segments: NDArray[np.floating], durations: NDArray[np.floating] | float) -> NDArray[np.float64]:
    """Map segments in seconds (..., 2) to [0, 1] of videos whose durations broadcast to (...).

    What lies outside the video is cut off, so that a segment wholly outside becomes empty.
    """
    durations = np.asarray(durations, np.float64)[..., None]
    return np.clip(np.asarray(segments, np.float64) / durations, 0.0, 1.0)


def unit_to_seconds(segments: NDArray[np.floating], durations: NDArray[np.floating] | float) -> NDArray[np.float64]:
    """Map segments in [0, 1] of the video (..., 2) to seconds; durations broadcast to (...)."""
    return np.asarray(segments, np.float64) * np.asarray(durations, np.float64)[..., None]
