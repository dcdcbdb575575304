"""How far mean average precision depends on which videos happen to be in the set: a bootstrap interval.

Videos are drawn with replacement, as many as there are, and the draw is scored as a set of its own. A video that is
drawn k times weighs k: its detections are k entries of the ranking and its ground truths k instances. The matching
within a video does not depend on the other videos, so it is done once and only the counting is repeated.

Draws score higher than the set on average: videos that are drawn twice agree with each other. (0.31 against 0.29 on the
validation set of ActivityNet with 100 detections a video.) That says nothing about the spread, so the interval is laid
around the score of the set.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ahernet.evaluation.average_precision import Matches, precision_of
from ahernet.evaluation.curves import areas
from ahernet.evaluation.ground_truth import Floats

Counts = npt.NDArray[np.int32]  # half the memory traffic of int64, which is what the time goes to

# Entries of the ranking times draws: bounds the memory, and what fits into the caches is faster.
COUNTS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class BootstrapInterval:
    """The middle `level` of what the draws score, moved so that their mean is the score of the set; fractions of 1.

    Attributes:
        level: of confidence, 0.95 for instance.
        draws: how many sets were drawn.
        mean: low and high end for the mean over classes and thresholds.
        per_threshold: (T, 2) low and high end for the mean over classes at each threshold.
    """

    level: float
    draws: int
    mean: tuple[float, float]
    per_threshold: Floats


def bootstrap_interval(matches: Matches, draws: int = 1000, level: float = 0.95, seed: int = 0) -> BootstrapInterval:
    """Return the interval of mean average precision over draws of the videos of both files.

    As in the score of a set, the mean of a draw is over the classes that its ground truth has; draws without any
    ground truth are left out. The same `seed` gives the same interval.

    Raises:
        ValueError: no draw, or a level that is not between 0 and 1.
    """
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"expected at least one draw and a level between 0 and 1, got {draws} and {level}")
    videos = len(matches.videos.scored) + len(matches.videos.missing) + len(matches.videos.unknown)
    random = np.random.default_rng(seed)
    at_once = max(1, COUNTS_AT_ONCE // max(1, len(matches.label), len(matches.rank)))
    scores = np.concatenate(
        [
            drawn_scores(matches, _weights(random, min(at_once, draws - begun), videos))
            for begun in range(0, draws, at_once)
        ]
    )
    measured = precision_of(matches)
    low, high = _interval(scores.mean(axis=1), np.array(measured.mean), level).tolist()
    per_threshold = _interval(scores, measured.mean_per_threshold, level).T
    return BootstrapInterval(level, draws, (low, high), per_threshold)


def _interval(scores: Floats, measured: Floats, level: float) -> Floats:
    """Return (2, ...) the ends of the middle `level` of the (B, ...) scores, moved to the measured (...)."""
    tail = (1 - level) / 2
    ends: Floats = np.nanquantile(scores, (tail, 1 - tail), axis=0) - np.nanmean(scores, axis=0) + measured
    return ends.clip(0, 1)


def drawn_scores(matches: Matches, weights: Counts) -> Floats:
    """Return the (B, T) mean over the classes of B draws, NaN where a draw has no ground truth.

    Args:
        matches: of all videos.
        weights: (B, V) how often each video was drawn, unknown ones after the annotated ones.
    """
    classes, limits = len(matches.classes), len(matches.thresholds)
    instances = _sum_by_class(weights, matches)
    entries = _running_count(weights[:, matches.video])
    label = matches.label[matches.rank]
    before_class = np.searchsorted(matches.label, label)
    returned = entries[:, matches.rank + 1] - entries[:, before_class]
    drawn = weights[:, matches.truth_video[matches.truth]]
    found = _running_count(drawn)
    curve = matches.curve
    found = found[:, 1:] - found[:, np.searchsorted(curve, curve)]
    # Hits of videos that were not drawn add no recall, and their precision is none that a drawn hit would not exceed.
    precision = found / np.maximum(returned, 1)
    gain = drawn / np.maximum(instances, 1)[:, label]
    area = areas(curve, precision, gain, limits * classes).reshape(-1, limits, classes)
    with np.errstate(invalid="ignore"):
        scores: Floats = area.sum(axis=2) / np.count_nonzero(instances, axis=1)[:, None]
    return scores


def _weights(random: np.random.Generator, draws: int, videos: int) -> Counts:
    """Return (draws, videos): how often each video is among as many drawn with replacement."""
    drawn = random.integers(videos, size=(draws, videos)) + np.arange(draws)[:, None] * videos
    return np.bincount(drawn.ravel(), minlength=draws * videos).reshape(draws, videos).astype(np.int32)


def _sum_by_class(weights: Counts, matches: Matches) -> Counts:
    """Return (B, C): ground truths of each class in each draw."""
    order = np.argsort(matches.truth_label, kind="stable")
    starts = np.searchsorted(matches.truth_label[order], np.arange(len(matches.classes)))
    sums: Counts = np.add.reduceat(weights[:, matches.truth_video[order]], starts, axis=1)
    return sums


def _running_count(weights: Counts) -> Counts:
    """Return (B, N + 1): the sum of the first n of the (B, N) weights."""
    counts = np.zeros((len(weights), weights.shape[1] + 1), np.int32)
    np.cumsum(weights, axis=1, dtype=np.int32, out=counts[:, 1:])
    return counts
