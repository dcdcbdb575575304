import math
from pathlib import Path

import numpy as np
import pytest
from evaluation_rows import Found, Truth, annotations_of, detections_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ahernet.data.annotations import read_annotations
from ahernet.data.detections import Detections
from ahernet.errors import UserError
from ahernet.evaluation import average_recall as module
from ahernet.evaluation.average_precision import TIOU_THRESHOLDS
from ahernet.evaluation.average_recall import average_recall

WHOLE = ("v", "a", 0.0, 10.0)


def reaches(proposal: Found, truth: Truth, threshold: float) -> bool:
    (start, end), (own_start, own_end) = proposal[2:4], truth[2:]
    intersection = max(min(end, own_end) - max(start, own_start), 0.0)
    union = (own_end - own_start) + (end - start) - intersection
    return union > 0 and intersection / union >= threshold


def video_by_video(
    truths: list[Truth], proposals: list[Found], thresholds: list[float], max_proposals: int
) -> tuple[np.ndarray, np.ndarray]:
    """Recall (T, 100) and proposals per video (100,) as they are defined: one video after the other."""
    recall, average_number = np.zeros((len(thresholds), 100)), np.zeros(100)
    videos = list(dict.fromkeys(row[0] for row in truths))
    kept: dict[str, list[Found]] = {}
    for video in videos:
        own = sorted((row for row in proposals if row[0] == video), key=lambda row: -row[4])  # sorted() is stable
        kept[video] = own[: int(len(own) * (max_proposals * len(videos) / len(proposals)))] if own else []
    total = sum(map(len, kept.values()))
    for point in range(100):
        fraction = (point + 1) / 100 * (max_proposals * len(videos) / total) if total else 0.0
        average_number[point] = fraction * (total / len(videos)) if total else (point + 1) / 100 * max_proposals
        for row, threshold in enumerate(thresholds):
            found = 0
            for truth in truths:
                own = kept[truth[0]]
                found += any(reaches(proposal, truth, threshold) for proposal in own[: int(len(own) * fraction)])
            recall[row, point] = found / len(truths)
    return recall, average_number


def assert_equals_video_by_video(
    truths: list[Truth], proposals: list[Found], thresholds: list[float], max_proposals: int
) -> None:
    result = average_recall(detections_of(proposals), annotations_of(truths, ("w",)), thresholds, max_proposals)
    recall, average_number = video_by_video(truths, proposals, thresholds, max_proposals)
    np.testing.assert_allclose(result.recall, recall, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.proposals_per_video, average_number, rtol=0, atol=1e-9)
    steps = np.diff(average_number) * (recall.mean(axis=0)[1:] + recall.mean(axis=0)[:-1]) / 2
    assert result.area == pytest.approx(steps.sum() / average_number[-1], abs=1e-9)


