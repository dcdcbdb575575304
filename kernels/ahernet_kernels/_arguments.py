"""Checks of the tensors that a caller hands in: every error names the argument and what was expected."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTEGERS = (torch.int64,)

Size = int | str
"""A required size, or the name of a size that must agree wherever the name stands again."""


def check_tensor(
    name: str,
    tensor: Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[Size, ...],
    sizes: dict[str, int],
    device: torch.device | None = None,
) -> None:
    """Check one tensor argument and remember its named sizes in `sizes`; `device` None accepts any.

    Raises:
        TypeError: `tensor` is not a tensor or its dtype is not one of `dtypes`.
        ValueError: its shape or device is not the expected one.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: expected {expected}, got {str(tensor.dtype).removeprefix('torch.')}")
    matches = tensor.ndim == len(shape)
    if matches:
        for size, actual in zip(shape, tensor.shape, strict=True):
            expected_size = sizes.setdefault(size, actual) if isinstance(size, str) else size
            matches = matches and actual == expected_size
    if not matches:
        known = ", ".join(str(sizes[size]) if isinstance(size, str) and size in sizes else str(size) for size in shape)
        names = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({names}) = ({known}), got {tuple(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: expected on {device}, got {tensor.device}")


def check_offsets(name: str, offsets: Tensor, device: torch.device) -> None:
    """Check an offsets tensor `(B + 1,)` of ragged rows; its values are not read (they may be on a GPU)."""
    check_tensor(name, offsets, INTEGERS, ("B + 1",), {}, device)
    if offsets.shape[0] == 0:
        raise ValueError(f"{name}: expected B + 1 >= 1 entries, got none")


def check_fraction(name: str, value: float) -> None:
    """Check that a threshold lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
