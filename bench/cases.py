"""Made inputs of the design cases, on the CPU, the same for every run: they depend on sizes and a seed alone."""

import math

import numpy as np
import torch
from torch import Tensor

CELLS = (128, 64, 32, 16, 8, 4, 2, 1)
CHANNELS = (256, 256, 512, 512, 1024, 1024, 2048, 2048)  # of the feature map of each scale
RATIOS = 3
ANCHORS = RATIOS * sum(CELLS)
INSTANCES = 5  # of one video
SHARE_OF_RANDOM_CLASSES = 0.3
SHARE_OF_LABELLED_CELLS = 0.05  # of which anchors are foreground: 0.4 % to 4.5 % of the cells of `ground_truths`


def anchors() -> Tensor:
    """Default segments (765, 2) of a video, centre and width, ordered scale, cell, ratio."""
    per_scale = [
        ((cell + 0.5) / cells, 2 ** (ratio / RATIOS) / cells)
        for cells in CELLS
        for cell in range(cells)
        for ratio in range(RATIOS)
    ]
    return torch.tensor(per_scale)


def ground_truths(videos: int, most: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Segments (G, 2), labels (G,) and offsets (videos + 1,) of 1 to `most` instances a video."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, most + 1, videos)
    centre, width = _instances(generator, counts.sum())
    segments = np.stack([centre - width / 2, centre + width / 2], axis=-1).astype(np.float32)
    labels = generator.integers(0, 200, len(segments))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return torch.from_numpy(segments), torch.from_numpy(labels), torch.from_numpy(offsets)


def candidates(videos: int, count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Segments (B, N, 2), scores (B, N) and labels (B, N) as decoded anchors are around 5 instances a video.

    Each anchor is pulled, as far as it can reach, to the instance nearest to it, and a little beside it. Its class
    is that of the instance, or any class in 30 % of the anchors. Its score grows with its temporal IoU; scores of a
    video are distinct, because common forms leave open which of two equal ones is first. A video of more than 765
    candidates is a long one: such stretches in a row, each with its own 5 instances.
    """
    generator = np.random.default_rng(seed)
    stretches = math.ceil(count / ANCHORS)
    shape = (videos * stretches, ANCHORS)
    anchor_centre, anchor_width = anchors().numpy().astype(np.float64).T
    centre, width = _instances(generator, (shape[0], INSTANCES))
    distance = np.abs(anchor_centre - centre[..., None]) / width[..., None]
    distance += np.abs(np.log(anchor_width / width[..., None]))
    nearest = distance.argmin(axis=1)
    centre, width = np.take_along_axis(centre, nearest, 1), np.take_along_axis(width, nearest, 1)
    noise = generator.normal(0, 0.1, (2, *shape))
    found_centre = anchor_centre + anchor_width * (((centre - anchor_centre) / anchor_width).clip(-1, 1) + noise[0])
    found_width = anchor_width * np.exp(np.log(width / anchor_width).clip(-1, 1) + noise[1])
    ends = np.stack([found_centre - found_width / 2, found_centre + found_width / 2], axis=-1).clip(0, 1)
    truth = np.stack([centre - width / 2, centre + width / 2], axis=-1)
    shared = (np.minimum(ends, truth)[..., 1] - np.maximum(ends, truth)[..., 0]).clip(0)
    tiou = shared / (ends[..., 1] - ends[..., 0] + width - shared)
    scores = generator.random(shape) * (0.3 + 0.7 * tiou)
    labels = np.take_along_axis(generator.integers(0, classes, (shape[0], INSTANCES)), nearest, 1)
    is_random = generator.random(shape) < SHARE_OF_RANDOM_CLASSES
    labels = np.where(is_random, generator.integers(0, classes, shape), labels)
    ends += np.tile(np.arange(stretches), videos)[:, None, None]
    ranks = scores.reshape(videos, -1)[:, :count].argsort(axis=1).argsort(axis=1)
    return (
        torch.from_numpy(ends.reshape(videos, -1, 2)[:, :count].astype(np.float32)),
        torch.from_numpy(((ranks + 1) / count).astype(np.float32)),
        torch.from_numpy(labels.reshape(videos, -1)[:, :count].copy()),
    )


def network_outputs(
    videos: int, classes: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Per scale logits (B, C, T), offsets (B, 2 D, T) and overlaps (B, D, T) of a network."""
    generator = torch.Generator(device).manual_seed(seed)

    def per_scale(channels: int, spread: float) -> list[Tensor]:
        shapes = [(videos, channels, cells) for cells in CELLS]
        made = [torch.randn(shape, generator=generator, device=device, dtype=dtype) for shape in shapes]
        return [tensor * spread for tensor in made]

    return per_scale(classes, 3.0), per_scale(2 * RATIOS, 0.3), per_scale(RATIOS, 2.0)


def classifier(
    videos: int, classes: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Per scale feature map (B, d, T), channels last, class weights (C, d) and biases (C,); logits spread by 3."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    features = [normal(videos, cells, d).transpose(1, 2) for cells, d in zip(CELLS, CHANNELS, strict=True)]
    weights = [normal(classes, d) * (3 / math.sqrt(d)) for d in CHANNELS]
    return features, weights, [normal(classes) for _ in CHANNELS]


def cell_labels(
    videos: int, classes: int, device: str = "cpu", share: float = SHARE_OF_LABELLED_CELLS, seed: int = 0
) -> Tensor:
    """The class of each cell (B, cells), -1 for those that have none: all but a share of them."""
    generator = np.random.default_rng(seed)
    shape = (videos, sum(CELLS))
    labels = generator.integers(0, classes, shape)
    labels[generator.random(shape) >= share] = -1
    return torch.from_numpy(labels).to(device)


def sequences(
    videos: int, mean_rows: int, dimension: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Features (R, D) of videos of half to one and a half times `mean_rows` rows, and offsets (videos + 1,)."""
    rows = np.random.default_rng(seed).integers(mean_rows // 2, mean_rows + mean_rows // 2 + 1, videos)
    generator = torch.Generator(device).manual_seed(seed)
    features = torch.randn((int(rows.sum()), dimension), generator=generator, device=device, dtype=dtype)
    return features, torch.from_numpy(np.concatenate([[0], np.cumsum(rows)])).to(device)


def moments(
    videos: int, each: int, steps: int, dimension: int, device: str = "cpu", seed: int = 0
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Contexts before (bf16), moments (fp32) and contexts after (bf16), `each` of a video, the steps (videos * each, 3)
    that they get, and which each step of a video shows: one after the other, for as long."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = max(1, steps // 4), max(1, steps // 2), max(1, steps // 4)
    before, moment, after = (
        torch.randn((videos * each, n, dimension), generator=generator, device=device) for n in rows
    )
    chosen = np.random.default_rng(seed)
    length = (steps * chosen.uniform(0.3, 0.95, videos * each)).astype(np.int64).clip(1)
    first = (chosen.random(videos * each) * (steps - length + 1)).astype(np.int64)
    lengths = torch.from_numpy(np.stack([first, length, steps - first - length], axis=1)).to(device)
    shown = (torch.arange(steps, device=device) * each // steps).expand(videos, -1).contiguous()
    return (before.bfloat16(), moment, after.bfloat16()), lengths, shown


def _instances(generator: np.random.Generator, shape: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Centres and widths of instances that lie within the video: 2 % to 50 % of it."""
    width = np.exp(generator.uniform(np.log(0.02), np.log(0.5), shape))
    return generator.uniform(width / 2, 1 - width / 2), width
