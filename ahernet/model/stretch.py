"""Sequences whose pieces are each brought to a length of their own, by the interpolation of `resample`.

Every step is the exact mean of the linear interpolant of its piece's rows over the step, which says by how much each
row counts. Forward and backward add up what counts for a step or for a row: in a fixed order, without atomics, and
without differences of running sums, which lose digits.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def stretch(sequence: Tensor, rows: tuple[int, ...], lengths: Tensor, steps: int) -> Tensor:
    """Stretch the pieces of sequences; differentiable in `sequence`.

    Args:
        sequence: (B, R, D) float32 or float64, P pieces one after the other.
        rows: how many of the R rows each piece has, at least 1.
        lengths: (B, P) int64, how many steps each piece gets; 0 leaves it out. The sum is `steps` in every sequence.
        steps: length of the result.

    Returns:
        (B, steps, D) of the dtype of `sequence`.
    """
    stretched: Tensor = _Stretch.apply(sequence, rows, lengths, steps)  # type: ignore[no-untyped-call]
    return stretched


class _Stretch(torch.autograd.Function):
    @staticmethod
    def forward(sequence: Tensor, rows: tuple[int, ...], lengths: Tensor, steps: int) -> Tensor:
        step = _places(lengths, _row_counts(rows, lengths), steps)
        # The rows around both ends of the step and all between; row i is centred at i + 0.5.
        low = (2 * step.own * step.other_size - step.size).clamp(min=0) // (2 * step.size)
        high = (2 * (step.own + 1) * step.other_size - step.size) // (2 * step.size) + 1
        pairs = _pairs(low, high.minimum(step.other_size - 1), sum(rows) + 2 * steps)
        step = step.of(pairs.element)
        return _add_up(sequence, step, pairs, _share(step.own, pairs.partner, step.size, step.other_size))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...], Tensor, int], output: Tensor) -> None:
        _, ctx.rows, lengths, ctx.steps = inputs
        ctx.save_for_backward(lengths)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (lengths,) = ctx.saved_tensors
        row = _places(_row_counts(ctx.rows, lengths), lengths, sum(ctx.rows))
        # The steps from the centre of the row before to that of the row after.
        low = ((2 * row.own - 1) * row.other_size).clamp(min=0) // (2 * row.size)
        high = (2 * row.own + 3) * row.other_size // (2 * row.size)
        pairs = _pairs(low, high.minimum(row.other_size - 1), sum(ctx.rows) + 2 * ctx.steps)
        row = row.of(pairs.element)
        return _add_up(gradient, row, pairs, _share(pairs.partner, row.own, row.other_size, row.size)), None, None, None


class _Places(NamedTuple):
    """Where steps, or rows, are in their pieces, all int64 of one shape.

    own: place in the piece. size: how many of them the piece has; other_size: how many rows, or steps.
    first_other: which row, or step, of the sequence is the first of the piece.
    """

    own: Tensor
    size: Tensor
    other_size: Tensor
    first_other: Tensor

    def of(self, element: Tensor) -> "_Places":
        """Return the places of some elements of the batch."""
        return _Places(*(values.flatten()[element] for values in self))


class _Pairs(NamedTuple):
    """E pairs of a step and a row of one piece, sorted by one of them, the element: both (E,) int64.

    element: number in the batch. partner: place of the other in the piece. starts: (elements + B + 1,) where the pairs
    of each element begin, then those of B parts of the pairs that mean nothing, and where these end.
    """

    element: Tensor
    partner: Tensor
    starts: Tensor


def _row_counts(rows: tuple[int, ...], lengths: Tensor) -> Tensor:
    """Return the rows of the pieces (B, P), made where they are needed: nothing is copied to the device."""
    return torch.stack([lengths.new_full(lengths.shape[:1], count) for count in rows], dim=1)


def _places(sizes: Tensor, other_sizes: Tensor, total: int) -> _Places:
    """Place the `total` steps, or rows, of each sequence in its pieces of `sizes` and `other_sizes` (B, P)."""
    ends = sizes.cumsum(dim=1)
    element = torch.arange(total, device=sizes.device).repeat(len(sizes), 1)
    piece = torch.searchsorted(ends, element, right=True)
    own = element - (ends - sizes).gather(1, piece)
    first_others = other_sizes.cumsum(dim=1) - other_sizes
    return _Places(own, *(values.gather(1, piece) for values in (sizes, other_sizes, first_others)))


def _pairs(low: Tensor, high: Tensor, most: int) -> _Pairs:
    """Pair every element of the batch with its partners low to high (B, N).

    For any sizes of the pieces these are at most `most` a sequence, the sum of the rows and twice the steps. So many
    pairs are made, for that no shape depends on the data.
    """
    counts = (high - low + 1).flatten()
    ends = counts.cumsum(dim=0)
    pair = torch.arange(len(low) * most, device=low.device)
    element = torch.bucketize(pair, ends, right=True).clamp(max=len(ends) - 1)
    partner = pair + (low.flatten() - ends + counts)[element]
    # In parts, because what is added up in one sum is added by one thread after the other.
    meaningless = len(pair) - ends[-1:]
    part_ends = ends[-1:] + meaningless * torch.arange(1, len(low) + 1, device=low.device) // len(low)
    return _Pairs(element, partner, torch.cat([ends.new_zeros(1), ends, part_ends]))


def _share(step: Tensor, row: Tensor, steps: Tensor, rows: Tensor) -> Tensor:
    """Return by how much each row counts in the mean over a step, given their places in the piece and its sizes.

    It is the integral of the row's hat function over the step. In float64: positions have no error that matters.
    """
    width = rows.double() / steps
    left = step * width - row - 0.5
    return (_hat_integral(left + width, row, rows) - _hat_integral(left, row, rows)) / width


def _hat_integral(position: Tensor, row: Tensor, rows: Tensor) -> Tensor:
    """Integrate a row's hat function up to a position, in rows from its centre, but for a constant of the row.

    The function is 1 - |x| between -1 and 1, but 1 left of the first row of a piece and right of its last.
    """
    x = position.clamp(-1, 1)
    constant = ((row == 0) & (position < 0)) | ((row == rows - 1) & (position > 0))
    return torch.where(constant, position, x - x * x.abs() / 2)


def _add_up(values: Tensor, element: _Places, pairs: _Pairs, shares: Tensor) -> Tensor:
    """Add up the values (B, N, D) of the partners of each element, by their shares."""
    videos, partners, _ = values.shape
    elements = (len(pairs.starts) - 1) // videos - 1
    numbers = pairs.element // elements * partners + element.first_other + pairs.partner
    total = F.embedding_bag(
        numbers.clamp(max=videos * partners - 1),  # of pairs that mean nothing
        values.reshape(videos * partners, -1),
        pairs.starts,
        mode="sum",
        per_sample_weights=shares.to(values.dtype),
        include_last_offset=True,
    )
    return total[:-videos].view(videos, elements, -1)
