import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_references import CLASSES, DURATIONS, LONG, MODEL, write_archive

from ahernet.config import Config, InferenceConfig
from ahernet.data.archive import open_archive
from ahernet.errors import UserError
from ahernet.inference import ready
from ahernet.inference.anchors import AnchorStep
from ahernet.inference.crops import CropStep
from ahernet.inference.localize import localize
from ahernet.inference.ready import inference_step
from ahernet.inference.snippets import SnippetStep

CANDIDATES = {"anchors": AnchorStep, "crops": CropStep, "snippets": SnippetStep}


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_the_configuration_chooses_the_step(localizer, candidates):
    step = inference_step(localizer, InferenceConfig(candidates=candidates))
    assert type(step) is CANDIDATES[candidates]


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_localize_gives_what_the_step_finds_in_seconds(archive, checkpoint, candidates):
    config = InferenceConfig(candidates=candidates, top_k=11, batch_size=2)
    detections = localize(archive, checkpoint, config, classes=["run", "jump"], device="cpu", progress=False)
    assert detections.classes == ("run", "jump")
    step = CANDIDATES[candidates](checkpoint.model, config, torch.tensor([2, 0]))
    for first in range(0, len(archive), 2):
        videos = range(first, min(first + 2, len(archive)))
        found = step(*map(torch.from_numpy, archive.read(videos)))
        for row, video in enumerate(videos):
            count, mine = int(found.counts[row]), detections.video == video
            np.testing.assert_array_equal(detections.label[mine], found.labels[row, :count])
            np.testing.assert_array_equal(detections.scores[mine], found.scores[row, :count])
            seconds = found.segments[row, :count].double().numpy() * DURATIONS[video]
            np.testing.assert_allclose(detections.segments[mine], seconds, rtol=1e-12)
    assert set(detections.label) == {0, 1}


def test_localize_gives_seconds_by_video_best_first(archive, checkpoint):
    detections = localize(archive, checkpoint, device="cpu", progress=False)
    assert detections.video_ids == archive.ids
    assert detections.classes == CLASSES
    assert (np.diff(detections.video) >= 0).all()
    assert set(detections.video) == set(range(5))
    same_video = np.diff(detections.video) == 0
    assert (np.diff(detections.scores)[same_video] <= 0).all()
    durations = np.array(DURATIONS)[detections.video]
    assert (detections.segments[:, 0] >= 0).all()
    assert (detections.segments[:, 1] > detections.segments[:, 0]).all()
    assert (detections.segments <= durations[:, None]).all()
    assert detections.segments[detections.video == 2].max() > 100


def test_localize_does_not_depend_on_the_batch_size(archive, checkpoint):
    one, many = (
        localize(archive, checkpoint, InferenceConfig(batch_size=size), device="cpu", progress=False) for size in (1, 3)
    )
    np.testing.assert_array_equal(one.video, many.video)
    np.testing.assert_array_equal(one.label, many.label)
    np.testing.assert_allclose(one.segments, many.segments, atol=1e-3)


def test_localize_takes_the_wanted_videos_in_their_order(archive, checkpoint):
    everything = localize(archive, checkpoint, device="cpu", progress=False)
    some = localize(archive, checkpoint, video_ids=["video3", "video1"], device="cpu", progress=False)
    assert some.video_ids == ("video3", "video1")
    for new, old in ((0, 3), (1, 1)):
        np.testing.assert_allclose(
            some.segments[some.video == new], everything.segments[everything.video == old], atol=1e-3
        )


def test_a_minimum_score_that_nothing_reaches_gives_no_detection(archive, checkpoint):
    nothing = localize(archive, checkpoint, InferenceConfig(minimum_score=1.0), device="cpu", progress=False)
    assert nothing.video_ids == archive.ids
    assert nothing.segments.shape == (0, 2)


def test_progress_counts_videos(archive, checkpoint, capsys):
    localize(archive, checkpoint, device="cpu")
    assert "videos/s" in capsys.readouterr().err


def test_another_feature_dimension_is_refused(archive, checkpoint):
    wide = dataclasses.replace(MODEL, feature_dimension=7)
    other = dataclasses.replace(checkpoint, config=Config(model=wide))
    with pytest.raises(UserError, match=r"a\.h5: features have 6 values a row, the network in .* expects 7"):
        localize(archive, other)


def test_missing_durations_are_listed(tmp_path, checkpoint):
    path = write_archive(tmp_path / "b.h5", durations=(1.0, np.nan, 3.0, np.nan, 5.0))
    with open_archive(path) as archive:
        with pytest.raises(UserError, match=r"b\.h5: the duration is unknown of 'video1', 'video3';"):
            localize(archive, checkpoint)
        localize(archive, checkpoint, video_ids=["video0", "video4"], device="cpu", progress=False)


def test_unknown_and_repeated_videos_are_refused(archive, checkpoint):
    with pytest.raises(UserError, match="video9"):
        localize(archive, checkpoint, video_ids=["video9"])
    with pytest.raises(UserError, match="video_ids: an id occurs twice"):
        localize(archive, checkpoint, video_ids=["video1", "video1"])
    with pytest.raises(UserError, match="no video to localize in"):
        localize(archive, checkpoint, video_ids=[])


