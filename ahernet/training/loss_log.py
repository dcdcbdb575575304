"""The loss log of a run: one JSON object per line and iteration, and its picture.

An entry has the iteration, the learning rate, the total and the terms that its iteration had.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from ahernet.data.bounded_read import parse_json
from ahernet.errors import UserError
from ahernet.files import replace_when_complete

LOG_NAME = "losses.jsonl"
CURVE_NAME = "losses.png"
COLUMNS = ("iteration", "total", "learning_rate")  # that every entry has


@contextmanager
def open_loss_log(path: Path, iteration: int) -> Iterator[IO[str]]:
    """Open a log for appending after its first `iteration` iterations; what follows them is dropped.

    A killed run can leave lines that its last checkpoint knows nothing of, and half a line.

    Raises:
        UserError: the log cannot be read or written.
    """
    kept = [entry for entry in read_loss_log(path) if entry["iteration"] <= iteration]
    with replace_when_complete(path) as temporary:
        temporary.write_text("".join(map(log_line, kept)), encoding="utf-8")
    try:
        log = path.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror})") from error
    try:
        yield log
    finally:
        try:
            log.close()
        except OSError as error:
            raise UserError(f"{path}: cannot write ({error.strerror})") from error


def append_to_log(log: IO[str], entries: Iterable[Mapping[str, float]]) -> None:
    """Append entries, so that a reader sees them at once.

    Raises:
        UserError: the log cannot be written, because the disk is full for instance.
    """
    try:
        log.writelines(map(log_line, entries))
        log.flush()
    except OSError as error:
        raise UserError(f"{log.name}: cannot write ({error.strerror})") from error


def sync_log(log: IO[str]) -> None:
    """Bring the entries to the disk, before a state that is after them.

    Raises:
        UserError: as `append_to_log`.
    """
    try:
        os.fsync(log.fileno())
    except OSError as error:
        raise UserError(f"{log.name}: cannot write ({error.strerror})") from error


def log_line(entry: Mapping[str, float]) -> str:
    """Return an entry as it stands in the log."""
    return json.dumps(entry) + "\n"


def read_loss_log(path: Path) -> list[dict[str, float]]:
    """Return the entries of a log up to the first line that is not whole; none if there is no file.

    Raises:
        UserError: the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot read the loss log ({error.strerror})") from error
    entries = []
    for line in text.splitlines():
        try:
            entry = parse_json(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(entry, dict) or not entry.keys() >= set(COLUMNS):
            break
        if not all(name.isascii() and name.isidentifier() for name in entry):  # others cannot all be drawn
            break
        if not all(type(value) is float or (type(value) is int and abs(value) < 1 << 62) for value in entry.values()):
            break
        entries.append(entry)
    return entries


def draw_loss_curve(log: Path, picture: Path) -> None:
    """Draw every term of a loss log over the iterations into a PNG file: raw, and a running mean over it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_loss_log(log)
    if not entries:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    terms = dict.fromkeys(term for entry in entries for term in entry if term not in ("iteration", "learning_rate"))
    for number, term in enumerate(terms):
        points = np.array([(entry["iteration"], entry[term]) for entry in entries if term in entry])
        window = max(1, len(points) // 50)
        means = np.convolve(points[:, 1], np.ones(window) / window, mode="valid")
        axes.plot(*points.T, color=f"C{number}", alpha=0.25, linewidth=0.8)
        axes.plot(points[window - 1 :, 0], means, color=f"C{number}", label=term)
    axes.set(xlabel="iteration", ylabel="loss", yscale="log", title="Training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with replace_when_complete(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
