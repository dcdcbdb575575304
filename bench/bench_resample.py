"""`resample` on a CPU: ragged feature sequences to the length of the network.

python -m pytest bench/bench_resample.py
"""

import functools

import ahernet_kernels as kernels
import pytest
import torch

from bench import cases
from bench.contest import Contest, close
from bench.peers import resampling

CASES = {  # videos, mean rows of one, dimension, steps, dtype
    "small": (2, 20, 16, 32, "float32"),
    "design": (16, 440, 2048, 512, "float32"),
    "float16": (16, 440, 2048, 512, "float16"),
}
WAYS = ("ahernet", "torch, dense product a video", "numpy, step by step")


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    videos, rows, dimension, steps, dtype = CASES[request.param]
    arguments = (*cases.sequences(videos, rows, dimension, getattr(torch, dtype)), steps)
    ways = {
        "ahernet": functools.partial(kernels.resample, *arguments),
        "torch, dense product a video": functools.partial(resampling.torch_loop, *arguments),
        "numpy, step by step": functools.partial(resampling.numpy_loop, *arguments),
    }
    sizes = {"videos": videos, "mean_rows": rows, "dimension": dimension, "steps": steps, "dtype": dtype}
    return Contest(f"resample, {request.param}", sizes, ways, check=close)


@pytest.mark.parametrize("way", WAYS)
def test_resample(race, contest, way):
    race(contest, way)
