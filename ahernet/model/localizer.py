"""The whole network: backbone, segment-level classifier, weight transfer and anchor-level heads."""

from typing import NamedTuple

from torch import Tensor, nn

from ahernet.config import ModelConfig
from ahernet.model.anchors import make_anchors
from ahernet.model.backbone import Backbone
from ahernet.model.heads import ClassWeights, ProposalHeads, class_logits
from ahernet.model.segment_classifier import SegmentClassifier
from ahernet.model.weight_transfer import WeightTransfer


class Outputs(NamedTuple):
    """Outputs per scale, in the layout that `ahernet_kernels.decode` reads.

    logits[j] (B, C, T_j); offsets[j] (B, 2R, T_j), channels dc_0, dw_0, dc_1, dw_1, ...;
    overlaps[j] (B, R, T_j) before the sigmoid.
    """

    logits: list[Tensor]
    offsets: list[Tensor]
    overlaps: list[Tensor]


class Localizer(nn.Module):
    """One-stage localizer whose classification weights are the transferred segment-level weights.

    Args:
        config: shape of the network; `feature_dimension` must be set.
        class_count: C.
    """

    anchors: Tensor

    def __init__(self, config: ModelConfig, class_count: int) -> None:
        super().__init__()
        if config.feature_dimension < 1:
            raise ValueError("config.feature_dimension must be at least 1 to build a network")
        if class_count < 1:
            raise ValueError(f"class_count must be at least 1, got {class_count}")
        self.config = config
        self.backbone = Backbone(config)
        self.segment_classifier = SegmentClassifier(config, class_count)
        self.transfer = WeightTransfer(config)
        self.heads = ProposalHeads(config)
        self.register_buffer("anchors", make_anchors(config), persistent=False)

    def class_weights(self) -> ClassWeights:
        """Return the anchor-level weights T(W_regv); they change only when the parameters do."""
        weights: ClassWeights = self.transfer(self.segment_classifier.class_weights())
        return weights

    def forward(self, sequence: Tensor, class_weights: ClassWeights) -> Outputs:
        """Localize in sequences (B, steps, D) with the classification weights of any set of classes."""
        maps = self.backbone(sequence)
        return Outputs(class_logits(maps, class_weights), *self.heads(maps))
