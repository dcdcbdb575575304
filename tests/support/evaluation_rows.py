"""Annotations and detections written as rows, for tests of evaluation."""

import numpy as np

from ahernet.data.annotations import Annotations, VideoAnnotations
from ahernet.data.detections import Detections

# One ground truth: (video, label, start, end); one detection: the same and a score.
Truth = tuple[str, str, float, float]
Found = tuple[str, str, float, float, float]


def annotations_of(truths: list[Truth], videos: tuple[str, ...] = ()) -> Annotations:
    rows: dict[str, list[Truth]] = {video: [] for video in videos}
    for truth in truths:
        rows.setdefault(truth[0], []).append(truth)
    return Annotations(
        {
            video: VideoAnnotations(
                video,
                "validation",
                100.0,
                np.array([row[2:4] for row in own], np.float64).reshape(-1, 2),
                tuple(row[1] for row in own),
            )
            for video, own in rows.items()
        },
        "made.json",
    )


def detections_of(found: list[Found], videos: tuple[str, ...] = ()) -> Detections:
    video_ids = tuple(dict.fromkeys([*videos, *(row[0] for row in found)]))
    classes = tuple(dict.fromkeys(row[1] for row in found))
    return Detections(
        video_ids=video_ids,
        classes=classes,
        video=np.array([video_ids.index(row[0]) for row in found], np.int64),
        label=np.array([classes.index(row[1]) for row in found], np.int64),
        segments=np.array([row[2:4] for row in found], np.float64).reshape(-1, 2),
        scores=np.array([row[4] for row in found], np.float64),
    )
