import os

import hypothesis
import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["interpreter"] if INTERPRETING else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
COMPILED_BY_NUMBA = ("test_assign", "test_match", "test_nms", "test_edges_of_tiles_and_blocks")
PADDING = 64
INTEGER_POISON = -77

common = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck), "print_blob": True}
hypothesis.settings.register_profile("registered", max_examples=150, **common)
hypothesis.settings.register_profile("interpreter", max_examples=12, derandomize=True, **common)
hypothesis.settings.load_profile("interpreter" if INTERPRETING else "registered")


def pytest_generate_tests(metafunc):
    if "ops" in metafunc.fixturenames:
        numba = ["numba"] if not INTERPRETING and metafunc.module.__name__.endswith(COMPILED_BY_NUMBA) else []
        metafunc.parametrize("ops", [*BACKENDS, *numba], indirect=True, scope="session")


@pytest.fixture(scope="session")
def ops(request):
    from ahernet_kernels._cpu_form import numba_loops
    from kernel_backends import interpreter, registered

    if request.param == "numba" and numba_loops() is None:
        pytest.skip("needs numba")
    return interpreter() if request.param == "interpreter" else registered(request.param)


@pytest.fixture
def where_doubles_are_usual():
    """Calls something while a number without a dtype is a double."""

    def call(function, *arguments):
        torch.set_default_dtype(torch.float64)
        try:
            return function(*arguments)
        finally:
            torch.set_default_dtype(torch.float32)

    return call


@pytest.fixture(autouse=INTERPRETING or "cuda" in BACKENDS)
def poisoned_allocations(monkeypatch):
    """Fresh memory holds NaN between two canaries: what a kernel leaves out or writes beside it is seen."""
    allocate = torch.empty
    buffers = []

    def poisoned(*size, dtype=None, device=None, **settings):
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        poison = float("nan") if (dtype or torch.float32).is_floating_point else INTEGER_POISON
        buffer = allocate(shape.numel() + 2 * PADDING, dtype=dtype, device=device, **settings)
        buffer.fill_(poison)
        buffers.append(buffer)
        return buffer[PADDING : PADDING + shape.numel()].view(shape)

    monkeypatch.setattr(torch, "empty", poisoned)
    yield
    for buffer in buffers:
        for canary in (buffer[:PADDING], buffer[-PADDING:]):
            intact = canary.isnan() if canary.is_floating_point() else canary == INTEGER_POISON
            assert intact.all(), "a kernel wrote outside its output"
