import pytest
import torch
from torch.nn import functional as F

from ahernet.config import ModelConfig
from ahernet.model.anchors import scale_channels
from ahernet.model.heads import ClassWeights
from ahernet.model.weight_transfer import WeightTransfer

VARIANTS = [
    (1, "none"),
    (1, "relu"),
    (1, "leaky_relu"),
    (1, "elu"),
    (2, "leaky_relu"),
    (2, "elu"),
    (3, "elu"),
]
FUNCTIONS = {"none": lambda x: x, "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu}


def _config(layers, activation):
    return ModelConfig(width=1 / 128, minimum_channels=3, transfer_layers=layers, transfer_activation=activation)


def _class_weights(config, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = scale_channels(config)
    return ClassWeights(
        [torch.randn(classes, d, generator=generator) for d in channels],
        [torch.randn(classes, generator=generator) for _ in channels],
    )


@pytest.mark.parametrize(("layers", "activation"), VARIANTS)
def test_every_variant_starts_as_the_identity_up_to_its_activation(layers, activation):
    config = _config(layers, activation)
    given = _class_weights(config, 5)
    transferred = WeightTransfer(config)(given)
    for before, after in zip([*given.weights, *given.biases], [*transferred[0], *transferred[1]], strict=True):
        expected = before
        for _ in range(layers):
            expected = FUNCTIONS[activation](expected)
        torch.testing.assert_close(after, expected)
        torch.testing.assert_close(after[before > 0], before[before > 0])


@pytest.mark.parametrize(("layers", "activation"), VARIANTS)
def test_every_scale_has_its_own_layers_and_their_number(layers, activation):
    config = _config(layers, activation)
    transfer = WeightTransfer(config)
    counts = [sum(p.numel() for p in scale.parameters()) for scale in transfer.weights]
    assert counts == [layers * (d * d + d) for d in scale_channels(config)]
    assert [sum(p.numel() for p in scale.parameters()) for scale in transfer.biases] == [layers * 2] * 8


def test_the_function_is_the_same_for_every_class():
    config = _config(2, "elu")
    transfer = WeightTransfer(config)
    for parameter in transfer.parameters():
        torch.nn.init.normal_(parameter)
    together, alone = _class_weights(config, 6), _class_weights(config, 6)
    alone = ClassWeights([w[2:3] for w in alone.weights], [b[2:3] for b in alone.biases])
    for whole, row in zip(transfer(together), transfer(alone), strict=True):
        for x, y in zip(whole, row, strict=True):
            torch.testing.assert_close(x[2:3], y)