@pytest.fixture
def broken(archive, monkeypatch):
    """The archive, with NaN in the first row of video 3."""
    read = type(archive).read_spans

    def broken_read(self, positions, *arguments):
        rows, offsets = read(self, positions, *arguments)
        for k, position in enumerate(positions):
            if position == 3:
                rows[offsets[k]] = np.nan
        return rows, offsets

    monkeypatch.setattr(type(archive), "read_spans", broken_read)
    return archive


def test_features_that_are_not_finite_are_named(broken, checkpoint):
    with pytest.raises(UserError, match=r"a\.h5: features that are not finite in 'video3'$"):
        localize(broken, checkpoint, InferenceConfig(batch_size=2), device="cpu", progress=False)


def test_videos_that_cannot_be_localized_in_are_left_out_and_named_if_so_wanted(broken, checkpoint, capsys):
    whole = localize(broken, checkpoint, video_ids=["video0", "video2", "video4"], device="cpu", progress=False)
    unknown = np.array([15.0, np.nan, 350.0, 300.0, 2.0])
    broken.durations = unknown
    found = localize(broken, checkpoint, device="cpu", on_error="skip", progress=False)
    assert found.video_ids == ("video0", "video2", "video4")
    np.testing.assert_array_equal(found.video, whole.video)
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-5)
    line = capsys.readouterr().err
    assert "left out 2 videos: 'video1' (unknown duration), 'video3' (features that are not finite)" in line


def short_of_memory(monkeypatch, most):
    """Let steps fail as a full GPU does, on batches of more than `most` videos."""
    candidates = AnchorStep.candidates

    def limited(self, rows, offsets):
        if len(offsets) - 1 > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return candidates(self, rows, offsets)

    monkeypatch.setattr(AnchorStep, "candidates", limited)


@pytest.mark.parametrize("window", [0.0, 40.0])
def test_a_lack_of_memory_halves_the_batch_and_loses_no_video(archive, checkpoint, monkeypatch, capsys, window):
    config = InferenceConfig(batch_size=5, window=window)
    whole = localize(archive, checkpoint, config, device="cpu", progress=False)
    short_of_memory(monkeypatch, most=1)
    found = localize(archive, checkpoint, config, device="cpu", progress=False)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-2] for line in lines] == ["2", "1"]
    assert found.video_ids == whole.video_ids
    np.testing.assert_array_equal(found.video, whole.video)
    np.testing.assert_array_equal(found.label, whole.label)
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-5)


def test_a_lack_of_memory_for_one_video_is_an_error(archive, checkpoint, monkeypatch):
    short_of_memory(monkeypatch, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        localize(archive, checkpoint, InferenceConfig(batch_size=2), device="cpu", progress=False)


def test_classes_have_minimum_scores_of_their_own(archive, checkpoint):
    every = localize(archive, checkpoint, device="cpu", progress=False)
    middle = float(np.median(every.scores[every.label == 1]))
    found = localize(archive, checkpoint, minimum_scores={CLASSES[1]: middle}, device="cpu", progress=False)
    kept = (every.label != 1) | (every.scores > middle)
    assert 0 < kept.sum() < len(every)
    np.testing.assert_array_equal(found.scores, every.scores[kept])
    np.testing.assert_array_equal(found.label, every.label[kept])
    with pytest.raises(UserError, match="thresholds: 'swim' is none of the 3 classes that are localized"):
        localize(archive, checkpoint, minimum_scores={"swim": 0.1}, device="cpu", progress=False)


def test_unknown_devices_are_refused(archive, checkpoint):
    with pytest.raises(UserError, match="device: expected auto, cpu, cuda"):
        localize(archive, checkpoint, device="gpu")


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_the_order_of_the_classes_only_numbers_them(archive, checkpoint, candidates):
    config = InferenceConfig(candidates=candidates)
    options = {"video_ids": [f"video{video}" for video in LONG], "device": "cpu", "progress": False}
    default = localize(archive, checkpoint, config, **options)
    turned = localize(archive, checkpoint, config, classes=("run", "fall", "jump"), **options)
    assert default.classes == CLASSES
    names, turned_names = np.array(default.classes), np.array(turned.classes)
    np.testing.assert_array_equal(names[default.label], turned_names[turned.label])
    np.testing.assert_allclose(default.scores, turned.scores, atol=1e-6)
    np.testing.assert_allclose(default.segments, turned.segments, atol=1e-3)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["jump", "rum"], r"classes: the network in .* has no class 'rum' \(did you mean 'run'\?\)$"),
        (["zzz"], r"classes: the network in .* has no class 'zzz'; it has jump, fall, run$"),
        (["fall", "jump", "fall"], r"classes: 'fall' occurs twice$"),
        ([], r"classes: no class to localize, expected at least one$"),
    ],
)
def test_unknown_repeated_and_no_classes_are_refused(archive, checkpoint, classes, message):
    with pytest.raises(UserError, match=message):
        localize(archive, checkpoint, classes=classes, device="cpu", progress=False)


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20), size=st.integers(1, 6))
def test_batches_are_bounded_in_videos_and_in_rows(lengths, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ready, "MOST_ROWS", 40)
        batches = list(ready._batches(np.array(lengths), 0, size))
    assert [place for batch in batches for place in range(batch.start, batch.stop)] == list(range(len(lengths)))
    for batch in batches:
        videos = lengths[batch]
        assert len(videos) == 1 or (len(videos) <= size and sum(videos) <= 40)
    for batch, following in itertools.pairwise(batches):
        assert len(lengths[batch]) == size or sum(lengths[batch]) + lengths[following.start] > 40
