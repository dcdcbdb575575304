import kernel_references as reference
import kernel_strategies as strategies
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


def assert_equal(actual, expected):
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


@given(data=st.data(), candidates=strategies.candidates(most=12), outputs=st.integers(0, 9))
def test_equals_the_reference_on_adversarial_rows(ops, data, candidates, outputs):
    segments, scores, labels = candidates
    labels = torch.zeros(scores.shape, dtype=torch.int64) if labels is None else labels
    videos, size = scores.shape
    flat = [data.draw(st.integers(-1, size - 1)) for _ in range(videos * outputs)]
    index = torch.tensor(flat, dtype=torch.int64).reshape(videos, outputs)
    arguments = (segments, scores, labels, index)
    assert_equal(ops.pick(*arguments), reference.pick(*arguments))


@pytest.mark.parametrize("outputs", [1, 85, 256, 300])
def test_rows_of_several_videos_in_one_tile_and_of_one_in_several(ops, outputs):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand((3, 40), generator=generator)
    segments, labels = torch.rand((3, 40, 2), generator=generator), torch.arange(120).reshape(3, 40)
    index = torch.randint(-1, 40, (3, outputs), generator=generator)
    arguments = (segments, scores, labels, index)
    assert_equal(ops.pick(*arguments), reference.pick(*arguments))


def test_no_position_is_zeros_and_label_minus_one_also_without_candidates(ops):
    for size in (0, 2):
        arguments = (torch.ones((2, size, 2)), torch.ones((2, size)), torch.ones((2, size), dtype=torch.int64))
        segments, scores, labels = ops.pick(*arguments, torch.full((2, 3), -1))
        assert not segments.any()
        assert not scores.any()
        assert (labels == -1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_returned_in_fp32(ops, dtype):
    segments, scores = torch.rand((1, 4, 2)).to(dtype), torch.rand((1, 4)).to(dtype)
    index = torch.tensor([[3, -1, 0]])
    picked, kept, _ = ops.pick(segments, scores, torch.arange(4)[None], index)
    assert picked.dtype == kept.dtype == torch.float32
    assert_equal((picked[0, 0], kept[0, 2]), (segments[0, 3].float(), scores[0, 0].float()))


def test_it_gives_the_detections_that_nms_kept(ops):
    segments = torch.tensor([[[0.0, 0.5], [0.0, 0.49], [0.6, 0.8]]])
    scores, labels = torch.tensor([[0.7, 0.8, 0.9]]), torch.tensor([[4, 4, 5]])
    index, count = ops.nms(segments, scores, labels, 0.5, 3)
    picked, kept, classes = ops.pick(segments, scores, labels, index)
    assert count.tolist() == [2]
    assert_equal((picked[0],), (torch.tensor([[0.6, 0.8], [0.0, 0.49], [0.0, 0.0]]),))
    assert_equal((kept[0], classes[0]), (torch.tensor([0.9, 0.8, 0.0]), torch.tensor([5, 4, -1])))
