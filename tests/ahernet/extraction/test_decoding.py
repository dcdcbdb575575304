import itertools
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_videos import brightness, write_video

from ahernet.errors import UserError
from ahernet.extraction.decoding import (
    ClipDecoder,
    DecodedClip,
    DecodedVideo,
    FailedVideo,
    RestartedVideo,
    decode_ahead,
)
from ahernet.extraction.pyav_decoder import PyAVDecoder
from ahernet.extraction.video import Frame, Framing, ReadingFailed

FRAMING = Framing(20, 16)


class Scripted:
    """An open video of another make: the file's name says how many frames it has, and after which it fails."""

    declared_duration = declared_rate = declared_start = float("nan")
    damaged = 0

    def __init__(self, path: Path) -> None:
        words = path.stem.split("-")
        self.count = self.declared_frames = int(words[0])
        self.fails_after = int(words[1]) if len(words) > 1 else None

    def frames(self):
        for number in range(self.count):
            if number == self.fails_after:
                raise UserError("broken")
            yield Frame(number / 10, np.full((16, 16, 3), number, np.uint8))


class ScriptedDecoder:
    name = "scripted"

    @contextmanager
    def open(self, path: Path, framing: Framing, *, careful: bool = False):
        yield Scripted(path)


def clips_by(decoder, stride=8) -> ClipDecoder:
    return ClipDecoder(decoder, FRAMING, 16, stride)


def test_a_video_gives_its_clips_and_then_its_end(tmp_path):
    events = list(clips_by(PyAVDecoder())("v", write_video(tmp_path / "v.mp4", 30)))
    assert [event.number for event in events[:-1]] == [0, 1, 2]
    for clip in events[:-1]:
        levels = [brightness(min(clip.number * 8 + k, 29)) for k in range(16)]
        np.testing.assert_allclose(clip.frames.mean((1, 2, 3)), levels, atol=2.4)
    end = events[-1]
    assert (end.video_id, end.clips, end.remarks) == ("v", 3, ())
    assert end.duration == pytest.approx(1.2)


def test_another_decoder_plugs_in_and_failures_end_a_video():
    events = list(clips_by(ScriptedDecoder())("v", Path("40-33.x")))
    assert [type(event) for event in events] == [DecodedClip, DecodedClip, DecodedClip, FailedVideo]
    assert events[-1] == FailedVideo("v", "broken")
    assert list(clips_by(ScriptedDecoder())("v", Path("0.x"))) == [
        FailedVideo("v", "no frame of it can be decoded, expected a video")
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_give_every_event_once_and_those_of_a_video_in_order(workers):
    videos = [(f"v{k}", Path(f"{10 * k}{'-5' if k == 4 else ''}.x")) for k in range(1, 9)]
    with decode_ahead(clips_by(ScriptedDecoder()), videos, workers, ahead=2) as events:
        got = list(events)
    expected = {video_id: list(clips_by(ScriptedDecoder())(video_id, path)) for video_id, path in videos}
    for video_id, wanted in expected.items():
        mine = [event for event in got if event.video_id == video_id]
        assert [(type(event), getattr(event, "number", None)) for event in mine] == [
            (type(event), getattr(event, "number", None)) for event in wanted
        ]
    assert Counter(type(event) for event in got)[DecodedVideo] == 7


def test_no_more_is_decoded_than_may_wait():
    decoded = []

    def decode(video_id, path):
        for number in range(100):
            decoded.append(number)
            yield DecodedClip(video_id, number, np.zeros(0, np.uint8))

    with decode_ahead(decode, [("v", Path("v"))], workers=1, ahead=3) as events:
        next(events)
        time.sleep(0.3)
        assert len(decoded) <= 1 + 3 + 1  # taken, waiting, in hand


def test_leaving_early_stops_the_threads_and_unforeseen_errors_come_through():
    def decode(video_id, path):
        yield from clips_by(ScriptedDecoder())(video_id, path)
        if video_id == "bad":
            raise ZeroDivisionError

    before = threading.active_count()
    with decode_ahead(decode, ((str(k), Path("200.x")) for k in range(1000)), workers=2, ahead=2) as events:
        next(events)
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError), decode_ahead(decode, [("bad", Path("20.x"))], workers=2, ahead=2) as events:
        list(events)
    assert threading.active_count() == before


class Timed:
    """Decodes to grey frames that are presented at these times."""

    name = "timed"

    def __init__(self, times, rate=float("nan"), start=float("nan")):
        self.times, self.declared_rate, self.declared_start = times, rate, start
        self.declared_frames, self.declared_duration, self.damaged = 0, float("nan"), 0

    @contextmanager
    def open(self, path, framing, *, careful=False):
        yield self

    def frames(self):
        for time_ in self.times:
            yield Frame(time_, np.zeros((16, 16, 3), np.uint8))


def end_of(times, rate=float("nan"), start=float("nan")):
    return list(clips_by(Timed(times, rate, start))("v", Path("v.mp4")))[-1]


def seconds(count, start=0.0):
    return [start + k / 25 for k in range(count)]


@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_recordings_behind_one_another_whose_times_begin_anew_last_as_long_as_all(pieces):
    end = end_of(seconds(50) * pieces)
    assert end.duration == pytest.approx(2.0 * pieces)
    assert f"times jump back {pieces - 1} times" in end.remarks[0]


