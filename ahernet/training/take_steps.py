"""What an iteration of training computes: the losses of its steps, their gradients, and the step of the optimizer."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ahernet.training.iteration_batches import IterationBatch, Phase
from ahernet.training.steps import CHANGES, step_losses

if TYPE_CHECKING:
    from ahernet.training.training_state import Run


def take_steps(run: "Run", batch: IterationBatch, phase: Phase) -> dict[str, Tensor]:
    """Take all steps of an iteration and return the terms of their losses, still on the device.

    Nothing here waits for the device, and all shapes follow from those of the batch.
    """
    settings = run.config.training
    device = next(run.networks.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        steps = step_losses(run.networks, run.config, batch, phase, run.rows, run.ranks)
    run.optimizer.zero_grad(set_to_none=True)
    for name, step in steps.items():
        changed = [parameter for part in CHANGES[name] for parameter in run.networks.part(part).parameters()]
        # Steps share forward passes, whose graphs are needed until the last of them.
        step.loss.backward(inputs=changed, retain_graph=True)  # type: ignore[no-untyped-call]
    run.ranks.sum_gradients(list(run.networks.parameters()))
    if settings.gradient_clip > 0:
        for network in run.networks.children():
            nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
    run.optimizer.step()
    terms = {name: term.detach() for step in steps.values() for name, term in step.terms.items()}
    return {"total": torch.stack([step.loss.detach() for step in steps.values()]).sum(), **terms}
