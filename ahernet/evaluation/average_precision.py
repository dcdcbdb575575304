"""Average precision of detections, with the numbers of the official ActivityNet toolkit.

The toolkit walks over the predictions one by one. Here every (detection, ground truth) pair of one video and
class is a row of flat arrays, and the score-ordered matching is found for all videos, classes and thresholds
at once by deferred acceptance (`_match`).
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ahernet.data.annotations import Annotations
from ahernet.data.detections import Detections
from ahernet.errors import UserError
from ahernet.evaluation.ground_truth import (
    Floats,
    Integers,
    PairedVideos,
    checked_thresholds,
    pair_videos,
    rows_of_one_key,
    truth_columns,
)

TIOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
TIOU_THRESHOLDS.setflags(write=False)

# Pairs compared at once: bounds the memory of a video with very many detections and ground truths.
PAIRS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision per class and threshold, as fractions of 1.

    Attributes:
        classes: the C classes that occur in the ground truth, sorted.
        thresholds: (T,) temporal intersection over union from which a detection can match.
        per_class: (C, T) average precision.
        instances: (C,) int64, ground truths of each class.
        detections: (C,) int64, detections of each class.
        scored: annotated videos that the detections list, in the order of the annotations.
        missing: annotated videos that the detections do not list; their ground truths count as not found.
        unknown: listed videos without annotations; their detections count as false positives.
    """

    classes: tuple[str, ...]
    thresholds: Floats
    per_class: Floats
    instances: Integers
    detections: Integers
    scored: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def mean_per_threshold(self) -> Floats:
        """(T,) mean over the classes: mAP at each threshold."""
        means: Floats = self.per_class.mean(axis=0)
        return means

    @property
    def mean(self) -> float:
        """Mean over classes and thresholds: average mAP."""
        return float(self.mean_per_threshold.mean())

    def select(self, classes: Sequence[str]) -> "AveragePrecision":
        """Return the result of those of `classes` that occur in the ground truth, e.g. the novel ones.

        Raises:
            UserError: none of them occurs.
        """
        wanted = set(classes)
        rows = [row for row, name in enumerate(self.classes) if name in wanted]
        if not rows:
            raise UserError(
                f"class subset {_listed(classes)}: none of its classes occurs in the ground truth, "
                f"which has {_listed(self.classes)}"
            )
        return AveragePrecision(
            classes=tuple(self.classes[row] for row in rows),
            thresholds=self.thresholds,
            per_class=self.per_class[rows],
            instances=self.instances[rows],
            detections=self.detections[rows],
            scored=self.scored,
            missing=self.missing,
            unknown=self.unknown,
        )


@dataclass(frozen=True)
class Matches:
    """Which ground truth each detection takes, for N ranked detections, G ground truths, T thresholds and H hits.

    Attributes:
        classes: the C classes that occur in the ground truth, sorted.
        thresholds: (T,) tiou from which a detection can match.
        videos: how the videos of both files pair.
        row: (N,) row of the detections at each rank: by class, then by score, ties by file order.
        label: (N,) row of `classes`, ascending.
        video: (N,) row of the video in the annotations; unknown videos are numbered after these.
        truth_video: (G,) row in the annotations, ascending.
        truth_label: (G,) row of `classes`.
        truth_segments: (G, 2) seconds.
        rank, limit, truth: (H,) each: detection, row of `thresholds` and ground truth of a hit, ordered by
            threshold, then rank.
    """

    classes: tuple[str, ...]
    thresholds: Floats
    videos: PairedVideos
    row: Integers
    label: Integers
    video: Integers
    truth_video: Integers
    truth_label: Integers
    truth_segments: Floats
    rank: Integers
    limit: Integers
    truth: Integers

    @property
    def instances(self) -> Integers:
        """(C,) ground truths of each class."""
        return np.bincount(self.truth_label, minlength=len(self.classes))

    @property
    def rank_in_class(self) -> Integers:
        """(N,) rank among the detections of the same class, from 0."""
        return np.arange(len(self.label)) - np.searchsorted(self.label, self.label)

    @property
    def curve(self) -> Integers:
        """(H,) number of the curve of precision over recall that a hit is on, ascending: threshold * C + class."""
        curve: Integers = self.limit * len(self.classes) + self.label[self.rank]
        return curve


