"""Behaviours that a broken copy of the kernels (tests/mutations.py) showed to be pinned by no other test."""

import sys

import kernel_references as reference
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

FORMS = ["nms", "nms_large", "nms_by_rank"]


@pytest.fixture
def small_cpu_blocks(monkeypatch):
    """The CPU paths work in blocks; here a few candidates already span several."""
    modules = {name: sys.modules[f"ahernet_kernels.{name}"] for name in ("_assign_numpy", "_nms_numpy", "match")}
    monkeypatch.setattr(modules["_nms_numpy"], "FIRST_WAVE", 4)
    monkeypatch.setattr(modules["_nms_numpy"], "CHUNK_PAIRS", 7)
    monkeypatch.setattr(modules["match"], "CPU_BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(modules["_assign_numpy"], "CPU_BLOCK_ELEMENTS", 64)


def random_segments(*shape, seed=0, longest=0.5):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(shape, generator=generator)
    return torch.stack([start, start + longest * torch.rand(shape, generator=generator)], dim=-1)


def assert_identical(actual, expected):
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


# decode


def test_class_ties_go_to_the_lowest_class_also_between_tiles_of_classes(ops):
    logits = torch.zeros((1, 150, 1))
    logits[0, [70, 134], 0] = 5.0
    _, _, labels = ops.decode([logits], [torch.zeros((1, 2, 1))], [torch.zeros((1, 1, 1))], torch.tensor([[0.5, 0.5]]))
    assert labels.item() == 70


# pairwise_tiou, and the segments that all ops share


@pytest.mark.parametrize(("n", "m"), [(17, 129), (33, 300), (16, 128)])
def test_a_last_tile_that_is_not_full_is_covered(ops, n, m):
    a, b = random_segments(n, seed=1), random_segments(m, seed=2)
    torch.testing.assert_close(ops.pairwise_tiou(a, b), reference.pairwise_tiou(a, b), rtol=0, atol=0)


def test_a_union_beyond_fp32_gives_zero(ops):
    everything = torch.tensor([[-3e38, 3e38]])
    assert ops.pairwise_tiou(everything, everything).item() == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", [[0.5, 0.4], [0.5, 0.0], [9.0, 0.0]])
def test_an_inverted_segment_has_length_zero_and_suppresses_nothing(ops, form, first):
    """With a negative length the union could fall below zero, and no intersection would be more than that."""
    segments = torch.tensor([[first, [0.1, 0.2], [0.45, 0.5]]])
    _, count = getattr(ops, form)(segments, torch.tensor([[3.0, 2.0, 1.0]]), None, 0.5, 3)
    assert count.tolist() == [3]


# match and assign


@pytest.mark.usefixtures("small_cpu_blocks")
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=6), force=st.booleans())
def test_assignment_does_not_depend_on_how_videos_are_grouped(ops, counts, force):
    offsets = torch.from_numpy(np.cumsum([0, *counts]))
    segments = random_segments(int(offsets[-1]), seed=len(counts))
    anchors = torch.stack([torch.linspace(0, 1, 20), torch.linspace(0.1, 0.6, 20)], dim=1)
    labels = torch.arange(len(segments))
    assert_identical(ops.match(anchors, segments, offsets), reference.match(anchors, segments, offsets))
    arguments = (anchors, segments, labels, offsets, 0.5, 0.3, force)
    assert_identical(ops.assign(*arguments), reference.assign(*arguments))


def assign_one(ops, anchor, segment, foreground, background):
    arguments = (torch.tensor([anchor]), torch.tensor([segment]), torch.tensor([7]), torch.tensor([0, 1]))
    return ops.assign(*arguments, foreground, background).kind.item()


@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_the_background_threshold_is_rounded_to_fp32_once(ops, threshold):
    """The tiou equals the fp32 of the threshold; against the fp64 threshold it would be background."""
    exact = torch.tensor(threshold)
    assert exact.item() < threshold
    assert (1 + exact) - exact == 1
    assert assign_one(ops, [0.5, 1.0], [0.0, exact.item()], 1.0, threshold) == -1


def test_thresholds_are_decided_by_a_product_not_by_a_quotient(ops):
    """The quotient of these two, rounded, is above 0.8; the intersection is not above 0.8 * union."""
    length, end = np.float32(0.2), np.float32(0.16000001)
    assert end / length > np.float32(0.8)
    assert not end > np.float32(0.8) * length
    assert assign_one(ops, [0.1, 0.2], [0.0, float(end)], 0.8, 0.3) == -1


