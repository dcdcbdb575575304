"""What a fault campaign does to a command: death at a named point, a clock that jumps, a disk that is too small."""

import itertools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import tqdm.std

import ahernet.data.archive_journal
import ahernet.event_log
import ahernet.training.trainer
from ahernet.training.loss_log import log_line

# What Python announces before it does it (audit events), of what changes a folder. File locks are left out: who dies
# beside one dies beside what it guards.
CHANGES = ("os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")
RANDOM_PART = re.compile(r"\.(.+)\.\w{8}\.tmp$")
NUMBER = re.compile(r"[0-9a-f]{12}|\d{6}")
JUMP = 10 * 365 * 86400.0  # seconds, about ten years


def watch(folder: Path, reached: Callable[[str], None]) -> None:
    """Call `reached` with the name of each point at which a death could leave something half-done in `folder`.

    A point is the moment before a file is opened for writing, renamed, linked, removed or flushed, the moment after
    it is flushed, and the middle of what is appended to a journal or a log. Its name has the kind of file, without
    numbers. For a process that ends soon: nothing of this can be undone.
    """
    _watch_changes(folder, reached)
    _watch_flushes(folder, reached)
    _watch_appending(reached)


def _watch_changes(folder: Path, reached: Callable[[str], None]) -> None:
    prefix = f"{folder}{os.sep}"

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = arguments[1] if event in ("os.rename", "os.link") else arguments[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(prefix):
            reached(f"before {event.removeprefix('os.')} of {_kind(os.fspath(path))}")

    sys.addaudithook(hook)


def _watch_flushes(folder: Path, reached: Callable[[str], None]) -> None:
    flush = os.fsync

    def watched(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        kind = "the folder" if path == str(folder) else _kind(path)
        reached(f"before flush of {kind}")
        flush(descriptor)
        reached(f"after flush of {kind}")

    os.fsync = watched


def _watch_appending(reached: Callable[[str], None]) -> None:
    write = ahernet.data.archive_journal._write

    def write_in_halves(file, content):  # type: ignore[no-untyped-def]
        whole = memoryview(content).cast("B")
        write(file, whole[: len(whole) // 2])
        reached(f"within a write to {_kind(file.name)}")
        write(file, whole[len(whole) // 2 :])

    def log_in_halves(log, entries):  # type: ignore[no-untyped-def]
        text = "".join(map(log_line, entries))
        log.write(text[: len(text) // 2])
        log.flush()
        reached(f"within a write to {_kind(log.name)}")
        log.write(text[len(text) // 2 :])
        log.flush()

    ahernet.data.archive_journal._write = write_in_halves
    ahernet.training.trainer.append_to_log = log_in_halves


def _kind(path: str) -> str:
    name = RANDOM_PART.sub(r"\1 (unfinished)", Path(path).name)
    return NUMBER.sub("#", name)


def die_at(point: str, occurrence: int) -> Callable[[str], None]:
    """Return what kills this process when it reaches a point for the n-th time, n = 1, 2, ..."""
    left = itertools.count(1)

    def reached(name: str) -> None:
        if name == point and next(left) == occurrence:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


def jump_clock(randomness: random.Random) -> None:
    """Let the clock of this process jump by up to ten years whenever it is read."""
    clock = time.time

    def jumping() -> float:
        return clock() + randomness.uniform(-JUMP, JUMP)

    class JumpingDate(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[no-untyped-def]
            return datetime.now(tz) + timedelta(seconds=randomness.uniform(-JUMP, JUMP))

    time.time = tqdm.std.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)
    ahernet.event_log.datetime = JumpingDate


def date_files(folder: Path, randomness: random.Random) -> None:
    """Give files dates as a clock that was wrong by up to ten years does."""
    for path in folder.rglob("*"):
        date = time.time() + randomness.uniform(-JUMP, JUMP)
        os.utime(path, (date, date))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None] | None]:
    """Make the empty `folder` a disk of `size` bytes; yield what changes its size, None where mounting is refused."""
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    ).returncode
    try:
        yield _resize(folder) if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _resize(folder: Path) -> Callable[[int], None]:
    return lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)  # type: ignore[return-value]


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes: a full disk, where none can be made."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
