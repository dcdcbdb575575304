"""The ways to run an op: as registered, on one device, on a CPU with or without numba; or its kernels interpreted.

`TRITON_INTERPRET` is read when a kernel is defined, so the interpreter has a process of its own. Every backend has
the public functions under their names; the interpreter's go through the same launchers as the registered ops do.
"""

import contextlib
import math
from types import SimpleNamespace

import ahernet_kernels
import torch
from ahernet_kernels._arguments import is_channels_last
from ahernet_kernels._classification_gradients import (
    feature_gradient_kernel,
    gradients_launch,
    weight_gradient_kernel,
)
from ahernet_kernels._cpu_form import numba_loops, why_without_loops, without_numba
from ahernet_kernels._decide import finisher_kernel, round_kernel
from ahernet_kernels._labelled_cells import labelled_cells, labelled_cells_kernel, labelled_cells_launch
from ahernet_kernels._packed import unpacked
from ahernet_kernels._tuning import overridden
from ahernet_kernels.assign import assign_kernel, assign_launch
from ahernet_kernels.classification_loss import (
    classification_loss_launch,
    gradients_per_scale,
    log_sum_kernel,
    merge_log_sums_kernel,
)
from ahernet_kernels.classify import classify_kernel, classify_launch, merge_chunks_kernel
from ahernet_kernels.decode import decode_kernel, decode_launch
from ahernet_kernels.decode_classified import decode_classified_kernel, decode_classified_launch
from ahernet_kernels.match import match_kernel, match_launch
from ahernet_kernels.nms import nms_kernel, nms_launch
from ahernet_kernels.nms_large import (
    Kernels,
    kept_kernel,
    lay_out_kernel,
    nms_large_launch,
    output_kernel,
    place_key_kernel,
    rank_key_kernel,
)
from ahernet_kernels.pairwise_tiou import pairwise_tiou_kernel, pairwise_tiou_launch
from ahernet_kernels.pick import pick_kernel, pick_launch
from ahernet_kernels.proposal_loss import (
    proposal_loss_backward_kernel,
    proposal_loss_backward_launch,
    proposal_loss_kernel,
    proposal_loss_launch,
    proposal_loss_mean_kernel,
)
from ahernet_kernels.resample import (
    resample_backward_kernel,
    resample_backward_launch,
    resample_checked_launch,
    resample_kernel,
    resample_launch,
)
from ahernet_kernels.soft_nms import soft_nms_kernel, soft_nms_launch
from ahernet_kernels.stretch import (
    stretch_backward_kernel,
    stretch_backward_launch,
    stretch_kernel,
    stretch_launch,
)
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

LARGE_BLOCK = 32  # so that a few dozen candidates already span several tiles
LARGE_KERNELS = Kernels(
    rank_key_kernel,
    place_key_kernel,
    lay_out_kernel,
    round_kernel,
    finisher_kernel,
    kept_kernel,
    output_kernel,
)


def nms_in_small_tiles(rounds):
    """`nms` for many candidates in tiles of a few, so that they need several rounds, or the finisher."""
    blocks = {"BLOCK": LARGE_BLOCK, "BLOCK_NEAR": 16, "LAYOUT_BLOCK": LARGE_BLOCK, "FINISHER_BLOCK": 64}

    def nms_large(segments, scores, labels, tiou_threshold, max_output, min_score=-math.inf):
        with overridden("nms_large", {**blocks, "ROUNDS": rounds}):
            return nms_large_launch(LARGE_KERNELS, segments, scores, labels, tiou_threshold, max_output, min_score)

    return nms_large


