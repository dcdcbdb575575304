"""Where the rows of an open archive come from: positioned reads of the file, or the HDF5 library."""

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from ahernet.data.hdf5_guard import (
    guarded_dataset,
    open_hdf5,
)
from ahernet.errors import UserError

# Copying from the cache of the system is what they share: as to the disk, one has it read many places at a time.
READ_THREADS = min(4, len(os.sched_getaffinity(0)))
SHARE_BYTES = 1 << 22  # that a thread should have to read, to be worth waking
PAGE_BYTES = 4096


Spans = NDArray[np.int64]
"""What to read, (S, 3): first row, row after the last, and where the first goes in the target. The target is filled
from its start without gaps."""


class UnreadableRowError(Exception):
    """A row cannot be read: `row` of the source, the file that should have it, and what is the matter."""

    def __init__(self, path: Path, row: int, problem: str, reason: str = "") -> None:
        super().__init__(path, row, problem, reason)
        self.path = path
        self.row = row
        self._problem = problem
        self._reason = reason

    def describe(self, video_id: str) -> str:
        """Return the message for people; the row belongs to that video."""
        return f"{self.path}: {self._problem} video {video_id!r}" + (f" ({self._reason})" if self._reason else "")


class RowSource(Protocol):
    """Fills arrays with rows of one archive.

    Attributes:
        parallel: whether several threads may fill at a time, and do so faster.
    """

    parallel: bool

    def fill(self, target: NDArray[Any], spans: Spans) -> None:
        """Copy rows into the target (R, D).

        Raises:
            UnreadableRowError: the file ends before them, or the disk fails.
            UserError: the file is another one by now.
            ValueError: the source is closed.
        """

    def close(self) -> None:
        """Release file handles; fine to call twice."""


