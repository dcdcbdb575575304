"""An iteration of Algorithm 1 as it is written elsewhere: matching and losses video by video, truth by truth.

The network is the same; returns the loss of every step of `ahernet.training.steps.step_losses` for the run `aher`.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ahernet.config import Config
from ahernet.model.heads import ClassWeights, class_logits
from ahernet.model.segment_classifier import pool_segments, segment_logits
from ahernet.training.iteration_batches import IterationBatch
from ahernet.training.steps import ClassRows, Networks
from bench.peers.decoding import per_anchor
from bench.peers.resampling import torch_loop


class Seen(NamedTuple):
    """Feature maps of some videos, their background anchors (A,) one video after the other, and L_cls + L_prop."""

    maps: list[Tensor]
    background: list[Tensor]
    loss: Tensor


def step_losses(networks: Networks, config: Config, batch: IterationBatch, rows: ClassRows) -> dict[str, Tensor]:
    localizer, loss = networks.localizer, config.loss
    classifier = localizer.segment_classifier
    class_weights = localizer.transfer(classifier.class_weights().detach())
    video = resampled(batch.untrimmed.rows, batch.untrimmed.offsets, config.model.steps)
    seen = see(networks, config, video, class_weights.select(rows.untrimmed), batch.untrimmed.ground_truth)

    parts, steps = (batch.foregrounds, batch.moments), config.model.moment_steps
    both = [resampled(part.rows, part.offsets, steps) for part in parts]
    pooled = pool_segments(localizer.backbone(torch.cat(both)))
    labels, own = [part.labels for part in parts], (rows.untrimmed, rows.moments)
    classifier.observe(pooled, torch.cat([row[label] for row, label in zip(own, labels, strict=True)]))
    count = len(labels[0])
    segments = sum(
        F.cross_entropy(scale.float(), label)
        for part, label, row in zip((slice(count), slice(count, None)), labels, own, strict=True)
        for scale in segment_logits([x[part] for x in pooled], classifier.class_weights().select(row))
    )

    synthetic = synthesized(networks, config, batch, both[1])
    fake = see(
        networks, config, synthetic, class_weights.select(rows.moments).detach(), moments_as_truths(config, batch)
    )
    told = networks.discriminators
    deceived = adversarial(told(fake.maps), fake.background, real=True)
    told_apart = adversarial(told(fake.maps), fake.background, real=False)
    told_apart = told_apart + adversarial(told(seen.maps), seen.background, real=True)
    return {
        "transfer": seen.loss,
        "segments": loss.segment * segments,
        "generation": loss.generation * fake.loss + loss.generator * deceived,
        "synthetic": loss.synthetic * fake.loss + loss.discriminator * told_apart,
    }


def resampled(rows: Tensor, offsets: Tensor, steps: int) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return torch_loop(rows, offsets, steps)


def synthesized(networks: Networks, config: Config, batch: IterationBatch, moment: Tensor) -> Tensor:
    """Moments between their generated contexts, each piece of each video resampled to its place."""
    before, after = networks.generators(moment)
    steps, videos = config.model.steps, []
    for number, (first, length) in enumerate(zip(*(x[:, 0].tolist() for x in batch.placement), strict=True)):
        pieces = ((before[number], first), (moment[number], length), (after[number], steps - first - length))
        whole = [resampled(x, torch.tensor([0, len(x)]), size)[0] for x, size in pieces if size]
        videos.append(torch.cat(whole))
    return torch.stack(videos)


def moments_as_truths(config: Config, batch: IterationBatch) -> tuple[Tensor, Tensor, Tensor]:
    first, length = (x[:, 0] for x in batch.placement)
    segments = torch.stack([first, first + length], dim=1) / config.model.steps
    return segments, batch.moments.labels, torch.arange(len(first) + 1)


def see(
    networks: Networks, config: Config, sequence: Tensor, class_weights: ClassWeights, truths: tuple[Tensor, ...]
) -> Seen:
    localizer = networks.localizer
    maps = localizer.backbone(sequence)
    logits = per_anchor(class_logits(maps, class_weights), len(class_weights.biases[0]))
    offsets, overlaps = localizer.heads(maps)
    offsets, overlaps = per_anchor(offsets, 2), per_anchor(overlaps, 1)[..., 0]
    segments, labels, bounds = truths
    sums, foregrounds, cells, background = [], 0, 0, []
    for video, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
        found = match(localizer.anchors, segments[first:last], labels[first:last], config)
        background.append(found.background)
        per_cell = found.foreground.view(-1, config.model.ratios_per_cell)
        best = found.tiou.view_as(per_cell).where(per_cell, -1.0).argmax(dim=1)
        chosen = per_cell.any(dim=1)
        label = found.labels.view_as(per_cell).gather(1, best[:, None])[chosen, 0]
        classification = F.cross_entropy(logits[video, chosen], label, reduction="sum")
        anchor = localizer.anchors[found.foreground]
        shift, target = offsets[video, found.foreground], found.targets[found.foreground]
        centre = anchor[:, 0] + config.model.centre_scale * anchor[:, 1] * shift[:, 0]
        width = anchor[:, 1] * torch.exp(config.model.width_scale * shift[:, 1])
        offset = F.smooth_l1_loss(centre, target.mean(dim=1), reduction="sum")
        offset = offset + F.smooth_l1_loss(width, target[:, 1] - target[:, 0], reduction="sum")
        overlap = (overlaps[video].sigmoid() - found.tiou).square().sum()
        sums.append(torch.stack([classification, offset, overlap]))
        foregrounds += int(found.foreground.sum())
        cells += int(chosen.sum())
    classification, offset, overlap = torch.stack(sums).sum(dim=0)
    weights = config.loss
    loss = weights.classification * classification / max(cells, 1) + weights.offset * offset / max(foregrounds, 1)
    return Seen(maps, background, loss + weights.overlap * overlap / overlaps.numel())


class Found(NamedTuple):
    """What the anchors (A,) of one video are."""

    foreground: Tensor
    background: Tensor
    tiou: Tensor
    labels: Tensor
    targets: Tensor


def match(anchors: Tensor, segments: Tensor, labels: Tensor, config: Config) -> Found:
    """One ground truth after the other takes the anchors that it is closer to."""
    start, end = anchors[:, 0] - anchors[:, 1] / 2, anchors[:, 0] + anchors[:, 1] / 2
    tiou, label = torch.zeros_like(start), torch.full(start.shape, -1, device=start.device)
    shared, union = torch.zeros_like(start), torch.ones_like(start)
    targets = torch.zeros_like(anchors)
    for segment, own_label in zip(segments, labels, strict=True):
        own_shared = (torch.minimum(end, segment[1]) - torch.maximum(start, segment[0])).clamp(min=0)
        own_union = (end - start) + (segment[1] - segment[0]) - own_shared
        own = own_shared / own_union
        closer = own > tiou
        tiou, shared, union = own.where(closer, tiou), own_shared.where(closer, shared), own_union.where(closer, union)
        label, targets = own_label.where(closer, label), segment.where(closer[:, None], targets)
    foreground = shared > config.assignment.foreground_threshold * union
    return Found(foreground, shared < config.assignment.background_threshold * union, tiou, label, targets)


def adversarial(logits: list[Tensor], background: list[Tensor], real: bool) -> Tensor:
    """Mean over the background of every scale, video after video, then over the scales that have any."""
    means, first = [], 0
    for scale in logits:
        anchors = scale.shape[1] * scale.shape[2]
        entropy = [
            F.softplus(-values if real else values)
            for video, counted in zip(scale.float(), background, strict=True)
            for values in [video.T.reshape(-1)[counted[first : first + anchors]]]
        ]
        number = sum(map(len, entropy))
        if number:
            means.append(torch.stack([values.sum() for values in entropy]).sum() / number)
        first += anchors
    return torch.stack(means).mean()