def test_a_forced_anchor_reports_the_ground_truth_that_forces_it(ops):
    """Anchor 0 is closest to the second ground truth, whose own best is anchor 1; the first one forces anchor 0."""
    anchors = torch.tensor([[0.5, 0.4], [0.51, 0.42]])
    segments = torch.tensor([[0.28, 0.6], [0.3, 0.72]])
    arguments = (anchors, segments, torch.tensor([4, 5]), torch.tensor([0, 2]), 0.8, 0.3)
    assert ops.assign(*arguments).labels.tolist() == [[5, 5]]
    forced = ops.assign(*arguments, True)
    assert forced.labels.tolist() == [[4, 5]]
    assert forced.tiou[0, 0].item() == pytest.approx(0.3 / 0.42, rel=1e-5)
    assert_identical(forced, reference.assign(*arguments, True))


def test_the_best_anchor_is_the_lowest_also_between_tiles_of_anchors(ops):
    anchors = torch.tensor([[0.9, 0.1]]).repeat(1100, 1)
    anchors[[5, 1030]] = torch.tensor([0.3, 0.2])
    result = ops.assign(anchors, torch.tensor([[0.28, 0.3]]), torch.tensor([0]), torch.tensor([0, 1]), force_match=True)
    assert (result.kind[0] == 1).nonzero().flatten().tolist() == [5]


def test_a_distance_beyond_fp32_does_not_hide_what_is_near(ops):
    """Between the far anchor and the ground truth lies more than fp32 holds, which makes their quotient NaN."""
    anchors = torch.tensor([[3e38, 2e37], [-3e38, 2e37]])
    arguments = (anchors, torch.tensor([[-3.05e38, -2.95e38]]), torch.tensor([0]), torch.tensor([0, 1]))
    assert ops.match(anchors, arguments[1], arguments[3])[0].tolist() == [[-1, 0]]
    assert ops.assign(*arguments, force_match=True).kind.tolist() == [[0, 1]]


def test_more_ground_truths_than_a_byte_counts(ops):
    """The closest one of 300 is the 290th, beside copies behind it."""
    segments = torch.tensor([[0.8, 0.9]]).repeat(300, 1)
    segments[289:] = torch.tensor([0.1, 0.2])
    index, _ = ops.match(torch.tensor([[0.15, 0.1]]), segments, torch.tensor([0, 300]))
    assert index.tolist() == [[289]]


def test_no_anchors_force_nothing(ops):
    result = ops.assign(
        torch.zeros((0, 2)), torch.tensor([[0.1, 0.2]]), torch.tensor([0]), torch.tensor([0, 1]), force_match=True
    )
    assert [tuple(x.shape) for x in result] == [(1, 0), (1, 0), (1, 0, 2), (1, 0)]


# nms and soft_nms


@pytest.mark.parametrize("form", FORMS)
def test_labels_that_agree_in_their_low_bits_are_different(ops, form):
    segments = torch.tensor([[[0.0, 1.0]] * 3])
    labels = torch.tensor([[1, 1 + 2**16, 1]])
    index, _ = getattr(ops, form)(segments, torch.tensor([[3.0, 2.0, 1.0]]), labels, 0.5, 3)
    assert index.tolist() == [[0, 1, -1]]


def test_many_classes_do_not_mix_the_videos(ops):
    """Three videos of 2^31 classes are more groups than a key has room for, unless they are numbered anew."""
    segments = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]).repeat(3, 1, 1)
    labels = torch.tensor([[0, 2**31 - 1]]).repeat(3, 1)
    assert ops.nms(segments, torch.rand(3, 2), labels, 0.5, 2)[1].tolist() == [2, 2, 2]


@pytest.mark.parametrize("form", FORMS)
def test_labels_far_apart_are_told_apart(ops, form):
    """Class and start then fill a key of 64 bits, which leaves no room for a place."""
    starts = torch.tensor([0.5, 0.1, 0.5, 0.1])
    segments = torch.stack([starts, starts + 0.2], dim=-1)[None]
    labels = torch.tensor([[2**30, 2**30, 0, 2**30]])
    index, _ = getattr(ops, form)(segments, torch.tensor([[4.0, 3.0, 2.0, 1.0]]), labels, 0.5, 4)
    assert index.tolist() == [[0, 1, 2, -1]]


