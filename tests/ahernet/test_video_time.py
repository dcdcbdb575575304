import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ahernet.video_time import seconds_to_unit, unit_to_seconds


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
