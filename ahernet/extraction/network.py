"""A backbone with its weights on a device: batches of clips to features."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahernet.device import choose_device, to_device
from ahernet.errors import UserError, is_out_of_memory
from ahernet.event_log import warn
from ahernet.extraction.backbones import Backbone, prepare_clips
from ahernet.extraction.weights import load_network

Arithmetic = Literal["float32", "bfloat16"]


class ClipNetwork:
    """Computes the features of batches of clips.

    Attributes:
        backbone: what the network is.
        weights: what its weights are, as `load_network` says it.
        arithmetic: "float32", or "bfloat16" for convolutions and products in it.
        device: where it computes.

    Raises:
        UserError: the weights do not fit, or there is no such device.
    """

    def __init__(self, backbone: Backbone, weights: Path | None, device: str, arithmetic: Arithmetic) -> None:
        self.backbone = backbone
        self.arithmetic = arithmetic
        self.device = choose_device(device)
        network, self.weights = load_network(backbone, weights)
        self._network = network.requires_grad_(False).to(self.device)
        self._most_clips: int | None = None  # at a time, once memory was short

    def describe(self) -> dict[str, Any]:
        """Return everything that the features of a clip depend on, as JSON can hold it."""
        return {**self.backbone.describe(), "weights": self.weights, "arithmetic": self.arithmetic}

    def describe_device(self) -> dict[str, Any]:
        """Return what the rounding of features depends on: on a CPU the threads that share a convolution, too."""
        threads = {"cpu_threads": torch.get_num_threads()} if self.device.type == "cpu" else {}
        return {"device": self.device.type, **threads}

    def launch(self, clips: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        """Start to compute the features of clips (B, clip_length, side, side, 3), uint8 RGB.

        Returns:
            A function that waits for them and returns (B, dimension). On a GPU other work can be done meanwhile.

        Raises:
            UserError: the network returns something else.
        """
        features = self._compute_within_memory(torch.from_numpy(clips)).float()
        expected = (len(clips), self.backbone.dimension)
        if features.shape != expected:
            raise UserError(
                f"backbone {self.backbone.name}: gave features of shape {tuple(features.shape)}, expected {expected}"
            )
        if self.device.type == "cpu":
            return features.numpy
        on_host = features.to("cpu", non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> NDArray[np.float32]:
            done.synchronize()
            rows: NDArray[np.float32] = on_host.numpy()
            return rows

        return wait

    def _compute_within_memory(self, clips: Tensor) -> Tensor:
        """Compute at once, or once memory was short some at a time: fewer round otherwise, in the last digits."""
        while True:
            tried = min(self._most_clips or len(clips), len(clips))
            try:
                return torch.cat([self._compute(to_device(part, self.device)) for part in torch.split(clips, tried)])
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or tried == 1:
                    raise
            self._most_clips = tried // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            warn(
                f"extract: out of memory, goes on with {self._most_clips:,} clips at a time; features may differ in "
                "their last digits from those of a run with more room"
            )

    @torch.inference_mode()
    def _compute(self, clips: Tensor) -> Tensor:
        # Chosen algorithms that sum in a fixed order: a restarted run gives the same bits.
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.arithmetic == "bfloat16"),
        ):
            features: Tensor = self._network(prepare_clips(clips, self.backbone.preprocessing))
        return features
