"""Import features that others extracted into a feature archive."""

import contextlib
import itertools
import math
import zipfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ahernet.data.annotations import match_video_ids, read_annotations
from ahernet.data.archive_writer import ArchiveWriter, Precision, check_video_id, prepare_features
from ahernet.errors import UserError

SUFFIXES = (".npy", ".npz")
FEATURE_KEYS = ("feats", "features")
SHOWN_SKIPPED = 10
MAX_COMPRESSION = 100  # unpacked over packed size of an .npz member; features do not compress further
SMALL_BYTES = 1 << 26  # members below this are read whatever their compression

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        path: the archive.
        videos: videos written.
        rows: rows of features written.
        dimension: features per row.
        without_duration: ids written with unknown duration.
        skipped: what was wrong with each file left out.
        ignored: other files in the folder, by suffix not features.
    """

    path: Path
    videos: int
    rows: int
    dimension: int
    without_duration: tuple[str, ...]
    skipped: tuple[str, ...]
    ignored: int

    def __str__(self) -> str:
        text = f"{self.path}: {self.videos:,} videos, {self.rows:,} rows of {self.dimension}"
        if self.without_duration:
            text += f"; {len(self.without_duration):,} without duration, as {self.without_duration[0]!r}"
        if self.ignored:
            text += f"; {self.ignored:,} other files ignored"
        if self.skipped:
            text += f"; {len(self.skipped):,} files skipped:"
            text += "".join(f"\n  {line}" for line in self.skipped[:SHOWN_SKIPPED])
        if len(self.skipped) > SHOWN_SKIPPED:
            text += f"\n  ... and {len(self.skipped) - SHOWN_SKIPPED:,} more"
        return text


def import_folder(
    folder: Path,
    out: Path,
    *,
    durations: Path | None = None,
    categories: Path | None = None,
    frame_rate: float = math.nan,
    clip_stride: int = 0,
    dtype: Precision = "float16",
    dimension: int | None = None,
    prefix: str = "",
    origin: str = "",
    on_error: Literal["stop", "skip"] = "stop",
    progress: bool = True,
) -> ImportReport:
    """Import a folder of `.npy` and `.npz` files, one video each, into the archive `out`.

    A file holds one array (L, D), real numbers; an `.npz` with several arrays is searched for `feats` or
    `features`. The video id is the file's name without suffix and without `prefix`. Files are taken in the
    order of their names; sub-folders are not searched.

    Args:
        folder: where the files are.
        out: archive to write; appears complete or not at all.
        durations: annotation file (any kind that `read_annotations` reads) to take durations from; ids may
            differ in the prefix `v_`.
        categories: class names, where the annotation file needs them.
        frame_rate: frames per second of the videos.
        clip_stride: frames from one row to the next. Together with `frame_rate` it gives the duration of
            videos that the annotation file leaves unknown: rows * clip_stride / frame_rate.
        dtype: "float16" or "float32", what the archive stores.
        dimension: D that every file must have; None takes that of the first usable file.
        prefix: removed from file names; a file without it is an error.
        origin: text for the archive, how the features came to be.
        on_error: "stop" at the first bad file, or "skip" bad files and list them in the report.
        progress: show a progress bar.

    Raises:
        UserError: the folder or the annotation file cannot be read, there are no features, a file is bad
            (with "stop") or all are, two files give one id, or `out` cannot be written.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error: expected 'stop' or 'skip', got {on_error!r}")
    bad = _BadFiles(stop=on_error == "stop")
    files, ignored = _feature_files(Path(folder))
    by_id = _by_video_id(files, prefix, bad)
    seconds = _known_durations(durations, categories, by_id)
    without_duration: list[str] = []
    count = rows = 0
    # Closed at once also after an error: the message must not end up on the line of the progress bar.
    with contextlib.closing(_read_videos(by_id, dtype, dimension, bad, progress)) as videos:
        first = next(videos, None)
        if first is None:
            raise UserError(f"{folder}: none of its {len(files)} files is usable; {bad.messages[0]}")
        width = first[1].shape[1]
        with ArchiveWriter(
            out, dimension=width, dtype=dtype, frame_rate=frame_rate, clip_stride=clip_stride, origin=origin
        ) as writer:
            for video_id, features in itertools.chain([first], videos):
                # Without a frame rate this is NaN, without a stride 0: unknown either way.
                duration = seconds.get(video_id) or len(features) * clip_stride / frame_rate or math.nan
                if math.isnan(duration):
                    without_duration.append(video_id)
                writer.add(video_id, features, duration)
                count += 1
                rows += len(features)
    return ImportReport(Path(out), count, rows, width, tuple(without_duration), tuple(bad.messages), ignored)


