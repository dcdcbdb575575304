"""Detections of AherNet-: class-agnostic proposals, cut out and classified like moments (section 4.3)."""

import ahernet_kernels as kernels
import torch
from torch import Tensor
from torch.nn import functional as F

from ahernet.config import InferenceConfig
from ahernet.inference.network import frozen
from ahernet.inference.step import Candidates, Found, Step, suppress
from ahernet.model.localizer import Localizer
from ahernet.model.segment_classifier import pool_segments, segment_logits

# Proposals of every video that go through the network together. A multiple of what the videos themselves take
# of memory, whatever the batch (8 moments of 256 steps: four times), and a loop whose length is known beforehand.
PROPOSALS_AT_ONCE = 8


class CropStep(Step):
    """Rank anchors by overlap alone, cut the best out of the rows, classify them by the segment-level weights.

    No weight transfer. Suppression is class-agnostic, as there is no label yet, and `top_k` bounds the proposals;
    `class_aware` and `class_score` do not matter. The score is the probability of the best class, averaged over
    the scales, times the overlap that suppression left.
    """

    anchors: Tensor

    def __init__(self, model: Localizer, config: InferenceConfig, class_rows: Tensor | None = None) -> None:
        super().__init__(model, config, model.segment_classifier.class_weights(), class_rows)
        self.heads = frozen(model.heads).to(self.precision)
        # Of its own: the anchors stay float32 whatever the precision of the network.
        self.register_buffer("anchors", model.anchors.clone(), persistent=False)

    def forward(self, rows: Tensor, offsets: Tensor) -> Found:
        """Localize in B videos; arguments as `Step.forward`. Suppression has chosen the proposals already."""
        segments, scores, labels, finite = self.candidates(rows, offsets)
        ranked, order = scores.sort(dim=1, descending=True, stable=True)
        found = ranked > -torch.inf
        order = order.where(found, -1)
        return Found(*kernels.pick(segments, scores, labels, order), found.sum(dim=1), finite)

    def candidates(self, rows: Tensor, offsets: Tensor) -> Candidates:
        """Return the proposals that suppression left, classified; arguments as `Step.forward`."""
        maps, finite = self.feature_maps(rows, offsets, self.model_config.steps)
        segments, overlaps, kept = self._proposals(maps)
        parts = [self.classified(rows, offsets, some) for some in torch.split(segments, PROPOSALS_AT_ONCE, dim=1)]
        probability, label = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        scores = probability * overlaps
        scores = scores.where(kept & (scores > self.config.minimum_score), -torch.inf)
        return Candidates(segments, scores, label, finite)

    def _proposals(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return segments (B, K, 2), overlaps (B, K) and whether there is such a proposal (B, K)."""
        # One class has probability 1, so that the score of an anchor is its overlap.
        one_class = [x.new_zeros((x.shape[0], 1, x.shape[2])) for x in maps]
        offsets, overlaps = self.heads(maps)
        segments, scores, labels = kernels.decode(
            one_class, offsets, overlaps, self.anchors, self.model_config.centre_scale, self.model_config.width_scale
        )
        segments, scores, labels, _ = suppress(segments, scores, labels, self.config)
        return segments, scores, labels >= 0

    def classified(self, rows: Tensor, offsets: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Return probability and label (B, K) of the best class of segments (B, K, 2)."""
        maps, _ = self.feature_maps(*cut_segments(rows, offsets, segments), self.model_config.moment_steps)
        logits = segment_logits(pool_segments(maps), self.class_weights)
        probabilities = torch.stack(logits).float().softmax(dim=2).mean(dim=0)
        probability, label = probabilities.max(dim=1)
        return probability.view(segments.shape[:2]), label.view(segments.shape[:2])


def cut_segments(rows: Tensor, offsets: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Copy the feature rows of segments out of their videos, so that crops are ragged sequences like moments.

    How many rows a crop has depends on the data, but the crops of one rank, one of each video, have no more rows
    together than the videos: K R rows always suffice. So the shape is known beforehand, and the crops are
    resampled from their own rows by the very op that resamples moments.

    Args:
        rows: (R, D) feature rows of all videos.
        offsets: (B + 1,) int64; video b owns rows offsets[b]:offsets[b + 1], at least one.
        segments: (B, K, 2) start, end in [0, 1] of the video; rows are those of `video_time.unit_to_rows`.

    Returns:
        (K R, D) rows and (B K + 1,) int64 offsets of the crops, ordered video, segment; the rows behind the last
        crop are no one's.
    """
    first, last = _unit_to_rows(segments, offsets.diff())
    counts = (last - first).flatten()
    ends = counts.cumsum(dim=0)
    row = torch.arange(segments.shape[1] * rows.shape[0], device=rows.device)
    crop = torch.bucketize(row, ends, right=True).clamp(max=ends.shape[0] - 1)
    start = (offsets[:-1, None] + first).flatten()
    source = start[crop] + row - (ends - counts)[crop]
    return rows[source.where(row < ends[-1], 0)], F.pad(ends, (1, 0))


def _unit_to_rows(segments: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return first row and row after the last (B, K) of segments (B, K, 2), as `video_time.unit_to_rows` does."""
    edges = segments.double() * lengths[:, None, None]
    first, last = (edges - 0.5).ceil().long().unbind(dim=2)
    middle = edges.mean(dim=2).floor().long().clamp(min=0).minimum(lengths[:, None] - 1)
    empty = last <= first
    return middle.where(empty, first), (middle + 1).where(empty, last)
