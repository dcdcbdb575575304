"""`soft_nms` on a CPU: 100 outputs a video.

python -m pytest bench/bench_soft_nms.py
"""

import functools

import ahernet_kernels as kernels
import pytest

from bench import cases
from bench.contest import Contest, close
from bench.peers import NO_COMPILER, suppression

CASES = {  # videos, candidates, outputs, method, parameter
    "small": (2, 96, 20, "gaussian", 0.5),
    "gaussian": (64, 765, 100, "gaussian", 0.5),
    "linear": (64, 765, 100, "linear", 0.5),
    "3,060": (16, 3060, 100, "gaussian", 0.5),
}
CLASSES = 200
WAYS = ("ahernet", "C++ loop", "numpy loop", "torch, a pass a pick")


@pytest.fixture(scope="module", params=CASES)
def contest(request, compiled):
    videos, candidates, outputs, method, parameter = CASES[request.param]
    arguments = (*cases.candidates(videos, candidates, CLASSES), method, parameter, outputs)
    ways = {
        "ahernet": functools.partial(kernels.soft_nms, *arguments),
        "numpy loop": functools.partial(suppression.soft_numpy_loop, *arguments),
        "torch, a pass a pick": functools.partial(suppression.soft_torch, *arguments),
    }
    absent = {} if compiled else {"C++ loop": NO_COMPILER}
    if compiled:
        ways["C++ loop"] = functools.partial(compiled.soft_nms, *arguments)
    sizes = {"videos": videos, "candidates": candidates, "outputs": outputs, "method": method, "parameter": parameter}
    return Contest(f"soft_nms, {request.param}", sizes, ways, check=close, absent=absent)


@pytest.mark.parametrize("way", WAYS)
def test_soft_nms(race, contest, way):
    race(contest, way)
