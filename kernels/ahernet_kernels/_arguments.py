"""Checks of the tensors that a caller hands in: every error names the argument and what was expected."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ahernet_kernels._anchors import MAX_SCALES

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
    actual_shape = tensor.shape
    matches = len(actual_shape) == len(shape)
    if matches:
        for size, actual in zip(shape, actual_shape, strict=True):
            if actual != (sizes.setdefault(size, actual) if isinstance(size, str) else size):
                matches = False
    if not matches:
        known = ", ".join(str(sizes[size]) if isinstance(size, str) and size in sizes else str(size) for size in shape)
        names = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({names}) = ({known}), got {tuple(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: expected on {device}, got {tensor.device}")


def check_scales(**per_scale: list[Tensor]) -> None:
    """Check that there are 1 to `MAX_SCALES` scales, and as many in all lists as in the first one."""
    (first, tensors), *others = per_scale.items()
    if not 1 <= len(tensors) <= MAX_SCALES:
        raise ValueError(f"{first}: expected 1 to {MAX_SCALES} scales, got {len(tensors)}")
    for name, scales in others:
        if len(scales) != len(tensors):
            raise ValueError(f"{name}: expected {len(tensors)} scales as in {first}, got {len(scales)}")


def check_offsets(name: str, offsets: Tensor, device: torch.device) -> None:
    """Check an offsets tensor `(B + 1,)` of ragged rows; its values are not read (they may be on a GPU)."""
    check_tensor(name, offsets, INTEGERS, ("B + 1",), {}, device)
    if offsets.shape[0] == 0:
        raise ValueError(f"{name}: expected B + 1 >= 1 entries, got none")


def check_offset_values(name: str, offsets: npt.NDArray[np.int64], rows: int) -> None:
    """Check on a CPU that offsets are of rows that there are, and do not fall."""
    if (offsets[1:] < offsets[:-1]).any() or offsets[0] < 0 or offsets[-1] > rows:
        raise ValueError(f"{name}: expected numbers from 0 to {rows} that do not fall")


def check_count(name: str, value: int) -> None:
    """Check that a number of what there is to be is whole and at least 1."""
    if not isinstance(value, (int, torch.SymInt, np.integer)):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected a number >= 1, got {value}")


def check_fraction(name: str, value: float) -> None:
    """Check that a threshold lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}")


def constant(tensor: Tensor) -> Tensor:
    """The tensor, detached if it has a gradient: of many tensors a call, views that change nothing are felt."""
    return tensor.detach() if tensor.requires_grad else tensor


def is_channels_last(per_scale: list[Tensor]) -> bool:
    """Whether the maps `(B, d, T)` of all scales are `(B, T, d)` in memory."""
    return all(_is_transposed(x) for x in per_scale)


def _is_transposed(x: Tensor) -> bool:
    _, channels, cells = x.shape
    # What the strides nearly always tell, at a fraction of the time; a size of 1 may have any stride.
    return x.stride() == (channels * cells, 1, channels) or x.transpose(1, 2).is_contiguous()


def in_one_layout(*kinds: list[Tensor]) -> list[list[Tensor]]:
    """Maps of several kinds as constants: where they are if all have their channels last in memory, else contiguous."""
    constants = [[constant(x) for x in per_scale] for per_scale in kinds]
    if all(is_channels_last(per_scale) for per_scale in constants):
        return constants
    return [[x.contiguous() for x in per_scale] for per_scale in constants]
