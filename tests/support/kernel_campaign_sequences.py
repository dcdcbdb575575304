"""Calls of the ops that bring sequences to a length: resample, resample_checked, stretch, and backward."""

from types import SimpleNamespace
from typing import Any

import kernel_references_in_fp64 as exact
import numpy as np
import torch
from kernel_campaign_checks import Booleans, Check, Outcome, beyond, by_case, differs
from kernel_campaign_draws import DTYPES, Draws, tensor_of
from kernel_references_in_fp64 import Doubles, Integers, Near
from torch import Tensor

OF_ROWS = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 7e4, 1e-40], np.float32)
OF_GRADIENTS = np.array([np.nan, np.inf, -np.inf, 1e30, 1e-40], np.float32)  # a sum of several 3e38 would be infinite
STEPS = (1, 2, 3, 7, 16)
UNSURE = 0.01  # around the largest number of a dtype, whether a mean is beyond it


def _hold_resample(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    """Forward, backward and the checked form: a video is right if it is so in all three."""
    videos, most = (max(1, size // 50), 200) if draws.chance(0.02) else (size, draws.between(1, 14))
    offsets, steps, channels = draws.offsets(videos, most), int(draws.one_of(*STEPS)), draws.between(1, 3)
    rows = int(offsets[-1]) + draws.between(0, 2)  # some are of no video
    features = draws.given(draws.with_special(draws.normal((rows, channels)), OF_ROWS))
    gradient = torch.from_numpy(draws.with_special(draws.normal((videos, steps, channels)), OF_GRADIENTS))
    dtype, given = DTYPES[draws.between(0, len(DTYPES) - 1)], torch.from_numpy(offsets)
    output = ops.resample(features, given, steps)
    backward = ops.resample_backward(gradient, given, rows)
    checked, finite = ops.resample_checked(features, given, steps, dtype)
    lengths = np.diff(offsets)
    weights = exact.shares(np.arange(steps), np.full((videos, 1), steps), lengths[:, None], int(lengths.max(initial=1)))
    padded, place = _padded(features.double().numpy(), offsets, weights.shape[2])
    forward = _applied(weights, padded)
    wrong = by_case(_off(output, forward))
    expected = _applied(weights.transpose(0, 2, 1), gradient.double().numpy())
    by_row = np.zeros((rows, channels), np.bool_)
    by_row[place[0]] = _off(backward[place[0]], Near(expected.value[place[1:]], expected.bound[place[1:]]))
    np.logical_or.at(wrong, place[1], by_case(by_row[place[0]]))
    wrong |= _wrong_of_checked(checked, finite, output, padded)
    clean = ops.resample(torch.where(features.isfinite(), features, 1.0), given, steps)
    wrong |= differs(output, clean) & np.isfinite(padded).all(axis=(1, 2))
    stray = backward[int(offsets[-1]) :].ne(0).any()

    def show(case: int) -> dict[str, Any]:
        here = slice(int(offsets[case]), int(offsets[case + 1]))
        given = {"features": features[here], "steps": steps, "output": output[case], "finite": finite[case]}
        given |= {"expected": forward.value[case], "bound": forward.bound[case], "gradient": gradient[case]}
        given |= {"backward": backward[here], "expected backward": expected.value[case, : here.stop - here.start]}
        return given | {"dtype": str(dtype), "checked": checked[case]}

    return Outcome(wrong, show, {"gradient of rows of no video": backward[int(offsets[-1]) :]} if stray else {})


def _padded(features: Doubles, offsets: Integers, most: int) -> tuple[Doubles, tuple[Integers, Integers, Integers]]:
    """Rows as `(B, most, D)`, 0 behind those of a video; which rows these are, of which video, and where there."""
    lengths = np.diff(offsets)
    row, video = np.arange(offsets[-1]), np.repeat(np.arange(len(lengths)), lengths)
    own = row - offsets[video]
    padded = np.zeros((len(lengths), most, features.shape[1]))
    padded[video, own] = features[row]
    return padded, (row, video, own)


def _applied(weights: Doubles, values: Doubles) -> Near:
    """`(B, n, k)` weights times `(B, k, D)` values."""
    videos, count, most = weights.shape
    repeated = np.repeat(values, count, axis=0)
    value, bound = exact.weighted_sum(weights.reshape(-1, most), repeated)
    return Near(value.reshape(videos, count, -1), bound.reshape(videos, count, -1))


def _off(found: Tensor, near: Near) -> Booleans:
    """Which values are further off than their bound."""
    return beyond(found, near.value, near.bound)


def _wrong_of_checked(checked: Tensor, finite: Tensor, output: Tensor, padded: Doubles) -> Booleans:
    """Videos whose sequence is not that of `resample` rounded, or is taken for finite and is not, or not for it."""
    largest, rounding = torch.finfo(checked.dtype).max, torch.finfo(checked.dtype)
    exactly = output.double().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        bound = np.abs(exactly) * (rounding.eps if checked.dtype != torch.float32 else 0)
        size = np.where(np.isfinite(exactly), np.abs(exactly), 0).max(axis=(1, 2), initial=0)
        wanted = np.where(np.abs(exactly) > largest, np.sign(exactly) * np.inf, exactly)
    wrong = beyond(checked, wanted, np.nan_to_num(bound, posinf=0) + rounding.smallest_normal * rounding.eps)
    unsure = (size > largest * (1 - UNSURE)) & (size < largest * (1 + UNSURE))
    expected = np.isfinite(padded).all(axis=(1, 2)) & (size < largest)
    flags: Booleans = (finite.numpy() != expected) | by_case(wrong)
    return flags & ~unsure


def _hold_stretch(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    """Forward and the gradients of the three pieces: a video is right if it is so in all four."""
    steps, channels, videos, each = draws.between(1, 12), draws.between(1, 3), size, draws.between(1, 3)
    rows = [draws.between(1, 8) for _ in range(3)]
    if draws.chance(0.02):
        rows[draws.between(0, 2)], videos = 100, max(1, size // 20)
    sequences = videos * each
    pieces = []
    for count in rows:
        values = draws.with_special(draws.normal((sequences, count, channels)), OF_ROWS)
        pieces.append(tensor_of(values, DTYPES[draws.between(0, len(DTYPES) - 1)]))
    cuts = np.sort(draws.random.integers(0, steps + 1, (sequences, 2)), axis=1)
    lengths = np.diff(cuts, prepend=0, append=steps, axis=1)
    gradient = torch.from_numpy(draws.with_special(draws.normal((videos, steps, channels)), OF_GRADIENTS))
    numbers = draws.random.integers(0, each, (videos, steps))
    given, shown = torch.from_numpy(lengths), torch.from_numpy(numbers)
    output = ops.stretch(*pieces, given, shown)
    clean = ops.stretch(*(torch.where(x.isfinite(), x, 1.0) for x in pieces), given, shown)
    # Of a video's sequences all rows are in one table of its own, and a step sees those of the one that it shows.
    joined = torch.cat([x.double() for x in pieces], dim=1).numpy().reshape(videos, -1, channels)
    is_shown = numbers[:, :, None] == np.arange(each)
    weights = _weights_of_stretch(lengths, rows, steps).reshape(videos, each, steps, -1)
    weights = (weights.swapaxes(1, 2) * is_shown[..., None]).reshape(videos, steps, -1)
    forward = _applied(weights, joined)
    wrong = by_case(_off(output, forward)) | (differs(output, clean) & np.isfinite(joined).all(axis=(1, 2)))
    expected = _applied(weights.transpose(0, 2, 1), gradient.double().numpy())
    expected = Near(*(x.reshape(sequences, -1, channels) for x in expected))
    backward = []
    for piece, count in enumerate(rows):
        here = slice(sum(rows[:piece]), sum(rows[: piece + 1]))
        backward.append(ops.stretch_backward(gradient, given, shown, piece, count, torch.float32))
        off = _off(backward[piece], Near(expected.value[:, here], expected.bound[:, here]))
        wrong |= by_case(off.reshape(videos, -1))

    def show(case: int) -> dict[str, Any]:
        own = slice(case * each, (case + 1) * each)
        named = {f"piece {number}": x[own] for number, x in enumerate(pieces)}
        named |= {"lengths": given[own], "shown": shown[case], "output": output[case], "expected": forward.value[case]}
        named |= {"gradient": gradient[case], "backward": torch.cat([x[own] for x in backward], dim=1)}
        return named | {"expected backward": expected.value[own]}

    return Outcome(wrong, show)


def _weights_of_stretch(lengths: Integers, rows: list[int], steps: int) -> Doubles:
    """`(B, steps, rows of all pieces)`: a step sees the piece that it is in, and no other."""
    parts, first = [], np.zeros((len(lengths), 1), np.int64)
    for piece, count in enumerate(rows):
        size = lengths[:, piece, None]
        own = np.arange(steps) - first
        inside = (own >= 0) & (own < size)
        part = exact.shares(np.where(inside, own, 0), size, np.full_like(own, count), count)
        parts.append(np.where(inside[..., None], part, 0))
        first = first + size
    return np.concatenate(parts, axis=2)


CHECKS = {
    "resample": Check(
        "a video of 0 to 14 rows (some: up to 200): resample, backward and resample_checked", 1000, _hold_resample
    ),
    "stretch": Check(
        "a video: three pieces of 1 to 8 rows (some: 100) of 1 to 3 sequences, forward and three gradients",
        1000,
        _hold_stretch,
    ),
}
