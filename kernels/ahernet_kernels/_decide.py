"""Deciding candidates that are laid out by place: in rounds by tiles, and by rank what the rounds leave."""

import triton
import triton.language as tl

from ahernet_kernels._place import BEYOND, label_of, nearest_and_furthest, start_of
from ahernet_kernels._rank import NOT_A_CANDIDATE
from ahernet_kernels._tiou import intersection_and_union

DROPPED = tl.constexpr(0)
UNDECIDED = tl.constexpr(1)
KEPT = tl.constexpr(2)


@triton.jit
def strongest_rival(
    strongest, key, end, rank, first, key_ptr, rank_ptr, end_ptr, state_ptr, candidates,
    TIOU_THRESHOLD: tl.constexpr, BLOCK_NEAR: tl.constexpr,
):  # fmt: skip
    """Raise `strongest` to the state of those from place `first` on that overlap a candidate and rank higher."""
    near = first + tl.arange(0, BLOCK_NEAR)
    inside = near < candidates
    near_state = tl.load(state_ptr + near, mask=inside, other=0, cache_modifier=".cg").to(tl.int32)
    near_key = tl.load(key_ptr + near, mask=inside, other=BEYOND)
    near_end = tl.load(end_ptr + near, mask=inside, other=0.0)
    near_rank = tl.load(rank_ptr + near, mask=inside, other=0)
    intersection, union = intersection_and_union(
        start_of(key)[:, None], end[:, None], start_of(near_key)[None, :], near_end[None, :]
    )
    rivals = (intersection > TIOU_THRESHOLD * union) & (near_rank[None, :] < rank[:, None])
    rivals = rivals & (label_of(near_key)[None, :] == label_of(key)[:, None])
    return tl.maximum(strongest, tl.where(rivals, near_state[None, :], DROPPED))


@triton.jit
def round_kernel(
    key_ptr, rank_ptr, end_ptr, state_ptr, undecided_ptr, candidates, number,
    ROUNDS: tl.constexpr, TIOU_THRESHOLD: tl.constexpr, BLOCK: tl.constexpr, BLOCK_NEAR: tl.constexpr,
):  # fmt: skip
    """Decide in a tile of places whatever waits for nobody outside it; count what is left."""
    video = tl.program_id(1).to(tl.int64)
    undecided_ptr += video * (ROUNDS + 1) + number
    if tl.load(undecided_ptr) != 0:
        key_ptr += video * candidates
        rank_ptr += video * candidates
        end_ptr += video * candidates
        state_ptr += video * candidates
        first = tl.program_id(0) * BLOCK
        place = first + tl.arange(0, BLOCK)
        inside = place < candidates
        state = tl.load(state_ptr + place, mask=inside, other=0).to(tl.int32)
        left = tl.sum((state == UNDECIDED).to(tl.int32), 0)
        if left != 0:
            key = tl.load(key_ptr + place, mask=inside, other=BEYOND)
            end = tl.load(end_ptr + place, mask=inside, other=0.0)
            rank = tl.load(rank_ptr + place, mask=inside, other=0)
            nearest, furthest = nearest_and_furthest(key, end, TIOU_THRESHOLD)
            progress = 1
            while (left != 0) & (progress != 0):
                reach_back = tl.min(tl.where(state == UNDECIDED, nearest, BEYOND), 0)
                reach_on = tl.max(tl.where(state == UNDECIDED, furthest, NOT_A_CANDIDATE), 0)
                strongest = tl.zeros([BLOCK, BLOCK_NEAR], tl.int32)
                at = first
                while tl.load(key_ptr + at, mask=at < candidates, other=BEYOND) <= reach_on:
                    strongest = strongest_rival(
                        strongest, key, end, rank, at, key_ptr, rank_ptr, end_ptr, state_ptr, candidates,
                        TIOU_THRESHOLD, BLOCK_NEAR,
                    )  # fmt: skip
                    at += BLOCK_NEAR
                at = first
                while tl.load(key_ptr + at - 1, mask=at > 0, other=NOT_A_CANDIDATE) >= reach_back:
                    at -= BLOCK_NEAR
                    strongest = strongest_rival(
                        strongest, key, end, rank, at, key_ptr, rank_ptr, end_ptr, state_ptr, candidates,
                        TIOU_THRESHOLD, BLOCK_NEAR,
                    )  # fmt: skip
                rival = tl.max(strongest, 1)
                decided = tl.where(rival == DROPPED, KEPT, tl.where(rival == KEPT, DROPPED, UNDECIDED))
                state = tl.where(state == UNDECIDED, decided, state)
                tl.debug_barrier()
                tl.store(state_ptr + place, state.to(tl.int8), mask=inside)
                tl.debug_barrier()
                still = tl.sum((state == UNDECIDED).to(tl.int32), 0)
                progress = left - still
                left = still
            if left != 0:
                tl.atomic_add(undecided_ptr + 1, left)


