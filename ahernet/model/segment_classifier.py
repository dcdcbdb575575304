"""Segment-level classification of moments and foreground segments (section 3.2 of the paper, eq. 4)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahernet.config import ModelConfig
from ahernet.model.anchors import scale_channels
from ahernet.model.heads import ClassWeights

# Segments of a class that its statistics remember: enough for a variance, and few enough that the features of
# the network as it was long ago are forgotten.
REMEMBERED = 50


class FeatureStatistics(nn.Module):
    """Mean and variance of each class's pooled features: what is kept of its segments once training is over.

    Part of the checkpoint (not in the paper): a class that is added later needs the others to be told apart from.

    Attributes:
        observed: (C,) float32, segments seen of each class.
        mean: (C, d) float32, d the sum of the scales' d_j; 0 for a class never seen.
        variance: (C, d) float32, likewise.
    """

    observed: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, dimension: int, class_count: int) -> None:
        super().__init__()
        self.register_buffer("observed", torch.zeros(class_count))
        self.register_buffer("mean", torch.zeros(class_count, dimension))
        self.register_buffer("variance", torch.zeros(class_count, dimension))

    def observe(self, features: Tensor, rows: Tensor) -> None:
        """Take in features (B, d) float32 of segments of the classes `rows` (B,) int64.

        n new segments of a class weigh n against the min(observed, REMEMBERED) before them: the statistics are
        those of all segments at first, and later running ones.
        """
        # A product and not a sum by index, which on a GPU adds in no fixed order.
        belongs = (rows == torch.arange(len(self.observed), device=rows.device)[:, None]).float()
        count = belongs.sum(dim=1, keepdim=True)
        share = belongs / count.clamp(min=1)
        mean = share @ features
        variance = share @ (features - belongs.T @ mean).square()
        before = self.observed[:, None]
        weight = count / (before.clamp(max=REMEMBERED) + count).clamp(min=1)
        shift = mean - self.mean
        self.mean.add_(weight * shift)
        # Of two sets together: the mean of their variances, and the variance of their means.
        self.variance.lerp_(variance, weight).add_(weight * (1 - weight) * shift.square())
        self.observed.add_(count.squeeze(1))


class SegmentClassifier(nn.Module):
    """One linear classifier W_regv (C, d_j) with bias per scale, on the average of the feature map.

    Every tensor of its state has one row a class.
    """

    def __init__(self, config: ModelConfig, class_count: int) -> None:
        super().__init__()
        channels = scale_channels(config)
        self.weights = nn.ParameterList(nn.init.normal_(torch.empty(class_count, d), std=0.01) for d in channels)
        self.biases = nn.ParameterList(torch.zeros(class_count) for _ in channels)
        self.statistics = FeatureStatistics(sum(channels), class_count)

    def class_weights(self) -> ClassWeights:
        """Return W_regv and its bias of every scale."""
        return ClassWeights(list(self.weights), list(self.biases))

    @torch.no_grad()
    def observe(self, pooled: list[Tensor], rows: Tensor) -> None:
        """Note what the segments of a batch look like, for `add_class`.

        Deterministic, of static shapes, without a loop over segments or classes; no gradient reaches anything.

        Args:
            pooled: (B, d_j) per scale, what `pool_segments` returns, of any precision.
            rows: (B,) int64 rows of the segments' classes.
        """
        # The product with 0 and 1 must not round the features, as it would in the precision of a forward pass.
        with torch.autocast(rows.device.type, enabled=False):
            self.statistics.observe(torch.cat(pooled, dim=1).float(), rows)


def pool_segments(maps: list[Tensor]) -> list[Tensor]:
    """Average feature maps (B, d_j, T_j) over time: one vector (B, d_j) per scale for each whole segment."""
    return [x.mean(dim=2) for x in maps]


def segment_logits(pooled: list[Tensor], class_weights: ClassWeights) -> list[Tensor]:
    """Classify whole segments from what `pool_segments` returns: logits (B, C) of each scale."""
    return [
        F.linear(x, weight, bias)
        for x, weight, bias in zip(pooled, class_weights.weights, class_weights.biases, strict=True)
    ]