def average_precision(
    detections: Detections, annotations: Annotations, thresholds: npt.ArrayLike = TIOU_THRESHOLDS
) -> AveragePrecision:
    """Score `detections` against every video of `annotations` (select the subset before).

    Detections match as `match_detections` says. Precision is made non-increasing in recall (VOC 2011) and summed.
    A class without detections has average precision 0.

    Raises:
        UserError: no ground truth at all, or a detection whose label is no class of the ground truth.
        ValueError: thresholds that are not a list of numbers in (0, 1].
    """
    return precision_of(match_detections(detections, annotations, thresholds))


def precision_of(matches: Matches) -> AveragePrecision:
    """Return the average precision of detections that are matched already."""
    return AveragePrecision(
        classes=matches.classes,
        thresholds=matches.thresholds,
        per_class=_area_under_envelope(
            matches.label, (matches.rank, matches.limit), matches.instances, len(matches.thresholds)
        ),
        instances=matches.instances,
        detections=np.bincount(matches.label, minlength=len(matches.classes)),
        scored=matches.videos.scored,
        missing=matches.videos.missing,
        unknown=matches.videos.unknown,
    )


def match_detections(
    detections: Detections, annotations: Annotations, thresholds: npt.ArrayLike = TIOU_THRESHOLDS
) -> Matches:
    """Match `detections` with the ground truth of `annotations`.

    Detections are ranked by score, ties by file order. Each tries the ground truths of its video and class in
    descending tiou, skips those already taken and takes the first with tiou >= threshold; independently per
    threshold. A detection and a ground truth that are both of zero length have no tiou (0 / 0); the toolkit
    counts them as a match at every threshold, and so does this. Among ground truths of equal tiou the last
    comes first, as in the toolkit.

    Raises:
        UserError, ValueError: as `average_precision`.
    """
    limits = checked_thresholds(thresholds)
    truth_video, truth_segments = truth_columns(annotations)
    classes = annotations.classes()
    row_of = {name: row for row, name in enumerate(classes)}
    truth_label = np.array([row_of[name] for video in annotations.videos.values() for name in video.labels], np.int64)
    label = _truth_labels(detections, annotations, classes)[detections.label]
    videos = pair_videos(detections, annotations)
    is_unknown = videos.row < 0
    video = np.where(is_unknown, len(annotations.videos) - 1 + np.cumsum(is_unknown), videos.row)[detections.video]
    order, (rank, limit, truth) = _ranked_hits(
        detections,
        label,
        video * len(classes) + label,
        truth_video * len(classes) + truth_label,
        truth_segments,
        limits,
    )
    return Matches(
        classes=classes,
        thresholds=limits,
        videos=videos,
        row=order,
        label=label[order],
        video=video[order],
        truth_video=truth_video,
        truth_label=truth_label,
        truth_segments=truth_segments,
        rank=rank,
        limit=limit,
        truth=truth,
    )


def pair_tiou(first: Floats, second: Floats) -> Floats:
    """Return the (N,) tiou of row-wise pairs of (N, 2) segments; NaN where both have zero length.

    Same float64 operations as the toolkit, so that a pair on a threshold falls on the same side.
    """
    start = np.maximum(first[:, 0], second[:, 0])
    end = np.minimum(first[:, 1], second[:, 1])
    intersection = (end - start).clip(0)
    union = (second[:, 1] - second[:, 0]) + (first[:, 1] - first[:, 0]) - intersection
    with np.errstate(invalid="ignore", divide="ignore"):
        tiou: Floats = intersection / union
    return tiou


