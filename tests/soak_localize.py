"""Localize for long and watch memory and open files: `python -m tests.soak_localize --help`.

Not part of the test-suite: it takes as long as it is asked to. The archives are synthetic and written to a temporary
folder; the network is small, so that reading, shards and bookkeeping are most of the work. Ends with exit code 1 if
memory or the number of open files grows.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ahernet.checkpoint import save_checkpoint
from ahernet.config import Config, InferenceConfig, ModelConfig
from ahernet.data.archive_set import MANIFEST_NAME, write_manifest
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.inference.ready import ReadyLocalizer
from ahernet.inference.shards import ShardedJob, localize_shards
from ahernet.model.localizer import Localizer
from tests.soak import report, watched

DIMENSION = 16
CLASSES = 20
BATCH = 4  # videos of one
FILE_VIDEOS = 2_000  # of one archive of the set
SHARD_VIDEOS = 400
MODEL = ModelConfig(feature_dimension=DIMENSION, width=1 / 256, minimum_channels=4, steps=64, moment_steps=32)
LONG_EVERY, LONG_SECONDS, WINDOW = 50, 400.0, 100.0  # some videos go through windows


def write_archives(folder: Path, count: int) -> None:
    """Write a set of archives of videos of 4 to 60 rows, a few of them long."""
    random = np.random.default_rng(0)
    files = []
    for first in range(0, count, FILE_VIDEOS):
        files.append(folder / f"videos-{first:07d}.h5")
        with ArchiveWriter(files[-1], dimension=DIMENSION) as writer:
            for k in range(first, min(first + FILE_VIDEOS, count)):
                rows = random.normal(size=(int(random.integers(4, 60)), DIMENSION))
                writer.add(f"video {k:07d}", rows, float(len(rows)) if k % LONG_EVERY else LONG_SECONDS)
    write_manifest(folder / MANIFEST_NAME, files)


class TimeUpError(Exception):
    """The run has had the time that it was given."""


@contextmanager
def counted_reads(until: float) -> Iterator[list[float]]:
    """Note when each batch is read, and end the run at the first one that is due after `until`."""
    times: list[float] = []
    read = ReadyLocalizer._read

    def noted(*arguments: Any) -> Any:
        if time.monotonic() > until:
            raise TimeUpError
        times.append(time.monotonic())
        return read(*arguments)

    ReadyLocalizer._read = noted  # type: ignore[method-assign]
    try:
        yield times
    finally:
        ReadyLocalizer._read = read  # type: ignore[method-assign]


def main() -> int:
    """Write the archives and a network, localize, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak_localize", description=__doc__.split("\n\n")[0])
    parser.add_argument("--batches", type=int, default=10_000, help=f"of {BATCH} videos (default: 10000)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which it ends early (default: 3600)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes (default: the system's)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ahernet-soak-", dir=given.folder) as name:
        folder = Path(name)
        (folder / "archives").mkdir()
        write_archives(folder / "archives", given.batches * BATCH)
        classes = tuple(f"class {k}" for k in range(CLASSES))
        config = InferenceConfig(batch_size=BATCH, top_k=20, window=WINDOW)
        save_checkpoint(folder / "run", Config(model=MODEL), classes, Localizer(MODEL, CLASSES))
        job = ShardedJob(
            folder / "archives", folder / "run", folder / "found", config, shard_videos=SHARD_VIDEOS, suffix=".json"
        )
        start = time.monotonic()
        with counted_reads(start + given.seconds) as reads, watched() as samples, suppress(TimeUpError):
            localize_shards(job, device="cpu", progress=False)
        seconds = time.monotonic() - start
        shards = len(list((folder / "found").glob("part-*.json")))
        print(f"{len(reads):,} batches, {shards:,} shards, {len(reads) / seconds:.1f} batches a second")
    return 0 if report(samples) else 1


if __name__ == "__main__":
    sys.exit(main())
