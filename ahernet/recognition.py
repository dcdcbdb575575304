"""What a file or folder is that was given where a feature archive is expected."""

from pathlib import Path

from ahernet.checkpoint import CHECKPOINT_NAME
from ahernet.data.annotations import read_annotations
from ahernet.data.detection_shards import load_detections
from ahernet.errors import UserError
from ahernet.extraction.video_files import SUFFIXES

LARGEST_READ = 1 << 28  # bytes: what is larger is not read to find out what it is


def recognise(path: Path) -> str | None:
    """Say what another of the files of this program is, and what takes it; None if it is none of them."""
    if path.is_dir():
        if (path / CHECKPOINT_NAME).exists():
            return "the folder of a run; localize and doctor take it"
    elif not path.is_file():
        return None
    elif path.suffix.lower() in SUFFIXES:
        return "a video; extract makes an archive of it"
    elif path.stat().st_size > LARGEST_READ:
        return None
    for recognised in (_as_annotations, _as_detections):
        try:
            return recognised(path)
        except UserError:
            continue
    return None


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
