import math

import kernel_references as reference
import pytest
import torch
from ahernet_kernels import BACKGROUND, FOREGROUND, IGNORED
from ahernet_kernels._tuning import overridden
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

VALUES = st.one_of(
    st.floats(-4, 4, width=32),
    st.sampled_from([0.0, 1.0, -1.0, 80.0, -200.0, 1e4, -1e4, 3e38, -3e38, math.nan, math.inf, -math.inf]),
)


def case(videos=2, cells=(4, 2), ratios=3, share=0.4, seed=0, dtype=torch.float32):
    """Offsets, overlaps, anchors, kind, targets, tiou; a share of the anchors is foreground."""
    generator = torch.Generator().manual_seed(seed)
    offsets, overlaps = (
        [torch.randn((videos, channels, length), generator=generator).to(dtype) for length in cells]
        for channels in (2 * ratios, ratios)
    )
    count = ratios * sum(cells)
    anchors = torch.rand((count, 2), generator=generator)
    chance = torch.rand((videos, count), generator=generator)
    kind = torch.where(chance < share, FOREGROUND, torch.where(chance < (1 + share) / 2, BACKGROUND, IGNORED))
    targets = torch.rand((videos, count, 2), generator=generator).sort(dim=2).values
    return offsets, overlaps, anchors, kind, targets, torch.rand((videos, count), generator=generator)


def reference_with_gradients(offsets, overlaps, *constants, weights=(1.0, 1.0)):
    leaves = [[x.clone().requires_grad_() for x in per_scale] for per_scale in (offsets, overlaps)]
    losses = reference.proposal_loss(*leaves, *constants)
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    flat = [x for per_scale in leaves for x in per_scale]
    if total.requires_grad:
        gradients = iter(torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True))
    else:
        gradients = iter([torch.zeros_like(x) for x in flat])
    return [x.detach() for x in losses], [[next(gradients) for _ in per_scale] for per_scale in leaves]


def assert_close(actual, expected, **tolerance):
    tolerance = {"rtol": 1e-4, "atol": 1e-6} | tolerance
    for left, right in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(left, right, equal_nan=True, **tolerance)


def assert_equals_the_reference(ops, *arguments, weights=(1.0, 1.0), **tolerance):
    actual = ops.proposal_loss(*arguments, weights=weights)
    assert_close(actual, reference_with_gradients(*arguments, weights=weights), **tolerance)


@given(
    data=st.data(),
    videos=st.integers(1, 3),
    cells=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    ratios=st.integers(1, 3),
    weights=st.tuples(st.sampled_from([0.0, 1.0, -2.5]), st.sampled_from([0.0, 1.0, 7.0])),
)
def test_losses_and_gradients_equal_the_reference_on_adversarial_outputs(ops, data, videos, cells, ratios, weights):
    offsets, overlaps, *constants = case(videos, cells, ratios, seed=data.draw(st.integers(0, 99)))
    for scale in (*offsets, *overlaps):
        for _ in range(data.draw(st.integers(0, 2))):
            scale.view(-1)[data.draw(st.integers(0, scale.numel() - 1))] = data.draw(VALUES)
    actual_losses, actual_gradients = ops.proposal_loss(offsets, overlaps, *constants, weights=weights)
    losses, gradients = reference_with_gradients(offsets, overlaps, *constants, weights=weights)
    assert_close(actual_losses, losses)
    for actual, expected in zip(tree_leaves(actual_gradients), tree_leaves(gradients), strict=True):
        # Torch gives 0 * inf = not a number where a weight is 0; here a weight of 0 and a gradient of 0 give 0.
        defined = ~expected.isnan() if 0.0 in weights else torch.ones_like(expected, dtype=torch.bool)
        assert_close(actual[defined], expected[defined])


@pytest.mark.parametrize("cells", [[128, 64, 32, 16, 8, 4, 2, 1], [17], [5, 3], [33, 16, 1], [31, 0, 2]])
def test_scales_of_any_length(ops, cells):
    assert_equals_the_reference(ops, *case(1, cells))


@pytest.mark.parametrize("ratios", [1, 2, 3, 5])
def test_any_number_of_anchors_a_cell(ops, ratios):
    assert_equals_the_reference(ops, *case(2, [4, 2], ratios))


