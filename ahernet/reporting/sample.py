"""The videos whose timelines a page shows: some, evenly spread over the set, each with its best detections."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ahernet.data.annotations import Annotations
from ahernet.data.detections import Detections
from ahernet.evaluation.average_precision import Matches
from ahernet.reporting.names import Names, shown
from ahernet.reporting.numbers import rounded

MOST_VIDEOS = 200
MOST_DETECTIONS = 100  # of a video, the best
MOST_TRUTHS = 100  # of a video, the first


def sampled_videos(
    matches: Matches,
    kinds: npt.NDArray[np.int8],
    detections: Detections,
    annotations: Annotations,
    names: Names,
) -> dict[str, Any]:
    """Return the ground truth and the detections of a sample of the annotated videos.

    Args:
        matches: of `detections` with `annotations`.
        kinds: (T, N) of `detection_kinds`; those of the first threshold are shown.
        detections: as matched.
        annotations: as matched.
        names: numbers the classes.

    Returns:
        how many videos there are, and per sampled one its id, duration (None if unknown), ground truths as (class,
        start, end), detections as (class, start, end, score, kind), best first, and how many of each were left out.
    """
    videos = list(annotations.videos.values())
    chosen = np.unique(np.linspace(0, len(videos) - 1, min(MOST_VIDEOS, len(videos))).round().astype(np.int64))
    order = np.lexsort((-detections.scores[matches.row], matches.video))
    bounds = np.searchsorted(matches.video[order], [chosen, chosen + 1])
    sample = []
    for row, first, last in zip(chosen.tolist(), *bounds.tolist(), strict=True):
        video = videos[row]
        ranks = order[first : min(last, first + MOST_DETECTIONS)]
        own = matches.row[ranks]
        truths = zip(video.labels[:MOST_TRUTHS], video.segments[:MOST_TRUTHS].tolist(), strict=True)
        found = zip(
            matches.label[ranks].tolist(),
            detections.segments[own].tolist(),
            detections.scores[own].tolist(),
            kinds[0, ranks].tolist(),
            strict=True,
        )
        sample.append(
            {
                "id": shown(video.video_id),
                "duration": None if math.isnan(video.duration) else round(video.duration, 3),
                "truths": [[names.number(label), *_times(segment)] for label, segment in truths],
                "found": [
                    [names.number(matches.classes[label]), *_times(segment), rounded(score, 4), kind]
                    for label, segment, score, kind in found
                ],
                "left_out": [max(0, len(video.labels) - MOST_TRUTHS), max(0, last - first - MOST_DETECTIONS)],
            }
        )
    return {"of": len(videos), "tiou": float(matches.thresholds[0]), "most": MOST_DETECTIONS, "videos": sample}


def _times(segment: list[float]) -> list[float]:
    return [round(time, 3) for time in segment]
