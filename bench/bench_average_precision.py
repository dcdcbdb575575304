"""Average precision for all videos at once against the same measure taken detection by detection.

    pytest bench/bench_average_precision.py

Both forms are checked for equality before they are timed. `full` has the size of the validation set of
Kinetics-600. The row-by-row form uses numpy within a video and a dictionary to find it; the evaluators in
use spend far longer on a row, in data frames.
"""

from collections import defaultdict

import numpy as np
import pytest

from ahernet.data.annotations import Annotations, VideoAnnotations
from ahernet.data.detections import Detections
from ahernet.evaluation.average_precision import TIOU_THRESHOLDS, average_precision

SIZES = {"small": (300, 20, 40), "full": (6459, 100, 600)}  # videos, detections a video, classes


def made(videos, per_video, classes, seed=0):
    """Each video has one class and 1 to 3 instances; half of the detections lie near one of them."""
    generator = np.random.default_rng(seed)
    names = tuple(f"class {number:03d}" for number in range(classes))
    annotated, near = {}, []
    for video in range(videos):
        starts = generator.uniform(0, 90, generator.integers(1, 4))
        segments = np.stack([starts, starts + generator.uniform(1, 30, len(starts))], axis=1)
        labels = (names[video % classes],) * len(starts)
        annotated[f"{video}"] = VideoAnnotations(f"{video}", "validation", 120.0, segments, labels)
        near.append(segments[generator.integers(0, len(starts), per_video)])
    count = videos * per_video
    video = np.repeat(np.arange(videos), per_video)
    starts = generator.uniform(0, 90, count)
    anywhere = np.stack([starts, starts + generator.uniform(1, 30, count)], axis=1)
    close = np.concatenate(near) + generator.normal(0, 2, (count, 2))
    detections = Detections(
        video_ids=tuple(annotated),
        classes=names,
        video=video,
        label=np.where(generator.random(count) < 0.5, video % classes, generator.integers(0, classes, count)),
        segments=np.sort(np.where(generator.random((count, 1)) < 0.5, close, anywhere), axis=1),
        scores=generator.random(count),
    )
    return detections, Annotations(annotated, "made")


def row_by_row(detections, annotations):
    """Return (C, T) average precision, one detection after the other, numpy only within its video."""
    classes = annotations.classes()
    truths = defaultdict(list)
    for video_id, video in annotations.videos.items():
        for segment, label in zip(video.segments, video.labels, strict=True):
            truths[video_id, label].append(segment)
    taken = {key: np.zeros((len(TIOU_THRESHOLDS), len(own)), bool) for key, own in truths.items()}
    instances = {name: sum(len(own) for key, own in truths.items() if key[1] == name) for name in classes}
    hits = {name: [] for name in classes}
    for row in np.argsort(-detections.scores, kind="stable"):
        name = detections.classes[detections.label[row]]
        key = detections.video_ids[detections.video[row]], name
        hit = np.zeros(len(TIOU_THRESHOLDS), bool)
        hits[name].append(hit)
        if key not in truths:
            continue
        (start, end), own = detections.segments[row], np.array(truths[key])
        shared = (np.minimum(end, own[:, 1]) - np.maximum(start, own[:, 0])).clip(0)
        tiou = shared / ((own[:, 1] - own[:, 0]) + (end - start) - shared)
        for column, threshold in enumerate(TIOU_THRESHOLDS):
            for truth in tiou.argsort()[::-1]:
                if tiou[truth] < threshold:
                    break
                if not taken[key][column, truth]:
                    taken[key][column, truth] = hit[column] = True
                    break
    result = np.zeros((len(classes), len(TIOU_THRESHOLDS)))
    for index, name in enumerate(classes):
        marks = np.array(hits[name]).reshape(-1, len(TIOU_THRESHOLDS))
        precision = marks.cumsum(axis=0) / np.arange(1, len(marks) + 1)[:, None]
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        result[index] = (envelope * marks).sum(axis=0) / instances[name]
    return result


WAYS = {"ahernet": average_precision, "numpy, row by row": row_by_row}


@pytest.fixture(scope="module", params=SIZES)
def columns(request):
    detections, annotations = made(*SIZES[request.param])
    found = average_precision(detections, annotations).per_class
    np.testing.assert_allclose(found, row_by_row(detections, annotations), rtol=0, atol=1e-9)
    return request.param, detections, annotations


@pytest.mark.parametrize("way", WAYS)
def test_average_precision(benchmark, columns, way):
    size, detections, annotations = columns
    benchmark.group = f"average precision, {size}"
    benchmark.extra_info.update(detections=len(detections), way=way)
    benchmark.pedantic(WAYS[way], (detections, annotations), rounds=3)
