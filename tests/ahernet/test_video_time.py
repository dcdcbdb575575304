import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.video_time import known_duration, seconds_to_unit, unit_to_rows, unit_to_seconds


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1e5))
def test_conversion_there_and_back_is_exact_to_rounding(start, end, duration):
    segments = np.array([[start, end]])
    back = seconds_to_unit(unit_to_seconds(segments, duration), duration)
    np.testing.assert_allclose(back, segments, rtol=1e-15, atol=1e-300)


def test_what_lies_outside_the_video_is_cut_off():
    segments = np.array([[-1.0, 5.0], [5.0, 12.0], [11.0, 12.0]])
    np.testing.assert_allclose(seconds_to_unit(segments, 10.0), [[0, 0.5], [0.5, 1], [1, 1]])


def test_durations_broadcast_over_videos():
    segments = np.array([[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.5], [0.25, 1.0]]])
    seconds = unit_to_seconds(segments, np.array([[10.0], [100.0]]))
    np.testing.assert_allclose(seconds, [[[0, 5], [2.5, 10]], [[0, 50], [25, 100]]])


def test_the_first_known_duration_counts():
    assert known_duration(3.0, 4.0) == 3.0
    assert known_duration(np.float64("nan"), 4.0) == 4.0
    assert known_duration(0.0, np.inf, -1.0, np.nan) is None


UNIT = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.125, 0.5, 0.875, 1.0]))


@settings(deadline=None)
@given(st.lists(st.tuples(UNIT, UNIT, st.integers(1, 5000)), min_size=1, max_size=8))
def test_rows_of_a_segment_are_those_centred_inside_it_and_at_least_one(drawn):
    segments = np.array([sorted(row[:2]) for row in drawn])
    lengths = np.array([row[2] for row in drawn])
    first, last = unit_to_rows(segments, lengths)
    assert first.dtype == last.dtype == np.int64
    assert first.shape == last.shape == lengths.shape
    assert (first >= 0).all()
    assert (last > first).all()
    assert (last <= lengths).all()
    for (start, end), length, one, stop in zip(segments, lengths, first, last, strict=True):
        centres = np.arange(length) + 0.5
        inside = np.flatnonzero((centres >= start * length) & (centres < end * length))
        if len(inside):
            assert (one, stop) == (inside[0], inside[-1] + 1)
        else:  # the row that the middle of the segment lies in
            assert stop == one + 1
            assert one <= (start + end) / 2 * length * (1 + 1e-12)
            assert (start + end) / 2 * length <= stop * (1 + 1e-12)


@given(st.lists(UNIT, min_size=1, max_size=8), st.integers(1, 300))
def test_segments_that_tile_a_video_share_out_its_rows(cuts, length):
    edges = np.array([0.0, *sorted(cuts), 1.0])
    segments = np.stack([edges[:-1], edges[1:]], axis=1)
    first, last = unit_to_rows(segments, np.full(len(segments), length))
    centres = np.arange(length) + 0.5
    inside = (centres >= segments[:, :1] * length) & (centres < segments[:, 1:] * length)
    # Segments without a centre of their own borrow a row; the others share all rows out.
    owners = np.flatnonzero(inside.any(axis=1))
    owned = [row for owner in owners for row in range(first[owner], last[owner])]
    assert owned == list(range(length))


@pytest.mark.parametrize(
    ("segment", "length", "rows"),
    [
        ([0.0, 1.0], 4, (0, 4)),
        ([0.125, 0.375], 4, (0, 1)),  # from the centre of row 0 to that of row 1: the start counts, the end does not
        ([0.13, 0.37], 4, (1, 2)),  # between two centres, the middle on the border: the later row
        ([0.13, 0.36], 4, (0, 1)),
        ([0.0, 0.0], 4, (0, 1)),
        ([1.0, 1.0], 4, (3, 4)),
        ([0.4, 0.6], 1, (0, 1)),
    ],
)
def test_rows_by_hand(segment, length, rows):
    first, last = unit_to_rows(np.array([segment]), np.array([length]))
    assert (first[0], last[0]) == rows
