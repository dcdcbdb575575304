"""Cutting moments out of annotated videos.

A moment is a trimmed clip that holds one action instance; all that is known of it is its class. Many of them are
one feature archive, in which every moment is a "video", and one label file (see `moment_labels`).
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ahernet.data.annotations import Annotations, VideoAnnotations, match_video_ids
from ahernet.data.archive import FeatureArchive
from ahernet.data.archive_writer import ArchiveWriter, check_archive_name
from ahernet.data.class_names import warn_of_look_alikes
from ahernet.data.moment_labels import encode_labels
from ahernet.errors import UserError
from ahernet.files import check_output_file, replace_when_complete
from ahernet.progress import ProgressBar
from ahernet.video_time import known_duration, seconds_to_unit, unit_to_rows

NAMED = 5
MAX_ORIGIN_CHARACTERS = 1000


@dataclass(frozen=True)
class LeftOut:
    """What could not be cut, of the videos that hold an instance of the classes asked for.

    Attributes:
        without_features: ids of videos that the archive lacks.
        without_duration: ids of videos whose duration neither the archive nor the annotations know.
        without_length: (id, start, end) in seconds of instances that have no length inside their video.
    """

    without_features: tuple[str, ...]
    without_duration: tuple[str, ...]
    without_length: tuple[tuple[str, float, float], ...]

    def describe(self) -> str:
        """Return the counts in words with a few examples, "" if nothing was left out."""
        spans = [f"{video_id!r} ({start:g} s - {end:g} s)" for video_id, start, end in self.without_length]
        return "; ".join(
            f"left out {len(names):,} {what}: {_listed(names)}"
            for names, what in (
                (_quoted(self.without_features), "videos without features"),
                (_quoted(self.without_duration), "videos of unknown duration"),
                (spans, "segments without length inside their video"),
            )
            if names
        )


@dataclass(frozen=True)
class CutMoments:
    """What `cut_moments` made.

    Attributes:
        archive: the new archive.
        labels: the new label file.
        moments: how many moments both hold.
        videos: of how many videos they are.
        classes: sorted names of the classes that have a moment.
        rows: feature rows of the new archive.
        left_out: what could not be cut.
    """

    archive: Path
    labels: Path
    moments: int
    videos: int
    classes: tuple[str, ...]
    rows: int
    left_out: LeftOut

    def describe(self) -> str:
        """Return all of it in words, one line."""
        done = (
            f"cut {self.moments:,} moments of {len(self.classes):,} classes from {self.videos:,} videos "
            f"({self.rows:,} rows) into {self.archive}, labels in {self.labels}"
        )
        left_out = self.left_out.describe()
        return f"{done}; {left_out}" if left_out else done


class _Moment(NamedTuple):
    moment_id: str
    label: str
    first: int
    last: int
    seconds: float


def cut_moments(
    archive: FeatureArchive,
    annotations: Annotations,
    out: Path,
    labels: Path,
    *,
    classes: Sequence[str] | None = None,
    progress: bool = True,
) -> CutMoments:
    """Make every annotated instance of some classes a moment: its feature rows in `out`, its class in `labels`.

    A moment has the rows whose centre lies in its segment (at least one, see `unit_to_rows`), unchanged; its
    duration is that of the segment inside the video. Its id is `<id of the video in the archive>_<number>`, where
    the number of three digits or more counts all instances of its video from 0, so that it does not depend on
    `classes`. The duration of a video is that of the archive, or of the annotations where the archive does not know
    it. Moments come in the order of the annotations. Both files appear once both are complete.

    Args:
        archive: features of the videos; the new archive takes over its precision, frame rate and clip stride.
        annotations: segments in seconds.
        out: archive to write.
        labels: label file to write, see `write_moment_labels`.
        classes: names to cut; all that occur by default.
        progress: show a bar on stderr.

    Raises:
        UserError: a class does not occur or is named twice, nothing can be cut, a name cannot be written to a label
            file, `out` and `labels` are the same or an input, or reading or writing failed.
    """
    out, labels = Path(out), Path(labels)
    _check_outputs(archive, annotations, out, labels)
    wanted = _wanted_classes(annotations, classes)
    warn_of_look_alikes(sorted(wanted), annotations.source)
    plan, left_out = _plan(archive, annotations, wanted)
    moments = [moment for cut in plan.values() for moment in cut]
    if not moments:
        reason = left_out.describe() or "no class was asked for or none occurs"
        raise UserError(
            f"{annotations.source}: nothing to cut from {archive.path}; {reason}; expected at least one moment"
        )
    table = encode_labels(labels, {moment.moment_id: moment.label for moment in moments})
    with (
        replace_when_complete(labels) as temporary,
        ArchiveWriter(
            out,
            dimension=archive.dimension,
            dtype="float16" if archive.dtype.itemsize == 2 else "float32",
            frame_rate=archive.frame_rate,
            clip_stride=archive.clip_stride,
            origin=f"moments of {archive.origin or archive.path.name}"[:MAX_ORIGIN_CHARACTERS],
        ) as writer,
    ):
        temporary.write_bytes(table)
        for position, cut in ProgressBar(plan.items(), desc="cut", unit="video", disable=not progress):
            rows, _ = archive.read([position])
            for moment in cut:
                writer.add(moment.moment_id, rows[moment.first : moment.last], moment.seconds)
    return CutMoments(
        out,
        labels,
        len(moments),
        len(plan),
        tuple(sorted({moment.label for moment in moments})),
        sum(moment.last - moment.first for moment in moments),
        left_out,
    )


def _check_outputs(archive: FeatureArchive, annotations: Annotations, out: Path, labels: Path) -> None:
    check_archive_name(out)
    check_output_file(labels)
    for path in (out, labels):
        if path.resolve() in (archive.path.resolve(), Path(annotations.source).resolve()):
            raise UserError(f"{path}: is what the moments are cut from, expected another file name to write")
    if out.resolve() == labels.resolve():
        raise UserError(f"{out}: named for the archive and for the labels, expected two files")


def _wanted_classes(annotations: Annotations, classes: Sequence[str] | None) -> frozenset[str]:
    occurring = annotations.classes()
    if classes is None:
        return frozenset(occurring)
    if len(set(classes)) < len(classes):
        raise UserError("classes: a name occurs twice")
    for name in classes:
        if name not in occurring:
            close = difflib.get_close_matches(name, occurring, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {_listed(_quoted(occurring)) or 'no instance'}"
            raise UserError(f"class {name!r}: does not occur in {annotations.source}; {hint}")
    return frozenset(classes)


def _plan(
    archive: FeatureArchive, annotations: Annotations, wanted: frozenset[str]
) -> tuple[dict[int, list[_Moment]], LeftOut]:
    """Return the moments of each video by its position in the archive, and what was left out."""
    places = match_video_ids(annotations.videos, archive.ids)
    lengths = archive.lengths
    plan: dict[int, list[_Moment]] = {}
    without_features: list[str] = []
    without_duration: list[str] = []
    without_length: list[tuple[str, float, float]] = []
    for video_id, video in annotations.videos.items():
        numbers = [number for number, label in enumerate(video.labels) if label in wanted]
        if not numbers:
            continue
        if video_id not in places:
            without_features.append(video_id)
            continue
        position = archive.position(places[video_id])
        duration = known_duration(archive.durations[position], video.duration)
        if duration is None:
            without_duration.append(video_id)
            continue
        unit = seconds_to_unit(video.segments[numbers], duration)
        usable = unit[:, 1] > unit[:, 0]
        for number, keep in zip(numbers, usable.tolist(), strict=True):
            if not keep:
                start, end = video.segments[number].tolist()
                without_length.append((video_id, start, end))
        if usable.any():
            kept = np.array(numbers)[usable]
            plan[position] = _moments(places[video_id], video, kept, unit[usable], duration, int(lengths[position]))
    return plan, LeftOut(tuple(without_features), tuple(without_duration), tuple(without_length))


def _moments(
    video_id: str, video: VideoAnnotations, numbers: np.ndarray, unit: np.ndarray, duration: float, length: int
) -> list[_Moment]:
    first, last = unit_to_rows(unit, np.full(len(unit), length))
    inside = np.clip(video.segments[numbers], 0.0, duration)
    columns = (numbers.tolist(), first.tolist(), last.tolist(), (inside[:, 1] - inside[:, 0]).tolist())
    # The digits after the last "_" are the number, the rest is the video: no two moments share an id.
    return [
        _Moment(f"{video_id}_{number:03d}", video.labels[number], start, stop, seconds)
        for number, start, stop, seconds in zip(*columns, strict=True)
    ]


def _quoted(names: Sequence[str]) -> list[str]:
    return [repr(name) for name in names]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
