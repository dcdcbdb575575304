"""Detections as parallel columns, and their files: the ActivityNet result JSON and a plain CSV.

Numbers are written so that reading gives back the same float64, so a file scores exactly like the columns
it was written from. Rows of one video keep their order in both formats; the JSON groups rows by video.
"""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from ahernet.data.bounded_read import is_gzip, most_unpacked, parse_json, read_up_to
from ahernet.errors import UserError
from ahernet.files import replace_when_complete

RESULT_VERSION = "VERSION 1.3"
MAX_CHARACTERS = 1 << 31  # of one JSON after decompression: about 16 million detections
SUFFIXES = (".json", ".csv", ".json.gz", ".csv.gz")
CSV_COLUMNS = ("video_id", "start", "end", "label", "score")

# ("id", "label", start, end, score): one row as a reader yields it, before the columns are made.
Row = tuple[str, str, float, float, float]


@dataclass(frozen=True)
class Detections:
    """Detections of many videos, one row each, in file order.

    Attributes:
        video_ids: every video that was processed, also those without a detection.
        classes: the class names that `label` refers to.
        video: (N,) int64, row of `video_ids`.
        label: (N,) int64, row of `classes`.
        segments: (N, 2) float64, start and end in seconds, end >= start.
        scores: (N,) float64.

    Raises:
        ValueError: a column of wrong shape, dtype or range, or a name that occurs twice; it names the column.
    """

    video_ids: tuple[str, ...]
    classes: tuple[str, ...]
    video: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    segments: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, names in (("video_ids", self.video_ids), ("classes", self.classes)):
            if len(set(names)) != len(names):
                raise ValueError(f"{name}: a name occurs twice")
        rows = len(self.scores)
        _check_column("video", self.video, (rows,), np.int64)
        _check_column("label", self.label, (rows,), np.int64)
        _check_column("segments", self.segments, (rows, 2), np.float64)
        _check_column("scores", self.scores, (rows,), np.float64)
        _check_range("video", self.video, len(self.video_ids))
        _check_range("label", self.label, len(self.classes))
        for name, numbers in (("segments", self.segments), ("scores", self.scores)):
            if not np.isfinite(numbers).all():
                raise ValueError(f"{name}: expected finite numbers")
        if (self.segments[:, 1] < self.segments[:, 0]).any():
            raise ValueError("segments: expected every end at or after its start")

    def __len__(self) -> int:
        return len(self.scores)

    def of_classes(self, classes: Sequence[str]) -> "Detections":
        """Return the detections of some classes, all of which `self.classes` has; no video is left out."""
        numbers = np.full(len(self.classes), -1)
        numbers[[self.classes.index(name) for name in classes]] = np.arange(len(classes))
        label = numbers[self.label]
        rows = label >= 0
        return replace(self.of_rows(rows), classes=tuple(classes), label=label[rows])

    def of_rows(self, rows: np.ndarray) -> "Detections":
        """Return some detections, chosen by index or as true and false; no video or class is left out."""
        return replace(
            self,
            video=self.video[rows],
            label=self.label[rows],
            segments=self.segments[rows],
            scores=self.scores[rows],
        )


def read_detections(path: Path) -> Detections:
    """Read an ActivityNet result JSON (`.json`) or a CSV (`.csv`), either also as `.gz`.

    Video ids are kept as the file spells them. A CSV cannot name a video without detections.

    Raises:
        UserError: unknown suffix, unreadable or malformed file; it names the file and the video id.
    """
    path = Path(path)
    if _format(path) == "csv":
        return _columns(path, (), _csv_rows(path))
    results = _json_results(path)
    return _columns(path, results, _json_rows(path, results))


