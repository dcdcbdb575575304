import json

import pytest
from evaluation_rows import annotations_of, detections_of

from ahernet.evaluation.average_precision import match_detections, precision_of
from ahernet.evaluation.bootstrap import bootstrap_interval
from ahernet.evaluation.characteristics import BINS
from ahernet.evaluation.parts import format_interval, format_parts, interval_dictionary, parts_dictionary
from ahernet.evaluation.sensitivity import sensitivity

TRUTHS = [("u", "a", 0.0, 20.0), ("u", "a", 40.0, 90.0), ("v", "b", 0.0, 200.0)]
FOUND = [("u", "a", 0.0, 20.0, 0.9), ("u", "a", 41.0, 90.0, 0.8), ("v", "b", 0.0, 110.0, 0.7)]
LENGTHS = tuple(part for part in BINS["activitynet"] if part.name == "length")


@pytest.fixture
def matches():
    return match_detections(detections_of(FOUND), annotations_of(TRUTHS), [0.5, 0.9, 0.99])


@pytest.fixture
def scores(matches):
    return sensitivity(matches, annotations_of(TRUTHS), LENGTHS)


def test_each_part_is_a_line_with_its_seconds_and_instances(scores):
    lines = [line.split() for line in format_parts(LENGTHS, scores).splitlines()]
    assert lines[0] == ["part", "instances", "mAP", "normalized", "recall"]
    assert [line[:4] for line in lines[1:]] == [
        ["length", "XS", "(0-30)", "1"],
        ["length", "S", "(30-60)", "1"],
        ["length", "M", "(60-120)", "0"],
        ["length", "L", "(120-180)", "0"],
        ["length", "XL", "(180-)", "1"],
    ]
    assert lines[1][-1] == "100.00"
    assert lines[2][-1] == "66.67"  # found up to 0.9
    assert lines[3][4:] == ["-", "-", "-"]
    assert lines[5][-1] == "33.33"  # found at 0.5 alone


def test_parts_are_plain_data_without_what_json_has_not(scores):
    content = json.loads(json.dumps(parts_dictionary(LENGTHS, scores), allow_nan=False))["length"]
    assert (content["S"]["from"], content["S"]["to"]) == (30, 60)
    assert content["XL"]["to"] is None
    assert content["S"]["recall"] == [1.0, 1.0, 0.0]
    assert content["M"]["recall"] == [None] * 3


def test_the_interval_is_around_the_mean_in_both_forms(matches):
    interval = bootstrap_interval(matches, draws=50)
    mean = precision_of(matches).mean
    low, high = interval_dictionary(interval)["mean"]
    assert low <= mean <= high
    assert len(interval_dictionary(interval)["per_threshold"]) == 3
    assert format_interval(interval) == (
        f"95 % interval of the mean over 50 draws of the videos: {100 * low:.2f} to {100 * high:.2f}"
    )
