import math

import kernel_references as reference
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

VALUES = st.one_of(
    st.floats(-4, 4, width=32),
    st.sampled_from([0.0, 1.0, 1.0, 2.0, math.nan, math.inf, -math.inf, 3e38, -3e38, 88.0, 1e4, -1e4]),
)


def network_outputs(videos, classes, cells, ratios=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    channels = (classes, 2 * ratios, ratios)
    outputs = [
        [torch.randn((videos, channel, length), generator=generator).to(dtype) for length in cells]
        for channel in channels
    ]
    anchors = torch.rand((ratios * sum(cells), 2), generator=generator)
    return *outputs, anchors


def assert_close_to_reference(ops, *arguments):
    segments, scores, labels = ops.decode(*arguments)
    expected_segments, expected_scores, expected_labels = reference.decode(*arguments)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(segments, expected_segments, rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, expected_labels)


@given(data=st.data(), cells=st.lists(st.integers(1, 5), min_size=1, max_size=3), classes=st.integers(1, 5))
def test_equals_the_reference_on_adversarial_outputs(ops, data, cells, classes):
    videos, ratios = 2, 2

    def tensor(*shape):
        flat = [data.draw(VALUES) for _ in range(math.prod(shape))]
        return torch.tensor(flat, dtype=torch.float32).reshape(shape)

    logits = [tensor(videos, classes, length) for length in cells]
    offsets = [tensor(videos, 2 * ratios, length) for length in cells]
    overlaps = [tensor(videos, ratios, length) for length in cells]
    anchors = torch.rand((ratios * sum(cells), 2), generator=torch.Generator().manual_seed(0))
    assert_close_to_reference(ops, logits, offsets, overlaps, anchors)


@pytest.mark.parametrize("classes", [1, 63, 64, 65, 200])
def test_class_counts_around_the_tile(ops, classes):
    assert_close_to_reference(ops, *network_outputs(2, classes, [8, 4, 2, 1]))


@pytest.mark.parametrize("cells", [[128, 64, 32, 16, 8, 4, 2, 1], [17], [5, 3], [33, 16, 1]])
def test_scales_of_any_length(ops, cells):
    assert_close_to_reference(ops, *network_outputs(1, 3, cells))


@pytest.mark.parametrize("ratios", [1, 2, 3, 5])
def test_any_number_of_anchors_a_cell(ops, ratios):
    assert_close_to_reference(ops, *network_outputs(2, 4, [4, 2], ratios=ratios))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(ops, dtype):
    arguments = network_outputs(2, 20, [8, 4], dtype=dtype)
    segments, scores, _ = ops.decode(*arguments)
    assert segments.dtype == scores.dtype == torch.float32
    assert_close_to_reference(ops, *arguments)


def test_scales_of_offsets_are_applied(ops):
    assert_close_to_reference(ops, *network_outputs(1, 2, [4]), 0.1, 0.2)


def test_class_ties_go_to_the_lowest_class(ops):
    logits = torch.zeros((1, 150, 1))
    logits[0, [70, 71, 140], 0] = 5.0
    _, offsets, overlaps, anchors = network_outputs(1, 1, [1])
    assert (ops.decode([logits], offsets, overlaps, anchors)[2] == 70).all()


def one_anchor(ops, logits=(1.0, 0.0), offset=(0.0, 0.0), overlap=0.0, anchor=(0.5, 0.5)):
    segments, scores, labels = ops.decode(
        [torch.tensor(logits).reshape(1, -1, 1)],
        [torch.tensor(offset).reshape(1, 2, 1)],
        [torch.tensor(overlap).reshape(1, 1, 1)],
        torch.tensor([anchor]),
    )
    return segments[0, 0].tolist(), scores.item(), labels.item()


def test_a_cell_without_a_finite_logit_has_probability_zero_and_class_zero(ops):
    _, score, label = one_anchor(ops, logits=(math.nan, -math.inf))
    assert (score, label) == (0.0, 0)


def test_a_nan_logit_counts_as_minus_infinity(ops):
    _, score, label = one_anchor(ops, logits=(math.nan, 0.0, 0.0))
    assert label == 1
    assert score == pytest.approx(0.25)


def test_an_overflowing_width_covers_the_video(ops):
    segment, score, _ = one_anchor(ops, offset=(0.0, 1e4))
    assert segment == [0.0, 1.0]
    assert score > 0


@pytest.mark.parametrize("offset", [(math.nan, 0.0), (0.0, math.nan), (math.inf, 0.0), (-math.inf, 1e4)])
def test_a_meaningless_offset_is_no_candidate(ops, offset):
    segment, score, _ = one_anchor(ops, offset=offset)
    assert segment == [0.0, 0.0]
    assert score == -math.inf


@pytest.mark.parametrize(
    ("offset", "anchor", "expected"),
    [
        ((3.0, 0.0), (0.5, 0.5), [1.0, 1.0]),  # right of the video
        ((-3.0, 0.0), (0.5, 0.5), [0.0, 0.0]),  # left of it
        ((2.0, 0.0), (0.5, 0.25), [0.875, 1.0]),  # across its end
        ((2.5, 0.0), (0.5, 0.25), [1.0, 1.0]),  # touching its end from outside
        ((0.0, -1e4), (0.5, 0.5), [0.5, 0.5]),  # without width
    ],
)
def test_a_segment_of_which_clipping_leaves_nothing_is_no_candidate(ops, offset, anchor, expected):
    segment, score, _ = one_anchor(ops, offset=offset, anchor=anchor)
    assert segment == expected
    assert (score == -math.inf) == (expected[0] == expected[1])


def test_a_nan_overlap_scores_zero(ops):
    assert one_anchor(ops, overlap=math.nan)[1] == 0.0


@pytest.mark.parametrize("classes", [1, 7, 16, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_may_be_last_in_memory(ops, classes, dtype):
    *outputs, anchors = network_outputs(2, classes, (16, 8, 1), dtype=dtype)
    expected = ops.decode(*outputs, anchors)
    last = [[x.transpose(1, 2).contiguous().transpose(1, 2) for x in per_scale] for per_scale in outputs]
    for actual, wanted in zip(ops.decode(*last, anchors), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)


def test_an_empty_scale_may_be_a_slice_in_another_layout(ops):
    *outputs, anchors = network_outputs(2, 5, (4, 0, 3))
    expected = ops.decode(*outputs, anchors)
    last = [[x.transpose(1, 2).contiguous().transpose(1, 2) for x in per_scale] for per_scale in outputs]
    for per_scale in last:
        per_scale[1] = torch.zeros(2, per_scale[0].shape[1], 6)[:, :, :0]
    for actual, wanted in zip(ops.decode(*last, anchors), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
