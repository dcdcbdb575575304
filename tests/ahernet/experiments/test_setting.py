import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahernet.data.annotations import read_annotations
from ahernet.data.archive import open_archive
from ahernet.data.moment_labels import read_moment_labels
from ahernet.experiments.setting import make_setting, rendered_source, split_classes, validation_of
from ahernet.rendered import WorldConfig

WORLD = WorldConfig(classes=4, training_videos=8, validation_videos=4, dimension=8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return rendered_source(tmp_path_factory.mktemp("data"), WORLD)


@given(st.integers(2, 50), st.integers(0, 1000))
def test_a_split_halves_the_classes(count, split):
    classes = [f"class {k:02d}" for k in range(count)]
    base, novel = split_classes(classes, split)
    assert sorted([*base, *novel]) == classes
    assert 0 <= len(base) - len(novel) <= 1
    assert split_classes(classes, split) == (base, novel)


def test_splits_differ():
    classes = [f"class {k:02d}" for k in range(40)]
    assert len({split_classes(classes, split) for split in range(5)}) == 5


def test_moments_are_of_novel_classes_and_training_videos_alone(source, tmp_path):
    setting = make_setting(source, 1, tmp_path)
    annotations = read_annotations(source.annotations)
    training = annotations.select("training")
    labels = read_moment_labels(setting.labels)
    assert set(labels.values()) == set(setting.novel)
    instances = [label for video in training.videos.values() for label in video.labels if label in setting.novel]
    assert sorted(labels.values()) == sorted(instances)
    assert {moment.rsplit("_", 1)[0] for moment in labels} <= set(training.videos)
    with open_archive(setting.moments) as moments:
        assert set(moments.ids) == set(labels)


def test_a_setting_that_is_there_is_taken(source, tmp_path):
    first = make_setting(source, 2, tmp_path)
    written = first.moments.stat().st_mtime_ns
    assert make_setting(source, 2, tmp_path) == first
    assert first.moments.stat().st_mtime_ns == written
    assert rendered_source(source.archive.parent, WORLD) == source


def test_scores_are_on_held_out_videos_of_the_classes(source):
    annotations = read_annotations(source.annotations)
    wanted = annotations.classes()[:2]
    truth = validation_of(annotations, wanted)
    assert truth.videos
    for video in truth.videos.values():
        assert video.subset == "validation"
        assert set(video.labels) <= set(wanted)
        assert np.shape(video.segments) == (len(video.labels), 2)
