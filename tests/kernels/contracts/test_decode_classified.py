import math

import kernel_references as reference
import pytest
import torch
from ahernet_kernels._tuning import overridden
from hypothesis import given
from hypothesis import strategies as st

VALUES = st.one_of(
    st.floats(-4, 4, width=32), st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf, 3e38, 88.0, 1e4, -1e4])
)


def inputs(videos, cells, ratios=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shape = (videos, sum(cells))
    outputs = [
        [torch.randn((videos, channels, length), generator=generator).to(dtype) for length in cells]
        for channels in (2 * ratios, ratios)
    ]
    anchors = torch.rand((ratios * sum(cells), 2), generator=generator)
    probability = torch.rand(shape, generator=generator)
    return probability, torch.randint(0, 9, shape, generator=generator), *outputs, anchors


def channels_last(maps):
    return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in maps]


def assert_close_to_reference(ops, *arguments):
    segments, scores, labels = ops.decode_classified(*arguments)
    expected_segments, expected_scores, expected_labels = reference.decode_classified(*arguments)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(segments, expected_segments, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(labels, expected_labels)


@given(data=st.data(), cells=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_equals_the_reference_on_adversarial_outputs(ops, data, cells):
    def tensor(*shape):
        return torch.tensor([data.draw(VALUES) for _ in range(math.prod(shape))]).reshape(shape)

    probability, labels, _, _, anchors = inputs(2, cells, ratios=2)
    offsets, overlaps = ([tensor(2, channels, length) for length in cells] for channels in (4, 2))
    assert_close_to_reference(ops, probability, labels, offsets, overlaps, anchors)


@pytest.mark.parametrize("cells", [[128, 64, 32, 16, 8, 4, 2, 1], [17], [5, 3], [33, 16, 1], [3, 0, 2]])
@pytest.mark.parametrize("layout", [list, channels_last], ids=["contiguous", "channels_last"])
def test_scales_of_any_length_in_both_layouts(ops, cells, layout):
    probability, labels, offsets, overlaps, anchors = inputs(2, cells)
    assert_close_to_reference(ops, probability, labels, layout(offsets), layout(overlaps), anchors)


@pytest.mark.parametrize("ratios", [1, 2, 5])
def test_any_number_of_anchors_a_cell(ops, ratios):
    assert_close_to_reference(ops, *inputs(2, [4, 2], ratios=ratios))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(ops, dtype):
    assert_close_to_reference(ops, *inputs(2, [8, 4], dtype=dtype))


def test_scales_of_offsets_are_applied(ops):
    assert_close_to_reference(ops, *inputs(1, [4]), 0.1, 0.2)


def test_tiles_of_any_size_give_the_same(ops):
    with overridden("decode_classified", {"BLOCK_ANCHORS": 8}):
        assert_close_to_reference(ops, *inputs(2, [9, 3, 1]))


def test_after_classify_it_gives_what_decode_gives_on_logits(ops):
    generator = torch.Generator().manual_seed(1)
    cells, classes = [6, 3, 1], 40
    _, _, offsets, overlaps, anchors = inputs(2, cells)
    features = [torch.randint(-2, 3, (2, 8, length), generator=generator).float() for length in cells]
    weights = [torch.randint(-1, 2, (classes, 8), generator=generator).float() for _ in cells]
    biases = [torch.randint(-2, 3, (classes,), generator=generator).float() for _ in cells]
    logits = reference.class_logits(features, weights, biases).float().transpose(1, 2).split(cells, dim=2)
    expected = ops.decode([x.contiguous() for x in logits], offsets, overlaps, anchors)
    actual = ops.decode_classified(*ops.classify(features, weights, biases), offsets, overlaps, anchors)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("videos", "cells"), [(0, [4, 2]), (2, [0])])
def test_nothing_to_decode_gives_nothing(ops, videos, cells):
    segments, scores, labels = ops.decode_classified(*inputs(videos, cells))
    assert scores.shape == labels.shape == (videos, 3 * sum(cells))
    assert segments.shape == (*scores.shape, 2)


def test_an_empty_scale_may_be_a_slice_in_another_layout(ops):
    probability, labels, *outputs, anchors = inputs(2, (4, 0, 3))
    expected = ops.decode_classified(probability, labels, *outputs, anchors)
    last = [channels_last(per_scale) for per_scale in outputs]
    for per_scale in last:
        per_scale[1] = torch.zeros(2, per_scale[0].shape[1], 6)[:, :, :0]
    for actual, wanted in zip(ops.decode_classified(probability, labels, *last, anchors), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
