"""Algorithm 1 of the paper: the steps of one iteration, their losses, and the parameters each may change.

Every forward pass is computed once an iteration, with the parameters that the iteration starts with, and shared
by all steps that need it; the gradients of all steps are then applied together by one optimizer step. (The paper
applies them one after the other; with its small steps both are the same to first order.)
"""

from dataclasses import dataclass
from typing import NamedTuple

import ahernet_kernels as kernels
import torch
from einops import rearrange
from torch import Tensor, nn

from ahernet.config import Config
from ahernet.model.context import ContextGenerators, synthesize
from ahernet.model.discriminator import Discriminators
from ahernet.model.heads import ClassWeights, class_logits
from ahernet.model.localizer import Localizer, Outputs
from ahernet.model.segment_classifier import pool_segments, segment_logits
from ahernet.training.iteration_batches import IterationBatch, Phase
from ahernet.training.losses import (
    GroundTruth,
    Losses,
    adversarial_loss,
    assign_anchors,
    context_loss,
    localization_losses,
    segment_loss,
    weighted_proposal_loss,
)
from ahernet.training.ranks import ALONE, Ranks
from ahernet.training.segment_batches import SegmentBatch, Surroundings

# The parts of the network that each step may change; the gradient of its losses reaches nothing else.
CHANGES: dict[str, tuple[str, ...]] = {
    # L_cls + L_prop of untrimmed videos, fully supervised: pre-training, and AherNet*.
    "supervised": ("backbone", "segment_classifier", "transfer", "heads"),
    # L_prop of untrimmed videos: AherNet-.
    "proposals": ("backbone", "heads"),
    # L2 between generated and real context: pre-training of the generators.
    "context": ("generators",),
    # Line 3: L_reg of foreground segments and moments, for W_regv of base and of novel classes.
    "segments": ("backbone", "segment_classifier"),
    # Line 4: W_regv fixed, L_cls + L_prop of untrimmed videos, for theta.
    "transfer": ("backbone", "transfer", "heads"),
    # Line 6, first half: 1-D network fixed, L_adG + L_cls + L_prop of synthetic videos.
    "generation": ("generators",),
    # Line 6, second half: generators, W_regv and theta fixed, L_adD + L_cls + L_prop of synthetic videos.
    "synthetic": ("backbone", "heads", "discriminators"),
    # The same for theta as well: method.transfer_taught_by "all".
    "synthetic_transfer": ("backbone", "transfer", "heads", "discriminators"),
    # AherNetM, which has no untrimmed videos to learn theta from.
    "moments": ("backbone", "transfer", "heads"),
}


class Networks(nn.Module):
    """All that a run trains: the localizer, and the generators and discriminators that help to train it."""

    def __init__(self, config: Config, class_count: int) -> None:
        super().__init__()
        self.localizer = Localizer(config.model, class_count)
        self.generators = ContextGenerators(config.model)
        self.discriminators = Discriminators(config.model)

    def part(self, name: str) -> nn.Module:
        """Return the part that `CHANGES` calls `name`."""
        owner = self.localizer if hasattr(self.localizer, name) else self
        return owner.get_submodule(name)


@dataclass(frozen=True)
class ClassRows:
    """Rows of the network's classes: `untrimmed` (K,) int64 of the base classes, `moments` (M,) of those of moments."""

    untrimmed: Tensor
    moments: Tensor


class Observed(NamedTuple):
    """What `SegmentClassifier.observe` is to note of a batch: features of its segments, and their classes' rows."""

    pooled: list[Tensor]
    rows: Tensor


class StepLoss(NamedTuple):
    """The weighted loss of one step, its terms as they go into the log, and what it has observed."""

    loss: Tensor
    terms: dict[str, Tensor]
    observed: Observed | None = None


class _Seen(NamedTuple):
    """What a forward pass over videos leaves: feature maps, background anchors (B, A) and localization losses."""

    maps: list[Tensor]
    background: Tensor
    losses: Losses


