import math
import sys
from unittest.mock import MagicMock

import kernel_references as reference
import pytest
import torch
from ahernet_kernels._tuning import overridden
from ahernet_kernels.classify import DEFAULTS, classify_launch
from hypothesis import given
from hypothesis import strategies as st

NUMBERS = st.one_of(st.integers(-2, 2).map(float), st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf]))


def classifier(videos, classes, cells, dimensions, seed=0, dtype=torch.float32):
    """Small integers, whose products and sums are exact in every dtype: so ties are ties."""
    generator = torch.Generator().manual_seed(seed)

    def integers(*shape):
        return torch.randint(-2, 3, shape, generator=generator).to(dtype)

    features = [integers(videos, d, length) for d, length in zip(dimensions, cells, strict=True)]
    return features, [integers(classes, d) for d in dimensions], [integers(classes) for _ in dimensions]


def channels_last(features):
    return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in features]


def assert_equals_reference(ops, features, weights, biases):
    probability, labels = ops.classify(features, weights, biases)
    expected_probability, expected_labels = reference.classify(features, weights, biases)
    torch.testing.assert_close(probability, expected_probability, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(labels, expected_labels)


@given(data=st.data(), cells=st.lists(st.integers(1, 3), min_size=1, max_size=3), classes=st.integers(1, 5))
def test_equals_the_reference_on_adversarial_numbers(ops, data, cells, classes):
    def tensor(*shape):
        return torch.tensor([data.draw(NUMBERS) for _ in range(math.prod(shape))]).reshape(shape)

    features = [tensor(2, 2, length) for length in cells]
    assert_equals_reference(ops, features, [tensor(classes, 2) for _ in cells], [tensor(classes) for _ in cells])


@pytest.mark.parametrize("classes", [1, 2, 63, 64, 65, 128, 129, 300])
def test_class_counts_around_the_chunk(ops, classes):
    assert_equals_reference(ops, *classifier(2, classes, [4, 2, 1], [16, 16, 16]))


@pytest.mark.parametrize("cells", [[128, 64, 32, 16, 8, 4, 2, 1], [65], [5, 3], [33, 16, 1], [4, 0, 2]])
@pytest.mark.parametrize("layout", [list, channels_last], ids=["contiguous", "channels_last"])
def test_scales_of_any_length_in_both_layouts(ops, cells, layout):
    features, weights, biases = classifier(2, 7, cells, [16 + 8 * j for j in range(len(cells))])
    assert_equals_reference(ops, layout(features), weights, biases)


@pytest.mark.parametrize("dimensions", [[1, 1], [5, 16], [17, 64], [65, 130], [130, 5]])
@pytest.mark.parametrize("layout", [list, channels_last], ids=["contiguous", "channels_last"])
def test_any_number_of_channels_in_any_order(ops, dimensions, layout):
    features, weights, biases = classifier(3, 6, [4, 2], dimensions)
    assert_equals_reference(ops, layout(features), weights, biases)


def test_maps_of_mixed_layouts(ops):
    features, weights, biases = classifier(2, 6, [4, 3], [8, 16])
    assert_equals_reference(ops, [channels_last(features)[0], features[1]], weights, biases)


def test_maps_that_are_parts_of_larger_ones(ops):
    features, weights, biases = classifier(2, 6, [8, 6], [8, 16])
    assert_equals_reference(ops, [x[:, :, ::2] for x in channels_last(features)], weights, biases)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [list, channels_last], ids=["contiguous", "channels_last"])
def test_half_precision_is_summed_in_fp32(ops, dtype, layout):
    features, weights, biases = classifier(2, 150, [70, 3], [80, 16], dtype=dtype)
    features = [x * (1 + 2**-6) for x in features]  # sums of these have more bits than the dtype
    assert_equals_reference(ops, layout(features), weights, biases)


@pytest.mark.parametrize("tile", [(16, 16, 16), (32, 64, 32), (128, 32, 128)], ids=str)
def test_tiles_of_any_size_give_the_same(ops, tile):
    settings = dict(zip(("BLOCK_ROWS", "BLOCK_CLASSES", "BLOCK_D"), tile, strict=True))
    with overridden("classify_fp32", settings), overridden("merge_chunks", {"BLOCK": 16}):
        assert_equals_reference(ops, *classifier(3, 70, [9, 4, 1], [40, 16, 33]))


