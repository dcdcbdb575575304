import dataclasses

import numpy as np
import pytest

from ahernet.data.annotations import Annotations, VideoAnnotations, read_annotations
from ahernet.data.archive import open_archive
from ahernet.rendered import (
    WorldConfig,
    render_annotations,
    render_moment,
    render_video,
    render_world,
    with_durations,
    write_rendered,
    write_rendered_moments,
    write_world,
)

SMALL = WorldConfig(training_videos=24, validation_videos=12)
CLEAN = dataclasses.replace(
    SMALL,
    noise=0.0,
    gain_spread=0.0,
    offset_spread=0.0,
    background=0.0,
    distractors=0.0,
    fragments=0.0,
    tempo=0.0,
)


def test_the_same_config_renders_the_same_world_and_another_seed_another():
    first, again = list(render_world(SMALL)), list(render_world(SMALL))
    other = list(render_world(dataclasses.replace(SMALL, seed=1)))
    assert [video.video_id for video in first] == [video.video_id for video in again]
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
        assert a.features.shape != c.features.shape or not np.allclose(a.features, c.features)


def test_a_video_does_not_depend_on_how_many_others_there_are():
    short = next(iter(render_world(SMALL)))
    long = next(iter(render_world(dataclasses.replace(SMALL, validation_videos=99, training_videos=99))))
    # the config differs, so only the plan and the features may be compared, not the object
    np.testing.assert_array_equal(short.features, long.features)
    np.testing.assert_array_equal(short.segments, long.segments)


def test_videos_keep_the_limits_of_the_config():
    videos = list(render_world(SMALL))
    assert len(videos) == 36
    assert {video.labels[0] for video in videos} == set(SMALL.class_names)
    for video in videos:
        assert SMALL.min_duration <= video.duration <= SMALL.max_duration
        assert len(video.features) == int(video.duration * 25 / 8)
        assert 1 <= len(video.segments) <= SMALL.max_instances
        lengths = video.segments[:, 1] - video.segments[:, 0]
        shares = lengths / video.duration
        assert (shares >= SMALL.min_share - 1e-9).all()
        assert (shares <= SMALL.max_share + 1e-9).all()
        assert (video.segments[1:, 0] >= video.segments[:-1, 1] + 1.0 - 1e-9).all()
        assert video.segments[0, 0] >= 0
        assert video.segments[-1, 1] <= video.duration


def test_features_show_start_middle_and_end_of_an_action_and_nothing_outside():
    segments = np.array([[20.0, 60.0]])
    features = render_video(CLEAN, "v", 100.0, segments, ["throw"])
    moment = render_moment(CLEAN, "throw")
    times = (np.arange(len(features)) + 0.5) * 8 / 25
    assert not features[(times < 19.5) | (times > 60.5)].any()
    for time, phase in [(20.5, 0.0), (40.0, 0.5), (59.5, 1.0)]:
        seen = features[np.argmin(np.abs(times - time))]
        expected = moment.features[min(int(phase * len(moment.features)), len(moment.features) - 1)]
        cosine = seen @ expected / np.linalg.norm(seen) / np.linalg.norm(expected)
        assert cosine > 0.9
    rms = np.sqrt((features[np.argmin(np.abs(times - 20.5))] ** 2).mean())
    assert rms == pytest.approx(CLEAN.strength, rel=0.1)


def test_similarity_brings_classes_together():
    def cosine(similarity: float) -> float:
        config = dataclasses.replace(CLEAN, similarity=similarity, dimension=512)
        segments = np.array([[10.0, 90.0]])
        a, b = (render_video(config, "v", 100.0, segments, [label])[150] for label in ("x", "y"))
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert abs(cosine(0.0)) < 0.25
    assert cosine(0.6) > 0.4
    assert cosine(1.0) == pytest.approx(1.0, abs=1e-5)


def test_decoys_appear_only_between_instances():
    segments = np.array([[30.0, 50.0]])
    decoys = dataclasses.replace(CLEAN, distractors=3.0, fragments=3.0)
    changed = 0
    for number in range(20):
        with_decoys = render_video(decoys, f"v{number}", 100.0, segments, ["x"])
        without = render_video(CLEAN, f"v{number}", 100.0, segments, ["x"])
        times = (np.arange(len(without)) + 0.5) * 8 / 25
        inside = (times > 30.5) & (times < 49.5)
        np.testing.assert_array_equal(with_decoys[inside], without[inside])
        changed += not np.array_equal(with_decoys, without)
    assert changed >= 18


