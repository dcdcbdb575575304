import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ahernet.cli import main
from ahernet.commands.command import Command
from ahernet.data.annotations import Annotations, VideoAnnotations, read_annotations, write_annotations
from ahernet.data.archive import open_archive
from ahernet.data.archive_set import write_manifest
from ahernet.data.moment_labels import read_moment_labels
from ahernet.errors import UserError
from ahernet.experiments.paper_settings import (
    PAPER_SETTINGS,
    Counts,
    Part,
    PublishedFiles,
    SettingPlan,
    count,
    with_share,
    write_setting,
)
from ahernet.experiments.runner import oracle
from ahernet.experiments.setting_file import read_setting
from ahernet.rendered import ANNOTATED_WORLD, WorldConfig, with_durations, write_rendered


def annotated(prefix: str, labels: tuple[str, ...], subsets: tuple[str, ...], each: int) -> Annotations:
    """So many videos of every class in every subset, one instance each."""
    videos = {}
    for subset in subsets:
        for label in labels:
            for number in range(each):
                key = f"{prefix}_{subset}_{label}_{number}"
                videos[key] = VideoAnnotations(key, subset, 24.0, np.array([[6.0, 15.0]]), (label,))
    return Annotations(videos, prefix)


@pytest.fixture
def plan() -> SettingPlan:
    both = ("training", "validation")
    return SettingPlan(
        "two",
        Part(("a", "b"), annotated("base", ("a", "b"), ("train", "test"), 4), "train", "test"),
        Part(("c", "d", "e"), annotated("novel", ("c", "d", "e"), both, 4), *both),
    )


def test_a_written_setting_reads_back_with_moments_of_novel_training_videos(plan, tmp_path):
    path = write_setting(plan, tmp_path / "setting", render=True, progress=False)
    setting = read_setting(path, tmp_path / "work")
    assert (setting.name, setting.base, setting.novel) == ("two", ("a", "b"), ("c", "d", "e"))
    assert (setting.base_videos.training, setting.base_videos.validation) == ("train", "test")
    assert sorted(read_moment_labels(setting.labels).values()) == sorted(("c", "d", "e") * 4)
    assert all(moment.startswith("novel_training") for moment in read_moment_labels(setting.labels))
    with open_archive(setting.base_videos.archive) as archive:
        assert set(archive.ids) == set(setting.base_videos.read().videos)
    assert not setting.one_source
    assert oracle(setting) == (setting.novel_videos, ("c", "d", "e"))
    assert read_setting(path, tmp_path / "work") == setting


def test_archives_of_a_setting_may_be_folders_of_several(plan, tmp_path):
    path = write_setting(plan, tmp_path / "setting", render=True, progress=False)
    one = read_setting(path, tmp_path / "work")
    (path.parent / "novel").mkdir()
    (path.parent / "novel.h5").rename(path.parent / "novel" / "part.h5")
    write_manifest(path.parent / "novel" / "manifest.json", [path.parent / "novel" / "part.h5"])
    path.write_text(path.read_text().replace("novel.h5", "novel"))
    several = read_setting(path, tmp_path / "other")
    assert several.novel_videos.archive.is_dir()
    assert several.data == one.data


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("c", "a"), "two: 1 classes are both base and novel, for example 'a'"),
        (("c", "f"), "shows none of 1 novel classes, for example 'f'"),
    ],
)
def test_classes_that_fit_no_setting_are_refused_and_nothing_is_written(plan, tmp_path, classes, message):
    wrong = replace(plan, novel=replace(plan.novel, classes=classes))
    with pytest.raises(UserError, match=message):
        write_setting(wrong, tmp_path / "setting", render=False)
    assert not (tmp_path / "setting").exists()


def test_other_features_make_another_setting(plan, tmp_path):
    path = write_setting(plan, tmp_path / "setting", render=True, progress=False)
    first = read_setting(path, tmp_path / "work")
    before = {found: found.read_bytes() for found in path.parent.iterdir()}
    with pytest.raises(UserError, match="holds features of other videos"):
        write_setting(with_share(plan, 0.5), tmp_path / "setting", render=True, progress=False)
    assert {found: found.read_bytes() for found in path.parent.iterdir()} == before
    (tmp_path / "setting" / "novel.h5").unlink()
    path = write_setting(with_novel(plan, 3), tmp_path / "setting", render=True, progress=False)
    second = read_setting(path, tmp_path / "work")
    assert first.data != second.data
    assert first.moments != second.moments


