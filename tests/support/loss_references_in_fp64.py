"""Losses and their gradients in fp64, from their formulas: of each cell or anchor its own, and the sums."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from kernel_campaign_checks import fp32
from kernel_references_in_fp64 import EPSILON, TINIEST, Doubles, Near, class_logits, exponential

HUGE = 1e37  # a sum of more than this may have gone beyond fp32 on its way


@dataclass(frozen=True)
class ClassLoss:
    """Of the labelled cells of one scale: the sum of their losses, and the gradients of it."""

    total: Near
    features: Near
    weights: Near
    biases: Near


def class_loss(features: Doubles, weights: Doubles, biases: Doubles, labels: npt.NDArray[np.int64]) -> ClassLoss:
    """Softmax cross-entropy of `(n, d)` labelled cells; the gradient of a logit is its probability, less 1 if right.

    A logit that is off by b takes its probability off by exp(2 b) at most, for the sum is off as well.
    """
    cells, classes = len(features), len(weights)
    logits = class_logits(features, weights, biases)
    off = np.where(np.isfinite(logits.value), logits.bound, 0).max(axis=1, initial=0)
    off = off + 4 * EPSILON * np.abs(np.where(np.isfinite(logits.value), logits.value, 0)).max(axis=1, initial=0)
    top = logits.value.max(axis=1, initial=-np.inf)
    log_sum = top + np.log(sum(np.exp(logits.value[:, c] - top) for c in range(classes)))
    losses = log_sum - logits.value[np.arange(cells), labels]
    rounding = 2 * off + (classes + 16) * EPSILON * (1 + np.abs(losses))
    total = Near(losses.sum(), rounding.sum() + cells * EPSILON * np.abs(losses).sum() + TINIEST)
    probability = np.exp(logits.value - log_sum[:, None])
    is_label = np.arange(classes) == labels[:, None]
    slope = probability - is_label
    slope_off = (np.expm1(2 * off) + (classes + 16) * EPSILON)[:, None] * probability + 4 * EPSILON * is_label
    return ClassLoss(
        total,
        _products(slope, slope_off, weights),
        _products(slope.T, slope_off.T, features),
        Near(slope.sum(axis=0), slope_off.sum(axis=0) + cells * EPSILON * np.abs(slope).sum(axis=0) + TINIEST),
    )


def _products(slope: Doubles, slope_off: Doubles, factors: Doubles) -> Near:
    """A product of two tables of which one is off, summed in fp32 in any order."""
    rounding = (len(factors) + 4) * EPSILON * (np.abs(slope) @ np.abs(factors))
    return Near(slope @ factors, slope_off @ np.abs(factors) + rounding + TINIEST)


@dataclass(frozen=True)
class ProposalLoss:
    """Of each anchor its terms of both losses, and the gradients of these."""

    offset: Near
    overlap: Near
    centre_gradient: Near
    width_gradient: Near
    overlap_gradient: Near


def proposal_loss(
    offsets: Doubles,
    overlaps: Doubles,
    anchors: Doubles,
    targets: Doubles,
    tiou: Doubles,
    scales: tuple[float, float],
) -> ProposalLoss:
    """Of anchors `(..., 2)`, all as if they were foreground: smooth-L1 of centre and width, square of the overlap."""
    centre_scale, width_scale = (float(np.float32(scale)) for scale in scales)
    with np.errstate(invalid="ignore", over="ignore"):
        step = centre_scale * anchors[..., 1]
        moved = fp32(step * offsets[..., 0])
        centre = _distance(anchors[..., 0] + moved, (targets[..., 0] + targets[..., 1]) / 2, np.abs(moved) + 2)
        log_width = fp32(width_scale * offsets[..., 1])
        width = fp32(anchors[..., 1] * exponential(log_width))
        grown = (np.abs(log_width) + 8) * EPSILON  # how far the width is off, as a share of it
        wide = _distance(width, targets[..., 1] - targets[..., 0], (np.abs(log_width) + 8) * width + 2)
        offset = Near(
            _smooth_l1(centre.value) + _smooth_l1(wide.value),
            centre.bound + wide.bound + 8 * EPSILON * (_smooth_l1(centre.value) + _smooth_l1(wide.value)),
        )
        centre_gradient = _slope(centre, step, 4 * EPSILON)
        width_gradient = _slope(wide, fp32(width * width_scale), grown)
    predicted = np.where(np.isnan(overlaps), np.nan, 1 / (1 + np.exp(-np.clip(overlaps, -700, 700))))
    error = predicted - tiou
    off = 16 * EPSILON * (predicted + np.abs(tiou)) + TINIEST
    return ProposalLoss(
        offset,
        Near(error**2, 2 * np.abs(error) * off + off**2),
        centre_gradient,
        width_gradient,
        Near(2 * error * predicted * (1 - predicted), 4 * off * predicted + TINIEST),
    )


def _distance(value: Doubles, wanted: Doubles, size: Doubles) -> Near:
    return Near(fp32(value - wanted), _finite(8 * EPSILON * (size + np.abs(wanted))) + TINIEST)


def _slope(distance: Near, factor: Doubles, factor_off: Doubles | float) -> Near:
    """Smooth-L1's derivative times a factor that is off by a share of itself."""
    value = fp32(np.clip(distance.value, -1, 1) * factor)
    return Near(value, _finite(distance.bound * np.abs(factor) + np.abs(value) * (factor_off + 8 * EPSILON)) + TINIEST)


def _smooth_l1(distance: Doubles) -> Doubles:
    size = np.abs(distance)
    return np.where(size < 1, size * size / 2, size - 0.5)


def _finite(bound: Doubles) -> Doubles:
    return np.nan_to_num(bound, nan=0, posinf=0)


def mean(terms: Near, count: int) -> Near:
    """Mean of terms that fp32 adds up in any order; no terms have the mean 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        total, size = terms.value.sum(), np.abs(terms.value).sum()
        bound = terms.bound.sum() + (len(terms.value) + 4) * EPSILON * size
        return Near(total / max(1, count), np.nan_to_num(bound / max(1, count), nan=0, posinf=0) + TINIEST)
