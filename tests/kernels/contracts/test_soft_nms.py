import math

import kernel_references as reference
import kernel_strategies as strategies
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


@given(batch=strategies.candidates(), threshold=strategies.thresholds, outputs=st.integers(1, 45))
def test_linear_equals_the_reference_bit_for_bit(ops, batch, threshold, outputs):
    index, scores, count = ops.soft_nms(*batch, "linear", threshold, outputs)
    expected_index, expected_scores, expected_count = reference.soft_nms(*batch, "linear", threshold, outputs)
    assert count.tolist() == expected_count.tolist()
    assert index.tolist() == expected_index.tolist()
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=0)


def spread_scores(videos, size):
    """Scores with wide gaps, so that the rounding of an exponential changes no order."""
    generator = torch.Generator().manual_seed(videos)
    scores = 0.97 ** torch.arange(size).float()
    return torch.stack([scores[torch.randperm(size, generator=generator)] for _ in range(videos)])


@pytest.mark.parametrize("sigma", [0.3, 0.5, 2.0])
@pytest.mark.parametrize("class_aware", [True, False])
def test_gaussian_equals_the_reference(ops, sigma, class_aware):
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand((2, 70), generator=generator)
    segments = torch.stack([centre - 0.05, centre + 0.05], dim=-1)
    labels = torch.randint(0, 2, (2, 70), generator=generator) if class_aware else None
    arguments = (segments, spread_scores(2, 70), labels, "gaussian", sigma, 40, 0.001)
    index, scores, count = ops.soft_nms(*arguments)
    expected_index, expected_scores, expected_count = reference.soft_nms(*arguments)
    assert count.tolist() == expected_count.tolist()
    assert index.tolist() == expected_index.tolist()
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-7)


def test_a_candidate_that_decays_to_the_minimum_is_out(ops):
    segments = torch.tensor([[[0.0, 1.0], [0.0, 1.0], [2.0, 3.0]]])
    index, scores, count = ops.soft_nms(segments, torch.tensor([[0.9, 0.8, 0.1]]), None, "linear", 0.5, 3, 0.05)
    assert index.tolist() == [[0, 2, -1]]
    assert count.item() == 2
    assert scores[0].tolist() == pytest.approx([0.9, 0.1, 0.0])


def test_linear_decay_starts_strictly_above_the_threshold(ops):
    segments = torch.tensor([[[0.0, 1.0], [0.0, 0.5]]])
    scores = torch.tensor([[1.0, 0.5]])
    assert ops.soft_nms(segments, scores, None, "linear", 0.5, 2)[1].tolist() == [[1.0, 0.5]]
    assert ops.soft_nms(segments, scores, None, "linear", 0.49, 2)[1].tolist() == [[1.0, 0.25]]


def test_other_classes_do_not_decay(ops):
    segments = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    _, scores, _ = ops.soft_nms(segments, torch.tensor([[0.9, 0.8]]), torch.tensor([[0, 1]]), "gaussian", 0.5, 2)
    assert scores[0].tolist() == pytest.approx([0.9, 0.8])


def test_what_is_not_a_candidate_is_never_picked(ops):
    segments = torch.tensor([[[0.0, 1.0], [math.nan, 1.0], [0.0, 1.0]]])
    index, _, count = ops.soft_nms(segments, torch.tensor([[math.nan, 1.0, 0.5]]), None, "linear", 0.5, 3)
    assert index.tolist() == [[2, -1, -1]]
    assert count.item() == 1
