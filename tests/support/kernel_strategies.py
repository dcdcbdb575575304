"""Inputs that look for trouble: ties, exact thresholds, zero and negative lengths, and what is not a number."""

import math

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

SPECIAL = [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-40, -0.0]


def numbers(special: bool = True) -> st.SearchStrategy[float]:
    """Mostly a coarse grid, where coordinates and temporal IoUs repeat; some of any fp32; some special values."""
    grid = st.integers(0, 20).map(lambda tenths: tenths / 10)
    fine = st.floats(-1, 3, width=32)
    return st.one_of(grid, grid, fine, st.sampled_from(SPECIAL)) if special else st.one_of(grid, fine)


@st.composite
def segments(draw, count: int, special: bool = True) -> Tensor:
    """(count, 2), some of them identical, empty, inverted or not finite."""
    pool = [(draw(numbers(special)), draw(numbers(special))) for _ in range(draw(st.integers(1, 6)))]
    ordered = st.tuples(numbers(False), st.sampled_from([0.0, 0.1, 0.5, 1.0])).map(lambda p: (p[0], p[0] + p[1]))
    chosen = [draw(st.one_of(ordered, ordered, st.sampled_from(pool))) for _ in range(count)]
    return torch.tensor(chosen, dtype=torch.float32).reshape(count, 2)


@st.composite
def anchors(draw, most: int = 40) -> Tensor:
    """(A, 2) centre, width."""
    count = draw(st.integers(0, most))
    rows = [(draw(numbers()), draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 1.26]))) for _ in range(count)]
    return torch.tensor(rows, dtype=torch.float32).reshape(count, 2)


@st.composite
def offsets(draw, videos: int, most: int) -> Tensor:
    """(videos + 1,) of ragged rows, empty ones among them."""
    counts = [draw(st.integers(0, most)) for _ in range(videos)]
    return torch.from_numpy(np.cumsum([0, *counts]))


@st.composite
def ground_truths(draw, videos: int | None = None, most: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Segments, labels and offsets of a few videos."""
    rows = draw(offsets(draw(st.integers(0, 3)) if videos is None else videos, most))
    count = int(rows[-1])
    labels = torch.tensor([draw(st.integers(0, 3)) for _ in range(count)], dtype=torch.int64)
    return draw(segments(count)), labels, rows


@st.composite
def candidates(draw, most: int = 40) -> tuple[Tensor, Tensor, Tensor | None]:
    """Segments, scores and labels or None of a few videos."""
    videos, size = draw(st.integers(0, 3)), draw(st.integers(0, most))
    scores = [draw(numbers()) for _ in range(videos * size)]
    labels = [draw(st.integers(-1, 2)) for _ in range(videos * size)]
    boxes = draw(segments(videos * size)).reshape(videos, size, 2)
    classes = torch.tensor(labels, dtype=torch.int64).reshape(videos, size) if draw(st.booleans()) else None
    return boxes, torch.tensor(scores, dtype=torch.float32).reshape(videos, size), classes


thresholds = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