def test_times_that_jump_back_by_hours_count_no_hours():
    end = end_of(seconds(50, 36_000.0) + seconds(50, -5000.0))
    assert end.duration == pytest.approx(4.0)


def test_frames_that_change_places_are_no_jump():
    times = seconds(51)
    times[10:20] = times[10:20][::-1]
    end = end_of(times)
    assert end.duration == pytest.approx(51 / 25)
    assert end.remarks == ()


def test_a_pause_between_frames_is_said():
    end = end_of(seconds(50) + seconds(50, 7200.0))
    assert end.duration == pytest.approx(7202.0 * 100 / 99, rel=1e-3)
    assert end.remarks == ("no frame for 7,198.0 s, which the rows do not show",)
    assert end_of([5.0 * k for k in range(40)]).remarks == ()  # slides


def test_frames_that_come_unevenly_are_said_by_how_far_rows_are_from_their_time():
    slow, fast = [k / 2 for k in range(20)], [10.0 + k / 13 for k in range(26)]
    (remark,) = end_of(slow + fast).remarks
    assert remark == "frames come unevenly: rows are up to 4.7 s from their time"
    assert end_of([k / 25 + 0.4 * (k % 2) for k in range(100)]).remarks == ()


def test_a_picture_that_begins_after_the_sound_is_said():
    assert end_of(seconds(50, 10.0), start=0.0).remarks == (
        "the picture begins 10.0 s after the sound: all rows are that much too early",
    )
    assert end_of(seconds(50, 10.0), start=9.9).remarks == end_of(seconds(50, 10.0)).remarks == ()


class Unlucky:
    """Decodes to grey frames, but something goes wrong after some, the first times that it is opened."""

    name = "unlucky"
    declared_frames, declared_duration, declared_rate, declared_start = 30, 3.0, 10.0, 0.0

    def __init__(self, problem, times):
        self.problem, self.times, self.care, self.damaged = problem, times, [], 0

    @contextmanager
    def open(self, path, framing, *, careful=False):
        self.care.append(careful)
        self.damaged = 0
        yield self

    def frames(self):
        for number in range(30):
            if number == 20 and len(self.care) <= self.times:
                self.damaged += self.problem == "damage"
                if self.problem == "system":
                    raise ReadingFailed("Input/output error")
            yield Frame(number / 10, np.full((16, 16, 3), 100 * len(self.care) + number, np.uint8))


@pytest.mark.parametrize("problem", ["damage", "system"])
def test_a_damaged_or_unreadable_video_is_begun_once_more_with_care(problem):
    decoder = Unlucky(problem, times=1)
    events = list(clips_by(decoder)("v", Path("v.mp4")))
    assert decoder.care == [False, True]
    restart = events.index(RestartedVideo("v", 1))
    assert [clip.attempt for clip in events[:restart]] == [0]
    assert [(clip.number, clip.attempt) for clip in events[restart + 1 : -1]] == [(0, 1), (1, 1), (2, 1)]
    assert events[-1] == DecodedVideo("v", 3, pytest.approx(3.0), ())


def test_damage_that_stays_is_kept_and_said():
    end = list(clips_by(Unlucky("damage", times=2))("v", Path("v.mp4")))[-1]
    assert end.remarks == ("1 damaged frames or packets",)


def test_a_system_that_fails_to_read_twice_is_no_fault_of_the_video():
    with pytest.raises(UserError, match=r"^a/v\.mp4: the system fails to read it \(Input/output error\)"):
        list(clips_by(Unlucky("system", times=2))("v", Path("a/v.mp4")))


def test_threads_that_cannot_start_are_an_error_and_leave_none_behind(monkeypatch):
    start, before = threading.Thread.start, threading.active_count()

    def limited(thread):
        if threading.active_count() >= before + 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with (
        pytest.raises(UserError, match=r"cannot start 5 threads .* fewer --workers"),
        decode_ahead(clips_by(ScriptedDecoder()), [("v", Path("40.mp4"))], workers=5, ahead=2),
    ):
        pass
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("times", "rate"),
    [
        ([float("nan")] * 40, 0.0),
        ([float("nan")] * 40, float("nan")),
        ([float("nan")] * 40, 1e9),
        ([float("nan")] * 40, float("inf")),
        ([float("nan")] * 40, -25.0),
        ([1.0] * 40, 1e9),
        ([k * 1e-9 for k in range(40)], 25.0),
    ],
)
def test_times_and_rates_that_cannot_be_are_one_reason(times, rate):
    end = end_of(times, rate)
    assert isinstance(end, FailedVideo)
    assert "no usable times" in end.reason or "says neither" in end.reason


def test_a_video_without_end_is_refused_in_bounded_memory(monkeypatch):
    monkeypatch.setattr("ahernet.extraction.decoding.MOST_CLIPS", 100)
    *clips, end = clips_by(Timed(k / 25 for k in itertools.count()))("v", Path("v.mp4"))
    assert len(clips) == 100
    assert end == FailedVideo("v", "has more than 100 clips; cut it into parts, or give a larger --clip-stride")
