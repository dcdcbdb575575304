import pytest
import torch

from ahernet.config import ModelConfig
from ahernet.model.anchors import make_anchors, scale_cells, scale_channels
from ahernet.model.discriminator import Discriminators

CONFIG = ModelConfig(feature_dimension=6, width=1 / 128, minimum_channels=3, steps=64, ratios_per_cell=3)


@pytest.fixture
def discriminators():
    torch.manual_seed(0)
    return Discriminators(CONFIG)


def _maps(videos=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(videos, channels, cells, generator=generator)
        for channels, cells in zip(scale_channels(CONFIG), scale_cells(CONFIG.steps), strict=True)
    ]


def test_there_is_one_logit_for_every_anchor(discriminators):
    logits = discriminators(_maps())
    assert [tuple(x.shape) for x in logits] == [(2, 3, cells) for cells in scale_cells(CONFIG.steps)]
    assert sum(x[0].numel() for x in logits) == len(make_anchors(CONFIG))


def test_each_scale_is_judged_by_its_own_map_alone(discriminators):
    maps = _maps()
    before = discriminators(maps)
    maps[3] = maps[3] + 1
    different = [not torch.equal(a, b) for a, b in zip(before, discriminators(maps), strict=True)]
    assert different == [False, False, False, True, False, False, False, False]


def test_each_cell_is_judged_by_itself_and_its_neighbours(discriminators):
    maps = _maps()
    before = discriminators(maps)[0]
    maps[0][0, :, 8] += 1
    different = (discriminators(maps)[0] != before).any(dim=1)
    assert different[0].nonzero()[:, 0].tolist() == [7, 8, 9]
    assert not different[1].any()


def test_logits_are_not_yet_probabilities(discriminators):
    logits = discriminators([10 * x for x in _maps()])
    assert logits[0].min() < 0
    assert logits[0].max() > 1


def test_gradients_reach_every_parameter_and_the_maps(discriminators):
    maps = [x.requires_grad_() for x in _maps()]
    sum(x.sum() for x in discriminators(maps)).backward()
    assert all(parameter.grad.any() for parameter in discriminators.parameters())
    assert all(x.grad.any() for x in maps)