def step_losses(
    networks: Networks, config: Config, batch: IterationBatch, phase: Phase, rows: ClassRows, ranks: Ranks = ALONE
) -> dict[str, StepLoss]:
    """Run the forward passes of one iteration and return the loss of every step that it takes.

    With several ranks this one's part of it: all add up to the loss of the whole batch.

    Args:
        networks: with the parameters that the iteration starts with.
        config: of the run.
        batch: on the device of the networks.
        phase: what the iteration trains.
        rows: which of the network's classes untrimmed videos and moments have.
        ranks: that share the batch.
    """
    if phase == "generators":
        assert batch.foregrounds is not None
        assert batch.surroundings is not None
        learnt = _contexts(networks.generators, batch.surroundings, _resample(batch.foregrounds, config))
        error = learnt.error(ranks)
        return {"context": StepLoss(error, {"context": error})}
    localizer = networks.localizer
    steps: dict[str, StepLoss] = {}
    untrimmed = None
    kind = "supervised" if phase == "localizer" else config.method.untrimmed
    # theta learns with W_regv fixed; in supervised training both learn.
    segment_weights = localizer.segment_classifier.class_weights()
    class_weights = localizer.transfer(segment_weights if kind == "supervised" else segment_weights.detach())
    if batch.untrimmed is not None:
        sequence = kernels.resample(batch.untrimmed.rows, batch.untrimmed.offsets, config.model.steps)
        own_weights = class_weights.select(rows.untrimmed)
        untrimmed = _see(localizer, config, sequence, own_weights, batch.untrimmed.ground_truth, ranks)
        losses = untrimmed.losses
        only_proposals = weighted_proposal_loss(losses.offset, losses.overlap, config.loss)
        steps[kind] = StepLoss(only_proposals if kind == "proposals" else losses.total, _named(losses))
    foreground = None if batch.foregrounds is None else _resample(batch.foregrounds, config)
    moment = None if batch.moments is None else _resample(batch.moments, config)
    if foreground is not None or moment is not None:
        steps["segments"] = _segments(localizer, config, batch, foreground, moment, rows, ranks)
    if config.method.moments == "localized" and moment is not None:
        contexts = None
        if batch.surroundings is not None and foreground is not None:
            contexts = _contexts(networks.generators, batch.surroundings, foreground)
        video = _synthetic_video(networks.generators, config, batch, moment, contexts, ranks)
        own_weights = class_weights.select(rows.moments)
        steps |= _synthetic(networks, config, video, untrimmed, own_weights, contexts, ranks)
    return steps


def synthetic_videos(
    generators: ContextGenerators, config: Config, batch: IterationBatch
) -> tuple[Tensor, GroundTruth]:
    """Return what an iteration makes of its moments: whole videos (B, steps, D) with their ground truth.

    Args:
        generators: of context.
        config: of a run that localizes moments.
        batch: of a main iteration, which has moments.
    """
    assert batch.moments is not None
    contexts = None
    if batch.surroundings is not None and batch.foregrounds is not None:
        contexts = _contexts(generators, batch.surroundings, _resample(batch.foregrounds, config))
    return _synthetic_video(generators, config, batch, _resample(batch.moments, config), contexts, ALONE)


def _see(
    localizer: Localizer,
    config: Config,
    sequence: Tensor,
    class_weights: ClassWeights,
    ground_truth: GroundTruth,
    ranks: Ranks,
) -> _Seen:
    """Localize in sequences (B, steps, D) and compare with their ground truth."""
    maps = localizer.backbone(sequence)
    outputs = Outputs(class_logits(maps, class_weights), *localizer.heads(maps))
    assigned = assign_anchors(localizer.anchors, ground_truth, config.assignment)
    losses = localization_losses(outputs, localizer.anchors, ground_truth, assigned, config.model, config.loss, ranks)
    return _Seen(maps, assigned.kind == kernels.BACKGROUND, losses)