@triton.jit
def finisher_kernel(
    key_ptr, end_ptr, state_ptr, place_ptr, undecided_ptr, candidates, outputs,
    ROUNDS: tl.constexpr, TIOU_THRESHOLD: tl.constexpr, BLOCK: tl.constexpr, BLOCK_NEAR: tl.constexpr,
):  # fmt: skip
    """Decide what the rounds left of one video, by rank, 32 at a time, until enough are kept.

    Ranks need not be compared: whatever is kept and overlaps an undecided one ranks higher. The finisher keeps in
    order of rank, and a round keeps only what overlaps no undecided one of higher rank; overlaps are symmetric.
    """
    video = tl.program_id(0).to(tl.int64)
    if tl.load(undecided_ptr + video * (ROUNDS + 1) + ROUNDS) != 0:
        key_ptr += video * candidates
        end_ptr += video * candidates
        state_ptr += video * candidates
        place_ptr += video * candidates
        r = tl.arange(0, 32)
        bit = tl.full([32], 1, tl.int32) << r
        column = tl.arange(0, BLOCK_NEAR)
        kept = 0
        first = 0
        while (first < candidates) & (kept < outputs):
            tile = first + tl.arange(0, BLOCK)
            tile_place = tl.load(place_ptr + tile, mask=tile < candidates, other=0)
            state = tl.load(state_ptr + tile_place, mask=tile < candidates, other=0)
            row = first
            end_of_tile = tl.where(tl.sum((state == UNDECIDED).to(tl.int32), 0) != 0, first + BLOCK, first)
            while row < end_of_tile:
                rank = row + r
                inside = rank < candidates
                place = tl.load(place_ptr + rank, mask=inside, other=0)
                undecided = inside & (tl.load(state_ptr + place, mask=inside, other=0) == UNDECIDED)
                if tl.sum(undecided.to(tl.int32), 0) != 0:
                    key = tl.load(key_ptr + place, mask=undecided, other=BEYOND)
                    start = start_of(key)
                    end = tl.load(end_ptr + place, mask=undecided, other=0.0)
                    nearest, furthest = nearest_and_furthest(key, end, TIOU_THRESHOLD)
                    dropped = tl.zeros([32], tl.int32)
                    for direction in range(-1, 2, 2):
                        near = place[:, None] + direction * (1 + column)[None, :]
                        reached = 1
                        while reached != 0:
                            there = undecided[:, None] & (near >= 0) & (near < candidates)
                            near_key = tl.load(key_ptr + near, mask=there, other=BEYOND)
                            there = there & (near_key >= nearest[:, None]) & (near_key <= furthest[:, None])
                            near_end = tl.load(end_ptr + near, mask=there, other=0.0)
                            intersection, union = intersection_and_union(
                                start[:, None], end[:, None], start_of(near_key), near_end
                            )
                            rivals = there & (intersection > TIOU_THRESHOLD * union)
                            rivals = rivals & (tl.load(state_ptr + near, mask=rivals, other=0) == KEPT)
                            dropped = tl.maximum(dropped, tl.max(rivals.to(tl.int32), 1))
                            reached = tl.max(tl.max(there.to(tl.int32), 1), 0)
                            near += direction * BLOCK_NEAR
                    candidate = undecided & (dropped == 0)
                    intersection, union = intersection_and_union(
                        start[:, None], end[:, None], start[None, :], end[None, :]
                    )
                    over = (intersection > TIOU_THRESHOLD * union) & (r[:, None] < r[None, :])
                    over = over & (label_of(key)[:, None] == label_of(key)[None, :])
                    from_earlier_rows = tl.sum(tl.where(over, bit[:, None], 0), 0)
                    keep_word = tl.sum(tl.where(candidate, bit, 0), 0)
                    changed = 1
                    while changed != 0:
                        unsuppressed = candidate & ((from_earlier_rows & keep_word) == 0)
                        next_word = tl.sum(tl.where(unsuppressed, bit, 0), 0)
                        changed = next_word ^ keep_word
                        keep_word = next_word
                    tl.debug_barrier()
                    decided = tl.where((keep_word & bit) != 0, KEPT, DROPPED).to(tl.int8)
                    tl.store(state_ptr + place, decided, mask=undecided)
                    tl.debug_barrier()
                row += 32
            state = tl.load(state_ptr + tile_place, mask=tile < candidates, other=0)
            kept += tl.sum((state == KEPT).to(tl.int32), 0)
            first += BLOCK
