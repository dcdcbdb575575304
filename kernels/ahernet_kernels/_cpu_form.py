"""Which form of `match`, `assign` and `nms` a CPU runs: compiled loops where numba is installed, else NumPy's."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

_only_numpy = False


def numba_loops() -> ModuleType | None:
    """The loops that numba compiles; None where it is not installed, or does not support the NumPy that is."""
    return None if _only_numpy else _importable_loops()


@cache
def _importable_loops() -> ModuleType | None:
    try:
        from ahernet_kernels import _loops
    except ImportError:
        return None
    return _loops


@contextmanager
def without_numba() -> Iterator[None]:
    """Run NumPy's forms for a while, whatever is installed: how they are measured and tested."""
    global _only_numpy
    before, _only_numpy = _only_numpy, True
    try:
        yield
    finally:
        _only_numpy = before
