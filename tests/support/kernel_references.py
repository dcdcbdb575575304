"""Slow, obvious forms of every op: fp32 scalars and Python loops, straight from the contract.

They take and return what the public ops do, on CPU tensors.
"""

import math

import numpy as np
import torch
from torch import Tensor

ONE, ZERO = np.float32(1), np.float32(0)


def segment_of(row) -> tuple[np.float32, np.float32]:
    start, end = (np.float32(value) for value in row)
    return (start, end) if math.isfinite(start) and math.isfinite(end) else (ZERO, ZERO)


def anchor_segment(row) -> tuple[np.float32, np.float32]:
    centre, width = (np.float32(value) for value in row)
    with np.errstate(over="ignore", invalid="ignore"):
        return segment_of((centre - width * np.float32(0.5), centre + width * np.float32(0.5)))


def intersection_and_union(a, b) -> tuple[np.float32, np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        intersection = max(min(a[1], b[1]) - max(a[0], b[0]), ZERO)
        return intersection, (max(a[1] - a[0], ZERO) + max(b[1] - b[0], ZERO)) - intersection


def tiou_of(a, b) -> np.float32:
    intersection, union = intersection_and_union(a, b)
    return intersection / union if union > 0 else ZERO


def over(a, b, threshold: float) -> bool:
    with np.errstate(invalid="ignore"):
        intersection, union = intersection_and_union(a, b)
        return bool(intersection > np.float32(threshold) * union)


def rows(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()


def pairwise_tiou(a: Tensor, b: Tensor) -> Tensor:
    table = [[tiou_of(segment_of(x), segment_of(y)) for y in rows(b)] for x in rows(a)]
    return torch.tensor(table, dtype=torch.float32).reshape(len(a), len(b))


def match(anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
    videos = len(gt_offsets) - 1
    index = torch.full((videos, len(anchors)), -1)
    tiou = torch.zeros((videos, len(anchors)))
    for video in range(videos):
        for a, anchor in enumerate(rows(anchors)):
            for g in range(int(gt_offsets[video]), int(gt_offsets[video + 1])):
                value = float(tiou_of(anchor_segment(anchor), segment_of(rows(gt_segments)[g])))
                if value > tiou[video, a]:
                    index[video, a], tiou[video, a] = g, value
    return index, tiou


def assign(
    anchors: Tensor,
    gt_segments: Tensor,
    gt_labels: Tensor,
    gt_offsets: Tensor,
    foreground_threshold: float = 0.8,
    background_threshold: float = 0.3,
    force_match: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index, tiou = match(anchors, gt_segments, gt_offsets)
    kind = torch.full_like(index, -1)
    labels = torch.full_like(index, -1)
    targets = torch.zeros((*index.shape, 2))
    segments = [segment_of(row) for row in rows(gt_segments)]
    for video in range(len(gt_offsets) - 1):
        for a, anchor in enumerate(rows(anchors)):
            g = int(index[video, a])
            if g < 0:
                kind[video, a] = 0 if background_threshold > 0 else -1
            else:
                intersection, union = intersection_and_union(anchor_segment(anchor), segments[g])
                if intersection > np.float32(foreground_threshold) * union:
                    kind[video, a] = 1
                elif intersection < np.float32(background_threshold) * union:
                    kind[video, a] = 0
        if force_match:
            _force(video, anchors, segments, gt_offsets, index, tiou, kind)
        for a in range(len(anchors)):
            g = int(index[video, a])
            if g >= 0:
                labels[video, a] = gt_labels[g]
                targets[video, a] = torch.tensor([float(value) for value in segments[g]])
    return kind, labels, targets, tiou


def _force(video: int, anchors, segments, gt_offsets, index: Tensor, tiou: Tensor, kind: Tensor) -> None:
    forced: dict[int, tuple[float, int]] = {}
    for g in range(int(gt_offsets[video]), int(gt_offsets[video + 1])):
        values = [float(tiou_of(anchor_segment(anchor), segments[g])) for anchor in rows(anchors)]
        best = max(values, default=0.0)
        if best > 0 and best > forced.get(values.index(best), (0.0, 0))[0]:
            forced[values.index(best)] = (best, g)
    for a, (value, g) in forced.items():
        index[video, a], tiou[video, a], kind[video, a] = g, value, 1


def candidates_of(segments: Tensor, scores: Tensor, min_score: float) -> list[int]:
    """Positions of one video's candidates by descending score, ties by position."""
    values = rows(scores)
    eligible = [
        i
        for i, row in enumerate(rows(segments))
        if values[i] > np.float32(min_score) and all(math.isfinite(value) for value in row)
    ]
    return sorted(eligible, key=lambda i: (-(values[i] + ZERO), i))


def nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    tiou_threshold: float,
    max_output: int,
    min_score: float = -math.inf,
) -> tuple[Tensor, Tensor]:
    videos, size = scores.shape
    index = torch.full((videos, min(max_output, size)), -1)
    count = torch.zeros(videos, dtype=torch.int64)
    for video in range(videos):
        kept: list[int] = []
        for i in candidates_of(segments[video], scores[video], min_score):
            rivals = [k for k in kept if labels is None or labels[video, k] == labels[video, i]]
            mine = segment_of(rows(segments)[video, i])
            if not any(over(segment_of(rows(segments)[video, k]), mine, tiou_threshold) for k in rivals):
                kept.append(i)
        kept = kept[:max_output]
        index[video, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        count[video] = len(kept)
    return index, count


@np.errstate(invalid="ignore")  # an infinite score times 0 is NaN, and above no minimum
def soft_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    method: str,
    parameter: float,
    max_output: int,
    min_score: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    videos, size = scores.shape
    index = torch.full((videos, min(max_output, size)), -1)
    kept_scores = torch.zeros(index.shape)
    count = torch.zeros(videos, dtype=torch.int64)
    for video in range(videos):
        left = {i: np.float32(rows(scores)[video, i]) for i in candidates_of(segments[video], scores[video], min_score)}
        while left and count[video] < index.shape[1]:
            best = min(left, key=lambda i: (-left[i], i))
            index[video, count[video]], kept_scores[video, count[video]] = best, float(left.pop(best))
            count[video] += 1
            mine = segment_of(rows(segments)[video, best])
            for i in list(left):
                other = segment_of(rows(segments)[video, i])
                if labels is None or labels[video, i] == labels[video, best]:
                    tiou = tiou_of(mine, other)
                    if method == "gaussian":
                        left[i] = left[i] * np.exp(-(tiou * tiou) / np.float32(parameter))
                    elif over(mine, other, parameter):
                        left[i] = left[i] * (ONE - tiou)
                if not left[i] > np.float32(min_score):
                    del left[i]
    return index, kept_scores, count


def pick(segments: Tensor, scores: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    picked_segments = torch.zeros((*index.shape, 2))
    picked_scores = torch.zeros(index.shape)
    picked_labels = torch.full(index.shape, -1)
    for video in range(index.shape[0]):
        for rank in range(index.shape[1]):
            position = int(index[video, rank])
            if position >= 0:
                picked_segments[video, rank] = segments[video, position]
                picked_scores[video, rank] = scores[video, position]
                picked_labels[video, rank] = labels[video, position]
    return picked_segments, picked_scores, picked_labels


def proposal_loss(
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    kind: Tensor,
    targets: Tensor,
    tiou: Tensor,
    centre_scale: float = 1.0,
    width_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Anchor by anchor, with the losses and the gradients of torch."""
    distances, errors, a = [], [], 0
    for scale in range(len(offsets)):
        for cell in range(offsets[scale].shape[2]):
            for ratio in range(overlaps[scale].shape[1]):
                m_c, m_w = anchors[a].float()
                for video in range(len(kind)):
                    predicted = overlaps[scale][video, ratio, cell].float().sigmoid()
                    errors.append((predicted - tiou[video, a]) ** 2)
                    if kind[video, a] == 1:
                        dc, dw = offsets[scale][video, 2 * ratio : 2 * ratio + 2, cell].float()
                        start, end = targets[video, a]
                        centre, width = m_c + centre_scale * m_w * dc, m_w * torch.exp(width_scale * dw)
                        distances.append(
                            torch.nn.functional.smooth_l1_loss(centre, (start + end) / 2)
                            + torch.nn.functional.smooth_l1_loss(width, end - start)
                        )
                a += 1
    means = [torch.stack(values).mean() if values else torch.zeros(()) for values in (distances, errors)]
    return means[0], means[1]


def resample(features: Tensor, offsets: Tensor, steps: int, samples: int = 64) -> Tensor:
    """The mean over each bin, by adding up the linear interpolant at many points of the bin (fp64)."""
    output = torch.zeros((len(offsets) - 1, steps, features.shape[1]), dtype=torch.float64)
    for video in range(len(offsets) - 1):
        part = features[int(offsets[video]) : int(offsets[video + 1])].detach().double().numpy()
        if len(part) == 0:
            continue
        for step in range(steps):
            at = (step + (np.arange(samples) + 0.5) / samples) / steps * len(part) - 0.5
            for channel in range(features.shape[1]):
                output[video, step, channel] = np.interp(at, np.arange(len(part)), part[:, channel]).mean()
    return output.float()


def class_logits(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """(B, cells, C) in fp64, of all scales."""
    per_scale = [
        torch.einsum("bdt,cd->btc", x.detach().double(), weight.detach().double()) + bias.detach().double()
        for x, weight, bias in zip(features, weights, biases, strict=True)
    ]
    return torch.cat(per_scale, dim=1)


def classification_loss_and_gradients(
    features: list[Tensor], weights: list[Tensor], biases: list[Tensor], labels: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """By autograd in fp64, from all logits."""
    per_kind = [[x.detach().double().requires_grad_() for x in kind] for kind in (features, weights, biases)]
    leaves = [x for kind in per_kind for x in kind]
    logits = torch.cat([torch.einsum("bdt,cd->btc", x, w) + bias for x, w, bias in zip(*per_kind, strict=True)], dim=1)
    labelled = (labels >= 0) & (labels < logits.shape[2])
    losses = logits[labelled].logsumexp(dim=1) - logits[labelled].gather(1, labels[labelled][:, None])[:, 0]
    loss = losses.sum() / labelled.sum().clamp(min=1)
    gradients = torch.autograd.grad(loss, leaves)
    return loss.detach().float(), [
        x.to(leaf.dtype) for x, leaf in zip(gradients, [*features, *weights, *biases], strict=True)
    ]


def classify(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    logits = class_logits(features, weights, biases)
    probability, labels = torch.zeros(logits.shape[:2]), torch.zeros(logits.shape[:2], dtype=torch.int64)
    for video in range(logits.shape[0]):
        for cell in range(logits.shape[1]):
            probability[video, cell], labels[video, cell] = _softmax_best(logits[video, cell].tolist())
    return probability, labels


def decode(
    logits: list[Tensor],
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float = 1.0,
    width_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    cells = torch.cat(logits, dim=2).transpose(1, 2)
    best = [[_softmax_best(row) for row in video] for video in cells.tolist()]
    probability = torch.tensor([[p for p, _ in video] for video in best], dtype=torch.float64).reshape(cells.shape[:2])
    labels = torch.tensor([[label for _, label in video] for video in best], dtype=torch.int64).reshape(cells.shape[:2])
    return decode_classified(probability, labels, offsets, overlaps, anchors, centre_scale, width_scale)


def decode_classified(
    probability: Tensor,
    cell_labels: Tensor,
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    centre_scale: float = 1.0,
    width_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    videos, ratios = overlaps[0].shape[:2]
    segments = torch.zeros((videos, len(anchors), 2))
    scores = torch.zeros((videos, len(anchors)))
    labels = cell_labels.repeat_interleave(ratios, dim=1)
    for video in range(videos):
        a = 0
        for scale in range(len(offsets)):
            for cell in range(offsets[scale].shape[2]):
                for ratio in range(ratios):
                    centre_offset = float(offsets[scale][video, 2 * ratio, cell])
                    width_offset = float(offsets[scale][video, 2 * ratio + 1, cell])
                    m_c, m_w = (float(value) for value in anchors[a])
                    overlap = float(overlaps[scale][video, ratio, cell])
                    scores[video, a] = float(probability[video, a // ratios]) * _sigmoid(overlap)
                    segment = _decoded(m_c + centre_scale * m_w * centre_offset, m_w, width_scale * width_offset)
                    if segment is not None:
                        segments[video, a] = torch.tensor(segment)
                    if not segments[video, a, 1] > segments[video, a, 0]:
                        scores[video, a] = -math.inf
                    a += 1
    return segments, scores, labels


def _softmax_best(row: list[float]) -> tuple[float, int]:
    largest = float(np.finfo(np.float32).max)
    row = [-math.inf if math.isnan(value) else min(value, largest) for value in row]
    best = max(row)
    if best == -math.inf:
        return 0.0, 0
    return 1 / sum(math.exp(value - best) for value in row), row.index(best)


def _sigmoid(value: float) -> float:
    if math.isnan(value):
        return 0.0
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _decoded(centre: float, anchor_width: float, log_width: float) -> tuple[float, float] | None:
    if not math.isfinite(centre) or math.isnan(log_width):
        return None
    half = 0.5 * anchor_width * math.exp(min(log_width, 700.0))
    return min(max(centre - half, 0.0), 1.0), min(max(centre + half, 0.0), 1.0)
