import ahernet_kernels as kernels
import pytest
import torch
from ahernet_kernels._tuning import overridden
from hypothesis import given
from hypothesis import strategies as st


def pieces_of(videos, rows, dimension=3, dtypes=(torch.float32,) * 3):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn((videos, count, dimension), generator=generator).to(dtype)
        for count, dtype in zip(rows, dtypes, strict=True)
    ]


@st.composite
def lengths_of_videos(draw, steps):
    """Steps of the three pieces of a few videos."""
    videos = []
    for _ in range(draw(st.integers(1, 4))):
        first, second = sorted((draw(st.integers(0, steps)), draw(st.integers(0, steps))))
        videos.append([first, second - first, steps - second])
    return torch.tensor(videos)


def one_by_one(pieces, lengths):
    """Every piece brought to its steps by `resample` on the CPU, one video after the other."""
    videos = []
    for video, sizes in enumerate(lengths.tolist()):
        parts = [
            kernels.resample(piece[video], torch.tensor([0, piece.shape[1]]), size)[0]
            for piece, size in zip(pieces, sizes, strict=True)
            if size > 0
        ]
        videos.append(torch.cat(parts))
    return torch.stack(videos)


def assert_equals_resampling(ops, pieces, lengths, steps):
    # A step of hundreds of rows is a sum of as many roundings.
    torch.testing.assert_close(ops.stretch(*pieces, lengths, steps), one_by_one(pieces, lengths), rtol=1e-5, atol=1e-5)


@given(lengths=lengths_of_videos(12), rows=st.tuples(*[st.integers(1, 30)] * 3), dimension=st.sampled_from([1, 3]))
def test_every_piece_is_resampled_by_itself(ops, lengths, rows, dimension):
    assert_equals_resampling(ops, pieces_of(len(lengths), rows, dimension), lengths, 12)


def test_pieces_of_the_usual_lengths(ops):
    lengths = torch.tensor([[0, 128, 0], [77, 50, 1], [1, 1, 126], [128, 0, 0], [3, 0, 125]])
    assert_equals_resampling(ops, pieces_of(5, (32, 64, 32)), lengths, 128)


@given(lengths=lengths_of_videos(9), rows=st.tuples(*[st.integers(1, 20)] * 3))
def test_backward_is_the_transpose_of_forward(ops, lengths, rows):
    """<stretch(x), g> = <x, backward(g)> for every x and g."""
    videos, total = len(lengths), sum(rows)
    identity = torch.eye(total).expand(videos, -1, -1)
    forward = ops.stretch(*(part.contiguous() for part in identity.split(rows, dim=1)), lengths, 9)
    gradient = torch.randn((videos, 9), generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("btr,bt->br", forward, gradient).split(rows, dim=1)
    for piece, count in enumerate(rows):
        actual = ops.stretch_backward(gradient[..., None].contiguous(), lengths, piece, count, torch.float32)
        torch.testing.assert_close(actual[..., 0], expected[piece], rtol=1e-4, atol=1e-5)


def test_pieces_may_have_dtypes_of_their_own(ops):
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    lengths = torch.tensor([[3, 4, 5], [0, 12, 0]])
    pieces = pieces_of(2, (4, 9, 4), dtypes=dtypes)
    output = ops.stretch(*pieces, lengths, 12)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, ops.stretch(*(piece.float() for piece in pieces), lengths, 12))
    for piece, dtype in enumerate(dtypes):
        gradient = ops.stretch_backward(output, lengths, piece, pieces[piece].shape[1], dtype)
        expected = ops.stretch_backward(output, lengths, piece, pieces[piece].shape[1], torch.float32)
        torch.testing.assert_close(gradient, expected.to(dtype))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_piece_that_no_step_shows_does_not_matter(ops, broken):
    pieces = pieces_of(2, (5, 10, 5))
    lengths = torch.tensor([[4, 8, 0], [0, 12, 0]])
    expected = ops.stretch(*pieces, lengths, 12)
    pieces[2].fill_(broken)
    pieces[0][1] = broken
    torch.testing.assert_close(ops.stretch(*pieces, lengths, 12), expected, rtol=0, atol=0)
    assert not ops.stretch_backward(torch.ones(2, 12, 3), lengths, 2, 5, torch.float32).any()


def test_a_row_that_only_touches_a_step_is_not_in_it(ops):
    """The first of two steps over three rows ends where the influence of the third begins."""
    middle = torch.tensor([[[1.0], [2.0], [torch.nan]]])
    output = ops.stretch(torch.ones(1, 1, 1), middle, torch.ones(1, 1, 1), torch.tensor([[0, 2, 0]]), 2)
    assert output[0, 0].item() == pytest.approx(4 / 3)
    gradient = ops.stretch_backward(
        torch.tensor([[[1.0], [torch.nan]]]), torch.tensor([[0, 2, 0]]), 1, 3, torch.float32
    )
    assert gradient.isfinite().tolist() == [[[True], [False], [False]]]


def test_no_video_sees_another(ops):
    lengths = torch.tensor([[2, 10, 0], [0, 12, 0], [9, 1, 2]])
    pieces = pieces_of(3, (5, 10, 5))
    before = ops.stretch(*pieces, lengths, 12)
    pieces[1][1] += 1
    after = ops.stretch(*pieces, lengths, 12)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_far_off_values_do_not_blur_the_others(ops):
    """Differences of running sums would lose the small values after the large ones."""
    pieces = pieces_of(1, (8, 64, 32))
    pieces[1] += 1e4
    pieces[2] *= 1e-3
    lengths = torch.tensor([[20, 60, 48]])
    actual, expected = ops.stretch(*pieces, lengths, 128), one_by_one(pieces, lengths)
    torch.testing.assert_close(actual[:, 80:], expected[:, 80:], rtol=1e-5, atol=1e-9)


def test_tiles_of_any_size_give_the_same(ops):
    lengths = torch.tensor([[3, 5, 4], [0, 11, 1]])
    pieces = pieces_of(2, (3, 7, 20), dimension=40)
    expected = ops.stretch(*pieces, lengths, 12)
    expected_gradient = ops.stretch_backward(expected, lengths, 1, 7, torch.float32)
    with overridden("stretch", {"BLOCK_T": 8, "BLOCK_D": 16}):
        torch.testing.assert_close(ops.stretch(*pieces, lengths, 12), expected)
    with overridden("stretch_backward", {"BLOCK_ROWS": 4, "BLOCK_D": 16}):
        torch.testing.assert_close(ops.stretch_backward(expected, lengths, 1, 7, torch.float32), expected_gradient)


@pytest.mark.parametrize(("videos", "dimension"), [(0, 3), (2, 0)])
def test_nothing_to_stretch_is_nothing(ops, videos, dimension):
    lengths = torch.tensor([[3, 5, 4]] * videos, dtype=torch.int64).reshape(videos, 3)
    output = ops.stretch(*pieces_of(videos, (3, 7, 2), dimension), lengths, 12)
    assert output.shape == (videos, 12, dimension)
    assert ops.stretch_backward(output, lengths, 0, 3, torch.float32).shape == (videos, 3, dimension)


@pytest.mark.parametrize("lengths", [[[3, 5, 5]], [[-1, 5, 8]]])
def test_lengths_that_cannot_be_are_refused_on_a_cpu(ops, lengths):
    if ops.name != "cpu":
        pytest.skip("values of tensors are not read on a GPU")
    with pytest.raises(ValueError, match="lengths: expected numbers >= 0 that add up to 12"):
        ops.stretch(*pieces_of(1, (3, 7, 2)), torch.tensor(lengths), 12)
