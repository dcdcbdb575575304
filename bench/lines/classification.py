"""Classifying cells straight from feature maps."""

from collections.abc import Iterator
from typing import Any

import ahernet_kernels as kernels
import torch

from bench import cases
from bench.lines.line import Line, Sizes, compiled
from bench.peers import classification


def classify_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    def first_features(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return [x[:2] for x in arguments[0]], *arguments[1:]

    for videos, classes in ((sizes.small_batch, n) for n in (*sizes.sweep_classes[1:], sizes.many_classes)):
        peers = {"eager torch": classification.classify}
        if classes == sizes.sweep_classes[-1]:
            peers |= compiled(classification.classify, device)
        arguments = cases.classifier(videos, classes, torch.bfloat16, device)
        case = f"B={videos} C={classes} bf16"
        # Of two logits that are nearly equal, sums in another order may make the other one the larger.
        yield Line(
            "classify", case, arguments, kernels.classify, first_features, 1e-2, peers, required=0.99, value=classes
        )