class _BadFiles:
    """Stops at the first bad file, or collects what was wrong with each."""

    def __init__(self, stop: bool) -> None:
        self._stop = stop
        self.messages: list[str] = []

    def add(self, file: Path, error: UserError) -> None:
        message = f"{file}: {error}"
        if self._stop:
            raise UserError(message) from error
        self.messages.append(message)


def _feature_files(folder: Path) -> tuple[list[Path], int]:
    try:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())
    except OSError as error:
        raise UserError(f"{folder}: cannot read this folder ({error.strerror})") from error
    features = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not features:
        raise UserError(f"{folder}: holds no .npy or .npz files (other files: {len(files)})")
    return features, len(files) - len(features)


def _by_video_id(files: list[Path], prefix: str, bad: _BadFiles) -> dict[str, Path]:
    by_id: dict[str, Path] = {}
    for file in files:
        video_id = file.stem.removeprefix(prefix)
        try:
            if not file.stem.startswith(prefix):
                raise UserError(f"the name does not begin with the prefix {prefix!r}")
            check_video_id(video_id)
        except UserError as error:
            bad.add(file, error)
            continue
        if video_id in by_id:  # leaving one out would be a guess: never skipped
            raise UserError(f"{file}: gives the same video id {video_id!r} as {by_id[video_id].name}")
        by_id[video_id] = file
    return by_id


def _known_durations(path: Path | None, categories: Path | None, video_ids: Iterable[str]) -> dict[str, float]:
    if path is None:
        return {}
    annotated = read_annotations(path, categories).videos
    pairs = match_video_ids(video_ids, annotated)
    known = {video_id: annotated[other].duration for video_id, other in pairs.items()}
    return {video_id: seconds for video_id, seconds in known.items() if not math.isnan(seconds)}


def _read_videos(
    by_id: dict[str, Path], dtype: Precision, dimension: int | None, bad: _BadFiles, progress: bool
) -> Generator[tuple[str, np.ndarray], None, None]:
    origin = "as asked for"
    for video_id, file in tqdm(by_id.items(), desc="import", unit="video", disable=not progress):
        try:
            features = _read_array(file)
            if features.ndim != 2 or 0 in features.shape:
                raise UserError(f"array of shape {features.shape}, expected (rows, dimension)")
            if dimension is not None and features.shape[1] != dimension:
                raise UserError(f"dimension {features.shape[1]}, expected {dimension} {origin}")
            ready = prepare_features(video_id, features, features.shape[1], dtype)
        except UserError as error:
            bad.add(file, error)
            continue
        if dimension is None:
            dimension, origin = ready.shape[1], f"as in {file.name}; give the dimension if that is wrong"
        yield video_id, ready


def _read_array(file: Path) -> np.ndarray:
    try:
        with file.open("rb") as start:
            packed = start.read(4) in _ZIP_MAGIC
        # Mapping fails where the file is shorter than its header says; nothing is allocated for it.
        array = _read_from_npz(file) if packed else np.load(file, mmap_mode="r", allow_pickle=False)
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise all sorts of things on damaged files
        raise UserError(f"not a readable array file ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(array, np.ndarray):
        raise UserError("not an array file")
    return array


def _read_from_npz(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.file_size > max(SMALL_BYTES, MAX_COMPRESSION * file.stat().st_size):
                raise UserError(f"array {member.filename!r} unpacks to {member.file_size:,} bytes, too many")
    with np.load(file, allow_pickle=False) as arrays:
        names = list(arrays)
        chosen = names if len(names) == 1 else [name for name in FEATURE_KEYS if name in names]
        if len(chosen) != 1:
            held = ", ".join(repr(name) for name in names[:8]) or "nothing"
            raise UserError(f"holds {held}; expected one array, or one named 'feats' or 'features'")
        return arrays[chosen[0]]
