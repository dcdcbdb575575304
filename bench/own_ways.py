"""The project's own ways on a CPU: NumPy's forms, as a plain installation has them, and loops that numba compiles."""

from collections.abc import Callable
from typing import Any

from ahernet_kernels._cpu_form import numba_loops, without_numba

from bench.contest import Way
from bench.peers import NO_NUMBA
from bench.records import OWN, OWN_WITH_NUMBA


def own_ways(call: Callable[..., Any], *arguments: Any) -> dict[str, Way]:
    """Both ways of one call by their names, the plain one first; it alone where numba cannot be imported."""

    def plain() -> Any:
        with without_numba():
            return call(*arguments)

    def with_numba() -> Any:
        return call(*arguments)

    return {OWN: plain, OWN_WITH_NUMBA: with_numba} if numba_loops() else {OWN: plain}


def absent_ways() -> dict[str, str]:
    """Why the one with numba is not there, if so."""
    return {} if numba_loops() else {OWN_WITH_NUMBA: NO_NUMBA}
