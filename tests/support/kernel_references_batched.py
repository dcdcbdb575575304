"""The exact contracts for thousands of cases at a time: arrays over cases, loops over candidates and ground truths.

What `kernel_references` says of one case, in fp32 and in the same order of operations, for all cases of a call at
once. Nothing here is shared with the kernels. Functions take and return what the public ops do, on CPU tensors.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Segments = tuple[Floats, Floats]

ZERO, ONE = np.float32(0), np.float32(1)
NOWHERE = np.float32(-np.inf)  # the score of what is no candidate any more


def array_of(tensor: Tensor) -> Floats:
    """The fp32 values of a tensor."""
    return tensor.detach().float().numpy()


def segments_of(rows: Floats) -> Segments:
    """Starts and ends of `(..., 2)` rows, what is not finite as (0, 0)."""
    finite = np.isfinite(rows).all(axis=-1)
    return np.where(finite, rows[..., 0], ZERO), np.where(finite, rows[..., 1], ZERO)


def anchor_segments_of(rows: Floats) -> Segments:
    """Starts and ends of `(..., 2)` rows of centre and width."""
    with np.errstate(over="ignore", invalid="ignore"):
        half = rows[..., 1] * np.float32(0.5)
        return segments_of(np.stack([rows[..., 0] - half, rows[..., 0] + half], axis=-1))


def intersection_and_union(a: Segments, b: Segments) -> Segments:
    """Of segments that broadcast."""
    with np.errstate(over="ignore", invalid="ignore"):
        shared = np.maximum(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), ZERO)
        both = np.maximum(a[1] - a[0], ZERO) + np.maximum(b[1] - b[0], ZERO)
        return shared, both - shared


def tiou_of(a: Segments, b: Segments) -> Floats:
    """Of segments that broadcast; 0 where the union is not above 0."""
    shared, union = intersection_and_union(a, b)
    with np.errstate(invalid="ignore"):
        return np.where(union > 0, shared / np.where(union > 0, union, ONE), ZERO)


def over(a: Segments, b: Segments, threshold: float) -> Booleans:
    """Whether pairs of segments are over a threshold."""
    shared, union = intersection_and_union(a, b)
    with np.errstate(invalid="ignore", over="ignore"):
        return shared > np.float32(threshold) * union


def at(segments: Segments, place: object) -> Segments:
    """The segments at a place of the arrays."""
    return segments[0][place], segments[1][place]


def pairwise_tiou(a: Tensor, b: Tensor) -> Tensor:
    """Column after column."""
    of_a, of_b = segments_of(array_of(a)), segments_of(array_of(b))
    table = np.zeros((len(a), len(b)), np.float32)
    for column in range(len(b)):
        table[:, column] = tiou_of(of_a, at(of_b, column))
    return torch.from_numpy(table)


def match(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """One ground truth of every video after the other."""
    index, tiou = _match(array_of(anchors), array_of(gt_segments), gt_offsets.numpy())
    return torch.from_numpy(index), torch.from_numpy(tiou)


def _match(anchors: Floats, truths: Floats, offsets: Integers) -> tuple[Integers, Floats]:
    of_anchors = anchor_segments_of(anchors)
    index = np.full((len(offsets) - 1, len(anchors)), -1)
    tiou = np.zeros(index.shape, np.float32)
    for videos, rows in _one_truth_each(offsets):
        value = tiou_of(of_anchors, at(segments_of(truths[rows]), (slice(None), None)))
        closer = value > tiou[videos]
        tiou[videos] = np.where(closer, value, tiou[videos])
        index[videos] = np.where(closer, rows[:, None], index[videos])
    return index, tiou


def _one_truth_each(offsets: Integers) -> list[tuple[Integers, Integers]]:
    """The first ground truth of every video that has one, then the second, and so on: videos and rows."""
    counts = np.diff(offsets)
    rounds = (np.flatnonzero(counts > number) for number in range(counts.max(initial=0)))
    return [(videos, offsets[videos] + number) for number, videos in enumerate(rounds)]


def assign(
    anchors: Tensor,
    gt_segments: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    foreground_threshold: float = 0.8,
    background_threshold: float = 0.3,
    force_match: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `match`, then the thresholds, then one ground truth of every video after the other forces its anchor."""
    rows, truths, offsets = array_of(anchors), array_of(gt_segments), gt_offsets.numpy()
    index, tiou = _match(rows, truths, offsets)
    of_truths = segments_of(np.concatenate([truths, np.zeros((1, 2), np.float32)]))  # of index -1, the last one
    shared, union = intersection_and_union(anchor_segments_of(rows), at(of_truths, index))
    union = np.where(index < 0, ONE, union)
    with np.errstate(invalid="ignore", over="ignore"):
        foreground = shared > np.float32(foreground_threshold) * union
        background = shared < np.float32(background_threshold) * union
    kind = np.where(foreground, 1, np.where(background, 0, -1))
    if force_match:
        _force(rows, truths, offsets, index, tiou, kind)
    labels = np.where(index < 0, -1, np.append(gt_labels.numpy(), -1)[index])
    targets = np.stack(at(of_truths, index), axis=-1)
    return tuple(torch.from_numpy(x) for x in (kind, labels, targets, tiou))  # type: ignore[return-value]