def _segments(
    localizer: Localizer,
    config: Config,
    batch: IterationBatch,
    foreground: Tensor | None,
    moment: Tensor | None,
    rows: ClassRows,
    ranks: Ranks,
) -> StepLoss:
    """L_reg of foreground segments and of moments, in one forward pass.

    Each is told apart from the classes of its own set only (C of eq. 4).
    """
    classifier = localizer.segment_classifier
    sets = [
        (name, sequence, segments.labels, own)
        for name, sequence, segments, own in (
            ("foreground_class", foreground, batch.foregrounds, rows.untrimmed),
            ("moment_class", moment, batch.moments, rows.moments),
        )
        if sequence is not None and segments is not None
    ]
    pooled = pool_segments(localizer.backbone(torch.cat([sequence for _, sequence, _, _ in sets])))
    own_rows = torch.cat([own[labels] for _, _, labels, own in sets])
    observed = _of_all_ranks([x.detach() for x in pooled], own_rows, len(sets), config.training.batch_size, ranks)
    parts = zip(*(torch.split(x, [len(labels) for _, _, labels, _ in sets]) for x in pooled), strict=True)
    terms = {
        name: segment_loss(segment_logits(list(part), classifier.class_weights().select(own)), labels, ranks)
        for part, (name, _, labels, own) in zip(parts, sets, strict=True)
    }
    return StepLoss(config.loss.segment * torch.stack(list(terms.values())).sum(), terms, observed)


def _of_all_ranks(pooled: list[Tensor], rows: Tensor, sets: int, batch_size: int, ranks: Ranks) -> Observed:
    """Return pooled features and class rows of the segments of all ranks, in the order that one process has them."""
    if ranks.count == 1:
        return Observed(pooled, rows)
    gathered = (
        ranks.gather(rearrange(values, "(set item) ... -> item set ...", set=sets), batch_size)
        for values in (torch.cat(pooled, dim=1).float(), rows)
    )
    features, rows = (rearrange(values, "item set ... -> (set item) ...") for values in gathered)
    return Observed([features], rows)