def test_the_background_is_smooth_and_has_the_size_of_the_config():
    config = dataclasses.replace(CLEAN, background=1.0, background_memory=4.0)
    rows = np.concatenate([render_video(config, f"v{number}", 400.0, np.zeros((0, 2)), []) for number in range(20)])
    power = (rows**2).mean()
    assert 0.6 < power < 1.6
    steps = (np.diff(rows, axis=0) ** 2).mean()
    assert steps < 0.02 * power


def test_a_moment_is_filled_by_its_action():
    moment = render_moment(SMALL, "x", 3)
    np.testing.assert_array_equal(moment.segments, [[0.0, moment.duration]])
    assert moment.labels == ("x",)
    other = render_moment(SMALL, "x", 4)
    assert other.features.shape != moment.features.shape


def test_real_annotations_keep_their_durations_and_segments():
    broken = np.array([[5.0, 5.0], [80.0, 130.0], [10.0, 20.0], [15.0, 30.0]])
    video = VideoAnnotations("v_x", "Validation", 100.0, broken, ("a", "b", "c", "c"))
    (rendered,) = render_annotations(SMALL, Annotations({"v_x": video}, source="test"))
    assert rendered.video_id == "v_x"
    assert rendered.subset == "Validation"
    assert rendered.features.shape == (312, 48)
    assert np.isfinite(rendered.features).all()
    np.testing.assert_array_equal(rendered.segments, broken)


def test_annotations_are_rendered_into_an_archive_and_durations_drawn_where_unknown(tmp_path):
    def video(key, duration, ends):
        segments = np.array([[1.0, end] for end in ends]).reshape(-1, 2)
        return VideoAnnotations(key, "", duration, segments, ("a",) * len(ends))

    videos = [
        video("known", 40.0, [9.0]),
        video("unknown", float("nan"), [9.0, 30.0]),
        video("empty", float("nan"), []),
    ]
    annotations = Annotations({one.video_id: one for one in videos}, "test")
    for name in ("one", "two"):
        write_rendered(tmp_path / name, annotations, SMALL, progress=False)
    with open_archive(tmp_path / "one") as archive, open_archive(tmp_path / "two") as again:
        assert archive.ids == ("known", "unknown", "empty")
        assert (archive.checksums == again.checksums).all()
        known, unknown, empty = archive.durations.tolist()
        assert known == 40.0
        assert 30.0 <= unknown <= 50.0
        assert SMALL.min_duration <= empty <= SMALL.max_duration
        assert archive.lengths.tolist() == [int(seconds * 25 / 8) for seconds in archive.durations]
    assert with_durations(SMALL, annotations).videos["known"] is annotations.videos["known"]


def test_moments_are_rendered_into_an_archive_with_their_classes(tmp_path):
    labels = write_rendered_moments(tmp_path / "m.h5", ("x", "y"), 3, SMALL)
    assert sorted(labels.values()) == ["x"] * 3 + ["y"] * 3
    with open_archive(tmp_path / "m.h5") as archive:
        assert archive.ids == tuple(labels)
        rows, _ = archive.read([archive.position("moment_y_00002")])
    np.testing.assert_array_equal(rows, render_moment(SMALL, "y", 2).features.astype(np.float16))


def test_a_video_shorter_than_a_clip_has_one_row():
    assert render_video(SMALL, "v", 0.05, np.zeros((0, 2)), []).shape == (1, 48)


def test_a_written_world_reads_back(tmp_path):
    archive_path, annotations_path = write_world(tmp_path / "world", SMALL)
    annotations = read_annotations(annotations_path)
    assert len(annotations.select("training").videos) == 24
    assert len(annotations.select("validation").videos) == 12
    assert annotations.classes() == SMALL.class_names
    with open_archive(archive_path) as archive:
        assert (archive.frame_rate, archive.clip_stride, archive.dimension) == (25.0, 8, 48)
        for video in render_world(SMALL):
            rows, _ = archive.read([archive.position(video.video_id)])
            np.testing.assert_array_equal(rows, video.features.astype(np.float16))
            np.testing.assert_allclose(annotations.videos[video.video_id].segments, video.segments, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 0},
        {"noise": -1.0},
        {"noise": float("nan")},
        {"max_duration": 1.0},
        {"max_share": 1.5},
        {"min_share": 0.7},
        {"similarity": 1.1},
    ],
)
def test_values_out_of_range_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change)).replace("min_share", "max_share")):
        WorldConfig(**change)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="duration"):
        render_video(SMALL, "v", float("nan"), np.zeros((0, 2)), [])
    with pytest.raises(ValueError, match="segments"):
        render_video(SMALL, "v", 10.0, np.zeros((2, 2)), ["x"])
