"""`nms` on a CPU against the forms that are common elsewhere.

    python -m pytest bench/bench_nms.py

`design` is what localizing a batch asks for. The C++ greedy is plain O(N^2), without any search; the peers' form
calls it once a video and class. The windowed forms, in C++ and numba, look only where an overlap can be.
"""

import functools
from dataclasses import asdict, dataclass

import ahernet_kernels as kernels
import pytest

from bench import cases
from bench.contest import Contest
from bench.own_ways import absent_ways, own_ways
from bench.peers import NO_COMPILER, NO_NUMBA, numba_loops, suppression
from bench.records import OWN, OWN_WITH_NUMBA


@dataclass(frozen=True)
class Case:
    """Sizes and settings."""

    videos: int
    candidates: int
    threshold: float
    outputs: int
    classes: int = 200
    class_aware: bool = True


CASES = {
    "small": Case(2, 96, 0.9, 96, classes=20),
    "design": Case(64, 765, 0.9, 765),
    "design, best 100": Case(64, 765, 0.9, 100),
    "tiou 0.5": Case(64, 765, 0.5, 765),
    "agnostic": Case(64, 765, 0.9, 765, class_aware=False),
    "agnostic, tiou 0.5": Case(64, 765, 0.5, 765, class_aware=False),
    "one video": Case(1, 765, 0.9, 765),
    "20,000": Case(1, 20_000, 0.9, 20_000),
    "20,000, tiou 0.5": Case(1, 20_000, 0.5, 20_000),
}
IN_CPP = ("C++ windowed", "C++ greedy", "per class, C++")
WAYS = (OWN, OWN_WITH_NUMBA, *IN_CPP, "numba windowed", "numpy loop", "torch matrix")
TOO_LARGE = {"torch matrix": "the matrix of all pairs would take gigabytes"}
ONE_CLASS = {"per class, C++": "there are no classes"}


@pytest.fixture(scope="module", params=CASES)
def contest(request, compiled):
    case = CASES[request.param]
    segments, scores, labels = cases.candidates(case.videos, case.candidates, case.classes)
    arguments = (segments, scores, labels if case.class_aware else None, case.threshold, case.outputs)
    numba = numba_loops()
    ways = {
        **own_ways(kernels.nms, *arguments),
        "C++ windowed": compiled and functools.partial(compiled.windowed_nms, *arguments),
        "C++ greedy": compiled and functools.partial(compiled.nms, *arguments),
        "per class, C++": compiled and functools.partial(suppression.per_class, compiled.nms_one, *arguments),
        "numba windowed": numba and functools.partial(numba.windowed_nms, *arguments),
        "numpy loop": functools.partial(suppression.numpy_loop, *arguments),
        "torch matrix": functools.partial(suppression.torch_matrix, *arguments),
    }
    absent = {
        **absent_ways(),
        **({} if compiled else dict.fromkeys(IN_CPP, NO_COMPILER)),
        **({} if numba else {"numba windowed": NO_NUMBA}),
        **({} if case.class_aware else ONE_CLASS),
        **(TOO_LARGE if case.candidates > 10_000 else {}),
    }
    ways = {name: way for name, way in ways.items() if name not in absent}
    return Contest(f"nms, {request.param}", asdict(case), ways, absent=absent)


@pytest.mark.parametrize("way", WAYS)
def test_nms(race, contest, way):
    race(contest, way)