def _truth_labels(detections: Detections, annotations: Annotations, classes: tuple[str, ...]) -> Integers:
    """Return for each class of the detections its row in `classes`, -1 for unused strangers."""
    row_of = {name: row for row, name in enumerate(classes)}
    uses = np.bincount(detections.label, minlength=len(detections.classes))
    for name, use in zip(detections.classes, uses.tolist(), strict=True):
        if use and name not in row_of:
            close = difflib.get_close_matches(name, classes, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {_listed(classes)}"
            raise UserError(
                f"label {name!r} ({use:,} detections): not a class of the ground truth in {annotations.source}; {hint}"
            )
    return np.array([row_of.get(name, -1) for name in detections.classes], dtype=np.int64)


def _ranked_hits(
    detections: Detections,
    label: Integers,
    group: Integers,
    truth_group: Integers,
    truth_segments: Floats,
    thresholds: Floats,
) -> tuple[Integers, tuple[Integers, Integers, Integers]]:
    """Rank the detections by class, then score, and match them.

    Returns:
        the rows in rank order, and the hits as (rank, row of `thresholds`, row of the ground truth), sorted by
        threshold, then rank.
    """
    order = np.lexsort((-detections.scores, label))
    truth_order = np.argsort(truth_group, kind="stable")
    truth_group, truth_segments = truth_group[truth_order], truth_segments[truth_order]
    blocks = _pairs(group[order], detections.segments[order], truth_group, truth_segments, float(thresholds.min()))
    rank, truth, tiou = (np.concatenate(column) for column in zip(*blocks, strict=True))
    rank, limit, truth = _match(rank, truth, tiou, len(truth_group), thresholds)
    return order, (rank, limit, truth_order[truth])


def _pairs(
    group: Integers, segments: Floats, truth_group: Integers, truth_segments: Floats, minimum: float
) -> Iterator[tuple[Integers, Integers, Floats]]:
    """Yield (rank, ground truth, tiou) of all pairs of one group with tiou >= `minimum`, in blocks.

    `truth_group` is sorted. A tiou of 0 / 0 becomes infinity: it matches always and is tried first.
    """
    for rank, truth in rows_of_one_key(group, truth_group, PAIRS_AT_ONCE):
        tiou = pair_tiou(segments[rank], truth_segments[truth])
        tiou[np.isnan(tiou)] = np.inf
        kept = tiou >= minimum
        yield rank[kept], truth[kept], tiou[kept]
    yield np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)


def _match(
    rank: Integers, truth: Integers, tiou: Floats, truths: int, thresholds: Floats
) -> tuple[Integers, Integers, Integers]:
    """Return the (rank, row of `thresholds`, ground truth) that match, as if the ranks chose one after the other.

    Deferred acceptance: in each round every detection claims the best ground truth that has not refused it,
    and a ground truth keeps the best-ranked claim it ever had and refuses the others. All ground truths
    prefer by the same rank, so the stable outcome is unique: the one of the sequential choice. Rounds grow
    with the ground truths that one detection reaches, not with the detections.
    """
    order = np.lexsort((-truth, -tiou, rank))
    rank, truth, tiou = rank[order], truth[order], tiou[order]
    starts = np.flatnonzero(np.diff(rank, prepend=-1))
    # One claimant per (detection, threshold); what it may claim is a prefix of the detection's sorted pairs.
    over = np.zeros((len(rank) + 1, len(thresholds)), dtype=np.int64)
    np.cumsum(tiou[:, None] >= thresholds, axis=0, out=over[1:])
    reach = np.diff(over[np.append(starts, len(rank))], axis=0)
    claimant, limit = np.nonzero(reach)
    claim = starts[claimant]
    end = claim + reach[claimant, limit]
    best = np.full(truths * len(thresholds), np.iinfo(np.int64).max)
    while True:
        place = truth[claim] * len(thresholds) + limit
        np.minimum.at(best, place, rank[claim])
        refused = best[place] != rank[claim]
        if not refused.any():
            break
        claim = claim + refused
        left = claim < end
        claim, end, limit = claim[left], end[left], limit[left]
    by_threshold = np.lexsort((rank[claim], limit))
    claim = claim[by_threshold]
    return rank[claim], limit[by_threshold], truth[claim]


def _area_under_envelope(
    label: Integers, hits: tuple[Integers, Integers], instances: Integers, thresholds: int
) -> Floats:
    """Return the (C, T) average precision from labels in rank order and the hits of `_ranked_hits`.

    Each hit raises recall by 1 / instances; it contributes the highest precision at its own or a later rank,
    and precision is highest at hits, so hits are all that is needed.
    """
    rank, limit = hits
    classes = len(instances)
    curve = limit * classes + label[rank]
    hits_before = np.arange(len(rank)) - np.searchsorted(curve, curve)
    rank_in_class = rank - np.searchsorted(label, label[rank])
    precision = (hits_before + 1) / (rank_in_class + 1)
    # A running maximum from the end that restarts at each curve: earlier curves have larger keys.
    values, order = np.unique(precision, return_inverse=True)
    key = order - curve * len(values)
    envelope = values[np.maximum.accumulate(key[::-1])[::-1] + curve * len(values)]
    area = np.bincount(curve, weights=envelope, minlength=thresholds * classes)
    per_class: Floats = area.reshape(-1, classes).T / instances[:, None]
    return per_class


def _listed(names: Sequence[str], at_most: int = 5) -> str:
    more = f" and {len(names) - at_most:,} more" if len(names) > at_most else ""
    return ", ".join(map(repr, names[:at_most])) + more
