import kernel_references as reference
import kernel_strategies as strategies
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


def features_of(offsets, dimension, seed=0):
    return torch.randn((int(offsets[-1]), dimension), generator=torch.Generator().manual_seed(seed))


@given(
    offsets=st.integers(0, 3).flatmap(lambda videos: strategies.offsets(videos, 40)),
    dimension=st.sampled_from([0, 1, 3]),
    steps=st.sampled_from([1, 2, 7, 16]),
)
def test_equals_the_mean_over_each_bin(ops, offsets, dimension, steps):
    features = features_of(offsets, dimension)
    expected = reference.resample(features, offsets, steps, samples=512)
    torch.testing.assert_close(ops.resample(features, offsets, steps), expected, rtol=0, atol=5e-4)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    steps=st.sampled_from([1, 2, 7, 16]),
)
def test_backward_is_the_transpose_of_forward(ops, lengths, steps):
    """<resample(x), g> = <x, backward(g)> for every x and g."""
    offsets = torch.from_numpy(np.cumsum([0, *lengths]))
    identity = torch.eye(int(offsets[-1]))
    forward = ops.resample(identity, offsets, steps)
    gradient = torch.randn(forward.shape[:2], generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("btr,bt->r", forward, gradient)
    actual = ops.resample_backward(gradient[..., None].contiguous(), offsets, int(offsets[-1]))
    torch.testing.assert_close(actual[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 15, 16, 17, 100, 2000])
def test_a_constant_stays_constant(ops, rows):
    output = ops.resample(torch.full((rows, 2), 3.0), torch.tensor([0, rows]), 16)
    torch.testing.assert_close(output, torch.full((1, 16, 2), 3.0), rtol=2e-6, atol=0)


def test_one_row_is_repeated(ops):
    row = torch.tensor([[1.0, -2.0]])
    torch.testing.assert_close(ops.resample(row, torch.tensor([0, 1]), 4), row.expand(1, 4, 2))


def test_a_video_without_rows_gives_zeros(ops):
    output = ops.resample(torch.ones((2, 3)), torch.tensor([0, 0, 2, 2]), 4)
    assert output.sum(dim=(1, 2)).tolist() == pytest.approx([0, 12, 0])


def test_a_video_of_the_wanted_length_is_smoothed_by_one_eighth(ops):
    """A bin of one row's width sees 3/4 of its own hat and 1/8 of each neighbour's."""
    output = ops.resample(torch.eye(8), torch.tensor([0, 8]), 8)
    assert output[0, 3].tolist() == pytest.approx([0, 0, 0.125, 0.75, 0.125, 0, 0, 0])
    assert output[0, 0].tolist() == pytest.approx([0.875, 0.125, 0, 0, 0, 0, 0, 0])


def test_a_long_video_is_averaged_not_subsampled(ops):
    alternating = torch.tensor([[1.0], [-1.0]]).repeat(160, 1)
    output = ops.resample(alternating, torch.tensor([0, 320]), 16)
    assert output[0, 1:-1].abs().max() < 0.01


def test_neighbouring_videos_do_not_leak(ops):
    features = torch.cat([torch.full((5, 1), float("nan")), torch.ones(3, 1), torch.full((4, 1), float("nan"))])
    output = ops.resample(features, torch.tensor([0, 5, 8, 12]), 6)
    torch.testing.assert_close(output[1], torch.ones(6, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_only_touches_a_step_is_not_in_it(ops, value):
    """The first of two steps over three rows ends where the influence of the third begins."""
    output = ops.resample(torch.tensor([[1.0], [2.0], [value]]), torch.tensor([0, 3]), 2)
    assert output[0, 0].item() == pytest.approx(4 / 3)
    assert not output[0, 1].isfinite()
    gradient = ops.resample_backward(torch.tensor([[[1.0], [value]]]), torch.tensor([0, 3]), 3)
    assert gradient.isfinite().tolist() == [[True], [False], [False]]


def weight_of(step, row, rows, steps):
    """Share of a row in a step, in fp64, also of the rows that have none."""
    left, right = step * rows / steps - row - 0.5, (step + 1) * rows / steps - row - 0.5
    is_first, is_last = row == 0, row == rows - 1
    a, b = left if is_first else max(left, -1), min(right, 0)
    rising = max(b - a, 0) * (1 if is_first else 1 + (a + b) / 2)
    a, b = max(left, 0), right if is_last else min(right, 1)
    falling = max(b - a, 0) * (1 if is_last else 1 - (a + b) / 2)
    return (rising + falling) * (steps / rows)


@given(rows=st.integers(1, 40), steps=st.sampled_from([1, 2, 3, 7, 16]))
def test_leaving_out_what_weighs_nothing_changes_no_bit(ops, rows, steps):
    if ops.name != "cpu":
        pytest.skip("a kernel adds up in another order")

    def product(matrix, dense):
        bags = torch.arange(matrix.shape[1]).expand(matrix.shape)
        return torch.nn.functional.embedding_bag(bags, dense, mode="sum", per_sample_weights=matrix)

    matrix = torch.tensor([[weight_of(step, row, rows, steps) for row in range(rows)] for step in range(steps)])
    features, gradient = features_of([0, rows], 5), features_of([0, steps], 5, seed=1)
    offsets = torch.tensor([0, rows])
    assert torch.equal(ops.resample(features, offsets, steps)[0], product(matrix, features))
    assert torch.equal(ops.resample_backward(gradient[None], offsets, rows), product(matrix.T.contiguous(), gradient))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(ops, dtype):
    offsets = torch.tensor([0, 9, 30])
    features = features_of(offsets, 5).to(dtype)
    output = ops.resample(features, offsets, 7)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, ops.resample(features.float(), offsets, 7), rtol=1e-6, atol=1e-6)


def test_more_channels_than_one_tile(ops):
    offsets = torch.tensor([0, 9])
    features = features_of(offsets, 300)
    expected = reference.resample(features, offsets, 4, samples=512)
    torch.testing.assert_close(ops.resample(features, offsets, 4), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("steps", [512, 384])
def test_hours_of_video_keep_their_precision(ops, steps):
    """Weights are measured from the row, so they do not lose digits far from the start."""
    rows = 1_500 if ops.name == "interpreter" else 200_000
    ramp = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    features = torch.stack([torch.ones(rows), ramp.float()], dim=1)
    output = ops.resample(features, torch.tensor([0, rows]), steps)[0]
    torch.testing.assert_close(output[:, 0], torch.ones(steps), rtol=5e-5, atol=0)
    torch.testing.assert_close(output[:, 1], (torch.arange(steps) + 0.5) / steps, rtol=0, atol=5e-5)


def test_rows_behind_the_last_video_are_nobodys(ops):
    features, offsets = features_of([0, 9], 3), torch.tensor([0, 2, 5])
    expected = ops.resample(features[:5].contiguous(), offsets, 4)
    assert torch.equal(ops.resample(features, offsets, 4), expected)
    gradient = ops.resample_backward(torch.ones_like(expected), offsets, 9)
    assert gradient.shape == (9, 3)
    assert gradient[:5].all()
    assert not gradient[5:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("of_rows", [torch.float16, torch.bfloat16, torch.float32])
def test_the_output_is_the_fp32_result_rounded(ops, of_rows, dtype):
    offsets = torch.tensor([0, 9, 30])
    features = features_of(offsets, 5).to(of_rows)
    exact = ops.resample(features, offsets, 7)
    rounded = torch.finfo(dtype).eps  # and not half of it: the interpreter cuts fp32 off to bf16
    for output in (ops.resample(features, offsets, 7, dtype), ops.resample_checked(features, offsets, 7, dtype)[0]):
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), exact, rtol=rounded, atol=1e-7)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    dimension=st.sampled_from([1, 3, 700]),
    steps=st.sampled_from([1, 2, 7, 16]),
    value=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    data=st.data(),
)
def test_a_single_number_that_is_not_finite_is_found_wherever_it_is(ops, lengths, dimension, steps, value, data):
    offsets = torch.from_numpy(np.cumsum([0, *lengths]))
    features = features_of(offsets, dimension)
    expected = torch.ones(len(lengths), dtype=torch.bool)
    assert torch.equal(ops.resample_checked(features, offsets, steps)[1], expected)
    filled = [video for video, length in enumerate(lengths) if length]
    if filled:
        video = data.draw(st.sampled_from(filled))
        row = data.draw(st.integers(0, lengths[video] - 1))
        features[int(offsets[video]) + row, data.draw(st.integers(0, dimension - 1))] = value
        expected[video] = False
        assert torch.equal(ops.resample_checked(features, offsets, steps)[1], expected)


def test_rows_that_are_nobodys_need_not_be_finite(ops):
    features, offsets = features_of([0, 9], 3), torch.tensor([0, 2, 5])
    features[5:] = float("nan")
    assert ops.resample_checked(features, offsets, 4)[1].tolist() == [True, True]


def test_a_mean_beyond_the_dtype_of_the_output_is_not_finite(ops):
    features = torch.tensor([[1.0], [7e4]])  # the largest fp16 is 65,504
    for dtype, finite in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
        assert ops.resample_checked(features, torch.tensor([0, 1, 2]), 4, dtype)[1].tolist() == [True, finite]


def test_no_channel_and_no_video_are_finite(ops):
    assert ops.resample_checked(torch.zeros((3, 0)), torch.tensor([0, 3]), 4)[1].tolist() == [True]
    assert ops.resample_checked(torch.zeros((0, 2)), torch.tensor([0]), 4)[1].tolist() == []
