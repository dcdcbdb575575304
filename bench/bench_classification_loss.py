"""`classification_loss` on a CPU, forward and backward: feature maps and class weights of eight scales to the loss.

python -m pytest bench/bench_classification_loss.py
"""

import functools

import ahernet_kernels as kernels
import pytest
import torch

from bench import cases
from bench.contest import Contest, close
from bench.lines.losses import loss_and_gradients
from bench.peers import classification

CASES = {  # videos, classes
    "small": (2, 10),
    "design": (16, 200),
    "5000 classes": (2, 5000),
}
WAYS = ("ahernet", "torch, all logits", "torch, labelled cells")


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    videos, classes = CASES[request.param]
    labels = cases.cell_labels(videos, classes)
    arguments = (*cases.classifier(videos, classes, torch.float32), labels, torch.tensor(1.0))
    losses = {
        "ahernet": kernels.classification_loss,
        "torch, all logits": classification.classification_loss,
        "torch, labelled cells": classification.classification_loss_selected,
    }
    ways = {name: functools.partial(loss_and_gradients(call, kinds=3), *arguments) for name, call in losses.items()}
    sizes = {"videos": videos, "classes": classes, "dtype": "float32", "labelled_cells": int((labels >= 0).sum())}
    return Contest(f"classification_loss, {request.param}", sizes, ways, check=close)


@pytest.mark.parametrize("way", WAYS)
def test_classification_loss(race, contest, way):
    race(contest, way)
