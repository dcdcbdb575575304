"""The weight transfer function T (section 3.2 of the paper, eq. 1)."""

from torch import nn

from ahernet.config import Activation, ModelConfig
from ahernet.model.anchors import scale_channels
from ahernet.model.heads import ClassWeights

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}


class WeightTransfer(nn.Module):
    """W_clsa = T(W_regv; theta): fully-connected layers per scale, the same for every class.

    Each layer is followed by the activation (Table 1 of the paper). Layers start as the identity, so that
    training starts from the segment-level weights passed through the activations alone: unchanged with "none";
    otherwise positive weights are unchanged and negative ones shrink (to 0 with "relu").
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weights = nn.ModuleList(_layers(channels, config) for channels in scale_channels(config))
        self.biases = nn.ModuleList(_layers(1, config) for _ in scale_channels(config))

    def forward(self, class_weights: ClassWeights) -> ClassWeights:
        """Map segment-level weights of any set of classes to anchor-level weights of the same classes.

        Costs C x d_j x d_j products per layer and scale and depends on no video: call it once per checkpoint.
        """
        return ClassWeights(
            [layers(weight) for layers, weight in zip(self.weights, class_weights.weights, strict=True)],
            [
                layers(bias.unsqueeze(-1)).squeeze(-1)
                for layers, bias in zip(self.biases, class_weights.biases, strict=True)
            ],
        )


def _layers(channels: int, config: ModelConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(config.transfer_layers):
        layer = nn.Linear(channels, channels)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer, ACTIVATIONS[config.transfer_activation]()]
    return nn.Sequential(*layers)
