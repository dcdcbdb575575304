"""Which form of an op a CPU runs, and that both forms give the same."""

import os
import resource
import subprocess
import sys
from types import ModuleType

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
def imported_anew(monkeypatch):
    """The loops are imported at the next call, and after the test once more."""
    monkeypatch.delitem(sys.modules, "ahernet_kernels._loops", raising=False)
    monkeypatch.delattr("ahernet_kernels._loops", raising=False)
    _cpu_form._import_loops.cache_clear()
    yield
    _cpu_form._import_loops.cache_clear()


class Broken(ModuleType):
    def __getattr__(self, name):
        raise OSError("libllvmlite.so: cannot open shared object file")


@pytest.mark.usefixtures("imported_anew")
@pytest.mark.parametrize(("numba", "reason"), [(None, "ModuleNotFoundError: "), (Broken("numba"), "OSError: libllvm")])
def test_without_a_numba_that_can_be_imported_ops_run_as_numpy(monkeypatch, numba, reason):
    monkeypatch.setitem(sys.modules, "numba", numba)
    assert _cpu_form.numba_loops() is None
    assert _cpu_form.why_without_loops().startswith(reason)
    assert kernels.nms(SEGMENTS, SCORES, None, 0.5, 3)[0].tolist() == [[0, 2, -1]]


def test_numba_is_not_imported_before_the_first_call():
    code = "import sys, ahernet_kernels; print('numba' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


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


def test_thresholds_near_zero_where_windows_have_no_bound_are_left_to_numpy(loops, monkeypatch):
    monkeypatch.setattr(loops, "_nms", None)
    assert kernels.nms(SEGMENTS, SCORES, None, 0.001, 3)[0].tolist() == [[0, 2, -1]]
    with pytest.raises(TypeError):
        kernels.nms(SEGMENTS, SCORES, None, 0.01, 3)


@pytest.mark.usefixtures("loops")
@pytest.mark.filterwarnings("error")
def test_a_start_that_is_a_signalling_nan_passes_in_silence():
    segments = torch.tensor([[[0x7F800001, 0], [0, 0x3F800000]]], dtype=torch.int32).view(torch.float32)
    assert kernels.nms(segments, torch.ones(1, 2), None, 0.5, 2)[0].tolist() == [[1, -1]]


def first_match(folder, limit=resource.RLIM_INFINITY):
    """Loops compiled and loops found in `folder` by a process of its own that cannot write larger files."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "import torch, ahernet_kernels as k; z = torch.tensor([[0.5, 1.0]]);"
        "print(k.match(z, z, torch.tensor([0, 1]))[0].item());"
        "from ahernet_kernels import _loops; found = _loops._match.__wrapped__.stats;"
        "print(len(found.cache_misses), len(found.cache_hits))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    index, counts = result.stdout.splitlines()
    assert index == "0"
    return counts, result.stderr


@pytest.mark.usefixtures("loops")
def test_machine_code_is_kept_for_the_next_process(tmp_path):
    assert [first_match(tmp_path) for _ in range(2)] == [("1 0", ""), ("0 1", "")]


@pytest.mark.usefixtures("loops")
def test_damaged_machine_code_is_made_anew(tmp_path):
    first_match(tmp_path)
    for file in tmp_path.rglob("*_match*.nbi"):
        file.write_bytes(b"")
    assert "UserWarning: numba cannot keep machine code: EOFError" in first_match(tmp_path)[1]


@pytest.mark.usefixtures("loops")
def test_machine_code_that_does_not_fit_on_the_disk_runs_all_the_same(tmp_path):
    assert "UserWarning: numba cannot keep machine code: OSError" in first_match(tmp_path, limit=4096)[1]


def test_where_no_folder_can_be_written_loops_are_compiled_all_the_same(loops, monkeypatch):
    njit = loops.numba.njit

    def nowhere(cache=False, **settings):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**settings)

    monkeypatch.setattr(loops.numba, "njit", nowhere)
    numbers = np.zeros(3)
    loops.compiled_and_kept(fill_with_ones)(numbers)
    assert numbers.tolist() == [1, 1, 1]


def test_an_error_of_the_loop_itself_is_raised(loops):
    with pytest.warns(UserWarning, match="numba cannot keep"), pytest.raises(loops.numba.TypingError):
        loops.compiled_and_kept(fill_with_ones)("text")


def fill_with_ones(numbers):
    numbers[:] = 1
