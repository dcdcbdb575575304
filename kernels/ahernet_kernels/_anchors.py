"""The scales of a network and the anchors of their cells, in the one form that every op uses on every device.

Cells are ordered by scale; anchors by scale, cell, ratio. A candidate whose offsets are meaningless has the segment
(0, 0); its score is -inf, as is that of one of which clipping to the video leaves nothing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ahernet_kernels._tiou import FLOAT_MAX

MAX_SCALES = 8


@triton.jit
def of_scale(scale, v0, v1, v2, v3, v4, v5, v6, v7):
    """The value or pointer of one scale."""
    v = tl.where(scale == 1, v1, v0)
    v = tl.where(scale == 2, v2, v)
    v = tl.where(scale == 3, v3, v)
    v = tl.where(scale == 4, v4, v)
    v = tl.where(scale == 5, v5, v)
    v = tl.where(scale == 6, v6, v)
    return tl.where(scale == 7, v7, v)


@triton.jit
def first_of_scale(
    scale,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr,
    N4: tl.constexpr, N5: tl.constexpr, N6: tl.constexpr,
):  # fmt: skip
    """How many there are in the scales before one, given how many in each."""
    S2: tl.constexpr = N0 + N1
    S3: tl.constexpr = S2 + N2
    S4: tl.constexpr = S3 + N3
    S5: tl.constexpr = S4 + N4
    S6: tl.constexpr = S5 + N5
    return of_scale(scale, 0, N0, S2, S3, S4, S5, S6, S6 + N6)


@triton.jit
def tile_of_cells(
    tile,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
):  # fmt: skip
    """Scale of a tile, cells of the scale, the tile's cells in it, and how many cells lie in earlier scales."""
    N1: tl.constexpr = (T0 + BLOCK_CELLS - 1) // BLOCK_CELLS  # first tile of scale 1, and so on
    N2: tl.constexpr = N1 + (T1 + BLOCK_CELLS - 1) // BLOCK_CELLS
    N3: tl.constexpr = N2 + (T2 + BLOCK_CELLS - 1) // BLOCK_CELLS
    N4: tl.constexpr = N3 + (T3 + BLOCK_CELLS - 1) // BLOCK_CELLS
    N5: tl.constexpr = N4 + (T4 + BLOCK_CELLS - 1) // BLOCK_CELLS
    N6: tl.constexpr = N5 + (T5 + BLOCK_CELLS - 1) // BLOCK_CELLS
    N7: tl.constexpr = N6 + (T6 + BLOCK_CELLS - 1) // BLOCK_CELLS
    scale = (tile >= N1).to(tl.int32) + (tile >= N2).to(tl.int32) + (tile >= N3).to(tl.int32)
    scale += (tile >= N4).to(tl.int32) + (tile >= N5).to(tl.int32) + (tile >= N6).to(tl.int32)
    scale += (tile >= N7).to(tl.int32)
    cells = of_scale(scale, T0, T1, T2, T3, T4, T5, T6, T7)
    cell = (tile - of_scale(scale, 0, N1, N2, N3, N4, N5, N6, N7)) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    return scale, cells, cell, first_of_scale(scale, T0, T1, T2, T3, T4, T5, T6)


@triton.jit
def scale_of_cell(
    number,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
):  # fmt: skip
    """Scale of a cell with a number among those of all scales, cells of the scale, and how many are in earlier ones."""
    C2: tl.constexpr = T0 + T1  # first cell of scale 2, and so on
    C3: tl.constexpr = C2 + T2
    C4: tl.constexpr = C3 + T3
    C5: tl.constexpr = C4 + T4
    C6: tl.constexpr = C5 + T5
    C7: tl.constexpr = C6 + T6
    scale = (number >= T0).to(tl.int32) + (number >= C2).to(tl.int32) + (number >= C3).to(tl.int32)
    scale += (number >= C4).to(tl.int32) + (number >= C5).to(tl.int32) + (number >= C6).to(tl.int32)
    scale += (number >= C7).to(tl.int32)
    cells = of_scale(scale, T0, T1, T2, T3, T4, T5, T6, T7)
    return scale, cells, of_scale(scale, 0, T0, C2, C3, C4, C5, C6, C7)


@triton.jit
def first_value(video, channels, cell, cells, CHANNELS_LAST: tl.constexpr):
    """Where channel 0 of a cell is in the `(B, channels, cells)` values of a scale."""
    return (video * cells + cell) * channels if CHANNELS_LAST else video * channels * cells + cell


