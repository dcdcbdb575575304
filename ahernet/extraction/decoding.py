"""Several videos decoded at a time by threads, as one stream of clips of bounded length."""

import math
import queue
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahernet.errors import UserError
from ahernet.extraction.clips import clips_of
from ahernet.extraction.video import Decoder, Framing, OpenVideo, ReadingFailed, duration_of, remarks_on

MOST_CLIPS = 1 << 18  # of a video, whose features are in memory until it ends: 23 hours at 25 frames a second
LEAST_GAP, GAP_FRAMES = 2.0, 10  # seconds, and mean intervals: from there on a pause between frames is worth a remark
LEAST_SHIFT = 1.0  # seconds that frames are presented from where rows say they are, from which on it is worth a remark
JUMP_BACK = 1.0  # seconds; frames of damaged files change places by less
WAIT = 0.1  # seconds, between two looks at whether anybody still wants the clips


@dataclass(frozen=True)
class DecodedClip:
    """Clip `number` of a video: frames (clip_length, side, side, 3) uint8 RGB; `attempt` counts restarts before it."""

    video_id: str
    number: int
    frames: NDArray[np.uint8]
    attempt: int = 0


@dataclass(frozen=True)
class RestartedVideo:
    """A video that begins again: clips of it with a smaller `attempt` are void, those that come later, too."""

    video_id: str
    attempt: int


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


Event = DecodedClip | RestartedVideo | DecodedVideo | FailedVideo


class _DamagedError(Exception):
    """Something of a video could not be decoded."""


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
        """Yield the clips of a video, then its end; a failure at any point, instead of the rest.

        One that is damaged, or that the system failed to read, is begun once more, carefully.

        Raises:
            UserError: the system fails to read it again.
        """
        try:
            try:
                yield from self._decode(video_id, path, attempt=0)
            except (_DamagedError, ReadingFailed):
                yield RestartedVideo(video_id, 1)
                yield from self._decode(video_id, path, attempt=1)
        except ReadingFailed as error:
            raise UserError(
                f"{path}: the system fails to read it ({error}); nothing is kept of it, the same command goes on"
            ) from error
        except UserError as error:
            yield FailedVideo(video_id, str(error))

    def _decode(self, video_id: str, path: Path, attempt: int) -> Iterator[Event]:
        """Yield what `__call__` does; the message of a UserError does not name the video."""
        number = -1
        careful = attempt > 0
        with self.decoder.open(path, self.framing, careful=careful) as video:
            clock = _Clock(video)
            for number, frames in enumerate(clips_of(clock.pictures(), self.clip_length, self.stride)):
                if video.damaged and not careful:
                    break
                if number >= MOST_CLIPS:
                    raise UserError(
                        f"has more than {MOST_CLIPS:,} clips; cut it into parts, or give a larger --clip-stride"
                    )
                yield DecodedClip(video_id, number, frames, attempt)
            if video.damaged and not careful:
                raise _DamagedError
            if not clock.frames:
                raise UserError("no frame of it can be decoded, expected a video")
            duration = duration_of(clock.frames, clock.span, clock.stretches, video.declared_rate)
            remarks = (*remarks_on(video, clock.frames, duration), *clock.remarks(duration))
        yield DecodedVideo(video_id, number + 1, duration, remarks)


@contextmanager
def decode_ahead(
    decode: Callable[[str, Path], Iterable[Event]], videos: Iterable[tuple[str, Path]], workers: int, ahead: int
) -> Iterator[Iterator[Event]]:
    """Give an iterator over the events of all videos, decoded by threads, `workers` videos at a time.

    The events of one video come in order, those of different videos mixed. At most `ahead` events wait to be taken.
    Leaving the context stops the threads. What `decode` raises is raised where it would have come next.

    Raises:
        UserError: the system lets no more threads start.
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
    try:
        try:
            for thread in threads:
                thread.start()
        except RuntimeError as error:
            raise UserError(f"extract: cannot start {workers:,} threads ({error}); give fewer --workers") from error
        yield _taken(events, workers)
    finally:
        unwanted.set()
        for thread in threads:
            if thread.ident is not None:
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
    """Counts frames as they pass, and keeps when they are presented.

    Times that jump back begin a new stretch, as where recordings were put behind one another.
    """

    def __init__(self, video: OpenVideo) -> None:
        self._video = video
        self._first = math.inf
        self._last = -math.inf
        self._earlier = 0.0
        self._gap = 0.0
        self._times = array("d")
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
        elif self._shift(duration) > LEAST_SHIFT:
            remarks.append(f"frames come unevenly: rows are up to {self._shift(duration):,.1f} s from their time")
        late = self._times[0] - self._video.declared_start if self._times else 0.0
        if late > LEAST_SHIFT:
            remarks.append(f"the picture begins {late:,.1f} s after the sound: all rows are that much too early")
        return tuple(remarks)

    def _shift(self, duration: float) -> float:
        """Return how far, at most, a frame is from where it would be if all lasted the same."""
        if self.stretches > 1 or len(self._times) < self.frames:
            return 0.0
        times = np.frombuffer(self._times)
        return float(np.abs(times - times[0] - np.arange(len(times)) * (duration / len(times))).max())

    def _note(self, time: float) -> None:
        self._times.append(time)
        if time < self._last - JUMP_BACK:
            self._earlier += self._last - self._first
            self._first = self._last = time
            self.stretches += 1
        elif self._last > -math.inf:
            self._gap = max(self._gap, time - self._last)
        self._first, self._last = min(self._first, time), max(self._last, time)