def page_aligned(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return new memory that begins at a page of the machine.

    The rows of an archive do so in the file, and thus in the cache of the system. What `malloc` gives is 16 bytes off
    a page instead, and to there some processors copy pages at less than half the speed.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    memory = np.empty(size + PAGE_BYTES, np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)


class ReadingThreads:
    """The calling thread and a few more that read from a source; started when first needed and anew after a fork."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def fill(self, source: RowSource, target: NDArray[Any], spans: Spans) -> None:
        """Fill the target from the source, a share of the bytes in each thread; returns when no thread reads any more.

        Raises:
            UnreadableRowError, UserError, ValueError: as `RowSource.fill`.
        """
        shares = min(READ_THREADS, target.nbytes // SHARE_BYTES) if source.parallel else 1
        if shares < 2:
            source.fill(target, spans)
            return
        edges = np.linspace(0, len(target), shares + 1).astype(np.int64).tolist()
        own, *others = [(target[start:end], cut(spans, start, end)) for start, end in pairwise(edges)]
        pool = self._running_pool()
        running = [pool.submit(source.fill, *share) for share in others]
        try:
            source.fill(*own)
        finally:  # whatever happens, to the end of all: the target may be used again
            failed = [error for share in running if (error := share.exception())]
        if failed:
            raise failed[0]

    def _running_pool(self) -> ThreadPoolExecutor:
        # A fork copies the pool but not its threads: each process starts its own.
        if self._pool is None or self._process != os.getpid():
            self._pool = ThreadPoolExecutor(READ_THREADS - 1, thread_name_prefix="archive")
            self._process = os.getpid()
        return self._pool

    def close(self) -> None:
        """End the threads; fine to call twice."""
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown()
        self._pool = None


def cut(spans: Spans, start: int, end: int) -> Spans:
    """Return the spans that fill the rows start:end of the target, for a target that begins at `start`."""
    lengths = spans[:, 1] - spans[:, 0]
    first = int(np.searchsorted(spans[:, 2] + lengths, start, side="right"))
    last = int(np.searchsorted(spans[:, 2], end, side="left"))
    part = spans[first:last].copy()
    before = np.maximum(start - part[:, 2], 0)
    behind = np.maximum(part[:, 2] + lengths[first:last] - end, 0)
    part[:, 0] += before
    part[:, 1] -= behind
    part[:, 2] += before - start
    return part


def joined(spans: Spans) -> Spans:
    """Put spans together that lie behind one another both in the source and in the target."""
    apart = (spans[1:, 0] != spans[:-1, 1]) | (spans[1:, 2] - spans[:-1, 2] != spans[:-1, 1] - spans[:-1, 0])
    first = np.concatenate([[True], apart])
    last = np.concatenate([apart, [True]])
    return np.column_stack([spans[first, 0], spans[last, 1], spans[first, 2]])


class PositionedRows:
    """Rows at a known place of the file, read with `preadv`."""

    parallel = True

    def __init__(self, path: Path, descriptor: int, offset: int, row_bytes: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._offset = offset
        self._row_bytes = row_bytes

    def fill(self, target: NDArray[Any], spans: Spans) -> None:
        """Copy rows as `RowSource` says."""
        if self._descriptor < 0:
            raise ValueError(f"{self._path}: the archive is closed")
        memory = target.view(np.uint8).reshape(-1).data
        places = self._places(spans)
        how = os.RWF_NOWAIT
        done = 0
        for number, (place, length) in enumerate(places):
            before, end = done, done + length
            while done < end:
                at = place + done - before
                try:
                    count = os.preadv(self._descriptor, [memory[done:end]], at, how)
                except OSError as error:
                    if how and error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                        # Not in the cache of the system: the disk gets all that is missing to do at once.
                        self._announce(places[number:])
                        how = 0
                        continue
                    raise self._unreadable(at, "cannot read", str(error.strerror)) from error
                if count == 0:
                    raise self._unreadable(at, "the file ends inside")
                done += count

    def _announce(self, places: Sequence[tuple[int, int]]) -> None:
        for place, length in places:
            with suppress(OSError):  # only an advice
                os.posix_fadvise(self._descriptor, place, length, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Release the file; fine to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def _places(self, spans: Spans) -> Sequence[tuple[int, int]]:
        """Return where in the file the spans lie, and their bytes; in the target they follow one another."""
        together = joined(spans)
        places = self._offset + together[:, 0] * self._row_bytes
        sizes = (together[:, 1] - together[:, 0]) * self._row_bytes
        return list(zip(places.tolist(), sizes.tolist(), strict=True))

    def _unreadable(self, place: int, problem: str, reason: str = "") -> UnreadableRowError:
        return UnreadableRowError(self._path, (place - self._offset) // self._row_bytes, problem, reason)


class HDF5Rows:
    """Rows of a chunked or compressed dataset, read through HDF5."""

    parallel = False

    def __init__(self, path: Path, file: h5py.File, features: h5py.Dataset) -> None:
        self._path = path
        self._file: h5py.File | None = file
        self._features = features
        self._shape = features.shape
        self._process = os.getpid()

    def fill(self, target: NDArray[Any], spans: Spans) -> None:
        """Copy rows as `RowSource` says."""
        if self._file is None:
            raise ValueError(f"{self._path}: the archive is closed")
        if self._process != os.getpid():  # HDF5 handles must not be shared across a fork
            self._file = open_hdf5(self._path)
            self._features = guarded_dataset(self._file, self._path, "features")
            self._process = os.getpid()
            if self._features.shape != self._shape:
                raise UserError(f"{self._path}: the file changed while it was in use, start again")
        for first, last, at in spans.tolist():
            try:
                target[at : at + last - first] = self._features[first:last]
            except (OSError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UnreadableRowError(self._path, first, "cannot read", reason) from error

    def close(self) -> None:
        """Release the file; fine to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None


class JoinedRows:
    """Rows of several archives behind one another: those of source k follow those of source k - 1."""

    def __init__(self, sources: Sequence[RowSource], ends: NDArray[np.int64]) -> None:
        self._sources = sources
        self._ends = ends
        self.parallel = any(source.parallel for source in sources)

    def fill(self, target: NDArray[Any], spans: Spans) -> None:
        """Copy rows as `RowSource` says; no span reaches over the end of a source."""
        numbers = np.searchsorted(self._ends, spans[:, 0], side="right")
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        for start, end in pairwise([*starts, len(spans)]):  # of one source each
            number = int(numbers[start])
            before = int(self._ends[number - 1]) if number else 0
            own = spans[start:end] - np.array([before, before, spans[start, 2]])
            rows = int(own[-1, 2] + own[-1, 1] - own[-1, 0])
            try:
                self._sources[number].fill(target[spans[start, 2] :][:rows], own)
            except UnreadableRowError as error:
                error.row += before
                raise

    def close(self) -> None:
        """Release all sources; fine to call twice."""
        for source in self._sources:
            source.close()
