"""What an iteration of training computes: the losses of its steps, their gradients, and the step of the optimizer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ahernet.training.iteration_batches import IterationBatch, Phase
from ahernet.training.parts_in_turn import ranks_in_turn
from ahernet.training.ranks import Ranks
from ahernet.training.steps import CHANGES, Observed, StepLoss, step_losses

if TYPE_CHECKING:
    from ahernet.training.training_state import Run


class _Part(NamedTuple):
    """What is left of a part of a batch once its gradients are computed: terms of losses, and what was observed."""

    terms: dict[str, Tensor]
    observed: Observed | None


def take_steps(run: "Run", parts: Sequence[IterationBatch], phase: Phase) -> dict[str, Tensor]:
    """Take all steps of an iteration and return the terms of their losses, still on the device.

    Of a batch in several parts only one takes memory of the device at a time; losses and gradients are those of the
    whole batch, but for rounding. Nothing here waits for the device, and all shapes follow from those of the batch.
    """
    run.optimizer.zero_grad(set_to_none=True)
    ranks = [run.ranks] if len(parts) == 1 else _ranks_in_turn(run, parts, phase)
    computed = [_add_gradients(run, batch, phase, own) for batch, own in zip(parts, ranks, strict=True)]
    run.ranks.sum_gradients(list(run.networks.parameters()))
    settings = run.config.training
    if settings.gradient_clip > 0:
        for network in run.networks.children():
            nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
    run.iteration += 1  # from here on parameters change: an iteration that fails cannot be tried again
    run.optimizer.step()
    terms, observed = computed.pop()
    if observed is not None:  # by every part the segments of all
        run.networks.localizer.segment_classifier.observe(*observed)
    for part in computed:
        terms = {name: term + part.terms[name] for name, term in terms.items()}
    return terms


def _ranks_in_turn(run: "Run", parts: Sequence[IterationBatch], phase: Phase) -> list[Ranks]:
    with torch.no_grad():
        return ranks_in_turn(len(parts), lambda number, ranks: _losses(run, parts[number], phase, ranks))


def _losses(run: "Run", batch: IterationBatch, phase: Phase, ranks: Ranks) -> dict[str, StepLoss]:
    device, precision = next(run.networks.parameters()).device, run.config.training.precision
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return step_losses(run.networks, run.config, batch.to(device), phase, run.rows, ranks)


def _add_gradients(run: "Run", batch: IterationBatch, phase: Phase, ranks: Ranks) -> _Part:
    """Add the gradients of a part to those that there are; its graphs are gone when this returns."""
    steps = _losses(run, batch, phase, ranks)
    for name, step in steps.items():
        changed = [parameter for part in CHANGES[name] for parameter in run.networks.part(part).parameters()]
        # Steps share forward passes, whose graphs are needed until the last of them.
        step.loss.backward(inputs=changed, retain_graph=True)  # type: ignore[no-untyped-call]
    total = torch.stack([step.loss.detach() for step in steps.values()]).sum()
    terms = {name: term.detach() for step in steps.values() for name, term in step.terms.items()}
    return _Part({"total": total, **terms}, next((step.observed for step in steps.values() if step.observed), None))