@pytest.mark.parametrize("change", ["segments", "classes", "subsets"])
def test_other_annotations_of_the_same_features_make_another_setting(plan, tmp_path, change):
    path = write_setting(plan, tmp_path / "setting", render=True, progress=False)
    first = read_setting(path, tmp_path / "work")
    if change == "segments":
        annotations = first.novel_videos.annotations
        changed = json.loads(gzip.decompress(annotations.read_bytes()))
        for video in changed["database"].values():
            for instance in video["annotations"]:
                instance["segment"] = [1.0, 20.0]
        annotations.write_bytes(gzip.compress(json.dumps(changed).encode()))
    elif change == "classes":
        (tmp_path / "setting" / "novel.txt").write_text("c\nd\n")
    else:
        path.write_text(path.read_text().replace('validation = "validation"', 'validation = "training"'))
    second = read_setting(path, tmp_path / "work")
    assert first.data != second.data
    if change == "segments":
        with open_archive(second.moments) as archive:
            assert set(archive.durations.tolist()) == {19.0}
    if change == "classes":
        assert set(second.moment_labels().values()) == {"c", "d"}


def test_moments_of_other_classes_are_none_of_the_setting(plan, tmp_path):
    novel = Part(plan.novel.classes, plan.novel.annotations, None, "validation")
    path = write_setting(SettingPlan("clips", plan.base, novel), tmp_path / "setting", render=True, progress=False)
    (tmp_path / "setting" / "novel.txt").write_text("c\ne\n")
    setting = read_setting(path, tmp_path / "work")
    assert set(read_moment_labels(setting.labels).values()) == {"c", "d", "e"}
    assert set(setting.moment_labels().values()) == {"c", "e"}


def with_novel(plan: SettingPlan, each: int) -> SettingPlan:
    part = plan.novel
    fewer = annotated("novel", part.classes, ("training", "validation"), each)
    return SettingPlan(plan.name, plan.base, Part(part.classes, fewer, part.training, part.validation))


def test_moments_may_have_an_archive_of_their_own_and_classes_without_any_are_left_out(plan, tmp_path, capsys):
    novel = Part(plan.novel.classes, plan.novel.annotations, None, "validation")
    path = write_setting(SettingPlan("clips", plan.base, novel), tmp_path / "setting", render=True, progress=False)
    setting = read_setting(path, tmp_path / "work")
    assert setting.moments == tmp_path / "setting" / "moments.h5"
    assert sorted(set(read_moment_labels(setting.labels).values())) == ["c", "d", "e"]
    with pytest.raises(UserError, match=r"clips: aher\* needs annotated videos of novel classes"):
        oracle(setting)
    (tmp_path / "setting" / "novel.txt").write_text("c\nd\nmissing\n")
    assert read_setting(path, tmp_path / "work").novel == ("c", "d")
    assert "left out 1 novel classes without a moment, for example 'missing'" in capsys.readouterr().err


