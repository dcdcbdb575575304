"""Feature archives: the features of many videos in one HDF5 file, written once and read very fast.

The format (version 1) is open; any HDF5 library can write and read it. V videos, N rows in all, dimension D.

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
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Protocol, Self

import h5py
import numpy as np

from ahernet.data.hdf5_guard import (
    file_length,
    guarded_dataset,
    hdf5_errors,
    list_datasets,
    open_hdf5,
    scalar_attribute,
)
from ahernet.errors import UserError
from ahernet.files import replace_when_complete

FORMAT = "ahernet-archive"
VERSION = 1
READ_THREADS = 4  # measured: more gain nothing, warm or cold
ALIGNMENT = 4096
MAX_ID_BYTES = 1024
MAX_ORIGIN_BYTES = 32768
FLOAT16_MAX = 65504.0

Precision = Literal["float16", "float32"]


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
    """

    def __init__(
        self,
        path: Path,
        source: "_RowSource",
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
        self._source = source
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
            raise UserError(f"{self.path}: has no video {video_id!r}") from None

    def read(self, positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
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
        wanted = np.asarray(positions, dtype=np.int64).reshape(-1)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"positions: expected 0 <= position < {len(self)}")
        starts = self.offsets[wanted]
        offsets = np.concatenate([[0], np.cumsum(self.offsets[wanted + 1] - starts)]).astype(np.int64)
        rows = np.empty((int(offsets[-1]), self.dimension), self.dtype)
        parts = [
            (self.ids[position], int(start), rows[offsets[k] : offsets[k + 1]])
            for k, (position, start) in enumerate(zip(wanted.tolist(), starts.tolist(), strict=True))
        ]
        self._source.fill(parts)
        return rows, offsets

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
        self._source.close()


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


class ArchiveWriter:
    """Writes a feature archive, video by video; the file appears complete or not at all.

    Rows go to a nameless spill file in the folder of `path` until the `with` block ends without an
    exception; then the archive is built at its final size under a temporary name, flushed to disk and
    renamed. The folder needs room for the rows twice.

        with ArchiveWriter(path, dimension=2048) as writer:
            writer.add("v_1", features, duration=12.5)

    Args:
        path: file to write; replaced if it exists.
        dimension: D of every video.
        dtype: "float16" or "float32", what the rows are stored as.
        frame_rate: frames per second of all videos, NaN where unknown.
        clip_stride: frames between rows, 0 where unknown.
        origin: how the features came to be.
    """

    def __init__(
        self,
        path: Path,
        *,
        dimension: int,
        dtype: Precision = "float16",
        frame_rate: float = math.nan,
        clip_stride: int = 0,
        origin: str = "",
    ) -> None:
        if dtype not in ("float16", "float32"):
            raise ValueError(f"dtype: expected 'float16' or 'float32', got {dtype!r}")
        if dimension < 1:
            raise ValueError(f"dimension: expected at least 1, got {dimension}")
        if not (math.isnan(frame_rate) or 0 < frame_rate < math.inf):
            raise UserError(f"frame rate: expected frames per second above 0 or NaN, got {frame_rate}")
        if clip_stride < 0:
            raise UserError(f"clip stride: expected frames above 0, or 0 for unknown, got {clip_stride}")
        if len(origin.encode("utf-8", "replace")) > MAX_ORIGIN_BYTES or "\0" in origin:
            raise UserError(f"origin: expected text without NUL of at most {MAX_ORIGIN_BYTES} bytes")
        self.path = Path(path)
        self.dimension = dimension
        self.dtype: Precision = dtype
        self._frame_rate = float(frame_rate)
        self._clip_stride = int(clip_stride)
        self._origin = origin
        self._spill: IO[bytes] | None = None
        self._rows_written = 0
        self._lengths: dict[str, int] = {}
        self._durations: list[float] = []
        self._checksums: list[int] = []

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise UserError(f"{self.path}: is a folder, expected a file name to write")
        try:
            self._spill = tempfile.TemporaryFile(dir=self.path.parent)
        except OSError as error:
            raise UserError(f"{self.path}: cannot write there ({error.strerror})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        spill, self._spill = self._spill, None
        assert spill is not None
        with spill:
            if error is None:
                self._publish(spill)

    def add(self, video_id: str, features: np.ndarray, duration: float = math.nan) -> None:
        """Append one video.

        Args:
            video_id: any text but NUL; stored byte for byte.
            features: (L, D) real numbers, L >= 1.
            duration: seconds, NaN where unknown.

        Raises:
            UserError: the id is empty, too long, holds NUL or was added before; the features are not (L, D)
                with L >= 1, not finite, or too large for the archive's type; the duration is not above 0; the
                disk is full. The writer stays as it was before the call.
            ValueError: called outside the `with` block.
        """
        if self._spill is None:
            raise ValueError("add: the writer is not open, use it in a `with` block")
        check_video_id(video_id)
        if video_id in self._lengths:
            raise UserError(f"video {video_id!r}: added twice to {self.path}")
        if not (math.isnan(duration) or 0 < duration < math.inf):
            raise UserError(f"video {video_id!r}: duration is {duration}, expected seconds above 0 or NaN")
        rows = prepare_features(video_id, features, self.dimension, self.dtype)
        try:
            self._spill.seek(self._rows_written * self.dimension * rows.dtype.itemsize)
            self._spill.write(rows.data)
            self._spill.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot write ({error.strerror})") from error
        self._lengths[video_id] = len(rows)
        self._rows_written += len(rows)
        self._durations.append(float(duration))
        self._checksums.append(zlib.crc32(rows.data))

    def _publish(self, spill: IO[bytes]) -> None:
        if not self._lengths:
            raise UserError(f"{self.path}: no video was added, an archive holds at least one")
        with replace_when_complete(self.path) as temporary:
            offset = self._create_tables(temporary)
            length = self._rows_written * self.dimension * np.dtype(self.dtype).itemsize
            spill.truncate(length)
            spill.seek(0)
            with temporary.open("r+b") as target:
                target.seek(offset)
                shutil.copyfileobj(spill, target, 1 << 24)

    def _create_tables(self, path: Path) -> int:
        """Write everything but the rows; return where in the file the rows belong."""
        ids = [video_id.encode("utf-8") for video_id in self._lengths]
        id_type = h5py.string_dtype("utf-8", max(len(encoded) for encoded in ids))
        offsets = np.concatenate([[0], np.cumsum(list(self._lengths.values()))])
        try:
            # Aligned, so that others can map the rows into memory as they are.
            with h5py.File(
                path, "w", locking=False, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT
            ) as file:
                _set_text(file, "format", FORMAT)
                file.attrs["version"] = np.int64(VERSION)
                file.attrs["dimension"] = np.int64(self.dimension)
                file.attrs["frame_rate"] = np.float64(self._frame_rate)
                file.attrs["clip_stride"] = np.int64(self._clip_stride)
                _set_text(file, "origin", self._origin)
                file.create_dataset("offsets", data=offsets.astype("<i8"))
                file.create_dataset("ids", data=np.array(ids, dtype=id_type))
                file.create_dataset("durations", data=np.array(self._durations, "<f8"))
                file.create_dataset("crc32", data=np.array(self._checksums, "<u4"))
                return _allocate_features(file, self._rows_written, self.dimension, np.dtype(self.dtype))
        except (OSError, RuntimeError) as error:  # HDF5 raises both, over several lines, on a full disk
            raise UserError(f"{self.path}: cannot write ({' '.join(str(error).split())})") from error


def check_video_id(video_id: str) -> None:
    """Refuse an id that an archive cannot hold.

    Raises:
        UserError: empty, not valid Unicode, holding NUL, or longer than `MAX_ID_BYTES` bytes of UTF-8.
    """
    try:
        encoded = video_id.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"video {video_id!r}: the id is not valid Unicode") from error
    if not encoded or b"\0" in encoded:
        raise UserError(f"video {video_id!r}: expected an id of at least one character without NUL")
    if len(encoded) > MAX_ID_BYTES:
        raise UserError(f"video {video_id[:40]!r}...: the id has {len(encoded)} bytes, at most {MAX_ID_BYTES}")


def prepare_features(video_id: str, features: np.ndarray, dimension: int, dtype: Precision) -> np.ndarray:
    """Return `features` as contiguous little-endian `dtype`, or say what is wrong with them.

    Args:
        video_id: for messages.
        features: (L, D) real numbers.
        dimension: the D expected.
        dtype: "float16" or "float32".

    Raises:
        UserError: not (L, D) real numbers with L >= 1, not finite, or beyond the range of `dtype`.
    """
    features = np.asarray(features)
    if features.dtype.kind not in "fiu":
        raise UserError(f"video {video_id!r}: features of type {features.dtype}, expected real numbers")
    if features.ndim != 2 or features.shape[1] != dimension:
        raise UserError(f"video {video_id!r}: features of shape {features.shape}, expected (rows, {dimension})")
    if not len(features):
        raise UserError(f"video {video_id!r}: no rows of features, expected at least one")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise UserError(f"video {video_id!r}: NaN or infinite features, first in row {row}")
    limit = FLOAT16_MAX if dtype == "float16" else float(np.finfo(np.float32).max)
    largest = max(abs(float(features.max())), abs(float(features.min())))
    if largest > limit:
        advice = ", store this archive as float32" if dtype == "float16" else ""
        raise UserError(f"video {video_id!r}: value of size {largest:.6g} is beyond {dtype}{advice}")
    return np.ascontiguousarray(features, dtype=np.dtype(dtype).newbyteorder("<"))


class _RowSource(Protocol):
    """Fills arrays with rows of one archive."""

    def fill(self, parts: list[tuple[str, int, np.ndarray]]) -> None:
        """Fill each part (video id, first row, array (L, D)) with rows first:first+L."""

    def close(self) -> None:
        """Release threads and file handles."""


class _PositionedRows:
    """Rows at a known place of the file, read with `preadv` from a few threads."""

    def __init__(self, path: Path, descriptor: int, offset: int, row_bytes: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._offset = offset
        self._row_bytes = row_bytes
        self._pool: ThreadPoolExecutor | None = None
        self._pool_process = 0

    def fill(self, parts: list[tuple[str, int, np.ndarray]]) -> None:
        if self._descriptor < 0:
            raise ValueError(f"{self._path}: the archive is closed")
        if len(parts) < 2:
            self._fill_in_turn(parts)
            return
        shares = [parts[k::READ_THREADS] for k in range(min(READ_THREADS, len(parts)))]
        for _ in self._threads().map(self._fill_in_turn, shares):
            pass

    def close(self) -> None:
        if self._pool is not None and self._pool_process == os.getpid():
            self._pool.shutdown()
        self._pool = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        # May run in a pool thread, which cannot join itself: idle threads end with the pool object.
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _threads(self) -> ThreadPoolExecutor:
        # A fork copies the pool but not its threads: each process starts its own.
        if self._pool is None or self._pool_process != os.getpid():
            self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="archive")
            self._pool_process = os.getpid()
        return self._pool

    def _fill_in_turn(self, parts: list[tuple[str, int, np.ndarray]]) -> None:
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


class _HDF5Rows:
    """Rows of a chunked or compressed dataset, read through HDF5."""

    def __init__(self, path: Path, file: h5py.File, features: h5py.Dataset) -> None:
        self._path = path
        self._file: h5py.File | None = file
        self._features = features
        self._shape = features.shape
        self._process = os.getpid()

    def fill(self, parts: list[tuple[str, int, np.ndarray]]) -> None:
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
        if self._file is not None:
            self._file.close()
            self._file = None


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


def _row_source(path: Path, file: h5py.File, features: h5py.Dataset) -> _RowSource:
    offset = features.id.get_offset()
    if features.chunks is not None or offset is None:
        return _HDF5Rows(path, file, features)
    # The descriptor of the very file that was checked, even if the path has been replaced since.
    descriptor = os.dup(file.id.get_vfd_handle())
    row_bytes = features.shape[1] * features.dtype.itemsize
    file.close()
    return _PositionedRows(path, descriptor, offset, row_bytes)


def _check_format(path: Path, file: h5py.File) -> None:
    if "format" not in file.attrs or scalar_attribute(file, path, "format") != FORMAT:
        datasets, more = list_datasets(file, 4)
        holds = "; ".join(datasets) + ("; ..." if more else "") if datasets else "no datasets"
        raise UserError(
            f"{path}: an HDF5 file but not an ahernet archive (it holds {holds}); save each video's "
            "features as a .npy file of shape (rows, dimension) and import that folder"
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


def _set_text(file: h5py.File, name: str, text: str) -> None:
    encoded = text.encode("utf-8", "replace")  # bytes of a command line may be no Unicode
    file.attrs.create(name, np.bytes_(encoded), dtype=h5py.string_dtype("utf-8", max(len(encoded), 1)))


def _allocate_features(file: h5py.File, rows: int, dimension: int, dtype: np.dtype[Any]) -> int:
    """Reserve the contiguous dataset `features`, unwritten, and return its offset in the file."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    space = h5py.h5s.create_simple((rows, dimension))
    kind = h5py.h5t.py_create(dtype.newbyteorder("<"))
    dataset = h5py.h5d.create(file.id, b"features", kind, space, dcpl=properties)
    offset = dataset.get_offset()
    assert isinstance(offset, int)
    return offset
