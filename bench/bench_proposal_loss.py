"""`proposal_loss` on a CPU, forward and backward: outputs of eight scales against what `assign` makes of the anchors.

python -m pytest bench/bench_proposal_loss.py
"""

import functools

import ahernet_kernels as kernels
import pytest
import torch

from bench import cases
from bench.contest import Contest, close
from bench.peers import loss

CASES = {  # videos, ground truths of a video at most, dtype of the network's outputs
    "small": (2, 3, "float32"),
    "design": (64, 25, "float32"),
    "bfloat16": (64, 25, "bfloat16"),
}
WAYS = ("ahernet", "torch, masked", "torch, selected")


def with_gradients(function, leaves, *arguments):
    """Both losses, and the gradients of their sum in every scale of offsets and overlaps."""
    losses = function(*arguments)
    return *losses, *torch.autograd.grad(losses, leaves, [torch.ones(())] * 2)


def same_losses(actual, expected):
    """Losses and gradients, in half precision to one unit in the last place."""
    for left, right in zip(actual, expected, strict=True):
        if left.dtype == torch.bfloat16:
            torch.testing.assert_close(left, right, rtol=2**-7, atol=1e-8)
        else:
            close(left, right)


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    videos, most, dtype = CASES[request.param]
    _, offsets, overlaps = cases.network_outputs(videos, 1, getattr(torch, dtype))
    leaves = [x.requires_grad_() for x in (*offsets, *overlaps)]
    anchors = cases.anchors()
    assigned = kernels.assign(anchors, *cases.ground_truths(videos, most), force_match=True)
    arguments = (offsets, overlaps, anchors, assigned.kind, assigned.targets, assigned.tiou)
    functions = (kernels.proposal_loss, loss.proposal_loss, loss.proposal_loss_selected)
    ways = {
        way: functools.partial(with_gradients, function, leaves, *arguments)
        for way, function in zip(WAYS, functions, strict=True)
    }
    foreground = int((assigned.kind == kernels.FOREGROUND).sum())
    sizes = {"videos": videos, "dtype": dtype, "anchors": cases.ANCHORS, "foreground": foreground}
    return Contest(f"proposal_loss, {request.param}", sizes, ways, check=same_losses)


@pytest.mark.parametrize("way", WAYS)
def test_proposal_loss(race, contest, way):
    race(contest, way)