# A coarse grid makes ties of score, tiou on a threshold, repeats and zero lengths common. "t" has ground truth and
# rarely a proposal, "w" is annotated without ground truth, "x" is unknown.
segment = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)
truth_rows = st.lists(
    st.tuples(st.sampled_from("tuv"), st.sampled_from("ab"), segment).map(lambda row: (*row[:2], *row[2])),
    min_size=1,
    max_size=8,
)
proposal_rows = st.lists(
    st.tuples(st.sampled_from("tuuvvvwx"), st.sampled_from("abc"), segment, st.integers(0, 4)).map(
        lambda row: (*row[:2], *row[2], row[3] / 4)
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(truth_rows, proposal_rows, st.sampled_from([1, 2, 3, 7, 100]))
@example([("u", "a", 0, 6)], [], 100)
@example([("u", "a", 0, 6)], [("x", "a", 0, 6, 1.0)], 100)
def test_equals_the_evaluation_video_by_video(truths: list[Truth], proposals: list[Found], max_proposals: int) -> None:
    assert_equals_video_by_video(truths, proposals, [0.5, 0.2, 1.0], max_proposals)


def random_rows(seed: int, videos: int, per_video: int) -> tuple[list[Truth], list[Found]]:
    """Founds scattered around ground truths; numbers of proposals that differ from video to video."""
    generator = np.random.default_rng(seed)
    truths: list[Truth] = []
    proposals: list[Found] = []
    for video in range(videos):
        starts = generator.uniform(0, 90, generator.integers(1, 4))
        own = np.stack([starts, starts + generator.uniform(0.5, 30, len(starts))], axis=1)
        truths += [(f"{video}", "a", start, end) for start, end in own.tolist()]
        near = own[generator.integers(0, len(own), generator.integers(0, 2 * per_video))]
        spread = 0.12 * (near[:, 1:] - near[:, :1])
        near = np.sort(near + generator.normal(0, 1, near.shape) * spread, axis=1)
        proposals += [(f"{video}", "a", start, end, generator.random()) for start, end in near.tolist()]
    return truths, proposals


@pytest.mark.parametrize("max_proposals", [5, 15, 100])
def test_equals_the_evaluation_video_by_video_at_the_standard_thresholds(max_proposals: int) -> None:
    truths, proposals = random_rows(seed=5, videos=12, per_video=15)
    assert_equals_video_by_video(truths, proposals, TIOU_THRESHOLDS.tolist(), max_proposals)
    area = average_recall(detections_of(proposals), annotations_of(truths), max_proposals=max_proposals).area
    assert 0.1 < area < 0.9


@pytest.mark.parametrize("at_once", [1, 7])
def test_the_size_of_the_blocks_of_pairs_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truths, proposals = random_rows(seed=6, videos=8, per_video=15)
    whole = average_recall(detections_of(proposals), annotations_of(truths))
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
    blocks = average_recall(detections_of(proposals), annotations_of(truths))
    np.testing.assert_array_equal(blocks.recall, whole.recall)


def hundred(position: int, video: str = "v") -> list[Found]:
    """100 proposals of one video, of which the one at `position` by score is WHOLE and the others miss it."""
    return [
        (video, "a", 0.0 if rank == position else 50.0, 10.0 if rank == position else 60.0, 1 - rank / 100)
        for rank in range(100)
    ]


@pytest.mark.parametrize(("position", "point"), [(0, 1), (27, 28), (28, 30), (56, 58), (57, 59), (99, 100)])
def test_the_numbers_of_proposals_are_truncated_as_in_the_toolkit(position: int, point: int) -> None:
    # int(100 * 0.29) is 28, int(100 * 0.57) is 56 and int(100 * 0.58) is 57 in float64.
    result = average_recall(detections_of(hundred(position)), annotations_of([WHOLE]))
    assert np.flatnonzero(result.average_recall)[0] + 1 == point
    assert result.proposals_per_video[point - 1] == point


def test_labels_do_not_matter_and_one_proposal_finds_instances_of_several_classes() -> None:
    truths = [WHOLE, ("v", "b", 0.0, 10.0), WHOLE]
    result = average_recall(detections_of([("v", "elsewhere", 0.0, 10.0, 1.0)]), annotations_of(truths))
    # One proposal in all: 1 of 100 per video use int(1 * 0.01 * 100 / 1).
    assert result.recall.tolist() == [[1.0] * 100] * 10
    assert result.area == pytest.approx(0.99)


def test_each_threshold_has_its_row_in_the_order_given() -> None:
    found = detections_of([("v", "a", 0.0, 5.0, 1.0)])  # tiou exactly 0.5
    result = average_recall(found, annotations_of([WHOLE]), [0.7, 0.5, np.nextafter(0.5, 1)])
    assert result.recall[:, -1].tolist() == [0.0, 1.0, 0.0]
    assert result.average_recall[-1] == pytest.approx(1 / 3)


def test_the_budget_is_a_share_of_what_each_video_returned() -> None:
    # 4 + 16 proposals, budget 5 a video: each keeps half, the best 2 and 8.
    proposals = [("v", "a", 50.0, 60.0, 1.0)] * 2 + [("v", "a", 0.0, 10.0, 0.5)] * 2
    proposals += [("u", "a", 50.0, 60.0, 1.0)] * 7 + [("u", "a", 0.0, 10.0, 0.5)] * 9
    truths = [WHOLE, ("u", "a", 0.0, 10.0)]
    result = average_recall(detections_of(proposals), annotations_of(truths), max_proposals=5)
    assert result.average_recall[-2:].tolist() == [0.0, 0.5]


def test_proposals_of_unknown_videos_use_up_the_budget() -> None:
    strangers = [row for number in range(9) for row in hundred(0, f"stranger {number}")]
    alone = average_recall(detections_of(hundred(50)), annotations_of([WHOLE]), max_proposals=60)
    crowded = average_recall(detections_of(hundred(50) + strangers), annotations_of([WHOLE]), max_proposals=60)
    assert (alone.average_recall[-1], crowded.average_recall[-1]) == (1.0, 0.0)
    assert len(crowded.unknown) == 9


def test_fewer_proposals_than_the_budget_leave_the_curve_flat() -> None:
    proposals = [("v", "a", 50.0, 60.0, 1.0), ("v", "a", 0.0, 10.0, 0.5)]
    result = average_recall(detections_of(proposals), annotations_of([WHOLE]))
    assert result.average_recall.tolist() == [0.0] + [1.0] * 99
    assert result.proposals_per_video.tolist() == list(range(1, 101))


@pytest.mark.parametrize(("first", "expected"), [("right", 1.0), ("wrong", 0.0)])
def test_equal_scores_rank_by_position_in_the_file(first: str, expected: float) -> None:
    right, wrong = ("v", "a", 0.0, 10.0, 0.5), ("v", "a", 50.0, 60.0, 0.5)
    proposals = [right, wrong] if first == "right" else [wrong, right]
    result = average_recall(detections_of(proposals), annotations_of([WHOLE]), max_proposals=1)
    assert result.average_recall[-1] == expected


def test_a_zero_length_instance_is_never_found() -> None:
    truths = [("v", "a", 5.0, 5.0), WHOLE]
    proposals = [("v", "a", 5.0, 5.0, 1.0), ("v", "a", 0.0, 10.0, 0.9)]
    result = average_recall(detections_of(proposals), annotations_of(truths))
    assert result.recall[:, -1].tolist() == [0.5] * 10


def test_instances_of_videos_without_proposals_count_as_not_found() -> None:
    truths = [WHOLE, ("listed", "a", 0.0, 10.0), ("absent", "a", 0.0, 10.0)]
    found = detections_of([("v", "a", 0.0, 10.0, 1.0)], videos=("v", "listed"))
    result = average_recall(found, annotations_of(truths))
    assert result.average_recall[-1] == pytest.approx(1 / 3)
    assert (result.scored, result.missing, result.unknown) == (("v", "listed"), ("absent",), ())


def test_annotated_videos_without_instances_change_the_budget_alone() -> None:
    proposals = hundred(30) + hundred(30, "empty")
    annotations = annotations_of([WHOLE], ("empty",))
    result = average_recall(detections_of(proposals), annotations, max_proposals=50)
    # 50 of the 200 proposals may stay: a quarter of each video's, too few.
    assert result.average_recall[-1] == 0.0
    assert average_recall(detections_of(hundred(30)), annotations, max_proposals=50).average_recall[-1] == 1.0


def test_ids_pair_with_and_without_their_prefix() -> None:
    found = detections_of([("abc", "a", 0.0, 10.0, 1.0)])
    result = average_recall(found, annotations_of([("v_abc", "a", 0.0, 10.0)]))
    assert result.average_recall[-1] == 1.0
    assert (result.scored, result.unknown) == (("v_abc",), ())


@pytest.mark.parametrize("proposals", [[], [("stranger", "a", 0.0, 10.0, 1.0)]])
def test_recall_is_zero_where_nothing_was_proposed(proposals: list[Found]) -> None:
    result = average_recall(detections_of(proposals), annotations_of([WHOLE]))
    assert not result.recall.any()
    assert result.area == 0.0
    assert result.missing == ("v",)


def test_annotations_without_instances_are_an_error() -> None:
    with pytest.raises(UserError, match=r"made\.json: no annotated instance"):
        average_recall(detections_of([]), annotations_of([], videos=("v",)))


@pytest.mark.parametrize("thresholds", [[], [0.0], [1.5], [math.nan], 0.5])
def test_thresholds_outside_their_range_are_refused(thresholds: object) -> None:
    with pytest.raises(ValueError, match="thresholds"):
        average_recall(detections_of([]), annotations_of([WHOLE]), thresholds)  # type: ignore[arg-type]


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_proposals: expected at least 1, got 0"):
        average_recall(detections_of([]), annotations_of([WHOLE]), max_proposals=0)


@pytest.mark.parametrize(("seed", "percent"), [(42, 44.837092), (1, 44.468454)])
def test_uniform_random_proposals_score_what_the_toolkit_gives_them(seed: int, percent: float, real_data: Path) -> None:
    folder = real_data / "activitynet"
    annotations = read_annotations(
        folder / "anet_anno_action_19994.json.gz", subsets=folder / "video_info_19994.csv.gz"
    ).select("validation")
    duration = np.array([video.duration for video in annotations.videos.values()])[:, None]
    # Found after proposal: centre, length, score.
    drawn = np.random.RandomState(seed).rand(len(duration), 100, 3)
    centre, length = duration * drawn[..., 0], duration * drawn[..., 1]
    proposals = Detections(
        video_ids=tuple(annotations.videos),
        classes=("any",),
        video=np.repeat(np.arange(len(duration)), 100),
        label=np.zeros(centre.size, np.int64),
        segments=np.stack([centre - length / 2, centre + length / 2], axis=-1).reshape(-1, 2),
        scores=drawn[..., 2].ravel(),
    )
    result = average_recall(proposals, annotations)
    assert 100 * result.area == pytest.approx(percent, abs=1e-6)
    assert len(result.scored) == 4926