@pytest.mark.parametrize("form", FORMS)
def test_an_overlap_within_the_rounding_of_a_length_counts(ops, form):
    """The start and the rounded length of the first segment lead to 0, behind which the second one starts."""
    start, end = np.float32(-1000.3), np.float32(3e-5)
    assert start + (end - start) == 0
    segments = torch.tensor([[[start.item(), end.item()], [1e-5, 1.0]]])
    assert getattr(ops, form)(segments, torch.tensor([[2.0, 1.0]]), None, 0.0, 2)[1].item() == 1


def farthest_start(threshold, end):
    """The lowest start of a segment to `end` that is over the threshold with [0, end], about end / threshold away."""
    end, threshold = np.float32(end), np.float32(threshold)
    start = (end - end / threshold) * np.float32(1 + 4e-6)
    while not end > threshold * (end - start + end - end):
        start = np.nextafter(start, np.float32(0))
    return start.item()


def assert_suppressed_from_afar(ops, form, threshold, start, end, longer):
    """[start, end] suppresses [0, end], though empty segments before and between them fill tiles and waves."""
    before = [[4 * start, 2 * start if longer else 4 * start], *[[2 * start] * 2] * 30]
    between = [[-end * part / 64] * 2 for part in range(1, 33)]
    segments = torch.tensor([[[start, end], *before, *between, [0.0, end]]])
    scores = torch.arange(65, 0, -1).float()[None]
    assert getattr(ops, form)(segments, scores, None, threshold, 65)[0].tolist() == [[*range(64), -1]]


@pytest.mark.usefixtures("small_cpu_blocks")
@pytest.mark.parametrize("form", FORMS)
@example(threshold=0.001098203589208424, end=0.4838097393512726, longer=False)
@example(threshold=0.0010045344772632145, end=4.697935104370117, longer=True)
@given(
    threshold=st.floats(-7, -0.5).map(lambda exponent: 10**exponent),
    end=st.floats(0.125, 1000, width=32),
    longer=st.booleans(),
)
def test_at_a_low_threshold_what_starts_many_lengths_before_suppresses(ops, form, threshold, end, longer):
    assert_suppressed_from_afar(ops, form, threshold, farthest_start(threshold, end), end, longer)


@pytest.mark.usefixtures("small_cpu_blocks")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threshold", [0.0, 1e-40, 1e-36])
def test_at_no_threshold_to_speak_of_any_distance_is_in_reach(ops, form, threshold):
    assert_suppressed_from_afar(ops, form, threshold, -8e37, 4096.0, True)


@pytest.mark.usefixtures("small_cpu_blocks")
@given(
    seed=st.integers(0, 99),
    size=st.integers(20, 60),
    threshold=st.sampled_from([0.0, 0.05, 0.2, 0.4, 0.6, 0.9]),
    outputs=st.sampled_from([3, 60]),
    longest=st.sampled_from([0.05, 0.5, 5.0]),
)
def test_nms_does_not_depend_on_how_candidates_are_grouped(ops, seed, size, threshold, outputs, longest):
    segments = random_segments(2, size, seed=seed, longest=longest)
    scores = torch.rand((2, size), generator=torch.Generator().manual_seed(seed + 100))
    labels = (torch.arange(2 * size) % 3 == 0).long().reshape(2, size)
    arguments = (segments, scores, labels, threshold, outputs)
    assert_identical(ops.nms(*arguments), reference.nms(*arguments))


@pytest.mark.parametrize("apart", [0, 1500])
def test_many_duplicates_are_not_compared_with_each_other(ops, monkeypatch, apart):
    """They follow on so many others that do not overlap, so that a wave of many is under way."""
    if ops.name != "cpu":
        pytest.skip("waves are of the CPU form")
    module = sys.modules["ahernet_kernels._nms_numpy"]
    compared, pairs = [], module._pairs

    def counted(first, last):
        compared.append(np.maximum(last - first, 0).sum())
        return pairs(first, last)

    monkeypatch.setattr(module, "_pairs", counted)
    start = torch.arange(4000.0).clamp(max=apart) * 2
    segments, scores = torch.stack([start, start + 1], dim=-1)[None], torch.arange(4000, 0, -1).float()[None]
    index, count = ops.nms(segments, scores, None, 0.9, 4000)
    assert count.item() == apart + 1
    assert index[0, : apart + 1].tolist() == list(range(apart + 1))
    assert sum(compared) < 2 * module.FIRST_WAVE * 4000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.4, 0.6, 0.85])
