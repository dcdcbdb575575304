import math
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from evaluation_rows import Found, Truth, annotations_of, detections_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.data.annotations import read_annotations
from ahernet.data.detections import Detections, read_detections
from ahernet.errors import UserError
from ahernet.evaluation import average_precision as module
from ahernet.evaluation.average_precision import TIOU_THRESHOLDS, average_precision

CLASSES = ("a", "b", "c")


def tiou_of(start: float, end: float, other_start: float, other_end: float) -> float:
    """NaN where both have zero length, as a division of float64 gives it."""
    intersection = max(min(end, other_end) - max(start, other_start), 0.0)
    union = (other_end - other_start) + (end - start) - intersection
    return intersection / union if union else math.nan


def row_by_row(truths: list[Truth], found: list[Found], threshold: float) -> dict[str, float]:
    """The evaluation as it is defined: one detection after the other."""
    taken: set[int] = set()
    marks: dict[str, list[bool]] = defaultdict(list)
    for video, label, start, end, _ in sorted(found, key=lambda row: -row[4]):  # sorted() is stable
        candidates = []
        for index, (own_video, own_label, own_start, own_end) in enumerate(truths):
            if (own_video, own_label) == (video, label):
                tiou = tiou_of(start, end, own_start, own_end)
                candidates.append((math.inf if math.isnan(tiou) else tiou, index))
        chosen = next(
            (index for tiou, index in sorted(candidates, reverse=True) if tiou >= threshold and index not in taken),
            None,
        )
        if chosen is not None:
            taken.add(chosen)
        marks[label].append(chosen is not None)
    result = {}
    for label in sorted({row[1] for row in truths}):
        count = sum(row[1] == label for row in truths)
        precision = [sum(marks[label][: n + 1]) / (n + 1) for n in range(len(marks[label]))]
        result[label] = sum(max(precision[n:]) / count for n, hit in enumerate(marks[label]) if hit)
    return result


def assert_equals_row_by_row(truths: list[Truth], found: list[Found], thresholds: np.ndarray) -> None:
    result = average_precision(detections_of(found), annotations_of(truths), thresholds)
    for column, threshold in enumerate(thresholds.tolist()):
        expected = row_by_row(truths, found, threshold)
        assert result.classes == tuple(expected)
        np.testing.assert_allclose(result.per_class[:, column], list(expected.values()), rtol=0, atol=1e-9)


# A coarse grid makes ties of score and tiou, tiou on a threshold, repeats and zero lengths common.
segment = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)
truth_rows = st.lists(
    st.tuples(st.sampled_from("uv"), st.sampled_from("ab"), segment).map(lambda row: (*row[:2], *row[2])),
    min_size=1,
    max_size=12,
)
found_rows = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("ab"), segment, st.integers(0, 4)).map(
        lambda row: (*row[:2], *row[2], row[3] / 4)
    ),
    max_size=20,
)


@settings(max_examples=400, deadline=None)
@given(truth_rows, found_rows)
def test_equals_the_row_by_row_evaluation(truths: list[Truth], found: list[Found]) -> None:
    known = {row[1] for row in truths}
    found = [row for row in found if row[1] in known]
    assert_equals_row_by_row(truths, found, np.array([0.2, 0.5, 0.75, 1.0]))


def random_rows(seed: int, videos: int, per_video: int) -> tuple[list[Truth], list[Found]]:
    """Detections scattered around ground truths, some elsewhere, with the thresholds well covered."""
    generator = np.random.default_rng(seed)
    truths: list[Truth] = []
    found: list[Found] = []
    for video in range(videos):
        own = []
        for _ in range(generator.integers(1, 5)):
            start, length = generator.uniform(0, 90), generator.uniform(0.5, 30)
            own.append((f"{video}", CLASSES[generator.integers(3)], start, start + length))
        truths += own
        for _ in range(per_video):
            _, label, start, end = own[generator.integers(len(own))]
            start, end = np.sort(np.array([start, end]) + generator.normal(0, 0.12 * (end - start), 2))
            label = label if generator.random() < 0.8 else CLASSES[generator.integers(3)]
            found.append((f"{video}", label, float(start), float(end), float(generator.random())))
    return truths, found


def test_equals_the_row_by_row_evaluation_at_the_standard_thresholds() -> None:
    truths, found = random_rows(seed=3, videos=40, per_video=15)
    assert_equals_row_by_row(truths, found, TIOU_THRESHOLDS)
    assert 0.1 < average_precision(detections_of(found), annotations_of(truths)).mean < 0.9


