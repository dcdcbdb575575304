"""`classify` on a CPU: feature maps and class weights of eight scales to the best class of every cell.

python -m pytest bench/bench_classify.py
"""

import functools

import ahernet_kernels as kernels
import pytest
import torch

from bench import cases
from bench.contest import Contest, close
from bench.peers import classification

CASES = {  # videos, classes
    "small": (1, 10),
    "design": (16, 200),
    "600 classes": (8, 600),
    "5000 classes": (2, 5000),
}
WAYS = ("ahernet", "torch, all logits", "torch, video by video")


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    videos, classes = CASES[request.param]
    arguments = cases.classifier(videos, classes, torch.float32)
    ways = {
        "ahernet": functools.partial(kernels.classify, *arguments),
        "torch, all logits": functools.partial(classification.classify, *arguments),
        "torch, video by video": functools.partial(classification.classify_loop, *arguments),
    }
    sizes = {"videos": videos, "classes": classes, "dtype": "float32", "cells": sum(cases.CELLS)}
    return Contest(f"classify, {request.param}", sizes, ways, check=close)


@pytest.mark.parametrize("way", WAYS)
def test_classify(race, contest, way):
    race(contest, way)
