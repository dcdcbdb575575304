"""The features of whole videos, put together from batches that hold clips of several."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahernet.extraction.decoding import ClipDecoder, DecodedVideo, FailedVideo, RestartedVideo, decode_ahead
from ahernet.extraction.network import ClipNetwork
from ahernet.extraction.placing import Batch, batches_of


@dataclass(frozen=True)
class ExtractedVideo:
    """The features (L, D) float32 of a video, its seconds, and what the user should know about it."""

    video_id: str
    features: NDArray[np.float32]
    duration: float
    remarks: tuple[str, ...]


def extract_videos(
    videos: Iterable[tuple[str, Path]],
    network: ClipNetwork,
    decode: ClipDecoder,
    batch_size: int,
    workers: int,
    note: Callable[[Batch], None] = lambda batch: None,
) -> Generator[ExtractedVideo | FailedVideo, None, None]:
    """Yield every video once, in the order in which they are done.

    A video's features depend on the video, its id, the network and `batch_size`, not on the other videos.

    Args:
        videos: ids and files.
        network: computes the features.
        decode: makes clips of files.
        batch_size: clips that are computed at a time.
        workers: videos that are decoded at a time.
        note: told of each batch of clips when its features are there.
    """

    def fetched(batch: Batch, features: Callable[[], NDArray[np.float32]]) -> Iterator[ExtractedVideo]:
        rows = features()
        note(batch)
        yield from assembly.add(batch, rows)

    empty = np.zeros((decode.clip_length, decode.framing.side, decode.framing.side, 3), np.uint8)
    assembly = _Assembly()
    running: deque[tuple[Batch, Callable[[], NDArray[np.float32]]]] = deque()
    # A GPU computes one batch while the next is collected.
    most_running = 1 if network.device.type == "cpu" else 2
    with decode_ahead(decode, videos, workers, ahead=2 * batch_size) as events:
        for event in batches_of(events, batch_size):
            if isinstance(event, FailedVideo):
                assembly.fail(event.video_id)
                yield event
            elif isinstance(event, RestartedVideo):
                assembly.restart(event)
            elif isinstance(event, DecodedVideo):
                yield from assembly.end(event)
            else:
                clips = np.stack([empty if clip is None else clip.frames for clip in event.places])
                running.append((event, network.launch(clips)))
                if len(running) >= most_running:
                    yield from fetched(*running.popleft())
    while running:
        yield from fetched(*running.popleft())


class _Assembly:
    """Keeps the rows of videos until they are complete."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, NDArray[np.float32]]] = {}
        self._ends: dict[str, DecodedVideo] = {}
        self._failed: set[str] = set()
        self._attempts: dict[str, int] = {}

    def fail(self, video_id: str) -> None:
        """Forget a video; clips of it may still come."""
        self._failed.add(video_id)
        self._rows.pop(video_id, None)

    def restart(self, video: RestartedVideo) -> None:
        """Forget the rows of a video that begins again; void clips of it may still come."""
        self._attempts[video.video_id] = video.attempt
        self._rows.pop(video.video_id, None)

    def end(self, end: DecodedVideo) -> Iterator[ExtractedVideo]:
        """Note how many clips a video has; yield it if they are all there."""
        self._ends[end.video_id] = end
        yield from self._complete(end.video_id)

    def add(self, batch: Batch, features: NDArray[np.float32]) -> Iterator[ExtractedVideo]:
        """Take the rows of a computed batch; yield the videos that are complete with them."""
        for clip, row in zip(batch.places, features, strict=True):
            if clip is None or clip.video_id in self._failed:
                continue
            if clip.attempt == self._attempts.get(clip.video_id, 0):
                self._rows.setdefault(clip.video_id, {})[clip.number] = row.copy()
                yield from self._complete(clip.video_id)

    def _complete(self, video_id: str) -> Iterator[ExtractedVideo]:
        end, rows = self._ends.get(video_id), self._rows.get(video_id, {})
        if end is not None and len(rows) == end.clips:
            del self._ends[video_id], self._rows[video_id]
            features = np.empty((end.clips, len(rows[0])), np.float32)
            for number in range(end.clips):
                features[number] = rows.pop(number)  # gives the row back: there may be hours of them
            yield ExtractedVideo(video_id, features, end.duration, end.remarks)
