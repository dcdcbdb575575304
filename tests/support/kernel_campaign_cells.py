"""Calls of the ops that look at each cell of a network's outputs: decode, decode_classified, classify."""

from types import SimpleNamespace
from typing import Any

import kernel_references_in_fp64 as exact
import numpy as np
import numpy.typing as npt
import torch
from kernel_campaign_checks import Booleans, Check, Outcome, by_case, differs
from kernel_campaign_draws import Draws, in_a_layout
from kernel_references_in_fp64 import Doubles, Near
from torch import Tensor

OF_LOGITS = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 88.0, 1e4, -1e4], np.float32)
OF_OFFSETS = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 80.0, -200.0, 1e4, -1e4], np.float32)
OF_FEATURES = np.array([np.nan, np.inf, -np.inf], np.float32)
SCALES = (1.0, 0.1, 0.2, 2.0)

Floats = npt.NDArray[np.float32]


def scales_of(draws: Draws, cases: int) -> tuple[int, list[int]]:
    """Videos, and the cells of each scale: about so many in all."""
    scales = draws.between(1, 4)
    videos = draws.between(1, min(40, cases))
    cells = [max(1, cases // videos // scales + draws.between(-1, 1)) for _ in range(scales)]
    if draws.chance(0.1):
        cells.append(0)
    return videos, cells


def maps_of(draws: Draws, values: Floats, cells: list[int]) -> list[Tensor]:
    """`(B, cells, channels)` values as one map `(B, channels, T_j)` per scale, in the dtype of the call."""
    parts = np.split(values, np.cumsum(cells)[:-1], axis=1)
    return [draws.given(part.transpose(0, 2, 1)) for part in parts]


def values_of(maps: list[Tensor]) -> Doubles:
    """What maps hold, `(B, cells, channels)` in fp64."""
    return torch.cat([x.transpose(1, 2) for x in maps], dim=1).double().numpy()


def network_numbers(draws: Draws, shape: tuple[int, ...], special: Floats) -> Floats:
    """Whole numbers, which tie, or any, with special ones in some cells."""
    values = draws.integers(shape) if draws.chance(0.4) else draws.normal(shape)
    return draws.with_special(values.reshape(-1, shape[-1]), special).reshape(shape)


def cleaned(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors with 1 in the place of everything that is not finite."""
    return [torch.where(x.isfinite(), x, 1.0) for x in tensors]


def _struck(per_cell: list[Doubles], anchors: Tensor) -> Booleans:
    """Which cells of which videos have anything that is not finite, anchors among it."""
    videos, cells = per_cell[0].shape[:2]
    of_values = [~np.isfinite(values).all(axis=2) for values in per_cell]
    of_anchors = ~np.isfinite(anchors.float().numpy().reshape(cells, -1)).all(axis=1) if cells else np.zeros(0, bool)
    struck: Booleans = np.any([*of_values, np.broadcast_to(of_anchors, (videos, cells))], axis=0)
    return struck


def _hold_decode(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    videos, cells = scales_of(draws, size)
    classes = draws.between(10, 40) if draws.chance(0.1) else draws.between(1, 6)
    outputs, anchors = _outputs(draws, videos, cells)
    logits = maps_of(draws, network_numbers(draws, (videos, sum(cells), classes), OF_LOGITS), cells)
    maps = in_a_layout(draws, logits, *outputs)
    scales = (draws.one_of(*SCALES), draws.one_of(*SCALES))
    actual = ops.decode(*maps, anchors, *scales)
    per_cell = [values_of(x) for x in maps]
    best, labels = exact.best_class(per_cell[0].reshape(-1, classes))
    again = ops.decode(*map(cleaned, maps), *cleaned([anchors]), *scales)
    return _held_decoding(actual, again, (best, labels), per_cell, anchors, scales)


def _hold_decode_classified(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    videos, cells = scales_of(draws, size)
    outputs, anchors = _outputs(draws, videos, cells)
    maps = in_a_layout(draws, *outputs)
    probability = torch.from_numpy(draws.random.random((videos, sum(cells))).astype(np.float32))
    labels = torch.from_numpy(draws.random.integers(0, 9, (videos, sum(cells))))
    scales = (draws.one_of(*SCALES), draws.one_of(*SCALES))
    actual = ops.decode_classified(probability, labels, *maps, anchors, *scales)
    again = ops.decode_classified(probability, labels, *map(cleaned, maps), *cleaned([anchors]), *scales)
    per_cell = [probability.double().numpy()[..., None], *map(values_of, maps)]
    best = Near(per_cell[0].ravel(), np.zeros(probability.numel()))
    return _held_decoding(actual, again, (best, labels.numpy().ravel()), per_cell, anchors, scales)


def _outputs(draws: Draws, videos: int, cells: list[int]) -> tuple[tuple[list[Tensor], list[Tensor]], Tensor]:
    """Offsets and overlaps of a network, and its anchors."""
    ratios = draws.between(1, 3)
    offsets = network_numbers(draws, (videos, sum(cells), 2 * ratios), OF_OFFSETS)
    overlaps = network_numbers(draws, (videos, sum(cells), ratios), OF_LOGITS)
    anchors = draws.random.uniform(0, 1, (ratios * sum(cells), 2)).astype(np.float32)
    if draws.chance(0.3):
        anchors = draws.with_special(anchors, np.array([np.nan, np.inf, -1.0, 0.0, 2.0, 3e38], np.float32))
    return (maps_of(draws, offsets, cells), maps_of(draws, overlaps, cells)), draws.given(anchors)


def _held_decoding(
    actual: tuple[Tensor, ...],
    again: tuple[Tensor, ...],
    best: tuple[Near, npt.NDArray[np.int64]],
    per_cell: list[Doubles],
    anchors: Tensor,
    scales: tuple[float, float],
) -> Outcome:
    """A case is a cell; `again` is the result without anything that is not finite: all other cells have it as well."""
    (probability, labels), (_, offsets, overlaps) = best, per_cell
    videos, cells, ratios = overlaps.shape
    shape = (videos * cells, ratios)
    of_anchors = np.tile(anchors.double().numpy().reshape(1, cells, ratios, 2), (videos, 1, 1, 1)).reshape(*shape, 2)
    moved = offsets.reshape(*shape, 2)
    ends = exact.decoded(of_anchors[..., 0], of_anchors[..., 1], moved[..., 0], moved[..., 1], scales)
    segments, scores, found_labels = (x.reshape(*shape, -1).numpy() for x in actual)
    wrong = [found_labels[..., 0] != labels[:, None]]
    for end, value in zip(ends, np.moveaxis(segments.astype(np.float64), -1, 0), strict=True):
        wrong.append(~(np.abs(value - end.value) <= end.bound + 2 * exact.EPSILON))
    overlap = exact.sigmoid(overlaps.reshape(shape))
    wanted = probability.value[:, None] * overlap.value
    bound = probability.bound[:, None] + overlap.bound + 4 * exact.EPSILON * wanted + exact.TINIEST
    scores, nothing = scores[..., 0].astype(np.float64), ~(segments[..., 1] > segments[..., 0])
    with np.errstate(invalid="ignore"):
        wrong.append(np.where(nothing, scores != -np.inf, ~(np.abs(scores - wanted) <= bound)))
    spread = [differs(*(x.reshape(videos * cells, -1) for x in pair)) for pair in zip(actual, again, strict=True)]
    spread_to = np.any(spread, axis=0) & ~_struck(per_cell, anchors).ravel()

    def show(case: int) -> dict[str, Any]:
        given = {f"input {number}": x.reshape(videos * cells, -1)[case] for number, x in enumerate(per_cell)}
        given |= {"anchors": of_anchors[case], "scales": scales, "segments": segments[case], "scores": scores[case]}
        given |= {"labels": found_labels[case, :, 0], "expected scores": wanted[case], "label": labels[case]}
        return given | {"expected ends": np.stack([end.value[case] for end in ends], axis=-1)}

    return Outcome(by_case(np.any(wrong, axis=0)) | spread_to, show)


def _hold_classify(ops: SimpleNamespace, draws: Draws, size: int) -> Outcome:
    videos, cells = scales_of(draws, size)
    classes = draws.between(10, 40) if draws.chance(0.1) else draws.between(1, 6)
    whole = draws.chance(0.5)  # whole numbers: logits that are exact, and tie
    draw = draws.integers if whole else draws.normal
    features, weights, biases = [], [], []
    for length in cells:
        depth = draws.between(1, 8)
        values = draws.with_special(draw((videos * length, depth)), OF_FEATURES).reshape(videos, length, depth)
        features += maps_of(draws, values, [length])
        weights.append(draws.given(_some_not_finite(draws, draw((classes, depth)))))
        biases.append(draws.given(_some_not_finite(draws, draw((classes, 1)))[:, 0]))
    (features,) = in_a_layout(draws, features)
    probability, labels = ops.classify(features, weights, biases)
    again = ops.classify(cleaned(features), weights, biases)
    parts = [
        exact.class_logits(values_of([x]).reshape(-1, x.shape[1]), w.double().numpy(), b.double().numpy())
        for x, w, b in zip(features, weights, biases, strict=True)
    ]
    logits = _by_video([part.value for part in parts], videos)
    off = 0 if whole else _by_video([part.bound for part in parts], videos)
    found, off = labels.numpy().ravel(), np.nan_to_num(np.broadcast_to(off, logits.shape), posinf=0)
    best, lowest = exact.best_class(logits)
    exact_label = off.max(axis=1, initial=0) == 0
    known = np.where(np.isnan(logits), -np.inf, np.minimum(logits, np.finfo(np.float32).max))
    chosen = (np.arange(len(found)), found)
    near = known[chosen] + off[chosen] >= (known - off).max(axis=1)
    wrong = np.where(exact_label, found != lowest, ~near)
    bound = best.bound + best.value * np.expm1(2 * off.max(axis=1, initial=0)) + exact.TINIEST
    wrong |= ~(np.abs(probability.double().numpy().ravel() - best.value) <= bound)
    struck = np.concatenate([~np.isfinite(values_of([x])).all(axis=2) for x in features], axis=1).ravel()
    spread = differs(probability.flatten(), again[0].flatten()) | differs(labels.flatten(), again[1].flatten())

    def show(case: int) -> dict[str, Any]:
        given = {"logits": logits[case], "probability": probability.flatten()[case], "label": labels.flatten()[case]}
        return given | {"expected probability": best.value[case], "expected label": lowest[case]}

    return Outcome(wrong | (spread & ~struck), show)


def _some_not_finite(draws: Draws, rows: Floats) -> Floats:
    """Rows of which in one of five calls some hold what is not finite: classes that are ruled out, or that win."""
    return draws.with_special(rows, OF_FEATURES) if draws.chance(0.2) else rows


def _by_video(parts: list[Doubles], videos: int) -> Doubles:
    """`(B * T_j, C)` of each scale as `(B * cells, C)`, by video and then by scale."""
    classes = parts[0].shape[1]
    return np.concatenate([part.reshape(videos, -1, classes) for part in parts], axis=1).reshape(-1, classes)


CHECKS = {
    "decode": Check("a cell of a video: 1 to 40 logits, 1 to 3 anchors", 2000, _hold_decode),
    "decode_classified": Check("a cell of a video: its class, 1 to 3 anchors", 2000, _hold_decode_classified),
    "classify": Check("a cell of a video: 1 to 8 channels, 1 to 40 classes", 2000, _hold_classify),
}
