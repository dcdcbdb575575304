import pytest
import torch

from ahernet.config import ModelConfig
from ahernet.model.anchors import make_anchors, scale_cells, scale_channels, stem_channels


def test_512_steps_give_255_cells_on_eight_scales():
    assert scale_cells(512) == (128, 64, 32, 16, 8, 4, 2, 1)
    assert scale_cells(256) == (64, 32, 16, 8, 4, 2, 1, 1)


def test_anchors_follow_equation_3_in_the_order_scale_cell_ratio():
    expected = [
        ((t + 0.5) / cells, 2 ** (ratio / 3) / cells)
        for cells in (128, 64, 32, 16, 8, 4, 2, 1)
        for t in range(cells)
        for ratio in range(3)
    ]
    anchors = make_anchors(ModelConfig())
    assert anchors.shape == (765, 2)
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors, torch.tensor(expected, dtype=torch.float64).float(), rtol=0, atol=0)


@pytest.mark.parametrize(("steps", "ratios"), [(512, 1), (1024, 3), (100, 2)])
def test_there_is_an_anchor_per_cell_and_ratio(steps, ratios):
    anchors = make_anchors(ModelConfig(steps=steps, ratios_per_cell=ratios))
    assert len(anchors) == sum(scale_cells(steps)) * ratios


def test_channel_counts_scale_with_the_width_down_to_the_minimum():
    assert stem_channels(ModelConfig()) == (2048, 1024)
    assert scale_channels(ModelConfig()) == (256, 256, 512, 512, 1024, 1024, 2048, 2048)
    tiny = ModelConfig(width=1 / 32, minimum_channels=20)
    assert stem_channels(tiny) == (64, 32)
    assert scale_channels(tiny) == (20, 20, 20, 20, 32, 32, 64, 64)
