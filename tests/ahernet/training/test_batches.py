import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.data.annotations import Annotations, VideoAnnotations
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError
from ahernet.training.batches import batch_members, build_training_set

LENGTHS = {"a": 4, "b": 1, "c": 9, "d": 3, "e": 5}
DURATIONS = {"a": 10.0, "b": math.nan, "c": 20.0, "d": 5.0, "e": math.nan}


@pytest.fixture
def archive(tmp_path):
    rng = np.random.default_rng(0)
    with ArchiveWriter(tmp_path / "a.h5", dimension=3, dtype="float32") as writer:
        for name, length in LENGTHS.items():
            writer.add(name, rng.normal(size=(length, 3)), DURATIONS[name])
    with open_archive(tmp_path / "a.h5") as opened:
        yield opened


def _annotations(videos):
    """videos: id -> (duration, [(start, end, label), ...])."""
    return Annotations(
        {
            name: VideoAnnotations(
                name,
                "training",
                duration,
                np.array([row[:2] for row in rows], float).reshape(-1, 2),
                tuple(row[2] for row in rows),
            )
            for name, (duration, rows) in videos.items()
        },
        "truth.json",
    )


def test_segments_become_parts_of_the_video_in_the_order_of_the_annotations(archive):
    training_set = build_training_set(
        archive,
        _annotations(
            {
                "c": (math.nan, [(5.0, 10.0, "run"), (0.0, 20.0, "fall")]),
                "a": (99.0, [(1.0, 2.0, "run")]),  # the archive's duration of 10 s counts
                "b": (4.0, [(1.0, 3.0, "fall")]),  # the archive knows none
            }
        ),
    )
    assert training_set.classes == ("fall", "run")
    assert [archive.ids[position] for position in training_set.positions] == ["c", "a", "b"]
    np.testing.assert_allclose(training_set.segments, [[0.25, 0.5], [0, 1], [0.1, 0.2], [0.25, 0.75]])
    assert training_set.labels.tolist() == [1, 0, 1, 0]
    assert training_set.offsets.tolist() == [0, 2, 3, 4]
    assert training_set.summary.describe() == "trains on 4 segments in 3 of 3 videos"


def test_everything_left_out_is_reported_with_its_reason(archive):
    training_set = build_training_set(
        archive,
        _annotations(
            {
                "a": (10.0, [(1.0, 2.0, "run"), (3.0, 4.0, "swim"), (5.0, 5.0, "run"), (8.0, 12.0, "run")]),
                "b": (math.nan, [(1.0, 3.0, "run")]),
                "c": (20.0, [(1.0, 3.0, "swim"), (21.0, 22.0, "run")]),
                "d": (5.0, []),
                "z": (5.0, [(1.0, 3.0, "run")]),
            }
        ),
        classes=["run", "walk"],
    )
    summary = training_set.summary
    assert summary.classes_without_segments == ("walk",)
    assert (summary.videos, summary.usable_videos, summary.usable_segments) == (5, 1, 2)
    assert summary.without_features == ("z",)
    assert summary.without_duration == ("b",)
    assert summary.without_segments == ("c", "d")
    assert summary.unknown_classes == (("a", "swim"), ("c", "swim"))
    assert summary.empty_segments == (("a", 5.0, 5.0), ("c", 21.0, 22.0))
    assert summary.cut_segments == (("a", 8.0, 12.0),)
    np.testing.assert_allclose(training_set.segments, [[0.1, 0.2], [0.8, 1.0]])
    text = summary.describe()
    assert "\n" not in text
    for words in (
        "trains on 2 segments in 1 of 5 videos",
        "left out 1 videos without features: z",
        "left out 1 videos of unknown duration: b",
        "left out 2 videos without a usable segment: c, d",
        "left out 2 segments of unknown classes: a (swim), c (swim)",
        "left out 2 segments without length inside their video: a (5 s - 5 s), c (21 s - 22 s)",
        "learns nothing of 1 classes without a segment: walk",
        "cut 1 segments at the ends of their video: a (8 s - 12 s)",
    ):
        assert words in text