def _force(anchors: Floats, truths: Floats, offsets: Integers, index: Integers, tiou: Floats, kind: Integers) -> None:
    if not len(anchors):
        return
    of_anchors, claim = anchor_segments_of(anchors), np.zeros_like(tiou)
    for videos, rows in _one_truth_each(offsets):
        value = tiou_of(of_anchors, at(segments_of(truths[rows]), (slice(None), None)))
        best = value.argmax(axis=1)
        value = value[np.arange(len(best)), best]
        wins = value > claim[videos, best]
        place = (videos[wins], best[wins])
        claim[place], index[place], tiou[place], kind[place] = value[wins], rows[wins], value[wins], 1


def candidates_of(segments: Tensor, scores: Tensor, min_score: float) -> tuple[Booleans, Integers]:
    """Which are candidates, and all positions of every video with its candidates first, by descending score."""
    values = array_of(scores)
    eligible = (values > np.float32(min_score)) & np.isfinite(array_of(segments)).all(axis=-1)
    rank = np.argsort(np.where(eligible, -(values + ZERO), np.float32(np.inf)), axis=1, kind="stable")
    return eligible, rank


def nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float = -math.inf,
) -> tuple[Tensor, Tensor]:
    """The first ranked candidate of every video, then the second, and so on."""
    eligible, rank = candidates_of(segments, scores, min_score)
    videos, size = scores.shape
    ranked = at(segments_of(array_of(segments)), (np.arange(videos)[:, None], rank))
    classes = None if labels is None else np.take_along_axis(labels.numpy(), rank, axis=1)
    kept = np.take_along_axis(eligible, rank, axis=1)
    for number in range(1, size):
        rivals = kept[:, :number]
        if classes is not None:
            rivals = rivals & (classes[:, :number] == classes[:, number, None])
        before, mine = at(ranked, (slice(None), slice(number))), at(ranked, (slice(None), number, None))
        kept[:, number] &= ~(rivals & over(before, mine, tiou_threshold)).any(axis=1)
    return _first_kept(rank, kept, min(max_output, size))


def _first_kept(rank: Integers, kept: Booleans, outputs: int) -> tuple[Tensor, Tensor]:
    """Positions of the first kept in the order of their rank, -1 behind them; and how many."""
    index = np.full((len(rank), outputs), -1)
    count = np.zeros(len(rank), np.int64)
    for number in range(rank.shape[1]):
        videos = np.flatnonzero(kept[:, number] & (count < outputs))
        index[videos, count[videos]] = rank[videos, number]
        count[videos] += 1
    return torch.from_numpy(index), torch.from_numpy(count)


def soft_nms_linear(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    threshold: float,
    max_output: int,
    min_score: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A pick of every video after the other, each decaying what is left."""
    eligible, _ = candidates_of(segments, scores, min_score)
    all_segments, left = segments_of(array_of(segments)), np.where(eligible, array_of(scores), NOWHERE)
    videos, size = scores.shape
    index = np.full((videos, min(max_output, size)), -1)
    kept_scores = np.zeros(index.shape, np.float32)
    for pick in range(index.shape[1]):
        best = left.argmax(axis=1)
        picked = (np.arange(videos), best)
        found = left[picked] > NOWHERE
        index[found, pick], kept_scores[found, pick] = best[found], left[picked][found]
        left[picked] = NOWHERE
        winner = at(all_segments, (*picked, None))
        decays = over(winner, all_segments, threshold)
        if labels is not None:
            decays &= labels.numpy() == labels.numpy()[(*picked, None)]
        with np.errstate(invalid="ignore"):
            after = np.where(decays, left * (ONE - tiou_of(winner, all_segments)), left)
            left = np.where(after > np.float32(min_score), after, NOWHERE)
    return torch.from_numpy(index), torch.from_numpy(kept_scores), torch.from_numpy((index >= 0).sum(axis=1))


def pick(segments: Tensor, scores: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One row of every video after the other."""
    videos, outputs = index.shape
    picked_segments = np.zeros((videos, outputs, 2), np.float32)
    picked_scores = np.zeros((videos, outputs), np.float32)
    picked_labels = np.full((videos, outputs), -1)
    for row in range(outputs):
        position = index.numpy()[:, row]
        video = np.flatnonzero(position >= 0)
        chosen = (video, position[video])
        picked_segments[video, row] = array_of(segments)[chosen]
        picked_scores[video, row] = array_of(scores)[chosen]
        picked_labels[video, row] = labels.numpy()[chosen]
    return torch.from_numpy(picked_segments), torch.from_numpy(picked_scores), torch.from_numpy(picked_labels)