@pytest.mark.parametrize("place", [1, 40])
def test_a_suppression_threshold_is_rounded_to_fp32_once(ops, form, threshold, place):
    """The tiou equals the fp32 of the threshold; against the fp64 threshold it would suppress."""
    exact = torch.tensor(threshold)
    assert exact.item() > threshold
    assert (1 + exact) - exact == 1
    start = 10.0 + 2.0 * torch.arange(place + 1)
    segments = torch.stack([start, start + 1], dim=-1)[None]
    segments[0, 0], segments[0, place] = torch.tensor([0.0, 1.0]), torch.tensor([0.0, exact.item()])
    scores = torch.arange(place + 1, 0, -1).float()[None]
    assert getattr(ops, form)(segments, scores, None, threshold, place + 1)[1].item() == place + 1


@pytest.mark.parametrize("form", FORMS)
def test_what_begins_a_thousand_lengths_earlier_is_reached_in_spite_of_its_rounding(ops, form):
    segments = torch.tensor([[[0.3260851800441742, 1.0984772443771362], [-771.2935180664062, 1.0984772443771362]]])
    arguments = (segments, torch.tensor([[1.0, 0.5]]), None, 0.001, 2)
    assert getattr(ops, form)(*arguments)[0].tolist() == reference.nms(*arguments)[0].tolist() == [[0, -1]]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_over_a_threshold_of_one(ops, form):
    segments = torch.tensor([[[0.0, 1.0]] * 5 + [[-3e38, 3e38]] * 2 + [[0.1, 0.3]] * 3])
    assert getattr(ops, form)(segments, torch.ones(1, 10), None, 1.0, 10)[1].item() == 10


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.4, 0.6, 0.85])
def test_a_threshold_of_linear_decay_is_rounded_to_fp32_once(ops, threshold):
    segments = torch.tensor([[[0.0, 1.0], [0.0, torch.tensor(threshold).item()]]])
    scores = ops.soft_nms(segments, torch.tensor([[1.0, 0.5]]), None, "linear", threshold, 2)[1]
    assert scores.tolist() == [[1.0, 0.5]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("min_score", [-0.0, 0.1, 0.7])
def test_a_score_must_be_above_the_fp32_of_the_minimum(ops, form, min_score):
    """At the minimum is not above it, whichever way rounding moved the minimum; -0.0 is 0.0."""
    segments = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    scores = torch.tensor([[min_score + 0.0, min_score + 0.01]])
    assert getattr(ops, form)(segments, scores, None, 0.5, 2, min_score)[0].tolist() == [[1, -1]]
    assert ops.soft_nms(segments, scores, None, "linear", 0.5, 2, min_score)[0].tolist() == [[1, -1]]


@pytest.mark.parametrize("segment", [[0.0, float("nan")], [float("nan"), 1.0], [-float("inf"), 1.0]])
def test_a_segment_that_is_not_finite_is_never_picked(ops, segment):
    segments = torch.tensor([[segment, [0.0, 1.0]]])
    assert ops.soft_nms(segments, torch.tensor([[2.0, 1.0]]), None, "gaussian", 0.5, 2)[0].tolist() == [[1, -1]]


# resample


@pytest.mark.parametrize("steps", [9, 20])
def test_a_last_tile_of_steps_that_is_not_full_is_written(ops, steps):
    features = torch.randn((30, 2), generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 12, 30])
    expected = reference.resample(features, offsets, steps, samples=512)
    torch.testing.assert_close(ops.resample(features, offsets, steps), expected, rtol=0, atol=5e-4)


def test_the_gradient_of_more_channels_than_one_tile(ops):
    gradient = torch.randn((1, 4, 300), generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 5])
    identity = ops.resample(torch.eye(5), offsets, 4)[0]
    actual = ops.resample_backward(gradient, offsets, 5)
    torch.testing.assert_close(actual, identity.T @ gradient[0], rtol=1e-4, atol=1e-5)
