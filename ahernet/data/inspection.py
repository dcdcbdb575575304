"""What a feature archive holds and what is odd about it, for people, before anything is trained on it."""

import math
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ahernet.data.annotations import (
    Annotations,
    Problem,
    find_annotation_problems,
    match_video_ids,
    read_annotations,
)
from ahernet.data.archive import FeatureArchive
from ahernet.data.archive_set import MANIFEST_NAME, archive_files, open_features
from ahernet.data.importers import describe_source
from ahernet.data.printable import printable
from ahernet.errors import UserError
from ahernet.progress import ProgressBar

BATCH_BYTES = 1 << 26
DURATION_TOLERANCE = 1.0  # seconds
SHOWN_PER_KIND = 5


@dataclass(frozen=True)
class AnnotationSummary:
    """What an annotation file holds, compared with an archive.

    Attributes:
        source: the file.
        videos, instances, classes: how many.
        with_features: annotated videos that the archive has.
        subsets: (name, videos, videos with features), sorted by name.
    """

    source: str
    videos: int
    instances: int
    classes: int
    with_features: int
    subsets: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Inspection:
    """What an archive holds.

    Attributes:
        path: the archive, or the manifest or folder of several.
        file_bytes: size of its files.
        videos, rows, dimension, dtype: how much of what.
        shortest, longest: rows of the shortest and of the longest video.
        known_durations: videos whose duration is known.
        shortest_seconds, longest_seconds: among them; NaN if there are none.
        hours: their sum.
        rows_per_second: rows over seconds, of videos with known duration; NaN if there are none.
        frame_rate, clip_stride, origin: as the archive states.
        annotations: the annotation file, if one was given.
        problems: what is likely to be wrong.
        notes: what is unusual but allowed.
    """

    path: Path
    file_bytes: int
    videos: int
    rows: int
    dimension: int
    dtype: str
    shortest: int
    longest: int
    known_durations: int
    shortest_seconds: float
    longest_seconds: float
    hours: float
    rows_per_second: float
    frame_rate: float
    clip_stride: int
    origin: str
    annotations: AnnotationSummary | None
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]


def inspect_archive(
    path: Path,
    annotations: Path | None = None,
    categories: Path | None = None,
    subsets: Path | None = None,
    progress: bool = False,
) -> Inspection:
    """Read a whole archive and describe it.

    Args:
        path: the archive, or the manifest or folder of several.
        annotations: annotation file to compare with.
        categories: class names, as in `read_annotations`.
        subsets: table of subsets, as in `read_annotations`.
        progress: show a progress bar.

    Raises:
        UserError: not an archive (the message tells what it is and how to import it), or an unreadable annotation
            file.
    """
    path = Path(path)
    annotated = None if annotations is None else read_annotations(annotations, categories, subsets)
    with _open(path) as archive:
        problems = [*_id_problems(archive), *_duration_problems(archive), *_row_problems(archive, progress)]
        notes = [
            Problem("only one row", archive.ids[position]) for position in np.flatnonzero(archive.lengths == 1).tolist()
        ]
        notes += _uneven_durations(archive)
        summary = None
        if annotated is not None:
            pairs = match_video_ids(annotated.videos, archive.ids)
            summary = _summary(annotated, pairs)
            problems += _comparison_problems(archive, annotated, pairs)
            notes += [*_videos_without_annotation(archive, pairs), *find_annotation_problems(annotated)]
        known = ~np.isnan(archive.durations)
        durations = archive.durations[known]
        seconds = float(durations.sum())
        return Inspection(
            path=path,
            file_bytes=sum(file.stat().st_size for file, _ in archive_files(path)),
            videos=len(archive),
            rows=int(archive.offsets[-1]),
            dimension=archive.dimension,
            dtype=archive.dtype.name,
            shortest=int(archive.lengths.min()),
            longest=int(archive.lengths.max()),
            known_durations=len(durations),
            shortest_seconds=float(durations.min(initial=np.inf)) if len(durations) else math.nan,
            longest_seconds=float(durations.max(initial=0)) if len(durations) else math.nan,
            hours=seconds / 3600,
            rows_per_second=float(archive.lengths[known].sum()) / seconds if seconds else math.nan,
            frame_rate=archive.frame_rate,
            clip_stride=archive.clip_stride,
            origin=archive.origin,
            annotations=summary,
            problems=tuple(problems),
            notes=tuple(notes),
        )


