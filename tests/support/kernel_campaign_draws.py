"""Numbers that look for trouble, by the thousand: ties, exact thresholds, tiny and huge ones, and what is no number."""

import os

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Shape = tuple[int, ...]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LARGEST = float(np.finfo(np.float32).max)
SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 3e38, -3e38, LARGEST, -LARGEST, 1e-40, -1e-40, 1.4e-45, -0.0, 0.0, 1e6], np.float32
)
THRESHOLDS = (0.0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.8, 0.9, 1.0)
SCALES = (1.0, 1.0, 1.0, 1.0, 1e3, 1e-3, 1e-40, 1.5e38)  # of all coordinates of a call: mostly of a video's length
GRIDS = (4, 8, 10, 20)  # steps of a coordinate of 1: coarse, so that coordinates and temporal IoUs repeat
LENGTHS = np.array([0.0, 0.1, 0.25, 0.5, 1.0, -0.25], np.float32)
CLASSES = ([0, 1, 2, -1], [0, 1, 2, -1], [7, 200_000, -300_000, 8], [-(1 << 31), (1 << 31) - 1, 0])
DTYPES = (torch.float32,) * 6 + (torch.float16, torch.bfloat16)


class Draws:
    """What a call is made of; the same for the same seed."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.grid = int(random.choice(GRIDS))
        self.scale = np.float32(random.choice(SCALES))
        self.fine = float(random.choice([0.0, 0.1, 0.5, 1.0]))  # the share of what is on no grid
        self.special = float(random.choice([0.0, 0.02, 0.3]))  # the share of what is special, in videos that have some
        self.kinds = random.random(len(SPECIAL)) < random.choice([0.1, 0.5, 1.0])  # which special values there are
        self.dtype = DTYPES[random.integers(len(DTYPES))]

    def between(self, least: int, most: int) -> int:
        """A whole number."""
        return int(self.random.integers(least, most + 1))

    def chance(self, share: float) -> bool:
        """Whether something is so that is so in a share of all calls."""
        return bool(self.random.random() < share)

    def one_of(self, *values: float) -> float:
        """One of some values."""
        return float(values[self.random.integers(len(values))])

    def numbers(self, shape: Shape) -> Floats:
        """Fp32 of 0 to 2 on a grid, some of -1 to 3 on none, all to scale."""
        on_grid = self.random.integers(0, 2 * self.grid + 1, shape).astype(np.float32) / np.float32(self.grid)
        fine = self.random.uniform(-1, 3, shape).astype(np.float32)
        values = np.where(self.random.random(shape) < self.fine, fine, on_grid)
        with np.errstate(over="ignore"):
            return (values * self.scale).astype(np.float32)

    def normal(self, shape: Shape) -> Floats:
        """Fp32 around 0: outputs of a network."""
        return (2 * self.random.standard_normal(shape)).astype(np.float32)

    def integers(self, shape: Shape) -> Floats:
        """Small whole numbers as fp32, whose products and sums are exact in every dtype."""
        return self.random.integers(-2, 3, shape).astype(np.float32)

    def with_special(self, values: Floats, special: Floats = SPECIAL) -> Floats:
        """Put special values in about half of the cases, which are rows of the array; the other half has none."""
        shape = values.shape
        struck = self.random.random((len(values), *[1] * (values.ndim - 1))) < 0.5
        struck = struck & (self.random.random(shape) < self.special)
        kinds = self.kinds[: len(special)]
        special = special[kinds] if kinds.any() else special[:1]
        return np.where(struck, special[self.random.integers(0, len(special), shape)], values)

    def segments(self, shape: Shape) -> Floats:
        """(*shape, 2): most of a usual length, some of none, inverted, or equal to another of their case."""
        start = self.numbers(shape)
        with np.errstate(over="ignore"):
            usual = (LENGTHS[self.random.integers(0, len(LENGTHS), shape)] * self.scale).astype(np.float32)
            end = np.where(self.random.random(shape) < 0.75, start + usual, self.numbers(shape))
        rows = np.stack([start, end], axis=-1).astype(np.float32)
        if shape[-1] > 1 and self.chance(0.5):
            again = self.random.random(shape) < 0.3
            rows = np.where(again[..., None], np.roll(rows, 1, axis=-2), rows)
        return self.with_special(rows)

    def anchors(self, count: int) -> Floats:
        """(count, 2) centre, width."""
        width = np.abs(self.numbers((count,))) * np.float32(self.one_of(0.25, 0.5, 1.0))
        width = np.where(self.random.random(count) < self.one_of(0.0, 0.1), -width, width)
        rows = np.stack([self.numbers((count,)), width], axis=-1).astype(np.float32)
        if self.chance(0.3):
            rows = np.where(
                self.random.random((count, 2)) < 0.1, SPECIAL[self.random.integers(0, len(SPECIAL), (count, 2))], rows
            )
        return rows.astype(np.float32)

    def scores(self, shape: Shape) -> Floats:
        """Of candidates: with ties, zeros of both signs and negative ones."""
        values = self.random.integers(-2, self.between(3, 40), shape).astype(np.float32) / np.float32(20)
        values = np.where(self.random.random(shape) < self.fine, self.random.random(shape).astype(np.float32), values)
        if self.chance(0.1):
            values = values * np.float32(1e-40)
        return self.with_special(values.astype(np.float32))

    def labels(self, shape: Shape) -> npt.NDArray[np.int64]:
        """Of candidates: a few classes, close to each other, far apart, or at the ends of what int32 holds."""
        classes = np.array(CLASSES[self.random.integers(len(CLASSES))])
        return classes[self.random.integers(0, self.between(1, len(classes)), shape)]

    def offsets(self, videos: int, most: int) -> npt.NDArray[np.int64]:
        """(videos + 1,) of ragged rows, many videos without any."""
        counts = np.where(self.random.random(videos) < 0.2, 0, self.random.integers(0, most + 1, videos))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def threshold(self, tious: Floats) -> float:
        """A usual threshold, any, or a temporal IoU that there is: exactly, or what fp32 rounds to it."""
        chosen = self.between(0, 7)
        found = tious[(tious > 0) & (tious <= 1)]
        if chosen == 0:
            return float(self.random.random())
        if chosen < 4 and len(found):
            return min(1.0, float(self.random.choice(found)) * self.one_of(1.0, 1 - 2.0**-27, 1 + 2.0**-27))
        return self.one_of(*THRESHOLDS)

    def given(self, values: Floats) -> Tensor:
        """A tensor in the dtype of the call."""
        return tensor_of(values, self.dtype)


def tensor_of(values: Floats, dtype: torch.dtype) -> Tensor:
    """A tensor of a dtype; without bf16 below 2**-126 in the interpreter, which reads them as other numbers."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    if INTERPRETED and dtype == torch.bfloat16:
        return torch.where(tensor.abs() < torch.finfo(dtype).smallest_normal, torch.zeros_like(tensor), tensor)
    return tensor


def in_a_layout(draws: Draws, *kinds: list[Tensor]) -> list[list[Tensor]]:
    """Maps of several kinds as they are or, in half of the calls, all with their channels last in memory."""
    if draws.chance(0.5):
        return [[x.transpose(1, 2).contiguous().transpose(1, 2) for x in maps] for maps in kinds]
    return list(kinds)
