import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from evaluation_rows import annotations_of, detections_of

from ahernet.data.annotations import read_annotations
from ahernet.data.detections import read_detections
from ahernet.evaluation.average_precision import average_precision, match_detections
from ahernet.evaluation.average_recall import average_recall
from ahernet.evaluation.bootstrap import bootstrap_interval
from ahernet.evaluation.operating_points import operating_points
from ahernet.reporting import content as module
from ahernet.reporting import sample
from ahernet.reporting.content import CLASS_COLUMNS, LOSS_POINTS, ReportSettings, report_content
from ahernet.reporting.names import MOST_CHARACTERS, shown
from ahernet.reporting.page import page

SETTINGS = ReportSettings("Title", {"detections": "found.json"}, draws=20)


def world(videos=12, seed=0):
    random = np.random.default_rng(seed)
    truths, found = [], []
    for number in range(videos):
        video, label = f"v{number:04}", f"class {number % 3}"
        start, length = random.uniform(0, 60), random.uniform(5, 30)
        truths.append((video, label, float(start), float(start + length)))
        for _ in range(4):
            moved = float(start + random.normal() * 4)
            found.append((video, label, moved, float(moved + length), float(random.random())))
    return detections_of(found), annotations_of(truths)


def content_of(detections, annotations, losses=None):
    content, points = report_content(detections, annotations, SETTINGS, losses)
    return json.loads(json.dumps(content, allow_nan=False)), points


def test_numbers_are_those_of_the_evaluator():
    detections, annotations = world()
    content, points = content_of(detections, annotations)
    result, recall = average_precision(detections, annotations), average_recall(detections, annotations)
    interval = bootstrap_interval(match_detections(detections, annotations), SETTINGS.draws)
    assert content["precision"]["mean"] == pytest.approx(result.mean, rel=1e-5)
    assert content["precision"]["mean_per_threshold"] == pytest.approx(result.mean_per_threshold.tolist(), rel=1e-5)
    assert content["precision"]["interval"]["mean"] == pytest.approx(list(interval.mean), rel=1e-5)
    assert content["recall"]["curves"]["average"] == pytest.approx(recall.average_recall.tolist(), rel=1e-5)
    assert content["recall"]["area"] == pytest.approx(recall.area, rel=1e-5)
    for row, cells in enumerate(content["classes"]["rows"]):
        shown_row = dict(zip(CLASS_COLUMNS, cells[1:], strict=True))
        assert content["names"][cells[0]] == result.classes[row]
        assert shown_row["instances"] == result.instances[row]
        assert shown_row["detections"] == result.detections[row]
        for name, column in (("AP@0.50", 0), ("AP@0.75", 5), ("AP@0.95", 9)):
            assert shown_row[name] == pytest.approx(result.per_class[row, column], rel=1e-5)
        assert shown_row["average AP"] == pytest.approx(result.per_class[row].mean(), rel=1e-5)
        assert shown_row["score"] == pytest.approx(points.score[row], rel=1e-5)
        assert shown_row["F1"] == pytest.approx(points.f1[row], rel=1e-5)
    matched = operating_points(match_detections(detections, annotations), detections)
    assert points.minimum_scores() == matched.minimum_scores()


def test_every_detection_that_is_looked_at_has_a_kind():
    detections, annotations = world()
    content, _ = content_of(detections, annotations)
    assert sum(map(sum, content["errors"]["counts"])) == pytest.approx(len(detections))  # four per ground truth
    assert content["errors"]["mean"] == pytest.approx(content["precision"]["mean"], rel=1e-5)
    assert content["sensitivity"]["whole"]["mean"] == pytest.approx(content["precision"]["mean"], rel=1e-5)
    for part in content["sensitivity"]["parts"]:
        assert sum(entry["instances"] for entry in part["bins"]) + part["unsorted"] == 12


def test_timelines_hold_what_the_files_hold():
    detections, annotations = world(videos=3)
    content, _ = content_of(detections, annotations)
    videos = content["timelines"]["videos"]
    assert [video["id"] for video in videos] == ["v0000", "v0001", "v0002"]
    for number, video in enumerate(videos):
        truth = annotations.videos[video["id"]]
        assert [content["names"][row[0]] for row in video["truths"]] == list(truth.labels)
        np.testing.assert_allclose([row[1:] for row in video["truths"]], truth.segments, atol=1e-3)
        rows = np.flatnonzero(detections.video == number)
        rows = rows[np.argsort(-detections.scores[rows])]
        assert [row[3] for row in video["found"]] == pytest.approx(detections.scores[rows].tolist(), rel=1e-3)
        assert [row[1] for row in video["found"]] == pytest.approx(detections.segments[rows, 0].tolist(), abs=1e-3)