@triton.jit
def decode_anchors(
    video, anchor, inside, probability_ptr, cell_labels_ptr,
    offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7,
    overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7,
    anchors_ptr, segments_ptr, scores_ptr, labels_ptr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, T3: tl.constexpr,
    T4: tl.constexpr, T5: tl.constexpr, T6: tl.constexpr, T7: tl.constexpr,
    RATIOS: tl.constexpr, CENTRE_SCALE: tl.constexpr, WIDTH_SCALE: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Store segment, score and label of anchors (eq. 5), given probability and label of the best class of each cell."""
    all_cells = T0 + T1 + T2 + T3 + T4 + T5 + T6 + T7
    number, ratio = anchor // RATIOS, anchor % RATIOS
    scale, cells, earlier_cells = scale_of_cell(number, T0, T1, T2, T3, T4, T5, T6, T7)
    cell = number - earlier_cells
    step = 1 if CHANNELS_LAST else cells
    offsets_ptr = of_scale(
        scale, offsets_0, offsets_1, offsets_2, offsets_3, offsets_4, offsets_5, offsets_6, offsets_7
    )
    overlaps_ptr = of_scale(
        scale, overlaps_0, overlaps_1, overlaps_2, overlaps_3, overlaps_4, overlaps_5, overlaps_6, overlaps_7
    )
    offsets_ptr += first_value(video, 2 * RATIOS, cell, cells, CHANNELS_LAST) + 2 * ratio * step
    overlaps_ptr += first_value(video, RATIOS, cell, cells, CHANNELS_LAST) + ratio * step
    anchor_centre = tl.load(anchors_ptr + anchor * 2, mask=inside, other=0.0).to(tl.float32)
    anchor_width = tl.load(anchors_ptr + anchor * 2 + 1, mask=inside, other=0.0).to(tl.float32)
    centre_offset = tl.load(offsets_ptr, mask=inside, other=0.0).to(tl.float32)
    width_offset = tl.load(offsets_ptr + step, mask=inside, other=0.0).to(tl.float32)
    overlap = tl.load(overlaps_ptr, mask=inside, other=0.0).to(tl.float32)
    probability = tl.load(probability_ptr + video * all_cells + number, mask=inside, other=0.0)
    label = tl.load(cell_labels_ptr + video * all_cells + number, mask=inside, other=0)

    centre = anchor_centre + CENTRE_SCALE * anchor_width * centre_offset
    half_width = 0.5 * anchor_width * tl.exp(WIDTH_SCALE * width_offset)
    valid = (tl.abs(centre) <= FLOAT_MAX) & (half_width == half_width)
    start = tl.where(valid, tl.minimum(tl.maximum(centre - half_width, 0.0), 1.0), 0.0)
    end = tl.where(valid, tl.minimum(tl.maximum(centre + half_width, 0.0), 1.0), 0.0)
    overlap = tl.where(overlap == overlap, tl.div_rn(1.0, 1.0 + tl.exp(-overlap)), 0.0)
    score = tl.where(end > start, probability * overlap, float("-inf"))
    at = video * all_cells * RATIOS + anchor
    tl.store(segments_ptr + at * 2, start, mask=inside)
    tl.store(segments_ptr + at * 2 + 1, end, mask=inside)
    tl.store(scores_ptr + at, score, mask=inside)
    tl.store(labels_ptr + at, label.to(tl.int64), mask=inside)


def decode_anchors_torch(
    probability: Tensor,
    labels: Tensor,
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Segments, scores and labels of all anchors from probability and label (B, cells) of the cells."""
    ratios = overlaps[0].shape[1]
    offset = _per_anchor(offsets, ratios)
    anchor_centre, anchor_width = anchors.float().unbind(-1)
    centre = anchor_centre + centre_scale * anchor_width * offset[..., 0]
    half_width = (width_scale * offset[..., 1]).exp_().mul_(0.5 * anchor_width)
    centre.nan_to_num_(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)  # both ends of such a segment become 0
    segments = torch.stack([centre - half_width, centre + half_width], dim=-1).clamp_(0.0, 1.0).nan_to_num_(nan=0.0)
    scores = _per_anchor(overlaps, ratios)[..., 0].sigmoid_().nan_to_num_(nan=0.0)
    scores.mul_(probability.repeat_interleave(ratios, dim=1))
    scores.masked_fill_(segments[..., 1] <= segments[..., 0], -torch.inf)
    return segments, scores, labels.repeat_interleave(ratios, dim=1)


def _per_anchor(per_scale: list[Tensor], ratios: int) -> Tensor:
    """(B, ratios * K, T_j) of all scales -> (B, A, K) in the order of the anchors."""
    return torch.cat([x.float().unflatten(1, (ratios, -1)).permute(0, 3, 1, 2).flatten(1, 2) for x in per_scale], dim=1)
