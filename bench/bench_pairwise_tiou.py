"""`pairwise_tiou` on a CPU: the whole matrix.

python -m pytest bench/bench_pairwise_tiou.py
"""

import functools

import ahernet_kernels as kernels
import pytest

from bench import cases
from bench.contest import Contest
from bench.peers import pairs

CASES = {"small": 40, "design": 1000}  # rows and columns
WAYS = ("ahernet", "torch broadcast", "numpy, row by row")


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    size = CASES[request.param]
    a, b = cases.candidates(2, size, 200)[0]
    ways = {
        "ahernet": functools.partial(kernels.pairwise_tiou, a, b),
        "torch broadcast": functools.partial(pairs.torch_broadcast, a, b),
        "numpy, row by row": functools.partial(pairs.numpy_loop, a, b),
    }
    return Contest(f"pairwise_tiou, {request.param}", {"rows": size, "columns": size}, ways)


@pytest.mark.parametrize("way", WAYS)
def test_pairwise_tiou(race, contest, way):
    race(contest, way)