@pytest.mark.parametrize("at_once", [1, 7])
def test_the_size_of_the_blocks_of_pairs_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truths, found = random_rows(seed=4, videos=10, per_video=20)
    whole = average_precision(detections_of(found), annotations_of(truths))
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
    blocks = average_precision(detections_of(found), annotations_of(truths))
    np.testing.assert_array_equal(blocks.per_class, whole.per_class)


def test_thresholds_are_those_of_the_toolkit() -> None:
    assert TIOU_THRESHOLDS.tolist() == np.linspace(0.5, 0.95, 10).tolist()
    with pytest.raises(ValueError, match="read-only"):
        TIOU_THRESHOLDS[0] = 0


def test_tiou_equal_to_the_threshold_matches() -> None:
    truths = [("v", "a", 0.0, 10.0)]
    found = [("v", "a", 0.0, 5.0, 1.0)]  # tiou exactly 0.5
    result = average_precision(detections_of(found), annotations_of(truths), [0.5, np.nextafter(0.5, 1)])
    assert result.per_class.tolist() == [[1.0, 0.0]]


def test_a_refused_detection_takes_its_next_best_ground_truth() -> None:
    # All prefer the first; the second best reaches both, the third nothing but the first.
    truths = [("v", "a", 0.0, 10.0), ("v", "a", 2.0, 12.0)]
    found = [("v", "a", 0.0, 10.0, 0.9), ("v", "a", 0.5, 10.5, 0.8), ("v", "a", 0.0, 9.0, 0.7)]
    result = average_precision(detections_of(found), annotations_of(truths), [0.6, 0.8])
    assert result.per_class[0].tolist() == [1.0, 0.5]


def test_every_repeat_of_an_instance_needs_its_own_detection() -> None:
    truths = [("v", "a", 0.0, 10.0)] * 3
    found = [("v", "a", 0.0, 10.0, 0.9), ("v", "a", 0.0, 10.0, 0.9)]
    assert average_precision(detections_of(found), annotations_of(truths)).mean == pytest.approx(2 / 3)


def test_many_equal_detections_of_repeated_instances_are_matched_one_to_one() -> None:
    truths = [("v", "a", 0.0, 10.0)] * 50
    found = [("v", "a", 0.0, 10.0, score / 100) for score in range(100)]
    result = average_precision(detections_of(found), annotations_of(truths), [0.5])
    assert result.per_class[0, 0] == 1.0


def test_zero_length_ground_truth_matches_a_zero_length_detection_as_in_the_toolkit() -> None:
    truths = [("v", "a", 0.0, 0.0)]
    exact = detections_of([("v", "a", 0.0, 0.0, 1.0)])
    elsewhere = detections_of([("v", "a", 7.0, 7.0, 1.0)])
    longer = detections_of([("v", "a", 0.0, 1.0, 1.0)])
    means = [average_precision(found, annotations_of(truths)).mean for found in (exact, elsewhere, longer)]
    assert means == [1.0, 1.0, 0.0]


def test_classes_of_one_video_do_not_mix() -> None:
    truths = [("v", "a", 0.0, 10.0), ("v", "b", 0.0, 10.0)]
    result = average_precision(detections_of([("v", "b", 0.0, 10.0, 1.0)]), annotations_of(truths))
    assert result.classes == ("a", "b")
    assert result.per_class.mean(axis=1).tolist() == [0.0, 1.0]
    assert result.detections.tolist() == [0, 1]
    assert result.instances.tolist() == [1, 1]


@pytest.mark.parametrize(("first", "expected"), [("right", 1.0), ("wrong", 0.5)])
def test_equal_scores_rank_by_position_in_the_file(first: str, expected: float) -> None:
    right, wrong = ("v", "a", 0.0, 10.0, 0.5), ("v", "a", 50.0, 60.0, 0.5)
    found = [right, wrong] if first == "right" else [wrong, right]
    result = average_precision(detections_of(found), annotations_of([("v", "a", 0.0, 10.0)]))
    assert result.mean == expected


def test_zero_and_negative_zero_scores_are_a_tie() -> None:
    found = [("v", "a", 0.0, 10.0, -0.0), ("v", "a", 50.0, 60.0, 0.0)]
    assert average_precision(detections_of(found), annotations_of([("v", "a", 0.0, 10.0)])).mean == 1.0


def test_detections_of_a_video_without_annotations_are_false_positives() -> None:
    truths = [("v", "a", 0.0, 10.0)]
    found = [("stranger", "a", 0.0, 10.0, 0.9), ("v", "a", 0.0, 10.0, 0.5)]
    result = average_precision(detections_of(found), annotations_of(truths))
    assert result.mean == 0.5
    assert result.unknown == ("stranger",)


