"""Intersection and union of segments, in the one form that every op uses on every device.

All of it is fp32 without a multiply-add chain, so that no compiler can round it differently. A segment with
`end <= start` has length 0; a segment with a non-finite coordinate counts as the empty segment (0, 0). A pair is
over a threshold when `intersection > threshold * union`, the threshold rounded to fp32 once.
"""

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

Floats = npt.NDArray[np.float32]

FLOAT_MAX = tl.constexpr(3.4028234663852886e38)


@triton.jit
def finite_segment(start, end):
    finite = (tl.abs(start) <= FLOAT_MAX) & (tl.abs(end) <= FLOAT_MAX)
    return tl.where(finite, start, 0.0), tl.where(finite, end, 0.0)


@triton.jit
def load_segment(segments_ptr, row, mask):
    start = tl.load(segments_ptr + row * 2, mask=mask, other=0.0).to(tl.float32)
    end = tl.load(segments_ptr + row * 2 + 1, mask=mask, other=0.0).to(tl.float32)
    return finite_segment(start, end)


@triton.jit
def load_anchor_as_segment(anchors_ptr, row, mask):
    centre = tl.load(anchors_ptr + row * 2, mask=mask, other=0.0).to(tl.float32)
    half_width = tl.load(anchors_ptr + row * 2 + 1, mask=mask, other=0.0).to(tl.float32) * 0.5
    return finite_segment(centre - half_width, centre + half_width)


@triton.jit
def intersection_and_union(start_a, end_a, start_b, end_b):
    intersection = tl.maximum(tl.minimum(end_a, end_b) - tl.maximum(start_a, start_b), 0.0)
    lengths = tl.maximum(end_a - start_a, 0.0) + tl.maximum(end_b - start_b, 0.0)
    return intersection, lengths - intersection


@triton.jit
def tiou_of(intersection, union):
    return tl.where(union > 0, tl.div_rn(intersection, tl.where(union > 0, union, 1.0)), 0.0)


def finite_segments_numpy(segments: Floats) -> tuple[Floats, Floats]:
    """Starts and ends of `(..., 2)` segments, each contiguous, non-finite segments replaced by (0, 0)."""
    start, end = segments[..., 0], segments[..., 1]
    finite = np.isfinite(start) & np.isfinite(end)
    if finite.all():
        return np.ascontiguousarray(start), np.ascontiguousarray(end)
    return np.where(finite, start, np.float32(0)), np.where(finite, end, np.float32(0))


def anchors_as_segments_numpy(anchors: Floats) -> tuple[Floats, Floats]:
    """Starts and ends of `(A, 2)` anchors given as centre and width; non-finite ones become (0, 0)."""
    with np.errstate(over="ignore", invalid="ignore"):
        half_width = anchors[:, 1] * np.float32(0.5)
        segments = np.stack([anchors[:, 0] - half_width, anchors[:, 0] + half_width], axis=-1)
    return finite_segments_numpy(segments)


def intersection_and_union_numpy(
    start_a: Floats, end_a: Floats, start_b: Floats, end_b: Floats
) -> tuple[Floats, Floats]:
    """`intersection_and_union` for arrays that broadcast."""
    with np.errstate(over="ignore", invalid="ignore"):
        intersection = np.minimum(end_a, end_b)
        intersection = np.maximum(intersection - np.maximum(start_a, start_b), 0)
        lengths = np.maximum(end_a - start_a, 0) + np.maximum(end_b - start_b, 0)
        return intersection, lengths - intersection


def unclamped_tiou_numpy(start_a: Floats, end_a: Floats, start_b: Floats, end_b: Floats) -> Floats:
    """Temporal IoU of finite segments that broadcast to a large table, in the fewest passes over it.

    Where it is not positive the result is any number <= 0 or NaN: `np.fmax` with 0 makes it 0. The passes that
    broadcast are torch's, which does not slow down for them.
    """
    a_start, a_end, b_start, b_end = (torch.from_numpy(ends) for ends in (start_a, end_a, start_b, end_b))
    tiou = torch.minimum(a_end, b_end)
    tiou -= torch.maximum(a_start, b_start)
    union = (a_end - a_start).clamp_(min=0) + (b_end - b_start).clamp_(min=0)
    union -= tiou
    tiou /= union
    return tiou.numpy()
