"""The parts of a batch that one process computes in turn, for less memory, each as one of several ranks would.

What ranks add up with one another is known here although no two parts are computed at the same time: a first look at
all of them, without gradients, finds the sums, and each part is then told them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ahernet.training.ranks import Ranks


@dataclass(frozen=True)
class _Heard(Ranks):
    """A part that is looked at: what it would add up with the others is kept in `given`, in order."""

    given: list[Tensor] = field(default_factory=list)

    def _add_up(self, total: Tensor) -> None:
        self.given.append(total.clone())


@dataclass(frozen=True)
class _Told(Ranks):
    """A part that is computed: it is told the sums over all of them, in order."""

    sums: Iterator[Tensor] = field(default_factory=lambda: iter(()))

    def _add_up(self, total: Tensor) -> None:
        total.copy_(next(self.sums))


def ranks_in_turn(count: int, look_at: Callable[[int, Ranks], object]) -> list[Ranks]:
    """Return the ranks as which `count` parts of a batch are to be computed, each once.

    Args:
        count: of parts.
        look_at: computes the part of a number as a rank, to find what it adds up. That may depend on nothing that
            follows from sums.
    """
    sums: list[Tensor] = []
    for number in range(count):
        heard = _Heard(number, count)
        look_at(number, heard)
        sums = [one + other for one, other in zip(sums, heard.given, strict=True)] if number else heard.given
    return [_Told(number, count, iter(sums)) for number in range(count)]