def write_detections(path: Path, detections: Detections, *, as_spelled: bool = False) -> None:
    """Write an ActivityNet result JSON (`.json`) or a CSV (`.csv`), either also as `.gz`.

    Ids lose their `v_` prefix, as the ActivityNet servers expect, unless two ids would become one, or `as_spelled`. In
    the JSON a video without detections is an empty list; the CSV leaves it out.

    Raises:
        UserError: unknown suffix, or the file cannot be written.
    """
    path = Path(path)
    write = _write_csv if _format(path) == "csv" else _write_json
    ids = list(detections.video_ids) if as_spelled else _written_ids(detections.video_ids)
    with replace_when_complete(path) as temporary, temporary.open("wb") as raw:
        if path.suffix.lower() == ".gz":
            with (
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
                io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
            ):
                write(file, detections, ids)
        else:
            with io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
                write(file, detections, ids)


def _format(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    for suffix in ("json", "csv"):
        if name.endswith(f".{suffix}"):
            return suffix
    raise UserError(f"{path}: unknown detection format, expected .json, .csv, .json.gz or .csv.gz")


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Open `path`, unpacked if it is packed; what goes wrong while reading it becomes a UserError."""
    try:
        with (gzip.open if is_gzip(path) else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a complete gzip file ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start})") from error


def _json_results(path: Path) -> dict[str, Any]:
    with _open_text(path) as file:
        try:
            most = min(MAX_CHARACTERS, most_unpacked(path)) if is_gzip(path) else MAX_CHARACTERS
            text = read_up_to(file.read, most + 1)
            if len(text) > most:
                raise UserError(f"{path}: more than {most:,} characters, too many for a JSON file of its size")
            content = parse_json(text)
        except RecursionError as error:
            raise UserError(f"{path}: not a result file (nested too deeply)") from error
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise UserError(f'{path}: expected an ActivityNet result file, {{"results": {{id: [...]}}}}')
    return results


def _json_rows(path: Path, results: dict[str, Any]) -> Iterator[Row]:
    for video_id, found in results.items():
        place = f"{path}: video {video_id!r}"
        if not isinstance(found, list):
            raise UserError(f"{place}: expected a list of detections, got {type(found).__name__}")
        for index, row in enumerate(found):
            try:
                label, score, (start, end) = row["label"], row["score"], row["segment"]
            except (TypeError, KeyError, ValueError, IndexError) as error:
                raise UserError(
                    f'{place}: detection {index}: expected {{"label", "score", "segment": [start, end]}}'
                ) from error
            if not isinstance(label, str):
                raise UserError(f"{place}: detection {index}: label: expected text, got {label!r:.40}")
            for name, number in (("score", score), ("start", start), ("end", end)):
                if type(number) is not float and type(number) is not int:
                    raise UserError(f"{place}: detection {index}: {name}: expected a number, got {number!r:.40}")
            yield _checked_row(f"{place}: detection {index}", video_id, label, start, end, score)


def _csv_rows(path: Path) -> Iterator[Row]:
    with _open_text(path) as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if sorted(header) != sorted(CSV_COLUMNS):
                raise UserError(f"{path}: expected the header {','.join(CSV_COLUMNS)}, got {','.join(header)!r:.80}")
            order = [header.index(name) for name in CSV_COLUMNS]
            for cells in reader:
                if not cells:
                    continue
                place = f"{path}: line {reader.line_num}"
                if len(cells) != len(header):
                    raise UserError(f"{place}: expected {len(header)} values, got {len(cells)}")
                video_id, start, end, label, score = (cells[column] for column in order)
                place = f"{place}: video {video_id!r:.80}"
                try:
                    numbers = float(start), float(end), float(score)
                except ValueError as error:
                    raise UserError(f"{place}: start, end and score: expected numbers ({error})") from error
                yield _checked_row(place, video_id, label, *numbers)
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num}: not valid CSV ({error})") from error


def _checked_row(place: str, video_id: str, label: str, start: float, end: float, score: float) -> Row:
    try:
        start, end, score = float(start), float(end), float(score)
    except OverflowError:  # a whole number beyond float64
        start = math.inf
    if not (math.isfinite(start) and math.isfinite(end) and math.isfinite(score)):
        raise UserError(f"{place}: start, end and score: expected finite numbers")
    if end < start:
        raise UserError(f"{place}: the segment ends before it starts ({start:g} to {end:g}), expected start <= end")
    return video_id, label, start, end, score


def _columns(path: Path, video_ids: Iterable[str], rows: Iterator[Row]) -> Detections:
    videos = {video_id: index for index, video_id in enumerate(video_ids)}
    classes: dict[str, int] = {}
    video: list[int] = []
    label: list[int] = []
    segments: list[tuple[float, float]] = []
    scores: list[float] = []
    for video_id, name, start, end, score in rows:
        video.append(videos.setdefault(video_id, len(videos)))
        label.append(classes.setdefault(name, len(classes)))
        segments.append((start, end))
        scores.append(score)
    for text in (*videos, *classes):
        if not text or not _is_unicode(text):
            raise UserError(f"{path}: {text!r:.80}: expected a video id or label of valid, non-empty text")
    return Detections(
        video_ids=tuple(videos),
        classes=tuple(classes),
        video=np.array(video, np.int64),
        label=np.array(label, np.int64),
        segments=np.array(segments, np.float64).reshape(-1, 2),
        scores=np.array(scores, np.float64),
    )


def _is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8; JSON can smuggle in half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write_json(file: TextIO, detections: Detections, ids: Sequence[str]) -> None:
    file.write(f'{{"version": {json.dumps(RESULT_VERSION)}, "results": {{')
    separator = "\n"
    for video_id, rows in _rows_by_video(detections, ids):
        found = [{"label": label, "score": score, "segment": [start, end]} for start, end, label, score in rows]
        file.write(f"{separator}{json.dumps(video_id)}: {json.dumps(found)}")
        separator = ",\n"
    file.write('\n}, "external_data": {}}\n')


def _write_csv(file: TextIO, detections: Detections, ids: Sequence[str]) -> None:
    file.write(",".join(CSV_COLUMNS) + "\n")
    # Text is always quoted: the writer would not quote a lone carriage return, and the reader ends a row there.
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for video_id, rows in _rows_by_video(detections, ids):
        writer.writerows((video_id, *row) for row in rows)


def _rows_by_video(
    detections: Detections, ids: Sequence[str]
) -> Iterator[tuple[str, list[tuple[float, float, str, float]]]]:
    """Yield the id as it is written and the rows (start, end, label, score) of each video."""
    order = np.argsort(detections.video, kind="stable")
    ends = np.cumsum(np.bincount(detections.video, minlength=len(detections.video_ids)))
    start = 0
    for video_id, end in zip(ids, ends.tolist(), strict=True):
        rows = order[start:end]
        start = end
        segments = detections.segments[rows].tolist()
        labels = detections.label[rows].tolist()
        scores = detections.scores[rows].tolist()
        yield (
            video_id,
            [
                (*segment, detections.classes[label], score)
                for segment, label, score in zip(segments, labels, scores, strict=True)
            ],
        )


def _written_ids(video_ids: Sequence[str]) -> list[str]:
    """Return the ids without `v_`, but as they are where that would make two videos one or leave nothing."""
    taken = set(video_ids)
    short = (video_id.removeprefix("v_") for video_id in video_ids)
    return [name if name and name not in taken else video_id for name, video_id in zip(short, video_ids, strict=True)]


def _check_column(name: str, column: npt.NDArray[Any], shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    if column.shape != shape or column.dtype != dtype:
        raise ValueError(
            f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {column.dtype} of shape {column.shape}"
        )


def _check_range(name: str, column: npt.NDArray[np.int64], limit: int) -> None:
    if column.size and not (column.min() >= 0 and column.max() < limit):
        raise ValueError(f"{name}: expected rows from 0 to {limit - 1}, got {column.min()} to {column.max()}")
