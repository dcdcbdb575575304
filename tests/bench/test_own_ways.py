"""The project's own ways: what each of them runs."""

import pytest
from ahernet_kernels._cpu_form import numba_loops

from bench.own_ways import absent_ways, own_ways


def test_the_plain_way_runs_without_numba():
    ways = own_ways(lambda given: (given, numba_loops()), 7)
    assert ways["ahernet"]() == (7, None)


def test_the_other_way_runs_with_numba_or_is_said_to_be_absent():
    ways = own_ways(numba_loops)
    assert (set(ways) | set(absent_ways())) == {"ahernet", "ahernet[cpu]"}
    if "ahernet[cpu]" not in ways:
        pytest.skip("needs numba")
    assert ways["ahernet[cpu]"]() is numba_loops() is not None
