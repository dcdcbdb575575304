"""Where a run computes: the device, and how many threads share the work on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ahernet.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the GPU if there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: expected auto, cpu, cuda or cuda:<number>, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device: expected auto, cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device: {name} is not available, torch sees {torch.cuda.device_count()} GPUs; give another, or cpu"
        )
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`, unless it is on one of its kind already; the copy to a GPU does not wait."""
    return tensor if tensor.device.type == device.type else tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def launches_on(device: torch.device) -> Iterator[None]:
    """Make `device` the one that kernels are launched on, wherever their tensors are."""
    if device.type == "cpu":
        yield
        return
    with torch.cuda.device(device):
        yield


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let `count` threads share each operation on the CPU; 0 leaves it to torch."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
