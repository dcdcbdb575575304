"""Exact greedy temporal NMS for more candidates than one tile holds, on a GPU.

Keys are made by one kernel and sorted by torch; then one program a video takes rows 32 at a time, decides them by
the fixed point of `nms`, and strikes what the kept rows suppress from the later columns, tile by tile.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ahernet_kernels._rank import NOT_A_CANDIDATE, ordered_bits, position_of, rank_key
from ahernet_kernels._tiou import intersection_and_union

BLOCK = 1024
NUM_WARPS = 8


@triton.jit
def rank_key_kernel(segments_ptr, scores_ptr, key_ptr, candidates, MIN_SCORE_BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Sortable keys of a tile of candidates of one video."""
    video = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = position < candidates
    at = video * candidates + position
    start = tl.load(segments_ptr + at * 2, mask=inside, other=0.0).to(tl.float32)
    end = tl.load(segments_ptr + at * 2 + 1, mask=inside, other=0.0).to(tl.float32)
    score = tl.load(scores_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(key_ptr + at, rank_key(score, start, end, position, inside, MIN_SCORE_BITS), mask=inside)


@triton.jit
def nms_large_kernel(
    key_ptr,
    segments_ptr,
    labels_ptr,
    ranked_segments_ptr,
    ranked_labels_ptr,
    alive_ptr,
    index_ptr,
    count_ptr,
    candidates,
    outputs,
    TIOU_THRESHOLD: tl.constexpr,
    CLASS_AWARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All candidates of one video, in rank order in memory, 32 rows at a time."""
    video = tl.program_id(0).to(tl.int64)
    key_ptr += video * candidates
    segments_ptr += video * candidates * 2
    labels_ptr += video * candidates
    ranked_segments_ptr += video * candidates * 2
    ranked_labels_ptr += video * candidates
    alive_ptr += video * candidates
    index_ptr += video * outputs

    live = 0
    for tile in range(0, candidates, BLOCK):
        column = tile + tl.arange(0, BLOCK)
        key = tl.load(key_ptr + column, mask=column < candidates, other=NOT_A_CANDIDATE)
        alive = key != NOT_A_CANDIDATE
        position = position_of(key)
        tile_start = tl.load(segments_ptr + position * 2, mask=alive, other=0.0).to(tl.float32)
        tile_end = tl.load(segments_ptr + position * 2 + 1, mask=alive, other=0.0).to(tl.float32)
        tl.store(ranked_segments_ptr + column * 2, tile_start, mask=alive)
        tl.store(ranked_segments_ptr + column * 2 + 1, tile_end, mask=alive)
        if CLASS_AWARE:
            tile_label = tl.load(labels_ptr + position, mask=alive, other=0).to(tl.int32)
            tl.store(ranked_labels_ptr + column, tile_label, mask=alive)
        tl.store(alive_ptr + column, tl.full([BLOCK], 1, tl.int8), mask=alive)
        live += tl.sum(alive.to(tl.int32), 0)
    tl.debug_barrier()

    r = tl.arange(0, 32)
    bit = tl.full([32], 1, tl.int32) << r
    first = 0
    kept = 0
    while (first < live) & (kept < outputs):
        row = first + r
        present = row < live
        candidate = present & (tl.load(alive_ptr + row, mask=present, other=0) != 0)
        start = tl.load(ranked_segments_ptr + row * 2, mask=present, other=0.0)
        end = tl.load(ranked_segments_ptr + row * 2 + 1, mask=present, other=0.0)
        intersection, union = intersection_and_union(start[:, None], end[:, None], start[None, :], end[None, :])
        over = (intersection > TIOU_THRESHOLD * union) & (r[:, None] < r[None, :])
        if CLASS_AWARE:
            label = tl.load(ranked_labels_ptr + row, mask=present, other=0)
            over = over & (label[:, None] == label[None, :])
        from_earlier_rows = tl.sum(tl.where(over, bit[:, None], 0), 0)
        keep_word = tl.sum(tl.where(candidate, bit, 0), 0)
        changed = 1
        while changed != 0:
            next_word = tl.sum(tl.where(candidate & ((from_earlier_rows & keep_word) == 0), bit, 0), 0)
            changed = next_word ^ keep_word
            keep_word = next_word
        keep = (keep_word & bit) != 0
        place = kept + tl.cumsum(keep.to(tl.int32), 0) - 1
        source = position_of(tl.load(key_ptr + row, mask=present, other=0))
        tl.store(index_ptr + place, source, mask=keep & (place < outputs))
        kept += tl.sum(keep.to(tl.int32), 0)
        first += 32
        if kept < outputs:
            for tile in range(first, live, BLOCK):
                column = tile + tl.arange(0, BLOCK)
                inside = column < live
                alive = inside & (tl.load(alive_ptr + column, mask=inside, other=0) != 0)
                tile_start = tl.load(ranked_segments_ptr + column * 2, mask=alive, other=0.0)
                tile_end = tl.load(ranked_segments_ptr + column * 2 + 1, mask=alive, other=0.0)
                tile_label = column
                if CLASS_AWARE:
                    tile_label = tl.load(ranked_labels_ptr + column, mask=alive, other=0)
                for k in range(32):
                    if ((keep_word >> k) & 1) != 0:
                        kept_row = first - 32 + k
                        row_start = tl.load(ranked_segments_ptr + kept_row * 2)
                        row_end = tl.load(ranked_segments_ptr + kept_row * 2 + 1)
                        shared, hull = intersection_and_union(row_start, row_end, tile_start, tile_end)
                        struck = shared > TIOU_THRESHOLD * hull
                        if CLASS_AWARE:
                            struck = struck & (tl.load(ranked_labels_ptr + kept_row) == tile_label)
                        alive = alive & (struck == 0)
                tl.store(alive_ptr + column, alive, mask=inside)
            tl.debug_barrier()
    tl.store(count_ptr + video, tl.minimum(kept, outputs))


def nms_large_launch(
    kernel: Any,
    key_kernel: Any,
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Launch `key_kernel`, a sort and `kernel`; shapes as in `nms`, any number of candidates."""
    videos, candidates = scores.shape
    outputs = min(max_output, candidates)
    index = torch.full((videos, outputs), -1, dtype=torch.int64, device=scores.device)
    count = torch.zeros((videos,), dtype=torch.int64, device=scores.device)
    if videos == 0 or outputs == 0:
        return index, count
    key = torch.empty((videos, candidates), dtype=torch.int64, device=scores.device)
    key_kernel[(videos, triton.cdiv(candidates, block))](
        segments, scores, key, candidates, MIN_SCORE_BITS=ordered_bits(min_score), BLOCK=block
    )
    key = key.sort(dim=1, descending=True).values
    kernel[(videos,)](
        key,
        segments,
        scores if labels is None else labels,
        torch.empty((videos, candidates, 2), dtype=torch.float32, device=scores.device),
        torch.empty((videos, candidates), dtype=torch.int32, device=scores.device),
        torch.empty((videos, candidates), dtype=torch.int8, device=scores.device),
        index,
        count,
        candidates,
        outputs,
        TIOU_THRESHOLD=tiou_threshold,
        CLASS_AWARE=labels is not None,
        BLOCK=block,
        num_warps=NUM_WARPS,
    )
    return index, count
