"""Temporal annotations: which actions each video holds, and when.

Read from the three kinds of file in use, told apart by their content, each plain or gzip-compressed:

* ActivityNet JSON: `{"database": {id: {"subset", "duration", "annotations": [{"segment", "label"}]}}}`, also
  the form in which THUMOS14 is commonly given.
* Flat JSON: `{id: {"duration_second", "annotations": [{"segment", "label" or "class"}], "subset"}}`, where
  `subset` may be absent and `label` may be a number that `class` names.
* Text: `id<TAB>start<TAB>end<TAB>class number`, one instance a line, and a file of class names.

Faults that the published files have (zero lengths, ends after the video, several classes in a video, repeated
instances, no durations) are accepted; `find_annotation_problems` describes them. Anything else is an error.
"""

import csv
import gzip
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ahernet.data.bounded_read import is_gzip, most_unpacked, parse_json, read_up_to
from ahernet.data.class_names import look_alikes
from ahernet.errors import UserError
from ahernet.files import replace_when_complete

MAX_BYTES = 1 << 30  # of text after decompression; the largest published file has 20 MB
END_TOLERANCE = 0.1  # seconds a segment may end after its video: rounding of the published numbers
PREFIX = "v_"


@dataclass(frozen=True, eq=False)
class VideoAnnotations:
    """The instances of one video.

    Attributes:
        video_id: as in the file.
        subset: as in the file, "" where it states none.
        duration: seconds, NaN where unknown.
        segments: (G, 2) float64 seconds, start and end, start <= end.
        labels: G class names.
    """

    video_id: str
    subset: str
    duration: float
    segments: np.ndarray
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.segments.shape != (len(self.labels), 2):
            raise ValueError(f"segments: shape {self.segments.shape}, expected ({len(self.labels)}, 2)")


@dataclass(frozen=True, eq=False)
class Annotations:
    """The annotations of many videos.

    Attributes:
        videos: by id, in file order.
        source: where they come from, for messages.
    """

    videos: dict[str, VideoAnnotations]
    source: str

    def select(self, subset: str | None) -> "Annotations":
        """Return the videos of one subset, upper and lower case alike; None returns all.

        Raises:
            UserError: no video is of this subset.
        """
        if subset is None:
            return self
        wanted = subset.casefold()
        videos = {key: video for key, video in self.videos.items() if video.subset.casefold() == wanted}
        if not videos:
            there = ", ".join(sorted({video.subset for video in self.videos.values()} - {""})) or "no subsets"
            raise UserError(f"{self.source}: no video of subset {subset!r}, it has {there}")
        return Annotations(videos, self.source)

    def of_classes(self, classes: Iterable[str]) -> "Annotations":
        """Return the instances of some classes, and the videos that have any.

        Raises:
            UserError: there is none.
        """
        wanted = frozenset(classes)
        videos: dict[str, VideoAnnotations] = {}
        for key, video in self.videos.items():
            rows = [row for row, label in enumerate(video.labels) if label in wanted]
            if rows:
                labels = tuple(video.labels[row] for row in rows)
                videos[key] = replace(video, segments=video.segments[rows], labels=labels)
        if not videos:
            raise UserError(f"{self.source}: no video has an instance of {', '.join(sorted(wanted)):.200}; give others")
        return Annotations(videos, self.source)

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes that occur, sorted."""
        return tuple(sorted({label for video in self.videos.values() for label in video.labels}))


@dataclass(frozen=True)
class Problem:
    """Something noteworthy about one video: `kind` groups alike problems, `detail` gives the numbers."""

    kind: str
    video_id: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: video {self.video_id!r}" + (f", {self.detail}" if self.detail else "")


def read_annotations(path: Path, categories: Path | None = None, subsets: Path | None = None) -> Annotations:
    """Read an annotation file of any known kind.

    Args:
        path: the file, plain or gzip-compressed.
        categories: class names, one a line, for files that give class numbers (from 0).
        subsets: CSV with columns `video` and `subset`, plain or gzip-compressed, for files that state no
            subset; it must list every video and wins over what the annotation file states.

    Raises:
        UserError: a file is missing, unreadable or malformed; the message names file and video.
    """
    path = Path(path)
    names = None if categories is None else read_class_names(Path(categories))
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "["):
        videos = _from_json(path, text, names)
    elif not text.strip():
        raise UserError(f"{path}: is empty, expected annotations")
    elif names is None:
        raise UserError(
            f"{path}: not JSON; if it is text of id, start, end, class number, give a file of class names too"
        )
    else:
        videos = _from_table(path, text, names)
    if not videos:
        raise UserError(f"{path}: holds no video, expected at least one")
    if subsets is not None:
        videos = _with_subsets(path, videos, Path(subsets))
    return Annotations(videos, str(path))


def write_annotations(path: Path, annotations: Annotations) -> None:
    """Write ActivityNet JSON, gzip-compressed where the name ends in `.gz`.

    Unknown durations and subsets are left out. Numbers are written exactly.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    database: dict[str, Any] = {}
    for key, video in annotations.videos.items():
        entry: dict[str, Any] = {"subset": video.subset} if video.subset else {}
        if not math.isnan(video.duration):
            entry["duration"] = float(video.duration)
        entry["annotations"] = [
            {"segment": segment, "label": label}
            for segment, label in zip(video.segments.tolist(), video.labels, strict=True)
        ]
        database[key] = entry
    # The official evaluator insists on the three keys.
    document = {"version": "ahernet 1", "taxonomy": [], "database": database}
    content = json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8")
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def match_video_ids(wanted: Iterable[str], available: Iterable[str]) -> dict[str, str]:
    """Pair the video ids of two files, which may differ in the prefix `v_`.

    Equal ids pair first. An id left over pairs with the same id without, else with, `v_` if that one is left
    over too. (YouTube ids may begin with `v_` themselves, so neither direction can be ruled out.)

    Args:
        wanted: ids of one file.
        available: ids of the other file.

    Returns:
        wanted id -> available id, in the order of `wanted`; ids without a partner are absent, no available id
        occurs twice.
    """
    wanted = list(dict.fromkeys(wanted))
    free = set(available)
    exact = free.intersection(wanted)
    free -= exact
    pairs: dict[str, str] = {}
    for video_id in wanted:
        candidates = [video_id] if video_id in exact else []
        if not candidates:
            without = [video_id.removeprefix(PREFIX)] if video_id.startswith(PREFIX) else []
            candidates = [other for other in (*without, PREFIX + video_id) if other in free]
        if candidates:
            pairs[video_id] = candidates[0]
            free.discard(candidates[0])
    return pairs


