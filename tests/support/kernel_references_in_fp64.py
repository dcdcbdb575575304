"""What ops that round should give, in fp64 for thousands of cases at a time, and by how much fp32 may be off.

Arrays over cases, loops over classes, channels or rows. What fp32 cannot hold is infinite here too.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from kernel_campaign_checks import fp32
from kernel_campaign_draws import LARGEST

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

EPSILON = 2.0**-24  # half a unit in the last place of 1 in fp32
TINIEST = 2.0**-125  # what is below half of it may be flushed to 0


class Near(NamedTuple):
    """Values, and how far from them a result may be."""

    value: Doubles
    bound: Doubles


class Logits(NamedTuple):
    """Logits `(cells, C)`, and how far from them a sum in fp32 may be, in whatever order."""

    value: Doubles
    bound: Doubles


def class_logits(features: Doubles, weights: Doubles, biases: Doubles) -> Logits:
    """Logits of `(cells, d)` features, channel by channel."""
    value = np.broadcast_to(biases, (len(features), len(biases))).astype(np.float64)
    size = np.abs(value)
    with np.errstate(invalid="ignore", over="ignore"):
        for channel in range(features.shape[1]):
            product = features[:, channel, None] * weights[:, channel]
            value, size = value + product, size + np.abs(product)
        return Logits(fp32(value), (features.shape[1] + 2) * EPSILON * size)


def best_class(logits: Doubles) -> tuple[Near, Integers]:
    """Probability and label of the best class of every row: the lowest of those that tie."""
    logits = np.where(np.isnan(logits), -np.inf, np.minimum(logits, LARGEST))
    top, label = np.full(len(logits), -np.inf), np.zeros(len(logits), np.int64)
    for number in range(logits.shape[1]):
        higher = logits[:, number] > top
        top, label = np.where(higher, logits[:, number], top), np.where(higher, number, label)
    total = np.zeros(len(logits))
    for number in range(logits.shape[1]):
        total += np.exp(logits[:, number] - np.where(top > -np.inf, top, 0))
    probability = np.where(top > -np.inf, 1 / np.where(total > 0, total, 1), 0)
    return Near(probability, (logits.shape[1] + 16) * EPSILON * probability), label


def sigmoid(values: Doubles) -> Near:
    """0 of what is no number."""
    with np.errstate(over="ignore"):
        result = np.where(np.isnan(values), 0, 1 / (1 + np.exp(-values)))
    return Near(result, 8 * EPSILON * result + TINIEST)


def exponential(values: Doubles) -> Doubles:
    """As fp32 can hold it."""
    with np.errstate(over="ignore"):
        return fp32(np.exp(values))


def decoded(
    centres: Doubles, widths: Doubles, centre_offsets: Doubles, width_offsets: Doubles, scales: tuple[float, float]
) -> tuple[Near, Near]:
    """Start and end of anchors that were moved by offsets: eq. 5, clipped to the video."""
    centre_scale, width_scale = (float(np.float32(scale)) for scale in scales)
    with np.errstate(invalid="ignore", over="ignore"):
        step = fp32(fp32(centre_scale * widths) * centre_offsets)
        centre = fp32(centres + step)
        log_width = fp32(width_scale * width_offsets)
        half = fp32(fp32(0.5 * widths) * exponential(log_width))
        valid = np.isfinite(centre) & ~np.isnan(half)
        bound = 4 * EPSILON * (np.abs(centres) + np.abs(step)) + TINIEST
        bound = np.where(np.isfinite(half), bound + np.abs(half) * (np.abs(log_width) + 8) * EPSILON, 0)
        bound = np.nan_to_num(bound)
        return _clipped(centre - half, bound, valid), _clipped(centre + half, bound, valid)


def _clipped(ends: Doubles, bound: Doubles, valid: npt.NDArray[np.bool_]) -> Near:
    lowest, highest = (np.clip(np.where(valid, ends + side * bound, 0), 0, 1) for side in (-1, 1))
    return Near((lowest + highest) / 2, (highest - lowest) / 2)


def shares(step: Integers, steps: Integers, rows: Integers, most: int) -> Doubles:
    """How much each of `most` rows has in each step of sequences of so many rows and steps; these broadcast.

    A step is the mean over its stretch of a signal that is linear between the middles of rows, and constant beyond the
    first and the last one. Everything is counted in units of a row by 2 * steps, in whole numbers, so that a row that
    only touches a step has exactly 0.
    """
    step, steps, rows = np.broadcast_arrays(step, steps, rows)
    unit = np.maximum(2 * steps, 1)
    low, high = 2 * step * rows, 2 * (step + 1) * rows
    share = np.zeros((*step.shape, most))
    for row in range(most):
        middle, is_last = (2 * row + 1) * steps, row == rows - 1
        if row == 0:
            share[..., row] += np.maximum(np.minimum(high, middle) - low, 0)
        share[..., row] += np.where(is_last, np.maximum(high - np.maximum(low, middle), 0), 0)
        if row + 1 < most:
            a, b = np.maximum(low, middle), np.minimum(high, middle + unit)
            inside = np.where((row + 1 < rows) & (b > a), b - a, 0)
            risen = ((a + b) / 2 - middle) / unit  # in the middle of what is inside: how much of it is the next row's
            share[..., row] += inside * (1 - risen)
            share[..., row + 1] += inside * risen
    return share / np.maximum(high - low, 1)[..., None]


def weighted_sum(weights: Doubles, values: Doubles) -> Near:
    """Sums over axis 1 of `(n, k)` weights times `(n, k, D)` values, without what weighs nothing."""
    total = np.zeros((len(weights), values.shape[2]))
    size, largest = np.zeros_like(total), np.zeros_like(total)
    count = np.zeros(len(weights))
    with np.errstate(invalid="ignore", over="ignore"):
        for k in range(weights.shape[1]):
            weighs = weights[:, k, None] > 0
            value = np.where(weighs, values[:, k], 0)
            total += weights[:, k, None] * value
            size += np.abs(weights[:, k, None] * value)
            largest = np.maximum(largest, np.abs(value))
            count += weighs[:, 0]
        heaviest = weights.max(axis=1, initial=0)[:, None]
        rounding = (count[:, None] + 8) * EPSILON * (size + heaviest * largest)
    return Near(total, np.nan_to_num(rounding, nan=0, posinf=0) + count[:, None] * TINIEST)
