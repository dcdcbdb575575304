"""Import of labelled recordings (one npz of stacked time series) as a feature archive with annotations.

The npz holds, beside keys that are not used here:

| key | meaning |
|---|---|
| `x` (N, C), `scale`, `zero` | samples of all recordings stacked in time; real value = `x * scale + zero` |
| `rec_offset` (R + 1) | recording k is `x[rec_offset[k]:rec_offset[k + 1]]` |
| `rec_id`, `subject` (R) | name and subject number of each recording |
| `rate_hz` | samples per second |
| `seg_rec`, `seg_start`, `seg_end`, `seg_class` (S) | recording, start, end (seconds from its start), class |
| `class_names` | names of the classes |

**Features.** Row i of a recording describes the `window` samples centred on samples `i * stride` to
`(i + 1) * stride` by three statistics of each channel: mean, standard deviation, and the change from the
window's first half to its second (difference of the means). Windows that reach beyond the recording repeat
its first or last sample. Rows are then standardised per recording: every column gets mean 0 and variance 1
over the whole recording. That removes what differs between subjects and sensors; it looks at no label, and
it happens before the recording is cut, so that no clip is standardised by what it contains.
"""

import difflib
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ahernet.data.annotations import Annotations, VideoAnnotations, write_annotations
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.zip_guard import check_npz, is_zip
from ahernet.errors import UserError
from ahernet.files import make_folder

Cut = Literal["none", "classes", "groups"]
"""`none`: a recording is a clip. `classes`: recordings are cut where the class changes. `groups`: where a class that is
to be apart follows one that is not, or the other way round."""

MAX_WINDOW = 1_000_000  # samples
VALUES_AT_ONCE = 1 << 24  # of the windows of several rows, which overlap: all of a recording may not fit memory
STATISTICS = 3  # mean, standard deviation, change
SHARE_SEED = 0  # of the random share of recordings for training
SMALLEST_DEVIATION = 1e-6  # of a column's own scale: below it a column counts as constant


@dataclass(frozen=True)
class Recordings:
    """Checked content of a recordings file; segments are rows of `segments` (S, 2) in seconds."""

    samples: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    offsets: np.ndarray
    ids: tuple[str, ...]
    subjects: np.ndarray
    rate: float
    segment_recording: np.ndarray
    segments: np.ndarray
    segment_class: np.ndarray
    class_names: tuple[str, ...]

    def values(self, recording: int) -> np.ndarray:
        """Return one recording's samples (N_k, C) as float32 in their real unit."""
        rows = self.samples[self.offsets[recording] : self.offsets[recording + 1]]
        return np.asarray(rows * self.scale + self.zero, dtype=np.float32)


@dataclass(frozen=True)
class Clip:
    """A part of a recording: rows `first` to `last` (exclusive) and the segments (indices) inside."""

    clip_id: str
    recording: int
    first: int
    last: int
    segments: np.ndarray


@dataclass(frozen=True)
class ImportedRecordings:
    """What an import wrote."""

    archive: Path
    annotations: Path
    clips: int
    training_clips: int
    instances: int
    rows: int
    dimension: int


