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
from ahernet.training.moment_set import MomentSet
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

    M is 1, or 2 where videos may hold a neighbour of their moment; its length is 0 where they do not.
    """

    first: Tensor
    length: Tensor

    def to(self, device: torch.device) -> "Placement":
        """Return the same with its tensors on `device`."""
        return Placement(*(to_device(tensor, device) for tensor in self))


class IterationBatch(NamedTuple):
    """The data of one iteration; None where its phase or the run's method has no use for it."""

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
    # Supervised training is what pre-training is, from the first iteration to the last.
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
            shown = members[:, None]
            if method.neighbours:
                shown = np.stack([members, np.roll(members, -1)], axis=1)
                neighbours = moments.read(shown[part, 1])
            drawn = draw_placement(config, untrimmed, moments.row_lengths(shown), iteration)
            placement = Placement(*(values[part] for values in drawn))
    return IterationBatch(videos, foregrounds, surroundings, clips, neighbours, placement)


def draw_placement(
    config: Config, untrimmed: TrainingSet, moment_lengths: NDArray[np.int64], iteration: int
) -> Placement:
    """Draw where the moments of each synthetic video of a batch lie: how long (`method.shares`), and where (uniform).

    Each video is modelled on a ground truth of an untrimmed one, drawn at random. Depends on nothing but the arguments.

    Args:
        config: of the run.
        untrimmed: videos to draw from.
        moment_lengths: (B, M) feature rows of the moments: M is 2 with `method.neighbours`, else 1.
        iteration: of the run.
    """
    method, steps = config.method, config.model.steps
    videos, count = moment_lengths.shape
    random = np.random.default_rng([config.training.seed, iteration, PLACEMENT_STREAM])
    draws: NDArray[np.float64] = random.random((1 + count, videos))
    chosen = np.floor(draws[0] * len(untrimmed.segments)).astype(np.int64)
    models = np.stack([chosen, untrimmed.next_segments[chosen]][:count], axis=1)
    if method.shares == "untrimmed":
        share = untrimmed.segments[models, 1] - untrimmed.segments[models, 0]
    elif method.shares == "durations":
        share = moment_lengths / untrimmed.row_lengths[untrimmed.owners[chosen], None]
    else:
        low, high = math.log(method.minimum_share), math.log(method.maximum_share)
        share = np.exp(low + (high - low) * draws[[0, 2][:count]].T)
    length = np.clip(np.rint(steps * share), 1, steps).astype(np.int64)
    gap = np.zeros(videos, np.int64)
    if count == 2:
        distance = untrimmed.segments[models[:, 1], 0] - untrimmed.segments[models[:, 0], 1]
        gap = np.rint(steps * np.maximum(distance, 0)).astype(np.int64)
        together = (models[:, 1] >= 0) & (distance >= 0) & (length.sum(axis=1) + gap <= steps)
        length[~together, 1] = gap[~together] = 0
    first = np.floor(draws[1] * (steps - length.sum(axis=1) - gap + 1)).astype(np.int64)
    starts = np.stack([first, first + length[:, 0] + gap][:count], axis=1)
    return Placement(torch.from_numpy(starts), torch.from_numpy(length))
