"""What every way to find detections in a batch has in common: its result, its network, and suppression."""

from copy import deepcopy
from typing import NamedTuple

import ahernet_kernels as kernels
import torch
from torch import Tensor, nn

from ahernet.config import InferenceConfig
from ahernet.model.heads import ClassWeights
from ahernet.model.localizer import Localizer


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


class Step(nn.Module):
    """One batch from feature rows to detections, without a loop over videos, classes or boxes.

    Every step runs under `torch.compile(fullgraph=True)` and `torch.export` and does not wait for the device. Its
    `forward(rows, offsets)` takes (R, D) feature rows of all videos, float16, bfloat16 or float32, and (B + 1,)
    int64 offsets: video b owns rows offsets[b]:offsets[b + 1], at least one. It returns `Found`.

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
        self.backbone = deepcopy(model.backbone).to(self.precision)
        chosen = class_weights if class_rows is None else class_weights.select(class_rows)
        self.weights = nn.ParameterList(weight.detach().to(self.precision, copy=True) for weight in chosen.weights)
        self.biases = nn.ParameterList(bias.detach().to(self.precision, copy=True) for bias in chosen.biases)
        self.requires_grad_(False)

    @property
    def class_weights(self) -> ClassWeights:
        """The weights that the step classifies with."""
        return ClassWeights(list(self.weights), list(self.biases))

    def feature_maps(self, sequence: Tensor) -> list[Tensor]:
        """Map sequences (B, steps, D) of any dtype to feature maps in the precision of the step."""
        maps: list[Tensor] = self.backbone(sequence.to(self.precision))
        return maps


def is_finite(sequence: Tensor) -> Tensor:
    """Return (B,) whether sequences (B, steps, D) hold neither NaN nor infinity."""
    return sequence.abs().amax(dim=(1, 2)).isfinite()


def suppress(
    segments: Tensor, scores: Tensor, labels: Tensor, config: InferenceConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the best candidates (B, N) of each video and remove or lower what overlaps them.

    Returns:
        The fields of `Found` up to the counts, K = min(config.top_k, number of candidates).
    """
    # What clipping to the video left nothing of is no detection, whatever its score.
    scores = scores.where(segments[..., 1] > segments[..., 0], -torch.inf)
    if config.top_k_before:
        # A stable sort and not topk: ties go to the lowest candidate.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, : config.top_k_before].contiguous(), order[:, : config.top_k_before]
        segments, labels = pick_segments(segments, order), labels.gather(1, order)
    groups = labels if config.class_aware else None
    if config.suppression == "hard":
        index, count = kernels.nms(segments, scores, groups, config.nms_threshold, config.top_k, config.minimum_score)
        kept_scores = scores.gather(1, index.clamp(min=0))
    else:
        parameter = config.sigma if config.suppression == "gaussian" else config.nms_threshold
        index, kept_scores, count = kernels.soft_nms(
            segments, scores, groups, config.suppression, parameter, config.top_k, config.minimum_score
        )
    kept = index >= 0
    index = index.clamp(min=0)
    return (
        pick_segments(segments, index).where(kept.unsqueeze(2), 0.0),
        kept_scores.where(kept, 0.0),
        labels.gather(1, index).where(kept, -1),
        count,
    )


def pick_segments(segments: Tensor, order: Tensor) -> Tensor:
    """Pick segments (B, N, 2) by (B, K) row numbers."""
    return segments.gather(1, order.unsqueeze(2).expand(-1, -1, 2))
