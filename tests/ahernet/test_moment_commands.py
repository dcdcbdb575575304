"""The commands of learning from moments, run as a user would."""

import json
import shutil

import pytest

from ahernet.checkpoint import load_checkpoint
from ahernet.cli import main
from ahernet.data.annotations import read_annotations
from ahernet.data.detections import read_detections
from ahernet.rendered import WorldConfig, write_world

WORLD = WorldConfig(classes=4, training_videos=12, validation_videos=4, dimension=8, max_duration=40, min_share=0.2)
BASE, NOVEL = ("action 01", "action 02"), ("action 03", "action 04")
SMALL = [
    *("--preset", "tiny", "--model.width", "0.004", "--model.minimum_channels", "4", "--model.steps", "128"),
    *("--training.batch_size", "2", "--training.iterations", "2"),
    *("--method.pretrain_iterations", "1", "--method.context_iterations", "1"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a world, files of class names, moments of the novel classes and a run that learnt from them."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, WORLD)
    (folder / "base.txt").write_text("\n".join(BASE) + "\n")
    (folder / "novel.txt").write_text("\n".join(NOVEL) + "\n")
    cut = ["cut-moments", f"{folder}/archive.h5", f"{folder}/annotations.json", "--subset", "training"]
    assert (
        main([*cut, "--classes", f"{folder}/novel.txt", "--out", f"{folder}/m.h5", "--labels", f"{folder}/m.csv"]) == 0
    )
    assert main(_train(folder, "run", "--moments", f"{folder}/m.h5", "--moment-labels", f"{folder}/m.csv")) == 0
    return folder


def _train(folder, out, *options):
    archive = ["train", f"{folder}/archive.h5", f"{folder}/annotations.json", "--subset", "training"]
    return [*archive, "--classes", f"{folder}/base.txt", "--out", f"{folder}/{out}", *SMALL, *options]


def test_training_with_moments_learns_both_sets_of_classes(world):
    checkpoint = load_checkpoint(world / "run")
    assert checkpoint.classes == BASE + NOVEL
    assert checkpoint.moment_classes == NOVEL
    assert checkpoint.config.method.context == "adversarial"
    assert checkpoint.config.method.untrimmed == "transfer"


def test_novel_classes_are_localized_and_scored_alone(world, capsys):
    archive, annotations = f"{world}/archive.h5", f"{world}/annotations.json"
    out = f"{world}/novel.json"
    assert main(["localize", archive, f"{world}/run", "--classes", f"{world}/novel.txt", "--out", out]) == 0
    assert set(read_detections(world / "novel.json").classes) <= set(NOVEL)
    capsys.readouterr()
    options = ["--subset", "validation", "--classes", f"{world}/novel.txt", "--json", f"{world}/scores.json"]
    assert main(["evaluate", out, annotations, *options]) == 0
    printed = capsys.readouterr().out
    assert "mean of 2 classes" in printed
    assert "AUC" in printed
    scores = json.loads((world / "scores.json").read_text())
    assert set(scores["classes"]) == set(NOVEL)
    assert 0 <= scores["proposals"]["area"] <= 1
    shown = read_annotations(world / "annotations.json").select("validation").of_classes(NOVEL)
    assert scores["videos"]["scored"] == len(shown.videos)


@pytest.mark.parametrize("run", ["aher0", "aher-", "aherM", "aherA-", "aherR", "aherB"])
def test_every_run_can_be_asked_for_by_name(world, run):
    moments = ["--moments", f"{world}/m.h5", "--moment-labels", f"{world}/m.csv"]
    assert main(_train(world, f"run-{run}", *moments, "--run", run)) == 0
    out = f"{world}/{run}.json"
    assert main(["localize", f"{world}/archive.h5", f"{world}/run-{run}", "--out", out]) == 0


def test_a_class_is_added_to_a_trained_localizer(world):
    files = ["--moments", f"{world}/m.h5", "--out", f"{world}/more"]
    assert main(["add-class", f"{world}/run", "--label", "juggling", *files]) == 0
    assert load_checkpoint(world / "more").classes == (*BASE, *NOVEL, "juggling")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--moments", "{}/m.h5"], "--moments and --moment-labels: expected both or neither"),
        (
            ["--run", "aherX"],
            "run: expected one of aher0, aher-, aherM, aherA-, aherR, aherB, aher, aher*, got 'aherX'",
        ),
        (["--run", "aher"], "method.moments: localized, but no moments with labels are given"),
        (["--moments", "{}/m.h5", "--moment-labels", "{}/m.csv", "--run", "aher*"], "moments are given"),
        (["--moments", "{}/m.h5", "--moment-labels", "{}/base.txt"], "base.txt: line 1: expected a header"),
        (["--moments", "{}/none.h5", "--moment-labels", "{}/m.csv"], "none.h5"),
        (["--classes", "{}/m.h5"], "m.h5"),
    ],
)
def test_wrong_use_ends_as_one_line(world, capsys, options, message):
    assert main(_train(world, "wrong", *(option.format(world) for option in options))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ahernet: error: ")
    assert message in error
    assert not (world / "wrong" / "checkpoint.json").exists()


def test_adding_a_class_refuses_a_folder_that_holds_a_checkpoint(world, capsys):
    shutil.copytree(world / "run", world / "other run")
    files = ["--moments", f"{world}/m.h5", "--out", f"{world}/other run"]
    assert main(["add-class", f"{world}/run", "--label", "juggling", *files]) == 2
    assert "holds a checkpoint already" in capsys.readouterr().err


def test_an_experiment_writes_its_table_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    from ahernet.experiments import setting

    monkeypatch.setattr(setting.rendered_source, "__defaults__", (WORLD,))
    command = ["experiment", "transfer", "--work", f"{tmp_path}/work", "--seeds", "1", *SMALL[2:]]
    assert main([*command, "--out", f"{tmp_path}/table.json"]) == 0
    first = capsys.readouterr().out
    assert "2-fc elu" in first
    assert main(command) == 0
    assert capsys.readouterr().out == first
    table = json.loads((tmp_path / "table.json").read_text())
    assert (table["table"], table["seeds"], len(table["runs"])) == ("transfer", [0], 7)


def test_an_experiment_names_a_number_that_makes_no_sense(tmp_path, capsys):
    assert main(["experiment", "runs", "--work", f"{tmp_path}/work", "--seeds", "0"]) == 2
    assert "--seeds: expected at least 1, got 0" in capsys.readouterr().err
