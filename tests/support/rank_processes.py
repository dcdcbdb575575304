"""Runs in processes of their own, that can be killed: forked from one that has everything imported."""

import hashlib
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from training_worlds import World, train_in

from ahernet.config import Config
from ahernet.data.annotations import read_annotations
from ahernet.data.archive import FeatureArchive, open_archive
from ahernet.data.moment_labels import read_moment_labels
from ahernet.errors import UserError
from ahernet.training import trainer

PATIENCE = 120  # seconds


def start_processes(function, arguments: list[tuple]) -> list[multiprocessing.Process]:
    """Start one process for each tuple of arguments of a function of a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # The server does not take over where to look for modules.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        processes = [context.Process(target=function, args=given) for given in arguments]
        for process in processes:
            process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return processes


def exit_codes(processes: list[multiprocessing.Process]) -> list[int | None]:
    """Wait for processes to end; those that do not are killed and have the code -SIGKILL."""
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def train_in_processes(count: int, world: Path, folder: Path, config: Config, upset: str = "", **options) -> list[int]:
    """Train in `count` processes as torchrun starts them; return their exit codes.

    Each leaves beside the run what it raised and printed, and a hash of its networks: `<folder>.<rank>.txt`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return exit_codes(
        start_processes(
            _train_as_rank, [(rank, count, port, world, folder, config, upset, options) for rank in range(count)]
        )
    )


def train_elastically(world: Path, folder: Path, config: Config, upset: str) -> int:
    """Train in 2 processes that the agent of torchrun starts, and starts again once; return its exit code."""
    return exit_codes(start_processes(_launch, [(world, folder, config, upset)]))[0]


def _launch(world: Path, folder: Path, config: Config, upset: str) -> None:
    # What `torchrun --standalone --max-restarts 1` does, but for processes that are forked.
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        max_restarts=1,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=folder.name,
        start_method="fork",
    )
    elastic_launch(settings, train_upset)(world, folder, config, upset, {"resume": True})


def _train_as_rank(
    rank: int, count: int, port: int, world: Path, folder: Path, config: Config, upset: str, options: dict
) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "localhost", **{name: str(number) for name, number in numbers.items()}}
    train_upset(world, folder, config, upset, options)


def train_upset(world: Path, folder: Path, config: Config, upset: str = "", options: dict | None = None) -> None:
    """Train in a world on disk, with `upset` "what:rank:iteration" something happening in the middle."""
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    report = folder.with_name(f"{folder.name}.{rank}.txt")
    step, last = trainer.train_iteration, []

    def watched(run, batch, iteration):
        last[:] = [run]
        _upset(upset, rank, iteration, folder)
        return step(run, batch, iteration)

    trainer.train_iteration = watched
    trainer.draw_loss_curve = lambda log, picture: None
    with report.open("w") as said, open_written_world(world) as opened:
        sys.stderr = said
        if upset.startswith("unreadable") and upset.split(":")[1] == rank:
            _make_unreadable(opened.archive)
        try:
            train_in(opened, folder, config, **(options or {}))
        except (Exception, KeyboardInterrupt) as error:
            said.write(f"{type(error).__name__}: {error}")
            raise SystemExit(3) from error
        content = b"".join(x.detach().numpy().tobytes() for x in last[0].networks.state_dict().values())
        said.write(hashlib.sha256(content).hexdigest())


def _upset(upset: str, rank: str, iteration: int, folder: Path) -> None:
    what, _, where = upset.partition(":")
    if where != f"{rank}:{iteration}":
        return
    if what == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "killed":
        # At any instruction of this iteration or the next, but once.
        once = folder.with_name(f"{folder.name}.killed.{iteration}")
        if not once.exists():
            once.touch()
            threading.Timer(random.random() * 0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()


def _make_unreadable(archive: FeatureArchive) -> None:
    def read(positions):
        raise UserError(f"{archive.path}: cannot read (Input/output error)")

    archive.read = read


@contextmanager
def open_written_world(folder: Path) -> Iterator[World]:
    """Open a world that `open_world` has written."""
    with open_archive(folder / "features.h5") as archive, open_archive(folder / "moments.h5") as moments:
        labels = read_moment_labels(folder / "moments.csv")
        yield World(archive, read_annotations(folder / "truth.json"), moments, labels)
