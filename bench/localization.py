"""The pipeline from feature rows in device memory to detections: its inputs, network and parts."""

import dataclasses
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import ahernet_kernels as kernels
import torch
from torch import Tensor

from ahernet.config import InferenceConfig, ModelConfig, preset
from ahernet.inference.anchors import AnchorStep
from ahernet.inference.network import fused_rectified
from ahernet.model.localizer import Localizer
from bench import cases, costs
from bench.peers.localization import detections


def paper_model(width: float = 1.0, dimension: int | None = None) -> ModelConfig:
    """The paper's network, or one whose channels are fewer."""
    model = preset("paper").model
    return dataclasses.replace(
        model,
        width=width,
        feature_dimension=dimension or max(8, round(model.feature_dimension * width)),
        minimum_channels=8 if width < 1 else 1,
    )


def localizer(model: ModelConfig, classes: int, device: str) -> Localizer:
    """An untrained network whose scores differ from anchor to anchor, the same at every run."""
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        return Localizer(model, classes)


def compared(step: AnchorStep, rows: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    """Segments, scores and labels of all anchors; scores, counts and finiteness of what the step detects."""
    found = step(rows, offsets)
    return *step.candidates(rows, offsets)[:3], found.scores, found.counts, found.finite


class Localization:
    """A batch of feature rows in device memory, and the step that finds detections in it."""

    def __init__(
        self, device: str, videos: int, classes: int, width: float, mean_rows: int, precision: str = "bfloat16"
    ) -> None:
        self.model = paper_model(width)
        self.config = InferenceConfig(precision=precision, top_k=100, nms_threshold=0.9)
        self.network = localizer(self.model, classes, device).requires_grad_(False)
        self.step = AnchorStep(self.network, self.config)
        self.videos = videos
        self.arguments = cases.sequences(videos, mean_rows, self.model.feature_dimension, torch.float16, device)

    def call(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """From rows to detections."""
        return tuple(self.step(rows, offsets))

    def peer(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """The same network; resampled, decoded and suppressed in the forms that are common elsewhere."""
        return detections(self.step, rows, offsets)

    def compared(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """What other roundings do not put in another order: all anchors, then scores and counts of the detections."""
        return compared(self.step, rows, offsets)

    def on_cpu(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """The same by the CPU path, in float32."""
        config = dataclasses.replace(self.config, precision="float32")
        return compared(AnchorStep(deepcopy(self.network).cpu(), config), rows.cpu(), offsets.cpu())

    def parts(self) -> dict[str, Callable[[], Any]]:
        """What the call does before anything is decoded: its time less theirs is that of all that follows.

        And the backbone in another form, to know what its own is worth.
        """
        sequence, _ = kernels.resample_checked(*self.arguments, self.model.steps, self.step.precision)

        def searched() -> list[Tensor]:
            with torch.backends.cudnn.flags(benchmark=True):
                return self.step.backbone(sequence, fused_rectified)

        def resampling() -> tuple[Tensor, Tensor]:
            return kernels.resample_checked(*self.arguments, self.model.steps, self.step.precision)

        return {
            "resampling": resampling,
            "backbone": lambda: self.step.backbone(sequence, fused_rectified),
            "backbone, searched": searched,
        }

    def cost(self, result: Any) -> costs.Cost:
        """Bytes and operations of one call."""
        weight_bytes = costs.parameter_bytes(self.step)
        return costs.localize(self.model, self.videos, self.arguments, result, weight_bytes)
