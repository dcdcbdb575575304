import pytest
import torch
from ahernet_kernels._tuning import overridden
from hypothesis import given
from hypothesis import strategies as st


def assert_labelled_first(ops, labels, cells, classes):
    """Each cell of a scale that has a class, in order, then -1; written down cell by cell."""
    order, ends = ops.labelled_cells(labels, cells, classes)
    expected, expected_ends, earlier = [], [], 0
    for length in cells:
        places = [video * sum(cells) + earlier + cell for video in range(len(labels)) for cell in range(length)]
        labelled = [place for place in places if 0 <= labels.flatten()[place] < classes]
        expected_ends.append(len(expected) + len(labelled))
        expected += labelled + [-1] * (len(places) - len(labelled))
        earlier += length
    assert order.tolist() == expected
    assert ends.tolist() == expected_ends


@given(
    videos=st.integers(0, 4),
    cells=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    classes=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_labelled_cells_of_a_scale_stand_in_front_in_their_order(ops, videos, cells, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-2, classes + 2, (videos, sum(cells)), generator=generator)
    assert_labelled_first(ops, labels, cells, classes)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_scale_may_be_longer_than_a_tile(ops, share):
    labels = torch.where(torch.rand((3, 50), generator=torch.Generator().manual_seed(0)) < share, 1, -1)
    with overridden("labelled_cells", {"BLOCK": 16}):
        assert_labelled_first(ops, labels, [33, 16, 1], 2)


def test_labels_that_are_no_class_are_left_out(ops):
    assert_labelled_first(ops, torch.tensor([[0, 5, 1 << 40, -(1 << 40), 4, -1]]), [4, 2], 5)
