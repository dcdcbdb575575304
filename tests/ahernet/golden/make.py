"""Write golden files: `python tests/ahernet/golden/make.py FOLDER`, a folder that is not there yet.

Those in `version-1` stay as the program wrote them when it was version 0.1.0, and `test_golden_files.py` holds every
later program to them: they are never written again. A new version of a format gets a folder of its own beside them.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from ahernet.cli import main as run_command
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.rendered import WorldConfig, write_world

WORLD = WorldConfig(
    classes=2, training_videos=5, validation_videos=2, dimension=8, min_duration=30.0, max_duration=36.0, max_share=0.3
)
NETWORK = ["--model.width", "0.004", "--model.minimum_channels", "4", "--model.steps", "64"]
MOMENTS = ["--model.moment_steps", "16", "--method.pretrain_iterations", "20", "--method.context_iterations", "20"]
LENGTH = ["--training.iterations", "120", "--training.batch_size", "4", "--training.cpu_threads", "1"]
# Best first: few, so that none is so close to another in score or overlap that rounding decides.
OUTPUT = ["--inference.top_k", "3", "--inference.class_score", "anchor"]


def main() -> None:
    """Write every file into the folder that the command line names."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    write_world(out, WORLD)
    write_network(out)
    write_unusual(out / "unusual.h5")
    write_set(out / "set")
    for place in (["detections.json"], ["detections.csv"], ["detections", "--shard-videos", "4", "--processes", "1"]):
        _run("localize", out / "archive.h5", out / "run", "--device", "cpu", "--out", out / place[0], *place[1:])
    archives = {name: _described(out / name) for name in ("archive.h5", "unusual.h5", "set/first.h5", "set/second.h5")}
    (out / "archives.json").write_text(json.dumps(archives, indent=1) + "\n", encoding="utf-8")


def write_network(out: Path) -> None:
    """Write a network that learnt one class from the world's videos, and the other one from moments of them."""
    world = (out / "archive.h5", out / "annotations.json", "--subset", "training")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        moments, labels, base = work / "moments.h5", work / "moments.csv", work / "base.txt"
        _run("cut-moments", *world, "--out", moments, "--labels", labels)
        base.write_text("action 01\n", encoding="utf-8")
        sources = ("--classes", base, "--moments", moments, "--moment-labels", labels)
        settings = ("--preset", "tiny", "--device", "cpu", *NETWORK, *MOMENTS, *LENGTH, *OUTPUT)
        _run("train", *world, *sources, *settings, "--out", work / "run")
        (out / "run").mkdir()
        for path in (work / "run" / "checkpoint.json", *work.glob("run/weights-*.safetensors")):
            shutil.copy(path, out / "run")


def write_unusual(path: Path) -> None:
    """Write an archive of float32 rows with every kind of number, unknown durations and ids that are easily spoilt."""
    extremes = np.float32([[0.0, -0.0, 1e-45], [np.finfo("f4").max, np.finfo("f4").min, np.finfo("f4").tiny]])
    with ArchiveWriter(path, dimension=3, dtype="float32", origin="größer {}") as writer:
        writer.add("../é e\u0301 动作 \U0001f3c3", extremes, duration=1 / 3)
        writer.add("v_-", np.float32([[1.5, -2.25, 1 / 3]]))


def write_set(folder: Path) -> None:
    """Write two archives and the manifest that joins them."""
    folder.mkdir(exist_ok=True)
    paths = [folder / "first.h5", folder / "second.h5"]
    for number, path in enumerate(paths):
        with ArchiveWriter(path, dimension=2, frame_rate=25.0, clip_stride=8) as writer:
            writer.add(f"video {number}", np.arange(4.0).reshape(2, 2) + number, duration=2.0)
    _run("join", *paths, "--out", folder / "manifest.json")


def _run(*arguments: object) -> None:
    """Run a command, and end the program if it fails."""
    if run_command([str(argument) for argument in arguments]):
        sys.exit(f"{arguments[0]} failed")


def _described(path: Path) -> dict[str, object]:
    """Return what an archive holds; rows as a SHA-256 of their bytes, little-endian."""
    with open_archive(path) as archive:
        rows = [archive.read([place])[0] for place in range(len(archive))]
        return {
            "ids": list(archive.ids),
            "durations": [None if np.isnan(seconds) else float(seconds) for seconds in archive.durations],
            "lengths": [len(block) for block in rows],
            "dimension": archive.dimension,
            "dtype": archive.dtype.str,
            "frame_rate": None if np.isnan(archive.frame_rate) else archive.frame_rate,
            "clip_stride": archive.clip_stride,
            "origin": archive.origin,
            "rows": [hashlib.sha256(block.tobytes()).hexdigest() for block in rows],
        }


if __name__ == "__main__":
    main()
