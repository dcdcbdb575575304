"""Calls of the ops whose contract is exact: every index, label and temporal IoU must be the one and only."""

from types import SimpleNamespace
from typing import Any

import kernel_references_batched as batched
import numpy as np
import torch
from kernel_campaign_blocks import small_waves
from kernel_campaign_checks import Check, Outcome, differs
from kernel_campaign_draws import Draws
from soft_nms_replay import wrong_videos
from torch import Tensor

SIGMAS = (1e-6, 0.01, 0.3, 0.5, 2.0, 1e30)
MINIMA = (-np.inf, -np.inf, 0.0, 0.05, 0.3, 1e-41, np.inf)


def _ragged(draws: Draws, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors, and ground truths of videos; in some calls many anchors or many truths, of fewer videos."""
    anchors, most, videos = draws.between(0, 12), draws.between(0, 5), size
    if draws.chance(0.03):
        anchors, most, videos = draws.between(100, 300), draws.between(0, 60), max(1, size // 200)
    if draws.chance(0.01):
        anchors, most, videos = draws.between(1, 5), draws.between(250, 600), max(1, size // 200)
    offsets = draws.offsets(videos, most)
    before, behind = (draws.between(0, 2) if draws.chance(0.2) else 0 for _ in range(2))
    rows = before + int(offsets[-1]) + behind  # those before and behind are of no video
    labels = torch.from_numpy(draws.random.integers(0, 4, rows))
    truths = draws.segments((rows,)) if rows else np.zeros((0, 2), np.float32)
    return draws.given(draws.anchors(anchors)), draws.given(truths), labels, torch.from_numpy(offsets + before)


def _hold_pairwise_tiou(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    a, b = draws.given(draws.segments((size,))), draws.given(draws.segments((draws.between(0, 24),)))
    actual, expected = ops.pairwise_tiou(a, b), batched.pairwise_tiou(a, b)

    def show(case: int) -> dict[str, Any]:
        return {"a": a[case], "b": b, "tiou": actual[case], "expected": expected[case]}

    return Outcome(differs(actual, expected), show)


def _hold_match(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    anchors, truths, _, offsets = _ragged(draws, size)
    actual, expected = ops.match(anchors, truths, offsets), batched.match(anchors, truths, offsets)

    def show(case: int) -> dict[str, Any]:
        rows = slice(int(offsets[case]), int(offsets[case + 1]))
        given = {"anchors": anchors, "gt_segments": truths[rows], "first row": rows.start}
        return given | _results(("index", "tiou"), actual, expected, case)

    return Outcome(_any_differs(actual, expected), show)


def _hold_assign(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    anchors, truths, labels, offsets = _ragged(draws, size)
    tious = batched.match(anchors, truths, offsets)[1].numpy()
    settings = (draws.threshold(tious), draws.threshold(tious), draws.chance(0.5))
    arguments = (anchors, truths, labels, offsets, *settings)
    actual, expected = ops.assign(*arguments), batched.assign(*arguments)

    def show(case: int) -> dict[str, Any]:
        rows = slice(int(offsets[case]), int(offsets[case + 1]))
        given = {"anchors": anchors, "gt_segments": truths[rows], "gt_labels": labels[rows], "settings": settings}
        return given | _results(("kind", "labels", "targets", "tiou"), actual, expected, case)

    return Outcome(_any_differs(actual, expected), show)


def _candidates(draws: Draws, videos: int, size: int) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """Segments, scores and labels of candidates, and a threshold that some of their pairs may have exactly."""
    rows = draws.segments((videos, size)) if size else np.zeros((videos, 0, 2), np.float32)
    few = batched.segments_of(rows[:20])
    tious = batched.tiou_of(batched.at(few, (..., slice(1, None))), batched.at(few, (..., slice(0, -1))))
    labels = torch.from_numpy(draws.labels((videos, size))) if draws.chance(0.5) else None
    scores = draws.scores((videos, size))
    scores[draws.random.random(videos) < 0.05] = -np.inf  # videos without a candidate
    return draws.given(rows), draws.given(scores), labels, draws.threshold(tious)


def _hold_nms(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    if draws.chance(0.05):
        return _held_nms(ops.nms, draws, max(1, size // 50), draws.between(150, 600))
    return _held_nms(ops.nms, draws, size, draws.between(0, 40) if draws.chance(0.1) else draws.between(0, 12))


def _hold_nms_large(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    with small_waves(draws):
        return _held_nms(ops.nms_large, draws, size, draws.between(9, 30))


def _held_nms(op: Any, draws: Draws, videos: int, size: int) -> Outcome:
    segments, scores, labels, threshold = _candidates(draws, videos, size)
    settings = (threshold, draws.between(1, max(1, size + 2)), draws.one_of(*MINIMA))
    arguments = (segments, scores, labels, *settings)
    actual, expected = op(*arguments), batched.nms(*arguments)

    def show(case: int) -> dict[str, Any]:
        return _given(arguments, case) | _results(("index", "count"), actual, expected, case)

    return Outcome(_any_differs(actual, expected), show)


def _hold_soft_nms_linear(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    segments, scores, labels, threshold = _candidates(draws, size, draws.between(0, 12))
    settings = (threshold, draws.between(1, 14), draws.one_of(*MINIMA))
    actual = ops.soft_nms(segments, scores, labels, "linear", *settings)
    expected = batched.soft_nms_linear(segments, scores, labels, *settings)

    def show(case: int) -> dict[str, Any]:
        given = _given((segments, scores, labels, *settings), case)
        return given | _results(("index", "scores", "count"), actual, expected, case)

    return Outcome(_any_differs(actual, expected), show)


def _hold_soft_nms_gaussian(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    segments, scores, labels, _ = _candidates(draws, size, draws.between(0, 12))
    scores = scores.clamp(max=3e38 if scores.dtype != torch.float16 else 6e4)  # infinity times 0 is no number
    sigma, outputs, minimum = draws.one_of(*SIGMAS), draws.between(1, 14), draws.one_of(*MINIMA)
    actual = ops.soft_nms(segments, scores, labels, "gaussian", sigma, outputs, minimum)
    wrong = wrong_videos(segments, scores, labels, sigma, minimum, actual)

    def show(case: int) -> dict[str, Any]:
        given = _given((segments, scores, labels, sigma, outputs, minimum), case)
        return given | {name: x[case] for name, x in zip(("index", "scores", "count"), actual, strict=True)}

    return Outcome(wrong, show)


def _hold_pick(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    count = draws.between(0, 12)
    segments, scores, _, _ = _candidates(draws, size, count)
    labels = torch.from_numpy(draws.labels((size, count)))
    index = draws.random.integers(-1, max(count, 0), (size, draws.between(0, 9))) if count else None
    index = torch.full((size, 3), -1) if index is None else torch.from_numpy(index)
    arguments = (segments, scores, labels, index)
    actual, expected = ops.pick(*arguments), batched.pick(*arguments)

    def show(case: int) -> dict[str, Any]:
        given = {"segments": segments[case], "scores": scores[case], "labels": labels[case], "index": index[case]}
        return given | _results(("segments", "scores", "labels"), actual, expected, case)

    return Outcome(_any_differs(actual, expected), show)


def _any_differs(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> np.ndarray:
    return np.any([differs(*pair) for pair in zip(actual, expected, strict=True)], axis=0)


def _given(arguments: tuple[Any, ...], case: int) -> dict[str, Any]:
    segments, scores, labels, *settings = arguments
    of_case = {"segments": segments[case], "scores": scores[case], "settings": tuple(settings)}
    return of_case if labels is None else of_case | {"labels": labels[case]}


def _results(
    names: tuple[str, ...], actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], case: int
) -> dict[str, Any]:
    found = {f"result: {name}": x[case] for name, x in zip(names, actual, strict=True)}
    return found | {f"expected: {name}": x[case] for name, x in zip(names, expected, strict=True)}


CHECKS = {
    "pairwise_tiou": Check("a segment with all of a second set (0 to 24)", 1000, _hold_pairwise_tiou),
    "match": Check("a video: 0 to 5 ground truths, 0 to 12 anchors (some: up to 600 and 300)", 1000, _hold_match),
    "assign": Check("a video, as of match, with thresholds and forced matches", 1000, _hold_assign),
    "nms": Check("a video of 0 to 40 candidates (some: up to 600)", 1000, _hold_nms),
    "nms_large": Check("a video of 9 to 30 candidates in waves or tiles of a few", 1000, _hold_nms_large),
    "soft_nms_linear": Check("a video of 0 to 12 candidates", 1000, _hold_soft_nms_linear),
    "soft_nms_gaussian": Check("a video of 0 to 12 candidates", 1000, _hold_soft_nms_gaussian),
    "pick": Check("a video of 0 to 12 candidates and 0 to 9 positions", 1000, _hold_pick),
}
