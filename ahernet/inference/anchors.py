"""Detections of AherNet: every anchor is a candidate with the class probabilities of its cell (section 3.5)."""

import ahernet_kernels as kernels
import torch
from einops import rearrange
from torch import Tensor

from ahernet.config import InferenceConfig
from ahernet.inference.network import frozen
from ahernet.inference.step import Candidates, Step, keep_by_overlap
from ahernet.model.heads import class_logits
from ahernet.model.localizer import Localizer, Outputs

# The logits of a video then fill a megabyte in bfloat16, five times what its feature maps do: from here on they are
# worth computing tile by tile, in a kernel that keeps the best class of each cell alone.
MANY_CLASSES = 2000


class AnchorStep(Step):
    """Decode, score and suppress the anchors of all scales.

    The weight transfer is evaluated here, on construction: the step holds its result only. Of `MANY_CLASSES` or more
    no logits are in memory, unless the score needs the probabilities of all classes.
    """

    anchors: Tensor

    def __init__(self, model: Localizer, config: InferenceConfig, class_rows: Tensor | None = None) -> None:
        with torch.no_grad():
            rows = model.segment_classifier.class_weights()
            # Chosen before the transfer, whose product rounds by how many rows it has.
            class_weights = model.transfer(rows if class_rows is None else rows.select(class_rows))
        super().__init__(model, config, class_weights, None)
        self.heads = frozen(model.heads).to(self.precision)
        # Of its own: the anchors stay float32 whatever the precision of the network.
        self.register_buffer("anchors", model.anchors.clone(), persistent=False)
        few_classes = len(self.biases[0]) < MANY_CLASSES
        self.keeps_logits = config.class_score != "segment" and (config.class_score != "anchor" or few_classes)

    def candidates(self, rows: Tensor, offsets: Tensor) -> Candidates:
        """Return all anchors; arguments as `Step.forward`."""
        maps, finite = self.feature_maps(rows, offsets, self.model_config.steps)
        return Candidates(*self.scored_maps(maps), finite)

    def scored_maps(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return segments, scores and labels of all anchors of feature maps, or of those that overlap alone keeps."""
        offsets, overlaps = self.heads(maps)
        if self.config.class_score == "segment":
            found = self._classified_segments(maps, offsets, overlaps)
        elif self.keeps_logits:
            found = self.scored(Outputs(class_logits(maps, self.class_weights), offsets, overlaps))
        else:
            found = self._decode_classified(*kernels.classify(maps, *self.class_weights), offsets, overlaps)
        if self.config.suppression_rank == "overlap":
            return keep_by_overlap(*found, _of_anchors(overlaps), self.config)
        return found

    def _decode_classified(
        self, probability: Tensor, labels: Tensor, offsets: list[Tensor], overlaps: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode the anchors of cells (B, cells) that are classified already."""
        return kernels.decode_classified(
            probability,
            labels,
            offsets,
            overlaps,
            self.anchors,
            self.model_config.centre_scale,
            self.model_config.width_scale,
        )

    def _classified_segments(
        self, maps: list[Tensor], offsets: list[Tensor], overlaps: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classify the segment of every anchor like a moment: what it shows on the finest map, on average.

        A cell alone is noisy, and a cell of a coarse map sees much beside the segment. What is not finite in a cell
        counts as 0, as it would make that of all segments, also of those that do not cover it.
        """
        cells = (maps[0].shape[0], sum(scale.shape[2] for scale in maps))
        certain = self.anchors.new_ones(cells), torch.zeros(cells, dtype=torch.int64, device=self.anchors.device)
        segments, overlap, _ = self._decode_classified(*certain, offsets, overlaps)
        finest = maps[0].transpose(1, 2).nan_to_num(0.0, 0.0, 0.0)
        pooled = torch.bmm(covered_cells(segments, finest.shape[1]).to(finest.dtype), finest)
        weights, biases = self.class_weights
        probability, labels = kernels.classify([pooled.transpose(1, 2)], weights[:1], biases[:1])
        # Where there is no segment, there is no candidate whatever its class.
        return segments, (probability * overlap).where(overlap > -torch.inf, -torch.inf), labels

    def scored(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return segments, scores and labels of all anchors."""
        segments, scores, labels = kernels.decode(
            outputs.logits,
            outputs.offsets,
            outputs.overlaps,
            self.anchors,
            self.model_config.centre_scale,
            self.model_config.width_scale,
        )
        if self.config.class_score == "anchor":
            return segments, scores, labels
        overlaps = _of_anchors(outputs.overlaps)
        video = self._video_probabilities(outputs.logits, overlaps)
        if self.config.class_score == "product":
            return segments, scores * video.gather(1, labels), labels
        probability, label = video.max(dim=1, keepdim=True)
        # Where there is no segment, there is no candidate whatever the video shows.
        scores = (probability * overlaps).where(scores > -torch.inf, -torch.inf)
        return segments, scores, label.expand_as(scores).contiguous()

    def _video_probabilities(self, logits: list[Tensor], overlaps: Tensor) -> Tensor:
        """Return the mean class probabilities (B, C) of the cells, weighted by their best overlap if so configured."""
        cells = torch.cat(logits, dim=2).float().softmax(dim=1)
        if self.config.class_score != "weighted":
            return cells.mean(dim=2)
        best = rearrange(overlaps, "b (cell ratio) -> b cell ratio", ratio=self.model_config.ratios_per_cell)
        weights: Tensor = best.amax(dim=2, keepdim=True)
        return torch.bmm(cells, weights).squeeze(2) / weights.sum(dim=1)


def _of_anchors(overlaps: list[Tensor]) -> Tensor:
    """Return the predicted overlaps (B, A) of all anchors, given those of each scale (B, R, T_j) before the sigmoid."""
    return torch.cat([scale.transpose(1, 2).flatten(1) for scale in overlaps], dim=1).float().sigmoid()


def covered_cells(segments: Tensor, count: int) -> Tensor:
    """Return the share (B, N, count) that each of `count` equal cells of a video has in segments (B, N, 2).

    The shares of a segment add up to 1, those of an empty one to 0.
    """
    start, end = (segments * count).unbind(2)
    cell = torch.arange(count, device=segments.device)
    covered = torch.minimum(end[..., None], cell + 1) - torch.maximum(start[..., None], cell)
    covered = covered.clamp(min=0)
    return covered / covered.sum(dim=2, keepdim=True).clamp(min=torch.finfo(covered.dtype).tiny)
