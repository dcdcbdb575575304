"""Inference: from the features of videos to ranked detections (section 3.5 of the paper)."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ahernet.checkpoint import Checkpoint
from ahernet.config import InferenceConfig
from ahernet.data.archive import FeatureArchive
from ahernet.data.detections import Detections
from ahernet.errors import UserError
from ahernet.event_log import warn
from ahernet.inference.ready import NAMED, OnError, ReadyLocalizer
from ahernet.progress import ProgressBar


def localize(
    archive: FeatureArchive,
    checkpoint: Checkpoint,
    config: InferenceConfig | None = None,
    *,
    video_ids: Sequence[str] | None = None,
    durations: Mapping[str, float] | None = None,
    classes: Sequence[str] | None = None,
    minimum_scores: Mapping[str, float] | None = None,
    device: str = "auto",
    on_error: OnError = "stop",
    progress: bool = True,
) -> Detections:
    """Localize actions in the videos of an archive.

    Args:
        archive: features.
        checkpoint: trained network with its classes.
        config: scoring and suppression; that of the checkpoint by default.
        video_ids: of the videos to process, in this order; all of the archive by default.
        durations: seconds by the archive's ids, for videos whose duration the archive does not know.
        classes: names of the classes to localize, which then compete with one another alone; all of the
            checkpoint by default. Labels number them in this order.
        minimum_scores: by class name: detections of these classes have a larger score.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        on_error: "stop" at a video that cannot be localized in, or "skip" it: `video_ids` of the result lacks it then,
            and a line on standard error names it.
        progress: show a progress bar on standard error.

    Returns:
        Detections in seconds, by video, best first.

    Raises:
        UserError: the network expects features of another dimension, a class is unknown or named twice, a video
            is unknown or named twice; with "stop": a video has no known duration or features that are not finite.
    """
    ready = ReadyLocalizer(checkpoint, config, classes=classes, minimum_scores=minimum_scores, device=device)
    ready.check_dimension(archive)
    positions = positions_of(archive, video_ids)
    with progress_bar(len(positions), progress) as bar:
        detections, skipped = ready.localize(archive, positions, durations or {}, on_error, bar)
    if skipped:
        warn(describe_skipped(str(archive.path), skipped))
    return detections


def positions_of(archive: FeatureArchive, video_ids: Sequence[str] | None) -> NDArray[np.int64]:
    """Return the places of the videos in the archive.

    Raises:
        UserError: a video is unknown or named twice, or there is none.
    """
    if video_ids is None:
        positions = np.arange(len(archive))
    else:
        positions = np.array([archive.position(video_id) for video_id in video_ids], np.int64)
    if not len(positions):
        raise UserError(f"{archive.path}: no video to localize in, expected at least one")
    if len(np.unique(positions)) < len(positions):
        raise UserError("video_ids: an id occurs twice")
    return positions


def progress_bar(videos: int, shown: bool) -> ProgressBar:
    """Return the bar that counts localized videos on standard error."""
    return ProgressBar(total=videos, desc="localize", unit="videos", smoothing=0, disable=not shown)


def describe_skipped(source: str, skipped: Mapping[str, str]) -> str:
    """Say in a line how many videos were left out, and why a few of them."""
    named = ", ".join(f"{video_id!r} ({reason})" for video_id, reason in list(skipped.items())[:NAMED])
    more = f" and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
    return f"{source}: left out {len(skipped):,} videos: {named}{more}"
