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
from ahernet.training.steps import CHANGES, ClassRows, Networks, step_losses
from bench import cases, costs
from bench.localization import paper_model
from bench.peers import training


class Training:
    """A batch of Algorithm 1 in device memory, and an iteration on it: the run `aher` of the paper.

    The learning rate is 0, so that every call does all the work of an iteration on the same parameters.
    """

    def __init__(self, device: str, videos: int, classes: int, width: float, mean_rows: int, precision: str) -> None:
        model = paper_model(width)
        self.videos, self.device, self.precision = videos, device, precision
        self.config = dataclasses.replace(with_run(preset("paper"), "aher"), model=model)
        with torch.random.fork_rng(devices=[0] if device == "cuda" else []), torch.device(device):
            torch.manual_seed(0)
            self.networks = Networks(self.config, classes)
        # Adam's arithmetic for all parameters in one pass, as in training.
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=0.0, fused=True)
        base = classes // 2
        self.rows = ClassRows(torch.arange(base, device=device), torch.arange(base, classes, device=device))
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
        placement = Placement(((steps - length) // 2).to(device), length.to(device))
        return IterationBatch(untrimmed, foregrounds, None, moments, placement)

    def call(self, batch: IterationBatch) -> Tensor:
        """Return the losses of all steps, having done everything else."""
        return self._iteration(
            lambda: {
                name: step.loss
                for name, step in step_losses(self.networks, self.config, batch, "main", self.rows).items()
            }
        )

    def peer(self, batch: IterationBatch) -> Tensor:
        """The same with matching and losses in the form that is common elsewhere."""
        return self._iteration(lambda: training.step_losses(self.networks, self.config, batch, self.rows))

    def _iteration(self, losses_of_steps: Callable[[], dict[str, Tensor]]) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            losses = losses_of_steps()
        self.optimizer.zero_grad(set_to_none=True)
        for name in sorted(losses):
            changed = [parameter for part in CHANGES[name] for parameter in self.networks.part(part).parameters()]
            losses[name].backward(inputs=changed, retain_graph=True)
        self.optimizer.step()
        return torch.stack([losses[name].detach().float() for name in sorted(losses)])

    def cost(self, result: Any) -> costs.Cost:
        """Bytes and operations of one call."""
        weight_bytes = costs.parameter_bytes(self.networks)
        return costs.training_iteration(self.config, self.videos, (self.batch,), weight_bytes)
