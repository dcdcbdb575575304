import kernel_references as reference
import kernel_strategies as strategies
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


@given(a=st.integers(0, 20).flatmap(strategies.segments), b=st.integers(0, 20).flatmap(strategies.segments))
def test_equals_the_reference_bit_for_bit(ops, a, b):
    torch.testing.assert_close(ops.pairwise_tiou(a, b), reference.pairwise_tiou(a, b), rtol=0, atol=0)


@given(a=st.integers(0, 20).flatmap(strategies.segments))
def test_nothing_that_is_not_a_number_spreads(ops, a):
    tiou = ops.pairwise_tiou(a, a)
    assert ((tiou >= 0) & (tiou <= 1)).all()


def test_several_tiles_are_covered(ops):
    start = torch.rand(300, generator=torch.Generator().manual_seed(0))
    a = torch.stack([start, start + 0.1], dim=1)
    torch.testing.assert_close(ops.pairwise_tiou(a, a[:33]), reference.pairwise_tiou(a, a[:33]), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(ops, dtype):
    a = torch.tensor([[0.1, 0.7], [0.2, 0.9]]).to(dtype)
    tiou = ops.pairwise_tiou(a, a)
    assert tiou.dtype == torch.float32
    torch.testing.assert_close(tiou, reference.pairwise_tiou(a, a), rtol=0, atol=0)


def test_a_segment_without_length_overlaps_nothing_even_itself(ops):
    a = torch.tensor([[0.5, 0.5], [0.7, 0.2]])
    b = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.7, 0.2]])
    assert (ops.pairwise_tiou(a, b) == 0).all()
