"""Decoding as model code has it: permuted, concatenated, a whole softmax; returns what `ahernet_kernels` does."""

import torch
from torch import Tensor


def per_anchor(per_scale: list[Tensor], channels: int) -> Tensor:
    """(B, D * channels, T_j) of all scales -> (B, A, channels)."""
    flat = [x.transpose(1, 2).reshape(x.shape[0], -1, channels) for x in per_scale]
    return torch.cat(flat, dim=1).float()


def decode(
    logits: list[Tensor], offsets: list[Tensor], overlaps: list[Tensor], anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All videos at once; on any device."""
    best = per_anchor(logits, logits[0].shape[1]).softmax(dim=-1).max(dim=-1)
    return decode_classified(best.values, best.indices, offsets, overlaps, anchors)


def decode_classified(
    probability: Tensor, labels: Tensor, offsets: list[Tensor], overlaps: list[Tensor], anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From probability and label (B, cells) of the best class of each cell; on any device."""
    ratios = overlaps[0].shape[1]
    best, label = (x.repeat_interleave(ratios, dim=1) for x in (probability, labels))
    dc, dw = per_anchor(offsets, 2).unbind(-1)
    centre = anchors[:, 0] + anchors[:, 1] * dc
    half_width = 0.5 * anchors[:, 1] * dw.exp()
    segments = torch.stack([centre - half_width, centre + half_width], dim=-1).clamp(0, 1)
    scores = best * per_anchor(overlaps, 1)[..., 0].sigmoid()
    return segments, scores.where(segments[..., 1] > segments[..., 0], -torch.inf), label


def decode_loop(
    logits: list[Tensor], offsets: list[Tensor], overlaps: list[Tensor], anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One video after the other."""
    videos = [
        decode(*([x[video : video + 1] for x in scales] for scales in (logits, offsets, overlaps)), anchors)
        for video in range(len(logits[0]))
    ]
    return tuple(torch.cat(parts) for parts in zip(*videos, strict=True))


def decode_classified_loop(
    probability: Tensor, labels: Tensor, offsets: list[Tensor], overlaps: list[Tensor], anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One video after the other."""
    videos = [
        decode_classified(
            probability[video : video + 1],
            labels[video : video + 1],
            *([x[video : video + 1] for x in scales] for scales in (offsets, overlaps)),
            anchors,
        )
        for video in range(len(labels))
    ]
    return tuple(torch.cat(parts) for parts in zip(*videos, strict=True))
