"""Kill commands at random moments and start them again: `python -m tests.fault_campaign --kills 200`.

For each of `train`, `extract` and `localize` one run is left alone. Others are killed (SIGKILL) again and again until
they get through; after every kill what is on disk must be readable, and in the end it must be what the undisturbed run
left, byte for byte. A short form is part of the test-suite. Ends with exit code 1 at the first difference.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

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


@dataclass(frozen=True)
class Job:
    """A command that can be killed.

    Attributes:
        arguments: of the command line, given the folder of inputs and where the output goes.
        check: raises unless what a killed command has left is readable.
        compare: what of the output must be the same bytes, by file name.
    """

    arguments: Callable[[Path, Path], list[str]]
    check: Callable[[Path], None]
    compare: Callable[[Path], dict[str, bytes]]


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
    length = ["--training.iterations", "80", "--training.checkpoint_every", "4", "--training.batch_size", "4"]
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
    "train": Job(_train, _check_run, _files),
    "extract": Job(_extract, _check_parts, _files),
    "localize": Job(_localize, _check_shards, _shards),
}


def campaign(kills: int, names: list[str], seed: int, folder: Path) -> dict[str, tuple[int, int]]:
    """Kill each job `kills` times in all and return, by name, the kills and the runs that got through.

    Raises:
        AssertionError: something was lost, done twice or not readable.
    """
    prepare(folder)
    counted = {}
    for name in names:
        job, randomness = JOBS[name], random.Random(f"{seed} {name}")
        undisturbed = folder / f"{name}-undisturbed"
        began = time.monotonic()
        if _wait(_start(job.arguments(folder, undisturbed))):
            raise AssertionError(f"{name}: the undisturbed run failed")
        seconds = time.monotonic() - began
        expected = job.compare(undisturbed)
        done = runs = 0
        with tqdm(total=kills, desc=name, unit="kill") as bar:
            while done < kills:
                out = folder / f"{name}-{runs}"
                while True:
                    child = _start(job.arguments(folder, out))
                    limit = seconds * randomness.random() if done < kills else None
                    code = _wait(child, limit)
                    if code is not None:
                        break
                    done += 1
                    bar.update()
                    if out.exists():
                        job.check(out)
                if code:
                    raise AssertionError(f"{name}: exit code {code} after {done} kills, see {out}")
                _refuse_difference(name, expected, job.compare(out))
                shutil.rmtree(out)
                runs += 1
        counted[name] = (done, runs)
    return counted


def _refuse_difference(name: str, expected: dict[str, bytes], found: dict[str, bytes]) -> None:
    if found.keys() != expected.keys():
        raise AssertionError(f"{name}: files {sorted(found)}, expected {sorted(expected)}")
    different = [file for file in expected if found[file] != expected[file]]
    if different:
        raise AssertionError(f"{name}: other bytes in {different}")


def _start(arguments: list[str]) -> int:
    """Run a command in a child of this process and return its number."""
    child = os.fork()
    if child:
        return child
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    code = 1
    try:
        code = run_command(arguments)
    finally:
        os._exit(code)


def _wait(child: int, seconds: float | None = None) -> int | None:
    """Return the exit code of a child, or None if it was killed because it took longer than `seconds`."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        ended, status = os.waitpid(child, 0 if deadline is None else os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def main() -> None:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of each command (default: 200)")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), help="these commands (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent / "support"))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        counted = campaign(options.kills, options.only, options.seed, Path(folder))
    for name, (kills, runs) in counted.items():
        print(f"{name}: {kills} kills, {runs} runs got through, all as the undisturbed one")


if __name__ == "__main__":
    main()
