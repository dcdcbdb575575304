"""Files of the labels of moments: which class each trimmed clip of an archive shows."""

import csv
import gzip
import io
import re
from collections.abc import Mapping
from pathlib import Path

from ahernet.data.annotations import Annotations, read_annotations, read_text
from ahernet.errors import UserError
from ahernet.files import replace_when_complete

ID_COLUMNS = ("video", "id", "youtube_id")
TIME_COLUMNS = ("time_start", "time_end")

CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, halves of surrogate pairs


def read_moment_labels(path: Path) -> dict[str, str]:
    """Read the class of every moment; the content of the file tells its kind, each plain or gzip-compressed.

    * A table with a header, separated by tabs if the header has one, else by commas. One of the columns `video`,
      `id` and `youtube_id` gives the moment, the column `label` its class; others are ignored, but for
      `time_start` and `time_end`: where they are (Kinetics publishes `label,youtube_id,time_start,time_end,split`,
      in which an id may occur at several times) the moment is `<id>_<start>_<end>`, whole seconds of at least six
      digits, as clips of Kinetics are named: `-0B32jodoPo_000031_000041`.
    * JSON of annotations, as `read_annotations` takes it. The label of a video is that of all its annotations;
      segments are ignored. A video without annotations has no label and is left out.

    Returns:
        label by moment id, in file order.

    Raises:
        UserError: the file is missing, no such file, too large or empty; a moment has no label, two, or (as may its
            id) one with control characters. The message names the file, and the line or the moment.
    """
    path = Path(path)
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "["):
        labels = _labels_of_annotations(read_annotations(path))
    elif text.strip():
        labels = _labels_of_table(path, text)
    else:
        raise UserError(f"{path}: empty, expected the labels of moments")
    if not labels:
        raise UserError(f"{path}: holds no label, expected at least one")
    return labels


def write_moment_labels(path: Path, labels: Mapping[str, str]) -> None:
    """Write a table with the columns `video` and `label`, gzip-compressed where the name ends in `.gz`.

    Raises:
        UserError: a name is empty or holds a control character, or the file cannot be written.
    """
    path = Path(path)
    content = encode_labels(path, labels)
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(content)


def encode_labels(path: Path, labels: Mapping[str, str]) -> bytes:
    """Return what `write_moment_labels` writes.

    Raises:
        UserError: as there.
    """
    for moment_id, label in labels.items():
        _check_names(str(path), moment_id, label)
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("video", "label"))
    writer.writerows(labels.items())
    content = file.getvalue().encode("utf-8")
    return gzip.compress(content, mtime=0) if path.suffix == ".gz" else content


def _labels_of_annotations(annotations: Annotations) -> dict[str, str]:
    labels: dict[str, str] = {}
    for video_id, video in annotations.videos.items():
        if len(set(video.labels)) > 1:
            found = ", ".join(map(repr, sorted(set(video.labels))))
            raise UserError(
                f"{annotations.source}: video {video_id!r:.80} is annotated as {found:.200}; expected one class"
            )
        if video.labels:
            _check_names(annotations.source, video_id, video.labels[0])
            labels[video_id] = video.labels[0]
    return labels


def _labels_of_table(path: Path, text: str) -> dict[str, str]:
    file = io.StringIO(text, newline="")
    delimiter = "\t" if "\t" in file.readline() else ","
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    labels: dict[str, str] = {}
    try:
        header = [name.strip() for name in next(reader)]
        id_column, label_column, *time_columns = _find_columns(path, header)
        for cells in reader:
            if not cells:
                continue
            place = f"{path}: line {reader.line_num}"
            if len(cells) != len(header):
                raise UserError(f"{place}: expected {len(header)} values, got {len(cells)}")
            moment_id, label = cells[id_column], cells[label_column]
            _check_names(place, moment_id, label)
            if time_columns:
                moment_id += _clip_suffix(place, *(cells[column] for column in time_columns))
            if labels.setdefault(moment_id, label) != label:
                raise UserError(
                    f"{place}: {moment_id!r:.80} has label {label!r}, before it had {labels[moment_id]!r}; expected one"
                )
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not valid CSV ({error})") from error
    return labels


def _find_columns(path: Path, header: list[str]) -> list[int]:
    """Return the columns of the id and the label, and of start and end if there are such."""
    ids = [name for name in header if name in ID_COLUMNS]
    times = [name for name in header if name in TIME_COLUMNS]
    if len(ids) != 1 or header.count("label") != 1 or sorted(times) not in ([], sorted(TIME_COLUMNS)):
        raise UserError(
            f"{path}: line 1: expected a header with the columns 'label' and one of {', '.join(map(repr, ID_COLUMNS))} "
            f"('time_start' and 'time_end' both or neither), got {','.join(header)!r:.80}"
        )
    return [header.index(name) for name in (ids[0], "label", *(TIME_COLUMNS if times else ()))]


def _clip_suffix(place: str, start: str, end: str) -> str:
    try:
        times = [float(start), float(end)]
    except ValueError:
        times = []
    if not (times and all(time.is_integer() for time in times) and 0 <= times[0] < times[1]):
        raise UserError(f"{place}: time from {start!r:.20} to {end!r:.20}, expected whole seconds, start before end")
    return "".join(f"_{int(time):06d}" for time in times)


def _check_names(place: str, moment_id: str, label: str) -> None:
    if not moment_id.strip():
        raise UserError(f"{place}: a moment without id, expected one")
    if not label.strip():
        raise UserError(f"{place}: {moment_id!r:.80} has an empty label, expected the name of a class")
    for what, name in (("id", moment_id), ("label", label)):
        if CONTROL_CHARACTER.search(name):
            raise UserError(f"{place}: {what} {name!r:.80} holds a control character, expected text of one line")
