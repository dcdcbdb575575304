"""Features that another program wrote, as an import sees them: named videos, read one at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# What others call the features of a video inside its file or group.
FEATURE_NAMES = ("feats", "features", "c3d_features")


class ForeignFeatures(NamedTuple):
    """What one video holds: an array that should be (rows, dimension), and its frames, 0 where unknown."""

    rows: np.ndarray
    frames: int = 0


@dataclass(frozen=True, slots=True)  # there may be hundreds of thousands
class ForeignVideo:
    """One video of a foreign source.

    Attributes:
        name: what the source calls it.
        place: where it is, for messages.
        read: returns its features; raises UserError where they are damaged or no array.
        version: returns what tells whether the file that holds it is still the same (`file_version`).
    """

    name: str
    place: str
    read: Callable[[], ForeignFeatures]
    version: Callable[[], str]


@dataclass(frozen=True)
class ForeignSource:
    """A file or folder of features that another program wrote.

    Attributes:
        kind: what it is, for people.
        videos: in the order in which they are imported.
        ignored: files in it that are no features by their suffix.
        clip_stride: frames from one row to the next as the source states, 0 where it does not.
        counts_frames: whether it says how many frames a video has.
        version: of the file that holds all videos, empty where each has a file of its own.
    """

    kind: str
    videos: Sequence[ForeignVideo]
    ignored: int = 0
    clip_stride: int = 0
    counts_frames: bool = False
    version: str = ""


def choose_features(names: Sequence[str]) -> str | None:
    """Return which of several arrays of one video are its features: the only one, or the only known name."""
    known = list(names) if len(names) == 1 else [name for name in FEATURE_NAMES if name in names]
    return known[0] if len(known) == 1 else None
