"""An iteration of Algorithm 1 on a CPU, with the paper's network made narrow.

python -m pytest bench/bench_training_step.py
"""

import functools

import pytest
import torch

from bench.contest import Contest
from bench.own_ways import absent_ways, own_ways
from bench.records import OWN, OWN_WITH_NUMBA
from bench.training import Training

CASES = {"small": (2, 1 / 64), "design": (16, 1 / 32)}  # videos, share of the network's channels
CLASSES, MEAN_ROWS = 200, 440
WAYS = (OWN, OWN_WITH_NUMBA, "torch, video by video")


def same_losses(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    videos, width = CASES[request.param]
    made = Training("cpu", videos, CLASSES, width, MEAN_ROWS, precision="float32")
    ways = {"ahernet": made.call, "torch, video by video": made.peer}
    same_losses(*(made.with_gradients(way)(made.batch) for way in ways.values()))
    ways = own_ways(made.call, made.batch) | {"torch, video by video": functools.partial(made.peer, made.batch)}
    sizes = {"videos": videos, "classes": CLASSES, "width": width}
    return Contest(f"training step, {request.param}", sizes, ways, check=same_losses, absent=absent_ways())


@pytest.mark.parametrize("way", WAYS)
def test_training_step(race, contest, way):
    race(contest, way)
