"""The references of the campaign hold for thousands of cases what the slow ones say of one."""

import kernel_references as slow
import kernel_references_batched as batched
import kernel_references_in_fp64 as exact
import loss_references_in_fp64 as losses
import numpy as np
import pytest
import torch
from kernel_campaign_draws import Draws
from soft_nms_replay import wrong_videos

CALLS, VIDEOS = 40, 25


@pytest.fixture(params=range(CALLS))
def draws(request):
    return Draws(np.random.default_rng([1, request.param]))


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def assert_same(actual, expected):
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def candidates(draws):
    size = draws.between(0, 9)
    rows = draws.segments((VIDEOS, size)) if size else np.zeros((VIDEOS, 0, 2), np.float32)
    labels = tensor(draws.labels((VIDEOS, size))) if draws.chance(0.5) else None
    return tensor(rows), tensor(draws.scores((VIDEOS, size))), labels


def test_pairwise_tiou(draws):
    a, b = tensor(draws.segments((VIDEOS,))), tensor(draws.segments((draws.between(0, 9),)))
    assert_same([batched.pairwise_tiou(a, b)], [slow.pairwise_tiou(a, b)])


@pytest.mark.parametrize("force", [False, True])
def test_assign_and_so_match(draws, force):
    offsets = draws.offsets(VIDEOS, 4)
    truths, labels = tensor(draws.segments((int(offsets[-1]),))), torch.arange(int(offsets[-1]))
    thresholds = draws.one_of(0.0, 1 / 3, 0.5, 0.8), draws.one_of(0.0, 0.25, 0.3)
    arguments = (tensor(draws.anchors(draws.between(0, 6))), truths, labels, tensor(offsets), *thresholds, force)
    assert_same(batched.assign(*arguments), slow.assign(*arguments))


def test_nms(draws):
    arguments = (
        *candidates(draws),
        draws.one_of(0.0, 1 / 3, 0.5, 1.0),
        draws.between(1, 9),
        draws.one_of(-np.inf, 0.1),
    )
    assert_same(batched.nms(*arguments), slow.nms(*arguments))


def test_linear_soft_nms(draws):
    rows, settings = candidates(draws), (draws.one_of(0.0, 1 / 3, 0.5), draws.between(1, 9), draws.one_of(-np.inf, 0.1))
    with np.errstate(invalid="ignore"):
        expected = slow.soft_nms(*rows, "linear", *settings)
    assert_same(batched.soft_nms_linear(*rows, *settings), expected)


@pytest.mark.parametrize("sigma", [0.01, 0.5])
def test_replayed_soft_nms_takes_the_slow_one_for_right_and_another_order_for_wrong(draws, sigma):
    segments, scores, labels = candidates(draws)
    scores = scores.clamp(max=3e38)
    index, kept, count = slow.soft_nms(segments, scores, labels, "gaussian", sigma, 9, -1.0)
    assert not wrong_videos(segments, scores, labels, sigma, -1.0, (index, kept, count)).any()
    two = count >= 2
    if two.any():
        swapped, swapped_scores = index.clone(), kept.clone()
        swapped[two, :2], swapped_scores[two, :2] = index[two, :2].flip(1), kept[two, :2].flip(1)
        clear = two & (kept[:, 0] > kept[:, 1] * 1.1) & (kept[:, 0] > 1e-30)
        wrong = wrong_videos(segments, scores, labels, sigma, -1.0, (swapped, swapped_scores, count))
        assert wrong[clear.numpy()].all()


def test_pick(draws):
    segments, scores, _ = candidates(draws)
    labels, size = tensor(draws.labels(scores.shape)), scores.shape[1]
    index = tensor(draws.random.integers(-1, max(size, 1), (VIDEOS, 5))) if size else torch.full((VIDEOS, 5), -1)
    assert_same(batched.pick(segments, scores, labels, index), slow.pick(segments, scores, labels, index))


def test_decode(draws):
    special = np.array([np.nan, np.inf, -np.inf, 1e4, -1e4], np.float32)
    values = tensor(draws.with_special(draws.normal((3 * VIDEOS, 4 + 4 + 2)), special))
    logits, offsets, overlaps = (x.reshape(3, VIDEOS, -1).transpose(1, 2) for x in values.split([4, 4, 2], dim=1))
    anchors = torch.rand((2 * VIDEOS, 2))
    expected_segments, expected_scores, expected_labels = slow.decode([logits], [offsets], [overlaps], anchors, 0.5)
    best, labels = exact.best_class(values[:, :4].double().numpy())
    assert labels.repeat(2).tolist() == expected_labels.flatten().tolist()
    moved = offsets.transpose(1, 2).reshape(3, -1, 2).double().numpy()
    of_anchors = anchors.double().numpy()
    ends = exact.decoded(of_anchors[:, 0], of_anchors[:, 1], moved[..., 0], moved[..., 1], (0.5, 1.0))
    for side, end in enumerate(ends):
        assert (np.abs(expected_segments[..., side].numpy() - end.value) <= end.bound + 1e-7).all()
    scores = best.value.repeat(2) * exact.sigmoid(overlaps.transpose(1, 2).double().numpy().ravel()).value
    inside = expected_scores.flatten().numpy() > -np.inf
    np.testing.assert_allclose(scores[inside], expected_scores.flatten().numpy()[inside], rtol=1e-6, atol=1e-30)


