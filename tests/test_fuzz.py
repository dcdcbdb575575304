"""The short form of `tests/fuzz.py`: a few changed files of every kind, without guidance and without atheris."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_readers import READERS, Reader, Watch, changed, run

from ahernet.errors import UserError

ROOT = Path(__file__).parents[1]
INPUTS = 25
SLOWEST = 60  # seconds of an input, on a busy machine


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_taken_and_changed_ones_taken_or_refused(name, tmp_path, watch):
    reader, randomness = READERS[name], random.Random(name)
    seeds = reader.seeds()
    assert [content for content in seeds if not run(reader, content, tmp_path, watch)] == []
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a reader that hangs ends the test process
    taken = []
    for _ in range(INPUTS):
        content = changed(randomness.choice(seeds), reader.words, randomness)
        signal.alarm(SLOWEST)
        taken.append(run(reader, content, tmp_path, watch))
        signal.alarm(0)
    assert not all(taken)


@pytest.mark.parametrize("name", READERS)
def test_files_cut_at_any_64th_and_flipped_bits_are_taken_or_refused(name, tmp_path, watch):
    reader = READERS[name]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for content in reader.seeds():
        for part in range(64):
            place = len(content) * part // 64
            flipped = bytearray(content)
            if flipped:
                flipped[place] ^= 1 << part % 8
            for damaged in (content[:place], bytes(flipped)):
                signal.alarm(SLOWEST)
                run(reader, damaged, tmp_path, watch)
                signal.alarm(0)


@pytest.mark.parametrize(
    ("read", "complaint"),
    [
        (lambda folder, content: {}["x"], "'x'"),
        (lambda folder, content: (folder.parent / "elsewhere").write_bytes(content), "opens .*elsewhere.* for writing"),
        (lambda folder, content: (folder.parent / "elsewhere").mkdir(), "os.mkdir .*elsewhere"),
        (lambda folder, content: os.system("true"), "os.system"),
        (lambda folder, content: _refuse(" "), "without a message"),
    ],
)
def test_what_a_reader_must_not_do_is_noticed(read, complaint, tmp_path, watch):
    folder = tmp_path / "files"
    folder.mkdir()
    with pytest.raises((AssertionError, KeyError), match=complaint):
        run(Reader(list, read), b"content", folder, watch)


def test_what_a_reader_may_do_is_not_complained_of(tmp_path, watch):
    def read(folder, content):
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_bytes(content)
        Path(__file__).read_bytes()

    assert run(Reader(list, read), b"content", tmp_path, watch)
    assert not run(Reader(list, lambda folder, content: _refuse("expected something else")), b"", tmp_path, watch)


def _refuse(message):
    raise UserError(message)


def test_the_command_knows_every_reader():
    text = (ROOT / "tests" / "fuzz.py").read_text().partition("NAMES = (")[2].partition(")")[0]
    assert [line.strip(' ",') for line in text.split("\n") if line] == list(READERS)


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="needs atheris: pip install -e '.[fuzz]'")
def test_inputs_are_guided_by_what_they_reach(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "300", "--reader", "thresholds", "--keep", str(tmp_path)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "thresholds: 300 inputs" in result.stdout
    assert "NEW" in result.stderr
