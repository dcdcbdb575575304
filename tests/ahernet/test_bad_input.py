"""Broken and hostile input through the command line.

Whatever is wrong ends as one line on stderr that names the culprit, with exit code 2, and leaves nothing behind.
"""

import gzip
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from disturbances import small_disk

from ahernet.cli import main
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.detections import read_detections
from ahernet.rendered import WorldConfig, write_world

WORLD = WorldConfig(classes=2, training_videos=4, validation_videos=2, dimension=8, max_duration=40.0)
DIMENSION = WORLD.dimension
QUICK = ("--preset", "tiny", "--training.iterations", "2", "--training.batch_size", "2", "--device", "cpu")
DIGITS = "9" * 5000  # Python refuses to make a number of so many

# What a file can hold instead of what it should.
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello\n",
    "binary": bytes(range(256)),
    "number": b"3",
    "list": b"[1]",
    "other": b'{"a": 1}',
    "deep": b"[" * 100_000,
    "digits": f'{{"format": {DIGITS}}}'.encode(),
    "cut gzip": gzip.compress(b'{"database": {}}' * 99)[:20],
}
SPOILED = (*CONTENTS, "missing", "folder", "other HDF5", "cut HDF5", "cut JSON", "cut detections")
COMMON = ("missing", "folder", "binary")

