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


def alone(lengths):
    """Each sequence a video of its own."""
    return torch.zeros((len(lengths), int(lengths[0].sum()) if len(lengths) else 12), dtype=torch.int64)


@st.composite
def shown_in_videos(draw, steps, most=3):
    """Steps of the three pieces of the sequences of a few videos, and which of them each step shows."""
    videos, each = draw(st.integers(1, 3)), draw(st.integers(1, most))
    lengths = []
    for _ in range(videos * each):
        first, second = sorted((draw(st.integers(0, steps)), draw(st.integers(0, steps))))
        lengths.append([first, second - first, steps - second])
    numbers = st.lists(st.integers(0, each - 1), min_size=steps, max_size=steps)
    return torch.tensor(lengths), torch.tensor([draw(numbers) for _ in range(videos)])


def one_by_one(pieces, lengths):
    """Every piece brought to its steps by `resample` on the CPU, one sequence after the other."""
    videos = []
    for video, sizes in enumerate(lengths.tolist()):
        parts = [
            kernels.resample(piece[video], torch.tensor([0, piece.shape[1]]), size)[0]
            for piece, size in zip(pieces, sizes, strict=True)
            if size > 0
        ]
        videos.append(torch.cat(parts))
    return torch.stack(videos)


def assert_equals_resampling(ops, pieces, lengths, shown):
    # A step of hundreds of rows is a sum of as many roundings.
    expected = seen(one_by_one(pieces, lengths), shown)
    torch.testing.assert_close(ops.stretch(*pieces, lengths, shown), expected, rtol=1e-5, atol=1e-5)


def seen(sequences, shown):
    """What videos show of their sequences."""
    videos, steps = shown.shape
    return sequences.unflatten(0, (videos, -1))[torch.arange(videos)[:, None], shown, torch.arange(steps)]


@given(videos=shown_in_videos(12), rows=st.tuples(*[st.integers(1, 30)] * 3), dimension=st.sampled_from([1, 3]))
def test_every_piece_is_resampled_by_itself(ops, videos, rows, dimension):
    lengths, shown = videos
    assert_equals_resampling(ops, pieces_of(len(lengths), rows, dimension), lengths, shown)