def test_one_annotation_file_with_numbers_and_subsets_in_tables_serves_both(tmp_path):
    (tmp_path / "times.txt").write_text("x\t0\t4\t0\ny\t2\t6\t1\n")
    (tmp_path / "names.txt").write_text("run\njump\n")
    (tmp_path / "subsets.csv").write_text("video,subset\nx,train\ny,test\n")
    table = 'annotations = "times.txt"\ncategories = "names.txt"\nsubsets = "subsets.csv"\narchive = "f.h5"\n'
    text = f'name = "s"\n[base]\nclasses = "base.txt"\ntraining = "train"\n{table}'
    text += f'[novel]\nclasses = "novel.txt"\ntraining = "test"\nvalidation = "test"\n{table}'
    (tmp_path / "setting.toml").write_text(text)
    (tmp_path / "base.txt").write_text("run\n")
    (tmp_path / "novel.txt").write_text("jump\n")
    annotations = read_annotations(tmp_path / "times.txt", tmp_path / "names.txt")
    write_rendered(tmp_path / "f.h5", annotations, WorldConfig(dimension=4), progress=False)
    setting = read_setting(tmp_path / "setting.toml", tmp_path / "work")
    assert setting.one_source
    assert oracle(setting)[1] == ("run", "jump")
    assert setting.base_videos.validation is None
    assert setting.novel_videos.read().videos["y"].labels == ("jump",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "two"', "name = 3"), "name: expected the name of the setting"),
        (("[base]", "[bass]"), "bass: unknown key, expected one of name, base, novel, moments"),
        (('training = "train"\n', ""), "base.training: missing"),
        (('archive = "base.h5"', "archive = 1"), "base.archive: expected text, got 1"),
        (('classes = "novel.txt"', 'classes = "base.txt"'), "2 classes are both base and novel, for example 'a'"),
        (('training = "training"\n', ""), r"expected novel.training, to cut moments from, or a table \[moments\]"),
        (('archive = "base.h5"', 'archives = "base.h5"'), "base.archives: unknown key"),
        (("[base]", "[base"), "not a TOML file"),
        (('archive = "novel.h5"', 'archive = "no.h5"'), "no.h5"),
    ],
)
def test_a_wrong_setting_file_is_refused_by_what_is_wrong(plan, tmp_path, change, message):
    path = write_setting(plan, tmp_path / "setting", render=False)
    for name in ("base", "novel"):
        (tmp_path / "setting" / f"{name}.h5").touch()
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(UserError, match=message):
        read_setting(path, tmp_path / "work")


def test_a_share_keeps_every_class_of_every_subset_and_grows_with_the_share(plan):
    small, large = with_share(plan, 0.25), with_share(plan, 0.5)
    assert set(small.novel.annotations.videos) < set(large.novel.annotations.videos)
    assert [(counts.part, counts.classes, counts.videos) for counts in count(small)] == [
        ("base training", 2, 2),
        ("base validation", 2, 2),
        ("novel training", 3, 3),
        ("novel validation", 3, 3),
    ]
    assert len(with_share(plan, 0.01).base.annotations.videos) == 4
    for share in (0, 1.1, float("nan")):
        with pytest.raises(UserError, match="share: expected a number above 0 and at most 1"):
            with_share(plan, share)


def test_a_file_that_a_setting_needs_is_asked_for_by_its_option():
    with pytest.raises(UserError, match="--base-classes: this setting needs it"):
        PublishedFiles().needed("base_classes")


def test_the_command_offers_what_there_is():
    from ahernet.commands import experiments
    from ahernet.experiments.figures import FIGURES
    from ahernet.experiments.table import TABLES

    assert set(experiments.TABLES) == set(TABLES)
    assert set(experiments.FIGURES) == set(FIGURES)
    assert set(experiments.PAPER_SETTINGS) == set(PAPER_SETTINGS)
    assert all(isinstance(command, Command) for command in experiments.COMMANDS.values())


@pytest.fixture(scope="module")
def published(real_data) -> dict[str, SettingPlan]:
    folder = Path(real_data)
    activitynet, kinetics = folder / "activitynet", folder / "kinetics600"
    files = PublishedFiles(
        activitynet / "anet_anno_action_19994.json.gz",
        activitynet / "video_info_19994.csv.gz",
        folder / "thumos14" / "thumos14_anno_action.json.gz",
        kinetics / "k600_val_annotation.txt",
        kinetics / "k600_category.txt",
        activitynet / "derived_split_sports87.txt",
        activitynet / "derived_split_other113.txt",
    )
    return {name: make_plan(files) for name, make_plan in PAPER_SETTINGS.items()}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (
            "anet_un-anet_am",
            [
                Counts("base training", 87, 4_611, 7_772),
                Counts("base validation", 87, 2_293, 3_876),
                Counts("novel training", 113, 5_413, 7_638),
                Counts("novel validation", 113, 2_634, 3_778),
            ],
        ),
        (
            "th14-anet_fg",
            [
                Counts("base training", 20, 200, 3_007),
                Counts("base validation", 20, 212, 3_358),
                Counts("novel training", 200, 10_024, 15_410),
                Counts("novel validation", 200, 4_926, 7_654),
            ],
        ),
        (
            "anet-k600",
            [
                Counts("base training", 200, 10_024, 15_410),
                Counts("base validation", 200, 4_926, 7_654),
                Counts("novel validation", 600, 6_461, 9_638),
            ],
        ),
    ],
)
def test_the_settings_of_the_paper_have_the_counts_of_the_published_annotations(published, name, counts):
    plan = published[name]
    assert count(plan) == counts
    assert not set(plan.base.classes) & set(plan.novel.classes)


