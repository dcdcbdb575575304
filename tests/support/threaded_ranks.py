"""Ranks that are threads of one process: they meet as processes do, at no cost."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from ahernet.training.ranks import Ranks

T = TypeVar("T")
PATIENCE = 20  # seconds that a rank waits for the others


class Meeting:
    """Where the threads add up their tensors, in the order of the ranks."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=PATIENCE)
        self.brought: list[Tensor | None] = [None] * count

    def sum(self, rank: int, values: Tensor) -> Tensor:
        self.brought[rank] = values.clone()
        self.barrier.wait()
        assert len({(x.shape, x.dtype) for x in self.brought}) == 1
        total = sum(self.brought[1:], self.brought[0])
        self.barrier.wait()
        return total


@dataclass(frozen=True)
class ThreadedRanks(Ranks):
    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def _add_up(self, total: Tensor) -> None:
        total.copy_(self.meeting.sum(self.rank, total))


def in_threads(count: int, function: Callable[[Ranks], T]) -> list[T | Exception]:
    """Call the function as each of `count` ranks; return what each returned or raised."""
    meeting = Meeting(count)

    def call(rank: int) -> T | Exception:
        try:
            return function(ThreadedRanks(rank, count, meeting))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))
