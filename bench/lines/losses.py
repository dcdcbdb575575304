"""Losses with their gradients."""

from collections.abc import Iterator
from typing import Any

import ahernet_kernels as kernels
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bench import cases
from bench.lines.assignment import truths
from bench.lines.line import Call, Line, Sizes, compiled, first_videos
from bench.peers import classification, loss

CHECKED_MAPS = 8  # videos of which the reference computes the loss of the classes


def loss_and_gradients(function: Call, kinds: int) -> Call:
    """The call of a loss and of its gradient in its first `kinds` arguments, each a list with a tensor a scale.

    The last argument is what the losses are weighted by: sums instead of means, so that errors of gradients can be
    seen.
    """

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        *constants, weight = arguments[kinds:]
        leaves = [[x.detach().requires_grad_() for x in per_scale] for per_scale in arguments[:kinds]]
        losses = function(*leaves, *constants)
        losses = (losses,) if isinstance(losses, Tensor) else tuple(losses)
        flat = [x for per_scale in leaves for x in per_scale]
        return *losses, *torch.autograd.grad(losses, flat, [weight] * len(losses))

    return run


def proposal_loss_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    """With channels last, as the network hands its outputs over."""
    for videos in (sizes.batch, sizes.small_batch):
        peers = {"eager torch": loss.proposal_loss}
        if videos == sizes.small_batch:
            peers |= compiled(loss.proposal_loss, device)
        _, offsets, overlaps = cases.network_outputs(videos, 1, torch.bfloat16, device)
        offsets, overlaps = tree_map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), (offsets, overlaps))
        anchors, *others = truths(device, videos, sizes.most_ground_truths)
        assigned = kernels.assign(anchors, *others, force_match=True)
        weight = torch.tensor(float(videos * cases.ANCHORS), device=device)
        yield Line(
            "proposal_loss",
            f"B={videos} bf16 channels last, forward and backward",
            (offsets, overlaps, anchors, assigned.kind, assigned.targets, assigned.tiou, weight),
            loss_and_gradients(kernels.proposal_loss, kinds=2),
            first_videos,
            tolerance=1e-2,  # two units in the last place of bf16 gradients
            peers={name: loss_and_gradients(peer, kinds=2) for name, peer in peers.items()},
            uncapturable={"eager torch, selected": loss_and_gradients(loss.proposal_loss_selected, kinds=2)},
        )


def classification_loss_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    def first_features(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        features, weights, biases, labels, _ = arguments
        part = labels[:CHECKED_MAPS]
        return [x[:CHECKED_MAPS] for x in features], weights, biases, part, (part >= 0).sum().float()

    videos = sizes.small_batch
    few, all_cells = cases.SHARE_OF_LABELLED_CELLS, 1.0
    many = sizes.sweep_classes[-1]
    for classes, share in ((many, few), (many, all_cells), (sizes.sweep_classes[1], few), (sizes.many_classes, few)):
        peers = {"eager torch": classification.classification_loss}
        if classes == many:
            peers |= compiled(classification.classification_loss, device)
        labels = cases.cell_labels(videos, classes, device, share)
        weight = (labels >= 0).sum().float()
        yield Line(
            "classification_loss",
            f"B={videos} C={classes} bf16, {'all' if share == all_cells else 'few'} cells, forward and backward",
            (*cases.classifier(videos, classes, torch.bfloat16, device), labels, weight),
            loss_and_gradients(kernels.classification_loss, kinds=3),
            first_features,
            tolerance=2e-2,  # logits of peers are rounded to bf16, ours are not
            required=0.99,
            peers={name: loss_and_gradients(peer, kinds=3) for name, peer in peers.items()},
            uncapturable={
                "eager torch, selected": loss_and_gradients(classification.classification_loss_selected, kinds=3)
            },
            value=classes,
        )