@pytest.mark.parametrize(("layout", "num_warps"), [(list, DEFAULTS["num_warps"]), (channels_last, 2)])
def test_contiguous_maps_are_not_launched_as_tuned_for_channels_last(layout, num_warps):
    features, weights, biases = classifier(2, 6, [4, 3], [8, 16], dtype=torch.bfloat16)
    kernel = MagicMock()
    with overridden("classify", {"num_warps": 2}):
        classify_launch(kernel, MagicMock(), layout(features), weights, biases)
    assert kernel.__getitem__().call_args.kwargs["num_warps"] == num_warps


@pytest.mark.parametrize("elements", [1, 50, 1000])
def test_chunks_of_any_size_give_the_same_on_a_cpu(ops, elements, monkeypatch):
    monkeypatch.setattr(sys.modules["ahernet_kernels.classify"], "CPU_BLOCK_ELEMENTS", elements)
    assert_equals_reference(ops, *classifier(2, 70, [9, 1], [40, 16]))


def test_class_ties_go_to_the_lowest_class(ops):
    weights = torch.zeros((200, 4))
    weights[[70, 71, 140, 199]] = 1.0
    _, labels = ops.classify([torch.ones((1, 4, 3))], [weights], [torch.zeros(200)])
    assert labels.tolist() == [[70, 70, 70]]


def test_scales_have_weights_of_their_own(ops):
    features, weights, biases = classifier(2, 5, [2, 2], [8, 8])
    biases = [torch.tensor([0.0, 0, 99, 0, 0]), torch.tensor([0.0, 0, 0, 99, 0])]
    assert ops.classify(features, weights, biases)[1].tolist() == [[2, 2, 3, 3]] * 2


def test_what_is_not_a_number_stays_in_its_cell(ops):
    features, weights, biases = classifier(2, 5, [6], [8])
    clean = ops.classify(features, weights, biases)
    features[0][1, 3, 2] = math.nan
    probability, labels = ops.classify(features, weights, biases)
    assert (probability[1, 2].item(), labels[1, 2].item()) == (0.0, 0)
    others = torch.ones_like(labels, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(probability[others], clean[0][others])
    assert torch.equal(labels[others], clean[1][others])


def test_infinite_logits_count_as_the_largest_number(ops):
    features, weights, biases = classifier(2, 5, [3], [8])
    biases[0][[1, 3]] = math.inf
    probability, labels = ops.classify(features, weights, biases)
    assert probability.tolist() == [[0.5] * 3] * 2
    assert labels.tolist() == [[1] * 3] * 2


def test_a_class_of_nan_weights_is_never_chosen(ops):
    features, weights, biases = classifier(1, 3, [4], [8])
    weights[0][1] = math.nan
    probability, labels = ops.classify(features, weights, biases)
    expected, _ = ops.classify(features, [weights[0][[0, 2]]], [biases[0][[0, 2]]])
    assert (labels != 1).all()
    torch.testing.assert_close(probability, expected)


def test_all_logits_minus_infinity_have_probability_zero_and_class_zero(ops):
    features, weights, _ = classifier(1, 300, [4], [8])
    probability, labels = ops.classify(features, weights, [torch.full((300,), -math.inf)])
    assert probability.tolist() == [[0.0] * 4]
    assert labels.tolist() == [[0] * 4]


@pytest.mark.parametrize("excluded", [slice(0, 70), slice(64, 128), slice(130, 200)], ids=str)
def test_classes_ruled_out_by_their_bias_leave_the_others_alone(ops, excluded, monkeypatch):
    """A whole chunk of them, before others and behind them, has no finite maximum."""
    monkeypatch.setattr(sys.modules["ahernet_kernels.classify"], "CPU_BLOCK_ELEMENTS", 100)
    features, weights, biases = classifier(1, 200, [4], [8])
    biases[0][excluded] = -math.inf
    assert_equals_reference(ops, features, weights, biases)


@pytest.mark.parametrize(("videos", "cells"), [(0, [4, 2]), (2, [0])])
def test_nothing_to_classify_gives_nothing(ops, videos, cells):
    probability, labels = ops.classify(*classifier(videos, 5, cells, [8] * len(cells)))
    assert probability.shape == labels.shape == (videos, sum(cells))