HOSTILE_IDS = (
    "../../x",
    "/etc/passwd",
    ".",
    "..",
    "a" * 300,
    "line\nbreak",
    "a\r\nb",
    "\u202etxt.exe",
    "\x1b[31mred",
    "C:\\x",
    "$(id)",
    "$x_{",
    'x,y"z',
    "%00",
    " ",
    "v_",
    "\N{GRINNING FACE}" * 60,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[str, str]:
    archive, annotations = write_world(tmp_path_factory.mktemp("world"), WORLD)
    return str(archive), str(annotations)


@pytest.fixture(scope="module")
def run(tmp_path_factory, world) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *world, "--out", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture(scope="module")
def detections(tmp_path_factory, world, run) -> str:
    path = tmp_path_factory.mktemp("detections") / "found.json"
    arguments = ["--device", "cpu", "--inference.top_k", "5"]
    assert main(["localize", world[0], str(run), "--out", str(path), *arguments]) == 0
    return str(path)


@pytest.fixture
def box(tmp_path) -> Path:
    """The only place that commands are told to write to."""
    (tmp_path / "box").mkdir()
    return tmp_path / "box"


@pytest.fixture
def refused(capsys, box):
    """Run a command that must fail as the module's docstring says; return what it said."""

    def check(*arguments: object) -> str:
        before = sorted(box.rglob("*"))
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        errors = [line for line in captured.err.splitlines() if "ahernet: error: " in line]
        assert len(errors) == 1
        assert captured.err.endswith(f"{errors[0]}\n")
        assert sorted(box.rglob("*")) == before
        return errors[0].removeprefix("ahernet: error: ")

    return check


def spoil(path: Path, kind: str, world: tuple[str, str], detections: str) -> None:
    cut = {"cut HDF5": world[0], "cut JSON": world[1], "cut detections": detections}
    if kind == "folder":
        path.mkdir()
    elif kind == "other HDF5":
        with h5py.File(path, "w") as file:
            file["x"] = np.ones(3)
    elif kind in cut:
        content = Path(cut[kind]).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind != "missing":
        path.write_bytes(CONTENTS[kind])


def write_archive(path: Path, videos: dict[str, tuple[int, float]], dimension: int = DIMENSION) -> Path:
    """Write an archive of (rows, duration) per id."""
    with ArchiveWriter(path, dimension=dimension, frame_rate=25.0, clip_stride=8) as writer:
        for number, (video_id, (rows, duration)) in enumerate(videos.items()):
            features = np.random.default_rng(number).standard_normal((rows, dimension))
            writer.add(video_id, features.astype(np.float32), duration)
    return path


def write_json(path: Path, key: str, value: object) -> Path:
    path.write_text(json.dumps({key: value}))
    return path


def annotated(*ids: str, duration: float = 20.0) -> dict[str, object]:
    instance = {"segment": [2.0, 9.0], "label": "action 01"}
    return {video_id: {"subset": "training", "duration": duration, "annotations": [instance]} for video_id in ids}


@contextmanager
def largest_file(size: int):
    """Let no file grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def cases(first: str, *others: str) -> list[tuple[str, str]]:
    """Every spoiled file for the first, the common ones for the others, which read with the same function."""
    return [(first, kind) for kind in SPOILED] + [(other, kind) for other in others for kind in COMMON]


@pytest.mark.parametrize(("command", "kind"), cases("inspect", "train", "localize"))
def test_a_spoiled_archive_is_named(command, kind, world, run, detections, box, tmp_path, refused):
    path = tmp_path / "spoiled.h5"
    spoil(path, kind, world, detections)
    rest = {
        "inspect": (),
        "train": (world[1], "--out", box / "run", *QUICK),
        "localize": (run, "--out", box / "new" / "found.json"),
    }
    assert "spoiled.h5: " in refused(command, path, *rest[command])


@pytest.mark.parametrize("kind", [*COMMON, "empty", "other HDF5", "cut HDF5"])
def test_spoiled_sources_of_features_are_named(kind, world, detections, box, tmp_path, refused):
    path = tmp_path / "spoiled.h5"
    spoil(path, kind, world, detections)
    assert "spoiled.h5: " in refused("import", path, "--out", box / "archive.h5")


@pytest.mark.parametrize("kind", [*COMMON, "empty", "text"])
def test_spoiled_maps_of_ids_are_named(kind, world, detections, box, tmp_path, refused):
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "a.npy", np.ones((2, 3)))
    path = tmp_path / "spoiled.csv"
    spoil(path, kind, world, detections)
    message = refused("import", tmp_path / "features", "--map", path, "--out", box / "archive.h5")
    assert "spoiled.csv: " in message


@pytest.mark.parametrize(("command", "kind"), cases("evaluate", "inspect", "train", "localize", "plot"))
def test_spoiled_annotations_are_named(command, kind, world, run, detections, box, tmp_path, refused):
    path = tmp_path / "spoiled.json"
    spoil(path, kind, world, detections)
    arguments = {
        "inspect": (world[0], "--annotations", path),
        "train": (world[0], path, "--out", box / "run", *QUICK),
        "localize": (world[0], run, "--out", box / "new" / "found.json", "--annotations", path),
        "evaluate": (detections, path, "--json", box / "scores.json"),
        "plot": (detections, "--annotations", path, "--out", box / "pictures"),
    }
    assert "spoiled.json: " in refused(command, *arguments[command])


@pytest.mark.parametrize(("suffix", "kind"), cases(".json", ".csv", ".json.gz", ".txt"))
def test_spoiled_detections_are_named(suffix, kind, world, detections, box, tmp_path, refused):
    path = tmp_path / f"spoiled{suffix}"
    spoil(path, kind, world, detections)
    assert f"spoiled{suffix}: " in refused("evaluate", path, world[1], "--json", box / "scores.json")


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_checkpoint_is_named(kind, world, detections, box, tmp_path, refused):
    folder = tmp_path / "spoiled"
    folder.mkdir()
    spoil(folder / "checkpoint.json", kind, world, detections)
    assert "spoiled/checkpoint.json: " in refused("localize", world[0], folder, "--out", box / "found.json")


@pytest.mark.parametrize(
    "content",
    [
        "hello",
        '{"a": 1}',
        "\0",
        "preset = 3",
        'preset = "tinny"',
        "training = 3",
        "[[training]]\niterations = 3",
        "[nope]\na = 1",
        "[training]\niteration = 3",
        "[training]\niterations = '3'",
        "[training]\niterations = 3.0",
        "[training]\niterations = true",
        "[training]\niterations = 1979-05-27",
        "[training]\nlearning_rate = nan",
        "[training]\nlearning_rate = -1",
        "[loss]\nclass_cells = ['all']",
        "[assignment]\nforeground_threshold = 0.1",
        f"[training]\niterations = {'9' * 400}",
        f"[training]\nlearning_rate = {'9' * 400}",
        f"[training]\niterations = {DIGITS}",
        "a = " + "[" * 100_000,
    ],
)
def test_bad_settings_name_their_file(content, world, box, tmp_path, refused):
    path = tmp_path / "settings.toml"
    path.write_text(content)
    assert "settings.toml: " in refused("train", *world, "--config", path, "--out", box / "run", "--device", "cpu")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("--training.iterations=1e2", "training.iterations"),
        ("--training.iterations=null", "training.iterations"),
        ("--training.learning_rate=.inf", "training.learning_rate"),
        ("--model.width=1e400", "model.width"),
        ("--training=x.yaml", "--training"),
        ("--training.help", "--training.help"),
        ("--print_config", "--print_config"),
        ("--device=cuda:-1", "device"),
        ("--device=meta", "device"),
        (f"--training.iterations={'9' * 400}", "training.iterations"),
        ("--inference.sigma=1e-40", "inference.sigma"),
    ],
)
def test_bad_arguments_are_named(setting, name, world, box, refused):
    assert name in refused("train", *world, "--out", box / "run", "--preset", "tiny", setting)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_name_their_video(bad, world, run, box, tmp_path, refused):
    path = write_archive(tmp_path / "archive.h5", {"good": (40, 20.0), "broken": (40, 20.0)})
    with h5py.File(path, "r+") as file:
        file["features"][45, 3] = bad
    annotations = write_json(tmp_path / "annotations.json", "database", annotated("good", "broken"))
    message = refused("localize", path, run, "--out", box / "found.json")
    assert "archive.h5: " in message
    assert "broken" in message
    (box / "run").mkdir()
    (box / "run" / "losses.jsonl").touch()  # the log of a run is there from its first iteration
    assert "not finite in 'broken'" in refused("train", path, annotations, "--out", box / "run", *QUICK)


def test_videos_without_rows_and_repeated_ids_are_named(run, box, tmp_path, refused):
    path = write_archive(tmp_path / "archive.h5", {"good": (40, 20.0), "broken": (40, 20.0)})
    with h5py.File(path, "r+") as file:
        file["offsets"][1] = 80
    assert "'broken'" in refused("localize", path, run, "--out", box / "found.json")
    with h5py.File(path, "r+") as file:
        file["offsets"][1], file["ids"][1] = 40, file["ids"][0]
    assert "'good' more than once" in refused("inspect", path)


@pytest.mark.parametrize("command", ["inspect", "train", "localize"])
def test_an_archive_without_videos_is_named(command, world, run, box, tmp_path, refused):
    path = write_archive(tmp_path / "archive.h5", {"a": (40, 20.0)})
    empty = {
        "ids": np.zeros(0, "S4"),
        "offsets": np.zeros(1, np.int64),
        "durations": np.zeros(0),
        "crc32": np.zeros(0, np.uint32),
        "features": np.zeros((0, DIMENSION), np.float16),
    }
    with h5py.File(path, "r+") as file:
        for name, table in empty.items():
            del file[name]
            file[name] = table
    rest = {
        "inspect": (),
        "train": (world[1], "--out", box / "run", *QUICK),
        "localize": (run, "--out", box / "found.json"),
    }
    assert "archive.h5" in refused(command, path, *rest[command])


def test_a_network_for_other_features_is_refused(run, box, tmp_path, refused):
    path = write_archive(tmp_path / "narrow.h5", {"a": (40, 20.0)}, dimension=4)
    message = refused("localize", path, run, "--out", box / "found.json")
    assert "narrow.h5: features have 4 values a row" in message
    assert "expects 8" in message


def test_videos_of_one_row_work_from_end_to_end(box, tmp_path, capsys):
    archive = write_archive(tmp_path / "archive.h5", {"a": (1, 5.0), "v_b": (1, 0.3)})
    database = {**annotated("v_a", duration=5.0), **annotated("b", duration=0.3)}
    annotations = write_json(tmp_path / "annotations.json", "database", database)
    found, pictures = box / "found.json", box / "pictures"
    for command in (
        ("train", archive, annotations, "--out", box / "run", *QUICK),
        ("localize", archive, box / "run", "--annotations", annotations, "--out", found, "--device", "cpu"),
        ("evaluate", found, annotations),
        ("plot", found, "--annotations", annotations, "--out", pictures, "--videos", "a", "v_b", "--top", "2"),
    ):
        assert main([str(argument) for argument in command]) == 0
    assert "scored 2 of 2 videos" in capsys.readouterr().out
    assert len(list(pictures.iterdir())) == 2


def test_hostile_ids_survive_and_stay_inside_their_folder(world, run, box, tmp_path, capsys):
    archive = write_archive(tmp_path / "archive.h5", dict.fromkeys(HOSTILE_IDS, (20, 20.0)))
    annotations = write_json(tmp_path / "annotations.json", "database", annotated(*HOSTILE_IDS))
    outside = sorted(tmp_path.iterdir())
    for name in ("found.json", "found.csv.gz"):
        arguments = ["--annotations", annotations, "--out", box / name, "--inference.top_k", "2"]
        assert main([str(word) for word in ("localize", archive, run, *arguments)]) == 0
        assert set(read_detections(box / name).video_ids) == set(HOSTILE_IDS)
    scored = write_json(
        tmp_path / "scored.json",
        "results",
        {video_id: [{"label": "action 01", "score": 0.5, "segment": [2, 9]}] for video_id in HOSTILE_IDS},
    )
    assert main(["evaluate", str(scored), str(annotations)]) == 0
    assert f"scored {len(HOSTILE_IDS)} of {len(HOSTILE_IDS)} videos\n" in capsys.readouterr().out
    drawn = HOSTILE_IDS[:6]
    words = ["--out", str(box / "pictures"), "--top", "1", "--videos", *drawn]
    assert main(["plot", str(scored), "--annotations", str(annotations), *words]) == 0
    assert len(list((box / "pictures").iterdir())) == len(drawn)
    assert sorted(tmp_path.iterdir()) == [*outside, scored]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"": []}, "valid, non-empty text"),
        ({"\ud800": []}, "valid, non-empty text"),
        ({"a": [{"label": "\ud800", "score": 0.5, "segment": [0, 1]}]}, "valid, non-empty text"),
        ({"a": [{"label": "action 01", "score": 0.5, "segment": [1, 0]}]}, "ends before it starts"),
        ({"a": [{"label": "action 01", "score": float("nan"), "segment": [0, 1]}]}, "finite"),
        ({"a": [{"label": "Action 01", "score": 0.5, "segment": [0, 1]}]}, "did you mean 'action 01'?"),
        ({"a": {}}, "video 'a': expected a list"),
    ],
)
def test_bad_detections_say_what_is_wrong(results, message, world, box, tmp_path, refused):
    path = write_json(tmp_path / "found.json", "results", results)
    assert message in refused("evaluate", path, world[1], "--json", box / "scores.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"database": {}}', "holds no video"),
        ('{"database": {"": {"annotations": []}}}', "the id is empty"),
        ('{"database": {"a": {"annotations": []}, "a": {"annotations": []}}}', "'a' occurs more than once"),
        ('{"database": {"training_00000": {"annotations": []}}}', "no annotated instance"),
        ('{"database": {"a": {"annotations": [{"segment": [2, 1], "label": "x"}]}}}', "start <= end"),
    ],
)
def test_bad_annotations_say_what_is_wrong(content, message, detections, box, tmp_path, refused):
    path = tmp_path / "annotations.json"
    path.write_text(content)
    assert message in refused("evaluate", detections, path, "--json", box / "scores.json")


def test_nothing_to_train_on_says_why(world, box, tmp_path, refused):
    train = ("--out", box / "run", *QUICK)
    none = write_json(tmp_path / "none.json", "database", {"training_00000": {"annotations": []}})
    assert "without a usable segment: training_00000" in refused("train", world[0], none, *train)
    unseen = write_json(tmp_path / "unseen.json", "database", annotated("unseen"))
    assert "without features: unseen" in refused("train", world[0], unseen, *train)
    assert "has training, validation" in refused("train", *world, "--subset", "testing", *train)
    untimed = write_archive(tmp_path / "untimed.h5", {"a": (40, float("nan"))})
    unknown = write_json(tmp_path / "unknown.json", "database", annotated("a", duration=0.0))
    assert "of unknown duration: a" in refused("train", untimed, unknown, *train)


def test_places_that_cannot_be_written_are_named(world, run, detections, box, refused):
    blocked = box / "file"
    blocked.write_text("mine")
    (box / "folder.json").mkdir()
    inside = blocked / "inside"
    for command in (
        ("train", *world, "--out", inside, *QUICK),
        ("train", *world, "--out", blocked, *QUICK),
        ("localize", world[0], run, "--out", f"{inside}.json"),
        ("evaluate", detections, world[1], "--json", inside),
        ("plot", detections, "--out", inside),
        ("plot", detections, "--out", blocked),
        ("demo", "--out", inside),
        ("demo", "--out", blocked),
    ):
        assert str(blocked) in refused(*command)
    assert blocked.read_text() == "mine"
    assert "folder.json: " in refused("localize", world[0], run, "--out", box / "folder.json")
    assert "folder.json: " in refused("evaluate", detections, world[1], "--json", box / "folder.json")
    assert "holds other files" in refused("demo", "--out", box)


def test_a_pipe_or_device_is_not_replaced_by_a_file(world, detections, box, refused):
    os.mkfifo(box / "pipe")
    assert "pipe: " in refused("evaluate", detections, world[1], "--json", box / "pipe")
    assert (box / "pipe").is_fifo()


def test_a_disk_that_is_only_for_reading_is_named(world, run, detections, box, tmp_path, refused):
    features = tmp_path / "features"
    features.mkdir()
    np.save(features / "a.npy", np.ones((20, DIMENSION), np.float32))
    outputs = {
        "train": ("train", *world, "--out", box / "train", *QUICK),
        "localize.json": ("localize", world[0], run, "--out", box / "localize.json"),
        "shards": ("localize", world[0], run, "--out", box / "shards"),
        "import.h5": ("import", features, "--out", box / "import.h5"),
        "evaluate.json": ("evaluate", detections, world[1], "--json", box / "evaluate.json"),
        "plot": ("plot", detections, "--out", box / "plot"),
        "report.html": ("report", detections, world[1], "--out", box / "report.html"),
        "log.jsonl": ("localize", world[0], run, "--out", tmp_path / "x.json", "--log-json", box / "log.jsonl"),
    }
    with small_disk(box, 1 << 22) as resize:
        if resize is None:
            pytest.skip("mounting is not permitted")
        subprocess.run(["mount", "-o", "remount,ro", str(box)], check=True)
        for name, command in outputs.items():
            message = refused(*command)
            assert name in message
            assert "Read-only file system" in message


def test_a_full_disk_leaves_nothing_half_written(world, run, detections, box, refused):
    with largest_file(500):
        assert "found.json: cannot write" in refused("localize", world[0], run, "--out", box / "found.json")
        assert "scores.json: cannot write" in refused("evaluate", detections, world[1], "--json", box / "scores.json")


def test_a_full_disk_ends_training_with_one_line(world, box, refused):
    (box / "run").mkdir()
    (box / "run" / "losses.jsonl").touch()
    with largest_file(20_000):
        assert "training_state.pt: cannot write" in refused("train", *world, "--out", box / "run", *QUICK)


def test_a_full_disk_ends_an_import_with_one_line(box, tmp_path, refused):
    features = tmp_path / "features"
    features.mkdir()
    np.save(features / "a.npy", np.ones((2000, DIMENSION), np.float32))
    with largest_file(2_000):
        assert "archive.h5.partial: cannot write" in refused("import", features, "--out", box / "archive.h5")
    assert not list(box.iterdir())


def test_a_training_state_that_runs_code_is_refused(world, box, tmp_path, refused):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    assert main(["train", *world, "--out", str(box / "run"), *QUICK]) == 0
    torch.save(Hostile(), box / "run" / "training_state.pt")
    message = refused("train", *world, "--out", box / "run", "--resume", *QUICK)
    assert "training_state.pt: " in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("entry", ["config", "iteration", "data", "networks", "optimizer"])
def test_a_training_state_of_wrong_entries_is_named(entry, world, run, box, tmp_path, refused):
    state = torch.load(run / "training_state.pt", weights_only=True)
    torch.save({**state, entry: None}, box / "training_state.pt")
    (box / "losses.jsonl").touch()
    assert "training_state.pt: " in refused("train", *world, "--out", box, "--resume", *QUICK)


def test_names_of_strangers_reach_the_terminal_without_control_characters(world, box, tmp_path, detections, capsys):
    annotations = tmp_path / "annotations.json"
    content = json.loads(Path(world[1]).read_text())
    for video in content["database"].values():
        video["subset"] = "\x1b[31mred"
    annotations.write_text(json.dumps(content))
    assert main(["evaluate", detections, str(annotations), "--subset", "nope"]) == 2
    assert main(["doctor", str(box / "\x1b[31mred")]) != 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert r"\x1b[31mred" in captured.out
    assert r"\x1b[31mred" in captured.err


def test_resuming_a_finished_run_restores_a_checkpoint_that_a_kill_prevented(world, run, tmp_path):
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "training_state.pt").write_bytes((run / "training_state.pt").read_bytes())
    assert main(["train", *world, "--out", str(folder), "--resume", *QUICK]) == 0
    assert (folder / "checkpoint.json").exists()


def _refused(arguments, capsys, words):
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "d.json", "a.json", "--json", "d.json"), "--json d.json: is read by this command as well"),
        (("localize", "x.h5", "run", "--out", "t.json", "--thresholds", "t.json"), "--out t.json: is read"),
        (("localize", "x.h5", "run", "--out", "o.json", "--log-json", "o.json"), "--out o.json: is written to"),
        (("report", "d.json", "a.json", "--out", "p.html", "--thresholds", "./p.html"), "--out p.html: is written to"),
        (("report", "d.json", "a.json", "--out", "p.html", "--thresholds", "a.json"), "--thresholds a.json: is read"),
        (("join", "one.h5", "two.h5", "--out", "two.h5"), "--out two.h5: is read"),
        (("export", "found", "--out", "found/part-000000.parquet"), "--out found/part-000000.parquet: is read"),
        (("evaluate", "found", "a.json", "--json", "./found/manifest.json"), "--json found/manifest.json: is read"),
        (("report", "d.json", "a.json", "--run", "run", "--out", "run/checkpoint.json"), "checkpoint.json: is read"),
        (("experiment", "runs", "--work", "w", "--out", "r.png"), "--out r.png: expected a name that ends in .json"),
        (("train", "x.h5", "a.json", "--out", ""), "--out: expected a name, got nothing"),
        (("train", "x.h5", "a.json", "--out="), "--out: expected a name, got nothing"),
    ],
)
def test_no_command_writes_over_what_it_reads_or_writes(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _refused(arguments, capsys, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["v.npy", "film.mp4", "other.h5"])
def test_only_an_archive_is_replaced_by_one(name, tmp_path, capsys):
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "v.npy", np.zeros((3, 2), np.float32))
    out = tmp_path / "source" / name if name == "v.npy" else tmp_path / name
    if name == "other.h5":
        with h5py.File(out, "w") as file:
            file["features"] = np.ones((3, 2))
    elif name == "film.mp4":
        out.write_bytes(b"a film")
    content = out.read_bytes()
    _refused(("import", tmp_path / "source", "--out", out), capsys, "holds something else than an archive")
    assert out.read_bytes() == content
    out = tmp_path / "new.h5"
    for _ in range(2):
        assert main(["import", str(tmp_path / "source"), "--out", str(out)]) == 0
    out.write_bytes(b"")
    assert main(["import", str(tmp_path / "source"), "--out", str(out)]) == 0


def test_a_link_into_no_folder_is_refused_before_any_work(tmp_path, capsys):
    np.save(tmp_path / "v.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "out.h5").symlink_to(tmp_path / "gone" / "out.h5")
    _refused(("import", tmp_path, "--out", tmp_path / "out.h5"), capsys, "is a link into a folder that is not there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", "v.npy"]


def test_a_video_is_not_replaced_by_its_features(tmp_path, capsys):
    video = tmp_path / "good.mp4"
    video.write_bytes(b"a video")
    for source in (video, tmp_path):
        _refused(("extract", source, "--out", video), capsys, "expected another name")
    assert video.read_bytes() == b"a video"


@pytest.mark.parametrize("stride", [2**63, 10**30])
def test_an_absurd_clip_stride_is_refused_before_anything_is_done(stride, tmp_path, capsys):
    np.save(tmp_path / "v.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "v.mp4").write_bytes(b"a video")
    out = tmp_path / "out.h5"
    _refused(
        ("import", tmp_path, "--out", out, "--clip-stride", stride), capsys, "clip stride: expected frames above 0"
    )
    _refused(("extract", tmp_path / "v.mp4", "--out", out, "--clip-stride", stride), capsys, "clip stride: expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.mp4", "v.npy"]


def test_an_absurd_window_is_refused(tmp_path, capsys):
    arguments = ("import-recordings", tmp_path / "r.npz", "--out", tmp_path / "out", "--window", 10**9)
    assert main([str(argument) for argument in arguments]) == 2
    assert "window and stride: expected 1 to 1000000 samples, got 1000000000" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_standard_output_is_one_line(tmp_path):
    command = [sys.executable, "-m", "ahernet", "doctor"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("ahernet: error: cannot write to standard output")
