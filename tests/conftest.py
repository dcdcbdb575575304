"""Which tests run in which process: Triton's interpreter needs `TRITON_INTERPRET=1` from the start."""

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
import triton
from numpy.lib import NumpyVersion

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETED = Path(__file__).parent / "kernels" / "contracts"

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


def why_not_interpreted() -> str:
    """Why kernels cannot be interpreted here, nothing if they can."""
    # Since NumPy 2.4 an array of one element is no number; Triton's interpreter minds that since 3.7.
    if NumpyVersion(np.__version__) < "2.4.0" or [int(part) for part in triton.__version__.split(".")[:2]] >= [3, 7]:
        return ""
    return f"the interpreter of Triton {triton.__version__} cannot read numbers of NumPy {np.__version__}"


def pytest_collection_modifyitems(items):
    problem = why_not_interpreted()
    for item in items:
        is_contract = INTERPRETED in item.path.parents
        if INTERPRETING and not is_contract:
            item.add_marker(pytest.mark.skip(reason="not a kernel contract: runs without TRITON_INTERPRET"))
        if problem and ((INTERPRETING and is_contract) or item.get_closest_marker("interpret")):
            item.add_marker(pytest.mark.skip(reason=problem))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Workers share the cores: more threads would only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real annotations and recordings named by AHERNET_DATA."""
    folder = os.environ.get("AHERNET_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("AHERNET_DATA does not name a folder of real data")
    return Path(folder)
