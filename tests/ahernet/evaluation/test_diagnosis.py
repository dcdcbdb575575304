import math

import pytest
from evaluation_rows import annotations_of, detections_of

from ahernet.evaluation.diagnosis import diagnose

TRUTH = annotations_of([("a", "run", 0, 10), ("a", "jump", 50, 60), ("b", "run", 20, 40)])


def test_perfect_detections_need_no_repair():
    found = detections_of([("a", "run", 0, 10, 0.9), ("a", "jump", 50, 60, 0.8), ("b", "run", 20, 40, 1)])
    result = diagnose(found, TRUTH)
    assert (result.as_detected, result.true_labels, result.true_ranking, result.accuracy) == (1, 1, 1, 1)


def test_wrong_labels_are_a_loss_of_classification_alone():
    found = detections_of([("a", "jump", 0, 10, 0.9), ("a", "run", 50, 60, 0.8), ("b", "run", 20, 40, 1)])
    result = diagnose(found, TRUTH)
    assert result.as_detected < 0.5
    assert (result.true_labels, result.true_ranking) == (1, 1)
    assert result.accuracy == pytest.approx(1 / 3)


def test_a_wrong_order_is_a_loss_of_ranking_alone():
    right = [("a", "run", 0, 10, 0.3), ("a", "jump", 50, 60, 0.3), ("b", "run", 20, 40, 0.3)]
    wrong = [("a", "run", 20, 30, 0.9), ("b", "run", 60, 90, 0.8), ("a", "jump", 70, 71, 0.7)]
    result = diagnose(detections_of([*right, *wrong]), TRUTH)
    assert result.as_detected == result.true_labels < 0.7
    assert result.true_ranking == 1


def test_what_no_detection_reaches_stays_lost():
    result = diagnose(detections_of([("a", "run", 0, 10, 0.9)]), TRUTH)
    assert result.true_ranking == pytest.approx(0.25)  # half of the runs, none of the jumps
    assert result.accuracy == 1


def test_labels_are_repaired_to_classes_that_the_detections_do_not_know():
    result = diagnose(detections_of([("a", "run", 50, 60, 0.9)]), TRUTH)
    assert result.as_detected == 0
    assert result.true_labels == pytest.approx(0.5)


def test_accuracy_looks_at_the_best_scored_detection_of_each_ground_truth():
    found = detections_of([("a", "jump", 0, 9, 0.9), ("a", "run", 0, 10, 0.8), ("b", "jump", 20, 21, 0.99)])
    assert diagnose(found, TRUTH).accuracy == 0
    assert math.isnan(diagnose(detections_of([("b", "run", 20, 21, 1)]), TRUTH).accuracy)