def test_a_large_set_is_sampled_and_what_is_left_out_is_counted(monkeypatch):
    monkeypatch.setattr(sample, "MOST_VIDEOS", 4)
    monkeypatch.setattr(sample, "MOST_DETECTIONS", 3)
    monkeypatch.setattr(module, "MOST_CLASSES", 2)
    content, _ = content_of(*world(videos=10))
    timelines = content["timelines"]
    assert timelines["of"] == 10
    assert [video["id"] for video in timelines["videos"]] == ["v0000", "v0003", "v0006", "v0009"]
    assert [video["left_out"] for video in timelines["videos"]] == [[0, 1]] * 4
    assert len(content["classes"]["rows"]) == 2
    assert content["classes"]["left_out"] == 1
    assert content["precision"]["mean"] == pytest.approx(average_precision(*world(videos=10)).mean, rel=1e-5)


def test_a_set_without_any_detection_has_a_report():
    content, points = content_of(detections_of([], ("u",)), annotations_of([("u", "a", 0.0, 5.0)]))
    assert content["precision"]["mean"] == 0
    assert content["classes"]["rows"][0][CLASS_COLUMNS.index("score") + 1] is None
    assert points.minimum_scores() == {}


def test_numbers_at_the_end_of_what_a_file_can_hold_are_no_error():
    largest = 1.7976931348623157e308
    detections = detections_of([("u", "a", 0.0, largest, largest), ("u", "a", 0.0, 5.0, -largest)])
    content, _ = content_of(detections, annotations_of([("u", "a", 0.0, 5.0)]))
    assert content["timelines"]["videos"][0]["found"][0][3] is None


def test_losses_become_curves_of_bounded_length():
    losses = [{"iteration": n, "total": 2.0 + n % 2, "learning_rate": 0.1} for n in range(1, 4001)]
    losses[10]["total"] = math.nan
    losses[20]["total"] = 10**400
    content, _ = content_of(*world(videos=3), losses)
    assert list(content["losses"]["curves"]) == ["total"]
    points = content["losses"]["curves"]["total"]
    assert len(points) == LOSS_POINTS
    assert np.mean([y for _, y in points]) == pytest.approx(2.5, abs=0.01)
    assert (content["losses"]["iterations"], content["losses"]["broken"]) == (4000, 2)


def test_few_losses_are_all_shown():
    losses = [{"iteration": n, "total": float(n), "learning_rate": 0.1} for n in (1, 2, 3)]
    content, _ = content_of(*world(videos=3), losses)
    assert content["losses"]["curves"]["total"] == [[1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", "plain"),
        ("a\nb", "a\\nb"),
        ("\u202etxt", "\\u202etxt"),
        ("x" * 500, "x" * (MOST_CHARACTERS - 1) + "…"),
    ],
)
def test_names_are_shown_on_one_line(name, expected):
    assert shown(name) == expected


@pytest.mark.skipif("AHERNET_DATA" not in os.environ, reason="AHERNET_DATA does not name a folder of real data")
def test_the_official_sample_is_perfect_in_every_part():
    folder = Path(os.environ["AHERNET_DATA"]) / "activitynet"
    annotations = read_annotations(
        folder / "anet_anno_action_19994.json.gz", subsets=folder / "video_info_19994.csv.gz"
    ).select("validation")
    detections = read_detections(folder / "sample_detection_prediction.json.gz")
    content, points = report_content(detections, annotations, SETTINGS)
    assert content["precision"]["mean_per_threshold"] == [1] * 10
    assert content["precision"]["interval"]["mean"] == [1, 1]
    assert points.f1.tolist() == [1] * 200
    parts = [entry for part in content["sensitivity"]["parts"] for entry in part["bins"]]
    assert [(entry["normalized"], entry["recall"]) for entry in parts] == [(1, 1)] * 14
    counts = np.array(content["errors"]["counts"])
    assert counts[0].tolist() == [7654, 0, 0, 0, 0, 0]
    assert counts[1:].sum() == 0
    assert len(page(content)) < 300_000
