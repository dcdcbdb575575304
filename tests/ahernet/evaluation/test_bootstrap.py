import numpy as np
import pytest
from evaluation_references import FOUND, TRUTHS, of_known_classes
from evaluation_rows import annotations_of, detections_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.evaluation.average_precision import average_precision, match_detections, precision_of
from ahernet.evaluation.bootstrap import bootstrap_interval, drawn_scores

THRESHOLDS = [0.3, 0.5, 1.0]


def copied(rows, weights):
    """Rows of videos that are there as often as they were drawn, the copies of a row behind one another."""
    return [(f"{row[0]}{copy}", *row[1:]) for row in rows for copy in range(weights[row[0]])]


@settings(max_examples=40)
@given(TRUTHS, FOUND, st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_a_draw_scores_as_the_set_that_it_stands_for(truths, found, counts):
    found = of_known_classes(truths, found)
    annotations, detections = annotations_of(truths), detections_of(found)
    matches = match_detections(detections, annotations, THRESHOLDS)
    order = [*annotations.videos, *matches.videos.unknown]
    weights = dict(zip(order, counts, strict=False))
    scores = drawn_scores(matches, np.array([list(weights.values())], np.int32))[0]
    drawn = copied(truths, weights)
    if not drawn:
        assert np.isnan(scores).all()
        return
    result = average_precision(
        detections_of(of_known_classes(drawn, copied(found, weights))), annotations_of(drawn), THRESHOLDS
    )
    np.testing.assert_allclose(scores, result.mean_per_threshold, atol=1e-9)


def random_set(videos, seed=0):
    """Six of ten detections are right, whatever their score."""
    random = np.random.default_rng(seed)
    truths = [(f"v{number:03}", "ab"[number % 2], 10.0, 20.0) for number in range(videos)]
    moved = (20.0 * (random.random(videos) < 0.4)).tolist()
    scores = random.random(videos).tolist()
    found = [
        (video, label, start + move, end + move, score)
        for (video, label, start, end), move, score in zip(truths, moved, scores, strict=True)
    ]
    return detections_of(found), annotations_of(truths)


def test_the_interval_holds_the_score_and_shrinks_with_the_videos():
    widths = []
    for videos in (20, 320):
        detections, annotations = random_set(videos)
        matches = match_detections(detections, annotations, [0.4])
        low, high = bootstrap_interval(matches, draws=200).mean
        assert low <= average_precision(detections, annotations, [0.4]).mean <= high
        widths.append(high - low)
    assert 0 < widths[1] < widths[0] / 2


def test_the_interval_is_as_wide_as_the_scores_of_new_sets_are_spread():
    sets = [match_detections(*random_set(60, seed), [0.4]) for seed in range(40)]
    spread = np.std([precision_of(matches).mean for matches in sets])
    widths = [np.subtract(*bootstrap_interval(matches, draws=100).mean[::-1]) for matches in sets]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.3)


def test_the_same_seed_gives_the_same_interval_whatever_fits_into_memory(monkeypatch):
    matches = match_detections(*random_set(30))
    first = bootstrap_interval(matches, draws=50, seed=3)
    monkeypatch.setattr("ahernet.evaluation.bootstrap.COUNTS_AT_ONCE", 70)
    again = bootstrap_interval(matches, draws=50, seed=3)
    assert first.mean == again.mean
    assert bootstrap_interval(matches, draws=50, seed=4).mean != first.mean
    assert first.per_threshold.shape == (10, 2)


def test_a_perfect_set_has_no_interval():
    truths = [("u", "a", 0.0, 5.0), ("v", "b", 0.0, 5.0)]
    matches = match_detections(detections_of([(*row, 1.0) for row in truths]), annotations_of(truths))
    assert bootstrap_interval(matches, draws=20).mean == (1, 1)


@pytest.mark.parametrize(("draws", "level"), [(0, 0.95), (10, 1.0), (10, 0.0)])
def test_no_draws_and_no_level_are_refused(draws, level):
    matches = match_detections(*random_set(4))
    with pytest.raises(ValueError, match="at least one draw and a level"):
        bootstrap_interval(matches, draws, level)
