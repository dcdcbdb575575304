import csv
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ahernet.cli import COMMANDS, main
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.rendered import WorldConfig, write_world

ROOT = Path(__file__).parents[2]
WORLD = WorldConfig(classes=2, training_videos=6, validation_videos=3, dimension=8, max_duration=60.0)
QUICK = ["--preset", "tiny", "--training.iterations", "3", "--training.batch_size", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[str, str]:
    archive, annotations = write_world(tmp_path_factory.mktemp("world"), WORLD)
    return str(archive), str(annotations)


@pytest.fixture(scope="module")
def run(tmp_path_factory, world) -> str:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *world, "--subset", "training", "--out", str(folder), *QUICK]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def detections(tmp_path_factory, world, run) -> str:
    path = tmp_path_factory.mktemp("detections") / "new" / "found.json"
    assert main(["localize", world[0], run, "--out", str(path), "--device", "cpu"]) == 0
    return str(path)


def refused(capsys, *arguments: object) -> str:
    """Run a command that must fail with exit code 2 and one line on stderr; return the line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[-1].startswith("ahernet: error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1].removeprefix("ahernet: error: ")


def program(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    return subprocess.run(
        [sys.executable, "-m", "ahernet", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def test_help_names_every_command():
    result = program("--help")
    assert result.returncode == 0
    for name in COMMANDS:
        assert f"  {name}" in result.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ahernet.cli import main; main(['--help']); main(['train', '--help']);"
        "print([name for name in ('torch', 'numpy', 'h5py', 'matplotlib') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: ahernet {name} " in text
    assert f"example:\n  ahernet {name} " in text
    assert max(map(len, text.splitlines())) <= 112


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_example_of_a_command_is_one_that_the_parser_accepts(name, capsys):
    words = COMMANDS[name].example.replace("\\\n", " ").split()
    from ahernet.cli import _make_parser

    assert _make_parser().parse_args([name, *words]).subcommand == name


@pytest.mark.parametrize(("columns", "longest"), [("70", 70), ("300", 110)])
def test_help_is_as_wide_as_the_terminal_and_no_wider_than_one_can_read(monkeypatch, capsys, columns, longest):
    monkeypatch.setenv("COLUMNS", columns)
    main(["evaluate", "--help"])
    options = capsys.readouterr().out.partition("options:")[2].partition("example:")[0]
    assert longest - 10 < max(map(len, options.splitlines())) <= longest


def test_help_of_settings_says_what_the_presets_have(capsys):
    main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    what = "main iterations, after those of pre-training."
    assert f"--training.iterations VALUE {what} (paper: 15000, tuned: 15000, tiny: 500)" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "ahernet 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a command: demo, import"),
        (["trian"], "trian: no such command (did you mean train?)"),
        (["--versoin"], "unknown argument --versoin (did you mean --version?)"),
        (["train", "a"], "train: missing ANNOTATIONS, --out; usage: ahernet train ARCHIVE"),
        (["train", "a", "b", "--out"], "--out: expected one argument"),
        (["evaluate", "a", "b", "c"], "evaluate: unknown argument c"),
        (["evaluate", "a.json", "b", "--subst", "x"], "unknown argument --subst (did you mean --subset?)"),
        (["train", "a", "b", "--out", "c", "--training.iteration", "4"], "did you mean --training.iterations?"),
        (["train", "a", "b", "--out", "c", "--training.iterations", "x"], "expected an integer, got 'x'"),
        (["train", "a", "b", "--out", "c", "--training.iterations", "0"], "expected an integer at least 1"),
        (["train", "a", "b", "--out", "c", "--loss.class_cells", "al"], "expected one of 'foreground', 'all'"),
        (["train", "a", "b", "--out", "c", "--assignment.force_match", "3"], "expected true or false"),
        (["train", "a", "b", "--out", "c", "--preset", "tinny"], "(did you mean tiny?)"),
        (["train", "a", "b", "--out", "c", "--config", "no.toml"], "no.toml: cannot read"),
        (["train", "a", "no.json", "--out", "c"], "no.json: cannot read"),
        (["localize", "no.h5", "b", "--out", "x.json"], "no.h5: cannot open"),
        (["localize", "a", "b", "--out", "x.txt"], "x.txt: expected a file name that ends in .json"),
        (["localize", "a", "b", "--out", "x.json", "--processes", "2"], "--processes is for a folder of shards"),
        (["localize", "a", "b", "--out", "x", "--processes", "0"], "--processes: expected at least 1, got 0"),
        (["localize", "a", "b", "--out", "x.json", "--subset", "v"], "--subset needs --annotations"),
        (["inspect", "a.h5", "--subsets", "s.csv"], "inspect: --subsets needs --annotations"),
        (["import", "a", "--out", "x.h5", "--categories", "c.txt"], "import: --categories needs --annotations"),
        (["evaluate", "no.json", "b"], "no.json: cannot read"),
        (["plot", "no.json", "--out", "c"], "no.json: cannot read"),
        (["plot", "no.json", "--out", "c", "--top", "0"], "--top: expected at least 1"),
        (["inspect", "no.h5"], "no.h5: cannot open"),
        (["import", "nowhere", "--out", "x.h5"], "nowhere: no such file or folder"),
        (["import-recordings", "no.npz", "--out", "c"], "no.npz: no such file"),
    ],
)
def test_mistakes_end_as_one_line_and_leave_nothing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_settings_files_are_checked_and_overridden(world, capsys, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text('preset = "tiny"\n[training]\niterations = 2\nbatch_size = 2\nlearning_rate = 1e-3\n')
    out = tmp_path / "run"
    arguments = ["train", *world, "--config", str(config), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--training.iterations", "3"]) == 0
    used = json.loads((out / "checkpoint.json").read_text())["config"]
    assert used["preset"] == "tiny"
    assert (used["training"]["iterations"], used["training"]["learning_rate"]) == (3, 1e-3)
    assert used["model"]["feature_dimension"] == 8
    capsys.readouterr()
    config.write_text("[trainig]\niterations = 2\n")
    assert "trainig: unknown key (did you mean training?)" in refused(capsys, *arguments[:-3], tmp_path / "x")
    config.write_text("[training]\niterations = 2.5\n")
    message = refused(capsys, *arguments[:-3], tmp_path / "x")
    assert "settings.toml: training.iterations: expected an integer" in message


def test_a_preset_of_the_command_line_wins_over_that_of_the_file(world, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text('preset = "paper"\n[training]\niterations = 1\nbatch_size = 1\n')
    out = tmp_path / "run"
    arguments = ["--preset", "tiny", "--config", str(config), "--out", str(out), "--device", "cpu"]
    assert main(["train", *world, *arguments]) == 0
    used = json.loads((out / "checkpoint.json").read_text())["config"]
    assert (used["preset"], used["training"]["iterations"], used["model"]["minimum_channels"]) == ("tiny", 1, 32)


def test_training_refuses_a_folder_in_use_and_resumes_on_request(world, run, capsys):
    arguments = ["train", *world, "--subset", "training", "--out", run, *QUICK]
    before = (Path(run) / "checkpoint.json").read_bytes()
    assert "holds a run already" in refused(capsys, *arguments)
    assert (Path(run) / "checkpoint.json").read_bytes() == before
    assert main([*arguments, "--resume"]) == 0
    assert "after 3 iterations" in capsys.readouterr().out


def test_localize_takes_videos_of_a_subset_and_settings(world, run, capsys, tmp_path):
    out = tmp_path / "d.csv"
    arguments = ["localize", world[0], run, "--out", str(out), "--annotations", world[1], "--device", "cpu"]
    arguments += ["--subset", "validation", "--inference.top_k", "7", "--batch-size", "2"]
    assert main(arguments) == 0
    assert "21 detections in 3 videos" in capsys.readouterr().out
    with out.open() as file:
        ids = {row["video_id"] for row in csv.DictReader(file)}
    assert ids == {f"validation_{number:05d}" for number in range(3)}
    assert "inference.top_k: expected" in refused(capsys, *arguments, "--inference.top_k", "0")


def test_localize_into_a_folder_is_what_goes_into_a_file(world, run, detections, capsys, tmp_path):
    folder = str(tmp_path / "found")
    arguments = [
        "localize",
        world[0],
        run,
        "--out",
        folder,
        "--device",
        "cpu",
        "--shard-videos",
        "4",
        "--processes",
        "1",
    ]
    assert main(arguments) == 0
    assert f"{folder}: 3 shards of 9 videos" in capsys.readouterr().out
    assert sorted(path.name for path in Path(folder).glob("part-*")) == [f"part-00000{k}.parquet" for k in range(3)]
    assert main(["export", folder, "--out", str(tmp_path / "new" / "one.json")]) == 0
    one, other = (json.loads(Path(path).read_text())["results"] for path in (tmp_path / "new" / "one.json", detections))
    assert list(one) == list(other)
    assert [len(found) for found in one.values()] == [len(found) for found in other.values()]
    capsys.readouterr()
    scores = []
    for found in (folder, detections):
        assert main(["evaluate", found, world[1], "--subset", "validation"]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1]
    assert main(["plot", folder, "--out", str(tmp_path / "pictures"), "--videos", "validation_00001"]) == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
    capsys.readouterr()
    wanted = refused(capsys, *arguments, "--inference.top_k", "7")
    assert "holds detections of another run: inference.top_k is 100, now 7; give another folder" in wanted
    assert "x.txt: expected a file name that ends in .json" in refused(capsys, "export", folder, "--out", "x.txt")


def test_localize_takes_a_folder_of_joined_archives(world, run, detections, capsys, tmp_path):
    with open_archive(Path(world[0])) as archive:
        for name, positions in (("a.h5", range(4)), ("b.h5", range(4, 9))):
            settings = {"frame_rate": archive.frame_rate, "clip_stride": archive.clip_stride, "origin": archive.origin}
            with ArchiveWriter(tmp_path / name, dimension=8, dtype="float16", **settings) as writer:
                for position in positions:
                    rows, _ = archive.read([position])
                    writer.add(archive.ids[position], rows, archive.durations[position])
    join = ["join", str(tmp_path / "a.h5"), str(tmp_path / "b.h5"), "--out", str(tmp_path / "manifest.json")]
    assert main(join) == 0
    assert "manifest.json: 9 videos in 2 archives" in capsys.readouterr().out
    assert main(["localize", str(tmp_path), run, "--out", str(tmp_path / "found.json"), "--device", "cpu"]) == 0
    assert (tmp_path / "found.json").read_text() == Path(detections).read_text()


def test_localize_takes_one_batch_size(world, run, capsys, tmp_path):
    arguments = ["localize", world[0], run, "--out", str(tmp_path / "found.json"), "--device", "cpu"]
    sizes = ["--batch-size", "2", "--inference.batch_size", "3"]
    assert "--batch-size and --inference.batch_size are the same" in refused(capsys, *arguments, *sizes)


def test_localize_takes_minimum_scores_by_class(world, run, detections, capsys, tmp_path):
    thresholds, out = tmp_path / "thresholds.json", tmp_path / "found.json"
    arguments = ["localize", world[0], run, "--out", str(out), "--device", "cpu", "--thresholds", str(thresholds)]
    every = json.loads(Path(detections).read_text())["results"]
    label = next(iter(every.values()))[0]["label"]
    thresholds.write_text(json.dumps({label: 2}))
    assert main(arguments) == 0
    found = json.loads(out.read_text())["results"]
    assert found == {name: [row for row in rows if row["label"] != label] for name, rows in every.items()}
    capsys.readouterr()
    for content, message in (
        ("{", "not a JSON file"),
        ("[]", "expected an object"),
        ('{"a": "b"}', "a finite score"),
        ('{"a": NaN}', "a finite score"),
        (f'{{"a": 1{400 * "0"}}}', "a finite score"),
        (f'{{"{label}": 2, "{label}": 0}}', f"not a JSON file (the key '{label}' occurs more than once"),
    ):
        thresholds.write_text(content)
        assert f"thresholds.json: {message}" in refused(capsys, *arguments).replace("'a': expected ", "")
    thresholds.write_text('{"nothing": 0.5}')
    assert "thresholds: 'nothing' is none of the 2 classes" in refused(capsys, *arguments)
    thresholds.write_text(json.dumps({label.title(): 0.5}))
    assert f"did you mean {label!r}?" in refused(capsys, *arguments)


def test_localize_takes_durations_of_the_annotations_where_the_archive_has_none(world, run, capsys, tmp_path):
    with open_archive(Path(world[0])) as archive, ArchiveWriter(tmp_path / "bare.h5", dimension=8) as writer:
        for position, video_id in enumerate(archive.ids):
            writer.add(video_id, archive.read([position])[0])
    out = ["--out", str(tmp_path / "found.json"), "--device", "cpu"]
    assert "the duration is unknown of 'training_00000'" in refused(capsys, "localize", tmp_path / "bare.h5", run, *out)
    assert main(["localize", str(tmp_path / "bare.h5"), run, "--annotations", world[1], *out]) == 0
    assert main(["localize", world[0], run, "--out", str(tmp_path / "same.json"), "--device", "cpu"]) == 0
    assert (tmp_path / "found.json").read_text() == (tmp_path / "same.json").read_text()


def test_localize_names_annotated_videos_without_features(world, run, capsys, tmp_path):
    database = json.loads(Path(world[1]).read_text())
    database["database"]["unseen"] = {"subset": "validation", "duration": 5.0, "annotations": []}
    annotations = tmp_path / "more.json"
    annotations.write_text(json.dumps(database))
    arguments = ["localize", world[0], run, "--out", str(tmp_path / "d.json"), "--annotations", str(annotations)]
    assert main(arguments) == 0
    assert "without features: 1 of 10 videos, as 'unseen'" in capsys.readouterr().err
    database["database"] = {"unseen": database["database"]["unseen"]}
    annotations.write_text(json.dumps(database))
    assert "none of 1 videos" in refused(capsys, *arguments)


def test_evaluate_scores_a_subset_and_writes_every_number(world, detections, capsys, tmp_path):
    out = tmp_path / "new" / "scores.json"
    arguments = ["evaluate", detections, world[1], "--subset", "Validation", "--json", str(out)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "scored 3 of 3 videos\n" in captured.out
    assert "left out 6 detected videos of other subsets" in captured.err
    scores = json.loads(out.read_text())
    assert scores["videos"] == {"scored": 3, "missing": [], "unknown": []}
    assert "no video of subset 'testing'" in refused(capsys, "evaluate", *arguments[1:3], "--subset", "testing")


def test_evaluate_gives_groups_an_interval_and_parts_where_asked(world, detections, capsys, tmp_path):
    out, names = tmp_path / "scores.json", tmp_path / "some.txt"
    names.write_text("action 01\naction 02\n")
    asked = ["--groups", f"some={names}", "--draws", "20", "--bins", "thumos14", "--json", str(out)]
    assert main(["evaluate", detections, world[1], *asked]) == 0
    text = capsys.readouterr().out
    assert "mean of 2 some classes" in text
    assert "95 % interval of the mean over 20 draws" in text
    assert "length XS (0-3)" in text
    content = json.loads(out.read_text())
    assert {"interval", "parts"} <= content.keys()
    assert content["means"]["some"]["classes"] == 2


def test_what_is_found_of_a_group_is_what_is_found_when_its_classes_are_scored_alone(
    world, detections, capsys, tmp_path
):
    names, scores = tmp_path / "one.txt", tmp_path / "scores.json"
    names.write_text("action 01\n")
    proposals = []
    for options, entry in (["--groups", f"one={names}"], "proposals_of"), (["--classes", str(names)], "proposals"):
        assert main(["evaluate", detections, world[1], *options, "--json", str(scores)]) == 0
        proposals.append(json.loads(scores.read_text())[entry])
    assert proposals[0] == {"one": proposals[1]}
    lines = [line for line in capsys.readouterr().out.splitlines() if "AUC" in line]
    assert lines[1].removeprefix("of one") == lines[2].removeprefix("proposals") != lines[0].removeprefix("proposals")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--groups", "base"], "--groups: expected NAME=FILE, got 'base'"),
        (["--groups", "base=none.txt"], "none.txt"),
        (["--groups", "all=none.txt"], "--groups: the name 'all' is taken already"),
        (["--draws", "-1"], "--draws: expected 0 to 1,000,000, got -1"),
        (["--draws", "1000001"], "--draws: expected 0 to 1,000,000, got 1000001"),
    ],
)
def test_evaluate_refuses_what_it_cannot_score(world, detections, capsys, options, message):
    assert message in refused(capsys, "evaluate", detections, world[1], *options)


def test_evaluate_leaves_out_classes_that_only_other_subsets_have(world, detections, capsys, tmp_path):
    annotations = json.loads(Path(world[1]).read_text())
    for video in annotations["database"].values():
        if video["subset"] == "validation":
            video["annotations"] = [{**entry, "label": "action 01"} for entry in video["annotations"]]
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    assert main(["evaluate", detections, str(tmp_path / "a.json"), "--subset", "validation"]) == 0
    said = capsys.readouterr()
    assert "detections of classes that only other subsets have" in said.err
    assert "mean of 1 class" in said.out


def test_evaluate_takes_subsets_from_a_table(world, detections, capsys, tmp_path):
    table = tmp_path / "subsets.csv"
    ids = list(json.loads(Path(world[1]).read_text())["database"])
    lines = [f"{video_id},{'mine' if number < 2 else 'other'}" for number, video_id in enumerate(ids)]
    table.write_text("\n".join(["video,subset", *lines]) + "\n")
    assert main(["evaluate", detections, world[1], "--subset", "mine", "--subsets", str(table)]) == 0
    assert "scored 2 of 2 videos" in capsys.readouterr().out


def test_plot_draws_named_videos_and_suggests_for_unknown_ones(world, detections, capsys, tmp_path):
    arguments = ["plot", detections, "--annotations", world[1], "--out", str(tmp_path / "pictures"), "--videos"]
    assert main([*arguments, "validation_00001", "training_00000"]) == 0
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["training_00000.png", "validation_00001.png"]
    capsys.readouterr()
    assert "did you mean 'validation_00001'?" in refused(capsys, *arguments, "validation_0001")


def test_folders_of_features_are_imported_and_inspected(capsys, tmp_path):
    features = tmp_path / "features"
    features.mkdir()
    for name in ("v_a", "v_b"):
        np.save(features / f"{name}.npy", np.ones((5, 4), np.float32))
    archive = tmp_path / "new" / "archive.h5"
    arguments = ["import", str(features), "--out", str(archive), "--frame-rate", "25", "--clip-stride", "16"]
    assert main([*arguments, "--prefix", "v_"]) == 0
    assert "2 videos, 10 rows of 4" in capsys.readouterr().out
    assert main(["inspect", str(archive)]) == 0
    assert "clip stride    16" in capsys.readouterr().out


def test_inspect_says_of_other_files_what_they_are(world, run, detections, capsys, tmp_path):
    video = tmp_path / "a.mp4"
    video.touch()
    nothing = tmp_path / "a.txt"
    nothing.write_text("nothing")
    assert "annotations of" in refused(capsys, "inspect", world[1])
    assert "detections in 9 videos" in refused(capsys, "inspect", detections)
    assert "the folder of a run" in refused(capsys, "inspect", run)
    assert "a video; extract makes an archive" in refused(capsys, "inspect", video)
    assert "a folder of 1 videos; extract makes an archive" in refused(capsys, "inspect", tmp_path)
    assert refused(capsys, "inspect", nothing) == f"{nothing}: not an HDF5 file"
    for name, content, words in (
        ("labels.csv", "video,label\na,x\nb,y\nc,x\n", "labels of 3 moments of 2 classes; train --moment-labels"),
        ("setting.toml", "[base]\n[novel]\n", "a setting; experiment --setting takes it"),
        ("recordings.toml", "[recordings]\nwindow = 8\n", "a setting; experiment --setting takes it"),
        ("mine.toml", "[training]\niterations = 3\n", "settings of a run; train --config takes them"),
    ):
        (tmp_path / name).write_text(content)
        assert words in refused(capsys, "inspect", tmp_path / name)
    (tmp_path / "other.toml").write_text("[tool]\n")
    assert refused(capsys, "inspect", tmp_path / "other.toml").endswith("not an HDF5 file")


def test_recordings_that_are_refused_leave_no_folder(capsys, tmp_path):
    bad = tmp_path / "a.npz"
    bad.touch()
    assert str(bad) in refused(capsys, "import-recordings", bad, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_warnings_of_libraries_are_lines_without_places_in_code(capsys, tmp_path, monkeypatch):
    def run(parsed):
        warnings.warn("Glyph 20013 (\\N{CJK}) missing from font(s)", stacklevel=1)
        warnings.warn("something\nodd", stacklevel=1)

    monkeypatch.setitem(COMMANDS, "join", replace(COMMANDS["join"], run=run))
    assert main(["join", "a.h5", "--out", str(tmp_path / "x.json")]) == 0
    assert capsys.readouterr().err == "warning: something odd\n"


def test_recordings_are_imported(capsys, tmp_path):
    np.savez(
        tmp_path / "r.npz",
        x=np.arange(80).reshape(40, 2),
        scale=1.0,
        zero=0.0,
        rec_offset=[0, 40],
        rec_id=["r"],
        subject=[3],
        rate_hz=10.0,
        seg_rec=[0],
        seg_start=[1.0],
        seg_end=[2.0],
        seg_class=[0],
        class_names=["wave"],
    )
    arguments = ["import-recordings", str(tmp_path / "r.npz"), "--out", str(tmp_path / "data")]
    assert main([*arguments, "--training-subjects", "3", "--stride", "2"]) == 0
    assert "1 clips (1 training, 0 validation), 1 instances, 20 rows of 6" in capsys.readouterr().out
    assert "none of '1-2'" in refused(capsys, *arguments, "--training-subjects", "1-2")


def test_the_program_exits_with_the_codes_and_without_tracebacks(tmp_path):
    result = program("evaluate", "no.json", "b")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "ahernet: error: no.json: cannot read (No such file or directory)\n"


def test_nobody_reading_the_output_is_no_error(world):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "ahernet", "inspect", world[0]],
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert result.returncode == 141
    assert "error" not in result.stderr.lower()
    assert "Traceback" not in result.stderr


def test_an_interrupt_while_the_command_line_is_loaded_is_one_line():
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'jsonargparse':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from ahernet.__main__ import main\n"
        "sys.exit(main())"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "ahernet: error: interrupted\n")


def test_an_interrupt_is_said_in_one_line(capsys, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("stopped after iteration 3; runs/x can be resumed")

    monkeypatch.setattr("ahernet.data.inspection.inspect_archive", interrupt)
    assert main(["inspect", "a"]) == 130
    assert capsys.readouterr().err == "ahernet: error: interrupted: stopped after iteration 3; runs/x can be resumed\n"


@pytest.mark.slow
def test_real_recordings_are_localized_in_subjects_that_training_has_not_seen(capsys, tmp_path):
    folder = os.environ.get("AHERNET_DATA")
    recordings = Path(folder or ".") / "sequences" / "ninapro_db1_e1_25hz.npz"
    if folder is None or not recordings.exists():
        pytest.skip("AHERNET_DATA does not name a folder with sequences/ninapro_db1_e1_25hz.npz")
    data, out = tmp_path / "data", tmp_path / "run"
    files = [str(data / "archive.h5"), str(data / "annotations.json")]
    held_out = ["--annotations", files[1], "--subset", "validation"]
    settings = ["--preset", "tiny", "--device", "cpu"]
    settings += ["--training.iterations", "150", "--training.decay_every", "100"]
    for command in (
        ["import-recordings", str(recordings), "--training-subjects", "1-15", "--out", str(data)],
        ["train", *files, "--subset", "training", "--out", str(out), *settings],
        ["localize", files[0], str(out), "--out", str(out / "d.json"), *held_out, "--device", "cpu"],
        ["evaluate", str(out / "d.json"), *files[1:], "--subset", "validation", "--json", str(out / "s.json")],
    ):
        assert main(command) == 0
    assert "scored 120 of 120 videos\n" in capsys.readouterr().out
    means = json.loads((out / "s.json").read_text())["means"]["all"]
    assert means["classes"] == 12
    assert means["mean_average_precision"][0] > 0.8  # measured 0.92
    assert means["average"] > 0.4  # measured 0.47
