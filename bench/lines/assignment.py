"""Anchors and ground truths: matching, assignment, and the table of pairs."""

import functools
from collections.abc import Iterator

import ahernet_kernels as kernels
from torch import Tensor

from bench import cases
from bench.lines.line import CANDIDATE_CLASSES, Line, Sizes, compiled
from bench.peers import assignment, pairs


def truths(device: str, videos: int, most: int) -> tuple[Tensor, ...]:
    """Arguments of `assign`."""
    return tuple(part.to(device) for part in (cases.anchors(), *cases.ground_truths(videos, most)))


def assign_broadcast(
    anchors: Tensor, segments: Tensor, labels: Tensor, offsets: Tensor, most: int
) -> tuple[Tensor, ...]:
    matched = assignment.match_broadcast(anchors, segments, offsets, most)
    return assignment.assigned(anchors, segments, labels, matched)


def assign_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    most = sizes.most_ground_truths
    everything = truths(device, sizes.batch, most)
    case = f"B={sizes.batch} G<={most}"

    def broadcast(*arguments: Tensor) -> tuple[Tensor, ...]:
        return assign_broadcast(*arguments, most=most)

    peers = {"torch broadcast": broadcast, **compiled(broadcast, device)}
    yield Line("assign", case, everything, kernels.assign, peers=peers)
    yield Line("assign", f"{case} forced", everything, functools.partial(kernels.assign, force_match=True))
    anchors, gt_segments, _, gt_offsets = everything
    peers = {"torch broadcast": functools.partial(assignment.match_broadcast, most=most)}
    yield Line("match", case, (anchors, gt_segments, gt_offsets), kernels.match, peers=peers)


def assign_sweep(device: str, sizes: Sizes) -> Iterator[Line]:
    points = [
        *(("ground truths", most, sizes.small_batch, most) for most in sizes.sweep_ground_truths),
        *(("videos", videos, videos, sizes.most_ground_truths) for videos in sizes.sweep_videos),
    ]
    for axis, value, videos, most in points:
        peers = {"torch broadcast": functools.partial(assign_broadcast, most=most)}
        case = f"sweep of {axis}, B={videos} G<={most}"
        arguments = truths(device, videos, most)
        yield Line("assign", case, arguments, kernels.assign, peers=peers, axis=axis, value=value)


def pairwise_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    a, b = (cases.candidates(1, sizes.pairs, CANDIDATE_CLASSES, seed)[0][0].to(device) for seed in (0, 1))
    peers = {"torch broadcast": pairs.torch_broadcast}
    yield Line("pairwise_tiou", f"{sizes.pairs} x {sizes.pairs}", (a, b), kernels.pairwise_tiou, peers=peers)
