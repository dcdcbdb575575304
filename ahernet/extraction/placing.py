"""Batches of clips of several videos in which every clip has a fixed place.

How a convolution rounds may depend on the size of the batch and on the place of a sample in it, but on nothing else.
So all batches have one size, places may stay empty, and the place of a clip follows from its video's id and its number
alone: the features of a video are the same bits whatever it is batched with, alone, in any order, or after a restart.
"""

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ahernet.extraction.decoding import DecodedClip, DecodedVideo, Event, FailedVideo, RestartedVideo

PATIENCE = 4  # batches' worth of clips that may wait for a full batch


@dataclass(frozen=True)
class Batch:
    """Clips by place; None where a place is empty."""

    places: tuple[DecodedClip | None, ...]


def place_of(video_id: str, number: int, batch_size: int) -> int:
    """Return the place of a clip in its batch: those of one video follow one another, and start anywhere."""
    return (zlib.crc32(video_id.encode()) + number) % batch_size


def batches_of(
    events: Iterable[Event], batch_size: int
) -> Iterator[Batch | RestartedVideo | DecodedVideo | FailedVideo]:
    """Collect clips into batches; other events pass through, the end of a video possibly before its last clips.

    A batch is given when every place is taken, or when `PATIENCE` times `batch_size` clips wait, or at the end.
    """
    waiting: list[deque[DecodedClip]] = [deque() for _ in range(batch_size)]
    count = 0
    for event in events:
        if not isinstance(event, DecodedClip):
            yield event
            continue
        waiting[place_of(event.video_id, event.number, batch_size)].append(event)
        count += 1
        if count >= PATIENCE * batch_size or (count >= batch_size and all(waiting)):
            batch = _take(waiting)
            count -= sum(clip is not None for clip in batch.places)
            yield batch
    while any(waiting):
        yield _take(waiting)


def _take(waiting: list[deque[DecodedClip]]) -> Batch:
    return Batch(tuple(clips.popleft() if clips else None for clips in waiting))
