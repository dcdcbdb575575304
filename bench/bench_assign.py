"""`assign` on a CPU: kind, label and target of every anchor of a batch.

python -m pytest bench/bench_assign.py
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
WAYS = (
    OWN,
    OWN_WITH_NUMBA,
    "C++",
    "numba, then torch",
    "torch broadcast",
    "torch, video by video",
    "numpy, truth by truth",
)


@pytest.fixture(scope="module", params=CASES)
def contest(request, compiled):
    videos, most = CASES[request.param]
    anchors = cases.anchors()
    gt_segments, gt_labels, gt_offsets = cases.ground_truths(videos, most)

    def after(match, *settings):
        return assignment.assigned(anchors, gt_segments, gt_labels, match(anchors, gt_segments, gt_offsets, *settings))

    numba = numba_loops()
    ways = {
        **own_ways(kernels.assign, anchors, gt_segments, gt_labels, gt_offsets),
        "C++": compiled and functools.partial(compiled.assign, anchors, gt_segments, gt_labels, gt_offsets),
        "numba, then torch": numba and functools.partial(after, numba.match),
        "torch broadcast": functools.partial(after, assignment.match_broadcast, most),
        "torch, video by video": functools.partial(after, assignment.match_torch_loop),
        "numpy, truth by truth": functools.partial(after, assignment.match_numpy_loop),
    }
    absent = {
        **absent_ways(),
        **({} if compiled else {"C++": NO_COMPILER}),
        **({} if numba else {"numba, then torch": NO_NUMBA}),
    }
    ways = {name: way for name, way in ways.items() if name not in absent}
    sizes = {"videos": videos, "anchors": cases.ANCHORS, "most_ground_truths": most}
    return Contest(f"assign, {request.param}", sizes, ways, absent=absent)


@pytest.mark.parametrize("way", WAYS)
def test_assign(race, contest, way):
    race(contest, way)
