"""One set of arguments per op for what concerns all of them: registration, compilation, export, benches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ahernet_kernels
import torch
from ahernet_kernels.nms import ONE_LAUNCH_LIMIT

CELLS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Sample:
    """A public op and arguments for it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def boxes(generator: torch.Generator, *shape: int) -> torch.Tensor:
    start = torch.rand(shape, generator=generator)
    return torch.stack([start, start + 0.2 * torch.rand(shape, generator=generator)], dim=-1)


def samples() -> dict[str, Sample]:
    generator = torch.Generator().manual_seed(0)
    videos, ratios, classes, size = 2, 3, 5, 40
    anchors = torch.rand((ratios * sum(CELLS), 2), generator=generator)
    gt_segments, gt_labels = boxes(generator, 5), torch.arange(5)
    gt_offsets = torch.tensor([0, 3, 5])
    segments = boxes(generator, videos, size)
    scores = torch.rand((videos, size), generator=generator)
    labels = torch.randint(0, 2, (videos, size), generator=generator)

    many = ONE_LAUNCH_LIMIT + 76
    many_segments, many_scores = boxes(generator, 1, many), torch.rand((1, many), generator=generator)

    def per_scale(channels: int) -> list[torch.Tensor]:
        return [torch.randn((videos, channels, length), generator=generator) for length in CELLS]

    outputs = (per_scale(classes), per_scale(2 * ratios), per_scale(ratios))
    cells = (videos, sum(CELLS))
    classified = (torch.rand(cells, generator=generator), torch.randint(0, classes, cells, generator=generator))
    cell_labels = torch.randint(-1, classes, cells, generator=generator)
    maps, class_weights = per_scale(16), [torch.randn((classes, 16), generator=generator) for _ in CELLS]
    classifier = (maps, class_weights, [torch.randn(classes, generator=generator) for _ in CELLS])
    ragged = torch.randn((9, 6), generator=generator), torch.tensor([0, 4, 9])
    picked = torch.randint(-1, size, (videos, 10), generator=generator)
    pieces = tuple(torch.randn((videos, rows, 6), generator=generator) for rows in (4, 9, 4))
    truths = (gt_segments, gt_labels, gt_offsets)
    kind = torch.randint(-1, 2, (videos, len(anchors)), generator=generator)
    targets, tiou = boxes(generator, *kind.shape), torch.rand(kind.shape, generator=generator)
    table: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "assign": (ahernet_kernels.assign, (anchors, *truths, 0.8, 0.3, False)),
        "assign_forced": (ahernet_kernels.assign, (anchors, *truths, 0.8, 0.3, True)),
        "classification_loss": (ahernet_kernels.classification_loss, (*classifier, cell_labels)),
        "classify": (ahernet_kernels.classify, classifier),
        "decode": (ahernet_kernels.decode, (*outputs, anchors, 1.0, 1.0)),
        "decode_classified": (ahernet_kernels.decode_classified, (*classified, *outputs[1:], anchors, 1.0, 1.0)),
        "match": (ahernet_kernels.match, (anchors, gt_segments, gt_offsets)),
        "nms": (ahernet_kernels.nms, (segments, scores, labels, 0.5, 10, 0.1)),
        "nms_agnostic": (ahernet_kernels.nms, (segments, scores, None, 0.5, 10)),
        "nms_large": (ahernet_kernels.nms, (many_segments, many_scores, None, 0.5, 10, 0.1)),
        "pairwise_tiou": (ahernet_kernels.pairwise_tiou, (segments[0], segments[1])),
        "pick": (ahernet_kernels.pick, (segments, scores, labels, picked)),
        "proposal_loss": (ahernet_kernels.proposal_loss, (*outputs[1:], anchors, kind, targets, tiou, 1.0, 1.0)),
        "resample": (ahernet_kernels.resample, (*ragged, 8, torch.float32)),
        "resample_checked": (ahernet_kernels.resample_checked, (*ragged, 8, torch.bfloat16)),
        "soft_nms": (ahernet_kernels.soft_nms, (segments, scores, labels, "gaussian", 0.5, 10, 0.1)),
        "soft_nms_linear": (ahernet_kernels.soft_nms, (segments, scores, None, "linear", 0.5, 10)),
        "stretch": (
            ahernet_kernels.stretch,
            (*pieces, torch.tensor([[2, 4, 2], [0, 7, 1]]), torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])),
        ),
    }
    return {name: Sample(*entry) for name, entry in table.items()}
