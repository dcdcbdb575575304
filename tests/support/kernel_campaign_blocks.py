"""Blocks of the CPU forms that are so small that some thousand small cases already need many of them."""

import contextlib
import sys
from collections.abc import Iterator

import ahernet_kernels  # noqa: F401  (has imported the modules)
from kernel_campaign_draws import Draws

ELEMENTS = {
    "ahernet_kernels.match": "CPU_BLOCK_ELEMENTS",
    "ahernet_kernels._assign_numpy": "CPU_BLOCK_ELEMENTS",
    "ahernet_kernels.classify": "CPU_BLOCK_ELEMENTS",
    "ahernet_kernels._classification_loss_cpu": "CPU_BLOCK_ELEMENTS",
    "ahernet_kernels._nms_numpy": "CHUNK_PAIRS",
}
WAVE = ("ahernet_kernels._nms_numpy", "FIRST_WAVE")


@contextlib.contextmanager
def small_blocks(draws: Draws) -> Iterator[None]:
    """In half of the calls, blocks of 512 to 8192 numbers."""
    elements = 1 << draws.between(9, 13)
    with contextlib.ExitStack() as stack:
        if draws.chance(0.5):
            for module, name in ELEMENTS.items():
                stack.enter_context(_replaced(module, name, elements))
        yield


@contextlib.contextmanager
def small_waves(draws: Draws) -> Iterator[None]:
    """So few candidates in the first wave of `nms` that a dozen need several."""
    with _replaced(*WAVE, draws.between(2, 8)):
        yield


@contextlib.contextmanager
def _replaced(module: str, name: str, value: int) -> Iterator[None]:
    before = getattr(sys.modules[module], name)
    setattr(sys.modules[module], name, value)
    try:
        yield
    finally:
        setattr(sys.modules[module], name, before)
