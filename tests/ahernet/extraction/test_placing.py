from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ahernet.extraction.decoding import DecodedClip, DecodedVideo, FailedVideo
from ahernet.extraction.placing import PATIENCE, Batch, batches_of, place_of

NOTHING = np.zeros(0, np.uint8)


def events_of(lengths: list[int], order: list[int]) -> list[DecodedClip]:
    """Clips of videos 0, 1, ...: those of one in order, different ones mixed as `order` says."""
    left = {number: iter(range(length)) for number, length in enumerate(lengths)}
    events = []
    for choice in order:
        number = choice % len(lengths)
        clip = next(left[number], None)
        if clip is not None:
            events.append(DecodedClip(f"v{number}", clip, NOTHING))
    for number, clips in left.items():
        events += [DecodedClip(f"v{number}", clip, NOTHING) for clip in clips]
    return events


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    order=st.lists(st.integers(0, 5), max_size=60),
    batch_size=st.integers(1, 9),
)
def test_every_clip_is_in_one_batch_at_its_own_place(lengths, order, batch_size):
    events = events_of(lengths, order)
    batches = list(batches_of(events, batch_size))
    placed = Counter()
    for batch in batches:
        assert len(batch.places) == batch_size
        assert any(batch.places)
        for place, clip in enumerate(batch.places):
            if clip is not None:
                assert place == place_of(clip.video_id, clip.number, batch_size)
                placed[clip.video_id, clip.number] += 1
    assert placed == Counter((event.video_id, event.number) for event in events)


@given(count=st.integers(1, 100), batch_size=st.integers(1, 9))
def test_the_clips_of_one_long_video_fill_all_batches_but_the_last(count, batch_size):
    batches = list(batches_of(events_of([count], []), batch_size))
    assert len(batches) == -(-count // batch_size)
    assert all(all(batch.places) for batch in batches[: count // batch_size])


def test_no_more_clips_wait_than_patience_allows():
    # clips of one place alone never fill a batch
    size = 4
    same = [DecodedClip("v", size * number, NOTHING) for number in range(100)]
    taken = 0

    def counted():
        nonlocal taken
        for event in same:
            taken += 1
            yield event

    for given_batches, batch in enumerate(batches_of(counted(), size), start=1):
        assert sum(clip is not None for clip in batch.places) == 1
        assert taken - given_batches < PATIENCE * size


def test_ends_and_failures_pass_through():
    events = [DecodedVideo("a", 1, 1.0, ()), DecodedClip("b", 0, NOTHING), FailedVideo("c", "no")]
    got = list(batches_of(events, 2))
    assert got[:2] == [events[0], events[2]]
    assert isinstance(got[2], Batch)


def test_short_videos_begin_at_different_places():
    assert len({place_of(f"video {number}", 0, 8) for number in range(100)}) == 8