def find_annotation_problems(annotations: Annotations) -> list[Problem]:
    """Find what is accepted but worth knowing, in the order of the videos.

    Zero-length segments, segments that end more than `END_TOLERANCE` seconds after their video, repeated
    instances, several classes in one video, unknown durations; last, class names that look alike.
    """
    problems: list[Problem] = []
    for video in annotations.videos.values():
        instances = [
            (start, end, label) for (start, end), label in zip(video.segments.tolist(), video.labels, strict=True)
        ]
        if math.isnan(video.duration):
            problems.append(Problem("duration unknown", video.video_id))
        for start, end, label in instances:
            if start == end:
                problems.append(Problem("segment of zero length", video.video_id, f"{label} at {start:g} s"))
            if end > video.duration + END_TOLERANCE:
                detail = f"{label} ends at {end:.2f} s of {video.duration:.2f} s"
                problems.append(Problem("segment ends after the video", video.video_id, detail))
        for (start, end, label), count in Counter(instances).items():
            if count > 1:
                detail = f"{label} {start:g} to {end:g} s {count} times"
                problems.append(Problem("instance repeated", video.video_id, detail))
        if len(set(video.labels)) > 1:
            detail = ", ".join(sorted(set(video.labels)))
            problems.append(Problem("more than one class", video.video_id, detail))
    shown_by = {label: video.video_id for video in annotations.videos.values() for label in video.labels}
    for one, other in look_alikes(shown_by):
        problems.append(Problem("class names that look alike", shown_by[other], f"{one!r} and {other!r}"))
    return problems


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a plain or gzip-compressed file."""
    try:
        compressed = is_gzip(path)
        with path.open("rb") as file:
            stream = gzip.GzipFile(fileobj=file) if compressed else file
            most = min(MAX_BYTES, most_unpacked(path)) if compressed else MAX_BYTES
            content = read_up_to(stream.read, most + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot read ({reason})") from error
    if len(content) > most:
        raise UserError(f"{path}: holds more than {most >> 20} MiB of text, no annotation file of its size does")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error


def read_class_names(path: Path) -> list[str]:
    """Read class names, one a line.

    Raises:
        UserError: the file is missing or unreadable, a line is empty or a name occurs twice.
    """
    names = [line.strip() for line in read_text(path).split("\n")]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        raise UserError(f"{path}: expected one class name a line without empty lines")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: class name {repeated[0]!r} occurs more than once")
    return names


def _from_json(path: Path, text: str, names: list[str] | None) -> dict[str, VideoAnnotations]:
    try:
        document = parse_json(text)
    except RecursionError as error:
        raise UserError(f"{path}: JSON nested too deeply for annotations") from error
    except ValueError as error:  # also a key twice, and integers of thousands of digits
        raise UserError(f"{path}: invalid JSON ({error})") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: a JSON list, expected an object of videos")
    if "results" in document:
        raise UserError(f"{path}: a file of detections (it has 'results'), expected annotations")
    entries = document.get("database", document)
    if not isinstance(entries, dict):
        raise UserError(f"{path}: 'database' is {_kind(entries)}, expected an object of videos")
    return {key: _video_from_json(path, key, entry, names) for key, entry in entries.items()}


def _video_from_json(path: Path, key: str, entry: object, names: list[str] | None) -> VideoAnnotations:
    def fail(what: str) -> NoReturn:
        raise UserError(f"{path}: video {key!r}: {what}")

    if not _is_text(key):
        fail("the id is empty or not valid Unicode")
    if not isinstance(entry, dict):
        fail(f"is {_kind(entry)}, expected an object with 'annotations'")
    instances = entry.get("annotations")
    if not isinstance(instances, list):
        fail(f"'annotations' is {_kind(instances)}, expected a list")
    subset = entry.get("subset", "")
    if not isinstance(subset, str):
        fail(f"'subset' is {_kind(subset)}, expected text")
    duration = entry.get("duration", entry.get("duration_second"))
    seconds = 0.0 if duration is None else _number(duration)
    if seconds is None:
        fail(f"duration is {_shown(duration)}, expected seconds")
    segments: list[tuple[float, float]] = []
    labels: list[str] = []
    for number, instance in enumerate(instances):
        if not isinstance(instance, dict):
            fail(f"annotation {number} is {_kind(instance)}, expected an object")
        segment = instance.get("segment")
        ends = [_number(value) for value in segment] if isinstance(segment, list) else []
        if len(ends) != 2 or ends[0] is None or ends[1] is None or ends[1] < ends[0]:
            fail(f"segment {number} is {_shown(segment)}, expected [start, end] in seconds, start <= end")
        label = _class_name(instance, names)
        if label is None:
            fail(
                f"annotation {number} has label {_shown(instance.get('label'))}, expected a class name "
                "or a number of the file of class names"
            )
        segments.append((ends[0], ends[1]))
        labels.append(label)
    return VideoAnnotations(key, subset, seconds or math.nan, _segments(segments), tuple(labels))


def _class_name(instance: dict[str, Any], names: list[str] | None) -> str | None:
    # THUMOS14 files give the name as `class` and a number as `label`.
    label = instance.get("class", instance.get("label"))
    if isinstance(label, int) and not isinstance(label, bool) and names is not None:
        return names[label] if 0 <= label < len(names) else None
    return label if isinstance(label, str) and _is_text(label) else None


def _from_table(path: Path, text: str, names: list[str]) -> dict[str, VideoAnnotations]:
    instances: dict[str, list[tuple[float, float, str]]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        columns = line.rstrip("\r").split("\t")
        if len(columns) != 4 or not columns[0]:
            raise UserError(f"{path}: line {number}: expected id, start, end, class number between tabs")
        video_id, *numbers = columns
        start, end, index = (_number_from_text(column) for column in numbers)
        if start is None or end is None or end < start:
            raise UserError(
                f"{path}: line {number}: video {video_id!r} has segment {_shown(numbers[:2])}, "
                "expected seconds, start <= end"
            )
        if index is None or index >= len(names) or index != int(index):
            raise UserError(
                f"{path}: line {number}: video {video_id!r} has class {_shown(numbers[2])}, "
                f"expected a number from 0 to {len(names) - 1}"
            )
        instances.setdefault(video_id, []).append((start, end, names[int(index)]))
    return {
        video_id: VideoAnnotations(
            video_id, "", math.nan, _segments([row[:2] for row in rows]), tuple(row[2] for row in rows)
        )
        for video_id, rows in instances.items()
    }


def _with_subsets(path: Path, videos: dict[str, VideoAnnotations], subsets: Path) -> dict[str, VideoAnnotations]:
    table = csv.DictReader(io.StringIO(read_text(subsets)))
    try:
        rows = list(table)
    except csv.Error as error:
        raise UserError(f"{subsets}: invalid CSV ({error})") from error
    if not {"video", "subset"} <= set(table.fieldnames or ()):
        raise UserError(f"{subsets}: expected a CSV with the columns 'video' and 'subset'")
    listed: dict[str, str] = {}
    for row in rows:
        video_id, subset = row["video"], row["subset"]
        if not video_id or not subset:
            raise UserError(f"{subsets}: video {video_id!r} has subset {subset!r}, expected two names")
        if listed.setdefault(video_id, subset) != subset:
            raise UserError(f"{subsets}: video {video_id!r} is in two subsets, expected one")
    pairs = match_video_ids(videos, listed)
    missing = [key for key in videos if key not in pairs]
    if missing:
        raise UserError(
            f"{subsets}: lists no subset for {len(missing)} of the {len(videos)} videos of {path}, "
            f"for example {missing[0]!r}; expected one for each"
        )
    return {key: replace(video, subset=listed[pairs[key]]) for key, video in videos.items()}


def _segments(rows: list[tuple[float, float]]) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _number(value: object) -> float | None:
    """Return a finite number >= 0 as float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 <= number < math.inf else None


def _number_from_text(text: str) -> float | None:
    try:
        return _number(float(text))
    except ValueError:
        return None


def _is_text(value: str) -> bool:
    # JSON can spell halves of surrogate pairs, which no file or archive can hold.
    return bool(value) and not any("\ud800" <= character <= "\udfff" for character in value)


def _kind(value: object) -> str:
    names = {type(None): "absent", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
