"""Validation videos to look into: a random few of those that show novel classes and have features."""

from dataclasses import dataclass

import numpy as np

from ahernet.data.annotations import VideoAnnotations, match_video_ids
from ahernet.data.archive import FeatureArchive
from ahernet.errors import UserError
from ahernet.experiments.setting import Setting, validation_of
from ahernet.video_time import known_duration


@dataclass(frozen=True, eq=False)
class SampledVideo:
    """A video: its place in the archive, seconds, instances of novel classes, and `everything` annotated in it."""

    position: int
    duration: float
    annotations: VideoAnnotations
    everything: VideoAnnotations


def sample_videos(setting: Setting, archive: FeatureArchive, most: int, seed: int) -> list[SampledVideo]:
    """Return at most so many videos, drawn by the seed.

    Raises:
        UserError: no video of known duration has features.
    """
    source = setting.novel_videos
    annotations = source.read()
    shown = validation_of(annotations, setting.novel, source.validation)
    videos = []
    for key, place in match_video_ids(shown.videos, archive.ids).items():
        position, video = archive.position(place), shown.videos[key]
        duration = known_duration(archive.durations[position], video.duration)
        if duration is not None:
            videos.append(SampledVideo(position, duration, video, annotations.videos[key]))
    if not videos:
        raise UserError(f"{archive.path}: has no validation video of {setting.name} of known duration, expected some")
    order = np.random.default_rng(seed).permutation(len(videos))[:most]
    return [videos[row] for row in order]
