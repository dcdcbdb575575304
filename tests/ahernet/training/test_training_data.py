import dataclasses

import numpy as np
import pytest
from training_worlds import BASE, NOVEL, data_of, small_config

from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError
from ahernet.training.training_data import build_training_data


def _build(world, method="aher", **options):
    options = {
        "archive": world.archive,
        "annotations": world.annotations,
        "classes": BASE,
        "moments": world.moments,
        "moment_labels": world.labels,
        "method": small_config(method).method,
    } | options
    return build_training_data(**options)


def test_base_classes_come_first_then_those_that_only_moments_have(world):
    data = _build(world, classes=["base2", "base0"])
    assert data.classes == ("base2", "base0", "base1", *NOVEL)
    assert data.base_rows == [0, 1]
    # Labels of moments number their own classes, by name.
    assert data.moment_classes == (*BASE, *NOVEL)
    assert [data.classes[row] for row in data.moment_rows] == list(data.moment_classes)


def test_classes_that_both_sets_have_share_a_row(world):
    labels = {moment: label for moment, label in world.labels.items() if label in ("base1", "novel0")}
    data = _build(world, moment_labels=labels)
    assert data.classes == (*BASE, "novel0")
    assert data.base_rows == [0, 1, 2]
    assert data.moment_rows == [1, 3]


def test_a_run_without_moments_has_the_classes_of_its_videos(world):
    data = data_of(world, small_config("aher*"))
    assert (data.classes, data.moments, data.moment_classes, data.moment_rows) == (BASE, None, (), [])


def test_moments_that_the_run_has_no_use_for_are_refused(world):
    with pytest.raises(UserError, match=r"^method\.moments: none, but moments are given"):
        _build(world, "aher*")


def test_labels_of_moments_without_moments_are_refused(world):
    with pytest.raises(UserError, match=r"^method\.moments: none, but labels of moments are given"):
        _build(world, "aher*", moments=None)


@pytest.mark.parametrize("method", ["aher0", "aher-", "aherM", "aherA-", "aher"])
@pytest.mark.parametrize("missing", [{"moments": None}, {"moment_labels": None}])
def test_missing_moments_or_labels_are_named(world, method, missing):
    with pytest.raises(UserError, match=r"^method\.moments: (classified|localized), but no moments with labels"):
        _build(world, method, **missing)


def test_moments_of_another_dimension_are_refused(world, tmp_path):
    with ArchiveWriter(tmp_path / "wide.h5", dimension=11) as writer:
        writer.add("m", np.zeros((3, 11)))
    with (
        open_archive(tmp_path / "wide.h5") as wide,
        pytest.raises(UserError, match=r"wide\.h5: moments have 11 values a row, untrimmed videos 8"),
    ):
        _build(world, moments=wide, moment_labels={"m": "base0"})


def test_moments_none_of_which_is_labelled_are_refused(world):
    with pytest.raises(UserError, match=r"moments\.h5: has none of the 1 labelled moments"):
        _build(world, moment_labels={"elsewhere": "base0"})


def test_both_sets_are_described_a_line_each(world):
    lines = data_of(world, small_config("aher")).describe().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("trains on 8 segments in 6 of 8 videos")
    assert lines[1] == "learns from 5 moments of 2 classes; left out 8 moments without a label"
    assert len(data_of(world, small_config("aher*")).describe().splitlines()) == 1


@pytest.mark.parametrize("method", ["aher0", "aherM"])
def test_videos_that_a_run_never_reads_are_not_said_to_be_trained_on(world, method):
    assert "trains on" not in data_of(world, small_config(method)).describe()


def test_the_fingerprint_covers_both_sets(world):
    fingerprint = data_of(world, small_config("aher")).fingerprint()
    assert data_of(world, small_config("aher")).fingerprint() == fingerprint
    relabelled = {**world.novel_labels, "v0_002": "novel1"}
    first = world.annotations.videos["v0"]
    moved = dataclasses.replace(first, segments=first.segments + 0.5)
    others = [
        data_of(world, small_config("aher*")).fingerprint(),
        data_of(world, small_config("aher"), relabelled).fingerprint(),
        _build(
            world,
            annotations=dataclasses.replace(world.annotations, videos={**world.annotations.videos, "v0": moved}),
            moment_labels=world.novel_labels,
        ).fingerprint(),
    ]
    assert len({tuple(x) for x in [fingerprint, *others]}) == 4


def test_what_is_annotated_of_novel_classes_changes_nothing(world):
    videos = {
        name: dataclasses.replace(
            video,
            segments=video.segments[[label in BASE for label in video.labels]],
            labels=tuple(label for label in video.labels if label in BASE),
        )
        for name, video in world.annotations.videos.items()
    }
    without = _build(world, annotations=dataclasses.replace(world.annotations, videos=videos))
    data = _build(world)
    assert without.fingerprint() == data.fingerprint()
    for column in ("positions", "segments", "labels", "offsets"):
        np.testing.assert_array_equal(getattr(without.untrimmed, column), getattr(data.untrimmed, column))
