"""Import features that others extracted into a feature archive: `docs/archive-format.md` lists the layouts."""

import itertools
import math
import shlex
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ahernet.data.annotations import match_video_ids, read_annotations
from ahernet.data.archive_journal import ArchiveJournal, open_journal
from ahernet.data.archive_writer import (
    Precision,
    check_archive_name,
    check_description,
    check_video_id,
    prepare_features,
)
from ahernet.data.array_files import SUFFIXES, read_array_file
from ahernet.data.array_folders import open_folder
from ahernet.data.foreign_hdf5 import open_foreign_hdf5
from ahernet.data.foreign_videos import ForeignFeatures, ForeignSource, ForeignVideo
from ahernet.data.id_map import read_id_map
from ahernet.data.printable import printable
from ahernet.errors import UserError
from ahernet.files import make_folder
from ahernet.progress import ProgressBar

SHOWN_SKIPPED = 10
SYNC_SECONDS = 5.0  # of work that an early end may cost; a sync for every video would take longer than the import

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        path: the archive.
        kind: what the source was.
        videos: videos written.
        rows: rows of features written.
        dimension: features per row.
        clip_stride: frames between rows as written, 0 for unknown.
        equal_rows: rows of every video if all of several have the same number, as after rescaling; 0 otherwise.
        from_rows: videos whose duration was computed from their number of rows.
        without_duration: ids written with unknown duration.
        not_annotated: ids with a duration of the source, because a given annotation file has none of them.
        skipped: what was wrong with each video left out.
        ignored: other files in the folder, by suffix not features.
        unused_names: names of the map that the source does not have.
        earlier: videos that an earlier run had finished.
        changed: videos that an earlier run had finished, but that have changed since and were read again.
    """

    path: Path
    kind: str
    videos: int
    rows: int
    dimension: int
    clip_stride: int
    equal_rows: int
    from_rows: int
    without_duration: tuple[str, ...]
    not_annotated: tuple[str, ...]
    skipped: tuple[str, ...]
    ignored: int
    unused_names: tuple[str, ...]
    earlier: int
    changed: int

    def __str__(self) -> str:
        text = f"{self.path}: {self.videos:,} videos, {self.rows:,} rows of {self.dimension} from {self.kind}"
        if self.earlier:
            text += f"; {self.earlier:,} of them from an earlier run"
        if self.changed:
            text += f"; {self.changed:,} read again, because they have changed since an earlier run"
        if self.without_duration:
            text += f"; {len(self.without_duration):,} without duration, as {self.without_duration[0]!r}"
        if self.not_annotated:
            text += f"; {len(self.not_annotated):,} without a duration in the annotations, as {self.not_annotated[0]!r}"
        if self.ignored:
            text += f"; {self.ignored:,} other files ignored"
        if self.unused_names:
            text += f"; {len(self.unused_names):,} names of the map not found, as {self.unused_names[0]!r}"
        if self.equal_rows and (self.without_duration or self.from_rows):
            text += f"\nevery video has {self.equal_rows:,} rows: if they were rescaled to that, "
            text += "only annotations can give the durations (--annotations)"
            if self.from_rows:
                text += f", and the {self.from_rows:,} computed from --clip-stride are wrong"
        if self.skipped:
            text += f"\n{len(self.skipped):,} skipped:"
            text += "".join(f"\n  {line}" for line in self.skipped[:SHOWN_SKIPPED])
        if len(self.skipped) > SHOWN_SKIPPED:
            text += f"\n  ... and {len(self.skipped) - SHOWN_SKIPPED:,} more"
        return text


@contextmanager
def open_source(path: Path) -> Iterator[ForeignSource]:
    """Recognise what holds the features by what is in it, and list its videos.

    Args:
        path: a folder of array files (`array_folders`), or an HDF5 file (`foreign_hdf5`).

    Raises:
        UserError: it is neither, or holds nothing that can be imported; the message says what was found.
    """
    start = _first_bytes(path)
    if start is None:
        yield open_folder(path)
        return
    if start == _HDF5_MAGIC or path.suffix.lower() in (".h5", ".hdf5"):
        with open_foreign_hdf5(path) as source:
            yield source
        return
    if path.suffix.lower() in SUFFIXES:
        raise UserError(f"{path}: a file of one video, expected the folder that holds it or an HDF5 file")
    raise UserError(f"{path}: neither a folder nor an HDF5 file (it begins with {start!r})")


def describe_source(path: Path) -> str:
    """Say what holds the features, and how to import it.

    Raises:
        UserError: as `open_source`.
    """
    if path.suffix.lower() in SUFFIXES and path.is_file():
        array = read_array_file(path)
        return f"the array {array.shape} {array.dtype} of one video; import the folder that holds it"
    with open_source(path) as source:
        first = source.videos[0]
        try:
            rows = first.read().rows
            shown = f"{rows.shape} {rows.dtype}"
        except UserError as error:
            shown = f"bad ({error})"
        text = f"{source.kind}: {len(source.videos):,} videos, the first, {first.name!r}, is {shown}"
    command = f"ahernet import {shlex.quote(str(path))} --out archive.h5"
    return printable(f"{text}; {command} makes an archive of it (--annotations FILE gives the durations)")


def import_features(
    source: Path,
    out: Path,
    *,
    durations: Path | None = None,
    categories: Path | None = None,
    id_map: Path | None = None,
    frame_rate: float = math.nan,
    clip_stride: int = 0,
    dtype: Precision = "float16",
    dimension: int | None = None,
    prefix: str = "",
    origin: str = "",
    on_error: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> ImportReport:
    """Import the features of a folder or of an HDF5 file into the archive `out`, one video at a time.

    Videos are kept in a folder `<out>.partial` (see `ahernet.data.archive_journal`) until all are there. The same
    call after a kill or an error goes on there, and ends with the bytes that an undisturbed run ends with; only the
    last `SYNC_SECONDS` are lost.

    The video id is the name in the source without `prefix`, or what `id_map` says.

    A video's duration is that of the annotation file; else its frames over `frame_rate`, where the source counts
    frames; else rows * clip_stride / frame_rate; else unknown.

    Args:
        source: as for `open_source`.
        out: archive to write, and folders for it; appears complete or not at all.
        durations: annotation file (any kind that `read_annotations` reads) to take durations from; ids may
            differ in the prefix `v_`.
        categories: class names, where the annotation file needs them.
        id_map: table of names in the source and video ids (`read_id_map`); a name that is not in it is a bad video.
        frame_rate: frames per second of the videos.
        clip_stride: frames from one row to the next, 0 for what the source states.
        dtype: "float16" or "float32", what the archive stores.
        dimension: D that every video must have; None takes that of the first usable one.
        prefix: removed from names; a name without it is a bad video.
        origin: text for the archive, how the features came to be.
        on_error: "stop" at the first bad video, or "skip" bad ones and list them in the report.
        progress: show a progress bar.

    Raises:
        UserError: the source, the annotation file or the map cannot be read, a video is bad (with "stop") or all
            are, two give one id, `clip_stride` is not what the source states, or `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error: expected 'stop' or 'skip', got {on_error!r}")
    if prefix and id_map is not None:
        raise UserError("prefix: the map of names gives whole ids, expected one of the two")
    check_archive_name(out)
    check_description(frame_rate, clip_stride, origin)
    bad = _BadVideos(stop=on_error == "stop")
    names = None if id_map is None else read_id_map(Path(id_map))
    with open_source(source) as found:
        stride = _clip_stride(source, found.clip_stride, clip_stride)
        by_id = _by_video_id(found.videos, _naming(prefix, names), bad)
        annotated = _known_durations(durations, categories, by_id)
        # Closed at once also after an error: the message must not end up on the line of the progress bar.
        with ProgressBar(by_id.items(), desc="import", unit="video", disable=not progress) as bar:
            videos = iter(bar)
            first = next(_read_videos(videos, dimension, dtype, bad), None)
            if first is None or first.features is None:
                raise UserError(f"{source}: none of its {len(found.videos):,} videos is usable; {bad.messages[0]}")
            width = first.features.rows.shape[1]
            make_folder(out.parent)
            settings = {
                "made by": "import",
                "source file": found.version,
                "frame rate": None if math.isnan(frame_rate) else frame_rate,
                "clip stride": stride,
            }
            with open_journal(out, dimension=width, dtype=dtype, settings=settings) as journal:
                earlier = dict(journal.finished)
                keep = _Keeper(journal, frame_rate, stride, bad)
                like = f"as in {Path(first.video.place).name}; give the dimension if that is wrong"
                expected = "as asked for" if dimension else like
                with _kept_for_later(journal):
                    rest = _read_videos(videos, width, dtype, bad, expected, journal)
                    kept = [video.id for video in itertools.chain([first], rest) if keep(video)]
                    journal.sync()
                finished = [journal.finished[video_id] for video_id in kept]
                seconds = {video.id: annotated.get(video.id, video.duration) for video in finished}
                journal.publish(kept, clip_stride=stride, origin=origin, frame_rate=frame_rate, durations=seconds)
        lengths = {video.rows for video in finished}
        present = {video.name for video in found.videos}
        computed = not found.counts_frames
        again = sum(video.id in earlier and earlier[video.id] != video for video in finished)
        return ImportReport(
            path=out,
            kind=found.kind,
            videos=len(kept),
            rows=sum(video.rows for video in finished),
            dimension=width,
            clip_stride=stride,
            equal_rows=min(lengths) if len(kept) > 1 and len(lengths) == 1 else 0,
            from_rows=computed
            * sum(video.id not in annotated and not math.isnan(video.duration) for video in finished),
            without_duration=tuple(video_id for video_id in kept if math.isnan(seconds[video_id])),
            not_annotated=tuple(
                video_id
                for video_id in kept
                if durations is not None and video_id not in annotated and not math.isnan(seconds[video_id])
            ),
            skipped=tuple(bad.messages),
            ignored=found.ignored,
            unused_names=tuple(name for name in names or () if name not in present),
            earlier=sum(video_id in earlier for video_id in kept) - again,
            changed=again,
        )


@dataclass(frozen=True)
class _ReadVideo:
    """A video as it was read: `source` says from what, `features` are None where they need not be read again."""

    id: str
    video: ForeignVideo
    source: str
    features: ForeignFeatures | None


class _BadVideos:
    """Stops at the first bad video, or collects what was wrong with each."""

    def __init__(self, stop: bool) -> None:
        self._stop = stop
        self.messages: list[str] = []

    def add(self, video: ForeignVideo, error: UserError) -> None:
        message = str(error)
        if not message.startswith(video.place):  # the guards of HDF5 name it themselves
            message = f"{video.place}: {message}"
        message = printable(message)
        if self._stop:
            raise UserError(message) from error
        self.messages.append(message)


class _Keeper:
    """Keeps videos in the journal of an import, and brings them to the disk every now and then."""

    def __init__(self, journal: ArchiveJournal, frame_rate: float, clip_stride: int, bad: _BadVideos) -> None:
        self._journal = journal
        self._frame_rate = frame_rate
        self._clip_stride = clip_stride
        self._bad = bad
        self._synced = time.monotonic()

    def __call__(self, video: _ReadVideo) -> bool:
        """Keep a video, or say that it is a bad one; whatever else stops the journal stops the import."""
        if video.features is None or self._journal.has(video.id, video.source):
            return True
        try:
            self._journal.append(video.id, video.features.rows, self._seconds(video.features), video.source)
        except UserError:
            try:
                prepare_features(video.id, video.features.rows, self._journal.dimension, self._journal.dtype)
            except UserError as error:
                self._bad.add(video.video, error)
                return False
            raise
        if _source(video.video) != video.source:  # the next run sees it too, and reads the video again
            raise UserError(printable(f"{video.video.place}: changes while it is read, import it when it is complete"))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._journal.sync()
            self._synced = time.monotonic()
        return True

    def _seconds(self, features: ForeignFeatures) -> float:
        """Return what the source says of the duration, NaN where it does not."""
        frames = features.frames or len(features.rows) * self._clip_stride
        return frames / self._frame_rate if frames else math.nan


@contextmanager
def _kept_for_later(journal: ArchiveJournal) -> Iterator[None]:
    """Say to one whose import ends early what the next run finds; after a short one nothing stays."""
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        if not journal.finished:
            raise
        kept = f"{len(journal.finished):,} finished videos are kept in {journal.folder}"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"{kept}, the same command goes on") from error
        raise UserError(f"{error} ({kept} for the next run)") from error


def _first_bytes(path: Path) -> bytes | None:
    """Return how a file begins, None for a folder."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            return None
        if not stat.S_ISREG(kind):
            raise UserError(f"{path}: is neither a folder nor a plain file")
        with path.open("rb") as file:
            return file.read(len(_HDF5_MAGIC))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file or folder, expected one with features") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read ({getattr(error, 'strerror', None) or error})") from error


def _clip_stride(source: Path, stated: int, asked_for: int) -> int:
    if asked_for and stated and asked_for != stated:
        raise UserError(
            f"clip stride: {asked_for} frames asked for, but the rows of {source} are {stated} frames apart; "
            "give that or none"
        )
    return asked_for or stated


def _naming(prefix: str, names: Mapping[str, str] | None) -> Callable[[str], str]:
    """Return what makes the id of a name; the message of its errors does not name the video."""

    def without_prefix(name: str) -> str:
        if not name.startswith(prefix):
            raise UserError(f"the name does not begin with the prefix {prefix!r}; give another --prefix")
        return name.removeprefix(prefix)

    def mapped(name: str) -> str:
        assert names is not None
        if name not in names:
            raise UserError(f"the map of names has no {name!r}, expected a line for it")
        return names[name]

    return without_prefix if names is None else mapped


def _by_video_id(
    videos: Iterable[ForeignVideo], id_of: Callable[[str], str], bad: _BadVideos
) -> dict[str, ForeignVideo]:
    by_id: dict[str, ForeignVideo] = {}
    for video in videos:
        try:
            video_id = id_of(video.name)
            check_video_id(video_id)
        except UserError as error:
            bad.add(video, error)
            continue
        if video_id in by_id:  # leaving one out would be a guess: never skipped
            other = Path(by_id[video_id].place).name
            raise UserError(
                printable(f"{video.place}: gives the same video id {video_id!r} as {other}; give ids with --map")
            )
        by_id[video_id] = video
    return by_id


def _known_durations(path: Path | None, categories: Path | None, video_ids: Iterable[str]) -> dict[str, float]:
    if path is None:
        return {}
    annotated = read_annotations(path, categories).videos
    pairs = match_video_ids(video_ids, annotated)
    known = {video_id: annotated[other].duration for video_id, other in pairs.items()}
    return {video_id: seconds for video_id, seconds in known.items() if not math.isnan(seconds)}


def _source(video: ForeignVideo) -> str:
    """Return what tells whether a finished video is the one that would be read now."""
    return f"{video.name!r}: {video.version()}"


def _read_videos(
    videos: Iterable[tuple[str, ForeignVideo]],
    dimension: int | None,
    dtype: Precision,
    bad: _BadVideos,
    expected: str = "as asked for",
    journal: ArchiveJournal | None = None,
) -> Iterator[_ReadVideo]:
    """Read the usable videos, but not those that are finished in the journal; `expected` says whence the dimension."""
    for video_id, video in videos:
        try:
            source = _source(video)
            if journal is not None and journal.has(video_id, source):
                yield _ReadVideo(video_id, video, source, None)
                continue
            features = video.read()
            shape = features.rows.shape
            if len(shape) != 2 or 0 in shape:
                raise UserError(f"array of shape {shape}, expected (rows, dimension)")
            if dimension is None:  # a bad video must not decide
                prepare_features(video_id, features.rows, shape[1], dtype)
            elif shape[1] != dimension:
                raise UserError(f"dimension {shape[1]}, expected {dimension} {expected}")
        except UserError as error:
            bad.add(video, error)
            continue
        yield _ReadVideo(video_id, video, source, features)
