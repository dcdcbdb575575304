import math

import numpy as np
from evaluation_references import FOUND, TRUTHS, area, of_known_classes, ranked, taken, tiou_of
from evaluation_rows import annotations_of, detections_of
from hypothesis import given, settings

from ahernet.evaluation.average_precision import match_detections
from ahernet.evaluation.false_positives import KINDS, MULTIPLES, detection_kinds, false_positives

THRESHOLDS = [0.3, 0.5, 1.0]


def kinds_row_by_row(truths, found, label, threshold):
    kinds = []
    for row, index in zip(ranked(found, label), taken(truths, found, label, threshold), strict=True):
        closest, tiou = None, 0.0
        for truth in truths:
            value = tiou_of(row, truth) if truth[0] == row[0] else math.nan
            if value > tiou:
                closest, tiou = truth, value
        if index is not None:
            kinds.append("true positive")
        elif tiou >= threshold:
            kinds.append("double detection" if closest[1] == label else "wrong label")
        elif tiou >= 0.1:
            kinds.append("localization error" if closest[1] == label else "confusion")
        else:
            kinds.append("background error")
    return kinds


@settings(max_examples=40)
@given(TRUTHS, FOUND)
def test_kinds_and_what_they_cost_are_those_of_row_by_row(truths, found):
    truths = sorted(truths, key=lambda truth: truth[0])
    found = of_known_classes(truths, found) * 3  # some classes have more than ten times their ground truths
    detections, annotations = detections_of(found), annotations_of(truths)
    matches = match_detections(detections, annotations, THRESHOLDS)
    result = false_positives(matches, detection_kinds(matches, detections, annotations))

    counts = np.zeros((MULTIPLES, len(KINDS), len(THRESHOLDS)), int)
    scores: dict[str | None, list[float]] = {removed: [] for removed in (None, *KINDS[1:])}
    for column, threshold in enumerate(THRESHOLDS):
        for label in matches.classes:
            instances = sum(truth[1] == label for truth in truths)
            kinds = kinds_row_by_row(truths, found, label, threshold)[: MULTIPLES * instances]
            for place, kind in enumerate(kinds):
                counts[place // instances, KINDS.index(kind), column] += 1
            for removed, values in scores.items():
                values.append(area([kind == KINDS[0] for kind in kinds if kind != removed], instances))
    assert result.counts.tolist() == counts.tolist()
    means = {removed: np.mean(values) for removed, values in scores.items()}
    np.testing.assert_allclose(result.mean_average_precision, means[None], atol=1e-9)
    np.testing.assert_allclose(result.gain, [means[kind] - means[None] for kind in KINDS[1:]], atol=1e-9)


def test_each_kind_has_its_name():
    truths = [("u", "a", 0.0, 10.0), ("u", "b", 50.0, 60.0)]
    found = [
        ("u", "a", 0.0, 10.0, 0.9),
        ("u", "a", 0.0, 9.0, 0.8),
        ("u", "a", 50.0, 60.0, 0.7),
        ("u", "a", 8.0, 16.0, 0.6),
        ("u", "a", 58.0, 66.0, 0.5),
        ("u", "a", 30.0, 40.0, 0.4),
    ]
    detections, annotations = detections_of(found), annotations_of(truths)
    matches = match_detections(detections, annotations, [0.5])
    kinds = detection_kinds(matches, detections, annotations)[0]
    assert [KINDS[kind] for kind in kinds] == list(KINDS)


def test_detections_of_unknown_videos_are_background():
    detections = detections_of([("u", "a", 0.0, 10.0, 0.5), ("stranger", "a", 0.0, 10.0, 0.9)])
    annotations = annotations_of([("u", "a", 0.0, 10.0)])
    matches = match_detections(detections, annotations, [0.5])
    assert detection_kinds(matches, detections, annotations).tolist() == [[5, 0]]
