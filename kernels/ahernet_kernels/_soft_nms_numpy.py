"""Temporal soft-NMS of a whole batch on a CPU: a loop over picks, all videos at once.

A pick changes the scores of what competes with it alone: of its class, where classes are told apart.
"""

import numpy as np
import numpy.typing as npt

from ahernet_kernels._nms_numpy import Integers, dense_groups
from ahernet_kernels._tiou import Floats, intersection_and_union_numpy


def soft_nms_numpy(
    segments: Floats,
    scores: Floats,
    labels: npt.NDArray[np.int32] | None,
    method: str,
    parameter: float,
    max_output: int,
    min_score: float,
) -> tuple[Integers, Floats, Integers]:
    """`soft_nms` on a CPU: a pick is a pass over the scores of all videos and one over what competes with the best."""
    videos, candidates = scores.shape
    index = np.full((videos, max_output), -1, np.int64)
    kept_scores = np.zeros((videos, max_output), np.float32)
    closed, minimum = np.float32(-np.inf), np.float32(min_score)
    eligible = (scores > minimum) & np.isfinite(segments[..., 0]) & np.isfinite(segments[..., 1])
    left = np.where(eligible, scores, closed)
    start, end = (np.where(eligible, segments[..., side], np.float32(0)) for side in (0, 1))
    video = np.arange(videos)
    if labels is not None:
        by_group, first, last = _groups(dense_groups(video.repeat(candidates), labels.ravel()))
    for pick in range(max_output):
        best = left.argmax(axis=1)
        best_score = left[video, best]
        found = best_score > closed
        if not found.any():
            break
        index[found, pick] = best[found]
        kept_scores[found, pick] = best_score[found]
        left[video, best] = closed
        if labels is None:
            segment = start[video, best, None], end[video, best, None]
            left = _decayed(left, *segment, start, end, method, parameter, minimum)
        else:
            winner = (video * candidates + best)[found]
            sizes = last[winner] - first[winner]
            rows = by_group.take(np.arange(sizes.sum()) + np.repeat(last[winner] - np.cumsum(sizes), sizes))
            segment = start.take(winner).repeat(sizes), end.take(winner).repeat(sizes)
            others = start.take(rows), end.take(rows)
            left.put(rows, _decayed(left.take(rows), *segment, *others, method, parameter, minimum))
    return index, kept_scores, (index >= 0).sum(axis=1)


def _decayed(
    scores: Floats,
    best_start: Floats,
    best_end: Floats,
    start: Floats,
    end: Floats,
    method: str,
    parameter: float,
    minimum: np.float32,
) -> Floats:
    """Scores of segments beside a better one, -inf where they are no longer above the minimum."""
    with np.errstate(divide="ignore", invalid="ignore"):
        intersection, union = intersection_and_union_numpy(best_start, best_end, start, end)
        tiou = intersection / union
        np.fmax(tiou, 0, out=tiou)
        if method == "gaussian":
            after = scores * np.exp(-(tiou * tiou) / np.float32(parameter))
        else:
            after = np.where(intersection > np.float32(parameter) * union, scores * (1 - tiou), scores)
    return np.where(after > minimum, after, np.float32(-np.inf))


def _groups(group: Integers) -> tuple[Integers, Integers, Integers]:
    """Candidates ordered by group, and between which places of that order the group of each one is."""
    by_group = np.argsort(group, kind="stable")
    is_first = np.diff(group.take(by_group), prepend=-1) != 0
    bounds = np.append(np.flatnonzero(is_first), len(group))
    number = np.empty_like(group)
    number[by_group] = np.cumsum(is_first) - 1
    return by_group, bounds[number], bounds[number + 1]
