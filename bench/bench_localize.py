"""Localizing a batch on a CPU, from feature rows to detections, with the paper's network made narrow.

python -m pytest bench/bench_localize.py
"""

import functools

import pytest
import torch

from bench.contest import Contest
from bench.localization import Localization
from bench.own_ways import absent_ways, own_ways
from bench.records import OWN, OWN_WITH_NUMBA

CASES = {"small": (1, 1 / 64), "design": (8, 1 / 32)}  # videos, share of the network's channels
CLASSES, MEAN_ROWS = 200, 440
WAYS = (OWN, OWN_WITH_NUMBA, "torch, peers' forms")


def nearly_all(actual, expected):
    """Two scores that differ by a rounding may change places, so that not every row need agree."""
    for left, right in zip(actual, expected, strict=True):
        assert left.shape == right.shape
        assert torch.isclose(left, right, rtol=1e-4, atol=1e-5).double().mean() > 0.98


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    videos, width = CASES[request.param]
    made = Localization("cpu", videos, CLASSES, width, MEAN_ROWS, precision="float32")
    ways = own_ways(made.call, *made.arguments) | {"torch, peers' forms": functools.partial(made.peer, *made.arguments)}
    sizes = {"videos": videos, "classes": CLASSES, "width": width, "dimension": made.model.feature_dimension}
    return Contest(f"localize, {request.param}", sizes, ways, check=nearly_all, absent=absent_ways())


@pytest.mark.parametrize("way", WAYS)
def test_localize(race, contest, way):
    race(contest, way)
