"""What can be checked of tuning without a GPU: what is tried, who wins, and the table that the launchers read."""

import importlib
import inspect

import pytest
import torch
from bench_fakes import TINY, FakeTimer

from bench import tune
from bench.device_timing import quantiles
from bench.lines import Line, Sizes
from bench.tuning_grid import GRID, Tuned, as_text, every, merged

KERNEL = Tuned("nms", ("nms",), "nms", every(BLOCK=(1, 2)))


def times(*microseconds):
    return {"cold": quantiles([x * 1e-6 for x in microseconds])}


def launchers_with_settings():
    """The kernels whose launchers read the table, as their files say."""
    sources = {
        tuned.module: inspect.getsource(importlib.import_module(f"ahernet_kernels.{tuned.module}"))
        for tuned in GRID.values()
    }
    return {kernel for kernel, tuned in GRID.items() if "launch_settings(" in sources[tuned.module]}


@pytest.mark.parametrize("kernel", sorted(launchers_with_settings()))
def test_what_is_tried_are_settings_that_the_launcher_has(kernel):
    tuned = GRID[kernel]
    allowed = set(tuned.defaults()) | {"num_warps", "num_stages"}
    assert tuned.tried
    assert all(set(settings) <= allowed for settings in tuned.tried)


@pytest.mark.parametrize("kernel", sorted(GRID))
def test_every_kernel_is_tuned_on_lines_of_its_op(kernel):
    tuned = GRID[kernel]
    found = tune.lines_of(kernel, "cpu", TINY)
    assert 1 <= len(found) <= tune.MOST_LINES
    assert {line.op for line in found} == {tuned.op}


def test_the_best_mean_over_the_lines_wins():
    by_line = {
        "large": {"default": times(10, 10, 10), "BLOCK=1": times(5, 5, 5), "BLOCK=2": times(8, 8, 8)},
        "small": {"default": times(10, 10, 10), "BLOCK=1": times(30, 30, 30), "BLOCK=2": times(9, 9, 9)},
    }
    best, ratio = tune.winner(KERNEL, by_line)
    assert best == {"BLOCK": 2}
    assert ratio == pytest.approx((0.8 * 0.9) ** 0.5)


def test_a_gain_within_the_spread_is_none():
    noisy = {"case": {"default": times(9, 10, 11), "BLOCK=1": times(9, 9.6, 10), "BLOCK=2": times(10, 10, 10)}}
    assert tune.winner(KERNEL, noisy) == (None, 1.0)
    clear = {"case": {"default": times(9.9, 10, 10.1), "BLOCK=1": times(9, 9, 9), "BLOCK=2": times(10, 10, 10)}}
    assert tune.winner(KERNEL, clear)[0] == {"BLOCK": 1}


def test_settings_that_fail_on_any_line_do_not_win():
    by_line = {
        "large": {"default": times(10), "BLOCK=1": times(1), "BLOCK=2": times(5)},
        "small": {"default": times(10), "BLOCK=1": {"failed": "OutOfResources"}, "BLOCK=2": times(5)},
    }
    assert tune.winner(KERNEL, by_line)[0] == {"BLOCK": 2}


def test_settings_that_change_the_result_or_cannot_launch_are_not_timed():
    def call(x):
        from ahernet_kernels._tuning import launch_settings

        block = launch_settings("made", {"BLOCK": 0})["BLOCK"]
        if block == 1:
            raise RuntimeError("does not compile")
        return x + (block == 2)

    tuned = Tuned("nms", (), "", every(BLOCK=(1, 2, 3)))
    line = Line("nms", "case", (torch.zeros(4),), call)
    found = tune.timed("made", tuned, line, FakeTimer())
    assert found["BLOCK=1"] == {"failed": "RuntimeError: does not compile"}
    assert found["BLOCK=2"] == {"failed": "0.0000% of the elements agree"}
    assert set(found) == {"default", "BLOCK=1", "BLOCK=2", "BLOCK=3"}
    assert "cold" in found["BLOCK=3"]


def test_failures_to_compile_are_told(monkeypatch):
    monkeypatch.setitem(GRID, "made", Tuned("nms", ("no such group",), "nms", ({"BLOCK": 1},)))
    assert tune.compile_settings("made", {"BLOCK": 1}, "cpu", Sizes()) == "KeyError: 'no such group'"


def test_winners_are_merged_with_what_the_table_has():
    table = {"sm_80": {"nms": {"num_warps": 4}}, "sm_90": {"nms": {"num_warps": 4}, "assign": {"BLOCK_A": 64}}}
    found = merged(table, "sm_90", {"nms": None, "decode": {"num_warps": 2, "BLOCK": 8}})
    assert found == {
        "sm_80": {"nms": {"num_warps": 4}},
        "sm_90": {"assign": {"BLOCK_A": 64}, "decode": {"BLOCK": 8, "num_warps": 2}},
    }
    assert table["sm_90"]["nms"] == {"num_warps": 4}
    assert merged({}, "gfx942", {}) == {"gfx942": {}}


def test_settings_have_one_text():
    assert as_text({"num_warps": 4, "BLOCK": 8}) == as_text({"BLOCK": 8, "num_warps": 4}) == "BLOCK=8, num_warps=4"


def test_every_kernel_tuned_is_one_that_a_launcher_names():
    for kernel in launchers_with_settings():
        assert f'"{kernel}"' in inspect.getsource(importlib.import_module(f"ahernet_kernels.{GRID[kernel].module}"))
