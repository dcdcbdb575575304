"""`decode_classified` on a CPU: cells that are classified already to segments, scores and labels.

python -m pytest bench/bench_decode_classified.py
"""

import functools

import ahernet_kernels as kernels
import pytest
import torch

from bench import cases
from bench.contest import Contest, close
from bench.peers import decoding

CASES = {  # videos, dtype of the network's outputs
    "small": (2, "float32"),
    "design": (64, "float32"),
    "bfloat16": (64, "bfloat16"),
}
CLASSES = 200
WAYS = ("ahernet", "torch, concatenated", "torch, video by video")


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    videos, dtype = CASES[request.param]
    logits, *outputs = cases.network_outputs(videos, CLASSES, getattr(torch, dtype))
    best = torch.cat(logits, dim=2).float().softmax(dim=1).max(dim=1)
    arguments = (best.values, best.indices, *outputs, cases.anchors())
    ways = {
        "ahernet": functools.partial(kernels.decode_classified, *arguments),
        "torch, concatenated": functools.partial(decoding.decode_classified, *arguments),
        "torch, video by video": functools.partial(decoding.decode_classified_loop, *arguments),
    }
    sizes = {"videos": videos, "dtype": dtype, "anchors": cases.ANCHORS}
    return Contest(f"decode_classified, {request.param}", sizes, ways, check=close)


@pytest.mark.parametrize("way", WAYS)
def test_decode_classified(race, contest, way):
    race(contest, way)
