"""Which form of `match`, `assign` and `nms` a CPU runs: compiled loops where numba is installed, else NumPy's."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

_only_numpy = False


def numba_loops() -> ModuleType | None:
    """The loops that numba compiles; None where it is not installed or cannot be imported."""
    return None if _only_numpy else _import_loops()[0]


def why_without_loops() -> str:
    """Why numba cannot be imported, nothing if it can."""
    return _import_loops()[1]


@cache
def _import_loops() -> tuple[ModuleType | None, str]:
    try:
        from ahernet_kernels import _loops
    except Exception as error:  # a NumPy that numba does not know, a shared library that does not load
        return None, f"{type(error).__name__}: {error}"
    return _loops, ""


@contextmanager
def without_numba() -> Iterator[None]:
    """Run NumPy's forms for a while in the whole process, whatever is installed: how they are measured and tested."""
    global _only_numpy
    before, _only_numpy = _only_numpy, True
    try:
        yield
    finally:
        _only_numpy = before
