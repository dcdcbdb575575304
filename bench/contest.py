"""Several ways to compute one thing on the same inputs: checked for equality, then timed in turns."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

SECONDS = 4.0  # one contest's time for all turns
MOST_TURNS = 100
FEWEST_TURNS = 7

Way = Callable[[], Any]
Check = Callable[[Any, Any], None]


def same(actual: Any, expected: Any) -> None:
    """Equal bit by bit, dtypes included."""
    torch.testing.assert_close(tuple(actual), tuple(expected), rtol=0, atol=0)


def close(actual: Any, expected: Any) -> None:
    """Equal but for the rounding of sums and exponentials; integers exactly."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Contest:
    """Ways by name, the first one is the project's own; `absent` says why a way has no place in this case."""

    group: str
    sizes: Mapping[str, Any]
    ways: Mapping[str, Way]
    check: Check = same
    absent: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.thread_time
    """Of the thread that does all the work, so that what else a shared machine does is not in it."""

    @cached_property
    def expected(self) -> Any:
        """What the first way gives."""
        return next(iter(self.ways.values()))()

    @cached_property
    def times(self) -> dict[str, list[float]]:
        """Seconds of each turn of each way. The ways take turns, so that what slows the machine slows them all."""
        self.verify()
        round_seconds = sum(self._seconds(way) for way in self.ways.values())
        turns = max(FEWEST_TURNS, min(MOST_TURNS, int(SECONDS / round_seconds)))
        times: dict[str, list[float]] = {name: [] for name in self.ways}
        for _ in range(turns):
            for name, way in self.ways.items():
                times[name].append(self._seconds(way))
        return times

    def verify(self) -> None:
        """Raise AssertionError where a way's result is not that of the first."""
        for way in self.ways.values():
            self.check(way(), self.expected)

    def _seconds(self, way: Way) -> float:
        start = self.clock()
        way()
        return self.clock() - start
