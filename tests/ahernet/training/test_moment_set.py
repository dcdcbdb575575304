import math

import numpy as np
import pytest
import torch

from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError
from ahernet.training.batches import batch_members
from ahernet.training.moment_set import build_moment_set

LENGTHS = {"a": 4, "b": 1, "c": 9, "d": 3}
LABELS = {"c": "run", "a": "fall", "d": "run"}


@pytest.fixture
def archive(tmp_path):
    return _archive(tmp_path / "m.h5")


def _archive(path, lengths=LENGTHS):
    rng = np.random.default_rng(0)
    with ArchiveWriter(path, dimension=3, dtype="float32") as writer:
        for name, length in lengths.items():
            writer.add(name, rng.normal(size=(length, 3)), math.nan)
    return open_archive(path)


def _ids(moments):
    return [moments.archive.ids[position] for position in moments.positions]


def test_moments_come_in_the_order_of_their_labels_and_classes_in_that_of_their_names(archive):
    moments = build_moment_set(archive, LABELS)
    assert moments.classes == ("fall", "run")
    assert _ids(moments) == ["c", "a", "d"]
    assert moments.labels.tolist() == [1, 0, 1]
    assert len(moments) == 3


def test_moments_need_no_duration(archive):
    assert np.isnan(archive.durations).all()
    assert len(build_moment_set(archive, LABELS)) == 3


def test_what_is_left_out_is_counted_and_said(archive):
    moments = build_moment_set(archive, {**LABELS, "y": "swim", "z": "run"})
    assert moments.without_features == ("y", "z")
    assert moments.unlabelled == 1
    assert moments.classes == ("fall", "run")
    assert moments.without_moments == ("swim",)
    text = moments.describe()
    assert "\n" not in text
    for words in (
        "learns from 3 moments of 2 classes",
        "left out 2 labels without features, as y",
        "left out 1 classes without a moment, as swim",
        "left out 1 moments without a label",
    ):
        assert words in text


def test_nothing_left_out_is_not_mentioned(archive):
    text = build_moment_set(archive, dict.fromkeys(LENGTHS, "run")).describe()
    assert text == "learns from 4 moments of 1 classes"


@pytest.mark.parametrize("labels", [{}, {"y": "run", "z": "run"}])
def test_no_moment_with_both_is_refused(archive, labels):
    with pytest.raises(UserError, match=rf"m\.h5: has none of the {len(labels)} labelled moments"):
        build_moment_set(archive, labels)


def test_ids_with_and_without_prefix_are_the_same_moment(archive):
    moments = build_moment_set(archive, {"v_a": "run", "c": "fall"})
    assert _ids(moments) == ["a", "c"]
    assert moments.without_features == ()


def test_a_moment_labelled_under_two_ids_counts_once(archive):
    moments = build_moment_set(archive, {"a": "run", "v_a": "fall"})
    assert _ids(moments) == ["a"]
    assert moments.labels.tolist() == [0]
    assert moments.classes == ("run",)
    assert moments.without_features == ("v_a",)
    assert moments.unlabelled == 3


def test_a_batch_holds_the_rows_and_labels_of_its_moments(archive):
    moments = build_moment_set(archive, LABELS)
    batch = moments.read(np.array([2, 0, 2]))
    assert batch.video_ids == ("d", "c", "d")
    assert batch.offsets.tolist() == [0, 3, 12, 15]
    assert batch.labels.tolist() == [1, 1, 1]
    assert batch.labels.dtype == batch.offsets.dtype == torch.int64
    np.testing.assert_array_equal(batch.rows[3:12], archive.read([2])[0])
    assert torch.equal(batch.rows[:3], batch.rows[12:])


def test_every_epoch_holds_every_moment_once(archive):
    moments = build_moment_set(archive, LABELS)
    stream = np.concatenate([moments.members(7, k, 4) for k in range(6)])
    assert all(sorted(epoch) == [0, 1, 2] for epoch in stream.reshape(8, 3))


def test_members_depend_on_seed_and_iteration_only(archive):
    moments = build_moment_set(archive, LABELS)
    batch = moments.members(3, 5, 8)
    moments.members(4, 9, 8)
    np.testing.assert_array_equal(moments.members(3, 5, 8), batch)
    assert any((moments.members(3, k, 8) != moments.members(4, k, 8)).any() for k in range(3))


def test_the_order_of_moments_does_not_follow_that_of_untrimmed_videos(tmp_path):
    names = [f"m{k}" for k in range(40)]
    moments = build_moment_set(_archive(tmp_path / "m.h5", dict.fromkeys(names, 1)), dict.fromkeys(names, "run"))
    assert (moments.members(0, 0, 40) != batch_members(0, 0, 40, 40)).sum() > 30


def test_the_fingerprint_tells_moment_sets_apart(archive, tmp_path):
    fingerprint = build_moment_set(archive, LABELS).fingerprint()
    assert build_moment_set(archive, LABELS).fingerprint() == fingerprint
    with _archive(tmp_path / "longer.h5", {**LENGTHS, "a": 5}) as longer:
        others = [
            build_moment_set(archive, labels).fingerprint()
            for labels in (
                {**LABELS, "a": "run"},
                {**LABELS, "a": "jump"},
                {**LABELS, "b": "run"},
                {name: LABELS[name] for name in ("a", "c", "d")},
                {name: LABELS[name] for name in ("c", "a")},
            )
        ]
        others.append(build_moment_set(longer, LABELS).fingerprint())
    assert len({fingerprint, *others}) == 7
