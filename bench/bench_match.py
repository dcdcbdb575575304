"""`match` on a CPU: every anchor of a batch against its video's ground truths.

python -m pytest bench/bench_match.py
"""

import functools

import ahernet_kernels as kernels
import pytest

from bench import cases
from bench.contest import Contest
from bench.own_ways import absent_ways, own_ways
from bench.peers import NO_COMPILER, NO_NUMBA, assignment, numba_loops
from bench.records import OWN, OWN_WITH_NUMBA

CASES = {"small": (4, 5), "design": (256, 25)}  # videos, most ground truths of one
WAYS = (OWN, OWN_WITH_NUMBA, "C++", "numba", "torch broadcast", "torch, video by video", "numpy, truth by truth")


@pytest.fixture(scope="module", params=CASES)
def contest(request, compiled):
    videos, most = CASES[request.param]
    gt_segments, _, gt_offsets = cases.ground_truths(videos, most)
    arguments = (cases.anchors(), gt_segments, gt_offsets)
    numba = numba_loops()
    ways = {
        **own_ways(kernels.match, *arguments),
        "C++": compiled and functools.partial(compiled.match, *arguments),
        "numba": numba and functools.partial(numba.match, *arguments),
        "torch broadcast": functools.partial(assignment.match_broadcast, *arguments, most),
        "torch, video by video": functools.partial(assignment.match_torch_loop, *arguments),
        "numpy, truth by truth": functools.partial(assignment.match_numpy_loop, *arguments),
    }
    absent = {**absent_ways(), **({} if compiled else {"C++": NO_COMPILER}), **({} if numba else {"numba": NO_NUMBA})}
    ways = {name: way for name, way in ways.items() if name not in absent}
    sizes = {"videos": videos, "anchors": cases.ANCHORS, "most_ground_truths": most}
    return Contest(f"match, {request.param}", sizes, ways, absent=absent)


@pytest.mark.parametrize("way", WAYS)
def test_match(race, contest, way):
    race(contest, way)
