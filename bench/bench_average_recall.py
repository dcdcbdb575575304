"""Average recall of proposals for all videos at once against the same measure taken video by video.

    pytest bench/bench_average_recall.py

Both forms are checked for equality before they are timed, on the inputs of `bench_average_precision.py`.
`both measures` is what scoring a file takes: average precision and average recall.
"""

import numpy as np
import pytest

from ahernet.evaluation.average_precision import TIOU_THRESHOLDS, average_precision
from ahernet.evaluation.average_recall import average_recall
from bench.bench_average_precision import SIZES, made


def video_by_video(detections, annotations, max_proposals=100):
    """Return (T, 100) recall, one video after the other, numpy only within it."""
    videos = annotations.videos
    rows = np.split(
        np.argsort(detections.video, kind="stable"),
        np.bincount(detections.video, minlength=len(detections.video_ids)).cumsum()[:-1],
    )
    rows = dict(zip(detections.video_ids, rows, strict=True))
    budget = max_proposals * len(videos)
    share = budget / len(detections)
    tious, kept = [], 0
    for video_id, video in videos.items():
        own = rows[video_id]
        own = own[np.argsort(-detections.scores[own], kind="stable")][: int(len(own) * share)]
        kept += len(own)
        (start, end), (first, last) = detections.segments[own].T, video.segments.T[..., None]
        shared = (np.minimum(end, last) - np.maximum(start, first)).clip(0)
        tious.append(shared / ((last - first) + (end - start) - shared))
    points = np.arange(1, 101) / 100 * (budget / kept)
    found = np.zeros((len(TIOU_THRESHOLDS), len(points)))
    for tiou in tious:
        used = np.minimum((tiou.shape[1] * points).astype(int), tiou.shape[1])
        for column, threshold in enumerate(TIOU_THRESHOLDS):
            hit = tiou >= threshold
            for point, number in enumerate(used):
                found[column, point] += np.count_nonzero(hit[:, :number].any(axis=1))
    return found / sum(len(video.labels) for video in videos.values())


def both_measures(detections, annotations):
    return average_precision(detections, annotations), average_recall(detections, annotations)


WAYS = {"ahernet": average_recall, "numpy, video by video": video_by_video}


@pytest.fixture(scope="module", params=SIZES)
def columns(request):
    detections, annotations = made(*SIZES[request.param])
    found = average_recall(detections, annotations).recall
    np.testing.assert_allclose(found, video_by_video(detections, annotations), rtol=0, atol=1e-9)
    return request.param, detections, annotations


def race(benchmark, columns, measure, way, form):
    size, detections, annotations = columns
    benchmark.group = f"{measure}, {size}"
    benchmark.extra_info.update(detections=len(detections), way=way)
    benchmark.pedantic(form, (detections, annotations), rounds=3)


@pytest.mark.parametrize("way", WAYS)
def test_average_recall(benchmark, columns, way):
    race(benchmark, columns, "average recall", way, WAYS[way])


def test_both_measures(benchmark, columns):
    race(benchmark, columns, "both measures", "ahernet", both_measures)
