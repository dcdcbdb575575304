"""Exact greedy temporal NMS for more candidates than one tile holds, on a GPU: many programs, fixed launches.

Greedy NMS keeps the lexicographically first maximal independent set of the overlap graph (Blelloch et al., SPAA
2012), so candidates may be decided in any order that waits for their higher-ranked neighbours. Candidates are laid
out by (label, start). There temporal IoU > t bounds how far from each other two of them stand: by 1 - t times the
length of the earlier one and (1 - t) / t times that of the later. In every round each tile of candidates looks at what
is within its reach: who overlaps a kept one of higher rank is dropped, who overlaps no undecided one is kept. Decisions
are final, so a state read too early only delays. A few rounds decide nearly everything; chains that are longer end in
a finisher, one program a video that takes what is undecided by rank.

The work grows with the number of candidates within reach: it is linear in N where a tile's neighbourhood is bounded.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ahernet_kernels._decide import DROPPED, KEPT, UNDECIDED
from ahernet_kernels._place import BEYOND, place_key
from ahernet_kernels._rank import NOT_A_CANDIDATE, ordered_bits, position_of, rank_key
from ahernet_kernels._tuning import launch_settings

DEFAULTS = {
    "ROUNDS": 3,
    "BLOCK": 32,  # candidates of a tile
    "BLOCK_NEAR": 16,  # those near it that it compares with at a time: a divisor of BLOCK
    "LAYOUT_BLOCK": 1024,  # of the kernels that only move
    "FINISHER_BLOCK": 1024,
    "num_warps": 1,
}
FINISHER_NEAR, FINISHER_WARPS = 32, 8
MOST_VIDEOS = 65_535  # as many as the second axis of a grid has room for; tiles of a video need the first one


@triton.jit
def rank_key_kernel(
    segments_ptr, scores_ptr, rank_key_ptr, candidates, MIN_SCORE_BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Sortable rank keys of a tile of candidates of one video."""
    video = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < candidates
    at = video * candidates + position
    start = tl.load(segments_ptr + at * 2, mask=inside, other=0.0).to(tl.float32)
    end = tl.load(segments_ptr + at * 2 + 1, mask=inside, other=0.0).to(tl.float32)
    score = tl.load(scores_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(rank_key_ptr + at, rank_key(score, start, end, position, inside, MIN_SCORE_BITS), mask=inside)


@triton.jit
def place_key_kernel(
    rank_key_ptr, segments_ptr, labels_ptr, place_key_ptr, candidates, CLASS_AWARE: tl.constexpr, BLOCK: tl.constexpr
):
    """Sortable place keys, in rank order."""
    base = tl.program_id(1).to(tl.int64) * candidates
    rank = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rank < candidates
    key = tl.load(rank_key_ptr + base + rank, mask=inside, other=NOT_A_CANDIDATE)
    eligible = key != NOT_A_CANDIDATE
    at = base + position_of(key)
    start = tl.load(segments_ptr + at * 2, mask=eligible, other=0.0).to(tl.float32)
    label = tl.zeros([BLOCK], tl.int32)
    if CLASS_AWARE:
        label = tl.load(labels_ptr + at, mask=eligible, other=0).to(tl.int32)
    tl.store(place_key_ptr + base + rank, tl.where(eligible, place_key(label, start), BEYOND), mask=inside)


@triton.jit
def lay_out_kernel(
    rank_key_ptr, place_key_ptr, order_ptr, segments_ptr, end_ptr, rank_ptr, place_ptr, state_ptr, undecided_ptr,
    candidates,
    ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """End, rank and state of the candidate at each place, the place of each rank, and the counters of the rounds."""
    video = tl.program_id(1).to(tl.int64)
    base = video * candidates
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < candidates
    eligible = tl.load(place_key_ptr + base + place, mask=inside, other=BEYOND) != BEYOND
    rank = tl.load(order_ptr + base + place, mask=inside, other=0)
    position = position_of(tl.load(rank_key_ptr + base + rank, mask=eligible, other=0))
    end = tl.load(segments_ptr + (base + position) * 2 + 1, mask=eligible, other=0.0).to(tl.float32)
    tl.store(end_ptr + base + place, end, mask=inside)
    tl.store(rank_ptr + base + place, rank.to(tl.int32), mask=inside)
    tl.store(place_ptr + base + rank, place, mask=inside)
    tl.store(state_ptr + base + place, tl.where(eligible, UNDECIDED, DROPPED).to(tl.int8), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(undecided_ptr + video * (ROUNDS + 1), 1)
        for number in tl.static_range(ROUNDS):
            tl.store(undecided_ptr + video * (ROUNDS + 1) + number + 1, 0)


@triton.jit
def kept_kernel(state_ptr, place_ptr, kept_ptr, candidates, BLOCK: tl.constexpr):
    """Whether the candidate of each rank is kept: 1 or 0, to be summed."""
    base = tl.program_id(1).to(tl.int64) * candidates
    rank = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rank < candidates
    place = tl.load(place_ptr + base + rank, mask=inside, other=0)
    state = tl.load(state_ptr + base + place, mask=inside, other=0)
    tl.store(kept_ptr + base + rank, (state == KEPT).to(tl.int32), mask=inside)


@triton.jit
def output_kernel(rank_key_ptr, number_kept_ptr, index_ptr, count_ptr, candidates, outputs, BLOCK: tl.constexpr):
    """Positions of the first kept in rank order; `number_kept` is the running number of kept, this one included."""
    video = tl.program_id(1).to(tl.int64)
    base = video * candidates
    rank = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rank < candidates
    number = tl.load(number_kept_ptr + base + rank, mask=inside, other=0)
    before = tl.load(number_kept_ptr + base + rank - 1, mask=inside & (rank > 0), other=0)
    position = position_of(tl.load(rank_key_ptr + base + rank, mask=inside, other=0))
    index_ptr += video * outputs
    tl.store(index_ptr + number - 1, position.to(tl.int64), mask=inside & (number > before) & (number <= outputs))
    count = tl.minimum(tl.load(number_kept_ptr + base + candidates - 1), outputs)
    tl.store(index_ptr + rank, tl.full([BLOCK], -1, tl.int64), mask=(rank >= count) & (rank < outputs))
    if tl.program_id(0) == 0:
        tl.store(count_ptr + video, count.to(tl.int64))


class Kernels(NamedTuple):
    """The kernels of `nms_large_launch`, in the order of their launches."""

    rank_key: Any
    place_key: Any
    lay_out: Any
    round: Any
    finisher: Any
    kept: Any
    output: Any


def nms_large_launch(
    kernels: Kernels,
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float,
) -> tuple[Tensor, Tensor]:
    """Launch the kernels, two sorts and a running sum; shapes as in `nms`, any number of candidates below 2^31.

    Raises:
        ValueError: there are more than `MOST_VIDEOS` videos.
    """
    videos, candidates = scores.shape
    if videos > MOST_VIDEOS:
        raise ValueError(f"scores: expected at most {MOST_VIDEOS} videos of so many candidates, got {videos}")
    outputs = min(max_output, candidates)
    new = partial(torch.empty, device=scores.device)
    index, count = new((videos, outputs), dtype=torch.int64), new((videos,), dtype=torch.int64)
    if videos == 0 or outputs == 0:
        return index, count.zero_()
    settings = launch_settings("nms_large", DEFAULTS)
    rounds, moving = {"ROUNDS": settings["ROUNDS"]}, {"BLOCK": settings["LAYOUT_BLOCK"]}
    tiles = (triton.cdiv(candidates, settings["LAYOUT_BLOCK"]), videos)
    shape = (videos, candidates)
    ranks, places = new(shape, dtype=torch.int64), new(shape, dtype=torch.int64)
    end, state = new(shape, dtype=torch.float32), new(shape, dtype=torch.int8)
    rank, place, kept = (new(shape, dtype=torch.int32) for _ in range(3))
    undecided = new((videos, settings["ROUNDS"] + 1), dtype=torch.int32)
    labels_or_any = scores if labels is None else labels

    kernels.rank_key[tiles](segments, scores, ranks, candidates, MIN_SCORE_BITS=ordered_bits(min_score), **moving)
    ranks = ranks.sort(dim=1, descending=True).values
    kernels.place_key[tiles](
        ranks, segments, labels_or_any, places, candidates, CLASS_AWARE=labels is not None, **moving
    )
    places, order = places.sort(dim=1)
    kernels.lay_out[tiles](
        ranks, places, order, segments, end, rank, place, state, undecided, candidates, **rounds, **moving
    )
    for number in range(settings["ROUNDS"]):
        kernels.round[(triton.cdiv(candidates, settings["BLOCK"]), videos)](
            places,
            rank,
            end,
            state,
            undecided,
            candidates,
            number,
            **rounds,
            TIOU_THRESHOLD=tiou_threshold,
            BLOCK=settings["BLOCK"],
            BLOCK_NEAR=settings["BLOCK_NEAR"],
            num_warps=settings["num_warps"],
        )
    kernels.finisher[(videos,)](
        places,
        end,
        state,
        place,
        undecided,
        candidates,
        outputs,
        **rounds,
        TIOU_THRESHOLD=tiou_threshold,
        BLOCK=settings["FINISHER_BLOCK"],
        BLOCK_NEAR=FINISHER_NEAR,
        num_warps=FINISHER_WARPS,
    )
    kernels.kept[tiles](state, place, kept, candidates, **moving)
    number_kept = kept.cumsum(dim=1, dtype=torch.int32)
    kernels.output[tiles](ranks, number_kept, index, count, candidates, outputs, **moving)
    return index, count