def test_ids_with_and_without_prefix_are_the_same_video(archive):
    training_set = build_training_set(archive, _annotations({"v_a": (10.0, [(1.0, 2.0, "run")])}))
    assert [archive.ids[position] for position in training_set.positions] == ["a"]


def test_nothing_usable_is_an_error_that_says_why(archive):
    with pytest.raises(
        UserError, match=r"truth\.json: no video can be trained on with .*a\.h5, expected .*; left out 1"
    ):
        build_training_set(archive, _annotations({"z": (5.0, [(1.0, 3.0, "run")])}))
    with pytest.raises(UserError, match="no video can be trained on"):
        build_training_set(archive, _annotations({}))


def test_a_class_named_twice_is_refused(archive):
    with pytest.raises(UserError, match="classes: a name occurs twice"):
        build_training_set(archive, _annotations({"a": (10.0, [(1.0, 2.0, "run")])}), ["run", "run"])


def test_a_batch_holds_the_rows_and_the_ground_truth_of_its_videos(archive):
    training_set = build_training_set(
        archive,
        _annotations(
            {
                "a": (10.0, [(1.0, 2.0, "run"), (3.0, 4.0, "fall")]),
                "c": (20.0, [(5.0, 10.0, "swim")]),
                "d": (5.0, [(0.0, 1.0, "run"), (1.0, 2.0, "fall"), (2.0, 3.0, "swim")]),
            }
        ),
    )
    batch = training_set.read(np.array([2, 0, 2]))
    assert batch.video_ids == ("d", "a", "d")
    assert batch.offsets.tolist() == [0, 3, 7, 10]
    np.testing.assert_array_equal(batch.rows[3:7], archive.read([0])[0])
    assert torch.equal(batch.rows[:3], batch.rows[7:])
    assert batch.ground_truth.offsets.tolist() == [0, 3, 5, 8]
    assert batch.ground_truth.labels.tolist() == [1, 0, 2, 1, 0, 1, 0, 2]
    assert batch.ground_truth.segments.dtype == torch.float32
    np.testing.assert_allclose(batch.ground_truth.segments[3:5], [[0.1, 0.2], [0.3, 0.4]], rtol=1e-6)
    moved = batch.to(torch.device("cpu"))
    assert type(moved) is type(batch)
    assert moved.video_ids == batch.video_ids
    for a, b in zip([*moved[1:3], *moved.ground_truth], [*batch[1:3], *batch.ground_truth], strict=True):
        assert torch.equal(a, b)


def test_the_fingerprint_tells_training_sets_apart(archive):
    def fingerprint(end=2.0, label="run", name="a", classes=("run", "fall")):
        truth = _annotations({name: (10.0, [(1.0, end, label)])})
        return build_training_set(archive, truth, classes).fingerprint()

    assert fingerprint() == fingerprint()
    others = {fingerprint(end=2.5), fingerprint(label="fall"), fingerprint(name="c"), fingerprint(classes=("run",))}
    assert len(others | {fingerprint()}) == 5


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    batch_size=st.integers(1, 20),
    count=st.integers(1, 30),
    epochs=st.integers(1, 4),
    stream=st.integers(0, 3),
)
def test_every_epoch_holds_every_video_once(seed, batch_size, count, epochs, stream):
    iterations = math.ceil(epochs * count / batch_size)
    order = np.concatenate([batch_members(seed, k, batch_size, count, stream) for k in range(iterations)])
    for epoch in range(epochs):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 10_000))
def test_a_batch_depends_on_seed_and_iteration_only(seed, iteration):
    batch = batch_members(seed, iteration, 16, 100)
    batch_members(seed + 1, iteration + 5, 16, 100)
    np.testing.assert_array_equal(batch_members(seed, iteration, 16, 100), batch)


def test_epochs_seeds_and_streams_differ():
    epochs = [tuple(batch_members(seed, k, 50, 50, stream)) for seed in (0, 1) for k in (0, 1) for stream in (0, 1)]
    assert len(set(epochs)) == 8
