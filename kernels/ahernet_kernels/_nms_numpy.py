"""Exact greedy NMS of a whole batch on a CPU, without a loop over boxes, videos or classes.

Greedy NMS keeps the lexicographically first maximal independent set of the overlap graph. So it is enough to find
the edges (pairs over the threshold) and to decide, in rounds, every candidate none of whose higher-ranked
neighbours is undecided. Edges come from a search in sorted starts: temporal IoU > t bounds the distance of two
starts by 1 - t times the length of the earlier one and (1 - t) / t times that of the later.

Candidates enter in waves of descending rank, each larger than the last: what survives a wave first suppresses the
rest. That bounds the pairs where one segment suppresses many, and lets a call that wants few outputs stop early. A
wave with more pairs than a first one could have, for its size, is replaced by a smaller one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ahernet_kernels._tiou import Floats, intersection_and_union_numpy

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

FIRST_WAVE = 128
WAVE_GROWTH = 4
CHUNK_PAIRS = 1 << 16  # pairs tested at a time: their columns stay in the cache, and in memory held already
FAR = np.float32(1 + 8e-6)  # covers the rounding of a reach that is far longer than the segment
NOT_A_CANDIDATE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Candidates:
    """Candidates in rank order within each problem; only those of one group (problem and class) compete."""

    start: Floats
    end: Floats
    group: Integers

    def __len__(self) -> int:
        return len(self.group)

    def take(self, rows: Integers) -> "Candidates":
        """The candidates at `rows`, in that order."""
        return Candidates(self.start.take(rows), self.end.take(rows), self.group.take(rows))


@dataclass(frozen=True)
class Neighbours:
    """Candidates in the order of their starts, and who is in reach of whom: of `near[i]` those up to `last[i]`."""

    ordered: Candidates
    by_start: Integers
    near: Integers
    last: Integers

    @property
    def pairs(self) -> int:
        """How many pairs are in reach of each other."""
        return int((self.last - self.near - 1).sum())


def nms_numpy(
    segments: Floats,
    scores: Floats,
    labels: npt.NDArray[np.int32] | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float,
) -> tuple[Integers, Integers]:
    """`nms` on a CPU: segments (B, N, 2), scores (B, N), labels (B, N) -> index (B, max_output), count (B,)."""
    problems = len(scores)
    eligible = is_candidate(segments, scores, min_score)
    order, counts = rank_order(scores, eligible), eligible.sum(axis=1)
    problem = np.repeat(np.arange(problems), counts)
    rank = np.arange(len(problem)) - np.repeat(np.cumsum(counts) - counts, counts)
    source = order.ravel().take(problem * scores.shape[1] + rank)
    row = problem * scores.shape[1] + source
    candidates = Candidates(
        segments[..., 0].ravel().take(row),
        segments[..., 1].ravel().take(row),
        problem if labels is None else dense_groups(problem, labels.ravel().take(row)),
    )
    threshold = np.float32(tiou_threshold)

    kept = np.zeros(0, np.int64)
    undecided = np.arange(len(candidates))
    # Where few overlaps are allowed a small first wave suppresses most of the rest, whatever is asked for.
    decided, limit = 0, FIRST_WAVE if threshold < 0.7 else max(FIRST_WAVE, max_output + max_output // 4)
    while len(undecided):
        in_wave = rank[undecided] < limit
        wave = undecided[in_wave]
        neighbours = _neighbours(candidates if len(wave) == len(candidates) else candidates.take(wave), threshold)
        if neighbours.pairs > FIRST_WAVE * len(wave):
            limit = decided + max(FIRST_WAVE, (limit - decided) // WAVE_GROWTH)
            continue
        undecided = undecided[~in_wave]
        survivors = wave[_greedy(neighbours, threshold)]
        kept = np.concatenate([kept, survivors])
        if not len(undecided):
            break
        enough = np.bincount(problem[kept], minlength=problems) >= max_output
        undecided = undecided[~enough[problem[undecided]]]
        hit = _suppressed_by(candidates.take(survivors), candidates.take(undecided), threshold)
        undecided = undecided[~hit]
        decided, limit = limit, limit * WAVE_GROWTH

    kept.sort(kind="stable")  # a few runs in order: one from each wave
    owner = problem.take(kept)
    kept_counts = np.bincount(owner, minlength=problems)
    place = np.arange(len(kept)) - np.repeat(np.cumsum(kept_counts) - kept_counts, kept_counts)
    wanted = place < max_output
    index = np.full((problems, max_output), -1, np.int64)
    index.ravel()[(owner * max_output + place)[wanted]] = source.take(kept[wanted])
    return index, np.minimum(kept_counts, max_output)


def is_candidate(segments: Floats, scores: Floats, min_score: float) -> Booleans:
    """Which (B, N) are above the minimum and finite."""
    return (scores > np.float32(min_score)) & np.isfinite(segments[..., 0]) & np.isfinite(segments[..., 1])


def rank_order(scores: Floats, eligible: Booleans) -> Integers:
    """Positions (B, N) of each problem's eligible ones in rank order, then as many numbers that mean nothing."""
    descending = ~ordered_bits(scores).astype(np.int64) << 32
    key = np.where(eligible, descending | np.arange(scores.shape[1]), NOT_A_CANDIDATE)
    key.sort(axis=1)
    return key & 0xFFFFFFFF


