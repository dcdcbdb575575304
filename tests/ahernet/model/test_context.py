import ahernet_kernels as kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.config import ModelConfig
from ahernet.model.context import ContextGenerators, synthesize

STEPS = 24


def _random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _pieces(videos=1, rows=10, context=5, channels=3, dtype=torch.float32):
    """Contexts before, moments, contexts after."""
    return [
        _random(videos, length, channels, seed=seed, dtype=dtype)
        for seed, length in enumerate((context, rows, context))
    ]


def _placed(before, moment, after, first, length, steps):
    return synthesize(before, moment, after, torch.tensor(first)[:, None], torch.tensor(length)[:, None], steps)


def _one_by_one(before, moment, after, first, length, steps):
    """Every piece brought to its steps by `resample`, one video after the other."""
    videos = []
    for b, (start, size) in enumerate(zip(first, length, strict=True)):
        parts = []
        for piece, room in ((before[b], start), (moment[b], size), (after[b], steps - start - size)):
            if room:
                parts.append(kernels.resample(piece, torch.tensor([0, len(piece)]), room)[0])
        videos.append(torch.cat(parts))
    return torch.stack(videos)


@st.composite
def placements(draw, steps=STEPS):
    """First step and length of a few videos."""
    lengths = draw(st.lists(st.integers(1, steps), min_size=1, max_size=5))
    return [draw(st.integers(0, steps - length)) for length in lengths], lengths


@st.composite
def moments_somewhere(draw):
    """Steps of a video, first step and length of its moment."""
    steps = draw(st.integers(8, 600))
    length = draw(st.integers(1, steps))
    return steps, draw(st.integers(0, steps - length)), length


def _assert_same(got, expected):
    # A step of hundreds of rows is a sum of as many roundings.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


# --- synthetic videos -------------------------------------------------------------------------------------------


def _assert_moment_fills(first, length, steps, rows, context):
    before = after = torch.zeros(1, context, 2)
    video = _placed(before, torch.ones(1, rows, 2), after, [first], [length], steps)[0]
    _assert_same(video[first : first + length], torch.ones(length, 2))
    assert not video[:first].any()
    assert not video[first + length :].any()


def test_the_moment_fills_exactly_its_steps_wherever_it_is_placed():
    for length in range(1, STEPS + 1):
        for first in range(STEPS - length + 1):
            _assert_moment_fills(first, length, STEPS, rows=12, context=6)


@settings(deadline=None)
@given(moments_somewhere(), st.integers(1, 300), st.integers(1, 150))
def test_the_moment_fills_exactly_its_steps_whatever_the_sizes(somewhere, rows, context):
    steps, first, length = somewhere
    _assert_moment_fills(first, length, steps, rows, context)


@settings(deadline=None)
@given(moments_somewhere())
def test_contexts_fill_exactly_the_rest(somewhere):
    steps, first, length = somewhere
    one, two = torch.full((1, 40, 1), 1.0), torch.full((1, 40, 1), 2.0)
    video = _placed(one, torch.zeros(1, 80, 1), two, [first], [length], steps)[0, :, 0]
    expected = torch.cat([torch.ones(first), torch.zeros(length), torch.full((steps - first - length,), 2.0)])
    _assert_same(video, expected)


@settings(deadline=None)
@given(placements(), st.integers(1, 30), st.integers(1, 15))
def test_every_piece_is_resampled_as_the_kernel_does(placement, rows, context):
    first, length = placement
    pieces = _pieces(len(first), rows, context)
    got = _placed(*pieces, first, length, STEPS)
    _assert_same(got, _one_by_one(*pieces, first, length, STEPS))


def test_pieces_of_the_usual_lengths_are_resampled_as_the_kernel_does():
    first, length = [0, 77, 511, 200, 500], [512, 400, 1, 37, 12]
    pieces = _pieces(5, 256, 128)
    got = _placed(*pieces, first, length, 512)
    _assert_same(got, _one_by_one(*pieces, first, length, 512))


@settings(deadline=None)
@given(placements())
def test_a_batch_is_the_same_as_its_videos_one_by_one(placement):
    first, length = placement
    pieces = _pieces(len(first))
    together = _placed(*pieces, first, length, STEPS)
    for b in range(len(first)):
        alone = _placed(*(piece[b : b + 1] for piece in pieces), first[b : b + 1], length[b : b + 1], STEPS)
        _assert_same(together[b], alone[0])


def test_no_video_sees_another():
    before, moment, after = _pieces(3)
    other = moment.clone()
    other[1] += 1
    a, b = (_placed(before, x, after, [2, 0, 9], [10, 24, 1], STEPS) for x in (moment, other))
    assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert not torch.equal(a[1], b[1])


