"""Forms of hard and soft suppression that are common elsewhere; all return what `ahernet_kernels` does."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

OneProblem = Callable[[Tensor, Tensor, float, int], Tensor]
"""Kept positions of one class-agnostic problem: segments (N, 2), scores (N,), threshold, most."""


def per_class(
    one: OneProblem, segments: Tensor, scores: Tensor, labels: Tensor, threshold: float, most: int
) -> tuple[Tensor, Tensor]:
    """Every video and class on its own, then the classes of a video together again: the published form.

    It gathers three columns of a class, suppresses, gathers and copies what is kept, and orders the video at the
    end. The third column is the position here, where it is the label there. Left out is what only slows it down:
    an autograd function around each call, and the temporaries of the published C++.
    """
    results = []
    position = torch.arange(scores.shape[1])
    for own_segments, own_scores, own_labels in zip(segments, scores, labels, strict=True):
        kept = []
        for label in torch.unique(own_labels):
            rows = torch.where(own_labels == label)[0]
            columns = own_segments[rows], own_scores[rows], position[rows]
            chosen = one(*columns[:2], threshold, most)
            kept.append([column[chosen].clone() for column in columns])
        together = [torch.cat(column) for column in zip(*kept, strict=True)]
        order = together[1].sort(descending=True).indices[:most]
        results.append([column[order] for column in together][2])
    return _padded(results, min(most, scores.shape[1]))


def torch_matrix(
    segments: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, most: int
) -> tuple[Tensor, Tensor]:
    """All pairs of a video by broadcasting, then a Python loop over the candidates; on any device."""
    results = []
    for video in range(len(scores)):
        order = scores[video].sort(descending=True, stable=True).indices
        start, end = segments[video, order].unbind(-1)
        shared = (torch.minimum(end[:, None], end) - torch.maximum(start[:, None], start)).clamp(min=0)
        length = (end - start).clamp(min=0)
        over = shared > np.float32(threshold).item() * (length[:, None] + length - shared)
        if labels is not None:
            over &= labels[video, order][:, None] == labels[video, order]
        rows, alive = over.cpu().numpy(), np.ones(len(order), bool)
        for rank in range(len(order)):
            if alive[rank]:
                alive[rank + 1 :] &= ~rows[rank, rank + 1 :]
        results.append(order[torch.from_numpy(alive).to(order.device)][:most])
    return _padded(results, min(most, scores.shape[1]))


def numpy_loop(
    segments: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, most: int
) -> tuple[Tensor, Tensor]:
    """A Python loop over the kept; each strikes, with numpy, what it overlaps among those that are left."""
    results = []
    for video in range(len(scores)):
        start, end = segments[video].numpy().T
        length = np.maximum(end - start, 0)
        left = np.argsort(-scores[video].numpy(), kind="stable")
        label = np.zeros(len(left)) if labels is None else labels[video].numpy()
        kept: list[int] = []
        while len(left) and len(kept) < most:
            best, left = left[0], left[1:]
            kept.append(best)
            shared = np.maximum(np.minimum(end[best], end[left]) - np.maximum(start[best], start[left]), 0)
            over = shared > np.float32(threshold) * (length[best] + length[left] - shared)
            left = left[~(over & (label[left] == label[best]))]
        results.append(torch.tensor(kept, dtype=torch.int64))
    return _padded(results, min(most, scores.shape[1]))


def soft_numpy_loop(
    segments: Tensor, scores: Tensor, labels: Tensor | None, method: str, parameter: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A Python loop over videos and picks; each decays, with numpy, what is left of its video."""
    shape = (len(scores), min(most, scores.shape[1]))
    index, kept_scores, count = np.full(shape, -1), np.zeros(shape, np.float32), np.zeros(len(scores), np.int64)
    for video in range(len(scores)):
        start, end = segments[video].numpy().T
        length = np.maximum(end - start, 0)
        left = scores[video].numpy().copy()
        label = np.zeros(len(left)) if labels is None else labels[video].numpy()
        for pick in range(shape[1]):
            best = left.argmax()
            if not left[best] > 0:
                break
            index[video, pick], kept_scores[video, pick], count[video] = best, left[best], pick + 1
            left[best] = -np.inf
            rows = np.flatnonzero((left > 0) & (label == label[best]))
            shared = np.maximum(np.minimum(end[best], end[rows]) - np.maximum(start[best], start[rows]), 0)
            union = length[best] + length[rows] - shared
            tiou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
            if method == "gaussian":
                left[rows] *= np.exp(-(tiou * tiou) / np.float32(parameter))
            else:
                left[rows] *= np.where(shared > np.float32(parameter) * union, 1 - tiou, np.float32(1))
    return torch.from_numpy(index), torch.from_numpy(kept_scores), torch.from_numpy(count)


def soft_torch(
    segments: Tensor, scores: Tensor, labels: Tensor | None, method: str, parameter: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One torch pass over the whole batch a pick; on any device."""
    videos = torch.arange(len(scores), device=scores.device)
    shape = (len(scores), min(most, scores.shape[1]))
    index = torch.full(shape, -1, device=scores.device)
    kept_scores = torch.zeros(shape, device=scores.device)
    start, end = segments.unbind(-1)
    length = (end - start).clamp(min=0)
    left = scores.clone()
    for pick in range(shape[1]):
        best_score, best = left.max(dim=1)
        found = best_score > 0
        index[:, pick] = torch.where(found, best, -1)
        kept_scores[:, pick] = torch.where(found, best_score, 0.0)
        a, b = start[videos, best, None], end[videos, best, None]
        shared = (torch.minimum(b, end) - torch.maximum(a, start)).clamp(min=0)
        union = length[videos, best, None] + length - shared
        tiou = torch.where(union > 0, shared / union, 0.0)
        decay = torch.exp(-(tiou * tiou) / parameter) if method == "gaussian" else 1 - tiou
        decayed = left * decay
        if method == "linear":
            decayed = torch.where(shared > np.float32(parameter).item() * union, decayed, left)
        if labels is not None:
            decayed = torch.where(labels == labels[videos, best, None], decayed, left)
        left = torch.where(decayed > 0, decayed, -torch.inf)
        left[videos, best] = -torch.inf
    return index, kept_scores, (index >= 0).sum(dim=1)


def has_torchvision() -> bool:
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, OSError, RuntimeError):  # absent, or built for another torch
        return False
    return True


def torchvision_nms(
    segments: Tensor, scores: Tensor, labels: Tensor, tiou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """`torchvision.ops.batched_nms` on boxes of height 1, a video at a time, as it is used."""
    from torchvision.ops import batched_nms

    index = torch.full((len(scores), min(max_output, scores.shape[1])), -1, device=scores.device)
    boxes = torch.zeros((*scores.shape, 4), device=scores.device)
    boxes[..., 0], boxes[..., 2] = segments.unbind(-1)
    boxes[..., 3] = 1
    for video in range(len(scores)):
        kept = batched_nms(boxes[video], scores[video], labels[video], tiou_threshold)[:max_output]
        index[video, : len(kept)] = kept
    return index, (index >= 0).sum(dim=1)


def _padded(results: list[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Rows of differing length as one table with -1 behind them, and their lengths."""
    index = torch.full((len(results), size), -1, device=results[0].device)
    for row, kept in zip(index, results, strict=True):
        row[: len(kept)] = kept
    return index, torch.tensor([len(kept) for kept in results], device=index.device)
