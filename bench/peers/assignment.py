"""Forms of matching and label assignment that are common elsewhere; all return what `ahernet_kernels` does."""

import itertools

import numpy as np
import torch
from torch import Tensor


def _overlap(start: Tensor, end: Tensor, gt_start: Tensor, gt_end: Tensor) -> tuple[Tensor, Tensor]:
    shared = (torch.minimum(end, gt_end) - torch.maximum(start, gt_start)).clamp(min=0)
    return shared, (end - start).clamp(min=0) + (gt_end - gt_start).clamp(min=0) - shared


def _as_segments(anchors: Tensor) -> tuple[Tensor, Tensor]:
    centre, half_width = anchors[:, 0], anchors[:, 1] * 0.5
    return centre - half_width, centre + half_width


def _padded(gt_segments: Tensor, gt_offsets: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Rows (B, most) of each video's ground truths, and which of them there are."""
    row = gt_offsets[:-1, None] + torch.arange(most, device=gt_offsets.device)
    return row.clamp(max=len(gt_segments) - 1), row < gt_offsets[1:, None]


def match_broadcast(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The whole B x A x G table, padded to `most` ground truths a video; on any device."""
    row, present = _padded(gt_segments, gt_offsets, most)
    start, end = _as_segments(anchors)
    shared, union = _overlap(start[:, None], end[:, None], *gt_segments[row][:, None].unbind(-1))
    table = torch.where(present[:, None] & (union > 0), shared / union, 0.0)
    tiou, slot = table.max(dim=2)
    return torch.where(tiou > 0, row.gather(1, slot), -1), tiou


def match_torch_loop(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """An A x G table a video, video after video: what training loops do."""
    start, end = _as_segments(anchors)
    bounds = gt_offsets.tolist()
    index = torch.full((len(bounds) - 1, len(anchors)), -1, device=anchors.device)
    best = torch.zeros(index.shape, device=anchors.device)
    for video, (first, last) in enumerate(itertools.pairwise(bounds)):
        shared, union = _overlap(start[:, None], end[:, None], *gt_segments[first:last].unbind(-1))
        tiou, slot = torch.where(union > 0, shared / union, 0.0).max(dim=1)
        index[video] = torch.where(tiou > 0, slot + first, -1)
        best[video] = tiou
    return index, best


def match_numpy_loop(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """A Python loop over all ground truths, numpy over the anchors."""
    start, end = (x.numpy() for x in _as_segments(anchors))
    ends, bounds = gt_segments.numpy(), gt_offsets.tolist()
    length = np.maximum(end - start, 0)
    index = np.full((len(bounds) - 1, len(start)), -1)
    best = np.zeros(index.shape, np.float32)
    for video in range(len(bounds) - 1):
        for row in range(bounds[video], bounds[video + 1]):
            gt_start, gt_end = ends[row]
            shared = np.maximum(np.minimum(end, gt_end) - np.maximum(start, gt_start), 0)
            union = length + np.maximum(gt_end - gt_start, 0) - shared
            tiou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
            closer = tiou > best[video]
            best[video][closer], index[video][closer] = tiou[closer], row
    return torch.from_numpy(index), torch.from_numpy(best)


def assigned(
    anchors: Tensor,
    gt_segments: Tensor,
    gt_labels: Tensor,
    matched: tuple[Tensor, Tensor],
    foreground_threshold: float = 0.8,
    background_threshold: float = 0.3,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Thresholds, labels and targets after any form of matching: kind, labels, targets, tiou."""
    index, tiou = matched
    is_matched = index >= 0
    targets = torch.where(is_matched[..., None], gt_segments[index.clamp(min=0)], 0.0)
    labels = torch.where(is_matched, gt_labels[index.clamp(min=0)], -1)
    shared, union = _overlap(*_as_segments(anchors), *targets.unbind(-1))
    union = torch.where(is_matched, union, 1.0)
    foreground = shared > np.float32(foreground_threshold).item() * union
    background = shared < np.float32(background_threshold).item() * union
    kind = torch.where(foreground, 1, torch.where(background, 0, -1))
    return kind, labels, targets, tiou