class _Contexts(NamedTuple):
    """Context (B, K, D) before and after, where it is `present` (B,) bool: real, and generated from the foreground."""

    real: tuple[Tensor, Tensor]
    generated: tuple[Tensor, Tensor]
    present: tuple[Tensor, Tensor]

    def error(self, ranks: Ranks) -> Tensor:
        """Return the L2 loss of what is generated."""
        before, after = (
            context_loss(*values, ranks) for values in zip(self.generated, self.real, self.present, strict=True)
        )
        return before + after

    def missed(self) -> tuple[Tensor, Tensor]:
        """Return what the generators miss of the real context, 0 where there is none.

        Added to what they generate for other segments, it stands in for the noise that they have not: generated
        context is an expectation, real context varies around it.
        """
        before, after = (
            (real - generated).where(present[:, None, None], 0.0)
            for real, generated, present in zip(self.real, self.generated, self.present, strict=True)
        )
        return before, after

    def background(self, batch_size: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """Return real background: of the other side where there is none on one, and of another video where on neither.

        Without any in the batch it is 0.
        """
        (before, after), (has_before, has_after) = self.real, self.present
        one, two = before.where(has_before[:, None, None], after), after.where(has_after[:, None, None], before)
        one, two = ranks.gather(one, batch_size), ranks.gather(two, batch_size)
        has_any = ranks.gather((has_before | has_after).long(), batch_size) > 0
        videos = torch.arange(len(has_any), device=has_any.device)
        # Videos that have background, in turn.
        lenders = has_any.logical_not().argsort(stable=True)[videos % has_any.sum().clamp(min=1)]
        source = videos.where(has_any, lenders)[ranks.part(len(has_any))]
        return one[source].where(has_any.any(), 0.0), two[source].where(has_any.any(), 0.0)


def _contexts(generators: ContextGenerators, around: Surroundings, foreground: Tensor) -> _Contexts:
    before, after = generators(foreground)
    steps = before.shape[1]
    real_before = kernels.resample(around.before, around.before_offsets, steps)
    real_after = kernels.resample(around.after, around.after_offsets, steps)
    return _Contexts((real_before, real_after), (before, after), (around.has_before, around.has_after))


def _synthetic_video(
    generators: ContextGenerators,
    config: Config,
    batch: IterationBatch,
    moment: Tensor,
    contexts: _Contexts | None,
    ranks: Ranks,
) -> tuple[Tensor, GroundTruth]:
    """Make the moments of a batch whole videos (B, steps, D) with their ground truth."""
    assert batch.moments is not None
    steps, labels = config.model.steps, batch.moments.labels[:, None]
    if batch.placement is None:
        first, length = torch.zeros_like(labels), torch.full_like(labels, steps)
        sequence = kernels.resample(batch.moments.rows, batch.moments.offsets, steps)
        return sequence, synthetic_ground_truth(first, length, labels, steps)
    first, length = batch.placement
    count = first.shape[1]
    if batch.neighbours is not None:
        moment = torch.cat([moment, _resample(batch.neighbours, config)])
        labels = torch.cat([batch.moments.labels, batch.neighbours.labels]).unfold(0, count, 1)

    def shown(of_moment: Tensor) -> Tensor:
        # Of each moment and its neighbours, which come after it.
        return of_moment.unfold(0, count, 1).movedim(3, 1).flatten(0, 1)

    def at_each(of_video: Tensor) -> Tensor:
        return of_video.repeat_interleave(count, dim=0)

    if contexts is not None and config.method.context == "background":
        before, after = map(at_each, contexts.background(config.training.batch_size, ranks))
    else:
        before, after = map(shown, generators(moment))
        if contexts is not None and config.method.real_residual:
            missed_before, missed_after = map(at_each, contexts.missed())
            before, after = before + missed_before, after + missed_after
    sequence = synthesize(before, shown(moment), after, first, length, steps)
    return sequence, synthetic_ground_truth(first, length, labels, steps)


def _synthetic(
    networks: Networks,
    config: Config,
    video: tuple[Tensor, GroundTruth],
    untrimmed: _Seen | None,
    class_weights: ClassWeights,
    contexts: _Contexts | None,
    ranks: Ranks,
) -> dict[str, StepLoss]:
    """Localize moments in their synthetic videos: line 6 of Algorithm 1, or what an ablation keeps of it."""
    sequence, ground_truth = video
    teaches_transfer = untrimmed is None or config.method.transfer_taught_by == "all"
    if not teaches_transfer:
        class_weights = class_weights.detach()
    seen = _see(networks.localizer, config, sequence, class_weights, ground_truth, ranks)
    localization, terms = config.loss.synthetic * seen.losses.total, _named(seen.losses, "synthetic_")
    if untrimmed is None:
        return {"moments": StepLoss(localization, terms)}
    step = "synthetic_transfer" if teaches_transfer else "synthetic"
    if config.method.context != "adversarial":
        return {step: StepLoss(localization, terms)}
    deceived = adversarial_loss(networks.discriminators(seen.maps), seen.background, real=True, ranks=ranks)
    generation = config.loss.generation * seen.losses.total + config.loss.generator * deceived
    generation_terms = {"generator": deceived}
    if contexts is not None:
        generation_terms["context"] = contexts.error(ranks)
        generation = generation + config.loss.context * generation_terms["context"]
    fake, real = seen.maps, untrimmed.maps
    if not config.method.adversarial_backbone:
        fake, real = [x.detach() for x in fake], [x.detach() for x in real]
    told_apart = adversarial_loss(networks.discriminators(fake), seen.background, real=False, ranks=ranks)
    told_apart = told_apart + adversarial_loss(
        networks.discriminators(real), untrimmed.background, real=True, ranks=ranks
    )
    return {
        "generation": StepLoss(generation, generation_terms),
        step: StepLoss(localization + config.loss.discriminator * told_apart, {**terms, "discriminator": told_apart}),
    }


def synthetic_ground_truth(first: Tensor, length: Tensor, labels: Tensor, steps: int) -> GroundTruth:
    """Return the ground truth of synthetic videos: exactly where `synthesize` puts the moments.

    Args:
        first: (B, M) int64, step at which each moment starts.
        length: (B, M) int64; a moment without a step is an empty ground truth with the label of the first one, which
            matches no anchor and leaves its video with the labels that it has.
        labels: (B, M) int64.
        steps: length of the videos.
    """
    shown = length > 0
    segments = torch.stack([first.where(shown, 0), (first + length).where(shown, 0)], dim=2) / steps
    labels = labels.where(shown, labels[:, :1])
    offsets = torch.arange(len(labels) + 1, device=labels.device) * labels.shape[1]
    return GroundTruth(segments.flatten(0, 1), labels.flatten(), offsets)


def _resample(segments: SegmentBatch, config: Config) -> Tensor:
    return kernels.resample(segments.rows, segments.offsets, config.model.moment_steps)


def _named(losses: Losses, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: term for name, term in losses._asdict().items() if name != "total"}
