import sys

import kernel_references as reference
import pytest
import torch
from ahernet_kernels._tuning import overridden
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves


def classifier(videos, classes, cells, dimensions, seed=0, dtype=torch.float32, share=0.3):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    features = [normal(videos, d, length) for d, length in zip(dimensions, cells, strict=True)]
    weights = [normal(classes, d) / d**0.5 for d in dimensions]
    labels = torch.randint(0, classes, (videos, sum(cells)), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) >= share] = -1
    return features, weights, [normal(classes) for _ in dimensions], labels


def channels_last(features):
    return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in features]


def assert_close_to_reference(ops, *arguments, rtol=1e-4, atol=1e-6):
    loss, gradients = ops.classification_loss_and_gradients(*arguments)
    expected_loss, expected_gradients = reference.classification_loss_and_gradients(*arguments)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=rtol, atol=atol)


@given(
    cells=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    classes=st.integers(1, 6),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(ops, cells, classes, share, seed):
    assert_close_to_reference(ops, *classifier(2, classes, cells, [3] * len(cells), seed=seed, share=share))


@pytest.mark.parametrize("classes", [1, 2, 31, 33, 64, 65, 130])
def test_class_counts_around_the_chunk(ops, classes):
    assert_close_to_reference(ops, *classifier(2, classes, [4, 2, 1], [16, 16, 16]))


@pytest.mark.parametrize("cells", [[70, 8, 4, 2, 1], [65], [33, 1], [4, 0, 2]])
@pytest.mark.parametrize("layout", [list, channels_last], ids=["contiguous", "channels_last"])
def test_scales_of_any_length_in_both_layouts(ops, cells, layout):
    features, *others = classifier(2, 7, cells, [16 + 8 * j for j in range(len(cells))], share=0.7)
    assert_close_to_reference(ops, layout(features), *others)


def test_losses_are_single_precision_whatever_is_usual(ops, where_doubles_are_usual):
    arguments = classifier(2, 3, [4, 2], [3, 5])
    expected = ops.classification_loss_and_gradients(*arguments)
    actual = where_doubles_are_usual(ops.classification_loss_and_gradients, *arguments)
    torch.testing.assert_close(tree_leaves(actual), tree_leaves(expected), rtol=0, atol=0)


@pytest.mark.parametrize("dimensions", [[1, 17], [65, 130]])
@pytest.mark.parametrize("layout", [list, channels_last], ids=["contiguous", "channels_last"])
def test_any_number_of_channels(ops, dimensions, layout):
    features, *others = classifier(2, 6, [4, 2], dimensions)
    assert_close_to_reference(ops, layout(features), *others)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_is_summed_in_fp32(ops, dtype, tolerance):
    arguments = classifier(2, 70, [9, 2], [80, 16], dtype=dtype)
    _, gradients = ops.classification_loss_and_gradients(*arguments)
    assert {x.dtype for x in gradients} == {dtype}
    assert_close_to_reference(ops, *arguments, rtol=tolerance, atol=tolerance / 10)


def test_tiles_of_any_size_give_the_same(ops):
    forward = {"BLOCK_ROWS": 16, "BLOCK_CLASSES": 16, "BLOCK_D": 16}
    backward = {**forward, "BLOCK_OUT": 16}
    with (
        overridden("log_sum_fp32", forward),
        overridden("feature_gradient_fp32", backward),
        overridden("weight_gradient_fp32", backward),
    ):
        assert_close_to_reference(ops, *classifier(2, 40, [20, 1], [40, 16]))


@pytest.mark.parametrize("elements", [1, 50])
def test_chunks_of_any_size_give_the_same_on_a_cpu(ops, elements, monkeypatch):
    module = sys.modules["ahernet_kernels._classification_loss_cpu"]
    monkeypatch.setattr(module, "CPU_BLOCK_ELEMENTS", elements)
    assert_close_to_reference(ops, *classifier(2, 30, [9, 1], [8, 16]))


def test_cells_without_a_label_count_for_nothing(ops):
    features, weights, biases, labels = classifier(2, 5, [6, 3], [8, 8], share=0.5)
    expected = ops.classification_loss_and_gradients(features, weights, biases, labels)
    left_out = labels < 0
    for x, part in zip(features, left_out.split([6, 3], dim=1), strict=True):
        x.transpose(1, 2)[part] = float("nan")
    loss, gradients = ops.classification_loss_and_gradients(features, weights, biases, labels)
    torch.testing.assert_close((loss, gradients), expected, rtol=0, atol=0)
    for x, part in zip(gradients[:2], left_out.split([6, 3], dim=1), strict=True):
        assert (x.transpose(1, 2)[part] == 0).all()


def test_labels_that_are_no_class_are_left_out(ops):
    features, weights, biases, labels = classifier(2, 5, [6], [8], share=1.0)
    labels[:, 3:] = -1
    expected = ops.classification_loss_and_gradients(features, weights, biases, labels)
    labels[:, 3:] = torch.tensor([5, 1 << 40, -7])
    torch.testing.assert_close(ops.classification_loss_and_gradients(features, weights, biases, labels), expected)


def test_no_label_at_all_is_a_loss_of_zero_without_gradient(ops):
    loss, gradients = ops.classification_loss_and_gradients(*classifier(2, 5, [6, 3], [8, 8], share=0.0))
    assert loss.item() == 0.0
    assert all((x == 0).all() for x in gradients)


@pytest.mark.parametrize(("videos", "cells"), [(0, [4, 2]), (2, [0])])
def test_nothing_to_learn_from_is_a_loss_of_zero(ops, videos, cells):
    loss, gradients = ops.classification_loss_and_gradients(*classifier(videos, 5, cells, [8] * len(cells)))
    assert loss.item() == 0.0
    assert all((x == 0).all() for x in gradients)


def test_large_logits_do_not_overflow(ops):
    features, weights, biases, labels = classifier(1, 40, [5], [8], share=1.0)
    assert_close_to_reference(ops, features, [x * 1e3 for x in weights], biases, labels, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("excluded", [slice(0, 70), slice(64, 128), slice(130, 200)], ids=str)
def test_classes_ruled_out_by_their_bias_count_for_nothing(ops, excluded):
    """A whole chunk of them, before others and behind them, has no finite maximum."""
    features, weights, biases, labels = classifier(2, 200, [5], [8], share=1.0)
    biases[0][excluded] = -torch.inf
    labels[(labels >= excluded.start) & (labels < excluded.stop)] = -1
    assert_close_to_reference(ops, features, weights, biases, labels)


def test_a_value_that_is_not_a_number_shows_in_the_loss(ops):
    features, weights, biases, labels = classifier(1, 40, [5], [8], share=1.0)
    features[0][0, 3, 2] = float("nan")
    assert ops.classification_loss_and_gradients(features, weights, biases, labels)[0].isnan()
