"""Where the rows of an open archive come from: positioned reads of the file, or the HDF5 library."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from ahernet.data.hdf5_guard import (
    guarded_dataset,
    open_hdf5,
)
from ahernet.errors import UserError

READ_THREADS = 4  # measured: more gain nothing, warm or cold


Part = tuple[str, int, np.ndarray]
"""What to read: video id, first row, array (L, D) for rows first:first+L."""


class RowSource(Protocol):
    """Fills arrays with rows of one archive."""

    def fill(self, parts: list[Part]) -> None:
        """Fill the arrays of all parts."""

    def close(self) -> None:
        """Release threads and file handles."""


class ReadingThreads:
    """A few threads that run reads, started when first needed and anew after a fork."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def run(self, read: Callable[[list[Part]], None], parts: list[Part]) -> None:
        """Call `read` with shares of the parts, in the calling thread if there is one part only."""
        if len(parts) < 2:
            read(parts)
            return
        # A fork copies the pool but not its threads: each process starts its own.
        if self._pool is None or self._process != os.getpid():
            self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="archive")
            self._process = os.getpid()
        shares = [parts[k::READ_THREADS] for k in range(min(READ_THREADS, len(parts)))]
        for _ in self._pool.map(read, shares):
            pass

    def close(self) -> None:
        """End the threads; fine to call twice."""
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown()
        self._pool = None


class PositionedRows:
    """Rows at a known place of the file, read with `preadv` from a few threads."""

    def __init__(self, path: Path, descriptor: int, offset: int, row_bytes: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._offset = offset
        self._row_bytes = row_bytes
        self._threads = ReadingThreads()

    def fill(self, parts: list[Part]) -> None:
        """Fill each part as `RowSource` says; a read that comes short is a UserError that names the video."""
        if self._descriptor < 0:
            raise ValueError(f"{self._path}: the archive is closed")
        self._threads.run(self._fill_in_turn, parts)

    def close(self) -> None:
        """Release what is open; fine to call twice."""
        self._threads.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        # May run in a pool thread, which cannot join itself: idle threads end with the pool object.
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _fill_in_turn(self, parts: list[Part]) -> None:
        for video_id, first, rows in parts:
            target = rows.data.cast("B")
            position = self._offset + first * self._row_bytes
            done = 0
            while done < len(target):
                try:
                    count = os.preadv(self._descriptor, [target[done:]], position + done)
                except OSError as error:
                    raise UserError(f"{self._path}: cannot read video {video_id!r} ({error.strerror})") from error
                if count == 0:
                    raise UserError(f"{self._path}: the file ends inside video {video_id!r}")
                done += count


class HDF5Rows:
    """Rows of a chunked or compressed dataset, read through HDF5."""

    def __init__(self, path: Path, file: h5py.File, features: h5py.Dataset) -> None:
        self._path = path
        self._file: h5py.File | None = file
        self._features = features
        self._shape = features.shape
        self._process = os.getpid()

    def fill(self, parts: list[Part]) -> None:
        """Fill each part as `RowSource` says; a read that comes short is a UserError that names the video."""
        if self._file is None:
            raise ValueError(f"{self._path}: the archive is closed")
        if self._process != os.getpid():  # HDF5 handles must not be shared across a fork
            self._file = open_hdf5(self._path)
            self._features = guarded_dataset(self._file, self._path, "features")
            self._process = os.getpid()
            if self._features.shape != self._shape:
                raise UserError(f"{self._path}: the file changed while it was in use")
        for video_id, first, rows in parts:
            try:
                rows[...] = self._features[first : first + len(rows)]
            except (OSError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{self._path}: cannot read video {video_id!r} ({reason})") from error

    def close(self) -> None:
        """Release what is open; fine to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None


class JoinedRows:
    """Rows of several archives behind one another: those of source k follow those of source k - 1."""

    def __init__(self, sources: Sequence[RowSource], ends: NDArray[np.int64]) -> None:
        self._sources = sources
        self._ends = ends
        self._threads = ReadingThreads()

    def fill(self, parts: list[Part]) -> None:
        """Fill each part as `RowSource` says; no part reaches over the end of a source."""
        self._threads.run(self._fill_in_turn, parts)

    def close(self) -> None:
        """Release what is open; fine to call twice."""
        self._threads.close()
        for source in self._sources:
            source.close()

    def _fill_in_turn(self, parts: list[Part]) -> None:
        for video_id, first, rows in parts:
            number = int(np.searchsorted(self._ends, first, side="right"))
            before = int(self._ends[number - 1]) if number else 0
            self._sources[number].fill([(video_id, first - before, rows)])