def ordered_bits(values: Floats) -> npt.NDArray[np.int32]:
    """int32 that order as the values do; -0.0 equals 0.0."""
    bits = (values + np.float32(0)).view(np.int32)
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def dense_groups(problem: Integers, labels: npt.NDArray[np.int32]) -> Integers:
    """Group numbers below 2^31 from problems and labels."""
    if len(labels) == 0:
        return problem
    lowest, classes = int(labels.min()), int(labels.max()) - int(labels.min()) + 1
    group = problem * classes + (labels.astype(np.int64) - lowest)
    if (int(problem[-1]) + 1) * classes < 1 << 31:
        return group
    return np.unique(group, return_inverse=True)[1]


def _key(group: Integers, start: Floats) -> Integers:
    """Numbers that order by group, then start."""
    return (group << 32) + ordered_bits(start)


def sorted_keys(key: Integers) -> tuple[Integers, Integers]:
    """The keys in order, along the last axis, and where each one was."""
    bits = key.shape[-1].bit_length()
    if key.size and -(1 << (63 - bits)) <= key.min() and key.max() < 1 << (63 - bits):
        # numpy sorts numbers several times faster than it sorts places by numbers.
        key = (key << bits) | np.arange(key.shape[-1])
        key.sort()
        return key >> bits, key & ((1 << bits) - 1)
    by_key = np.argsort(key)
    return np.take_along_axis(key, by_key, axis=-1), by_key


def _reach(candidates: Candidates, share: np.float32) -> Floats:
    """How far from a candidate's start another may start and still be over the threshold: a share of its length.

    The bound is exact in real numbers; the margin covers the rounding of the fp32 test.
    """
    length = np.maximum(candidates.end - candidates.start, 0)
    margin = np.float32(4e-6) * (np.abs(candidates.start) + np.abs(candidates.end) + 1)
    return length * share + 2 * margin


def _over_threshold(
    a: Candidates, rows_a: Integers, b: Candidates, rows_b: Integers, threshold: np.float32
) -> Booleans:
    intersection, union = intersection_and_union_numpy(
        a.start.take(rows_a), a.end.take(rows_a), b.start.take(rows_b), b.end.take(rows_b)
    )
    with np.errstate(invalid="ignore"):
        return intersection > threshold * union


def _pairs(first: Integers, last: Integers) -> Iterator[tuple[Integers, Integers]]:
    """All (row, j) with first[row] <= j < last[row], in chunks of about `CHUNK_PAIRS`."""
    counts = np.maximum(last - first, 0)
    ends = np.cumsum(counts)
    row = 0
    while row < len(counts):
        done = ends[row] - counts[row]
        stop = max(int(np.searchsorted(ends, done + CHUNK_PAIRS, side="right")), row + 1)
        rows = np.repeat(np.arange(row, stop), counts[row:stop])
        yield rows, np.arange(done, ends[stop - 1]) + (first - ends + counts).take(rows)
        row = stop


def _neighbours(candidates: Candidates, threshold: np.float32) -> Neighbours:
    """Who is in reach of whom."""
    with np.errstate(over="ignore", invalid="ignore"):
        key, by_start = sorted_keys(_key(candidates.group, candidates.start))
        ordered = candidates.take(by_start)
        furthest = _key(ordered.group, ordered.start + _reach(ordered, 1 - threshold))
        near = np.flatnonzero(key[1:] <= furthest[:-1])  # those with anyone in reach: often few
        return Neighbours(ordered, by_start, near, np.searchsorted(key, furthest.take(near), side="right"))


def _greedy(neighbours: Neighbours, threshold: np.float32) -> Booleans:
    """Which candidates exact greedy NMS keeps."""
    ordered, by_start = neighbours.ordered, neighbours.by_start
    edges = []
    for rows, b in _pairs(neighbours.near + 1, neighbours.last):
        a = neighbours.near.take(rows)
        over = np.flatnonzero(_over_threshold(ordered, a, ordered, b, threshold))
        edges.append((by_start.take(a.take(over)), by_start.take(b.take(over))))
    ends = np.concatenate(edges, axis=1) if edges else np.zeros((2, 0), np.int64)
    return ~_dropped(np.minimum(ends[0], ends[1]), np.maximum(ends[0], ends[1]), len(ordered))


def _dropped(winner: Integers, loser: Integers, size: int) -> Booleans:
    """Decide the edges winner -> loser in rounds: those that nobody threatens are kept and drop their losers."""
    dropped = np.zeros(size, np.bool_)
    while len(winner):
        threatened = np.zeros(size, np.bool_)
        threatened[loser] = True
        decided = ~threatened[winner]
        dropped[loser[decided]] = True
        open_edges = ~(decided | dropped[winner] | dropped[loser])
        winner, loser = winner[open_edges], loser[open_edges]
    return dropped


def _suppressed_by(kept: Candidates, rest: Candidates, threshold: np.float32) -> Booleans:
    """Which of `rest` overlap one of `kept`, all of which rank higher, over the threshold."""
    suppressed = np.zeros(len(rest), np.bool_)
    if not len(kept) or not len(rest):
        return suppressed
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        key, by_start = sorted_keys(_key(kept.group, kept.start))
        kept = kept.take(by_start)
        # At a low threshold the longest of the earlier ones is the tighter bound. Both may be many lengths, whose own
        # rounding is more than the margin. At threshold 0 the first is NaN for what has no length.
        behind = _reach(rest, (1 - threshold) / threshold)
        behind = np.fmin(behind, _reach(rest, np.float32(0)) + np.maximum(kept.end - kept.start, 0).max())
        behind *= FAR
        first = np.searchsorted(key, _key(rest.group, rest.start - behind), side="left")
        last = np.searchsorted(key, _key(rest.group, rest.start + _reach(rest, 1 - threshold)), side="right")
        for rows, others in _pairs(first, last):
            over = _over_threshold(rest, rows, kept, others, threshold)
            suppressed[rows[over]] = True
    return suppressed
