"""Losses of segments, of anchor-level localization and of context generation (eq. 4, 6, 7 and 8 of the paper).

Everything stays on the device: masks instead of selections, counts as tensors, no loop over videos or boxes.

Where several processes each have a part of the batch, every function returns this one's part of the loss: the sums
over its own elements, divided by the counts of all.
"""

from typing import NamedTuple

import ahernet_kernels as kernels
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ahernet.config import AssignmentConfig, ClassCells, LossConfig, ModelConfig
from ahernet.model.localizer import Outputs
from ahernet.training.ranks import ALONE, Ranks

NO_LABEL = -1


class GroundTruth(NamedTuple):
    """Ragged ground truth of a batch; video b owns rows offsets[b]:offsets[b + 1].

    segments (G, 2) float32 start, end in [0, 1] of the video; labels (G,) int64; offsets (B + 1,) int64.
    """

    segments: Tensor
    labels: Tensor
    offsets: Tensor


class Losses(NamedTuple):
    """Scalars: the weighted sum, and its terms before weighting."""

    total: Tensor
    classification: Tensor
    offset: Tensor
    overlap: Tensor


def assign_anchors(anchors: Tensor, ground_truth: GroundTruth, assignment: AssignmentConfig) -> kernels.Assignment:
    """Decide which anchors (A, 2) are foreground and which background in the videos of a batch (section 3.3)."""
    return kernels.assign(
        anchors,
        ground_truth.segments,
        ground_truth.labels,
        ground_truth.offsets,
        assignment.foreground_threshold,
        assignment.background_threshold,
        assignment.force_match,
    )


def localization_losses(
    outputs: Outputs,
    anchors: Tensor,
    ground_truth: GroundTruth,
    assigned: kernels.Assignment,
    model: ModelConfig,
    weights: LossConfig,
    ranks: Ranks = ALONE,
) -> Losses:
    """Compare the outputs of the network with the ground truth of its videos.

    Args:
        outputs: per scale, of B videos.
        anchors: (A, 2) float32 centre and width.
        ground_truth: of the same videos.
        assigned: what `assign_anchors` made of both.
        model: for the scales of the offsets.
        weights: of the terms, and the cells that the class loss looks at.
        ranks: that have the other videos of the batch.
    """
    labels = cell_labels(assigned, ground_truth, model.ratios_per_cell, weights.class_cells)
    classification = class_loss(outputs.logits, labels, ranks)
    offset, overlap = kernels.proposal_loss(
        outputs.offsets,
        outputs.overlaps,
        anchors,
        assigned.kind,
        assigned.targets,
        assigned.tiou,
        model.centre_scale,
        model.width_scale,
    )
    if ranks.count > 1:  # the kernel divides by its own counts
        foreground = (assigned.kind == kernels.FOREGROUND).sum()
        shares = ranks.shares(torch.stack([foreground, torch.full_like(foreground, assigned.kind.numel())]))
        offset, overlap = offset * shares[0], overlap * shares[1]
    if weights.overlap_anchors == "hard":
        overlap = hard_overlap_loss(outputs.overlaps, assigned, ranks)
    proposal = weighted_proposal_loss(offset, overlap, weights)
    return Losses(weights.classification * classification + proposal, classification, offset, overlap)


def hard_overlap_loss(overlaps: list[Tensor], assigned: kernels.Assignment, ranks: Ranks = ALONE) -> Tensor:
    """Return L_ov (eq. 7) of foreground anchors and of hard background alone.

    Hard are the background anchors of a video with the highest predicted overlap (ties: the lowest), one more than it
    has foreground anchors: as many in a batch as the released code takes, but of every video its own, so that what a
    video teaches does not depend on the others of its batch.

    Args:
        overlaps: (B, R, T_j) per scale, before the sigmoid.
        assigned: of the same videos.
        ranks: that have the other videos of the batch.
    """
    predicted = torch.cat([rearrange(scale, "b ratio cell -> b (cell ratio)") for scale in overlaps], dim=1)
    predicted = _at_least_float32(predicted).sigmoid()
    foreground, background = assigned.kind == kernels.FOREGROUND, assigned.kind == kernels.BACKGROUND
    order = predicted.detach().where(background, -1.0).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    counted = foreground | (background & (rank <= foreground.sum(dim=1, keepdim=True)))
    error = (predicted - assigned.tiou).square()
    return error.where(counted, 0.0).sum() / ranks.sum(counted.sum()).clamp(min=1)


def weighted_proposal_loss(offset: Tensor, overlap: Tensor, weights: LossConfig) -> Tensor:
    """Return L_prop, the weighted sum of L_of and L_ov."""
    return weights.offset * offset + weights.overlap * overlap


