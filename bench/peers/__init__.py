"""The forms that are common elsewhere: what the kernels are measured against, and checked to equal."""

import importlib
import importlib.util
from types import ModuleType

NO_COMPILER = "g++ is not installed"
NO_NUMBA = "numba is not installed"


def numba_loops() -> ModuleType | None:
    """The forms that need numba, or None where it is not installed: nothing depends on it."""
    return importlib.import_module("bench.peers.numba_loops") if importlib.util.find_spec("numba") else None
