import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahernet.extraction.clips import clip_count, clips_of


def numbered(count: int):
    return (np.full((1, 1, 1), number) for number in range(count))


@given(frames=st.integers(0, 70), length=st.integers(1, 20), stride=st.integers(1, 25))
def test_clips_begin_every_stride_and_end_with_the_last_frame_repeated(frames, length, stride):
    clips = [clip.ravel() for clip in clips_of(numbered(frames), length, stride)]
    assert len(clips) == clip_count(frames, length, stride)
    for number, clip in enumerate(clips):
        assert (clip == np.minimum(np.arange(number * stride, number * stride + length), frames - 1)).all()


@given(frames=st.integers(1, 70), length=st.integers(1, 20), data=st.data())
def test_no_frame_is_left_out_and_no_clip_is_all_repetition(frames, length, data):
    stride = data.draw(st.integers(1, length))
    clips = list(clips_of(numbered(frames), length, stride))
    assert set(np.concatenate(clips).ravel()) == set(range(frames))
    assert (len(clips) - 1) * stride < frames


def test_each_frame_is_taken_once_and_as_late_as_possible():
    taken = []

    def frames():
        for number in range(30):
            taken.append(number)
            yield np.full((1, 1, 1), number)

    clips = clips_of(frames(), 16, 8)
    next(clips)
    assert taken == list(range(16))
    next(clips)
    assert taken == list(range(24))


@pytest.mark.parametrize(("length", "stride"), [(0, 1), (1, 0)])
def test_lengths_below_one_are_refused(length, stride):
    with pytest.raises(ValueError, match="expected at least 1"):
        list(clips_of(numbered(3), length, stride))
