"""Detections of AherNet0: runs of snippets that a classifier scores above several thresholds (section 4.3)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ahernet.config import InferenceConfig
from ahernet.inference.step import Candidates, Step
from ahernet.model.heads import ClassWeights, class_logits
from ahernet.model.localizer import Localizer

CLASSES_PER_VIDEO = 3
THRESHOLDS = tuple(tenths / 10 for tenths in range(1, 10))


class SnippetStep(Step):
    """Classify every cell of the finest feature map by the segment-level weights, and group the cells.

    No proposals and no weight transfer: anchors, heads and the other feature maps are not used, and `class_score`
    does not matter. The classes of highest mean probability are looked for in each video.
    """

    thresholds: Tensor

    def __init__(self, model: Localizer, config: InferenceConfig, class_rows: Tensor | None = None) -> None:
        weights, biases = model.segment_classifier.class_weights()
        super().__init__(model, config, ClassWeights(weights[:1], biases[:1]), class_rows)
        self.backbone.scales = self.backbone.scales[:1]
        self.register_buffer("thresholds", torch.tensor(THRESHOLDS), persistent=False)

    def candidates(self, rows: Tensor, offsets: Tensor) -> Candidates:
        """Return the runs of cells; arguments as `Step.forward`."""
        maps, finite = self.feature_maps(rows, offsets, self.model_config.steps)
        (logits,) = class_logits(maps, self.class_weights)
        probabilities = logits.float().softmax(dim=1)
        # A stable sort and not topk: ties go to the lowest class.
        order = probabilities.mean(dim=2).argsort(dim=1, descending=True, stable=True)[:, :CLASSES_PER_VIDEO]
        sequences = probabilities.gather(1, order.unsqueeze(2).expand(-1, -1, probabilities.shape[2]))
        segments, scores = group_snippets(sequences, self.thresholds)
        labels = order.repeat_interleave(scores.shape[1] // order.shape[1], dim=1)
        return Candidates(segments, scores, labels, finite)


def group_snippets(probabilities: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Split sequences into instances: maximal runs of cells above each threshold.

    A threshold t means low + t * (high - low), from the lowest to the highest probability of the sequence, so that
    classes of low probability give instances too; strictly above, so that a constant sequence gives none. Several
    thresholds may give the same run.

    Args:
        probabilities: (B, C, T) of every class in every cell.
        thresholds: (M,) in [0, 1].

    Returns:
        (B, C M T, 2) float32 start, end in [0, 1] and (B, C M T) float32 scores, the mean probability of the run's
        cells. There is a place for each class, threshold and cell, in this order, that of its first cell for a
        run; the others have segment 0 and score -inf.
    """
    cells = probabilities.shape[2]
    low, high = probabilities.amin(dim=2, keepdim=True), probabilities.amax(dim=2, keepdim=True)
    above = (probabilities - low).unsqueeze(2) > thresholds[:, None] * (high - low).unsqueeze(2)
    cell = torch.arange(cells, device=probabilities.device)
    # The next cell that is not above: the minimum over the cells from here on.
    end = torch.where(above, cells, cell).flip(3).cummin(dim=3).values.flip(3)
    is_start = above & ~F.pad(above[..., :-1], (1, 0))
    # Sums are differences of running sums: in float64, where small probabilities are not lost beside large ones.
    total = F.pad(probabilities.double().cumsum(dim=2), (1, 0)).unsqueeze(2).expand(-1, -1, len(thresholds), -1)
    mean = (total.gather(3, end) - total[..., :-1]) / (end - cell).clamp(min=1)
    segments = torch.stack([cell.expand_as(end), end], dim=4) / cells
    return (
        segments.where(is_start.unsqueeze(4), 0.0).flatten(1, 3),
        mean.float().where(is_start, -torch.inf).flatten(1),
    )
