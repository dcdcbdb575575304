"""Train for long on very many short moments and watch memory and open files: `python -m tests.soak_training --help`.

Not part of the test-suite: it takes as long as it is asked to. The archives are synthetic and written to a temporary
folder; the network is small, so that reading and bookkeeping are most of the work. Ends with exit code 1 if memory or
the number of open files grows. SIGINT ends it early, with a report.
"""

import argparse
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ahernet.config import Config, preset, with_run
from ahernet.data.annotations import Annotations, VideoAnnotations
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.moment_labels import read_moment_labels, write_moment_labels
from ahernet.training import trainer
from ahernet.training.loss_log import LOG_NAME, read_loss_log
from tests.soak import report, watched

DIMENSION = 64
VIDEOS = 400
CLASSES = 600


def write_moments(folder: Path, count: int) -> None:
    """Write `moments.h5` and `moments.csv`: moments of 2 to 4 rows."""
    random = np.random.default_rng(0)
    labels = {}
    with ArchiveWriter(folder / "moments.h5", dimension=DIMENSION) as writer:
        for k in range(count):
            labels[f"moment_{k:07d}"] = f"novel {k % CLASSES}"
            writer.add(f"moment_{k:07d}", random.normal(size=(2 + k % 3, DIMENSION)), 10.0)
    write_moment_labels(folder / "moments.csv", labels)


def write_videos(folder: Path) -> Annotations:
    """Write `videos.h5`, untrimmed videos with one instance each, and return their annotations."""
    random = np.random.default_rng(1)
    videos = {}
    with ArchiveWriter(folder / "videos.h5", dimension=DIMENSION) as writer:
        for k in range(VIDEOS):
            rows = int(random.integers(60, 200))
            writer.add(f"video {k}", random.normal(size=(rows, DIMENSION)), float(rows))
            segment = np.array([[rows * 0.3, rows * 0.7]])
            videos[f"video {k}"] = VideoAnnotations(f"video {k}", "", float(rows), segment, (f"base {k % 20}",))
    return Annotations(videos, "soak")


def small_config(iterations: int) -> Config:
    """Return the settings of a run of `aher` with a very small network, saved often."""
    config = with_run(preset("tiny"), "aher")
    return replace(
        config,
        model=replace(config.model, width=1 / 256, minimum_channels=4, steps=64, moment_steps=32),
        method=replace(config.method, pretrain_iterations=50, context_iterations=50),
        training=replace(config.training, iterations=iterations, checkpoint_every=200, average=0.99, cpu_threads=1),
    )


def main() -> int:
    """Write the archives, train, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak_training", description=__doc__.split("\n\n")[0])
    parser.add_argument("--moments", type=int, default=100_000, help="in the archive (default: 100000)")
    parser.add_argument("--iterations", type=int, default=10_000, help="main iterations (default: 10000)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes (default: the system's)")
    given = parser.parse_args()
    trainer.draw_loss_curve = lambda log, picture: None  # once, at the end: matplotlib would look like growth
    with tempfile.TemporaryDirectory(prefix="ahernet-soak-", dir=given.folder) as name:
        folder = Path(name)
        write_moments(folder, given.moments)
        annotations = write_videos(folder)
        labels = read_moment_labels(folder / "moments.csv")
        with open_archive(folder / "videos.h5") as videos, open_archive(folder / "moments.h5") as moments:
            start = time.monotonic()
            with watched() as samples, suppress(KeyboardInterrupt):  # interrupted, it reports what it has seen
                trainer.train(
                    videos,
                    annotations,
                    folder / "run",
                    small_config(given.iterations),
                    moments=moments,
                    moment_labels=labels,
                    device="cpu",
                    progress=False,
                )
            done, seconds = len(read_loss_log(folder / "run" / LOG_NAME)), time.monotonic() - start
            print(f"{done:,} iterations on {given.moments:,} moments, {done / seconds:.1f} iterations a second")
    return 0 if report(samples) else 1


if __name__ == "__main__":
    sys.exit(main())