def format_inspection(inspection: Inspection, shown: int | None = SHOWN_PER_KIND) -> str:
    """Return the inspection as aligned text; of each kind of problem `shown` videos are named, all with None."""
    facts = [
        ("file", f"{inspection.path} ({_size(inspection.file_bytes)})"),
        ("videos", f"{inspection.videos:,}"),
        ("rows", f"{inspection.rows:,} ({inspection.shortest:,} to {inspection.longest:,} a video)"),
        ("features", f"{inspection.dimension:,} x {inspection.dtype}"),
        ("durations", _durations_text(inspection)),
        ("rows a second", _number(inspection.rows_per_second)),
        ("frame rate", _number(inspection.frame_rate)),
        ("clip stride", f"{inspection.clip_stride} frames" if inspection.clip_stride else "unknown"),
        ("origin", printable(inspection.origin) or "not stated"),
    ]
    if inspection.annotations is not None:
        facts += _annotation_facts(inspection.annotations)
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]
    lines += [
        "",
        *_listing("problems", inspection.problems, shown),
        *_listing("notes", inspection.notes, SHOWN_PER_KIND),
    ]
    return "\n".join(lines)


def _open(path: Path) -> FeatureArchive:
    try:
        return open_features(path)
    except UserError as error:
        try:
            described = describe_source(path)
        except UserError as nothing:  # that could be imported either
            told = nothing if path.is_dir() and not (path / MANIFEST_NAME).exists() else error
            raise told from None
        raise UserError(f"{path}: not an ahernet archive but {described}") from error


def _id_problems(archive: FeatureArchive) -> Iterator[Problem]:
    """Ids that are different but easily taken for each other."""
    twins: dict[str, str] = {}
    present = set(archive.ids)
    forms: dict[str, str] = {}
    for video_id in archive.ids:
        if f"v_{video_id}" in present:
            twins[video_id] = f"v_{video_id}"
        composed = unicodedata.normalize("NFC", video_id)
        if composed in forms:
            twins[video_id] = forms[composed]
        forms[composed] = video_id
    for video_id, twin in twins.items():
        yield Problem("ids that look alike", video_id, f"and {twin!r}")


def _duration_problems(archive: FeatureArchive) -> Iterator[Problem]:
    for position in np.flatnonzero(np.isnan(archive.durations)).tolist():
        yield Problem("duration unknown", archive.ids[position])


def _uneven_durations(archive: FeatureArchive) -> Iterator[Problem]:
    """Durations unlike rows times stride: the rows were rescaled, or the frame rate or the stride is wrong."""
    if math.isnan(archive.frame_rate) or not archive.clip_stride:
        return
    row_seconds = archive.clip_stride / archive.frame_rate
    seconds = archive.lengths * row_seconds
    # The last clips of a video may be missing: those that would reach beyond its end.
    tolerance = DURATION_TOLERANCE + 2 * row_seconds
    for position in np.flatnonzero(np.abs(seconds - archive.durations) > tolerance).tolist():
        detail = f"{archive.durations[position]:.2f} s, but its rows make {seconds[position]:.2f} s"
        yield Problem("duration does not fit rows and stride", archive.ids[position], detail)


def _row_problems(archive: FeatureArchive, progress: bool) -> Iterator[Problem]:
    with ProgressBar(total=len(archive), desc="inspect", unit="video", disable=not progress) as bar:
        for positions in _batches(archive):
            rows, offsets = archive.read(positions)
            for position, start, end in zip(positions, offsets[:-1], offsets[1:], strict=True):
                yield from _video_problems(archive, position, rows[start:end])
            bar.update(len(positions))


