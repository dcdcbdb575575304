"""Decoding anchors: from the outputs of a network, and from cells that are classified already."""

from collections.abc import Iterator

import ahernet_kernels as kernels
import torch
from torch.utils._pytree import tree_map

from bench import cases
from bench.lines.line import CANDIDATE_CLASSES, CLOSE, Line, Sizes, compiled, first_videos
from bench.peers import decoding


def decode_lines(device: str, sizes: Sizes, channels_last: bool = False) -> Iterator[Line]:
    anchors = cases.anchors().to(device)
    for videos in (sizes.batch, sizes.small_batch):
        peers = {"eager torch": decoding.decode}
        if videos == sizes.small_batch:
            peers |= compiled(decoding.decode, device)
        outputs = cases.network_outputs(videos, sizes.classes, torch.bfloat16, device)
        if channels_last:
            outputs = tree_map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), outputs)
        case = f"B={videos} C={sizes.classes} bf16{' channels last' if channels_last else ''}"
        yield Line("decode", case, (*outputs, anchors), kernels.decode, first_videos, CLOSE, peers)


def decode_sweep(device: str, sizes: Sizes) -> Iterator[Line]:
    anchors, peers = cases.anchors().to(device), {"eager torch": decoding.decode}
    points = [
        *(("classes", classes, sizes.small_batch, classes, torch.bfloat16) for classes in sizes.sweep_classes),
        *(("videos", videos, videos, sizes.classes, torch.bfloat16) for videos in sizes.sweep_videos),
        *(("bits", 8 * t.itemsize, sizes.batch, sizes.classes, t) for t in (torch.float16, torch.float32)),
    ]
    for axis, value, videos, classes, dtype in points:
        arguments = (*cases.network_outputs(videos, classes, dtype, device), anchors)
        name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
        case = f"sweep of {axis}, B={videos} C={classes} {name}"
        yield Line("decode", case, arguments, kernels.decode, first_videos, CLOSE, peers, axis=axis, value=value)


def decode_classified_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    """With channels last, as the network hands its outputs over."""
    anchors = cases.anchors().to(device)
    for videos in (sizes.batch, sizes.small_batch):
        peers = {"eager torch": decoding.decode_classified}
        if videos == sizes.small_batch:
            peers |= compiled(decoding.decode_classified, device)
        logits, *outputs = cases.network_outputs(videos, CANDIDATE_CLASSES, torch.bfloat16, device)
        best = torch.cat(logits, dim=2).float().softmax(dim=1).max(dim=1)
        outputs = tree_map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), outputs)
        arguments = (best.values, best.indices, *outputs, anchors)
        case = f"B={videos} bf16 channels last"
        yield Line("decode_classified", case, arguments, kernels.decode_classified, first_videos, CLOSE, peers)
