import math

import kernel_references as reference
import kernel_strategies as strategies
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

FORMS = ["nms", "nms_large", "nms_by_rank"]


def assert_equal_to_reference(ops, form, *arguments):
    index, count = getattr(ops, form)(*arguments)
    expected_index, expected_count = reference.nms(*arguments)
    assert count.tolist() == expected_count.tolist()
    assert index.tolist() == expected_index.tolist()


def random_candidates(videos, size, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand((videos, size), generator=generator)
    width = 0.05 + 0.1 * torch.rand((videos, size), generator=generator)
    scores = torch.rand((videos, size), generator=generator)
    labels = torch.randint(0, classes, (videos, size), generator=generator)
    return torch.stack([centre - width / 2, centre + width / 2], dim=-1), scores, labels


def staircase(size, step=0.1):
    """Each segment overlaps only the next: the longest possible chain of decisions."""
    start = torch.arange(size) * step
    return torch.stack([start, start + 1.0], dim=-1)[None], torch.arange(size, 0, -1).float()[None]


@pytest.mark.parametrize("form", FORMS)
@given(
    batch=strategies.candidates(),
    threshold=strategies.thresholds,
    outputs=st.integers(1, 45),
    min_score=st.sampled_from([-math.inf, 0.0, 0.3, math.inf]),
)
def test_equals_the_reference_bit_for_bit(ops, form, batch, threshold, outputs, min_score):
    assert_equal_to_reference(ops, form, *batch, threshold, outputs, min_score)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("class_aware", [True, False])
def test_equals_the_reference_on_overlapping_candidates(ops, form, threshold, class_aware):
    segments, scores, labels = random_candidates(2, 100)
    assert_equal_to_reference(ops, form, segments, scores, labels if class_aware else None, threshold, 100)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_a_staircase_is_decided_one_step_after_the_other(ops, form, threshold):
    segments, scores = staircase(90)
    assert_equal_to_reference(ops, form, segments, scores, None, threshold, 90)


@pytest.mark.parametrize("form", FORMS)
def test_ties_go_to_the_lowest_position_and_minus_zero_equals_zero(ops, form):
    segments = torch.tensor([[[0.0, 1.0]] * 4])
    index, count = getattr(ops, form)(segments, torch.tensor([[-0.0, 0.0, -0.0, 0.0]]), None, 0.5, 4)
    assert index.tolist() == [[0, -1, -1, -1]]
    assert count.tolist() == [1]


@pytest.mark.parametrize("form", FORMS)
def test_suppression_is_strict(ops, form):
    segments = torch.tensor([[[0.0, 1.0], [0.0, 0.5]]])
    scores = torch.tensor([[1.0, 0.5]])
    assert getattr(ops, form)(segments, scores, None, 0.5, 2)[1].item() == 2
    assert getattr(ops, form)(segments, scores, None, 0.49, 2)[1].item() == 1


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_a_candidate_is_neither_kept_nor_suppresses(ops, form):
    segments = torch.tensor([[[0.0, 1.0], [0.0, 1.0], [math.nan, 1.0], [0.0, math.inf], [0.0, 1.0]]])
    scores = torch.tensor([[math.nan, -math.inf, 9.0, 9.0, 0.1]])
    index, count = getattr(ops, form)(segments, scores, None, 0.5, 5)
    assert index.tolist() == [[4, -1, -1, -1, -1]]
    assert count.tolist() == [1]


@pytest.mark.parametrize("form", FORMS)
def test_infinite_scores_rank_first(ops, form):
    segments = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    index, _ = getattr(ops, form)(segments, torch.tensor([[1.0, math.inf]]), None, 0.5, 2)
    assert index.tolist() == [[1, 0]]


@pytest.mark.parametrize("form", FORMS)
def test_an_early_stop_keeps_the_first_of_the_full_run(ops, form):
    segments, scores, labels = random_candidates(3, 70, seed=2)
    full, _ = getattr(ops, form)(segments, scores, labels, 0.5, 70)
    first, count = getattr(ops, form)(segments, scores, labels, 0.5, 5)
    assert torch.equal(first, full[:, :5])
    assert count.tolist() == [5, 5, 5]


@pytest.mark.parametrize("size", [1, 31, 32, 33, 63, 64, 65])
@pytest.mark.parametrize("form", FORMS)
def test_sizes_around_the_blocks_of_rows(ops, form, size):
    segments, scores, labels = random_candidates(1, size, seed=size)
    assert_equal_to_reference(ops, form, segments, scores, labels, 0.3, size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_candidates(ops, dtype):
    segments, scores, labels = random_candidates(2, 40, seed=3)
    assert_equal_to_reference(ops, "nms", segments.to(dtype), scores.to(dtype), labels, 0.5, 40)


@pytest.mark.slow
def test_the_anchors_of_one_network(ops):
    segments, scores, labels = random_candidates(1, 765, seed=4, classes=2)
    assert_equal_to_reference(ops, "nms", segments, scores, labels, 0.5, 100)


@example(groups=[0, 2**31 - 1], threshold=0.5)
@given(groups=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=2), threshold=strategies.thresholds)
def test_labels_over_the_whole_range_of_int32(ops, groups, threshold):
    segments, scores, labels = random_candidates(2, 32, seed=5, classes=2)
    labels = torch.tensor(groups)[labels]
    assert_equal_to_reference(ops, "nms", segments, scores, labels, threshold, 32)