def cell_labels(
    assigned: kernels.Assignment, ground_truth: GroundTruth, ratios: int, class_cells: ClassCells
) -> Tensor:
    """Return the label that each cell should predict, or NO_LABEL where the class loss leaves it out.

    A cell is foreground if one of its anchors is; its label is that of its foreground anchor with the highest
    tiou (ties: the lowest anchor). With `class_cells` "all" the other cells take the label that all ground
    truths of the video share, or else the label of the ground truth closest to the cell, if any overlaps.

    Returns:
        (B, cells) int64.
    """
    kind, tiou, labels = (
        rearrange(values, "b (cell ratio) -> b cell ratio", ratio=ratios)
        for values in (assigned.kind, assigned.tiou, assigned.labels)
    )
    foreground = kind == kernels.FOREGROUND
    best: Tensor = tiou.where(foreground, -1.0).argmax(dim=2, keepdim=True)
    cell_foreground: Tensor = foreground.any(dim=2)
    chosen: Tensor = labels.gather(2, best).squeeze(2)
    if class_cells == "foreground":
        return chosen.where(cell_foreground, NO_LABEL)
    closest = labels.gather(2, tiou.argmax(dim=2, keepdim=True)).squeeze(2)
    shared = _shared_labels(ground_truth).unsqueeze(1)
    return chosen.where(cell_foreground, torch.where(shared != NO_LABEL, shared, closest))


def class_loss(logits: list[Tensor], labels: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Return the mean softmax cross-entropy of the cells that have a label (eq. 4 per cell).

    Args:
        logits: (B, C, T_j) per scale.
        labels: (B, cells) int64, NO_LABEL where a cell is left out.
        ranks: that have the other videos of the batch.
    """
    rows = torch.cat([scale.transpose(1, 2) for scale in logits], dim=1).flatten(0, 1)
    # Of rows: the form for more dimensions adds up in no fixed order on CUDA.
    summed = F.cross_entropy(_at_least_float32(rows), labels.flatten(), ignore_index=NO_LABEL, reduction="sum")
    return summed / ranks.sum((labels != NO_LABEL).sum()).clamp(min=1)


def segment_loss(logits: list[Tensor], labels: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Return L_reg: softmax cross-entropy of whole segments, mean over these, summed over the scales (eq. 4).

    Args:
        logits: (B, C) per scale.
        labels: (B,) int64.
        ranks: that have the other segments of the batch.
    """
    mean = torch.stack([F.cross_entropy(_at_least_float32(scale), labels) for scale in logits]).sum()
    return mean * ranks.shares(mean.new_full((), len(labels))) if ranks.count > 1 else mean


def adversarial_loss(logits: list[Tensor], counted: Tensor, real: bool, ranks: Ranks = ALONE) -> Tensor:
    """Return the mean of -log D, or for `real=False` of -log(1 - D), over some anchors (a half of eq. 8).

    The mean is over the counted anchors of each scale, then over the scales that have any.

    Args:
        logits: (B, R, T_j) per scale, of D before the sigmoid.
        counted: (B, A) bool, ordered scale, cell, ratio: the background of each video by its own matching.
        real: whether D should call them real.
        ranks: that have the other videos of the batch.
    """
    sums, numbers = [], []
    anchors = [scale.shape[1] * scale.shape[2] for scale in logits]
    for scale, mask in zip(logits, torch.split(counted, anchors, dim=1), strict=True):
        values = rearrange(_at_least_float32(scale), "b ratio cell -> b (cell ratio)")
        entropy = F.softplus(-values if real else values)
        sums.append(entropy.where(mask, 0.0).sum())
        numbers.append(mask.sum())
    of_all = ranks.sum(torch.stack(numbers))
    return (torch.stack(sums) / of_all.clamp(min=1)).sum() / (of_all > 0).sum().clamp(min=1)


def context_loss(generated: Tensor, real: Tensor, counted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Return the mean squared distance between generated and real context (pre-training of AherNetA-).

    Args:
        generated: (B, K, D).
        real: (B, K, D).
        counted: (B,) bool, which videos have real context there.
        ranks: that have the other videos of the batch.
    """
    error = (_at_least_float32(generated) - real).square().mean(dim=(1, 2))
    return error.where(counted, 0.0).sum() / ranks.sum(counted.sum()).clamp(min=1)


def _shared_labels(ground_truth: GroundTruth) -> Tensor:
    """Return (B,) the label that all ground truths of a video share, NO_LABEL where there is none."""
    labels, offsets = ground_truth.labels, ground_truth.offsets
    videos, rows = offsets.shape[0] - 1, labels.shape[0]
    owner = torch.searchsorted(offsets, torch.arange(rows, device=labels.device), right=True) - 1
    # One more, for rows behind those of the last video.
    start = torch.full((videos + 1,), NO_LABEL, dtype=labels.dtype, device=labels.device)
    lowest = start.scatter_reduce(0, owner, labels, "amin", include_self=False)
    highest = start.scatter_reduce(0, owner, labels, "amax", include_self=False)
    return lowest.where(lowest == highest, NO_LABEL)[:videos]


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