def import_recordings(
    path: Path,
    archive: Path,
    annotations: Path,
    *,
    window: int = 8,
    stride: int = 4,
    cut: Cut = "classes",
    apart: Collection[str] = (),
    background: Collection[str] = (),
    trim: bool = False,
    training_subjects: str | None = None,
    training_share: float | None = None,
) -> ImportedRecordings:
    """Write the recordings of an npz file as a feature archive and an ActivityNet annotation file.

    Args:
        path: the npz file; its layout and the features are described in this module's docstring.
        archive: feature archive to write, and folders for it.
        annotations: annotation file to write, and folders for it; where it is, the archive is complete.
        window: samples that one row describes, at most those of the longest recording.
        stride: samples from one row to the next, at most as many.
        cut: `none` keeps recordings whole. `classes` cuts midway between the last segment of a run of one
            class and the first segment of the next run; each clip then shows one class. `groups` cuts in the same
            way where classes of `apart` and other classes meet; no clip then shows both. Cuts are between rows: a
            segment may end up to half a stride earlier by it.
        apart: names of the classes that `groups` keeps apart from all others.
        background: names of classes that are no actions: what shows them counts as unlabelled.
        trim: leave out what precedes the first segment of a recording and what follows its last one, those of the
            background included: where all activities are labelled, nobody said what happens there.
        training_subjects: subjects of the subset `training`, as in `1-15,20`; all others form the subset
            `validation`. By default every clip is in `training`.
        training_share: instead: share of the recordings that form the subset `training`, drawn at random, the same
            ones every time. For recordings of one subject.

    Raises:
        UserError: a file that cannot be read or written, keys that are missing or do not fit together,
            recordings to be cut where segments of different classes overlap or nothing is left of one, subjects or
            classes that do not occur, a window or stride beyond every recording, or options that contradict one
            another.
    """
    _check_options(window, stride, cut, apart, training_subjects, training_share)
    everything = read_recordings(path)
    _check_lengths(everything, window, stride, path)
    recordings = without_classes(everything, background, path)
    check_classes(recordings, apart, "apart", path)
    training = _training_recordings(recordings, training_subjects, training_share, path)
    spans = _row_spans(everything, stride, trim, path)
    clips = list(_clips(recordings, spans, stride, cut, frozenset(apart), path))
    dimension = STATISTICS * recordings.samples.shape[1]
    videos: dict[str, VideoAnnotations] = {}
    rows = 0
    make_folder(archive.parent)
    make_folder(annotations.parent)
    with ArchiveWriter(
        archive,
        dimension=dimension,
        dtype="float16",
        frame_rate=recordings.rate,
        clip_stride=stride,
        origin=f"{path.name}: mean, deviation, change of {window} samples, standardised per recording",
    ) as writer:
        features, current = np.zeros((0, dimension), np.float32), -1
        for clip in clips:
            if clip.recording != current:
                values, current = recordings.values(clip.recording), clip.recording
                features = standardise(window_statistics(values, window, stride))
            subset = "training" if training[clip.recording] else "validation"
            video = _annotate(recordings, clip, stride, subset, path)
            videos[clip.clip_id] = video
            writer.add(clip.clip_id, features[clip.first : clip.last], video.duration)
            rows += clip.last - clip.first
    write_annotations(annotations, Annotations(videos, source=path.name))
    return ImportedRecordings(
        archive=archive,
        annotations=annotations,
        clips=len(clips),
        training_clips=int(sum(training[clip.recording] for clip in clips)),
        instances=sum(len(clip.segments) for clip in clips),
        rows=rows,
        dimension=dimension,
    )


def read_recordings(path: Path) -> Recordings:
    """Read and check a recordings file.

    Raises:
        UserError: the file is no npz without pickled objects, or a key is missing, has the wrong shape or
            contradicts another one.
    """
    try:
        if is_zip(path):
            check_npz(path)
        data = np.load(path, allow_pickle=False)
        if not isinstance(data, np.lib.npyio.NpzFile):
            raise UserError("expected an npz file of recordings, got a single array")
        with data:
            arrays = {key: data[key] for key in _KEYS if key in data.files}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, expected an npz file of recordings") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except MemoryError as error:
        raise UserError(
            f"{path}: cannot read (not enough memory); free some, or copy it again if it is damaged"
        ) from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable npz file of plain arrays ({_one_line(error)})") from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise UserError(f"{path}: expected the keys {', '.join(_KEYS)}; missing: {', '.join(missing)}")
    _check_shapes(arrays, path)
    _check_values(arrays, path)
    return Recordings(
        samples=arrays["x"],
        scale=np.asarray(arrays["scale"], np.float64),
        zero=np.asarray(arrays["zero"], np.float64),
        offsets=arrays["rec_offset"].astype(np.int64),
        ids=tuple(arrays["rec_id"].tolist()),
        subjects=arrays["subject"].astype(np.int64),
        rate=float(arrays["rate_hz"]),
        segment_recording=arrays["seg_rec"].astype(np.int64),
        segments=_decimal_seconds(np.stack([arrays["seg_start"], arrays["seg_end"]], axis=1)),
        segment_class=arrays["seg_class"].astype(np.int64),
        class_names=tuple(arrays["class_names"].tolist()),
    )


def without_classes(recordings: Recordings, background: Collection[str], path: Path) -> Recordings:
    """Return the recordings without the segments of some classes, and without the names of these.

    Raises:
        UserError: a class does not occur, or no other one is left.
    """
    check_classes(recordings, background, "background", path)
    kept = [number for number, name in enumerate(recordings.class_names) if name not in background]
    rows = np.isin(recordings.segment_class, kept)
    if not rows.any():
        raise UserError(f"{path}: background: no segment of another class is left, give fewer")
    return replace(
        recordings,
        segment_recording=recordings.segment_recording[rows],
        segments=recordings.segments[rows],
        segment_class=np.searchsorted(kept, recordings.segment_class[rows]),
        class_names=tuple(recordings.class_names[number] for number in kept),
    )


