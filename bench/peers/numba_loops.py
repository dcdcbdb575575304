"""Loops that numba compiles: windowed suppression and matching. Imported only where numba is installed."""

import numba
import numpy as np
import torch
from torch import Tensor


@numba.njit(cache=False)
def _windowed_nms(segments, scores, labels, threshold, index, count):  # type: ignore[no-untyped-def]
    """As windowed.cpp: candidates by class and start, each kept one strikes in a window around its start."""
    one, zero = np.float32(1), np.float32(0)
    ahead, behind = one - threshold, (one - threshold) / max(threshold, np.float32(1e-30))
    size = scores.shape[1]
    for video in range(len(scores)):
        order = np.argsort(-scores[video], kind="mergesort")
        start, end = np.empty(size, np.float32), np.empty(size, np.float32)
        label = np.empty(size, np.int64)
        for rank in range(size):
            start[rank], end[rank] = segments[video, order[rank]]
            label[rank] = labels[video, order[rank]]
        bits = (start + zero).view(np.int32)
        by_start = np.argsort((label << 32) + (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))))
        start, end, label = start[by_start], end[by_start], label[by_start]
        place = np.empty(size, np.int64)
        place[by_start] = np.arange(size)
        longest = max(np.max(end - start), zero)
        suppressed = np.zeros(size, np.bool_)
        kept = 0
        for rank in range(size):
            if kept == index.shape[1]:
                break
            at = place[rank]
            if suppressed[at]:
                continue
            index[video, kept] = order[rank]
            kept += 1
            length = max(end[at] - start[at], zero)
            margin = np.float32(8e-6) * (abs(start[at]) + abs(end[at]) + longest + one)
            last = start[at] + ahead * length + margin
            first = start[at] - min(behind * length, ahead * longest) - margin
            for step in (1, -1):
                other = at + step
                while 0 <= other < size and label[other] == label[at] and first <= start[other] <= last:
                    shared = max(min(end[at], end[other]) - max(start[at], start[other]), zero)
                    hull = length + max(end[other] - start[other], zero) - shared
                    if shared > threshold * hull and by_start[other] > rank:
                        suppressed[other] = True
                    other += step
        count[video] = kept


@numba.njit(cache=False)
def _match(start, end, truths, offsets, index, tiou):  # type: ignore[no-untyped-def]
    """Ground truth after ground truth of a video, all anchors in the inner loop."""
    zero = np.float32(0)
    for video in range(len(offsets) - 1):
        for truth in range(offsets[video], offsets[video + 1]):
            truth_start, truth_end = truths[truth]
            truth_length = max(truth_end - truth_start, zero)
            for anchor in range(len(start)):
                shared = max(min(end[anchor], truth_end) - max(start[anchor], truth_start), zero)
                hull = max(end[anchor] - start[anchor], zero) + truth_length - shared
                ratio = shared / hull if hull > zero else zero
                if ratio > tiou[video, anchor]:
                    tiou[video, anchor] = ratio
                    index[video, anchor] = truth


def windowed_nms(
    segments: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, most: int
) -> tuple[Tensor, Tensor]:
    """`ahernet_kernels.nms` for finite segments and scores."""
    index = np.full((len(scores), min(most, scores.shape[1])), -1)
    count = np.zeros(len(scores), np.int64)
    classes = torch.zeros(scores.shape, dtype=torch.int64) if labels is None else labels
    _windowed_nms(segments.numpy(), scores.numpy(), classes.numpy(), np.float32(threshold), index, count)
    return torch.from_numpy(index), torch.from_numpy(count)


def match(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """`ahernet_kernels.match` for finite anchors and ground truths."""
    centre, half_width = anchors[:, 0], anchors[:, 1] * 0.5
    start, end = (centre - half_width).numpy(), (centre + half_width).numpy()
    index = np.full((len(gt_offsets) - 1, len(anchors)), -1)
    tiou = np.zeros(index.shape, np.float32)
    _match(start, end, gt_segments.numpy(), gt_offsets.numpy(), index, tiou)
    return torch.from_numpy(index), torch.from_numpy(tiou)
