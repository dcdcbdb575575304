import ahernet_kernels as kernels
import pytest
import torch

from ahernet.config import ModelConfig
from ahernet.model.anchors import scale_cells, scale_channels
from ahernet.model.heads import ClassWeights
from ahernet.model.localizer import Localizer
from ahernet.model.segment_classifier import pool_segments, segment_logits

CONFIG = ModelConfig(feature_dimension=10, width=1 / 128, minimum_channels=3)


@pytest.fixture
def localizer():
    torch.manual_seed(0)
    return Localizer(CONFIG, class_count=4)


def test_outputs_have_the_shapes_that_decode_reads(localizer):
    outputs = localizer(torch.randn(2, 512, 10), localizer.class_weights())
    cells = scale_cells(512)
    assert [tuple(x.shape) for x in outputs.logits] == [(2, 4, t) for t in cells]
    assert [tuple(x.shape) for x in outputs.offsets] == [(2, 6, t) for t in cells]
    assert [tuple(x.shape) for x in outputs.overlaps] == [(2, 3, t) for t in cells]
    segments, scores, labels = kernels.decode(*outputs, localizer.anchors)
    assert segments.shape == (2, 765, 2)
    assert scores.shape == labels.shape == (2, 765)


def test_backbone_halves_the_length_on_every_scale_for_moments_too(localizer):
    maps = localizer.backbone(torch.randn(3, 256, 10))
    expected = list(zip(scale_channels(CONFIG), scale_cells(256), strict=True))
    assert [tuple(x.shape[1:]) for x in maps] == expected


def test_each_cell_sees_the_steps_around_its_own_place(localizer):
    sequence = torch.randn(1, 512, 10)
    changed = sequence.clone()
    changed[0, 200] += 1.0
    before, after = localizer.backbone(sequence), localizer.backbone(changed)
    different = [(a != b).any(dim=1)[0].nonzero()[:, 0] for a, b in zip(before, after, strict=True)]
    # Step 200 lies in cell 200 / 512 * 128 = 50 of the first scale, and in the only cell of the last.
    assert 50 in different[0]
    assert all(abs(int(cell) - 50) <= 2 for cell in different[0])
    assert different[-1].tolist() == [0]


def test_class_logits_are_the_product_of_each_cell_with_the_given_weights(localizer):
    sequence = torch.randn(2, 512, 10)
    maps = localizer.backbone(sequence)
    other = ClassWeights(
        [torch.randn(7, d) for d in scale_channels(CONFIG)], [torch.randn(7) for _ in scale_channels(CONFIG)]
    )
    logits = localizer(sequence, other).logits
    for x, weight, bias, got in zip(maps, *other, logits, strict=True):
        expected = torch.einsum("bdt,cd->bct", x, weight) + bias[:, None]
        torch.testing.assert_close(got, expected)


def test_predicted_overlap_starts_low_and_offsets_near_zero(localizer):
    outputs = localizer(torch.randn(2, 512, 10), localizer.class_weights())
    assert torch.cat([x.flatten() for x in outputs.overlaps]).sigmoid().max() < 0.3
    assert torch.cat([x.flatten() for x in outputs.offsets]).abs().max() < 0.5


def test_segment_classifier_averages_the_map_and_gives_logits_per_scale(localizer):
    maps = localizer.backbone(torch.randn(2, 256, 10))
    weights, biases = class_weights = localizer.segment_classifier.class_weights()
    logits = segment_logits(pool_segments(maps), class_weights)
    for x, weight, bias, got in zip(maps, weights, biases, logits, strict=True):
        torch.testing.assert_close(got, x.mean(dim=2) @ weight.T + bias)


def test_gradients_reach_every_parameter_but_not_through_given_weights(localizer):
    outputs = localizer(torch.randn(2, 512, 10), localizer.class_weights())
    sum(x.square().sum() for group in outputs for x in group).backward()
    without = [name for name, parameter in localizer.named_parameters() if parameter.grad is None]
    assert without == []


def test_anchors_are_not_stored_in_checkpoints(localizer):
    assert not [name for name in localizer.state_dict() if "anchors" in name]


@pytest.mark.parametrize(("dimension", "classes", "word"), [(0, 3, "feature_dimension"), (8, 0, "class_count")])
def test_impossible_networks_are_refused(dimension, classes, word):
    with pytest.raises(ValueError, match=word):
        Localizer(ModelConfig(feature_dimension=dimension, width=0.01), classes)


def test_the_paper_width_has_the_size_of_the_released_network():
    with torch.device("meta"):
        localizer = Localizer(ModelConfig(), class_count=200)
    backbone = sum(parameter.numel() for parameter in localizer.backbone.parameters())
    transfer = sum(parameter.numel() for parameter in localizer.transfer.parameters())
    assert backbone == pytest.approx(44.6e6, rel=0.01)
    assert transfer == pytest.approx(22.3e6, rel=0.01)
