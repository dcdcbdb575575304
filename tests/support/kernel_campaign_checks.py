"""What a campaign asks of an op: calls of many cases, and which of these are not as the contract says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from kernel_campaign_draws import Draws
from torch import Tensor

Booleans = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Attributes:
        wrong: of each case, whether something differs from what the contract says.
        show: what went in and came out of a case, and what should have, by name.
        together: what is wrong with what all cases have together, such as a sum of losses.
    """

    wrong: Booleans
    show: Callable[[int], dict[str, Any]]
    together: dict[str, Any] = field(default_factory=dict)

    @property
    def differences(self) -> int:
        """How many cases differ, and how much of what they have together."""
        return int(self.wrong.sum()) + len(self.together)

    def smallest(self) -> dict[str, Any]:
        """The wrong case of the fewest numbers, or what is wrong with all together."""
        shown = [self.show(int(case)) for case in np.flatnonzero(self.wrong)[:500]]
        return min(shown, key=_numbers_in, default=self.together)


@dataclass(frozen=True)
class Check:
    """How an op is held to its contract.

    Attributes:
        case: what one case is.
        size: how many cases a call has, about.
        hold: call the op and compare; given the ops, what to draw from, and about how many cases.
    """

    case: str
    size: int
    hold: Callable[[SimpleNamespace, Draws, int], Outcome]


def _numbers_in(shown: dict[str, Any]) -> int:
    return sum(x.numel() if isinstance(x, Tensor) else np.size(x) for x in shown.values())


def differs(actual: Tensor, expected: Tensor) -> Booleans:
    """Of each case, a row of both: whether a value is another one; NaN equals NaN."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return np.ones(len(expected), np.bool_)
    same = (actual == expected) | ((actual != actual) & (expected != expected))
    return (~same).flatten(1).any(dim=1).numpy() if same.ndim > 1 else (~same).numpy()


def beyond(actual: Tensor, expected: Values, bound: Values) -> Booleans:
    """Of each value, whether it is further from an fp64 value than a bound; not finite must be the same."""
    values = actual.double().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(values - expected) <= bound
    same = (values == expected) | (np.isnan(values) & np.isnan(expected))
    return ~(same | (np.isfinite(values) & np.isfinite(expected) & near))


def by_case(wrong: Values) -> Booleans:
    """Whether anything is wrong in a row."""
    return wrong.reshape(len(wrong), -1).any(axis=1) if wrong.size else np.zeros(len(wrong), np.bool_)


def fp32(values: Values) -> Values:
    """Fp64 values as fp32 can hold them: what is beyond is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values, np.float64).astype(np.float32).astype(np.float64)


def tensors(*arrays: Values) -> list[Tensor]:
    """Arrays as tensors."""
    return [torch.from_numpy(np.ascontiguousarray(x)) for x in arrays]
