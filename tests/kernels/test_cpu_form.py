"""Which form of an op a CPU runs, and that both forms give the same."""

import os
import subprocess
import sys

import ahernet_kernels as kernels
import numpy as np
import pytest
import torch
from ahernet_kernels import _cpu_form

SEGMENTS = torch.tensor([[[0.0, 1.0], [0.0, 0.9], [2.0, 3.0]]])
SCORES = torch.tensor([[0.9, 0.8, 0.7]])


@pytest.fixture
def loops():
    found = _cpu_form.numba_loops()
    if found is None:
        pytest.skip("needs numba")
    return found


@pytest.fixture
def numba_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "ahernet_kernels._loops", None)
    monkeypatch.delattr("ahernet_kernels._loops", raising=False)
    _cpu_form._importable_loops.cache_clear()
    yield
    _cpu_form._importable_loops.cache_clear()


@pytest.mark.usefixtures("numba_cannot_be_imported")
def test_without_numba_ops_run_as_numpy():
    assert _cpu_form.numba_loops() is None
    assert kernels.nms(SEGMENTS, SCORES, None, 0.5, 3)[0].tolist() == [[0, 2, -1]]


def test_numpy_may_be_asked_for_and_is_left_again_also_by_an_error(loops):
    def asked_for_twice():
        with _cpu_form.without_numba(), _cpu_form.without_numba():
            assert _cpu_form.numba_loops() is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asked_for_twice()
    assert _cpu_form.numba_loops() is loops


def assert_both_forms_give_the_same(op, *arguments):
    with _cpu_form.without_numba():
        expected = op(*arguments)
    for actual, wanted in zip(op(*arguments), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_suppress_the_same_of_a_batch_of_usual_size(threshold, dtype):
    generator = np.random.default_rng(0)
    start = torch.from_numpy(generator.random((16, 765), np.float32))
    length = torch.from_numpy(generator.random((16, 765), np.float32) ** 3)
    segments = torch.stack([start, start + length], dim=-1).to(dtype)
    scores = torch.from_numpy(generator.random((16, 765), np.float32)).to(dtype)
    labels = torch.from_numpy(generator.integers(-(1 << 31), 1 << 31, (16, 20))).repeat_interleave(39, 1)[:, :765]
    for classes in (None, labels, labels % 7):
        assert_both_forms_give_the_same(kernels.nms, segments, scores, classes, threshold, 765, 0.1)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("force_match", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_assign_the_same_of_a_batch_of_usual_size(force_match, dtype):
    generator = np.random.default_rng(1)
    offsets = torch.from_numpy(np.cumsum(generator.integers(0, 26, 33)))
    anchors = torch.from_numpy(generator.random((765, 2), np.float32)).to(dtype)
    start = torch.from_numpy(generator.random(int(offsets[-1]) + 5, np.float32))
    truths = torch.stack([start, start + start.flip(0) ** 2], dim=-1).to(dtype)
    assert_both_forms_give_the_same(kernels.match, anchors, truths, offsets)
    labels = torch.from_numpy(generator.integers(0, 200, len(truths)))
    assert_both_forms_give_the_same(kernels.assign, anchors, truths, labels, offsets, 0.5, 0.3, force_match)


def test_machine_code_is_kept_for_the_next_process(loops, tmp_path):
    code = (
        "import torch, ahernet_kernels as k; from ahernet_kernels import _loops; z = torch.zeros(1, 2);"
        "k.match(z, z, torch.tensor([0, 1])); print(sum(_loops._match.stats.cache_hits.values()))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = [subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) for _ in range(2)]
    assert [text.strip() for text in found] == ["0", "1"]


def test_where_no_folder_can_be_written_loops_are_compiled_all_the_same(loops, monkeypatch):
    njit = loops.numba.njit

    def nowhere(cache=False, **settings):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**settings)

    monkeypatch.setattr(loops.numba, "njit", nowhere)
    assert loops.compiled(lambda number: number + 1)(2) == 3