def test_classify_and_its_loss(draws):
    features, weights, biases = (tensor(draws.normal(shape)) for shape in ((2, 3, VIDEOS), (4, 3), (4,)))
    labels = tensor(draws.random.integers(-1, 5, (2, VIDEOS)))
    rows = features.transpose(1, 2).flatten(0, 1).double().numpy()
    of_classes = weights.double().numpy(), biases.double().numpy()
    best, found = exact.best_class(exact.class_logits(rows, *of_classes).value)
    probability, expected = slow.classify([features], [weights], [biases])
    assert found.tolist() == expected.flatten().tolist()
    np.testing.assert_allclose(best.value, probability.flatten(), rtol=1e-6)
    loss, gradients = slow.classification_loss_and_gradients([features], [weights], [biases], labels)
    labelled = ((labels >= 0) & (labels < 4)).flatten().numpy()
    ours = losses.class_loss(rows[labelled], *of_classes, labels.flatten().numpy()[labelled])
    np.testing.assert_allclose(ours.total.value / labelled.sum(), loss, rtol=1e-6)
    of_cells = gradients[0].transpose(1, 2).flatten(0, 1)[torch.from_numpy(labelled)]
    for near, expected in zip((ours.features, ours.weights, ours.biases), (of_cells, *gradients[1:]), strict=True):
        np.testing.assert_allclose(near.value / labelled.sum(), expected, rtol=1e-5, atol=1e-7)


def test_proposal_loss(draws):
    offsets, overlaps = tensor(draws.normal((2, 2, VIDEOS))), tensor(draws.normal((2, 1, VIDEOS)))
    offsets.requires_grad_()
    overlaps.requires_grad_()
    anchors, targets, tiou = torch.rand((VIDEOS, 2)), torch.rand((2, VIDEOS, 2)), torch.rand((2, VIDEOS))
    kind = tensor(draws.random.integers(-1, 2, (2, VIDEOS)))
    kind[0, 0] = 1
    means = slow.proposal_loss([offsets], [overlaps], anchors, kind, targets, tiou, 0.5, 0.2)
    of_offsets, of_overlaps = torch.autograd.grad(sum(means), [offsets, overlaps])
    ours = losses.proposal_loss(
        offsets.detach().transpose(1, 2).double().numpy(),
        overlaps.detach()[:, 0].double().numpy(),
        anchors.double().numpy()[None],
        targets.double().numpy(),
        tiou.double().numpy(),
        (0.5, 0.2),
    )
    foreground = (kind == 1).numpy()
    np.testing.assert_allclose(ours.offset.value[foreground].mean(), means[0].item(), rtol=1e-5)
    np.testing.assert_allclose(ours.overlap.value.mean(), means[1].item(), rtol=1e-5)
    for channel, near in enumerate((ours.centre_gradient, ours.width_gradient)):
        expected = np.where(foreground, near.value, 0) / foreground.sum()
        np.testing.assert_allclose(of_offsets[:, channel], expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(of_overlaps[:, 0], ours.overlap_gradient.value / kind.numel(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 16])
def test_shares_are_those_of_the_mean_over_many_points_of_a_step(steps):
    for rows in range(1, 15):
        shares = exact.shares(np.arange(steps), np.full(steps, steps), np.full(steps, rows), rows)
        expected = slow.resample(torch.eye(rows), torch.tensor([0, rows]), steps, samples=512)
        np.testing.assert_allclose(shares, expected[0], atol=5e-4)
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-14)


def test_a_row_that_only_touches_a_step_has_no_share():
    assert exact.shares(np.array([0]), np.array([2]), np.array([3]), 3)[0].tolist() == [2 / 3, 1 / 3, 0.0]


def test_what_weighs_nothing_is_not_summed():
    total = exact.weighted_sum(np.array([[0.5, 0.5, 0.0]]), np.array([[[1.0], [2.0], [np.nan]]]))
    assert total.value.tolist() == [[1.5]]
    assert 0 < total.bound.item() < 1e-5