@pytest.mark.parametrize(("first", "length"), [([0, 3], [8, 1]), ([1, 0], [2, 5]), ([7, 4], [1, 4])])
def test_gradients_reach_moment_and_contexts_exactly(first, length):
    pieces = [piece.requires_grad_() for piece in _pieces(2, rows=5, context=3, channels=2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: _placed(*x, first, length, 8), pieces)


@settings(deadline=None)
@given(placements(), st.integers(1, 30), st.integers(1, 15))
def test_gradients_are_those_of_resampling_the_pieces(placement, rows, context):
    first, length = placement
    upstream = _random(len(first), STEPS, 3, seed=7)
    gradients = []
    for join in (_placed, _one_by_one):
        pieces = [piece.requires_grad_() for piece in _pieces(len(first), rows, context)]
        join(*pieces, first, length, STEPS).backward(upstream)
        # A piece that no step shows has no part in the graph of the slow form.
        gradients.append([torch.zeros_like(x) if x.grad is None else x.grad for x in pieces])
    for got, expected in zip(*gradients, strict=True):
        _assert_same(got, expected)


def test_far_off_values_do_not_blur_the_others():
    # Differences of running sums would lose the small values after the large ones.
    before, moment, after = _pieces(2, 256, 128)
    after = after * 1e-3
    moment = moment + 1e4
    got = _placed(before, moment, after, [100, 3], [300, 20], 512)
    expected = _one_by_one(before, moment, after, [100, 3], [300, 20], 512)
    torch.testing.assert_close(got[0, 400:], expected[0, 400:], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(got[1, 23:], expected[1, 23:], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_piece_that_no_step_shows_does_not_matter(broken):
    before, moment, after = (piece.requires_grad_() for piece in _pieces(2))
    unseen = torch.full_like(after, broken).requires_grad_()
    expected = _placed(before, moment, after, [4, 4], [STEPS - 4] * 2, STEPS)
    got = _placed(before, moment, unseen, [4, 4], [STEPS - 4] * 2, STEPS)
    assert torch.equal(got, expected)
    got.sum().backward()
    assert not unseen.grad.any()


# --- generators -------------------------------------------------------------------------------------------------


def _generators(dimension=6, **model):
    torch.manual_seed(0)
    return ContextGenerators(ModelConfig(feature_dimension=dimension, **model))


@pytest.mark.parametrize(("rows", "context"), [(256, 128), (64, 32), (9, 5), (1, 1)])
def test_contexts_are_half_as_long_as_the_moment(rows, context):
    before, after = _generators()(_random(2, rows, 6))
    assert before.shape == after.shape == (2, context, 6)


def test_the_two_contexts_differ_and_follow_from_the_moment_alone():
    generators, moment = _generators(), _random(2, 16, 6)
    before, after = generators(moment)
    assert not torch.allclose(before, after)
    again = generators(moment)
    assert torch.equal(before, again[0])
    assert torch.equal(after, again[1])
    assert not torch.allclose(generators(moment + 1)[0], before)


def test_mirrored_contexts_follow_from_the_end_of_the_moment_that_they_lie_next_to():
    plain, mirrored = (_generators(mirrored_context=mirror) for mirror in (False, True))
    moment = _random(2, 32, 6)
    other = moment.clone()
    other[:, :4] += 1  # the beginning
    for generators, nearest, farthest in ((plain, 0, -1), (mirrored, -1, 0)):
        changed = [one != two for one, two in zip(generators(moment), generators(other), strict=True)]
        # Context before: its last step lies next to the beginning.
        assert changed[0][:, nearest].any()
        assert not changed[0][:, farthest].any()
    for one, two in zip(mirrored(moment), plain(moment.flip(1)), strict=True):
        assert torch.equal(one, two)


def test_neighbours_are_joined_midway_between_their_moments():
    first = torch.tensor([[2, 11, 14], [0, 5, 20], [3, 12, 12], [3, 24, 24]])
    length = torch.tensor([[4, 3, 9], [5, 1, 4], [9, 2, 0], [21, 0, 0]])
    pieces = _pieces(videos=12)
    joined = synthesize(*pieces, first, length, STEPS)
    alone = synthesize(*pieces, *(x.reshape(-1, 1) for x in (first, length)), STEPS).unflatten(0, (4, 3))
    starts = [
        (0, 8, 14),  # midway between 6 and 11; one ends where the next starts
        (0, 5, 13),  # likewise, then midway between 6 and 20
        (0, 12, STEPS),
        (0, STEPS, STEPS),
    ]
    for b, begins in enumerate(starts):
        ends = (*begins[1:], STEPS)
        parts = [alone[b, m, begin:end] for m, (begin, end) in enumerate(zip(begins, ends, strict=True))]
        assert torch.equal(joined[b], torch.cat(parts))


def test_what_is_not_shown_of_a_neighbour_learns_nothing():
    before, moment, after = (piece.requires_grad_() for piece in _pieces(videos=2))
    synthesize(before, moment, after, torch.tensor([[2, 12]]), torch.tensor([[6, 4]]), STEPS).sum().backward()
    learnt = [piece.grad.any(dim=-1) for piece in (before, moment, after)]
    # Step 10 is midway: of the 16 steps after the first moment and of the 12 before the second two each are shown.
    assert learnt[0].tolist() == [[True] * 5, [False, False, False, True, True]]
    assert learnt[1].all()
    assert learnt[2].tolist() == [[True, True, False, False, False], [True] * 5]


def test_each_generator_has_two_convolutions_of_width_three_the_second_of_stride_two():
    for generator in _generators(2048).children():
        layers = [layer for layer in generator if isinstance(layer, torch.nn.Conv1d)]
        assert [(layer.in_channels, layer.out_channels) for layer in layers] == [(2048, 1024), (1024, 2048)]
        assert [layer.kernel_size for layer in layers] == [(3,), (3,)]
        assert [layer.stride for layer in layers] == [(1,), (2,)]


def test_the_generators_share_no_parameter():
    generators = _generators()
    ids = [{id(parameter) for parameter in part.parameters()} for part in (generators.before, generators.after)]
    assert not ids[0] & ids[1]
    before, _ = generators(_random(1, 8, 6))
    before.sum().backward()
    assert all(parameter.grad is None for parameter in generators.after.parameters())
    assert all(parameter.grad is not None for parameter in generators.before.parameters())
