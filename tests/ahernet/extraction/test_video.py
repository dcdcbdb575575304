import math

import pytest

from ahernet.errors import UserError
from ahernet.extraction.video import duration_of, remarks_on


@pytest.mark.parametrize(
    ("frames", "first", "last", "rate", "seconds"),
    [
        (50, 0.0, 1.96, 25.0, 2.0),
        (50, 1.4, 3.36, 25.0, 2.0),  # transport streams begin late
        (50, 0.0, 1.96, 90_000.0, 2.0),  # the header talks nonsense
        (50, 0.0, 1.96, math.nan, 2.0),
        (3, 0.0, 9.0, 1 / 3, 13.5),  # slides
        (1, 0.0, 0.0, 25.0, 0.04),
        (50, math.inf, -math.inf, 25.0, 2.0),  # no frame says when it is presented
        (50, 7.0, 7.0, 25.0, 2.0),  # all say the same
    ],
)
def test_a_video_lasts_as_long_as_its_frames_are_presented(frames, first, last, rate, seconds):
    assert duration_of(frames, last - first, 1, rate) == pytest.approx(seconds)


def test_each_stretch_of_times_has_a_last_frame():
    assert duration_of(100, 2 * 1.96, 2, 25.0) == pytest.approx(4.0)
    assert duration_of(2, 0.0, 2, 25.0) == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("frames", "last", "rate"),
    [(100, 0.001, 25.0), (100, 0.0, 90_000.0), (100, 0.0, math.nan), (100, 0.0, 0.0), (1, math.nan, math.nan)],
)
def test_times_that_make_no_sense_are_refused(frames, last, rate):
    with pytest.raises(UserError, match=r"no usable times|neither when its frames are presented"):
        duration_of(frames, last, 1, rate)


class Declared:
    def __init__(self, frames=0, duration=math.nan, rate=math.nan, damaged=0):
        self.declared_frames, self.declared_duration, self.declared_rate = frames, duration, rate
        self.damaged = damaged


@pytest.mark.parametrize(
    ("declared", "remarks"),
    [
        (Declared(), ()),
        (Declared(frames=252, duration=10.1, rate=25.0), ()),
        (Declared(frames=500, duration=20.0, rate=25.0), ("251 of 500 frames",)),
        (Declared(duration=20.0, rate=25.0), ("10.0 of 20.0 s",)),
        (Declared(duration=10.2), ()),
        (Declared(frames=251, damaged=3), ("3 damaged frames or packets",)),
        (Declared(rate=12.0), ("25 frames per second by the times of presentation, 12 by the header",)),
    ],
)
def test_what_is_missing_is_said(declared, remarks):
    assert remarks_on(declared, 251, 10.04) == remarks
