import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from training_worlds import PHASES, same_states, same_weights, small_config

from ahernet.checkpoint import load_checkpoint
from ahernet.data.annotations import Annotations, read_annotations
from ahernet.data.archive import open_archive
from ahernet.data.moment_labels import read_moment_labels
from ahernet.errors import UserError
from ahernet.experiments.recorded import Recorded, RecordingsPlan, read_plan
from ahernet.experiments.runner import Unit, found_in, oracle, run_units, shown_beside, trained_unit
from ahernet.experiments.setting import SET_ASIDE, Setting, Source
from ahernet.experiments.table import format_table
from ahernet.training.batches import build_training_set

EXAMPLES = Path(__file__).parents[3] / "examples"
CLASSES = ("a", "b", "c", "d")
RECORDINGS = 24
SECONDS = 40


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """One subject a recording, 40 s each; recording k shows classes k, k + 1 and, if odd, k + 2, modulo 4."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(RECORDINGS * SECONDS * 10, 3))
    shown = [(k, place, (k + place) % 4) for k in range(RECORDINGS) for place in range(2 + k % 2)]
    for k, place, label in shown:
        first = (k * SECONDS + 3 + 12 * place) * 10
        x[first : first + 80] += 3 * np.sin(label + np.arange(3))
    path = tmp_path_factory.mktemp("recordings") / "small.npz"
    np.savez(
        path,
        x=x.astype(np.float32),
        scale=np.float64(1),
        zero=np.float64(0),
        rec_offset=np.arange(RECORDINGS + 1) * SECONDS * 10,
        rec_id=np.array([f"r{k:02d}" for k in range(RECORDINGS)]),
        subject=np.arange(RECORDINGS),
        rate_hz=np.float64(10),
        seg_rec=np.array([k for k, _, _ in shown]),
        seg_start=np.array([3.0 + 12 * place for _, place, _ in shown]),
        seg_end=np.array([11.0 + 12 * place for _, place, _ in shown]),
        seg_class=np.array([label for _, _, label in shown]),
        class_names=np.array(CLASSES),
    )
    return path


WHOLE = RecordingsPlan(cut="none", training_subjects=None, training_share=0.75, novel=("d",))


def whole(recordings: Path, folder: Path) -> Setting:
    return Recorded(recordings, WHOLE, folder).for_split(0)


def test_base_videos_show_no_novel_class_and_moments_are_of_training_recordings_alone(recordings, tmp_path):
    setting = whole(recordings, tmp_path)
    assert (setting.base, setting.novel) == (("a", "b", "c"), ("d",))
    everything = setting.novel_videos.read()
    with open_archive(setting.base_videos.archive) as archive:
        annotations = setting.base_videos.read().select(setting.base_videos.training)
        learnt = build_training_set(archive, annotations, setting.base)
        ids = [archive.ids[position] for position in learnt.positions]
    labels = {name: set(video.labels) for name, video in everything.videos.items()}
    subsets = {name: video.subset for name, video in everything.videos.items()}
    training = {name for name, subset in subsets.items() if subset == "training"}
    assert set(ids) == {name for name in training if "d" not in labels[name]}
    assert 0 < len(ids) < len(training)
    assert {moment.rsplit("_", 1)[0] for moment in read_moment_labels(setting.labels)} == {
        name for name in training if "d" in labels[name]
    }
    # The oracle sees the videos that were set aside.
    source, classes = oracle(setting)
    assert set(source.read().select(source.training).videos) == training
    assert set(classes) == set(CLASSES)


def test_recordings_cut_by_groups_show_base_or_novel_classes(recordings, tmp_path):
    plan = RecordingsPlan(cut="groups", background=("b",))
    data = Recorded(recordings, plan, tmp_path)
    for split in (0, 1):
        setting = data.for_split(split)
        videos = setting.novel_videos.read().videos.values()
        assert {label for video in videos for label in video.labels} == {"a", "c", "d"}
        assert all(
            set(video.labels) <= set(setting.base) or set(video.labels) <= set(setting.novel) for video in videos
        )
        assert setting.base_videos == setting.novel_videos
    assert data.for_split(0).novel != data.for_split(1).novel
    assert data.for_split(0).novel_videos.archive != data.for_split(1).novel_videos.archive


def test_recordings_of_another_plan_are_not_taken_for_these(recordings, tmp_path):
    setting = whole(recordings, tmp_path)
    written = setting.novel_videos.archive.stat().st_mtime_ns
    assert whole(recordings, tmp_path) == setting
    assert setting.novel_videos.archive.stat().st_mtime_ns == written
    other = Recorded(recordings, dataclasses.replace(WHOLE, window=6), tmp_path).for_split(0)
    assert other.data != setting.data
    assert whole(recordings, tmp_path).data == setting.data


def poisoned(read, novel, kind):
    """`Source.read` whose instances of novel classes are in other places, or have other names."""

    def read_poisoned(source: Source) -> Annotations:
        annotations = read(source)
        videos = {}
        for name, video in annotations.videos.items():
            wrong = np.array([label in novel for label in video.labels])
            if kind == "moved":
                segments = np.where(wrong[:, None], video.segments / 3 + 1, video.segments)
                videos[name] = dataclasses.replace(video, segments=segments)
            else:
                labels = tuple("x" if label in novel else label for label in video.labels)
                videos[name] = dataclasses.replace(video, labels=labels)
        return Annotations(videos, annotations.source)

    return read_poisoned


def test_training_reads_no_annotations_of_novel_classes(recordings, tmp_path, monkeypatch):
    setting = whole(recordings, tmp_path)
    unit = Unit("aher", small_config("aher", model={"feature_dimension": 0}, **PHASES), setting)
    clean, read = trained_unit(unit, tmp_path / "clean"), Source.read
    for kind in ("moved", "renamed"):
        monkeypatch.setattr(Source, "read", poisoned(read, setting.novel, kind))
        dirty = trained_unit(unit, tmp_path / kind)
        assert same_weights(clean, dirty)
        assert same_states(clean, dirty)


def test_a_run_that_knows_base_classes_is_also_scored_with_all_it_knows(recordings, tmp_path):
    setting, beside = whole(recordings, tmp_path), {}
    for run in ("aher-", "aher*"):
        config = small_config(run, model={"feature_dimension": 0}, training={"iterations": 2})
        measures = run_units([Unit(run, config, setting)], tmp_path)[0]["measures"]
        beside[run] = {group: measures[group].get("beside_others") for group in measures}
    assert beside["aher-"] == {"novel": None}
    assert set(beside["aher*"]["novel"]) == {"mean_average_precision", "at_0.5", "at_0.75", "at_0.95"}
    assert beside["aher*"]["base"] is not None


def test_the_table_shows_novel_classes_beside_base_classes_where_there_is_such_a_score():
    def row(**mean: float) -> dict[str, dict[str, float]]:
        zeros = dict.fromkeys(mean, 0.0)
        return {"mean": mean, "deviation": zeros, "behind_aher": {"mean": 0.0, "deviation": 0.0}}

    rows = {"aher": row(seconds=1.0, **{"novel.beside_others.mean_average_precision": 0.5}), "aher-": row(seconds=1.0)}
    lines = format_table({"table": "runs", "rows": rows}).splitlines()
    assert "base mAP  beside base  aher ahead by" in lines[0]
    assert "50.0 ± 0.0" in lines[1]
    assert "beside base" not in format_table({"table": "runs", "rows": {"aher-": rows["aher-"]}})


def test_what_is_found_of_other_classes_is_left_out(recordings, tmp_path):
    setting = whole(recordings, tmp_path)
    unit = Unit("aher*", small_config("aher*", model={"feature_dimension": 0}, training={"iterations": 2}), setting)
    checkpoint = load_checkpoint(trained_unit(unit, tmp_path / "run"))
    source = setting.novel_videos
    assert shown_beside(source, source.read(), ("d",), ("a", "b", "d")) == ("a", "b")
    alone, _, _ = found_in(source, source.read(), checkpoint, ("d",))
    beside, _, _ = found_in(source, source.read(), checkpoint, ("d",), others=("a", "b", "c"))
    assert alone.classes == beside.classes == ("d",)
    assert alone.video_ids == beside.video_ids
    assert 0 < len(beside) < len(alone)


def test_a_plan_says_only_what_differs(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('[recordings]\nwindow = 6\nbackground = ["a"]\n')
    assert read_plan(path) == RecordingsPlan(window=6, background=("a",))
    path.write_text("[recordings]\ntraining_share = 0.5\n")
    assert read_plan(path) == RecordingsPlan(training_subjects=None, training_share=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 1\n", r"expected a table \[recordings\] and nothing else"),
        ("recordings = 1\n", r"expected a table \[recordings\]"),
        ("[recordings]\nwindows = 6\n", "recordings.windows: unknown key, expected one of window, stride"),
        ("[recordings]\nwindow = 6.5\n", "recordings.window: expected an integer, got 6.5"),
        (
            "[recordings]\ntraining_share = true\n",
            "recordings.training_share: expected a number with a point, got True",
        ),
        ("[recordings]\ntrim = 1\n", "recordings.trim: expected true or false, got 1"),
        ("[recordings]\nnovel = 'a'\n", "recordings.novel: expected names of classes in brackets"),
        ("[recordings]\nnovel = ['a', 'a']\n", "recordings.novel: a name occurs twice"),
        ("[recordings\n", "not a TOML file"),
    ],
)
def test_bad_plans_are_refused(tmp_path, text, message):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_plan(path)
    assert "plan.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"novel": ("e",)}, "novel: class 'e' does not occur"),
        ({"novel": CLASSES}, "novel: every class is novel"),
        ({"novel": (), "background": ("a", "b", "c")}, "instances are of one class"),
        ({"novel": ("d",), "background": ("d",)}, "novel: class 'd' does not occur"),
        ({"training_share": 1.5}, "training_share: expected a number between 0 and 1"),
        ({"cut": "x"}, "cut: expected none or classes or groups"),
    ],
)
def test_plans_that_do_not_fit_the_recordings_are_refused(recordings, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Recorded(recordings, dataclasses.replace(WHOLE, **changes), tmp_path).for_split(0)


def data_of(name: str, example: str, folder: Path) -> Recorded:
    path = Path(os.environ.get("AHERNET_DATA", ".")) / "sequences" / name
    if "AHERNET_DATA" not in os.environ or not path.exists():
        pytest.skip(f"AHERNET_DATA does not name a folder with sequences/{name}")
    return Recorded(path, read_plan(EXAMPLES / example), folder)


def test_grid_has_34_base_and_17_novel_words_and_260_sentences_without_a_novel_one(tmp_path):
    setting = data_of("grid_s1_audio_logmel40_100hz.npz", "grid.toml", tmp_path).for_split(0)
    assert (len(setting.base), len(setting.novel)) == (34, 17)
    videos = read_annotations(setting.novel_videos.annotations).videos
    assert sum(set(video.labels) <= set(setting.base) for video in videos.values()) == 260
    subsets = [video.subset for video in setting.base_videos.read().videos.values()]
    assert {name: subsets.count(name) for name in set(subsets)} == {"training": 194, SET_ASIDE: 556, "validation": 250}
    assert len(read_moment_labels(setting.labels)) == 731


def test_hapt_has_nine_actions_and_holds_ten_subjects_out(tmp_path):
    setting = data_of("hapt_acc_50hz.npz", "hapt.toml", tmp_path).for_split(0)
    assert (len(setting.base), len(setting.novel)) == (5, 4)
    videos = setting.novel_videos.read().videos
    subjects = {"training": set(), "validation": set()}
    for name, video in videos.items():
        subjects[video.subset].add(int(name.split("_")[1].removeprefix("user")))
    assert subjects == {"training": set(range(1, 21)), "validation": set(range(21, 31))}
    assert sum(len(video.labels) for video in videos.values()) == 1214 - 360
