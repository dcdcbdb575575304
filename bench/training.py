"""The pipeline of one training iteration: its batch in device memory, its networks, ours and the peer's form."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ahernet.config import preset, with_run
from ahernet.training.batches import Batch
from ahernet.training.iteration_batches import IterationBatch, Placement
from ahernet.training.losses import GroundTruth
from ahernet.training.segment_batches import SegmentBatch
from ahernet.training.steps import CHANGES, ClassRows, Networks
from ahernet.training.take_steps import take_steps
from ahernet.training.training_state import Run, captured_on, make_optimizer
from bench import cases, costs
from bench.localization import paper_model
from bench.peers import training

PARTS = sorted({part for changed in CHANGES.values() for part in changed})


class Training:
    """A batch of Algorithm 1 in device memory, and an iteration on it: the run `aher` of the paper.

    The learning rate is 0, so that every call does all the work of an iteration on the same parameters.
    """

    def __init__(self, device: str, videos: int, classes: int, width: float, mean_rows: int, precision: str) -> None:
        model = paper_model(width)
        self.videos, self.device = videos, device
        config = with_run(preset("paper"), "aher")
        settings = dataclasses.replace(config.training, precision=precision)
        self.config = dataclasses.replace(config, model=model, training=settings)
        with torch.random.fork_rng(devices=[0] if device == "cuda" else []), torch.device(device):
            torch.manual_seed(0)
            networks = Networks(self.config, classes)
        base = classes // 2
        rows = ClassRows(torch.arange(base, device=device), torch.arange(base, classes, device=device))
        self.run = Run(self.config, rows, networks, None, make_optimizer(networks), 0, captured=captured_on(device))
        self.batch = self._batch(base, classes - base, mean_rows)

    def _batch(self, base: int, novel: int, mean_rows: int) -> IterationBatch:
        names, device = ("",) * self.videos, self.device

        def rows(mean: int, seed: int) -> tuple[Tensor, Tensor]:
            dimension = self.config.model.feature_dimension
            return cases.sequences(self.videos, mean, dimension, torch.float16, device, seed)

        segments, labels, offsets = (x.to(device) for x in cases.ground_truths(self.videos, 5))
        untrimmed = Batch(names, *rows(mean_rows, 0), GroundTruth(segments, labels % base, offsets))
        number = torch.arange(self.videos, device=device)
        foregrounds = SegmentBatch(names, *rows(max(2, mean_rows // 6), 1), number % base)
        moments = SegmentBatch(names, *rows(max(2, mean_rows // 6), 2), number % novel)
        steps = self.config.model.steps
        length = (steps * (0.7 + 0.25 * torch.rand(self.videos, generator=torch.Generator().manual_seed(0)))).long()
        placement = Placement(((steps - length) // 2)[:, None].to(device), length[:, None].to(device))
        return IterationBatch(untrimmed, foregrounds, None, moments, None, placement)

    def call(self, batch: IterationBatch) -> Tensor:
        """Return the sum of the losses of all steps, having done everything else."""
        if self.run.captured is None:
            return self.eager(batch)
        return self.run.captured.take(self.run, batch, "main")["total"].float()

    def eager(self, batch: IterationBatch) -> Tensor:
        """The same, launch by launch."""
        return take_steps(self.run, [batch], "main")["total"].float()

    def peer(self, batch: IterationBatch) -> Tensor:
        """The same with matching and losses in the form that is common elsewhere."""
        networks, optimizer = self.run.networks, self.run.optimizer
        with torch.autocast(self.device, torch.bfloat16, enabled=self.config.training.precision == "bfloat16"):
            losses = training.step_losses(networks, self.config, batch, self.run.rows)
        optimizer.zero_grad(set_to_none=True)
        for name in sorted(losses):
            changed = [parameter for part in CHANGES[name] for parameter in networks.part(part).parameters()]
            losses[name].backward(inputs=changed, retain_graph=True)
        optimizer.step()
        return torch.stack([loss.detach().float() for loss in losses.values()]).sum()

    def with_gradients(self, way: Callable[[IterationBatch], Tensor]) -> Callable[[IterationBatch], tuple[Tensor, ...]]:
        """A way that returns beside its loss the norms of the gradients of `PARTS`, as the optimizer was given them.

        They are read from its running means, which a replayed graph changes as well.
        """
        decay = self.run.optimizer.param_groups[0]["betas"][0]

        def run(batch: IterationBatch) -> tuple[Tensor, ...]:
            before = self._means()
            loss = way(batch)
            pairs = zip(self._means(), before, strict=True)
            return loss, *((mean - decay * past).norm() / (1 - decay) for mean, past in pairs)

        return run

    def _means(self) -> list[Tensor]:
        """Of the gradients so far, a vector for each of `PARTS`."""
        state = self.run.optimizer.state
        return [
            torch.cat([state.get(x, {}).get("exp_avg", torch.zeros_like(x)).flatten() for x in part.parameters()])
            for part in map(self.run.networks.part, PARTS)
        ]

    def cost(self, result: Any) -> costs.Cost:
        """Bytes and operations of one call."""
        weight_bytes = costs.parameter_bytes(self.run.networks)
        return costs.training_iteration(self.config, self.videos, (self.batch,), weight_bytes)