@pytest.mark.parametrize("cells", [[33, 16, 1], [5, 0, 2]])
@pytest.mark.parametrize("ratios", [1, 3])
def test_channels_may_be_last_in_memory(ops, cells, ratios):
    offsets, overlaps, *constants = case(3, cells, ratios)
    last = [[x.transpose(1, 2).contiguous().transpose(1, 2) for x in kind] for kind in (offsets, overlaps)]
    actual = ops.proposal_loss(*last, *constants, weights=(3.0, 2.0))
    expected = ops.proposal_loss(offsets, overlaps, *constants, weights=(3.0, 2.0))
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=0)
    assert_close(actual[0], expected[0])
    assert all(x.transpose(1, 2).is_contiguous() for x in tree_leaves(actual[1]))


def test_outputs_in_two_layouts_are_as_good_as_in_one(ops):
    offsets, overlaps, *constants = case(3, [9, 4])
    mixed = [offsets[0].transpose(1, 2).contiguous().transpose(1, 2), offsets[1]]
    if ops.name == "interpreter":
        pytest.skip("the public function copies them, the launcher does not")
    assert_equals_the_reference(ops, mixed, overlaps, *constants)


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_any_share_of_foreground(ops, share):
    assert_equals_the_reference(ops, *case(3, [16, 8, 1], share=share))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32_and_gradients_are_rounded_once(ops, dtype):
    offsets, overlaps, *constants = case(2, [8, 4], dtype=dtype)
    losses, gradients = ops.proposal_loss(offsets, overlaps, *constants)
    assert all(loss.dtype == torch.float32 for loss in losses)
    exact = [[x.float() for x in per_scale] for per_scale in (offsets, overlaps)]
    expected_losses, expected = ops.proposal_loss(*exact, *constants)
    assert_close(losses, expected_losses, rtol=0, atol=0)
    # The interpreter cuts fp32 to bf16 instead of rounding it.
    one_unit = 2**-7 if ops.name == "interpreter" and dtype == torch.bfloat16 else 0
    assert_close(gradients, [[x.to(dtype) for x in per_scale] for per_scale in expected], rtol=one_unit, atol=0)


def test_scales_of_offsets_are_applied(ops):
    assert_equals_the_reference(ops, *case(1, [4]), 0.1, 0.2)


def test_anchors_of_half_precision_are_taken(ops):
    offsets, overlaps, anchors, *constants = case()
    actual = ops.proposal_loss(offsets, overlaps, anchors.half(), *constants)
    assert_close(actual, ops.proposal_loss(offsets, overlaps, anchors.half().float(), *constants), rtol=0, atol=0)


def one_anchor(ops, offset=(0.0, 0.0), overlap=0.0, kind=FOREGROUND, weights=(1.0, 1.0), anchor=(0.5, 0.5)):
    """Losses and gradients of one anchor that should become [0.25, 0.75] with a tiou of 0.5."""
    losses, (offset_gradient, overlap_gradient) = ops.proposal_loss(
        [torch.tensor(offset).reshape(1, 2, 1)],
        [torch.tensor(overlap).reshape(1, 1, 1)],
        torch.tensor([anchor]),
        torch.tensor([[kind]]),
        torch.tensor([[[0.25, 0.75]]]),
        torch.tensor([[0.5]]),
        weights=weights,
    )
    return *(x.item() for x in losses), offset_gradient[0].flatten().tolist(), overlap_gradient[0].item()


def test_a_perfect_anchor_has_no_loss_and_no_gradient(ops):
    assert one_anchor(ops) == (0.0, 0.0, [0.0, 0.0], 0.0)


@pytest.mark.parametrize(
    ("dc", "loss", "slope"),
    [(1.0, 0.125, 0.5), (2.0, 0.5, 1.0), (4.0, 1.5, 1.0), (-4.0, 1.5, -1.0), (-1.0, 0.125, -0.5)],
)
def test_the_loss_is_square_up_to_a_distance_of_one_and_linear_beyond(ops, dc, loss, slope):
    assert one_anchor(ops, offset=(dc, 0.0))[::2] == (loss, [0.5 * slope, 0.0])


@pytest.mark.parametrize("kind", [BACKGROUND, IGNORED])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e4])
def test_offsets_of_an_anchor_that_is_not_foreground_may_be_anything(ops, kind, value):
    assert one_anchor(ops, (value, value), kind=kind) == (0.0, 0.0, [0.0, 0.0], 0.0)


@pytest.mark.parametrize("weight", [math.inf, math.nan])
def test_nothing_of_a_loss_that_is_not_finite_reaches_an_anchor_that_is_not_foreground(ops, weight):
    offset_gradient, _ = one_anchor(ops, (3.0, 3.0), kind=BACKGROUND, weights=(weight, 1.0))[2:]
    assert offset_gradient == [0.0, 0.0]