def test_kinetics_has_durations_that_hold_its_instances(published):
    annotations = published["anet-k600"].novel.annotations
    for video in with_durations(ANNOTATED_WORLD, annotations).videos.values():
        assert video.segments.max() <= video.duration <= video.segments.max() / 0.6


def test_the_command_writes_a_setting_and_says_what_is_in_it(plan, tmp_path, capsys):
    for name, part in (("thumos14", plan.base), ("activitynet", plan.novel)):
        write_annotations(tmp_path / f"{name}.json", part.annotations)
    files = [f"--{name}={tmp_path}/{name}.json" for name in ("thumos14", "activitynet")]
    assert main(["setting", "th14-anet_fg", *files, "--share", "0.5", "--out", f"{tmp_path}/out"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "base training: 4 instances of 2 classes in 4 videos"
    assert printed[-1].endswith("setting.toml; put your features where it says, or change it")
    assert main(["setting", "anet-k600", *files, "--out", f"{tmp_path}/other"]) == 2
    assert "--thumos14: anet-k600 has no use for it, leave it out" in capsys.readouterr().err
    assert main(["setting", "anet-k600", files[1], "--out", f"{tmp_path}/other"]) == 2
    assert "--kinetics600: this setting needs it" in capsys.readouterr().err


@pytest.mark.parametrize("names", [{"train": "Validation", "test": "Test"}, {"train": "Train"}])
def test_thumos14_may_call_what_one_trains_on_validation(plan, tmp_path, capsys, names):
    thumos, other = plan.base.annotations, plan.novel.annotations
    renamed = {
        key: replace(video, subset=names.get(video.subset, video.subset)) for key, video in thumos.videos.items()
    }
    write_annotations(tmp_path / "thumos14.json", Annotations(renamed, thumos.source))
    write_annotations(tmp_path / "activitynet.json", other)
    files = [f"--{name}={tmp_path}/{name}.json" for name in ("thumos14", "activitynet")]
    assert main(["setting", "th14-anet_fg", *files, "--out", f"{tmp_path}/out"]) == 0
    assert capsys.readouterr().out.startswith("base training: ")
    assert "validation" in (tmp_path / "out" / "setting.toml").read_text()


def test_a_setting_without_a_subset_that_it_needs_writes_nothing(plan, tmp_path, capsys):
    thumos, other = plan.base.annotations, plan.novel.annotations
    renamed = {key: replace(video, subset="all") for key, video in thumos.videos.items()}
    write_annotations(tmp_path / "thumos14.json", Annotations(renamed, thumos.source))
    write_annotations(tmp_path / "activitynet.json", other)
    files = [f"--{name}={tmp_path}/{name}.json" for name in ("thumos14", "activitynet")]
    assert main(["setting", "th14-anet_fg", *files, "--out", f"{tmp_path}/out"]) == 2
    assert "no video of subset" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["runs", "--setting", "s.toml", "--recordings", "r.npz"], "s.toml: cannot read the setting"),
        (["layers", "--rows", "aher"], "--rows: layers is a figure and has none"),
        (["runs", "--method.untrimmed", "proposals"], "--method.untrimmed: every row of runs decides it, leave it out"),
        (["runs", "--setting", "absent.toml"], "absent.toml: cannot read the setting"),
    ],
)
def test_an_experiment_that_makes_no_sense_ends_as_one_line(tmp_path, capsys, options, message):
    assert main(["experiment", *options, "--work", f"{tmp_path}/work"]) == 2
    assert message in capsys.readouterr().err
