"""Average recall against the average number of proposals, with the numbers of the official ActivityNet toolkit.

The toolkit walks over thresholds, videos and points of the curve. Here every (proposal, ground truth) pair of one
video is a row of flat arrays. A ground truth is found from a certain rank of its video's proposals on; that rank
and the number of proposals the video may keep say at which point of the curve it is found first.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ahernet.data.annotations import Annotations
from ahernet.data.detections import Detections
from ahernet.evaluation.average_precision import PAIRS_AT_ONCE, TIOU_THRESHOLDS, pair_tiou
from ahernet.evaluation.ground_truth import (
    Floats,
    Integers,
    checked_thresholds,
    pair_videos,
    rows_of_one_key,
    truth_columns,
)

POINTS = 100  # of the curve

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class AverageRecall:
    """Recall at each threshold and average number of proposals, as fractions of 1.

    Attributes:
        thresholds: (T,) temporal intersection over union from which a proposal finds a ground truth.
        proposals_per_video: (P,) average number of proposals per annotated video, ascending.
        recall: (T, P).
        scored: annotated videos that the detections list, in the order of the annotations.
        missing: annotated videos that the detections do not list; their ground truths count as not found.
        unknown: listed videos without annotations; their proposals only use up the budget.
    """

    thresholds: Floats
    proposals_per_video: Floats
    recall: Floats
    scored: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def average_recall(self) -> Floats:
        """(P,) mean over the thresholds: AR at each average number of proposals."""
        means: Floats = self.recall.mean(axis=0)
        return means

    @property
    def area(self) -> float:
        """Area under AR over the proposals per video, divided by the largest number of these.

        Trapezia from the first point to the last, nothing before the first: 0.99 at most.
        """
        area = np.trapezoid(self.average_recall, self.proposals_per_video)
        return float(area / self.proposals_per_video[-1])


def average_recall(
    detections: Detections,
    annotations: Annotations,
    thresholds: npt.ArrayLike = TIOU_THRESHOLDS,
    max_proposals: int = 100,
) -> AverageRecall:
    """Score `detections` as proposals, whatever their labels, against every video of `annotations`.

    As in the toolkit (`average_recall_vs_avg_nr_proposals`, proposal task of 2016), with V videos that have
    ground truth and N proposals in the file, those of unknown videos included:

    * Budget: a video with n proposals keeps its best min(int(n * (max_proposals * V / N)), n), a share of what
      it returned, not a number. K proposals are kept in all.
    * Point k of 100: a video uses its best min(int(n * (k / 100 * (max_proposals * V / K))), n) of the n kept.
      Both numbers are truncated in float64: of 100, the points 0.29, 0.57 and 0.58 use 28, 56 and 57. The
      point stands for k / 100 * max_proposals proposals per video, also where the file holds fewer.
    * Recall: ground truths, of all classes, that some used proposal reaches with tiou >= threshold, over all
      ground truths. One proposal may find several. A repeated ground truth counts each time.
    * A video without proposals finds nothing; a video without ground truth is none of the V.
    * A proposal and a ground truth that are both of zero length have no tiou (0 / 0) and do not match. (They
      do in `average_precision`, as in the detection part of the toolkit.)

    Proposals rank by score, ties by file order; the toolkit leaves the order of ties to an unstable sort. Where
    no proposal is kept it divides by zero; here recall is 0.

    Raises:
        UserError: no ground truth at all.
        ValueError: thresholds that are not a list of numbers in (0, 1], or max_proposals below 1.
    """
    limits = checked_thresholds(thresholds)
    if max_proposals < 1:
        raise ValueError(f"max_proposals: expected at least 1, got {max_proposals!r}")
    truth_video, truth_segments = truth_columns(annotations)
    videos = pair_videos(detections, annotations)

    instances = np.bincount(truth_video, minlength=len(annotations.videos))
    budget = max_proposals * np.count_nonzero(instances)
    video = videos.row[detections.video]
    eligible = np.flatnonzero((video >= 0) & (instances[video] > 0))
    row, rank, kept = _best_of_each_video(
        video[eligible], detections.scores[eligible], len(instances), budget / max(len(detections), 1)
    )
    row = eligible[row]
    found = _first_ranks(video[row], rank, detections.segments[row], truth_video, truth_segments, limits)
    points = np.arange(1, POINTS + 1)
    return AverageRecall(
        thresholds=limits,
        proposals_per_video=points * max_proposals / POINTS,
        recall=_recall(found, kept[truth_video], points / POINTS * (budget / max(len(row), 1))),
        scored=videos.scored,
        missing=videos.missing,
        unknown=videos.unknown,
    )


def _best_of_each_video(
    video: Integers, scores: Floats, videos: int, share: float
) -> tuple[Integers, Integers, Integers]:
    """Return the rows to keep, by video and then by score, their rank in their video, and how many each keeps."""
    returned = np.bincount(video, minlength=videos)
    kept = np.minimum((returned * share).astype(np.int64), returned)
    row = np.lexsort((-scores, video))
    rank = np.arange(len(row)) - np.repeat(np.cumsum(returned) - returned, returned)
    within = rank < np.repeat(kept, returned)
    return row[within], rank[within], kept


def _first_ranks(
    video: Integers,
    rank: Integers,
    segments: Floats,
    truth_video: Integers,
    truth_segments: Floats,
    thresholds: Floats,
) -> Integers:
    """Return the (G, T) rank of the first proposal that finds each ground truth, `_NEVER` where none does."""
    first = np.full((len(thresholds), len(truth_video)), _NEVER)
    for row, truth in rows_of_one_key(video, truth_video, PAIRS_AT_ONCE):
        tiou = pair_tiou(segments[row], truth_segments[truth])
        for column, threshold in zip(first, thresholds, strict=True):
            hit = tiou >= threshold
            np.minimum.at(column, truth[hit], rank[row[hit]])
    return first.T


def _recall(found: Integers, kept: Integers, fractions: Floats) -> Floats:
    """Return the (T, P) share of the ground truths that are found within each of the P ascending fractions.

    Args:
        found: (G, T) rank from which a ground truth is found.
        kept: (G,) proposals that its video keeps.
        fractions: (P,) of them that are used.
    """
    # A video's curve depends on the number it keeps alone, of which there are few.
    sizes, curve = np.unique(kept, return_inverse=True)
    used = np.minimum((sizes[:, None] * fractions).astype(np.int64), sizes[:, None])
    # Point of the curve at which more than `found` are used: one search, the curves laid end to end.
    width = sizes[-1] + 1
    ends = (used + np.arange(len(sizes))[:, None] * width).ravel()
    wanted = np.minimum(found, sizes[-1]) + curve[:, None] * width
    point = np.searchsorted(ends, wanted, side="right") - curve[:, None] * len(fractions)
    # One place more, for what no point finds.
    places = len(fractions) + 1
    thresholds = found.shape[1]
    counts = np.bincount((point + np.arange(thresholds) * places).ravel(), minlength=thresholds * places)
    recall: Floats = counts.reshape(thresholds, places)[:, :-1].cumsum(axis=1) / len(found)
    return recall
