"""What a file or folder is that was given where a feature archive is expected."""

import tomllib
from pathlib import Path

from ahernet.checkpoint import CHECKPOINT_NAME
from ahernet.command_settings import SECTIONS
from ahernet.data.annotations import read_annotations
from ahernet.data.detection_shards import load_detections
from ahernet.data.moment_labels import read_moment_labels
from ahernet.data.recordings import read_recordings
from ahernet.errors import UserError
from ahernet.experiments.recorded import TABLE
from ahernet.extraction.video_files import SUFFIXES

LARGEST_READ = 1 << 28  # bytes: what is larger is not read to find out what it is


def recognise(path: Path) -> str | None:
    """Say what another of the files of this program is, and what takes it; None if it is none of them."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        return None
    if path.suffix.lower() in SUFFIXES:
        return "a video; extract makes an archive of it"
    if path.stat().st_size > LARGEST_READ:
        return None
    for recognised in (_as_annotations, _as_detections, _as_moment_labels, _as_setting, _as_recordings):
        try:
            return recognised(path)
        except UserError:
            continue
    return None


def _folder(path: Path) -> str | None:
    if (path / CHECKPOINT_NAME).exists():
        return "the folder of a run; localize and doctor take it"
    videos = sum(found.suffix.lower() in SUFFIXES for found in path.iterdir())
    return f"a folder of {videos:,} videos; extract makes an archive of them" if videos else None


def _as_annotations(path: Path) -> str:
    annotations = read_annotations(path)
    instances = sum(len(video.labels) for video in annotations.videos.values())
    return (
        f"annotations of {instances:,} instances of {len(annotations.classes()):,} classes in "
        f"{len(annotations.videos):,} videos; inspect ARCHIVE --annotations takes them"
    )


def _as_detections(path: Path) -> str:
    detections = load_detections(path)
    return (
        f"{len(detections):,} detections in {len(detections.video_ids):,} videos; evaluate, plot and report take them"
    )


def _as_moment_labels(path: Path) -> str:
    labels = read_moment_labels(path)
    return (
        f"labels of {len(labels):,} moments of {len(set(labels.values())):,} classes; train --moment-labels takes them"
    )


def _as_setting(path: Path) -> str:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no TOML, no UTF-8
        raise UserError(f"{path}: not a TOML file ({error})") from error
    if {"base", "novel"} <= tables.keys() or TABLE in tables:
        return "a setting; experiment --setting takes it"
    if tables.keys() & set(SECTIONS):
        return "settings of a run; train --config takes them"
    raise UserError(f"{path}: a TOML file, expected the tables of a setting or of a run")


def _as_recordings(path: Path) -> str:
    recordings = read_recordings(path)
    return f"{len(recordings.ids):,} recordings; import-recordings makes an archive of them"
