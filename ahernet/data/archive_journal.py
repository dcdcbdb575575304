"""An archive that grows over a long time: finished videos are kept on disk, whatever ends the program that adds them.

While `ARCHIVE` is being made, the folder `ARCHIVE.partial` beside it holds

    settings.json   what the features depend on; a run with other settings must not go on here
    rows.bin        the rows of finished videos, one after the other, in the archive's type
    journal.jsonl   one line per finished video, written after its rows have reached the disk; one with 0 rows takes a
                    video back, whose rows were found damaged

A line that a killed writer left unfinished, and rows without a line, are cut off when the folder is opened again. When
all videos are there the archive is written, in the order that the caller wants, and the folder is removed.
"""

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ahernet.data.archive_writer import (
    ArchiveTables,
    Precision,
    check_archive_name,
    check_video_id,
    prepare_features,
    write_archive,
)
from ahernet.data.bounded_read import parse_json
from ahernet.errors import UserError
from ahernet.files import (
    BusyFolder,
    claim_folder,
    flush_to_disk,
    make_folder,
    remove_copies,
    replace_when_complete,
)

FORMAT = "ahernet partial archive 1"


@dataclass(frozen=True, slots=True)  # there may be hundreds of thousands
class FinishedVideo:
    """A line of the journal.

    Attributes:
        id: of the video.
        first: its first row in rows.bin.
        rows: how many it has.
        duration: seconds, NaN where unknown.
        crc32: of the bytes of its rows.
        source: what the video was read from; if that has changed, the rows are out of date.
        remarks: what the user should know about the video.
    """

    id: str
    first: int
    rows: int
    duration: float
    crc32: int
    source: str
    remarks: tuple[str, ...]

    def line(self) -> str:
        """Return the line of the journal."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}) + "\n"


class ArchiveJournal:
    """The finished videos of an archive in the making; `open_journal` makes one.

    Attributes:
        out: the archive to be.
        folder: that holds what is finished.
        dimension: D of every video.
        dtype: of the rows as stored.
        finished: by video id, those that are on the disk.
    """

    def __init__(self, out: Path, folder: Path, dimension: int, dtype: Precision) -> None:
        self.out = out
        self.folder = folder
        self.dimension = dimension
        self.dtype: Precision = dtype
        self._row_bytes = dimension * np.dtype(dtype).itemsize
        # Unbuffered: nothing is left to be written when the disk is full.
        self._rows = (folder / "rows.bin").open("ab", buffering=0)
        self._lines = (folder / "journal.jsonl").open("ab", buffering=0)
        flush_to_disk(folder)
        self._unsynced: list[FinishedVideo] = []
        self.finished = self._read_lines()

    def has(self, video_id: str, source: str) -> bool:
        """Tell whether a video is finished, from the same source."""
        return video_id in self.finished and self.finished[video_id].source == source

    def add(
        self, video_id: str, features: np.ndarray, duration: float, source: str, remarks: Sequence[str] = ()
    ) -> None:
        """Keep the features of a finished video; when this returns they are on the disk.

        Arguments and errors are those of `append`.
        """
        self.append(video_id, features, duration, source, remarks)
        self.sync()

    def append(
        self, video_id: str, features: np.ndarray, duration: float, source: str, remarks: Sequence[str] = ()
    ) -> None:
        """Take the features of a video, which is finished at the next `sync`: for many that are made in no time.

        Args:
            video_id: as `ArchiveWriter.add`; replaces a finished video of that id.
            features: (L, D) real numbers, L >= 1.
            duration: seconds, NaN where unknown.
            source: what the video was read from, as `has` compares it.
            remarks: what the user should know about the video.

        Raises:
            UserError: as `ArchiveWriter.add`. The journal stays as it was.
        """
        check_video_id(video_id)
        if not (math.isnan(duration) or 0 < duration < math.inf):
            raise UserError(f"video {video_id!r}: duration is {duration}, expected seconds above 0 or NaN")
        rows = prepare_features(video_id, features, self.dimension, self.dtype)
        place = self._rows.tell()
        try:
            _write(self._rows, rows.data)
        except OSError as error:
            _cut_off(self._rows, place)
            raise UserError(f"{self.folder}: cannot write ({error.strerror})") from error
        self._unsynced.append(
            FinishedVideo(
                video_id,
                place // self._row_bytes,
                len(rows),
                float(duration),
                zlib.crc32(rows.data),
                source,
                tuple(remarks),
            )
        )

    def sync(self) -> None:
        """Bring all videos that were appended to the disk: their rows first, then the lines that say so.

        Raises:
            UserError: the disk is full, for instance; those videos are not finished.
        """
        if not self._unsynced:
            return
        videos, self._unsynced = self._unsynced, []
        intact = self._lines.tell()
        try:
            os.fsync(self._rows.fileno())
            _write(self._lines, "".join(video.line() for video in videos).encode())
            os.fsync(self._lines.fileno())
        except OSError as error:
            _cut_off(self._lines, intact)
            _cut_off(self._rows, videos[0].first * self._row_bytes)
            raise UserError(f"{self.folder}: cannot write ({error.strerror})") from error
        self.finished.update((video.id, video) for video in videos)

    def publish(
        self,
        video_ids: Sequence[str],
        *,
        clip_stride: int,
        origin: str,
        frame_rate: float = math.nan,
        durations: Mapping[str, float] | None = None,
    ) -> None:
        """Write the archive of these finished videos, in this order.

        Args:
            video_ids: of finished videos.
            clip_stride: as `ArchiveTables`.
            origin: as `ArchiveTables`.
            frame_rate: as `ArchiveTables`.
            durations: by video id, where they are known better than when the video was added.

        Raises:
            UserError: there is none, the archive cannot be written, or rows are not what they were, so that their
                videos are no longer finished.
        """
        if not video_ids:
            raise UserError(f"{self.out}: no video is finished, an archive holds at least one")
        videos = [self.finished[video_id] for video_id in video_ids]
        known = durations or {}
        tables = ArchiveTables(
            ids=video_ids,
            lengths=[video.rows for video in videos],
            durations=[known.get(video.id, video.duration) for video in videos],
            checksums=[video.crc32 for video in videos],
            dimension=self.dimension,
            dtype=self.dtype,
            frame_rate=frame_rate,
            clip_stride=clip_stride,
            origin=origin,
        )
        write_archive(self.out, tables, self._stored_rows(videos))

    def close(self) -> None:
        """Close the files."""
        self._rows.close()
        self._lines.close()

    def _stored_rows(self, videos: Iterable[FinishedVideo]) -> Iterator[bytes]:
        with (self.folder / "rows.bin").open("rb") as file:
            for video in videos:
                rows = self._rows_of(video, file)
                if zlib.crc32(rows) != video.crc32:
                    damaged = self._take_back_damaged()
                    raise UserError(
                        f"{self.folder}: the rows of {len(damaged):,} videos have changed on disk, as those of "
                        f"{damaged[0]!r}; the same command reads these videos again"
                    )
                yield rows

    def _rows_of(self, video: FinishedVideo, file: BinaryIO) -> bytes:
        file.seek(video.first * self._row_bytes)
        return file.read(video.rows * self._row_bytes)

    def _take_back_damaged(self) -> list[str]:
        """Let no video count as finished whose rows are not what they were; return their ids."""
        with (self.folder / "rows.bin").open("rb") as file:
            damaged = [
                video.id for video in self.finished.values() if zlib.crc32(self._rows_of(video, file)) != video.crc32
            ]
        end = self._rows.tell() // self._row_bytes
        lines = [FinishedVideo(video_id, end, 0, math.nan, 0, "", ()).line() for video_id in damaged]
        _write(self._lines, "".join(lines).encode())
        os.fsync(self._lines.fileno())
        for video_id in damaged:
            del self.finished[video_id]
        return damaged

    def _read_lines(self) -> dict[str, FinishedVideo]:
        """Read what is finished, and cut off what a killed writer left after it."""
        stored = (self.folder / "rows.bin").stat().st_size // self._row_bytes
        finished: dict[str, FinishedVideo] = {}
        rows = intact = 0
        with (self.folder / "journal.jsonl").open("rb") as lines:
            for line in lines:
                video = _parse(line)
                if video is None or video.first != rows or video.first + video.rows > stored:
                    break
                if video.rows:
                    finished[video.id] = video
                else:
                    finished.pop(video.id, None)
                rows = video.first + video.rows
                intact += len(line)
        _cut_off(self._lines, intact)
        _cut_off(self._rows, rows * self._row_bytes)
        return finished


@contextmanager
def open_journal(
    out: Path, *, dimension: int, dtype: Precision, settings: Mapping[str, Any]
) -> Iterator[ArchiveJournal]:
    """Begin the archive `out`, or go on with what a killed run has left of it; one process at a time.

    The folder beside it is removed at the end of the context when all went well, or when nothing is finished in it.

    Args:
        out: the archive to be; its folder must exist.
        dimension: D of every video.
        dtype: "float16" or "float32".
        settings: everything that features depend on, as JSON can hold it.

    Raises:
        UserError: another process is at work there, the folder was begun with other settings, or cannot be written.
    """
    check_archive_name(out)
    folder = partial_folder(out)
    make_folder(folder)
    with ExitStack() as until_done:
        try:
            until_done.enter_context(claim_folder(folder, ".*"))
        except BusyFolder:
            raise
        except UserError:
            with suppress(OSError):  # holds what an earlier run has left
                folder.rmdir()
            raise
        remove_copies(out)
        everything = {"format": FORMAT, "dimension": dimension, "dtype": dtype, **settings}
        _begin_or_compare(folder, json.loads(json.dumps(everything)))
        try:
            journal = ArchiveJournal(out, folder, dimension, dtype)
        except OSError as error:
            raise UserError(f"{folder}: cannot write there ({error.strerror})") from error
        done = False
        try:
            yield journal
            done = True
        finally:
            journal.close()
            if done or not journal.finished:
                _remove(folder)


def remove_leftovers(out: Path, *others: Path) -> None:
    """Remove what a killed run left beside the finished archive `out`, unless another process is at work there.

    Args:
        out: the archive.
        others: files that are written only while the journal of the archive is open.

    Raises:
        UserError: the folder beside it cannot be created or written.
    """
    folder = partial_folder(out)
    make_folder(folder)
    with suppress(BusyFolder), claim_folder(folder, ".*"):
        for path in (out, *others):
            remove_copies(path)
        _remove(folder)


def partial_folder(out: Path) -> Path:
    """Return the folder in which `out` is being made."""
    return out.with_name(out.name + ".partial")


def _remove(folder: Path) -> None:
    """Remove the folder of a journal; what a kill leaves of it holds no finished video."""
    (folder / "journal.jsonl").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _begin_or_compare(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / "settings.json"
    if not path.exists():
        # Nobody knows the settings of rows without any.
        (folder / "journal.jsonl").unlink(missing_ok=True)
        (folder / "rows.bin").unlink(missing_ok=True)
        with replace_when_complete(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return
    try:
        before = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot read ({error}); remove the folder to start again") from error
    if not isinstance(before, dict) or before.get("format") != FORMAT:
        raise UserError(f"{path}: not the settings of a partial archive; give another name for the archive")
    for name in settings:
        if before.get(name) != settings[name]:
            raise UserError(
                f"{folder}: was begun with {name} = {_short(before.get(name))}, now it is {_short(settings[name])}; "
                "go on with the same settings, or remove the folder to start again"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _parse(line: bytes) -> FinishedVideo | None:
    """Return what a whole line says, None for one that was cut off or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = parse_json(line)
        video = FinishedVideo(**{**entry, "remarks": tuple(entry["remarks"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_whole = all(type(number) is int and number >= 0 for number in (video.first, video.rows, video.crc32))
    is_text = all(isinstance(text, str) for text in (video.id, video.source, *video.remarks))
    return video if is_whole and is_text and isinstance(video.duration, float) else None


def _write(file: FileIO, content: bytes | memoryview) -> None:
    left = memoryview(content).cast("B")
    while left:
        left = left[file.write(left) :]


def _cut_off(file: FileIO, length: int) -> None:
    file.truncate(length)
    file.seek(length)