def _video_problems(archive: FeatureArchive, position: int, rows: np.ndarray) -> Iterator[Problem]:
    video_id = archive.ids[position]
    if zlib.crc32(rows.data) != archive.checksums[position]:
        yield Problem("checksum differs, the file is damaged", video_id)
    largest = int(_magnitudes(rows).max())
    if largest >= int(_magnitudes(np.array([np.inf], rows.dtype))[0]):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        yield Problem("NaN or infinite", video_id, f"{len(bad)} of {len(rows)} rows, first {bad[0]}")
    if largest == 0:
        yield Problem("all zero", video_id, f"{len(rows)} rows")


def _magnitudes(rows: np.ndarray) -> np.ndarray:
    """Return numbers without sign as integers of the same order, NaN above infinity: far faster for float16."""
    unsigned = np.dtype(f"<u{rows.dtype.itemsize}")
    result: np.ndarray = rows.view(unsigned) & unsigned.type(2 ** (8 * rows.dtype.itemsize - 1) - 1)
    return result


def _batches(archive: FeatureArchive) -> Iterator[list[int]]:
    """Positions in file order, of at most `BATCH_BYTES` of rows together (or one video)."""
    row_bytes = archive.dimension * archive.dtype.itemsize
    batch: list[int] = []
    size = 0
    for position, length in enumerate(archive.lengths.tolist()):
        if batch and size + length * row_bytes > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(position)
        size += length * row_bytes
    yield batch


def _summary(annotated: Annotations, pairs: dict[str, str]) -> AnnotationSummary:
    subsets = sorted({video.subset for video in annotated.videos.values()} - {""})
    counted = []
    for subset in subsets:
        chosen = [key for key, video in annotated.videos.items() if video.subset == subset]
        counted.append((subset, len(chosen), sum(key in pairs for key in chosen)))
    return AnnotationSummary(
        source=annotated.source,
        videos=len(annotated.videos),
        instances=sum(len(video.labels) for video in annotated.videos.values()),
        classes=len(annotated.classes()),
        with_features=len(pairs),
        subsets=tuple(counted),
    )


def _comparison_problems(archive: FeatureArchive, annotated: Annotations, pairs: dict[str, str]) -> Iterator[Problem]:
    for key, video in annotated.videos.items():
        if key not in pairs:
            yield Problem("annotated but without features", key)
            continue
        seconds = float(archive.durations[archive.position(pairs[key])])
        if abs(seconds - video.duration) > DURATION_TOLERANCE:
            detail = f"{seconds:.2f} s here, {video.duration:.2f} s annotated"
            yield Problem("duration differs from the annotation", pairs[key], detail)


def _videos_without_annotation(archive: FeatureArchive, pairs: dict[str, str]) -> Iterator[Problem]:
    annotated_ids = set(pairs.values())
    for video_id in archive.ids:
        if video_id not in annotated_ids:
            yield Problem("features without annotation", video_id)


def _annotation_facts(summary: AnnotationSummary) -> list[tuple[str, str]]:
    facts = [
        ("annotations", summary.source),
        ("annotated", f"{summary.instances:,} instances of {summary.classes:,} classes"),
        ("with features", f"{summary.with_features:,} of {summary.videos:,} videos"),
    ]
    facts += [
        (f"  {printable(subset)}", f"{present:,} of {videos:,} videos") for subset, videos, present in summary.subsets
    ]
    return facts


def _durations_text(inspection: Inspection) -> str:
    if not inspection.known_durations:
        return "unknown"
    text = f"{inspection.shortest_seconds:.2f} to {inspection.longest_seconds:.2f} s, {inspection.hours:,.2f} h in all"
    unknown = inspection.videos - inspection.known_durations
    return text + (f" ({unknown:,} unknown)" if unknown else "")


def _listing(title: str, problems: tuple[Problem, ...], shown: int | None) -> Iterator[str]:
    if not problems:
        yield f"{title}: none"
        return
    yield f"{title}: {len(problems):,}"
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, members in by_kind.items():
        yield f"  {kind}: {len(members):,}"
        for problem in members[:shown]:
            yield f"    {problem.video_id!r} {printable(problem.detail)}".rstrip()
        if shown is not None and len(members) > shown:
            yield f"    ... and {len(members) - shown:,} more"


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.4g}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