def test_instances_of_missing_videos_count_as_not_found() -> None:
    truths = [("v", "a", 0.0, 10.0), ("w", "a", 0.0, 10.0), ("x", "a", 0.0, 10.0)]
    found = detections_of([("v", "a", 0.0, 10.0, 0.9)], videos=("v", "w"))
    result = average_precision(found, annotations_of(truths))
    assert result.mean == pytest.approx(1 / 3)
    assert result.scored == ("v", "w")
    assert result.missing == ("x",)
    assert result.unknown == ()


def test_ids_pair_with_and_without_their_prefix() -> None:
    found = detections_of([("abc", "a", 0.0, 10.0, 0.9), ("v_def", "a", 0.0, 10.0, 0.9)])
    result = average_precision(found, annotations_of([("v_abc", "a", 0.0, 10.0), ("def", "a", 0.0, 10.0)]))
    assert result.mean == 1.0
    assert (result.scored, result.unknown) == (("v_abc", "def"), ())


def test_no_detection_at_all_scores_zero() -> None:
    result = average_precision(detections_of([]), annotations_of([("v", "a", 0.0, 10.0)]))
    assert result.per_class.shape == (1, 10)
    assert result.mean == 0.0
    assert result.missing == ("v",)


def test_a_label_outside_the_ground_truth_is_named_with_the_nearest_class() -> None:
    found = detections_of([("v", "Long jmup", 0.0, 1.0, 0.5)])
    with pytest.raises(UserError, match=r"label 'Long jmup' \(1 detections\).*made\.json.*mean 'Long jump'\?"):
        average_precision(found, annotations_of([("v", "Long jump", 0.0, 1.0)]))


def test_a_class_that_no_detection_uses_may_be_unknown() -> None:
    found = Detections(
        ("v",),
        ("unused", "a"),
        np.zeros(1, np.int64),
        np.ones(1, np.int64),
        np.array([[0.0, 1.0]]),
        np.ones(1),
    )
    assert average_precision(found, annotations_of([("v", "a", 0.0, 1.0)])).mean == 1.0


def test_annotations_without_instances_are_an_error() -> None:
    with pytest.raises(UserError, match=r"made\.json: no annotated instance"):
        average_precision(detections_of([]), annotations_of([], videos=("v",)))


@pytest.mark.parametrize("thresholds", [[], [0.0], [1.5], [math.nan], 0.5])
def test_thresholds_outside_their_range_are_refused(thresholds: object) -> None:
    with pytest.raises(ValueError, match="thresholds"):
        average_precision(detections_of([]), annotations_of([("v", "a", 0.0, 1.0)]), thresholds)  # type: ignore[arg-type]


def test_means_of_a_class_subset() -> None:
    truths = [("v", label, 0.0, 10.0) for label in CLASSES]
    found = [("v", "a", 0.0, 10.0, 1.0), ("v", "b", 0.0, 7.0, 1.0)]  # tiou 1 and 0.7
    result = average_precision(detections_of(found), annotations_of(truths))
    assert result.mean == pytest.approx((1.0 + 0.5) / 3)
    novel = result.select(["b", "c", "never annotated"])
    assert novel.classes == ("b", "c")
    assert novel.mean == pytest.approx(0.25)
    assert novel.mean_per_threshold[0] == pytest.approx(0.5)
    assert novel.instances.tolist() == [1, 1]
    with pytest.raises(UserError, match=r"'never annotated'.*none of its classes"):
        result.select(["never annotated"])


def test_importing_the_evaluation_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, ahernet.evaluation.report, ahernet.timelines, ahernet.data.detections\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib')))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_official_sample_submission_scores_one_at_every_threshold(real_data: Path) -> None:
    folder = real_data / "activitynet"
    annotations = read_annotations(
        folder / "anet_anno_action_19994.json.gz", subsets=folder / "video_info_19994.csv.gz"
    ).select("validation")
    result = average_precision(read_detections(folder / "sample_detection_prediction.json.gz"), annotations)
    assert (len(result.classes), int(result.instances.sum()), len(result.scored)) == (200, 7654, 4926)
    assert (result.missing, result.unknown) == ((), ())
    assert result.mean_per_threshold.tolist() == [1.0] * 10
    lengths = np.concatenate([np.diff(video.segments) for video in annotations.videos.values()])
    assert (lengths == 0).sum() == 3  # they match because 0 / 0 counts as a match
