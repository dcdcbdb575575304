"""The clips of a video: `clip_length` frames, the next one `stride` frames later, every frame decoded once.

Clips begin at frame 0. The last one is filled up with the video's last frame, so that no frame is left out, and a
video shorter than one clip still gives one.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


def clips_of(frames: Iterable[NDArray[np.uint8]], clip_length: int, stride: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the clips (clip_length, H, W, 3) of frames (H, W, 3).

    Raises:
        ValueError: `clip_length` or `stride` is below 1.
    """
    if clip_length < 1 or stride < 1:
        raise ValueError(f"clip_length, stride: expected at least 1, got {clip_length} and {stride}")
    recent: deque[NDArray[np.uint8]] = deque(maxlen=clip_length)
    seen = start = 0
    for frame in frames:
        recent.append(frame)
        seen += 1
        if seen == start + clip_length:
            yield np.stack(list(recent))
            start += stride
    # Without overlap nothing is left where the last clip ended; else something is if it ended before the last frame.
    if start < seen and (start == 0 or seen > start - stride + clip_length):
        rest = list(recent)[start - seen :]
        yield np.stack(rest + rest[-1:] * (clip_length - len(rest)))


def clip_count(frames: int, clip_length: int, stride: int) -> int:
    """Return how many clips `clips_of` yields of so many frames."""
    if frames <= clip_length:
        return min(frames, 1)
    return 1 + -(-(frames - clip_length) // stride) if stride <= clip_length else -(-frames // stride)
