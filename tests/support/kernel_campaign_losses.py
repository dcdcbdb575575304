"""Calls of the losses: gradients of each cell or anchor, and the sums that all of a call have together."""

from types import SimpleNamespace
from typing import Any

import loss_references_in_fp64 as exact
import numpy as np
import torch
from kernel_campaign_cells import OF_FEATURES, OF_LOGITS, SCALES, Floats, cleaned, maps_of, scales_of, values_of
from kernel_campaign_checks import Booleans, Check, Outcome, beyond, by_case, differs
from kernel_campaign_draws import Draws, in_a_layout
from kernel_references_in_fp64 import Near
from torch import Tensor

OF_OFFSETS = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 80.0, -200.0, 1e4, -1e4, 0.0], np.float32)
WEIGHTS = ((1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (-2.5, 7.0), (3.0, 0.0))


def _hold_classification_loss(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    videos, cells = scales_of(draws, size)
    classes = draws.between(10, 40) if draws.chance(0.1) else draws.between(1, 8)
    labels = torch.from_numpy(_labels(draws, (videos, sum(cells)), classes))
    features, weights, biases = [], [], []
    for length in cells:
        depth = draws.between(1, 6)
        features += maps_of(draws, draws.normal((videos, length, depth)), [length])
        weights.append(draws.given(draws.normal((classes, depth)) * np.float32(draws.one_of(1.0, 0.1, 100.0))))
        biases.append(draws.given(_biases(draws, classes, labels)))
    (features,) = in_a_layout(draws, features)
    loss, gradients = ops.classification_loss_and_gradients(features, weights, biases, labels)
    labelled = (labels >= 0) & (labels < classes)
    count, wrong, together, total = max(1, int(labelled.sum())), [], {}, Near(np.zeros(()), np.zeros(()))
    of_features, of_weights, of_biases = (gradients[k * len(cells) : (k + 1) * len(cells)] for k in range(3))
    for scale, x in enumerate(features):
        here = slice(sum(cells[:scale]), sum(cells[: scale + 1]))
        chosen = labelled[:, here].numpy()
        expected = exact.class_loss(
            values_of([x])[chosen],
            weights[scale].double().numpy(),
            biases[scale].double().numpy(),
            labels[:, here].numpy()[chosen],
        )
        total = Near(total.value + expected.total.value, total.bound + expected.total.bound)
        of_cells = of_features[scale].transpose(1, 2)
        is_wrong = of_cells.ne(0).any(dim=2).numpy()  # of cells without a label
        is_wrong[chosen] = by_case(_off(of_cells[torch.from_numpy(chosen)], expected.features, count))
        wrong.append(is_wrong)
        for name, found, near in (("weights", of_weights, expected.weights), ("biases", of_biases, expected.biases)):
            if _off(found[scale], near, count).any():
                together[f"gradient of {name}[{scale}]"] = found[scale], near.value / count
    if _off(loss, total, count).any():
        together["loss"] = loss, total.value / count
    wrong, shown = np.concatenate(wrong, axis=1), (features, weights, biases, labels)
    spread, more = _spread_of_class_loss(ops, draws, shown, (loss, gradients), classes)

    def show(case: int) -> dict[str, Any]:
        video, cell = divmod(case, sum(cells))
        scale = int(np.searchsorted(np.cumsum(cells), cell, side="right"))
        at = cell - sum(cells[:scale])
        given = {"features": features[scale][video, :, at], "weights": weights[scale], "biases": biases[scale]}
        given |= {"label": labels[video, cell], "labelled cells": count}
        return given | {"gradient": of_features[scale][video, :, at]}

    return Outcome((wrong | spread).ravel(), show, together | more)


def _labels(draws: Draws, shape: tuple[int, int], classes: int) -> np.ndarray:
    """Classes, and as often as not what is none."""
    values = draws.random.integers(0, classes, shape)
    none = np.array([-1, -1, -7, classes, 1 << 40])[draws.random.integers(0, 5, shape)]
    return np.where(draws.random.random(shape) < draws.one_of(0.0, 0.1, 0.5, 1.0), values, none)


def _biases(draws: Draws, classes: int, labels: Tensor) -> Floats:
    """Of which some rule out classes that are no label."""
    biases = draws.normal((classes,))
    unused = ~np.isin(np.arange(classes), labels.numpy())
    return np.where(unused & (draws.random.random(classes) < 0.3), np.float32(-np.inf), biases)


def _off(found: Tensor, near: Near, count: int) -> Booleans:
    """Which sums, divided by a count, are further off than they may be, with the rounding and range of their dtype."""
    value, finest = near.value / count, torch.finfo(found.dtype)
    rounding = 4 * 2.0**-24 if found.dtype == torch.float32 else finest.eps
    bound = near.bound / count + np.abs(value) * rounding + finest.smallest_normal * finest.eps
    with np.errstate(invalid="ignore"):
        is_at_the_end = np.abs(np.abs(value) - finest.max) <= 2 * finest.eps * finest.max  # infinite or not
        value = np.where(np.abs(value) > finest.max, np.sign(value) * np.inf, value)
    return beyond(found, value, np.nan_to_num(bound, nan=0, posinf=0)) & ~is_at_the_end


def _spread_of_class_loss(
    ops: SimpleNamespace,
    draws: Draws,
    arguments: tuple[list[Tensor], list[Tensor], list[Tensor], Tensor],
    clean: tuple[Tensor, list[Tensor]],
    classes: int,
) -> tuple[Booleans, dict[str, Any]]:
    """Where a call with features that are not finite differs from one without, at cells that have none of them."""
    features, weights, biases, labels = arguments
    struck = []
    for x in features:
        rows = draws.with_special(x.transpose(1, 2).float().numpy().reshape(-1, x.shape[1]), OF_FEATURES)
        values = torch.from_numpy(rows).view(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)
        struck.append(values.to(x.dtype))
    loss, gradients = ops.classification_loss_and_gradients(struck, weights, biases, labels)
    labelled, wrong, together, first, hit_any = (labels >= 0) & (labels < classes), [], {}, 0, False
    for scale, x in enumerate(struck):
        hit = ~x.isfinite().all(dim=1)
        counts = hit & labelled[:, first : first + x.shape[2]]
        first += x.shape[2]
        hit_any |= bool(counts.any())
        pair = (given[1][scale].transpose(1, 2).flatten(0, 1) for given in (clean, (loss, gradients)))
        wrong.append(differs(*pair).reshape(hit.shape) & ~counts.numpy())
        if not counts.any():
            for part in (scale + len(features), scale + 2 * len(features)):
                if differs(gradients[part], clean[1][part]).any():
                    together[f"gradient {part} beside what is not finite"] = gradients[part], clean[1][part]
    expected = not loss.isfinite() if hit_any else bool(loss == clean[0])
    if not expected:
        together["loss beside what is not finite"] = loss, clean[0]
    return np.concatenate(wrong, axis=1), together


def _hold_proposal_loss(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    ratios = draws.between(1, 3)
    videos, cells = scales_of(draws, max(1, size // ratios))
    shape = (videos, ratios * sum(cells))
    offsets = draws.with_special(draws.normal((*shape, 2)).reshape(-1, 2), OF_OFFSETS).reshape(*shape, 2)
    overlaps = draws.with_special(draws.normal(shape).reshape(-1, 1), OF_LOGITS).reshape(shape)
    maps = in_a_layout(
        draws,
        maps_of(draws, offsets.reshape(videos, sum(cells), 2 * ratios), cells),
        maps_of(draws, overlaps.reshape(videos, sum(cells), ratios), cells),
    )
    anchors = draws.given(_in_the_video(draws, (shape[1], 2)))
    kind = torch.from_numpy(np.array([-1, 0, 1, 1])[draws.random.integers(draws.between(0, 2), 4, shape)])
    targets, tiou = (torch.from_numpy(_in_the_video(draws, (*shape, *more))) for more in ((2,), ()))
    scales = (draws.one_of(*SCALES), draws.one_of(*SCALES))
    weights = WEIGHTS[draws.between(0, len(WEIGHTS) - 1)]
    constants = (anchors, kind, targets, tiou, *scales)
    losses, gradients = ops.proposal_loss(*maps, *constants, weights=weights)
    _, again = ops.proposal_loss(*map(cleaned, maps), *constants, weights=weights)
    given = [values_of(maps[0]).reshape(*shape, 2), values_of(maps[1]).reshape(shape)]
    of_anchors = anchors.double().numpy()[None]
    expected = exact.proposal_loss(*given, of_anchors, targets.double().numpy(), tiou.double().numpy(), scales)
    foreground = kind.numpy() == 1
    found = _per_anchor(gradients, shape)
    wanted = (expected.centre_gradient, expected.width_gradient, expected.overlap_gradient)
    divisors = (max(1, int(foreground.sum())),) * 2 + (kind.numel(),)
    wrong = np.zeros(shape, np.bool_)
    for part, (near, divisor) in enumerate(zip(wanted, divisors, strict=True)):
        weight, counts = weights[part // 2], foreground if part < 2 else np.ones(shape, np.bool_)
        scaled = _times(near, weight)
        # What a weight of 0 makes of a gradient that is not finite is not defined.
        is_off = _off(found[part], scaled, divisor) & (np.isfinite(near.value) | (weight != 0))
        wrong |= np.where(counts, is_off, found[part].ne(0).numpy())
    struck = ~np.isfinite(given[0]).all(axis=2) | ~np.isfinite(given[1])
    spread = [differs(*(x.flatten() for x in pair)) for pair in zip(found, _per_anchor(again, shape), strict=True)]
    wrong |= np.any(spread, axis=0).reshape(shape) & ~struck

    def show(case: int) -> dict[str, Any]:
        at = divmod(case, shape[1])
        of_case = {"offsets": given[0][at], "overlap": given[1][at], "anchor": anchors[at[1]], "kind": kind[at]}
        of_case |= {"target": targets[at], "tiou": tiou[at], "scales": scales, "weights": weights}
        of_case |= {"divisors": divisors, "gradients": torch.stack([x[at] for x in found])}
        return of_case | {"expected sums": [near.value[at] for near in wanted]}

    return Outcome(wrong.ravel(), show, _wrong_means(losses, expected, foreground))


def _in_the_video(draws: Draws, shape: tuple[int, ...]) -> Floats:
    """Fp32 in [0, 1], some on a grid, 0 and 1 among them."""
    on_grid = draws.random.integers(0, 9, shape).astype(np.float32) / np.float32(8)
    return np.where(draws.random.random(shape) < 0.5, on_grid, draws.random.random(shape)).astype(np.float32)


def _per_anchor(gradients: list[list[Tensor]], shape: tuple[int, int]) -> list[Tensor]:
    """Gradients of centres, widths and overlaps, (B, A) each."""
    of_offsets, of_overlaps = (torch.cat([x.transpose(1, 2) for x in maps], dim=1) for maps in gradients)
    return [*of_offsets.reshape(*shape, 2).unbind(-1), of_overlaps.reshape(shape)]


def _times(near: Near, weight: float) -> Near:
    with np.errstate(invalid="ignore"):
        return Near(near.value * weight, near.bound * abs(weight))


def _wrong_means(losses: list[Tensor], expected: exact.ProposalLoss, foreground: Booleans) -> dict[str, Any]:
    """The losses that are not the means of their terms."""
    chosen = Near(expected.offset.value[foreground], expected.offset.bound[foreground])
    means = {
        "offset": exact.mean(chosen, int(foreground.sum())),
        "overlap": exact.mean(Near(expected.overlap.value.ravel(), expected.overlap.bound.ravel()), foreground.size),
    }
    wrong = {}
    for found, (name, near) in zip(losses, means.items(), strict=True):
        if np.isfinite(near.value) and near.value * foreground.size > exact.HUGE:  # what is added up may overflow
            is_right = not found.isnan() and float(found) > exact.HUGE / foreground.size / 2
        else:
            is_right = not _off(found, near, 1).any()
        if not is_right:
            wrong[f"{name} loss"] = found, near
    return wrong


CHECKS = {
    "classification_loss": Check(
        "a cell of a video, with a label or without, and its gradient; sums by call", 1000, _hold_classification_loss
    ),
    "proposal_loss": Check("an anchor of a video with its three gradients; sums by call", 1000, _hold_proposal_loss),
}
