"""A log for programs: one JSON object per line of what a command does, for those who watch many runs.

    {"time": "2026-11-26T17:40:59.123+00:00", "command": "train", "process": 4711, "event": "progress", "done": 10, ...}

Every line has these four keys; further ones by event:

    start     version, host, arguments: a command begins
    progress  task, done, total (null where unknown), unit, seconds, and note: what the bar shows beside its numbers
    message   message: what is good to know
    warning   message: what may not be as intended
    result    message, and what came of the command under keys of its own
    error     kind (the class of the exception), message
    end       ok, seconds: the command is over; where this line is missing it was killed

Lines are appended and flushed one by one, so that a run that is resumed goes on in the same file, and several
processes may share one. Nothing is written where no log is open.
"""

import errno
import json
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ahernet
from ahernet.data.printable import printable
from ahernet.errors import UserError

FIRST_LINE = re.compile(rb'\{"time": "\d{4}-\d\d-\d\dT')
BLOCK_BYTES = 1 << 16
_open_log: "_Log | None" = None


class _Log:
    def __init__(self, path: Path, command: str) -> None:
        self._path = path
        self._command = command
        try:
            _refuse_other_file(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            _cut_off_half_a_line(self._descriptor)
        except OSError as error:
            raise UserError(f"{path}: cannot write the log there ({error.strerror})") from error
        self._process = os.getpid()
        self._has_failed = False

    def write(self, event: str, fields: dict[str, Any]) -> None:
        if self._process != os.getpid():  # after a fork the parent alone speaks
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"time": now, "command": self._command, "process": self._process, "event": event, **fields}
        line = (json.dumps(_plain(entry), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            if self._has_failed:  # perhaps within a line: nothing may follow it
                raise OSError(errno.EIO, "an earlier line could not be written")
            if os.write(self._descriptor, line) < len(line):  # at once: lines of several processes must not mix
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._has_failed = True
            raise UserError(f"{self._path}: cannot write the log ({error.strerror})") from error

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def log_to(path: Path | None, command: str, arguments: Sequence[str]) -> Iterator[None]:
    """Log what happens in the block, its beginning and its end, however it ends; log nothing if `path` is None.

    Args:
        path: of the log; appended to if it is there, be it after a kill.
        command: name of what the block does.
        arguments: it was started with.

    Raises:
        UserError: `path` holds something else, or cannot be written, now or later: the disk is full, for instance.
    """
    global _open_log
    if path is None:
        yield
        return
    began = time.monotonic()
    _open_log = _Log(path, command)
    try:
        log_event("start", version=ahernet.__version__, host=os.uname().nodename, arguments=list(arguments))
        yield
        log_event("end", ok=True, seconds=_since(began))
    except BaseException as error:
        with suppress(UserError):  # if the log cannot be written that may be this very error
            log_event("error", kind=type(error).__name__, message=" ".join(str(error).split()))
            log_event("end", ok=False, seconds=_since(began))
        raise
    finally:
        _open_log.close()
        _open_log = None


def log_event(event: str, **fields: Any) -> None:
    """Write an event into the log that is open, if any.

    Raises:
        UserError: the log cannot be written.
    """
    if _open_log is not None:
        _open_log.write(event, fields)


def inform(message: str) -> None:
    """Say on standard error, and in the log, what is good to know."""
    print(_shown(message), file=sys.stderr)
    log_event("message", message=message)


def warn(message: str) -> None:
    """Say on standard error, and in the log, what may not be as the user intends."""
    print(_shown(message), file=sys.stderr)
    log_event("warning", message=message)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Say what libraries warn of as `warn` does, one line each; that a font lacks a letter is no news to anybody."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ")
        warnings.showwarning = lambda message, *_, **__: warn(f"warning: {' '.join(str(message).split())}")
        yield


def say_result(message: str, **fields: Any) -> None:
    """Say on standard output, and in the log, what came of a command; `fields` are for programs."""
    print(message)
    log_event("result", message=message, **fields)


def _shown(message: str) -> str:
    """A message of ours, in lines of its own, with whatever names of strangers are in it."""
    return "\n".join(map(printable, message.split("\n")))


def _refuse_other_file(path: Path) -> None:
    """Refuse to write behind what is no log: a mistyped name must not spoil a file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        first = file.read(BLOCK_BYTES)
    if first and not FIRST_LINE.match(first):
        raise UserError(f"{path}: holds something else than a log of ahernet, give another name for the log")


def _cut_off_half_a_line(descriptor: int) -> None:
    """Drop what a full disk or a crash has left of a last line, so that every line can be read."""
    size = kept = os.fstat(descriptor).st_size
    while kept:
        first = max(0, kept - BLOCK_BYTES)
        end = os.pread(descriptor, kept - first, first).rfind(b"\n") + 1
        kept = first + end
        if end:
            break
    if kept < size:
        os.ftruncate(descriptor, kept)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: paths as text, and null for what is no number."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
