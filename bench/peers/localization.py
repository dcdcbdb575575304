"""Localizing a batch as it is done elsewhere: every step after the network on its own, video by video where usual."""

import torch
from torch import Tensor

from ahernet.inference.anchors import AnchorStep
from ahernet.model.heads import class_logits
from bench.peers import decoding, resampling, suppression


def detections(step: AnchorStep, rows: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    """What `AnchorStep` returns, hard suppression within classes: segments, scores, labels, counts, finite."""
    config = step.config
    sequence = resampling.torch_loop(rows, offsets, step.model_config.steps)
    maps = step.backbone(sequence.to(step.precision))
    outputs = (class_logits(maps, step.class_weights), *step.heads(maps))
    segments, scores, labels = decoding.decode(*outputs, step.anchors)
    index, _ = suppression.torch_matrix(segments, scores, labels, config.nms_threshold, config.top_k)
    kept = (index >= 0) & (scores.gather(1, index.clamp(min=0)) > config.minimum_score)
    index = index.where(kept, -1)
    return *rows_by_gather(segments, scores, labels, index), kept.sum(dim=1), sequence.isfinite().flatten(1).all(dim=1)


def rows_by_gather(segments: Tensor, scores: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `ahernet_kernels.pick` returns."""
    kept, row = index >= 0, index.clamp(min=0)
    return (
        segments.gather(1, row[..., None].expand(-1, -1, 2)).where(kept[..., None], 0.0),
        scores.gather(1, row).where(kept, 0.0),
        labels.gather(1, row).where(kept, -1),
    )


def rows_by_index(segments: Tensor, scores: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same, one video after the other."""
    picked = segments.new_zeros((*index.shape, 2)), scores.new_zeros(index.shape), torch.full_like(index, -1)
    for video, positions in enumerate(index):
        kept = positions[positions >= 0]
        for rows, output in zip((segments, scores, labels), picked, strict=True):
            output[video, : len(kept)] = rows[video, kept]
    return picked