def check_classes(recordings: Recordings, names: Collection[str], argument: str, path: Path) -> None:
    """Refuse names that are none of the classes.

    Raises:
        UserError: there is one; the message names `argument`.
    """
    for name in names:
        if name not in recordings.class_names:
            close = difflib.get_close_matches(name, recordings.class_names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(recordings.class_names):.200}"
            raise UserError(f"{path}: {argument}: class {name!r} does not occur; {hint}")


def window_statistics(values: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Describe `values` (N, C) by rows (ceil(N / stride), 3 C): means, standard deviations, changes.

    Row i stands for the samples `i * stride` to `(i + 1) * stride`; its window is centred on them.
    """
    rows = math.ceil(len(values) / stride)
    before = (window - stride) // 2
    needed = (rows - 1) * stride + window
    first = np.clip(np.arange(needed) - before, 0, len(values) - 1)
    windows = np.lib.stride_tricks.sliding_window_view(values[first], window, axis=0)[::stride]
    at_once = max(VALUES_AT_ONCE // windows[0].size, 1)
    return np.concatenate([_statistics(windows[row : row + at_once]) for row in range(0, rows, at_once)])


def _statistics(windows: np.ndarray) -> np.ndarray:
    """Describe windows (rows, C, W) by rows (rows, 3 C)."""
    half = max(windows.shape[-1] // 2, 1)
    change = windows[..., -half:].mean(axis=-1) - windows[..., :half].mean(axis=-1)
    return np.concatenate([windows.mean(axis=-1), windows.std(axis=-1), change], axis=1)


def standardise(features: np.ndarray) -> np.ndarray:
    """Give each column of `features` (L, D) mean 0 and variance 1; a constant column becomes 0."""
    centred = features - features.mean(axis=0, dtype=np.float64)
    deviation = centred.std(axis=0)
    constant = deviation <= SMALLEST_DEVIATION * np.abs(features).max(axis=0, initial=0.0)
    return np.asarray(centred / np.where(constant, np.inf, deviation), dtype=np.float32)


def parse_subjects(text: str) -> set[int]:
    """Parse subject numbers such as `1-15` or `1-3,7`.

    Raises:
        UserError: anything else, or a range that runs backwards.
    """
    subjects: set[int] = set()
    for part in text.split(","):
        bounds = part.strip().split("-")
        if len(bounds) > 2 or not all(bound.strip().isdecimal() and len(bound) < 10 for bound in bounds):
            raise UserError(f"training_subjects: expected numbers and ranges such as 1-15,20, got {text!r}")
        low, high = int(bounds[0]), int(bounds[-1])
        if high < low or high - low > 100_000:
            raise UserError(f"training_subjects: {part.strip()!r} is no range, expected low to high")
        subjects.update(range(low, high + 1))
    return subjects


_KEYS = (
    "x",
    "scale",
    "zero",
    "rec_offset",
    "rec_id",
    "subject",
    "rate_hz",
    "seg_rec",
    "seg_start",
    "seg_end",
    "seg_class",
    "class_names",
)


def _check_shapes(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Refuse arrays whose shapes or kinds do not fit the layout."""
    recordings = arrays["rec_id"].size
    segments = arrays["seg_rec"].size
    channels = arrays["x"].shape[1] if arrays["x"].ndim == 2 else 0
    if channels == 0:
        raise UserError(f"{path}: x: expected shape (samples, channels), got {arrays['x'].shape}")
    expected = {
        "rec_id": (recordings,),
        "rec_offset": (recordings + 1,),
        "subject": (recordings,),
        "rate_hz": (),
        "class_names": (arrays["class_names"].size,),
        **dict.fromkeys(("seg_rec", "seg_start", "seg_end", "seg_class"), (segments,)),
    }
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise UserError(f"{path}: {key}: expected shape {shape}, got {arrays[key].shape}")
    for key in ("scale", "zero"):
        if arrays[key].shape not in ((), (1,), (channels,)):
            raise UserError(f"{path}: {key}: expected one value or {channels}, got shape {arrays[key].shape}")
    kinds = {"rec_offset": "iu", "subject": "iu", "seg_rec": "iu", "seg_class": "iu"}
    kinds |= {"rec_id": "U", "class_names": "U"}
    for key in _KEYS:
        kind = kinds.get(key, "iuf")
        if arrays[key].dtype.kind not in kind:
            words = {"iu": "integers", "U": "text", "iuf": "numbers"}[kind]
            raise UserError(f"{path}: {key}: expected {words}, got {arrays[key].dtype}")
    if recordings == 0:
        raise UserError(f"{path}: rec_id: there is no recording, expected at least one")


def _check_values(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Refuse values that contradict each other."""
    offsets, ids = arrays["rec_offset"].astype(np.int64), arrays["rec_id"].tolist()
    if offsets[0] != 0 or offsets[-1] != len(arrays["x"]) or (np.diff(offsets) <= 0).any():
        raise UserError(f"{path}: rec_offset: expected to rise from 0 to {len(arrays['x'])} without equal values")
    if len(set(ids)) != len(ids):
        raise UserError(f"{path}: rec_id: the same name occurs twice")
    rate = float(arrays["rate_hz"])
    if not (math.isfinite(rate) and rate > 0):
        raise UserError(f"{path}: rate_hz: expected a positive number, got {rate}")
    for key in ("x", "scale", "zero"):
        if not np.isfinite(arrays[key]).all():
            raise UserError(f"{path}: {key}: there are values that are not finite")
    recording, label = arrays["seg_rec"].astype(np.int64), arrays["seg_class"].astype(np.int64)
    _refuse((recording < 0) | (recording >= len(ids)), path, f"seg_rec: expected 0 to {len(ids) - 1}", recording)
    classes = arrays["class_names"].size
    if not all(name.strip() for name in arrays["class_names"].tolist()):
        raise UserError(f"{path}: class_names: expected a name of every class, one is empty")
    _refuse((label < 0) | (label >= classes), path, f"seg_class: expected 0 to {classes - 1}", label)
    seconds = np.diff(offsets)[recording] / rate
    start, end = arrays["seg_start"].astype(np.float64), arrays["seg_end"].astype(np.float64)
    # half a sample of tolerance: times are rounded to the writer's own grid
    inside = (start >= 0) & (end > start) & (end <= seconds + 0.5 / rate)
    _refuse(~inside, path, "seg_start, seg_end: expected 0 <= start < end <= length of the recording", end)


def _refuse(bad: np.ndarray, path: Path, expectation: str, values: np.ndarray) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(f"{path}: {expectation}; segment {row} has {values[row]:g}")


def _check_options(
    window: int, stride: int, cut: str, apart: Collection[str], subjects: str | None, share: float | None
) -> None:
    if not (1 <= window <= MAX_WINDOW and 1 <= stride <= MAX_WINDOW):
        raise UserError(f"window and stride: expected 1 to {MAX_WINDOW} samples, got {window} and {stride}")
    if cut not in get_args(Cut):
        raise UserError(f"cut: expected {' or '.join(get_args(Cut))}, got {cut!r}")
    if (cut == "groups") != bool(apart):
        raise UserError("apart: expected names of classes with cut groups, and none without")
    if subjects is not None and share is not None:
        raise UserError("training_subjects and training_share: expected one of the two, got both")
    if share is not None and not 0 < share < 1:
        raise UserError(f"training_share: expected a number between 0 and 1, got {share:g}")


def _check_lengths(recordings: Recordings, window: int, stride: int, path: Path) -> None:
    """Refuse rows that would describe the repeated ends of recordings more than any recording."""
    longest = int(np.diff(recordings.offsets).max())
    for name, samples in (("window", window), ("stride", stride)):
        if samples > longest:
            raise UserError(
                f"{path}: {name}: expected at most the {longest:,} samples of the longest recording, got {samples:,}"
            )


def _training_recordings(recordings: Recordings, subjects: str | None, share: float | None, path: Path) -> np.ndarray:
    """Return for each recording whether it belongs to the training subset."""
    if share is not None:
        count = len(recordings.ids)
        order = np.random.default_rng(SHARE_SEED).permutation(count)
        return np.asarray(np.argsort(order) < round(share * count))
    if subjects is None:
        return np.ones(len(recordings.ids), dtype=bool)
    training = np.isin(recordings.subjects, sorted(parse_subjects(subjects)))
    if not training.any():
        there = ", ".join(str(subject) for subject in np.unique(recordings.subjects))
        raise UserError(f"training_subjects: none of {subjects!r} is in {path}, which has {there}")
    return training


def _row_spans(recordings: Recordings, stride: int, trim: bool, path: Path) -> list[tuple[int, int]]:
    """Return of each recording the first row and the last one (exclusive) that are kept."""
    spans = []
    for recording, recording_id in enumerate(recordings.ids):
        length = int(recordings.offsets[recording + 1] - recordings.offsets[recording])
        first, last = 0, math.ceil(length / stride)
        if trim:
            segments = recordings.segments[recordings.segment_recording == recording]
            if len(segments) == 0:
                raise UserError(
                    f"{path}: recording {recording_id!r} has no segment, so nothing to trim it to; leave out trim"
                )
            rows_per_second = recordings.rate / stride
            first = math.floor(segments[:, 0].min() * rows_per_second)
            last = min(last, math.ceil(segments[:, 1].max() * rows_per_second))
        spans.append((first, last))
    return spans


def _clips(
    recordings: Recordings,
    spans: Sequence[tuple[int, int]],
    stride: int,
    cut: Cut,
    apart: frozenset[str],
    path: Path,
) -> Iterator[Clip]:
    """Yield the clips of all recordings in order, each within its span of rows, with the segments of each."""
    names: dict[str, int] = {}
    kinds = _kinds(recordings.class_names, apart)
    for recording, recording_id in enumerate(recordings.ids):
        start, end = spans[recording]
        inside = np.flatnonzero(recordings.segment_recording == recording)
        inside = inside[np.argsort(recordings.segments[inside, 0], kind="stable")]
        if cut == "none":
            yield Clip(recording_id, recording, start, end, inside)
            continue
        if len(inside) == 0:
            raise UserError(
                f"{path}: recording {recording_id!r} has no segment, so no class to cut it by; use another cut"
            )
        kind = [kinds[label] for label in recordings.segment_class[inside]]
        changes = [row for row in range(1, len(kind)) if kind[row] != kind[row - 1]]
        runs = np.split(inside, changes)
        edges = [
            start,
            *(_cut_row(recordings, a, b, stride, path) for a, b in pairwise(runs)),
            end,
        ]
        for run, (first, last) in zip(runs, pairwise(edges), strict=True):
            if last <= first:
                raise UserError(
                    f"{path}: recording {recording_id!r}: class runs are closer than the stride of {stride}, "
                    "use a smaller one"
                )
            name = f"{recording_id}_{kinds[recordings.segment_class[run[0]]]}"
            names[name] = names.get(name, 0) + 1
            yield Clip(name if names[name] == 1 else f"{name}_{names[name]}", recording, first, last, run)


def _kinds(class_names: Sequence[str], apart: frozenset[str]) -> list[str]:
    """Return for each class the name of what recordings are not cut within: itself, or its group."""
    return ["apart" if name in apart else "others" for name in class_names] if apart else list(class_names)


def _cut_row(recordings: Recordings, run: np.ndarray, following: np.ndarray, stride: int, path: Path) -> int:
    """Return the row boundary closest to the middle between two runs of segments."""
    end = float(recordings.segments[run, 1].max())
    start = float(recordings.segments[following, 0].min())
    if start < end:
        recording_id = recordings.ids[recordings.segment_recording[run[0]]]
        raise UserError(
            f"{path}: recording {recording_id!r}: segments of different classes overlap at {start:g} s, "
            "so it cannot be cut by class; use another cut"
        )
    return round((start + end) / 2 * recordings.rate / stride)


def _annotate(recordings: Recordings, clip: Clip, stride: int, subset: str, path: Path) -> VideoAnnotations:
    """Return a clip's annotations in seconds from its own start, limited to its length."""
    seconds_per_row = stride / recordings.rate
    length = int(recordings.offsets[clip.recording + 1] - recordings.offsets[clip.recording])
    start = clip.first * seconds_per_row
    duration = min(clip.last * seconds_per_row, length / recordings.rate) - start
    whole = recordings.segments[clip.segments]
    segments = np.clip(whole - start, 0.0, duration)
    lost = np.flatnonzero((segments[:, 1] <= segments[:, 0]) & (whole[:, 1] > whole[:, 0]))
    if len(lost):
        first, last = whole[lost[0]]
        raise UserError(
            f"{path}: recording {recordings.ids[clip.recording]!r}: no row is left of the segment from {first:g} to "
            f"{last:g} s with a stride of {stride}, use a smaller one"
        )
    labels = tuple(recordings.class_names[label] for label in recordings.segment_class[clip.segments])
    return VideoAnnotations(clip.clip_id, subset, duration, segments, labels)


def _decimal_seconds(segments: np.ndarray) -> np.ndarray:
    """Return float64 seconds; float32 input is rounded to the 10 µs it can hold, so 4.4 stays 4.4."""
    return np.round(segments.astype(np.float64), 5)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
