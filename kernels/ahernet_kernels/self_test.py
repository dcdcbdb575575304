"""Does every op give what it should on this machine? Small cases whose answers were worked out by hand.

`python -m ahernet_kernels.self_test [DEVICE]` prints a line an op and ends with exit code 1 if one is wrong.
"""

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import ahernet_kernels as kernels

Case = tuple[str, Callable[[], Any], Any]
"""Name of the op, a call of it, and its answer as nested lists."""


def self_test(device: str | torch.device) -> dict[str, str]:
    """Run every op on a device and return, by its name, "" if all is well and else what is not."""
    found: dict[str, str] = {}
    for name, call, expected in _cases(torch.device(device)):
        try:
            problem = _difference(call(), expected)
        except Exception as error:  # whatever a broken installation raises is what one wants to read
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        found[name] = found.get(name, "") or problem
    return found


def _cases(device: torch.device) -> Iterator[Case]:
    def tensor(values: Any, **settings: Any) -> Tensor:
        return torch.tensor(values, device=device, **settings)

    half, two = 0.5, math.log(2)
    # Two classes as likely as one another, an overlap of 1/2, an anchor of centre 1/2 and width 1/2: as it is.
    offsets, overlaps = tensor([[[0.0], [0.0]]]), tensor([[[0.0]]])
    anchor, span = tensor([[0.5, 0.5]]), [[[0.25, 0.75]]]
    yield (
        "decode",
        lambda: kernels.decode([tensor([[[0.0], [0.0]]])], [offsets], [overlaps], anchor),
        (span, [[half * half]], [[0]]),
    )
    yield (
        "decode_classified",
        lambda: kernels.decode_classified(tensor([[half]]), tensor([[1]]), [offsets], [overlaps], anchor),
        (span, [[half * half]], [[1]]),
    )
    # Logits (0, log 3): probabilities 1/4 and 3/4.
    features, weights, biases = tensor([[[1.0]]]), tensor([[0.0], [math.log(3)]]), tensor([0.0, 0.0])
    yield "classify", lambda: kernels.classify([features], [weights], [biases]), ([[0.75]], [[1]])
    yield (
        "classification_loss",
        lambda: kernels.classification_loss([features], [weights], [biases], tensor([[0]])),
        math.log(4),
    )
    anchors = tensor([[0.5, 0.2], [0.1, 0.2], [0.5, 0.1]])
    segments, rows = tensor([[0.4, 0.6]]), tensor([0, 1])
    yield "match", lambda: kernels.match(anchors, segments, rows), ([[0, -1, 0]], [[1.0, 0.0, half]])
    kinds = [[kernels.FOREGROUND, kernels.BACKGROUND, kernels.IGNORED]]
    yield "assign", lambda: kernels.assign(anchors, segments, tensor([7]), rows).kind, kinds
    # The prediction is the anchor; the ground truth lies 0.1 later: smooth-L1 0.1^2 / 2. Overlap 1/2 against 1.
    yield (
        "proposal_loss",
        lambda: kernels.proposal_loss(
            [offsets],
            [overlaps],
            anchor,
            tensor([[kernels.FOREGROUND]]),
            tensor([[[0.35, 0.85]]]),
            tensor([[1.0]]),
        ),
        (0.005, 0.25),
    )
    candidates, scores = tensor([[[0.0, 1.0], [0.0, 1.0], [2.0, 3.0]]]), tensor([[0.9, 0.8, 0.7]])
    yield "nms", lambda: kernels.nms(candidates, scores, None, half, 3), ([[0, 2, -1]], [2])
    yield "nms", lambda: kernels.nms(candidates, scores, tensor([[0, 1, 0]]), half, 3), ([[0, 1, 2]], [3])
    yield (
        "soft_nms",
        lambda: kernels.soft_nms(candidates, scores, None, "gaussian", half, 3),
        ([[0, 2, 1]], [[0.9, 0.7, 0.8 * math.exp(-2)]], [3]),
    )
    index = tensor([[2, 0, -1]])
    yield (
        "pick",
        lambda: kernels.pick(candidates, scores, tensor([[4, 5, 6]]), index),
        ([[[2.0, 3.0], [0.0, 1.0], [0.0, 0.0]]], [[0.7, 0.9, 0.0]], [[6, 4, -1]]),
    )
    yield "pairwise_tiou", lambda: kernels.pairwise_tiou(tensor([[0.0, 1.0]]), tensor([[half, 1.5]])), [[1 / 3]]
    # A video of one row repeats it; NaN is seen.
    yield "resample", lambda: kernels.resample(tensor([[two], [3.0]]), tensor([0, 1, 2]), 2), [[[two]] * 2, [[3.0]] * 2]
    pieces = (tensor([[[1.0]], [[3.0]]]), tensor([[[two]], [[4.0]]]), tensor([[[1.0]], [[5.0]]]))
    lengths, shown = tensor([[1, 2, 1], [3, 1, 0]]), tensor([[0, 0, 1, 1]])
    yield "stretch", lambda: kernels.stretch(*pieces, lengths, shown), [[[1.0], [two], [3.0], [4.0]]]
    broken = tensor([[1.0], [math.nan]])
    yield "resample_checked", lambda: kernels.resample_checked(broken, tensor([0, 1, 2]), 2)[1], [True, False]


def _difference(actual: Any, expected: Any) -> str:
    """Say where a result differs from the answer; "" if nowhere."""
    if isinstance(expected, tuple):
        problems = [_difference(part, answer) for part, answer in zip(actual, expected, strict=True)]
        return next((problem for problem in problems if problem), "")
    values, answer = actual.detach().cpu().double(), torch.tensor(expected).double()
    if values.shape == answer.shape and torch.allclose(values, answer, rtol=1e-5, atol=1e-6):
        return ""
    return f"gives {values.tolist()}, expected {answer.tolist()}"[:200]


def main() -> int:
    """Print what `self_test` finds on the device of the command line, or else on a GPU if there is one."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda" if torch.cuda.is_available() else "cpu"
    found = self_test(device)
    for name, problem in found.items():
        print(f"{name}: {problem or 'ok'}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
