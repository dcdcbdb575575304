import numpy as np
import pytest
from evaluation_references import FOUND, TRUTHS, of_known_classes, ranked, taken
from evaluation_rows import annotations_of, detections_of
from hypothesis import given, settings

from ahernet.evaluation.average_precision import match_detections
from ahernet.evaluation.operating_points import operating_points


@settings(max_examples=40)
@given(TRUTHS, FOUND)
def test_points_are_the_best_of_all_scores(truths, found):
    truths = sorted(truths, key=lambda truth: truth[0])
    found = of_known_classes(truths, found)
    detections = detections_of(found)
    points = operating_points(match_detections(detections, annotations_of(truths), [0.3, 0.5]), detections)
    for row, label in enumerate(points.classes):
        instances = sum(truth[1] == label for truth in truths)
        marks = [index is not None for index in taken(truths, found, label, 0.5)]
        choices = []
        for score in {found[4] for found in ranked(found, label)}:
            kept = sum(found[4] >= score for found in ranked(found, label))
            right = sum(marks[:kept])
            choices.append((2 * right / (kept + instances), score, right / kept, right / instances, kept))
        best = max(choices, default=(0.0,))
        if best[0] == 0:
            assert np.isnan(points.score[row])
            assert (points.f1[row], points.kept[row]) == (0, 0)
        else:
            chosen = [column[row] for column in (points.f1, points.score, points.precision, points.recall, points.kept)]
            np.testing.assert_allclose(chosen, best, atol=1e-12)


def test_what_localize_keeps_is_what_the_point_keeps():
    truths = [("u", "a", 0.0, 10.0), ("v", "a", 0.0, 10.0), ("v", "b", 20.0, 30.0)]
    found = [("u", "a", 0.0, 10.0, 0.7), ("v", "a", 0.0, 10.0, 0.5), ("u", "a", 50.0, 60.0, 0.4)]
    detections = detections_of([*found, ("v", "b", 50.0, 60.0, 0.9)])
    points = operating_points(match_detections(detections, annotations_of(truths)), detections)
    minimum = points.minimum_scores()
    assert list(minimum) == ["a"]  # no detection of b is right
    assert [row[4] > minimum["a"] for row in found] == [True, True, False]
    assert (points.precision[0], points.recall[0], points.f1[0]) == (1, 1, 1)


def test_matches_at_other_thresholds_are_refused():
    truths = [("u", "a", 0.0, 10.0)]
    detections = detections_of([(*truths[0], 1.0)])
    with pytest.raises(ValueError, match=r"matches at tIoU 0\.5"):
        operating_points(match_detections(detections, annotations_of(truths), [0.7]), detections)
