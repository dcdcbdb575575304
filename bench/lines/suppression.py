"""Suppression, hard and soft, of short videos and of long ones, and picking what is kept."""

import functools
from collections.abc import Iterator

import ahernet_kernels as kernels
import torch
from torch import Tensor

from bench import cases
from bench.lines.line import CANDIDATE_CLASSES, CLOSE, Line, Sizes, first_videos
from bench.peers import suppression
from bench.peers.localization import rows_by_gather


def scored(device: str, videos: int, count: int) -> tuple[Tensor, ...]:
    """Arguments of `nms`."""
    return tuple(part.to(device) for part in cases.candidates(videos, count, CANDIDATE_CLASSES))


def nms_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    count, outputs = cases.ANCHORS, sizes.outputs
    for videos in (sizes.batch, sizes.small_batch):
        arguments = scored(device, videos, count)
        for threshold, most in ((0.9, outputs), (0.9, count), (0.5, outputs)):
            settings = {"tiou_threshold": threshold, "max_output": most}
            case = f"B={videos} N={count} tiou {threshold} best {most}"
            uncapturable = {}
            if device == "cuda" and threshold == 0.9 and most == outputs and suppression.has_torchvision():
                uncapturable["torchvision, video by video"] = functools.partial(suppression.torchvision_nms, **settings)
            call = functools.partial(kernels.nms, **settings)
            yield Line("nms", case, arguments, call, uncapturable=uncapturable)


def nms_sweep(device: str, sizes: Sizes) -> Iterator[Line]:
    points = [
        *(("candidates", count, sizes.small_batch, count) for count in sizes.sweep_candidates),
        *(("videos", videos, videos, cases.ANCHORS) for videos in sizes.sweep_videos),
    ]
    for axis, value, videos, count in points:
        call = functools.partial(kernels.nms, tiou_threshold=0.9, max_output=sizes.outputs)
        case = f"sweep of {axis}, B={videos} N={count} best {sizes.outputs}"
        yield Line("nms", case, scored(device, videos, count), call, axis=axis, value=value)


def long_nms_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    """One long video, the best of it and all of it."""
    for count in sizes.many:
        arguments = scored(device, 1, count)
        for most in (sizes.outputs, count):
            call = functools.partial(kernels.nms, tiou_threshold=0.9, max_output=most)
            yield Line("nms", f"one video N={count} tiou 0.9 best {most}", arguments, call, axis="many", value=count)
    call = functools.partial(kernels.nms, tiou_threshold=0.9, max_output=sizes.stairs)
    yield Line("nms", f"staircase N={sizes.stairs} tiou 0.9", staircase(device, sizes.stairs), call)


def staircase(device: str, count: int) -> tuple[Tensor, Tensor, None]:
    """Arguments of `nms` where each candidate overlaps its neighbours alone: decided one after the other."""
    start = torch.arange(count, device=device) * 0.04
    scores = torch.linspace(1, 0.5, count, device=device)
    return torch.stack([start, start + 1], dim=-1)[None], scores[None], None


def soft_nms_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    small = sizes.small_batch
    for videos, count in ((sizes.batch, cases.ANCHORS), *((small, n) for n in (cases.ANCHORS, *sizes.soft_candidates))):
        arguments = scored(device, videos, count)
        call = functools.partial(kernels.soft_nms, method="gaussian", parameter=0.5, max_output=sizes.outputs)
        peer = functools.partial(suppression.soft_torch, method="gaussian", parameter=0.5, most=sizes.outputs)
        peers = {"torch, a pass a pick": peer}
        case = f"B={videos} N={count} best {sizes.outputs}"
        # A near tie of two exponentials, rounded differently, may swap two picks.
        yield Line("soft_nms", case, arguments, call, first_videos, CLOSE, peers, required=0.995)


def pick_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    arguments = scored(device, sizes.batch, cases.ANCHORS)
    index, _ = kernels.nms(*arguments, tiou_threshold=0.9, max_output=sizes.outputs)
    case = f"B={sizes.batch} N={cases.ANCHORS} best {sizes.outputs}"
    yield Line("pick", case, (*arguments, index), kernels.pick, peers={"eager torch": rows_by_gather})
