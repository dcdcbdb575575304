import pytest
import torch

from bench import cases
from bench.contest import Contest
from bench.peers.resampling import weights


def contest(**ways):
    return Contest("group", {}, ways)


def test_a_way_with_another_result_is_not_timed():
    same, other = torch.arange(3), torch.tensor([0, 1, 3])
    with pytest.raises(AssertionError, match="not equal"):
        _ = contest(ahernet=lambda: (same,), peer=lambda: (other,)).times


def test_a_way_with_another_dtype_is_not_timed():
    with pytest.raises(AssertionError, match="dtype"):
        _ = contest(ahernet=lambda: (torch.zeros(2),), peer=lambda: (torch.zeros(2).double(),)).times


def test_ways_take_turns():
    calls = []

    def way(name):
        def run():
            calls.append(name)
            return (torch.ones(1),)

        return run

    times = contest(a=way("a"), b=way("b")).times
    turns = len(times["a"])
    assert len(times["b"]) == turns >= 7
    assert calls[-2 * turns :] == ["a", "b"] * turns


def test_candidates_have_distinct_scores_and_lie_in_order():
    segments, scores, labels = cases.candidates(3, 1000, 20)
    assert segments.shape == (3, 1000, 2)
    assert (segments[..., 0] <= segments[..., 1]).all()
    assert all(len(row.unique()) == 1000 for row in scores)
    assert labels.min() >= 0
    assert labels.max() < 20
    assert segments[:, 765:].min() >= 1.0  # the second stretch


def test_cases_do_not_change_between_runs():
    for first, second in zip(cases.candidates(2, 96, 20), cases.candidates(2, 96, 20), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(("rows", "steps"), [(1, 4), (3, 8), (9, 4), (512, 512)])
def test_weights_of_a_bin_add_up_to_one(rows, steps):
    assert weights(rows, steps).shape == (steps, rows)
    assert weights(rows, steps).sum(dim=1).numpy() == pytest.approx(1)
    if rows == steps:
        assert weights(rows, steps)[1, :3].numpy() == pytest.approx([1 / 8, 3 / 4, 1 / 8])
