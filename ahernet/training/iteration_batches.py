"""What one iteration of training reads: untrimmed videos, segments of them, moments, and where these are placed."""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahernet.config import Config, MethodConfig
from ahernet.device import to_device
from ahernet.training.batches import Batch, TrainingSet
from ahernet.training.moment_set import MomentLengths, MomentSet
from ahernet.training.ranks import ALONE, Ranks
from ahernet.training.segment_batches import (
    SegmentBatch,
    Surroundings,
    choose_foregrounds,
    cut_foregrounds,
    cut_surroundings,
)

PLACEMENT_STREAM = 3  # of random numbers

Phase = Literal["localizer", "generators", "main"]
"""`localizer`: pre-training on untrimmed videos; `generators`: their pre-training; `main`: Algorithm 1's loop."""


class Placement(NamedTuple):
    """Where moments lie in their synthetic videos: `first` step and `length` in steps, (B, M) int64.

    M is one more than `method.neighbours`; the length is 0 where a video has no such moment.
    """

    first: Tensor
    length: Tensor

    def to(self, device: torch.device) -> "Placement":
        """Return the same with its tensors on `device`."""
        return Placement(*(to_device(tensor, device) for tensor in self))


class IterationBatch(NamedTuple):
    """The data of one iteration; None where its phase or the run's method has no use for it.

    The neighbours of a moment are those that come after it in the batch; `neighbours` are those of the last one.
    """

    untrimmed: Batch | None
    foregrounds: SegmentBatch | None
    surroundings: Surroundings | None
    moments: SegmentBatch | None
    neighbours: SegmentBatch | None
    placement: Placement | None

    def to(self, device: torch.device) -> "IterationBatch":
        """Return the batch with its tensors on `device`."""
        return IterationBatch(
            self.untrimmed and self.untrimmed.to(device),
            self.foregrounds and self.foregrounds.to(device),
            self.surroundings and self.surroundings.to(device),
            self.moments and self.moments.to(device),
            self.neighbours and self.neighbours.to(device),
            self.placement and self.placement.to(device),
        )


def phase_of(method: MethodConfig, iteration: int) -> Phase:
    """Return what iteration 0, 1, ... of a run trains."""
    if iteration < _pretrain_iterations(method):
        return "localizer"
    return "generators" if iteration < first_main_iteration(method) else "main"


def phase_ranges(config: Config) -> dict[Phase, range]:
    """Return the iterations of each phase that a run has, in order."""
    pretrained, first_main = _pretrain_iterations(config.method), first_main_iteration(config.method)
    ranges: dict[Phase, range] = {
        "localizer": range(pretrained),
        "generators": range(pretrained, first_main),
        "main": range(first_main, first_main + config.training.iterations),
    }
    return {phase: planned for phase, planned in ranges.items() if planned}


def first_main_iteration(method: MethodConfig) -> int:
    """Return how many iterations of pre-training come before the main ones."""
    return _pretrain_iterations(method) + _context_iterations(method)


def _context_iterations(method: MethodConfig) -> int:
    pretrained = method.context == "pretrained" or (method.context == "adversarial" and method.pretrain_adversaries)
    return method.context_iterations if pretrained else 0


def _pretrain_iterations(method: MethodConfig) -> int:
    # Supervised training learns all that pre-training does, and begins with it.
    return method.pretrain_iterations if method.untrimmed in ("proposals", "transfer") else 0


def uses_real_context(config: Config) -> bool:
    """Return whether the main iterations look at the real background around foreground segments."""
    context = config.method.context
    return (
        context == "background"
        or (context in ("pretrained", "adversarial") and config.method.real_residual)
        or (context == "adversarial" and config.loss.context > 0)
    )


def read_iteration(
    untrimmed: TrainingSet, moments: MomentSet | None, config: Config, iteration: int, ranks: Ranks = ALONE
) -> IterationBatch:
    """Read what an iteration needs; depends on nothing but the arguments, so that a run can be resumed anywhere.

    With several ranks it is this one's part of what one process reads.
    """
    part = ranks.part(config.training.batch_size)
    method, settings, phase = config.method, config.training, phase_of(config.method, iteration)
    main = phase == "main"
    videos = foregrounds = surroundings = clips = neighbours = placement = None
    if not main or method.untrimmed != "none":
        videos = untrimmed.read(untrimmed.members(settings.seed, iteration, settings.batch_size)[part])
        if phase != "localizer":
            chosen = choose_foregrounds(videos, settings.seed, iteration, part.start)
            foregrounds = cut_foregrounds(videos, chosen)
            if phase == "generators" or (main and uses_real_context(config)):
                surroundings = cut_surroundings(videos, chosen)
    if main and moments is not None:
        members = moments.members(settings.seed, iteration, settings.batch_size)
        clips = moments.read(members[part])
        if method.moments == "localized" and method.context != "none":
            shown = np.stack([np.roll(members, -place) for place in range(1 + method.neighbours)], axis=1)
            if method.neighbours:
                neighbours = moments.read(shown[part][-1, 1:])
            drawn = draw_placement(config, untrimmed, moments.lengths(shown), iteration)
            placement = Placement(*(values[part] for values in drawn))
    return IterationBatch(videos, foregrounds, surroundings, clips, neighbours, placement)


