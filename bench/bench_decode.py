"""`decode` on a CPU: outputs of eight scales to segments, scores and labels.

python -m pytest bench/bench_decode.py
"""

import functools

import ahernet_kernels as kernels
import pytest
import torch

from bench import cases
from bench.contest import Contest, close
from bench.peers import decoding

CASES = {  # videos, classes, dtype of the network's outputs
    "small": (2, 10, "float32"),
    "design": (64, 200, "float32"),
    "bfloat16": (64, 200, "bfloat16"),
}
WAYS = ("ahernet", "torch, concatenated", "torch, video by video")


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    videos, classes, dtype = CASES[request.param]
    arguments = (*cases.network_outputs(videos, classes, getattr(torch, dtype)), cases.anchors())
    ways = {
        "ahernet": functools.partial(kernels.decode, *arguments),
        "torch, concatenated": functools.partial(decoding.decode, *arguments),
        "torch, video by video": functools.partial(decoding.decode_loop, *arguments),
    }
    sizes = {"videos": videos, "classes": classes, "dtype": dtype, "anchors": cases.ANCHORS}
    return Contest(f"decode, {request.param}", sizes, ways, check=close)


@pytest.mark.parametrize("way", WAYS)
def test_decode(race, contest, way):
    race(contest, way)
