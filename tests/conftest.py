"""Which tests run in which process: Triton's interpreter needs `TRITON_INTERPRET=1` from the start."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETED = Path(__file__).parent / "kernels" / "contracts"

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


def pytest_collection_modifyitems(items):
    for item in items:
        if INTERPRETING and INTERPRETED not in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="not a kernel contract: runs without TRITON_INTERPRET"))
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
