"""Writing feature archives; `archive` describes the format."""

import math
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import h5py
import numpy as np

from ahernet.data.archive import FORMAT, VERSION
from ahernet.data.archive_set import is_set
from ahernet.data.hdf5_guard import open_hdf5, scalar_attribute
from ahernet.errors import UserError
from ahernet.files import check_output_file, replace_when_complete

ALIGNMENT = 4096
COPY_BYTES = 1 << 24
MAX_ORIGIN_BYTES = 32768
MAX_CLIP_STRIDE = 1 << 30
FLOAT16_MAX = 65504.0
Precision = Literal["float16", "float32"]
MAX_ID_BYTES = 1024


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
        check_description(frame_rate, clip_stride, origin)
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
        check_archive_name(self.path)
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
        tables = ArchiveTables(
            ids=list(self._lengths),
            lengths=list(self._lengths.values()),
            durations=self._durations,
            checksums=self._checksums,
            dimension=self.dimension,
            dtype=self.dtype,
            frame_rate=self._frame_rate,
            clip_stride=self._clip_stride,
            origin=self._origin,
        )
        spill.seek(0)
        left = self._rows_written * self.dimension * np.dtype(self.dtype).itemsize
        sizes = [COPY_BYTES] * (left // COPY_BYTES) + [left % COPY_BYTES]
        write_archive(self.path, tables, (spill.read(size) for size in sizes))


@dataclass(frozen=True)
class ArchiveTables:
    """Everything in an archive but the rows; `archive` says what the entries mean.

    Attributes:
        ids: of the videos, checked (`check_video_id`) and all different.
        lengths: rows of each video.
        durations: seconds, NaN where unknown.
        checksums: CRC-32 of each video's rows.
        dimension: D.
        dtype: of the rows.
        frame_rate: frames per second, NaN where unknown.
        clip_stride: frames from row to row, 0 where unknown.
        origin: how the features came to be.
    """

    ids: Sequence[str]
    lengths: Sequence[int]
    durations: Sequence[float]
    checksums: Sequence[int]
    dimension: int
    dtype: Precision
    frame_rate: float
    clip_stride: int
    origin: str


def write_archive(path: Path, tables: ArchiveTables, rows: Iterable[bytes]) -> None:
    """Write an archive of videos whose rows are prepared (`prepare_features`); it appears complete or not at all.

    Args:
        path: file to write; replaced if it exists.
        tables: of at least one video.
        rows: the bytes of all rows in the order of `tables.ids`, in parts of any size.

    Raises:
        UserError: the file cannot be written.
    """
    with replace_when_complete(path) as temporary:
        offset = _create_tables(temporary, path, tables)
        with temporary.open("r+b") as target:
            target.seek(offset)
            target.writelines(rows)


def _create_tables(temporary: Path, path: Path, tables: ArchiveTables) -> int:
    """Write everything but the rows; return where in the file the rows belong."""
    ids = [video_id.encode("utf-8") for video_id in tables.ids]
    id_type = h5py.string_dtype("utf-8", max(len(encoded) for encoded in ids))
    offsets = np.concatenate([[0], np.cumsum(tables.lengths)])
    try:
        # Aligned, so that others can map the rows into memory as they are.
        with h5py.File(
            temporary, "w", locking=False, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT
        ) as file:
            _set_text(file, "format", FORMAT)
            file.attrs["version"] = np.int64(VERSION)
            file.attrs["dimension"] = np.int64(tables.dimension)
            file.attrs["frame_rate"] = np.float64(tables.frame_rate)
            file.attrs["clip_stride"] = np.int64(tables.clip_stride)
            _set_text(file, "origin", tables.origin)
            file.create_dataset("offsets", data=offsets.astype("<i8"))
            file.create_dataset("ids", data=np.array(ids, dtype=id_type))
            file.create_dataset("durations", data=np.array(tables.durations, "<f8"))
            file.create_dataset("crc32", data=np.array(tables.checksums, "<u4"))
            return _allocate_features(file, int(offsets[-1]), tables.dimension, np.dtype(tables.dtype))
    except (OSError, RuntimeError) as error:  # HDF5 raises both, over several lines, on a full disk
        raise UserError(f"{path}: cannot write ({' '.join(str(error).split())})") from error


def check_archive_name(path: Path) -> None:
    """Refuse what an archive cannot be written to; good to ask before long work.

    Raises:
        UserError: as `check_output_file`, every reader would take the file for a set of archives, or there is a file
            that is no archive, which a mistyped name must not replace.
    """
    check_output_file(path)
    if is_set(path):
        raise UserError(f"{path}: is a name of a set of archives, expected that of one archive, such as archive.h5")
    if path.exists() and path.stat().st_size > 0 and not _is_archive(path):
        raise UserError(f"{path}: holds something else than an archive, expected another name (or remove it)")


def _is_archive(path: Path) -> bool:
    try:
        with open_hdf5(path) as file:
            return scalar_attribute(file, path, "format") == FORMAT
    except UserError:
        return False


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


def check_description(frame_rate: float, clip_stride: int, origin: str) -> None:
    """Refuse attributes that an archive cannot have; `ArchiveTables` says what they are.

    Raises:
        UserError: the rate is not above 0 or NaN, the stride is negative, or the origin is too long or holds NUL.
    """
    if not (math.isnan(frame_rate) or 0 < frame_rate < math.inf):
        raise UserError(f"frame rate: expected frames per second above 0 or NaN, got {frame_rate}")
    if not 0 <= clip_stride <= MAX_CLIP_STRIDE:
        raise UserError(
            f"clip stride: expected frames above 0 and at most {MAX_CLIP_STRIDE}, or 0 for unknown, got {clip_stride}"
        )
    if len(origin.encode("utf-8", "replace")) > MAX_ORIGIN_BYTES or "\0" in origin:
        raise UserError(f"origin: expected text without NUL of at most {MAX_ORIGIN_BYTES} bytes")


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
        raise UserError(f"video {video_id!r}: NaN or infinite features, first in row {row}; expected finite ones")
    limit = FLOAT16_MAX if dtype == "float16" else float(np.finfo(np.float32).max)
    largest = max(abs(float(features.max())), abs(float(features.min())))
    if largest > limit:
        advice = ", store this archive as float32" if dtype == "float16" else ""
        raise UserError(f"video {video_id!r}: value of size {largest:.6g} is beyond {dtype}{advice}")
    return np.ascontiguousarray(features, dtype=np.dtype(dtype).newbyteorder("<"))


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
