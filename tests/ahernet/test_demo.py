import dataclasses
import json
import re
import shlex

import pytest

from ahernet.cli import main
from ahernet.config import preset
from ahernet.demo import run_demo
from ahernet.errors import UserError
from ahernet.rendered import WorldConfig

WORLD = WorldConfig(classes=2, training_videos=8, validation_videos=4, dimension=8, max_duration=60.0, distractors=0.2)


def quick_config():
    config = preset("tiny")
    return dataclasses.replace(
        config, training=dataclasses.replace(config.training, iterations=4, batch_size=4, checkpoint_every=4)
    )


def test_the_demo_leaves_a_whole_run_and_may_be_repeated(tmp_path, capsys):
    out = tmp_path / "demo"
    first = run_demo(out, WORLD, quick_config())
    printed = capsys.readouterr().out
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {
        "world/archive.h5",
        "world/annotations.json",
        "run/checkpoint.json",
        "run/losses.png",
        "detections.json",
        "scores.json",
        "pictures/validation_00000.png",
        "pictures/validation_00003.png",
    } <= names
    assert "scored 4 of 4 videos" in printed
    assert re.search(r"mAP \d\.\d+ at tIoU 0.50, \d\.\d+ on average", printed)
    scores = json.loads((out / "scores.json").read_text())
    assert scores["means"]["all"]["average"] == pytest.approx(first.mean, abs=1e-8)
    (out / "note.txt").write_text("mine")
    second = run_demo(out, WORLD, quick_config())
    assert second.mean == pytest.approx(first.mean, abs=1e-6)
    assert (out / "note.txt").read_text() == "mine"


def test_the_printed_commands_repeat_the_demo_also_after_another_one(tmp_path, capsys):
    out = tmp_path / "the demo"
    for _ in range(2):
        run_demo(out, WORLD, quick_config())
        assert not (out / "again").exists()
        lines = capsys.readouterr().out.splitlines()
        commands = [shlex.split(line)[1:] for line in lines if line.startswith("  ahernet ")]
        assert [command[0] for command in commands] == ["train", "localize", "evaluate", "plot"]
        for command in commands:
            assert main(command) == 0
    assert (out / "again" / "detections.json").read_bytes() == (out / "detections.json").read_bytes()
    assert len(list((out / "again" / "pictures").glob("*.png"))) == 4


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="holds other files"):
        run_demo(tmp_path, WORLD, quick_config())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "thesis.txt"]
