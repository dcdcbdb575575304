import kernel_references as reference
import kernel_strategies as strategies
import torch
from hypothesis import given


@given(anchors=strategies.anchors(), truths=strategies.ground_truths())
def test_equals_the_reference_bit_for_bit(ops, anchors, truths):
    segments, _, offsets = truths
    index, tiou = ops.match(anchors, segments, offsets)
    expected_index, expected_tiou = reference.match(anchors, segments, offsets)
    torch.testing.assert_close(tiou, expected_tiou, rtol=0, atol=0)
    assert torch.equal(index, expected_index)


@given(anchors=strategies.anchors(), truths=strategies.ground_truths())
def test_rows_behind_those_of_the_last_video_change_nothing(ops, anchors, truths):
    segments, _, offsets = truths
    more = torch.cat([segments, torch.tensor([[0.0, 1.0]])])
    for actual, expected in zip(ops.match(anchors, more, offsets), ops.match(anchors, segments, offsets), strict=True):
        assert torch.equal(actual, expected)


@given(anchors=strategies.anchors(), truths=strategies.ground_truths())
def test_rows_before_those_of_the_first_video_only_shift_the_index(ops, anchors, truths):
    segments, _, offsets = truths
    index, tiou = ops.match(anchors, torch.cat([torch.tensor([[0.0, 1.0]]), segments]), offsets + 1)
    expected_index, expected_tiou = ops.match(anchors, segments, offsets)
    assert torch.equal(index, torch.where(expected_index >= 0, expected_index + 1, -1))
    assert torch.equal(tiou, expected_tiou)


def test_ties_go_to_the_lowest_ground_truth(ops):
    anchors = torch.tensor([[0.5, 0.2]])
    segments = torch.tensor([[0.9, 1.0], [0.4, 0.6], [0.4, 0.6]])
    index, _ = ops.match(anchors, segments, torch.tensor([0, 3]))
    assert index.tolist() == [[1]]


def test_index_is_a_row_of_all_ground_truths_not_of_the_video(ops):
    anchors = torch.tensor([[0.5, 0.2]])
    segments = torch.tensor([[0.4, 0.6], [0.4, 0.6]])
    index, _ = ops.match(anchors, segments, torch.tensor([0, 1, 1, 2]))
    assert index.tolist() == [[0], [-1], [1]]


def test_an_iou_too_small_for_fp32_is_zero_without_a_sign(ops):
    anchors, segments = torch.tensor([[-1e-20, 2e-30]]), torch.tensor([[0.0, 1e30]])
    index, tiou = ops.match(anchors, segments, torch.tensor([0, 1]))
    assert index.item() == -1
    assert tiou.item() == 0
    assert not tiou.signbit().item()


def test_segments_that_only_touch_do_not_match(ops):
    index, tiou = ops.match(torch.tensor([[0.25, 0.5]]), torch.tensor([[0.5, 1.0]]), torch.tensor([0, 1]))
    assert index.item() == -1
    assert tiou.item() == 0


def test_more_anchors_than_one_tile(ops):
    anchors = torch.rand((700, 2), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0.1, 0.3], [0.2, 0.9], [0.5, 0.6]])
    offsets = torch.tensor([0, 2, 3])
    index, tiou = ops.match(anchors, segments, offsets)
    expected_index, expected_tiou = reference.match(anchors, segments, offsets)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(tiou, expected_tiou, rtol=0, atol=0)
