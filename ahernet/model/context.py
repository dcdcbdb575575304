"""Context generation: what could have come before and after a moment (section 3.3 of the paper, eq. 2)."""

import torch
from torch import Tensor, nn

from ahernet.config import ModelConfig


class ContextGenerators(nn.Module):
    """G1 and G2: two convolutions each that map a moment to what comes before it and what comes after.

    The first keeps the length and halves the channels, the second halves the length and restores the channels.
    There is no noise: context follows from the moment.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = max(config.minimum_channels, config.feature_dimension // 2)
        self.before = _generator(config.feature_dimension, hidden)
        self.after = _generator(config.feature_dimension, hidden)

    def forward(self, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Map moments (B, S, D) to the context before and after, (B, ceil(S / 2), D) each."""
        x = moment.transpose(1, 2)
        return self.before(x).transpose(1, 2), self.after(x).transpose(1, 2)


def synthesize(before: Tensor, moment: Tensor, after: Tensor, first: Tensor, length: Tensor, steps: int) -> Tensor:
    """Join moments and their contexts to synthetic videos, A of eq. 2.

    The moment of video b fills exactly the steps first[b] to first[b] + length[b], so that its ground truth is
    [first[b] / steps, (first[b] + length[b]) / steps]; the contexts fill the steps before and after.

    Args:
        before: (B, K, D), stretched over the steps before the moment.
        moment: (B, S, D).
        after: (B, K, D).
        first: (B,) int64, step at which the moment starts.
        length: (B,) int64, steps of the moment, at least 1; first + length <= steps.
        steps: length of the synthetic videos.

    Returns:
        (B, steps, D).
    """
    context, rows = before.shape[1], moment.shape[1]
    step = torch.arange(steps, device=moment.device)
    first, end = first.unsqueeze(1), (first + length).unsqueeze(1)
    # For every step the piece that fills it: 0 before, 1 moment, 2 after; and each piece's rows and steps.
    piece = (step >= first).long() + (step >= end)
    row_bounds = torch.tensor([0, context, context + rows, 2 * context + rows], device=moment.device)
    step_bounds = torch.cat([torch.zeros_like(first), first, end, torch.full_like(end, steps)], dim=1)
    low, high = row_bounds[piece], row_bounds[piece + 1]
    start = step_bounds.gather(1, piece)
    # In float64: with positions of hundreds of rows and steps of a fraction of one, float32 loses four digits.
    stride = (high - low).double() / (step_bounds.gather(1, piece + 1) - start)
    left = low - 0.5 + (step - start) * stride  # row i is centred at i
    sequence = torch.cat([before, moment, after], dim=1)
    sequence = sequence.to(torch.promote_types(sequence.dtype, torch.float32))
    return _Integral(sequence, low, high - 1).mean(left, left + stride)


class _Integral:
    """Means of the linear interpolant of rows (B, S, D), from one running sum and six look-ups for each mean.

    Interpolation of output n of video b stays between the rows low[b, n] and high[b, n], beyond which it is constant.
    """

    def __init__(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        self.rows, self.low, self.high = rows, low, high
        # Integral from row 0 to row i: trapezoids.
        between = (rows[:, 1:] + rows[:, :-1]) / 2
        self.running = torch.cat([torch.zeros_like(rows[:, :1]), between.cumsum(dim=1)], dim=1)

    def mean(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the means over [left, right], (B, N) positions in rows: (B, N, D)."""
        width = (right - left).to(self.rows.dtype).unsqueeze(2)
        return (self._up_to(right) - self._up_to(left)) / width

    def _up_to(self, position: Tensor) -> Tensor:
        row = position.floor().long().clamp(self.low, self.high)
        beyond = (position - row).to(self.rows.dtype).unsqueeze(2)
        following = torch.where(position < row, row, (row + 1).clamp(max=self.high))
        value, slope = self._at(self.rows, row), self._at(self.rows, following) - self._at(self.rows, row)
        return self._at(self.running, row) + value * beyond + slope * (beyond * beyond / 2)

    @staticmethod
    def _at(rows: Tensor, row: Tensor) -> Tensor:
        return rows.gather(1, row.unsqueeze(2).expand(-1, -1, rows.shape[2]))


def _generator(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(channels, hidden, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv1d(hidden, channels, kernel_size=3, padding=1, stride=2),
    )