def interpreter() -> SimpleNamespace:
    def interpreted_assign(
        anchors,
        segments,
        labels,
        offsets,
        foreground_threshold=0.8,
        background_threshold=0.3,
        force_match=False,
    ):
        arguments = (anchors, segments, labels, offsets, foreground_threshold, background_threshold, force_match)
        return ahernet_kernels.Assignment(*assign_launch(assign_kernel, *arguments))

    def classification_loss_and_gradients(features, weights, biases, labels):
        features = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in features]
        order, ends = interpreted_labelled_cells(labels, [x.shape[2] for x in features], len(weights[0]))
        arguments = (features, weights, biases, labels, order, ends)
        loss, log_sum = classification_loss_launch(log_sum_kernel, merge_log_sums_kernel, *arguments)
        scale = 1 / (order >= 0).sum().clamp(min=1).float()
        kernels = (feature_gradient_kernel, weight_gradient_kernel)
        packed = gradients_launch(*kernels, scale, *arguments, log_sum)
        return loss * scale, tree_leaves(gradients_per_scale(packed, features, weights, biases))

    def interpreted_labelled_cells(labels, cells, classes):
        return labelled_cells_launch(labelled_cells_kernel, labels, cells, classes)

    def interpreted_decode(logits, offsets, overlaps, anchors, centre_scale=1.0, width_scale=1.0):
        return decode_launch(decode_kernel, logits, offsets, overlaps, anchors, centre_scale, width_scale)

    def interpreted_decode_classified(
        probability, labels, offsets, overlaps, anchors, centre_scale=1.0, width_scale=1.0
    ):
        arguments = (probability, labels, offsets, overlaps, anchors, centre_scale, width_scale)
        return decode_classified_launch(decode_classified_kernel, *arguments)

    def interpreted_nms(segments, scores, labels, tiou_threshold, max_output, min_score=-math.inf):
        return nms_launch(nms_kernel, segments, scores, labels, tiou_threshold, max_output, min_score)

    def interpreted_proposal_loss(
        offsets, overlaps, anchors, kind, targets, tiou, centre_scale=1.0, width_scale=1.0, weights=(1.0, 1.0)
    ):
        arguments = (offsets, overlaps, anchors, kind, targets, tiou, centre_scale, width_scale)
        *losses, gradient, divisor = proposal_loss_launch(proposal_loss_kernel, proposal_loss_mean_kernel, *arguments)
        scales = (torch.tensor(weight) for weight in weights)
        gradient = proposal_loss_backward_launch(
            proposal_loss_backward_kernel, gradient, *scales, divisor, offsets[0].dtype
        )
        outputs, scales = [*offsets, *overlaps], len(offsets)
        gradients = unpacked(gradient, [x.shape for x in outputs], is_channels_last(outputs))
        return losses, [gradients[:scales], gradients[scales:]]

    def interpreted_soft_nms(segments, scores, labels, method, parameter, max_output, min_score=0.0):
        arguments = (segments, scores, labels, method, parameter, max_output, min_score)
        with overridden("soft_nms", {"BLOCK": LARGE_BLOCK}):
            return soft_nms_launch(soft_nms_kernel, *arguments)

    def interpreted_resample_checked(features, offsets, steps, dtype=torch.float32):
        return resample_checked_launch(resample_kernel, features, offsets, steps, dtype)

    return SimpleNamespace(
        name="interpreter",
        assign=interpreted_assign,
        classification_loss_and_gradients=classification_loss_and_gradients,
        classify=lambda *arguments: classify_launch(classify_kernel, merge_chunks_kernel, *arguments),
        decode=interpreted_decode,
        decode_classified=interpreted_decode_classified,
        labelled_cells=interpreted_labelled_cells,
        match=lambda *arguments: match_launch(match_kernel, *arguments),
        nms=interpreted_nms,
        nms_large=nms_in_small_tiles(rounds=2),
        nms_by_rank=nms_in_small_tiles(rounds=0),
        pairwise_tiou=lambda a, b: pairwise_tiou_launch(pairwise_tiou_kernel, a, b),
        pick=lambda *arguments: pick_launch(pick_kernel, *arguments),
        proposal_loss=interpreted_proposal_loss,
        resample=lambda *arguments: resample_launch(resample_kernel, *arguments),
        resample_backward=lambda *arguments: resample_backward_launch(resample_backward_kernel, *arguments),
        resample_checked=interpreted_resample_checked,
        soft_nms=interpreted_soft_nms,
        stretch=lambda *arguments: stretch_launch(stretch_kernel, *arguments),
        stretch_backward=lambda *arguments: stretch_backward_launch(stretch_backward_kernel, *arguments),
    )


def registered(name: str) -> SimpleNamespace:
    """The public ops, taking and returning CPU tensors: on a device, or "numba" for a CPU's compiled loops."""
    device = "cpu" if name == "numba" else name
    if name == "numba" and numba_loops() is None:
        raise RuntimeError(why_without_loops())

    def on_device(op):
        def run(*arguments, **settings):
            moved = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, (arguments, settings))
            with without_numba() if name == "cpu" else contextlib.nullcontext():
                results = op(*moved[0], **moved[1])
            return tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, results)

        return run

    def nms_large(rounds):
        return ahernet_kernels.nms if device == "cpu" else nms_in_small_tiles(rounds)

    def proposal_loss(offsets, overlaps, *constants, weights=(1.0, 1.0)):
        """The losses, and the gradients of their sum so weighted: per scale of the offsets and of the overlaps."""
        leaves = [[x.clone().requires_grad_() for x in per_scale] for per_scale in (offsets, overlaps)]
        losses = ahernet_kernels.proposal_loss(*leaves, *constants)
        scales = [torch.tensor(weight, device=device) for weight in weights]
        gradients = iter(torch.autograd.grad(losses, [x for per_scale in leaves for x in per_scale], scales))
        return [x.detach() for x in losses], [[next(gradients) for _ in per_scale] for per_scale in leaves]

    def classification_loss_and_gradients(features, weights, biases, labels):
        leaves = [[x.clone().requires_grad_() for x in per_scale] for per_scale in (features, weights, biases)]
        loss = ahernet_kernels.classification_loss(*leaves, labels)
        return loss.detach(), list(torch.autograd.grad(loss, [x for per_scale in leaves for x in per_scale]))

    def resample_backward(gradient, offsets, rows):
        features = gradient.new_zeros((rows, gradient.shape[2])).requires_grad_()
        ahernet_kernels.resample(features, offsets, gradient.shape[1]).backward(gradient)
        return features.grad

    names = ("assign", "classify", "decode", "decode_classified", "match", "nms", "pairwise_tiou", "pick")
    names += ("resample", "resample_checked", "soft_nms", "stretch")
    ops = {name: on_device(getattr(ahernet_kernels, name)) for name in names}
    extra = {
        "classification_loss_and_gradients": on_device(classification_loss_and_gradients),
        "labelled_cells": on_device(labelled_cells),
        "nms_large": on_device(nms_large(2)),
        "nms_by_rank": on_device(nms_large(0)),
        "proposal_loss": on_device(proposal_loss),
        "resample_backward": on_device(resample_backward),
        "stretch_backward": on_device(torch.ops.ahernet_kernels.stretch_backward),
    }
    return SimpleNamespace(name=name, **ops, **extra)
