import kernel_references as reference
import kernel_strategies as strategies
import pytest
import torch
from ahernet_kernels import BACKGROUND, FOREGROUND, IGNORED
from hypothesis import given
from hypothesis import strategies as st

THRESHOLDS_BELOW_THEIR_FP32 = [0.1, 0.2, 0.4, 0.6, 0.85]


@given(
    anchors=strategies.anchors(),
    truths=strategies.ground_truths(),
    foreground=strategies.thresholds,
    background=strategies.thresholds,
    force=st.booleans(),
)
def test_equals_the_reference_bit_for_bit(ops, anchors, truths, foreground, background, force):
    result = ops.assign(anchors, *truths, foreground, background, force)
    expected = reference.assign(anchors, *truths, foreground, background, force)
    for name, actual, wanted in zip(("kind", "labels", "targets", "tiou"), result, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@given(anchors=strategies.anchors(), truths=strategies.ground_truths(), force=st.booleans())
def test_rows_behind_those_of_the_last_video_change_nothing(ops, anchors, truths, force):
    segments, labels, offsets = truths
    more = torch.cat([segments, torch.tensor([[0.0, 1.0], [0.25, 0.5]])]), torch.cat([labels, torch.tensor([3, -7])])
    results = (ops.assign(anchors, *given, offsets, 0.5, 0.3, force) for given in ((segments, labels), more))
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@given(anchors=strategies.anchors(), truths=strategies.ground_truths(), force=st.booleans())
def test_rows_before_those_of_the_first_video_change_nothing(ops, anchors, truths, force):
    segments, labels, offsets = truths
    more = torch.cat([torch.tensor([[0.0, 1.0], [0.25, 0.5]]), segments]), torch.cat([torch.tensor([3, -7]), labels])
    actual = ops.assign(anchors, *more, offsets + 2, 0.5, 0.3, force)
    for left, right in zip(actual, ops.assign(anchors, *truths, 0.5, 0.3, force), strict=True):
        assert torch.equal(left, right)


def assign_one(ops, anchor, segment, **settings):
    return ops.assign(
        torch.tensor([anchor]), torch.tensor([segment]), torch.tensor([7]), torch.tensor([0, 1]), **settings
    )


@pytest.mark.parametrize(
    ("end", "foreground", "background", "kind"),
    [
        (0.5, 0.5, 0.25, IGNORED),  # tiou is 0.5: not over it
        (0.50000006, 0.5, 0.25, FOREGROUND),
        (0.25, 0.5, 0.25, IGNORED),  # tiou is 0.25: not below it
        (0.24999999, 0.5, 0.25, BACKGROUND),
    ],
)
def test_both_thresholds_are_strict(ops, end, foreground, background, kind):
    result = assign_one(ops, [0.5, 1.0], [0.0, end], foreground_threshold=foreground, background_threshold=background)
    assert result.kind.item() == kind
    assert result.labels.item() == 7


@pytest.mark.parametrize("threshold", THRESHOLDS_BELOW_THEIR_FP32)
def test_a_threshold_is_rounded_to_fp32_once(ops, threshold):
    """The tiou equals the fp32 of the threshold; against the fp64 threshold it would be foreground."""
    exact = torch.tensor(threshold)
    assert exact.item() > threshold
    assert (1 + exact) - exact == 1
    settings = {"foreground_threshold": threshold, "background_threshold": threshold}
    assert assign_one(ops, [0.5, 1.0], [0.0, exact.item()], **settings).kind.item() == IGNORED


def test_a_video_without_ground_truth_is_background(ops):
    result = ops.assign(torch.tensor([[0.5, 0.2]]), torch.empty((0, 2)).fill_(0), torch.tensor([], dtype=torch.int64),
                        torch.tensor([0, 0]))  # fmt: skip
    assert result.kind.item() == BACKGROUND
    assert result.labels.item() == -1
    assert (result.targets == 0).all()


def test_force_match_gives_every_overlapping_ground_truth_its_lowest_best_anchor(ops):
    anchors = torch.tensor([[0.2, 0.2], [0.2, 0.2], [0.8, 0.2]])
    segments = torch.tensor([[0.15, 0.25], [0.78, 0.82]])
    result = ops.assign(anchors, segments, torch.tensor([3, 4]), torch.tensor([0, 2]), force_match=True)
    assert result.kind.tolist() == [[FOREGROUND, IGNORED, FOREGROUND]]
    assert result.labels.tolist() == [[3, 3, 4]]


def test_a_contested_anchor_goes_to_the_higher_tiou_then_to_the_lower_row(ops):
    anchors = torch.tensor([[0.5, 0.5]])
    segments = torch.tensor([[0.25, 0.35], [0.3, 0.7], [0.3, 0.7]])
    result = ops.assign(anchors, segments, torch.tensor([1, 2, 3]), torch.tensor([0, 3]), force_match=True)
    assert result.labels.item() == 2
    torch.testing.assert_close(result.targets[0, 0], segments[1])


def test_a_ground_truth_that_overlaps_no_anchor_forces_nothing(ops):
    result = assign_one(ops, [0.2, 0.1], [0.8, 0.9], force_match=True)
    assert result.kind.item() == BACKGROUND


def test_force_match_over_several_tiles_of_anchors(ops):
    generator = torch.Generator().manual_seed(1)
    anchors = torch.rand((1500, 2), generator=generator)
    segments = torch.tensor([[0.1, 0.3], [0.42, 0.43]])
    arguments = (anchors, segments, torch.tensor([0, 1]), torch.tensor([0, 2]), 0.8, 0.3, True)
    for actual, wanted in zip(ops.assign(*arguments), reference.assign(*arguments), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)