def test_pieces_of_the_usual_lengths(ops):
    lengths = torch.tensor([[77, 50, 1], [0, 128, 0], [3, 0, 125]])
    pieces = pieces_of(3, (32, 64, 32))
    assert_equals_resampling(ops, pieces, lengths, alone(lengths))
    assert_equals_resampling(ops, pieces, lengths, (torch.arange(128) // 43)[None])


@given(videos=shown_in_videos(9, most=2), rows=st.tuples(*[st.integers(1, 9)] * 3))
def test_backward_is_the_transpose_of_forward(ops, videos, rows):
    """<stretch(x), g> = <x, backward(g)> for every x and g."""
    lengths, shown = videos
    sequences, total = len(lengths), sum(rows)
    identity = torch.eye(sequences * total).view(sequences, total, -1)
    forward = ops.stretch(*(part.contiguous() for part in identity.split(rows, dim=1)), lengths, shown)
    gradient = torch.randn(shown.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("btr,bt->r", forward, gradient).view(sequences, total).split(rows, dim=1)
    for piece, count in enumerate(rows):
        actual = ops.stretch_backward(gradient[..., None].contiguous(), lengths, shown, piece, count, torch.float32)
        torch.testing.assert_close(actual[..., 0], expected[piece], rtol=1e-4, atol=1e-5)


def test_a_sequence_that_no_step_shows_learns_nothing_and_does_not_matter(ops):
    lengths = torch.tensor([[3, 5, 4], [0, 11, 1], [6, 6, 0]])
    pieces, shown = pieces_of(3, (4, 9, 4)), torch.tensor([[0] * 6 + [2] * 6])
    expected = ops.stretch(*pieces, lengths, shown)
    for piece in pieces:
        piece[1] = torch.nan
    torch.testing.assert_close(ops.stretch(*pieces, lengths, shown), expected, rtol=0, atol=0)
    gradient = torch.ones(1, 12, 3)
    for place, piece in enumerate(pieces):
        learnt = ops.stretch_backward(gradient, lengths, shown, place, piece.shape[1], torch.float32)
        assert not learnt[1].any()
        assert learnt[0].any() == (place < 2)  # steps 0 to 5 are in its first two pieces
        assert learnt[2].any() == (place == 1)


def test_pieces_may_have_dtypes_of_their_own(ops):
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    lengths = torch.tensor([[3, 4, 5], [0, 12, 0]])
    pieces = pieces_of(2, (4, 9, 4), dtypes=dtypes)
    output = ops.stretch(*pieces, lengths, alone(lengths))
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, ops.stretch(*(piece.float() for piece in pieces), lengths, alone(lengths)))
    for piece, dtype in enumerate(dtypes):
        gradient = ops.stretch_backward(output, lengths, alone(lengths), piece, pieces[piece].shape[1], dtype)
        expected = ops.stretch_backward(output, lengths, alone(lengths), piece, pieces[piece].shape[1], torch.float32)
        torch.testing.assert_close(gradient, expected.to(dtype))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_piece_that_no_step_shows_does_not_matter(ops, broken):
    pieces = pieces_of(2, (5, 10, 5))
    lengths = torch.tensor([[4, 8, 0], [0, 12, 0]])
    expected = ops.stretch(*pieces, lengths, alone(lengths))
    pieces[2].fill_(broken)
    pieces[0][1] = broken
    torch.testing.assert_close(ops.stretch(*pieces, lengths, alone(lengths)), expected, rtol=0, atol=0)
    assert not ops.stretch_backward(torch.ones(2, 12, 3), lengths, alone(lengths), 2, 5, torch.float32).any()


def test_a_row_that_only_touches_a_step_is_not_in_it(ops):
    """The first of two steps over three rows ends where the influence of the third begins."""
    middle = torch.tensor([[[1.0], [2.0], [torch.nan]]])
    output = ops.stretch(
        torch.ones(1, 1, 1), middle, torch.ones(1, 1, 1), torch.tensor([[0, 2, 0]]), torch.tensor([[0, 0]])
    )
    assert output[0, 0].item() == pytest.approx(4 / 3)
    gradient = ops.stretch_backward(
        torch.tensor([[[1.0], [torch.nan]]]), torch.tensor([[0, 2, 0]]), torch.tensor([[0, 0]]), 1, 3, torch.float32
    )
    assert gradient.isfinite().tolist() == [[[True], [False], [False]]]


def test_no_video_sees_another(ops):
    lengths = torch.tensor([[2, 10, 0], [0, 12, 0], [9, 1, 2]])
    pieces = pieces_of(3, (5, 10, 5))
    before = ops.stretch(*pieces, lengths, alone(lengths))
    pieces[1][1] += 1
    after = ops.stretch(*pieces, lengths, alone(lengths))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_far_off_values_do_not_blur_the_others(ops):
    """Differences of running sums would lose the small values after the large ones."""
    pieces = pieces_of(1, (8, 64, 32))
    pieces[1] += 1e4
    pieces[2] *= 1e-3
    lengths = torch.tensor([[20, 60, 48]])
    actual, expected = ops.stretch(*pieces, lengths, alone(lengths)), one_by_one(pieces, lengths)
    torch.testing.assert_close(actual[:, 80:], expected[:, 80:], rtol=1e-5, atol=1e-9)


def test_tiles_of_any_size_give_the_same(ops):
    lengths = torch.tensor([[3, 5, 4], [0, 11, 1]])
    pieces = pieces_of(2, (3, 7, 20), dimension=40)
    expected = ops.stretch(*pieces, lengths, alone(lengths))
    expected_gradient = ops.stretch_backward(expected, lengths, alone(lengths), 1, 7, torch.float32)
    with overridden("stretch", {"BLOCK_T": 8, "BLOCK_D": 16}):
        torch.testing.assert_close(ops.stretch(*pieces, lengths, alone(lengths)), expected)
    with overridden("stretch_backward", {"BLOCK_ROWS": 4, "BLOCK_D": 16}):
        torch.testing.assert_close(
            ops.stretch_backward(expected, lengths, alone(lengths), 1, 7, torch.float32), expected_gradient
        )


@pytest.mark.parametrize(("videos", "dimension"), [(0, 3), (2, 0)])
def test_nothing_to_stretch_is_nothing(ops, videos, dimension):
    lengths = torch.tensor([[3, 5, 4]] * videos, dtype=torch.int64).reshape(videos, 3)
    output = ops.stretch(*pieces_of(videos, (3, 7, 2), dimension), lengths, alone(lengths))
    assert output.shape == (videos, 12, dimension)
    assert ops.stretch_backward(output, lengths, alone(lengths), 0, 3, torch.float32).shape == (videos, 3, dimension)


@pytest.mark.parametrize("lengths", [[[3, 5, 5]], [[-1, 5, 8]]])
def test_lengths_that_cannot_be_are_refused_on_a_cpu(ops, lengths):
    if ops.name != "cpu":
        pytest.skip("values of tensors are not read on a GPU")
    with pytest.raises(ValueError, match="lengths: expected numbers >= 0 that add up to 12"):
        ops.stretch(*pieces_of(1, (3, 7, 2)), torch.tensor(lengths), torch.zeros((1, 12), dtype=torch.int64))


@pytest.mark.parametrize("number", [-1, 2])
def test_sequences_that_a_video_does_not_have_are_refused_on_a_cpu(ops, number):
    if ops.name != "cpu":
        pytest.skip("values of tensors are not read on a GPU")
    shown = torch.tensor([[0] * 11 + [number]])
    with pytest.raises(ValueError, match="shown: expected numbers from 0 to 1"):
        ops.stretch(*pieces_of(2, (3, 7, 2)), torch.tensor([[3, 5, 4]] * 2), shown)
