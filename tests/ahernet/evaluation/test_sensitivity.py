import math

import numpy as np
import pytest
from evaluation_references import FOUND, TRUTHS, area, of_known_classes, taken
from evaluation_rows import annotations_of, detections_of
from hypothesis import given, settings

from ahernet.data.annotations import Annotations, VideoAnnotations
from ahernet.evaluation.average_precision import average_precision, match_detections
from ahernet.evaluation.characteristics import BINS, Characteristic
from ahernet.evaluation.sensitivity import score_part, sensitivity

THRESHOLDS = [0.3, 0.5, 1.0]


def part_row_by_row(truths, found, inside, threshold):
    """(mAP, normalized mAP, recall) of the ground truths `inside`; detections that take others are left out."""
    labels = {truth[1] for truth in truths}
    plain, normalized, recalled = [], [], 0
    for label in sorted({truths[index][1] for index in inside}):
        instances = sum(truths[index][1] == label for index in inside)
        marks = [index is not None for index in taken(truths, found, label, threshold) if index in {None, *inside}]
        plain.append(area(marks, instances))
        normalized.append(area(marks, instances, normal=len(truths) / len(labels)))
        recalled += sum(marks)
    return np.mean(plain), np.mean(normalized), recalled / len(inside)


@settings(max_examples=40)
@given(TRUTHS, FOUND)
def test_parts_score_as_row_by_row(truths, found):
    truths = sorted(truths, key=lambda truth: truth[0])  # rows of one video together, as in a file
    found = of_known_classes(truths, found)
    matches = match_detections(detections_of(found), annotations_of(truths), THRESHOLDS)
    inside = [index for index, truth in enumerate(truths) if truth[3] - truth[2] <= 3]
    score = score_part(matches, np.isin(np.arange(len(truths)), inside))
    assert score.instances == len(inside)
    for column, threshold in enumerate(THRESHOLDS):
        numbers = [score.mean_average_precision[column], score.normalized[column], score.recall[column]]
        expected = part_row_by_row(truths, found, inside, threshold) if inside else [math.nan] * 3
        np.testing.assert_allclose(numbers, expected, atol=1e-9)


def test_the_whole_is_a_part_that_scores_as_the_evaluator():
    truths = [("u", "a", 0.0, 5.0), ("u", "b", 5.0, 9.0), ("v", "a", 0.0, 8.0)]
    found = [("u", "a", 0.0, 4.0, 0.9), ("v", "a", 2.0, 8.0, 0.8), ("v", "b", 0.0, 8.0, 0.7), ("u", "b", 5.0, 9.0, 0.6)]
    detections, annotations = detections_of(found), annotations_of(truths)
    score = score_part(match_detections(detections, annotations), np.ones(3, bool))
    expected = average_precision(detections, annotations).mean_per_threshold
    np.testing.assert_allclose(score.mean_average_precision, expected)


def test_bins_hold_their_upper_edge_and_the_first_its_lower_too():
    length = Characteristic("length", (0, 30, 60, np.inf), ("XS", "S", "M"))
    values = np.array([0, 0.1, 30, 30.1, 60, 61, -1, np.nan])
    assert length.bin_of(values).tolist() == [0, 0, 0, 1, 1, 2, -1, -1]


@pytest.mark.parametrize("name", BINS)
def test_every_bin_has_a_name(name):
    for characteristic in BINS[name]:
        assert len(characteristic.edges) == len(characteristic.bins) + 1
        assert list(characteristic.edges) == sorted(characteristic.edges)


def test_ground_truth_is_sorted_by_share_length_and_number():
    def video(name, duration, segments, labels):
        return name, VideoAnnotations(name, "", duration, np.array(segments, np.float64), labels)

    annotations = Annotations(
        dict(
            [
                video("u", 100.0, [[0, 10], [20, 90], [91, 99]], ("a", "a", "b")),
                video("v", math.nan, [[0, 50]], ("a",)),
                video("w", 100.0, [[0, 130]], ("a",)),
            ]
        ),
        "made",
    )
    matches = match_detections(detections_of([("u", "a", 0.0, 10.0, 1.0)]), annotations)
    scores = sensitivity(matches, annotations, BINS["activitynet"])
    instances = {kind: [score.instances for score in bins.values()] for kind, bins in scores.items()}
    # Unknown coverage and coverage above 1 are in no bin.
    assert instances == {"coverage": [2, 0, 0, 1, 0], "length": [2, 1, 1, 1, 0], "instances": [3, 2, 0, 0]}
    assert scores["coverage"]["XS"].recall.tolist() == [0.5] * 10
    assert np.isnan(scores["coverage"]["S"].normalized).all()
