"""What every way to find detections in a batch has in common: its result, its network, and suppression."""

from typing import NamedTuple

import ahernet_kernels as kernels
import torch
from torch import Tensor, nn

from ahernet.config import InferenceConfig
from ahernet.inference.network import frozen, fused_rectified
from ahernet.model.heads import ClassWeights
from ahernet.model.localizer import Localizer

NO_MINIMUM = -1.0  # below any overlap


class Found(NamedTuple):
    """Detections of B videos, padded to K a video; video b has the first counts[b] of its rows, best first.

    segments (B, K, 2) float32 start, end in [0, 1] of the video; scores (B, K) float32; labels (B, K) int64;
    counts (B,) int64; finite (B,) bool, False where the features of a video hold NaN or infinity (its
    rows mean nothing then). Rows beyond the count are 0, their labels -1.
    """

    segments: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    finite: Tensor


class Candidates(NamedTuple):
    """What suppression chooses from: N candidates of each of B videos.

    segments (B, N, 2) float32 start, end in [0, 1] of the video; scores (B, N) float32, -inf where there is none;
    labels (B, N) int64; finite as in `Found`.
    """

    segments: Tensor
    scores: Tensor
    labels: Tensor
    finite: Tensor


class Step(nn.Module):
    """One batch from feature rows to detections, without a loop over videos, classes or boxes.

    Every step runs under `torch.compile(fullgraph=True)` and `torch.export` and does not wait for the device.

    Args:
        model: trained network; what the step needs of it is copied, nothing is changed.
        config: scoring and suppression.
        class_weights: what the step classifies with, of all classes.
        class_rows: (K,) int64 rows of the classes to localize, which labels then number; None for all.
    """

    def __init__(
        self, model: Localizer, config: InferenceConfig, class_weights: ClassWeights, class_rows: Tensor | None
    ) -> None:
        super().__init__()
        self.config = config
        self.model_config = model.config
        self.precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.backbone = frozen(model.backbone).to(self.precision)
        chosen = class_weights if class_rows is None else class_weights.select(class_rows)
        self.weights = nn.ParameterList(weight.detach().to(self.precision, copy=True) for weight in chosen.weights)
        self.biases = nn.ParameterList(bias.detach().to(self.precision, copy=True) for bias in chosen.biases)
        self.requires_grad_(False)

    def forward(self, rows: Tensor, offsets: Tensor) -> Found:
        """Localize in B videos.

        Args:
            rows: (R, D) feature rows of all videos, float16, bfloat16 or float32.
            offsets: (B + 1,) int64; video b owns rows offsets[b]:offsets[b + 1], at least one.
        """
        segments, scores, labels, finite = self.candidates(rows, offsets)
        return Found(*suppress(segments, scores, labels, self.config), finite)

    def candidates(self, rows: Tensor, offsets: Tensor) -> Candidates:
        """Return what suppression chooses from; arguments as `forward`."""
        raise NotImplementedError

    @property
    def class_weights(self) -> ClassWeights:
        """The weights that the step classifies with."""
        return ClassWeights(list(self.weights), list(self.biases))

    def feature_maps(self, rows: Tensor, offsets: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
        """Bring the rows of videos to `steps`, and map them to feature maps; with which videos are finite (B,)."""
        sequence, finite = kernels.resample_checked(rows, offsets, steps, self.precision)
        maps: list[Tensor] = self.backbone(sequence, fused_rectified)
        return maps, finite


def is_finite(sequence: Tensor) -> Tensor:
    """Return (B,) whether sequences (B, steps, D) hold neither NaN nor infinity."""
    return sequence.abs().amax(dim=(1, 2)).isfinite()


def keep_by_overlap(
    segments: Tensor, scores: Tensor, labels: Tensor, overlaps: Tensor, config: InferenceConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the candidates (B, N) that hard suppression leaves when they are ranked by their overlaps (B, N) alone.

    `suppress` by score then removes no other: of those that are left none overlaps another one too much.

    Returns:
        Segments, scores and labels of K = min(config.top_k, N) candidates; what is none has the score -inf.
    """
    overlaps = overlaps.where(scores > -torch.inf, -torch.inf)
    groups = labels if config.class_aware else None
    index, _ = kernels.nms(segments, overlaps, groups, config.nms_threshold, config.top_k, NO_MINIMUM)
    segments, scores, labels = kernels.pick(segments, scores, labels, index)
    return segments, scores.where(index >= 0, -torch.inf), labels


def suppress(
    segments: Tensor, scores: Tensor, labels: Tensor, config: InferenceConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the best candidates (B, N) of each video and remove or lower what overlaps them.

    Candidates of score -inf are none. On a GPU hard suppression is two launches. `top_k_before` changes no detection
    that it does not cut off, and saves no time below the 1,024 candidates that one launch of `nms` takes: it adds
    the sort and another launch.

    Returns:
        The fields of `Found` up to the counts, K = min(config.top_k, number of candidates).
    """
    if config.top_k_before:
        # A stable sort and not topk: ties go to the lowest candidate.
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : config.top_k_before]
        segments, scores, labels = kernels.pick(segments, scores, labels, order)
    groups = labels if config.class_aware else None
    if config.suppression == "hard":
        index, count = kernels.nms(segments, scores, groups, config.nms_threshold, config.top_k, config.minimum_score)
        return *kernels.pick(segments, scores, labels, index), count
    parameter = config.sigma if config.suppression == "gaussian" else config.nms_threshold
    index, lowered, count = kernels.soft_nms(
        segments, scores, groups, config.suppression, parameter, config.top_k, config.minimum_score
    )
    segments, _, labels = kernels.pick(segments, scores, labels, index)
    return segments, lowered, labels, count
