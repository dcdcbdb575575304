import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # the benches are run from a checkout and never installed


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
