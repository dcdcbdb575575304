"""What a decoder of videos gives: frames in the order of presentation, and what the file says about itself.

Another decoder plugs in here: a `Decoder` is anything that opens a file as an `OpenVideo`. The one in use is in
`pyav_decoder`.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ahernet.errors import UserError

MOST_FRAMES_A_SECOND = 1000.0
NORMAL_SHORTAGE = 1  # containers that count one frame too many are common
NORMAL_SECONDS, NORMAL_SHARE = 0.25, 0.02  # as is sound that goes on after the last frame


@dataclass(frozen=True)
class Framing:
    """How frames are cut: the shorter side becomes `resize` pixels, then a square of `side` is taken of the middle."""

    resize: int
    side: int


@dataclass(frozen=True)
class Frame:
    """One picture: `time` in seconds, NaN where the file does not say; `pixels` (side, side, 3) uint8 RGB."""

    time: float
    pixels: NDArray[np.uint8]


class ReadingFailed(Exception):
    """The system could not read a file: nothing is known of the video, which may be sound."""


class OpenVideo(Protocol):
    """A video that is being decoded.

    Attributes:
        declared_frames: how many the file says it has, 0 where it does not say.
        declared_duration: seconds that it says it lasts, NaN where it does not.
        declared_rate: frames per second that it says, NaN where it does not.
        declared_start: time in seconds at which it begins, sound included, NaN where it does not say.
        damaged: packets and frames so far that could not be decoded, or not wholly.
    """

    declared_frames: int
    declared_duration: float
    declared_rate: float
    declared_start: float
    damaged: int

    def frames(self) -> Iterator[Frame]:
        """Yield every frame once, in the order of presentation; a file that breaks off ends the frames.

        Raises:
            ReadingFailed: the system could not read on, which is no fault of the file.
        """


class Decoder(Protocol):
    """Opens files; `name` is what archives remember of it."""

    name: str

    def open(self, path: Path, framing: Framing, *, careful: bool = False) -> AbstractContextManager[OpenVideo]:
        """Open a file; with `careful` the frames of damaged ones, too, are the same every time, at whatever cost.

        Raises:
            UserError: it is no video. The message does not name it.
            ReadingFailed: as `OpenVideo.frames`.
        """


def duration_of(frames: int, span: float, stretches: int, rate: float) -> float:
    """Return how long a video lasts, in seconds.

    Args:
        frames: decoded.
        span: from the first to the last by the times of presentation; not above 0 or NaN where the file does not say.
            Where times jump back, of all stretches together.
        stretches: between jumps back, 1 in a sound file.
        rate: frames per second by the header, for files that do not say when a frame is presented.

    Returns:
        The span, and one mean interval for the last frame of each stretch.

    Raises:
        UserError: neither times nor rate make sense. The message does not name the video.
    """
    timed = span > 0 and frames > stretches
    if not timed and not rate > 0:
        raise UserError("says neither when its frames are presented nor how many there are a second")
    duration = span * frames / (frames - stretches) if timed else frames / rate
    if not 0 < duration < math.inf or frames / duration > MOST_FRAMES_A_SECOND:
        raise UserError(
            f"{frames:,} frames in {span:g} s at {rate:g} frames per second by its own account: "
            "no usable times, rewrite the file with its true frame rate"
        )
    return duration


def remarks_on(video: OpenVideo, frames: int, duration: float) -> tuple[str, ...]:
    """Say what a decoded video lacks of what it promised; nothing if all is well."""
    remarks = []
    if video.declared_frames - frames > NORMAL_SHORTAGE:
        remarks.append(f"{frames:,} of {video.declared_frames:,} frames")
    elif video.declared_duration - duration > max(NORMAL_SECONDS, NORMAL_SHARE * duration):
        remarks.append(f"{duration:.1f} of {video.declared_duration:.1f} s")
    if video.damaged:
        remarks.append(f"{video.damaged:,} damaged frames or packets")
    rate = frames / duration
    if not math.isnan(video.declared_rate) and not 0.5 < video.declared_rate / rate < 2:
        remarks.append(
            f"{rate:.4g} frames per second by the times of presentation, {video.declared_rate:.4g} by the header"
        )
    return tuple(remarks)
