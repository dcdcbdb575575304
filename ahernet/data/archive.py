"""Feature archives: the features of many videos in one HDF5 file, written once and read very fast.

The format (version 1) is open; any HDF5 library can write and read it. V videos (at least one), N rows in all,
dimension D.

Root attributes (scalars):

    format        text, "ahernet-archive"
    version       integer, 1
    dimension     integer, D
    frame_rate    float, frames per second of the videos; NaN where unknown or different from video to video
    clip_stride   integer, frames from one row to the next; 0 where unknown or different from video to video
    origin        UTF-8 text, how the features came to be (network, weights, preprocessing); may be empty

Root datasets:

    features  (N, D)  little-endian float16 or float32: the rows of the first video, of the second, ...
    offsets   (V+1,)  int64: video v owns rows offsets[v]:offsets[v+1]; from 0 to N, strictly rising
    ids       (V,)    fixed-width bytes, NUL-padded: UTF-8 of the video ids, never normalised, all different
    durations (V,)    float64: seconds, NaN where unknown
    crc32     (V,)    uint32: CRC-32 (as in zlib) of the bytes of the video's rows

`features` is contiguous and unfiltered, so its rows lie at a known place in the file and are read with
positioned reads from a few threads, without the HDF5 library. Chunked or compressed `features` of another
writer are read through HDF5, more slowly. Links, virtual datasets and external storage are refused (see
`hdf5_guard`). A reader refuses a higher version than it knows. Further attributes and datasets are ignored.
"""

import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from ahernet.data.archive_rows import (
    HDF5Rows,
    PositionedRows,
    ReadingThreads,
    RowSource,
    Spans,
    UnreadableRowError,
    page_aligned,
)
from ahernet.data.hdf5_guard import (
    file_length,
    guarded_dataset,
    hdf5_errors,
    list_datasets,
    open_hdf5,
    scalar_attribute,
)
from ahernet.errors import UserError

FORMAT = "ahernet-archive"


VERSION = 1