@pytest.mark.parametrize(
    ("offset", "loss", "gradient"),
    [
        ((math.nan, 0.0), math.nan, [math.nan, 0.0]),
        ((0.0, math.nan), math.nan, [0.0, math.nan]),
        ((math.inf, 0.0), math.inf, [0.5, 0.0]),
        ((-math.inf, 0.0), math.inf, [-0.5, 0.0]),
        ((0.0, math.inf), math.inf, [0.0, math.inf]),
        ((0.0, 1e4), math.inf, [0.0, math.inf]),
        ((0.0, -math.inf), 0.125, [0.0, 0.0]),
    ],
)
def test_what_is_not_finite_at_a_foreground_anchor_is_seen_in_the_loss(ops, offset, loss, gradient):
    actual, _, actual_gradient, _ = one_anchor(ops, offset)
    assert actual == pytest.approx(loss, nan_ok=True)
    assert actual_gradient == pytest.approx(gradient, nan_ok=True)


def test_a_nan_overlap_is_seen_in_the_loss_and_in_its_own_gradient_only(ops):
    offsets, overlaps, *constants = case(1, [4], 1)
    overlaps[0][0, 0, 2] = math.nan
    (offset, overlap), gradients = ops.proposal_loss(offsets, overlaps, *constants)
    assert offset.isfinite()
    assert overlap.isnan()
    assert gradients[1][0].isnan().flatten().tolist() == [False, False, True, False]
    assert gradients[0][0].isfinite().all()


@pytest.mark.parametrize("overlap", [math.inf, -math.inf, 200.0, -200.0])
def test_a_sure_overlap_has_a_finite_loss_and_no_gradient(ops, overlap):
    assert one_anchor(ops, overlap=overlap)[1:] == (0.25, [0.0, 0.0], 0.0)


@pytest.mark.parametrize(("videos", "cells"), [(0, [4, 2]), (2, [0]), (0, [0])])
def test_no_videos_or_no_anchors_give_zero_losses_and_empty_gradients(ops, videos, cells):
    (offset, overlap), gradients = ops.proposal_loss(*case(videos, cells))
    assert (offset.item(), overlap.item()) == (0.0, 0.0)
    assert [x.shape for x in gradients[0]] == [(videos, 6, length) for length in cells]
    assert [x.shape for x in gradients[1]] == [(videos, 3, length) for length in cells]


def test_without_foreground_there_is_no_loss_of_offsets(ops):
    arguments = case(2, [4, 2], share=0.0)
    (offset, overlap), gradients = ops.proposal_loss(*arguments)
    assert offset == 0
    assert overlap > 0
    assert not any(x.any() for x in gradients[0])
    assert all(x.any() for x in gradients[1])


def test_the_gradients_of_both_losses_add_up(ops):
    arguments = case()
    _, first = ops.proposal_loss(*arguments, weights=(3.0, 0.0))
    _, second = ops.proposal_loss(*arguments, weights=(0.0, -2.0))
    _, both = ops.proposal_loss(*arguments, weights=(3.0, -2.0))
    assert_close([x + y for x, y in zip(tree_leaves(first), tree_leaves(second), strict=True)], both, rtol=0, atol=0)


def test_losses_are_single_precision_whatever_is_usual(ops, where_doubles_are_usual):
    arguments = case()
    expected = ops.proposal_loss(*arguments)
    actual = where_doubles_are_usual(ops.proposal_loss, *arguments)
    torch.testing.assert_close(tree_leaves(actual), tree_leaves(expected), rtol=0, atol=0)


def test_every_call_gives_the_same_bits(ops):
    arguments = case(3, [40, 20, 3])
    assert_close(ops.proposal_loss(*arguments), ops.proposal_loss(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("block", [4, 16, 64])
def test_gradients_do_not_depend_on_the_tiles_and_losses_only_by_rounding(ops, block):
    arguments = case(3, [40, 20, 3])
    losses, gradients = ops.proposal_loss(*arguments)
    with (
        overridden("proposal_loss", {"BLOCK_CELLS": block}),
        overridden("proposal_loss_mean", {"BLOCK": 2}),
        overridden("proposal_loss_backward", {"BLOCK": 4 * block}),
    ):
        tiled_losses, tiled_gradients = ops.proposal_loss(*arguments)
    assert_close(tiled_losses, losses, rtol=1e-6)
    assert_close(tiled_gradients, gradients, rtol=0, atol=0)
