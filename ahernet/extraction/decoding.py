"""Several videos decoded at a time by threads, as one stream of clips of bounded length."""

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahernet.errors import UserError
from ahernet.extraction.clips import clips_of
from ahernet.extraction.video import Decoder, Framing, OpenVideo, duration_of, remarks_on

MOST_CLIPS = 1 << 18  # of a video, whose features are in memory until it ends: 23 hours at 25 frames a second
LEAST_GAP, GAP_FRAMES = 2.0, 10  # seconds, and mean intervals: from there on a pause between frames is worth a remark
JUMP_BACK = 1.0  # seconds; frames of damaged files change places by less
WAIT = 0.1  # seconds, between two looks at whether anybody still wants the clips


@dataclass(frozen=True)
class DecodedClip:
    """Clip `number` of a video: frames (clip_length, side, side, 3) uint8 RGB."""

    video_id: str
    number: int
    frames: NDArray[np.uint8]


@dataclass(frozen=True)
class DecodedVideo:
    """The end of a video: how many clips it gave, its seconds, and what it lacks of what it promised."""

    video_id: str
    clips: int
    duration: float
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class FailedVideo:
    """A video that is of no use, and why; `reason` does not name it."""

    video_id: str
    reason: str


Event = DecodedClip | DecodedVideo | FailedVideo


@dataclass(frozen=True)
class ClipDecoder:
    """How videos become clips; calling it with an id and a file decodes one.

    Attributes:
        decoder: opens files.
        framing: of the frames.
        clip_length: frames of a clip.
        stride: frames from clip to clip.
    """

    decoder: Decoder
    framing: Framing
    clip_length: int
    stride: int

    def __call__(self, video_id: str, path: Path) -> Iterator[Event]:
        """Yield the clips of a video, then its end; a failure at any point, instead of the rest."""
        number = -1
        try:
            with self.decoder.open(path, self.framing) as video:
                clock = _Clock(video)
                for number, frames in enumerate(clips_of(clock.pictures(), self.clip_length, self.stride)):
                    if number >= MOST_CLIPS:
                        raise UserError(
                            f"has more than {MOST_CLIPS:,} clips; cut it into parts, or give a larger --clip-stride"
                        )
                    yield DecodedClip(video_id, number, frames)
                if not clock.frames:
                    raise UserError("no frame of it can be decoded")
                duration = duration_of(clock.frames, clock.span, clock.stretches, video.declared_rate)
                remarks = (*remarks_on(video, clock.frames, duration), *clock.remarks(duration))
        except UserError as error:
            yield FailedVideo(video_id, str(error))
            return
        yield DecodedVideo(video_id, number + 1, duration, remarks)


@contextmanager
def decode_ahead(
    decode: Callable[[str, Path], Iterable[Event]], videos: Iterable[tuple[str, Path]], workers: int, ahead: int
) -> Iterator[Iterator[Event]]:
    """Give an iterator over the events of all videos, decoded by threads, `workers` videos at a time.

    The events of one video come in order, those of different videos mixed. At most `ahead` events wait to be taken.
    Leaving the context stops the threads. What `decode` raises is raised where it would have come next.
    """
    events: queue.Queue[Event | BaseException | None] = queue.Queue(ahead)
    unwanted = threading.Event()
    waiting = iter(videos)
    turn = threading.Lock()

    def put(event: Event | BaseException | None) -> None:
        while not unwanted.is_set():
            with suppress(queue.Full):
                events.put(event, timeout=WAIT)
                return
        raise _UnwantedError

    def work() -> None:
        with suppress(_UnwantedError):
            try:
                while True:
                    with turn:
                        video = next(waiting, None)
                    if video is None:
                        break
                    for event in decode(*video):
                        put(event)
                put(None)
            except _UnwantedError:
                raise
            except BaseException as error:  # it is raised again by the thread that takes the events
                put(error)

    threads = [threading.Thread(target=work, name=f"ahernet-decode-{k}") for k in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield _taken(events, workers)
    finally:
        unwanted.set()
        for thread in threads:
            thread.join()


class _UnwantedError(Exception):
    """Nobody takes the events any longer."""


def _taken(events: "queue.Queue[Event | BaseException | None]", workers: int) -> Iterator[Event]:
    while workers:
        event = events.get()
        if event is None:
            workers -= 1
        elif isinstance(event, BaseException):
            raise event
        else:
            yield event


class _Clock:
    """Counts frames as they pass, and notes when they are presented.

    Times that jump back begin a new stretch, as where recordings were put behind one another.
    """

    def __init__(self, video: OpenVideo) -> None:
        self._video = video
        self._first = math.inf
        self._last = -math.inf
        self._earlier = 0.0
        self._gap = 0.0
        self.frames = 0
        self.stretches = 1

    @property
    def span(self) -> float:
        """Seconds from the first frame to the last, of all stretches; not above 0 where the file does not say."""
        return self._earlier + (self._last - self._first)

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of the frames."""
        for frame in self._video.frames():
            self.frames += 1
            if not math.isnan(frame.time):
                self._note(frame.time)
            yield frame.pixels

    def remarks(self, duration: float) -> tuple[str, ...]:
        """Say where times are not even, so that rows are not where they should be."""
        remarks = []
        if self.stretches > 1:
            remarks.append(f"times jump back {self.stretches - 1:,} times, taken for recordings behind one another")
        if self._gap > max(LEAST_GAP, GAP_FRAMES * duration / self.frames):
            remarks.append(f"no frame for {self._gap:,.1f} s, which the rows do not show")
        return tuple(remarks)

    def _note(self, time: float) -> None:
        if time < self._last - JUMP_BACK:
            self._earlier += self._last - self._first
            self._first = self._last = time
            self.stretches += 1
        elif self._last > -math.inf:
            self._gap = max(self._gap, time - self._last)
        self._first, self._last = min(self._first, time), max(self._last, time)