def draw_placement(config: Config, untrimmed: TrainingSet, moments: MomentLengths, iteration: int) -> Placement:
    """Draw where the moments of each synthetic video of a batch lie: how long (`method.shares`), and where (uniform).

    Each video is modelled on a ground truth of an untrimmed one, drawn at random. Depends on nothing but the arguments.

    Args:
        config: of the run.
        untrimmed: videos to draw from.
        moments: (B, M) of each video, in the order in which they follow one another.
        iteration: of the run.
    """
    method, steps = config.method, config.model.steps
    videos, count = moments.rows.shape
    random = np.random.default_rng([config.training.seed, iteration, PLACEMENT_STREAM])
    draws: NDArray[np.float64] = random.random((2 + count, videos))
    chosen = np.floor(draws[0] * len(untrimmed.segments)).astype(np.int64)
    if method.arrangement == "untrimmed":
        others, distance = _as_in_untrimmed(untrimmed, chosen, count - 1)
    else:
        others, distance = _at_random(untrimmed, chosen, random.random((count, videos, 2)))
    if method.shares == "untrimmed":
        models = np.concatenate([chosen[:, None], others], axis=1)
        share = untrimmed.segments[models, 1] - untrimmed.segments[models, 0]
    elif method.shares == "durations":
        owners = untrimmed.owners[chosen, None]
        in_seconds = moments.seconds / untrimmed.durations[owners]
        share = np.where(in_seconds > 0, in_seconds, moments.rows / untrimmed.row_lengths[owners])
    else:
        low, high = math.log(method.minimum_share), math.log(method.maximum_share)
        share = np.exp(low + (high - low) * draws[2:].T)
    length = np.clip(np.rint(steps * share), 1, steps).astype(np.int64)
    gap = np.rint(steps * np.maximum(distance, 0)).astype(np.int64)
    fits = length[:, :1] + np.cumsum(gap + length[:, 1:], axis=1) <= steps
    # The first that cannot follow ends the row.
    follows = np.logical_and.accumulate((distance >= 0) & fits, axis=1)
    length[:, 1:] *= follows
    gap *= follows
    first = np.floor(draws[1] * (steps - length.sum(axis=1) - gap.sum(axis=1) + 1)).astype(np.int64)
    starts = first[:, None] + np.cumsum(np.pad(length[:, :-1] + gap, ((0, 0), (1, 0))), axis=1)
    return Placement(torch.from_numpy(starts), torch.from_numpy(length))


def _as_in_untrimmed(
    untrimmed: TrainingSet, chosen: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ground truths (B, count) that follow the chosen ones in their videos, and how far each is behind the
    one before it, as a share of the video; negative where it overlaps that one or there is none."""
    others = untrimmed.following(chosen, count)
    before = np.concatenate([chosen[:, None], others], axis=1)[:, :count]
    distance = untrimmed.segments[others, 0] - untrimmed.segments[before, 1]
    return others, np.where(others >= 0, distance, -1.0)


def _at_random(
    untrimmed: TrainingSet, chosen: NDArray[np.int64], draws: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return any ground truths (B, count) and their distances, as `_as_in_untrimmed`, in videos as long as the chosen
    ones' are; how many there are is random, and the distances of the others are negative.

    Draws (1 + count, B, 2) are of [0, 1).
    """
    others = np.floor(draws[1:, :, 0].T * len(untrimmed.segments)).astype(np.int64)
    seconds = untrimmed.distances
    if not len(seconds):
        return others, np.full(others.shape, -1.0)
    distance = seconds[np.floor(draws[1:, :, 1].T * len(seconds)).astype(np.int64)]
    wanted = np.floor(draws[0, :, 0] * len(draws)).astype(np.int64)
    present = np.arange(others.shape[1]) < wanted[:, None]
    return others, np.where(present, distance / untrimmed.durations[untrimmed.owners[chosen, None]], -1.0)
