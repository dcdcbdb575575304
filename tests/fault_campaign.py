"""Disturb commands and start them again: `python -m tests.fault_campaign --kills 200`.

For each of `train`, `extract` and `localize` one run is left alone. Others are killed (SIGKILL) again and again, in
turn

    at a random moment,
    at a named point: before or after a file is flushed or renamed, in the middle of a line of a journal, and so on,
    while a second process is at work on the same output, which is killed as well,

with a clock that jumps by years whenever it is read, and files dated by it. After every kill what is on disk must be
readable, and in the end it must be what the undisturbed run left, byte for byte. Then each command runs on disks that
are too small for it (a tmpfs where mounting is permitted, else a limit on the size of files): it must end with one line
and exit code 2, and go on once there is room. A short form is part of the test-suite. Ends with exit code 1 at the
first difference.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import ahernet.commands.extraction
import ahernet.extraction.parts
import ahernet.inference.shards
import ahernet.training.trainer  # noqa: F401  (imported once here, so that the forked commands start at once)
from ahernet.checkpoint import CHECKPOINT_NAME, load_checkpoint
from ahernet.cli import main as run_command
from ahernet.data.archive import open_archive
from ahernet.data.detection_shards import load_detections
from ahernet.data.detections_parquet import read_parquet
from ahernet.extraction.backbones import BACKBONES, register
from ahernet.rendered import WorldConfig, write_world

sys.path.insert(0, str(Path(__file__).parent / "support"))
from disturbances import date_files, die_at, jump_clock, limit_files, small_disk, watch

WORLD = WorldConfig(classes=2, training_videos=20, validation_videos=10, dimension=8, max_duration=60.0)
SMALL = [
    "--model.width",
    "0.004",
    "--model.minimum_channels",
    "4",
    "--model.steps",
    "64",
    "--training.cpu_threads",
    "1",
]
VIDEOS = 24
DERIVED = (".png", ".claims")  # pictures of the log, and what a killed process may leave that is no result
WAYS = {"moment": "at random moments", "point": "at named points", "together": "beside another process"}
USER_ERROR = 2
LONGEST = 900.0  # seconds that no command may take
ROOMY = 1 << 26  # bytes of a disk that is large enough


@dataclass(frozen=True)
class Job:
    """A command that can be killed.

    Attributes:
        arguments: of the command line, given the folder of inputs and where the output goes.
        check: raises unless what a killed command has left is readable.
        compare: what of the output must be the same bytes, by file name.
        is_shared: whether several processes may work on one output; if not, all but one end with exit code 2.
    """

    arguments: Callable[[Path, Path], list[str]]
    check: Callable[[Path], None]
    compare: Callable[[Path], dict[str, bytes]]
    is_shared: bool


@dataclass
class Tally:
    """What was done to a command: kills by way and by point, runs that got through, disks that were too small."""

    ways: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    disks: int = 0

    @property
    def kills(self) -> int:
        """How often it was killed."""
        return self.ways.total()

    def describe(self, name: str) -> str:
        """Say it in a line for the command, and one for each point."""
        ways = ", ".join(f"{self.ways[way]} {said}" for way, said in WAYS.items())
        lines = [f"{name}: {self.kills} kills ({ways}), {self.disks} disks too small; {self.runs} runs got through"]
        return "\n".join(lines + [f"  {count:3d} {point}" for point, count in sorted(self.points.items()) if count])


def prepare(folder: Path) -> None:
    """Write what the commands read."""
    from small_videos import TINY, write_video

    write_world(folder, WORLD)
    (folder / "videos").mkdir()
    for number in range(VIDEOS):
        write_video(folder / "videos" / f"v{number:02d}.mp4", 24 + number)
    if TINY.name not in BACKBONES:
        register(TINY)
    quiet = ["--preset", "tiny", "--device", "cpu", *SMALL]
    train = ["train", str(folder / "archive.h5"), str(folder / "annotations.json"), "--out", str(folder / "run")]
    if _wait(_start([*train, *quiet, "--training.iterations", "2"])):
        raise SystemExit("the network to localize with could not be trained")


def _train(folder: Path, out: Path) -> list[str]:
    data = [str(folder / "archive.h5"), str(folder / "annotations.json"), "--subset", "training"]
    length = ["--training.iterations", "40", "--training.checkpoint_every", "4", "--training.batch_size", "4"]
    return ["train", *data, "--out", str(out), "--preset", "tiny", "--device", "cpu", "--resume", *SMALL, *length]


def _extract(folder: Path, out: Path) -> list[str]:
    settings = ["--backbone", "means", "--batch-size", "2", "--workers", "2", "--device", "cpu"]
    return ["extract", str(folder / "videos"), "--out", str(out), "--part-videos", "5", *settings]


def _localize(folder: Path, out: Path) -> list[str]:
    settings = ["--shard-videos", "1", "--batch-size", "1", "--device", "cpu", "--processes", "1"]
    return ["localize", str(folder / "archive.h5"), str(folder / "run"), "--out", str(out), *settings]


def _check_run(out: Path) -> None:
    if (out / CHECKPOINT_NAME).exists():
        load_checkpoint(out)
    if (out / "training_state.pt").exists():
        torch.load(out / "training_state.pt", weights_only=True)


def _check_parts(out: Path) -> None:
    for path in out.glob("part-*.h5"):
        with open_archive(path) as archive:
            broken = list(archive.verify())
        if broken:
            raise AssertionError(f"{path}: broken rows of {broken}")


def _check_shards(out: Path) -> None:
    for path in out.glob("part-*.parquet"):
        read_parquet(path)


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.endswith(DERIVED)}


def _shards(out: Path) -> dict[str, bytes]:
    videos = load_detections(out).video_ids
    if len(set(videos)) != WORLD.training_videos + WORLD.validation_videos:
        raise AssertionError(f"{out}: {len(videos)} videos, expected each of the archive once")
    return _files(out)


JOBS = {
    "train": Job(_train, _check_run, _files, is_shared=False),
    "extract": Job(_extract, _check_parts, _files, is_shared=True),
    "localize": Job(_localize, _check_shards, _shards, is_shared=True),
}


class _Campaign:
    """Disturbs one command.

    Raises:
        AssertionError: from any of its functions: something was lost, done twice, not readable or never ended.
    """

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.name, self.job, self.folder = name, JOBS[name], folder
        self.randomness = random.Random(f"{seed} {name}")
        self.tally = Tally()
        self.tried: Counter[str] = Counter()
        self.points, self.seconds = self._watch_undisturbed()
        self.expected = self.job.compare(folder / f"{name}-undisturbed")

    def kill(self, kills: int) -> None:
        """Kill the command again and again, in every way, and let it get through in between."""
        while self.tally.kills < kills:
            out = self.folder / f"{self.name}-{self.tally.runs}"
            while not self._one_round(out, list(WAYS)[self.tally.kills % len(WAYS)], kills):
                self._check_log(out)
                if out.exists():
                    self.job.check(out)
                    date_files(out, self.randomness)
                print(f"{self.name}: {self.tally.kills} of {kills} kills", end="\r", file=sys.stderr)
            self._check_log(out)
            self._compare(out)
            shutil.rmtree(out)
            self.tally.runs += 1

    def fill_disks(self, disks: int) -> None:
        """Run the command on disks that are too small, and go on when there is room."""
        whole = sum(map(len, self.expected.values()))
        disk = self.folder / "disk"
        while self.tally.disks < disks:
            size, out = self.randomness.randrange(whole // 8, whole), disk / f"{self.name}-{self.tally.runs}"
            disk.mkdir()
            with small_disk(disk, size) as resize:
                limit = None if resize else self.randomness.randrange(200, max(map(len, self.expected.values())))
                child = self._start(out, lambda limit=limit: limit_files(limit) if limit else None, is_logged=False)
                code = _wait(child)
                if code not in (0, USER_ERROR):
                    raise AssertionError(f"{self.name}: exit code {code} on a full disk of {size:,} bytes")
                self.tally.disks += code == USER_ERROR
                if out.exists():
                    self.job.check(out)
                if resize:
                    resize(ROOMY)
                if _wait(self._start(out, is_logged=False)):
                    raise AssertionError(f"{self.name}: does not go on when a disk of {size:,} bytes has room again")
                self._compare(out)
            self.tally.runs += 1
            shutil.rmtree(disk)

    def _watch_undisturbed(self) -> tuple[Counter[str], float]:
        """Run the command once and return the points it passes, with their numbers, and the seconds it takes."""
        out = self.folder / f"{self.name}-undisturbed"
        note = self.folder / f"{self.name}-points"
        began = time.monotonic()
        if _wait(self._start(out, lambda: watch(out, _writer(note)))):
            raise AssertionError(f"{self.name}: the undisturbed run failed")
        return Counter(note.read_text(encoding="utf-8").splitlines()), time.monotonic() - began

    def _one_round(self, out: Path, way: str, kills: int) -> bool:
        """Run the command, killed in a way unless there were enough kills; return whether it got through alone."""
        if self.tally.kills >= kills:
            return self._ended(self._start(out), None, out)
        if way == "point":
            rarest = min(self.tried[point] for point in self.points)
            point = self.randomness.choice([name for name in sorted(self.points) if self.tried[name] == rarest])
            self.tried[point] += 1
            occurrence = self.randomness.randint(1, self.points[point])
            through = self._ended(self._start(out, lambda: watch(out, die_at(point, occurrence))), None, out)
            self.tally.ways[way] += not through
            self.tally.points[point] += not through
            return through
        if way == "moment":
            through = self._ended(self._start(out), self.seconds * self.randomness.random(), out)
            self.tally.ways[way] += not through
            return through
        children = [self._start(out) for _ in range(2)]
        for child in children:
            through = self._ended(child, self.seconds * self.randomness.random(), out, alone=False)
            self.tally.ways[way] += not through
        return False  # another run, alone, says whether all is done

    def _ended(self, child: int, seconds: float | None, out: Path, *, alone: bool = True) -> bool:
        """Wait for a child; return whether it ended by itself, and not by a kill."""
        code = _wait(child, seconds)
        allowed = {0, -signal.SIGKILL} if alone or self.job.is_shared else {0, USER_ERROR, -signal.SIGKILL}
        if code not in allowed:
            raise AssertionError(f"{self.name}: exit code {code} after {self.tally.kills} kills, see {out}")
        return code != -signal.SIGKILL

    def _start(self, out: Path, disturb: Callable[[], None] = lambda: None, *, is_logged: bool = True) -> int:
        """Start the command with a clock that jumps, and a log beside its output."""
        clock = random.Random(self.randomness.random())

        def prepare_child() -> None:
            jump_clock(clock)
            disturb()

        log = ["--log-json", str(self._log(out))] if is_logged else []
        return _start([*self.job.arguments(self.folder, out), *log], prepare_child)

    def _log(self, out: Path) -> Path:
        return self.folder / f"{out.name}.log"

    def _check_log(self, out: Path) -> None:
        if self._log(out).exists():  # not, where a kill came before the first line
            for line in self._log(out).read_bytes().splitlines():
                json.loads(line)

    def _compare(self, out: Path) -> None:
        found = self.job.compare(out)
        if found.keys() != self.expected.keys():
            raise AssertionError(f"{self.name}: files {sorted(found)}, expected {sorted(self.expected)}")
        different = [file for file in self.expected if found[file] != self.expected[file]]
        if different:
            raise AssertionError(f"{self.name}: other bytes in {different}")


def _writer(path: Path) -> Callable[[str], None]:
    """Return what appends lines to a file, without passing a point itself."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return lambda line: os.write(descriptor, f"{line}\n".encode()) and None


def _start(arguments: list[str], disturb: Callable[[], None] = lambda: None) -> int:
    """Run a command in a child of this process, disturbed from within, and return its number."""
    child = os.fork()
    if child:
        return child
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    code = 1
    try:
        disturb()
        code = run_command(arguments)
    finally:
        os._exit(code)


def _wait(child: int, seconds: float | None = None) -> int:
    """Return the exit code of a child, or the signal that ended it, negative; kill it if it takes longer."""
    deadline = time.monotonic() + (LONGEST if seconds is None else seconds)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if seconds is None:
        raise AssertionError(f"a command did not end within {LONGEST:.0f} seconds")
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of each command (default: 200)")
    parser.add_argument("--disks", type=int, default=20, help="too small ones, for each command (default: 20)")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), help="these commands (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for job in options.only:
            campaign = _Campaign(job, options.seed, folder)
            campaign.kill(options.kills)
            campaign.fill_disks(options.disks)
            print(campaign.tally.describe(job), flush=True)


if __name__ == "__main__":
    main()