class FeatureArchive:
    """An open feature archive; `open_archive` makes one.

    Safe to use from several threads and after a fork; can be pickled (the copy opens the file again).

    Attributes:
        path: the file.
        ids: video ids in file order.
        durations: (V,) float64 seconds, NaN where unknown.
        offsets: (V+1,) int64; video v owns rows offsets[v]:offsets[v+1].
        checksums: (V,) uint32, the CRC-32 of each video's rows as stored in the file.
        dimension: D.
        dtype: little-endian float16 or float32.
        frame_rate: frames per second, NaN where unknown.
        clip_stride: frames between rows, 0 where unknown.
        origin: how the features came to be, as the writer put it.
        source: where the rows come from.
    """

    def __init__(
        self,
        path: Path,
        source: "RowSource",
        *,
        ids: tuple[str, ...],
        durations: np.ndarray,
        offsets: np.ndarray,
        checksums: np.ndarray,
        dimension: int,
        dtype: np.dtype[Any],
        frame_rate: float,
        clip_stride: int,
        origin: str,
    ) -> None:
        self.path = path
        self.ids = ids
        self.durations = durations
        self.offsets = offsets
        self.checksums = checksums
        self.dimension = dimension
        self.dtype = dtype
        self.frame_rate = frame_rate
        self.clip_stride = clip_stride
        self.origin = origin
        self.source = source
        self._threads = ReadingThreads()
        self._positions = {video_id: position for position, video_id in enumerate(ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_archive, (self.path,)

    @property
    def lengths(self) -> np.ndarray:
        """Rows per video, (V,) int64."""
        return np.diff(self.offsets)

    def position(self, video_id: str) -> int:
        """Return the position of a video in `ids`.

        Raises:
            UserError: the archive has no such video.
        """
        try:
            return self._positions[video_id]
        except KeyError:
            raise UserError(f"{self.path}: has no video {video_id!r}, expected one of its {len(self):,}") from None

    def read(self, positions: Sequence[int] | NDArray[np.int64]) -> tuple[np.ndarray, np.ndarray]:
        """Read the rows of several videos into one new array.

        Args:
            positions: positions in `ids`, in any order, repeats allowed.

        Returns:
            rows (sum L, D) in the archive's dtype, and offsets (B+1,) int64: rows of the b-th requested video
            are rows[offsets[b]:offsets[b+1]].

        Raises:
            UserError: the file ends before a video's rows do, or the disk fails.
            IndexError: a position outside 0 <= position < len(archive).
            ValueError: the archive is closed.
        """
        wanted = self._checked(positions)
        return self.read_spans(wanted, np.zeros(len(wanted), np.int64), self.lengths[wanted])

    def read_spans(
        self,
        positions: Sequence[int] | NDArray[np.int64],
        first: NDArray[np.int64],
        last: NDArray[np.int64],
        allocate: Callable[[tuple[int, int], np.dtype[Any]], np.ndarray] = page_aligned,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read rows first[b]:last[b] of the b-th requested video, counted from its own first row.

        Args:
            positions: positions in `ids`, in any order, repeats allowed.
            first: (B,) at least 0.
            last: (B,) at least first, at most the rows of the video.
            allocate: gives the memory to read into, C-contiguous of a shape and a type: pinned memory, for instance.
                Memory that begins at a page is the fastest.

        Returns:
            As `read`.

        Raises:
            UserError, ValueError: as `read`.
            IndexError: a position or row that there is not.
        """
        wanted = self._checked(positions)
        if not ((first >= 0) & (last >= first) & (last <= self.lengths[wanted])).all():
            raise IndexError("first, last: expected 0 <= first <= last <= rows of the video")
        starts = self.offsets[wanted] + first
        offsets = np.concatenate([[0], np.cumsum(last - first)]).astype(np.int64)
        rows = allocate((int(offsets[-1]), self.dimension), self.dtype)
        spans = np.column_stack([starts, starts + last - first, offsets[:-1]])[last > first]
        if len(spans):
            self._fill(rows, spans)
        return rows, offsets

    def _fill(self, rows: np.ndarray, spans: Spans) -> None:
        try:
            self._threads.fill(self.source, rows, spans)
        except UnreadableRowError as error:
            position = int(np.searchsorted(self.offsets, error.row, side="right")) - 1
            raise UserError(error.describe(self.ids[position])) from error

    def _checked(self, positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        wanted = np.asarray(positions, dtype=np.int64).reshape(-1)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"positions: expected 0 <= position < {len(self)}")
        return wanted

    def verify(self) -> Iterator[str]:
        """Read every video and yield the ids whose rows do not match their CRC-32.

        Raises:
            UserError: as `read`.
        """
        for position, video_id in enumerate(self.ids):
            rows, _ = self.read([position])
            if zlib.crc32(rows.data) != self.checksums[position]:
                yield video_id

    def close(self) -> None:
        """Stop the reading threads and close the file. Closing twice is fine."""
        self._threads.close()
        self.source.close()


def open_archive(path: Path) -> FeatureArchive:
    """Open a feature archive after checking everything the file claims about itself.

    Raises:
        UserError: the file is missing, no HDF5, truncated, not an ahernet archive, of a newer version, or
            breaks the rules of the format (module docstring).
    """
    path = Path(path)
    file = open_hdf5(path)
    try:
        with hdf5_errors(path):
            archive = _read_tables(path, file)
    except BaseException:
        file.close()
        raise
    # From here on the file belongs to the archive's row source.
    return archive


def _read_tables(path: Path, file: h5py.File) -> FeatureArchive:
    _check_format(path, file)
    dimension = _integer(path, file, "dimension")
    features = guarded_dataset(file, path, "features")
    if features.dtype not in (np.dtype("<f2"), np.dtype("<f4")):
        raise UserError(f"{path}: features has type {features.dtype}, expected float16 or float32")
    if features.ndim != 2 or features.shape[1] != dimension or dimension < 1:
        raise UserError(f"{path}: features has shape {features.shape}, expected (rows, dimension={dimension})")
    encoded = _table(path, file, "ids", "S")
    offsets = _table(path, file, "offsets", "<i8")
    durations = _table(path, file, "durations", "<f8")
    checksums = _table(path, file, "crc32", "<u4")
    count = len(encoded)
    if not count:
        raise UserError(f"{path}: holds no video, expected at least one")
    for name, table, expected in (
        ("offsets", offsets, count + 1),
        ("durations", durations, count),
        ("crc32", checksums, count),
    ):
        if len(table) != expected:
            raise UserError(f"{path}: {name} has {len(table)} entries, expected {expected} for {count} videos")
    ids = _decode_ids(path, encoded)
    _check_offsets(path, ids, offsets, features.shape[0])
    wrong = np.flatnonzero(~(np.isnan(durations) | ((durations > 0) & (durations < np.inf))))
    if len(wrong):
        raise UserError(f"{path}: video {ids[wrong[0]]!r} has duration {durations[wrong[0]]}, expected seconds or NaN")
    frame_rate = scalar_attribute(file, path, "frame_rate")
    if isinstance(frame_rate, str) or not (math.isnan(frame_rate) or 0 < frame_rate < math.inf):
        raise UserError(f"{path}: frame_rate is {frame_rate!r}, expected frames per second or NaN")
    clip_stride = _integer(path, file, "clip_stride")
    if clip_stride < 0:
        raise UserError(f"{path}: clip_stride is {clip_stride}, expected frames, or 0 for unknown")
    origin = str(scalar_attribute(file, path, "origin"))
    dtype = features.dtype
    # The row source comes last: from here on nothing fails, and it decides whether the file stays open.
    return FeatureArchive(
        path,
        _row_source(path, file, features),
        ids=ids,
        durations=durations,
        offsets=offsets,
        checksums=checksums,
        dimension=dimension,
        dtype=dtype,
        frame_rate=float(frame_rate),
        clip_stride=clip_stride,
        origin=origin,
    )


def _row_source(path: Path, file: h5py.File, features: h5py.Dataset) -> RowSource:
    offset = features.id.get_offset()
    if features.chunks is not None or offset is None:
        return HDF5Rows(path, file, features)
    # The descriptor of the very file that was checked, even if the path has been replaced since.
    descriptor = os.dup(file.id.get_vfd_handle())
    row_bytes = features.shape[1] * features.dtype.itemsize
    file.close()
    return PositionedRows(path, descriptor, offset, row_bytes)


def _check_format(path: Path, file: h5py.File) -> None:
    if "format" not in file.attrs or scalar_attribute(file, path, "format") != FORMAT:
        datasets, more = list_datasets(file, 4)
        holds = "; ".join(datasets) + ("; ..." if more else "") if datasets else "no datasets"
        raise UserError(
            f"{path}: an HDF5 file but not an ahernet archive (it holds {holds}); ahernet inspect "
            f"{path.name} says how to import it"
        )
    version = _integer(path, file, "version")
    if version > VERSION:
        raise UserError(f"{path}: archive version {version}, this ahernet reads up to {VERSION}; use a newer ahernet")
    if version < 1:
        raise UserError(f"{path}: archive version {version}, expected 1")


def _integer(path: Path, file: h5py.File, name: str) -> int:
    value = scalar_attribute(file, path, name)
    if not isinstance(value, int):
        raise UserError(f"{path}: the attribute {name} is {value!r}, expected an integer")
    return value


def _table(path: Path, file: h5py.File, name: str, dtype: str) -> np.ndarray:
    dataset = guarded_dataset(file, path, name)
    right_type = dataset.dtype.kind == "S" if dtype == "S" else dataset.dtype == np.dtype(dtype)
    if not right_type or dataset.ndim != 1:
        raise UserError(
            f"{path}: {name} is {dataset.ndim}-dimensional {dataset.dtype}, expected one dimension of {dtype}"
        )
    if dataset.size * dataset.dtype.itemsize > file_length(file):  # compressed tables are read whole
        raise UserError(f"{path}: {name} declares more bytes than the file has")
    table: np.ndarray = dataset[...]
    return table


def _decode_ids(path: Path, encoded: np.ndarray) -> tuple[str, ...]:
    try:
        ids = tuple(value.decode("utf-8") for value in encoded.tolist())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: ids holds an id that is not UTF-8: {error.object!r}") from error
    if len(set(ids)) < len(ids):
        twice, _ = Counter(ids).most_common(1)[0]
        raise UserError(f"{path}: ids holds {twice!r} more than once")
    for video_id in ids:
        if not video_id or "\0" in video_id:
            raise UserError(f"{path}: ids holds {video_id!r}, expected text without NUL")
    return ids


def _check_offsets(path: Path, ids: tuple[str, ...], offsets: np.ndarray, rows: int) -> None:
    if offsets[0] != 0 or offsets[-1] != rows:
        raise UserError(f"{path}: offsets go from {offsets[0]} to {offsets[-1]}, expected 0 to {rows}")
    # Compared, not subtracted: the difference of hostile values can wrap around.
    wrong = np.flatnonzero(offsets[1:] <= offsets[:-1])
    if len(wrong):
        raise UserError(f"{path}: offsets do not rise at video {ids[wrong[0]]!r}, expected at least one row each")
