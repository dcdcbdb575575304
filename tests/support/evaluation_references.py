"""Evaluation as it is defined, one detection after the other: what the vectorised measures are held against."""

import math
from collections.abc import Iterator

from evaluation_rows import Found, Truth
from hypothesis import strategies as st

# Few different numbers, so that ties, repeated instances and zero lengths are common.
_TIMES = st.integers(0, 8).map(float)
_SEGMENTS = st.tuples(_TIMES, _TIMES).map(sorted)
_KEYS = st.tuples(st.sampled_from(["u", "v", "w"]), st.sampled_from(["a", "b"]))
TRUTHS = st.lists(st.tuples(_KEYS, _SEGMENTS).map(lambda row: (*row[0], *row[1])), min_size=1, max_size=8)
_SCORES = st.integers(0, 4).map(lambda number: number / 4)
FOUND = st.lists(st.tuples(_KEYS, _SEGMENTS, _SCORES).map(lambda row: (*row[0], *row[1], row[2])), max_size=16)


def of_known_classes(truths: list[Truth], found: list[Found]) -> list[Found]:
    labels = {truth[1] for truth in truths}
    return [row for row in found if row[1] in labels]


def tiou_of(found: Found, truth: Truth) -> float:
    """NaN where both have zero length."""
    intersection = max(min(found[3], truth[3]) - max(found[2], truth[2]), 0.0)
    union = (found[3] - found[2]) + (truth[3] - truth[2]) - intersection
    return intersection / union if union else math.nan


def ranked(found: list[Found], label: str) -> list[Found]:
    return sorted((row for row in found if row[1] == label), key=lambda row: -row[4])  # stable


def taken(truths: list[Truth], found: list[Found], label: str, threshold: float) -> Iterator[int | None]:
    """Yield for each detection of a class, best first, the ground truth it takes."""
    free = set(range(len(truths)))
    for row in ranked(found, label):
        candidates = []
        for index in free:
            if truths[index][:2] == row[:2]:
                tiou = tiou_of(row, truths[index])
                candidates.append((math.inf if math.isnan(tiou) else tiou, index))
        tiou, index = max(candidates, default=(-1.0, -1))
        if tiou >= threshold:
            free.discard(index)
            yield index
        else:
            yield None


def area(marks: list[bool], instances: int, normal: float | None = None) -> float:
    """Area under the envelope of precision over recall of detections that are right or not, best first."""
    points = []
    right = 0
    for number, mark in enumerate(marks, start=1):
        right += mark
        expected = right if normal is None else right / instances * normal
        wrong = number - right
        points.append((expected / (expected + wrong) if expected else 0.0, mark))
    return sum(max(precision for precision, _ in points[n:]) / instances for n, (_, mark) in enumerate(points) if mark)
