import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

import ahernet.event_log
import ahernet.progress
from ahernet.cli import COMMANDS, main
from ahernet.errors import UserError
from ahernet.event_log import log_event, log_to, say_result, warn
from ahernet.progress import ProgressBar

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "version-1"
LOCALIZE = ["localize", str(GOLDEN / "archive.h5"), str(GOLDEN / "run"), "--device", "cpu"]
TRAIN = ["train", str(GOLDEN / "archive.h5"), str(GOLDEN / "annotations.json"), "--preset", "tiny", "--device", "cpu"]
TRAIN += ["--model.width", "0.004", "--model.minimum_channels", "4", "--model.steps", "64"]
TRAIN += ["--training.batch_size", "2", "--resume"]


def events(path: Path) -> list[dict]:
    """Return the entries of a log, each of which must be whole and of the promised form."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for entry in entries:
        assert list(entry)[:4] == ["time", "command", "process", "event"]
        assert datetime.fromisoformat(entry["time"]).tzinfo == UTC
    return entries


def kinds(path: Path) -> list[str]:
    return [entry["event"] for entry in events(path)]


def of_kind(path: Path, kind: str) -> dict:
    (entry,) = [entry for entry in events(path) if entry["event"] == kind]
    return entry


def test_a_command_logs_its_beginning_progress_result_and_end(tmp_path):
    log, out = tmp_path / "log.jsonl", tmp_path / "found.json"
    arguments = [*LOCALIZE, "--out", str(out), "--log-json", str(log)]
    assert main(arguments) == 0
    assert kinds(log) == ["start", "progress", "progress", "result", "end"]
    assert {(entry["command"], entry["process"]) for entry in events(log)} == {("localize", os.getpid())}
    assert of_kind(log, "start")["arguments"] == arguments
    first, last = (entry for entry in events(log) if entry["event"] == "progress")
    assert (first["task"], first["done"], first["total"], first["unit"]) == ("localize", 0, 7, "videos")
    assert (last["done"], last["total"]) == (7, 7)
    assert "hours of video/s" in last["note"]
    result = of_kind(log, "result")
    assert (result["out"], result["videos"], result["detections"]) == (str(out), 7, 21)
    assert of_kind(log, "end")["ok"] is True


@pytest.mark.parametrize("command", ["train", "extract", "localize", "experiment", "import"])
def test_long_commands_have_a_log(command, capsys):
    assert main([command, "--help"]) == 0
    assert "--log-json FILE" in capsys.readouterr().out
    assert command in COMMANDS


def test_a_resumed_command_goes_on_in_the_same_log(tmp_path):
    log, out = tmp_path / "log.jsonl", tmp_path / "run"
    for iterations in ("2", "4"):
        assert main([*TRAIN, "--out", str(out), "--training.iterations", iterations, "--log-json", str(log)]) == 0
    assert kinds(log) == 2 * ["start", "message", "progress", "progress", "result", "end"]
    progress = [(entry["done"], entry["total"]) for entry in events(log) if entry["event"] == "progress"]
    assert progress == [(0, 2), (2, 2), (2, 4), (4, 4)]
    assert [entry["iterations"] for entry in events(log) if entry["event"] == "result"] == [2, 4]


def test_an_error_is_logged_as_it_is_said(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    assert main([*LOCALIZE[:2], str(tmp_path), "--out", str(tmp_path / "o.json"), "--log-json", str(log)]) == 2
    assert kinds(log) == ["start", "error", "end"]
    error = of_kind(log, "error")
    assert error["kind"] == "UserError"
    assert capsys.readouterr().err == f"ahernet: error: {error['message']}\n"
    assert of_kind(log, "end")["ok"] is False


def test_a_fault_of_the_program_is_logged_too(tmp_path):
    with pytest.raises(ZeroDivisionError), log_to(tmp_path / "log.jsonl", "train", []):
        print(1 / 0)
    assert of_kind(tmp_path / "log.jsonl", "error")["kind"] == "ZeroDivisionError"


def test_a_killed_command_leaves_whole_lines_and_no_end(tmp_path):
    log, out = tmp_path / "log.jsonl", tmp_path / "run"
    command = [sys.executable, "-m", "ahernet", *TRAIN, "--out", str(out), "--log-json", str(log)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    with subprocess.Popen(
        [*command, "--training.iterations", "1000000"], env=environment, stderr=subprocess.DEVNULL
    ) as child:
        while not (log.exists() and "progress" in log.read_text()):
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    assert kinds(log) == ["start", "message", "progress"]
    log.write_bytes(log.read_bytes()[:-20])  # as a crash of the machine may leave it
    assert main([*LOCALIZE, "--out", str(tmp_path / "found.json"), "--log-json", str(log)]) == 0
    assert kinds(log) == ["start", "message", "start", "progress", "progress", "result", "end"]


@pytest.mark.parametrize("kept", [10_000, 65_536, 65_537, 200_000])
def test_however_long_a_half_line_is_it_is_dropped(tmp_path, kept):
    path = tmp_path / "log.jsonl"
    with log_to(path, "train", ["x" * kept]):
        pass
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[0])
    with log_to(path, "train", []):
        pass
    assert kinds(path) == ["start", "end", "start", "end"]


def test_half_a_first_line_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    with log_to(path, "train", []):
        pass
    path.write_bytes(path.read_bytes()[:50])
    with log_to(path, "train", []):
        pass
    assert kinds(path) == ["start", "end"]


@pytest.mark.parametrize("content", [b"{}", b'{"time": 3}\n', b"\x89HDF", b'[{"time": "2026-01-01T"}]\n'])
def test_a_file_that_is_no_log_is_left_as_it_is(tmp_path, capsys, content):
    other = tmp_path / "annotations.json"
    other.write_bytes(content)
    assert main([*LOCALIZE, "--out", str(tmp_path / "found.json"), "--log-json", str(other)]) == 2
    assert "annotations.json: holds something else than a log of ahernet" in capsys.readouterr().err
    assert other.read_bytes() == content
    assert not (tmp_path / "found.json").exists()


def test_the_folder_of_a_log_is_made(tmp_path):
    log = tmp_path / "run" / "logs" / "log.jsonl"
    assert main([*LOCALIZE, "--out", str(tmp_path / "found.json"), "--log-json", str(log)]) == 0
    assert json.loads(log.read_text().splitlines()[0])["command"] == "localize"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("other/log", "File exists"),
        (".", "Is a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_any_work(tmp_path, capsys, place, words):
    out = tmp_path / "found.json"
    (tmp_path / "other").touch()
    assert main([*LOCALIZE, "--out", str(out), "--log-json", str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ahernet: error: {tmp_path / place}: cannot write the log there ({words}")
    assert not out.exists()


def test_a_full_disk_ends_the_command_with_one_line(tmp_path, capsys):
    assert main([*LOCALIZE, "--out", str(tmp_path / "found.json"), "--log-json", "/dev/full"]) == 2
    assert capsys.readouterr().err == "ahernet: error: /dev/full: cannot write the log (No space left on device)\n"
    assert not (tmp_path / "found.json").exists()


def test_nothing_follows_a_line_that_the_disk_had_no_room_for(tmp_path, monkeypatch):
    path, write = tmp_path / "log.jsonl", os.write

    def fill_the_disk():
        with log_to(path, "train", []), monkeypatch.context() as patch:
            patch.setattr(ahernet.event_log.os, "write", lambda file, line: write(file, line[:30]))
            log_event("message", message="cut off")

    with pytest.raises(UserError, match=r"log\.jsonl: cannot write the log \(No space left on device\)"):
        fill_the_disk()
    whole, half = path.read_bytes().split(b"\n")
    assert json.loads(whole)["event"] == "start"
    assert len(half) == 30
    with log_to(path, "train", []):
        pass
    assert kinds(path) == ["start", "start", "end"]


def test_progress_is_logged_at_most_every_ten_seconds(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ahernet.progress.time, "monotonic", lambda: now[0])
    with log_to(tmp_path / "log", "train", []), ProgressBar(total=100, desc="count", file=io.StringIO()) as bar:
        for _ in range(100):
            now[0] += 1.0
            bar.update()
    entries = [entry for entry in events(tmp_path / "log") if entry["event"] == "progress"]
    assert [entry["done"] for entry in entries] == [0, *range(10, 101, 10), 100]
    assert [entry["seconds"] for entry in entries] == [float(entry["done"]) for entry in entries]


def test_a_bar_that_is_not_shown_is_not_logged(tmp_path):
    with log_to(tmp_path / "log", "train", []), ProgressBar(total=3, disable=True) as bar:
        bar.update()
    assert kinds(tmp_path / "log") == ["start", "end"]


def test_every_value_is_json(tmp_path):
    log = tmp_path / "log"
    with log_to(log, "train", ["\udcff"]):
        say_result("done\n", out=tmp_path, share=float("nan"), names=("a", 1), nested={"x": [float("inf")]})
        warn("two\nlines")
    result = of_kind(log, "result")
    assert (result["out"], result["share"], result["names"], result["nested"]) == (
        str(tmp_path),
        None,
        ["a", 1],
        {"x": [None]},
    )
    assert of_kind(log, "warning")["message"] == "two\nlines"


def test_a_child_after_a_fork_writes_nothing(tmp_path):
    with log_to(tmp_path / "log", "train", []):
        child = os.fork()
        if not child:
            log_event("message", message="of the child")
            os._exit(0)
        os.waitpid(child, 0)
    assert kinds(tmp_path / "log") == ["start", "end"]


def test_only_the_first_process_of_torchrun_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    log = tmp_path / "log"
    assert main([*LOCALIZE, "--out", str(tmp_path / "found.json"), "--log-json", str(log)]) == 0
    assert not log.exists()


def test_bars_and_messages_go_through_one_place_each():
    """Nothing is shown that the log would not have: but for errors, of which `log_to` and workers' parents
    know, and an interrupt before there is a log."""
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "ahernet").rglob("*.py")}
    bars = [path.name for path, text in sources.items() if re.search(r"(import|from) tqdm", text)]
    assert bars == ["progress.py"]
    prints = {
        path.name
        for path, text in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node).startswith("print(") and "sys.stderr" in ast.unparse(node)
    }
    assert prints == {"event_log.py", "__main__.py", "cli.py", "shards.py"}


def test_a_child_that_dies_while_it_draws_a_bar_does_not_stop_its_parent():
    child = os.fork()
    if not child:
        ProgressBar.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert ProgressBar.get_lock().acquire(blocking=False)
    ProgressBar.get_lock().release()
