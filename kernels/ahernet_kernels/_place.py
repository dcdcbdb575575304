"""Place of a candidate as one sortable 64-bit key: label, then start; and how far from it a rival can stand.

Temporal IoU > t bounds the distance of two starts by 1 - t times the length of the earlier segment and by
(1 - t) / t times that of the later: whoever shares so much lies within one stretch of the sorted keys.
"""

import triton
import triton.language as tl

from ahernet_kernels._rank import LOW_WORD, SIGN_CLEARED, ordered_bits_of

BEYOND = tl.constexpr((1 << 63) - 1)  # the key of what is no candidate
SIGN = tl.constexpr(-(1 << 31))
MARGIN = tl.constexpr(8e-6)  # covers the rounding of the fp32 test, for coordinates of the size of the segment's


@triton.jit
def place_key(label, start):
    """int64 that order by label, then start."""
    return (label.to(tl.int64) << 32) | ((ordered_bits_of(start) ^ SIGN).to(tl.int64) & LOW_WORD)


@triton.jit
def label_of(key):
    return (key >> 32).to(tl.int32)


@triton.jit
def start_of(key):
    bits = key.to(tl.int32) ^ SIGN
    return (bits ^ ((bits >> 31) & SIGN_CLEARED)).to(tl.float32, bitcast=True)


@triton.jit
def nearest_and_furthest(key, end, TIOU_THRESHOLD: tl.constexpr):
    """Place keys between which everything lies that can be over the threshold with a candidate."""
    start = start_of(key)
    length = tl.maximum(end - start, 0.0)
    margin = MARGIN * (tl.abs(start) + tl.abs(end) + 1.0)
    # That may be many lengths, whose own rounding is more than the margin.
    before_share: tl.constexpr = (
        (1.0 + MARGIN) * (1.0 - TIOU_THRESHOLD) / TIOU_THRESHOLD if TIOU_THRESHOLD > 1e-38 else float("inf")
    )
    before = start - (length * before_share + margin)
    after = start + (length * (1.0 - TIOU_THRESHOLD) + margin)
    before = tl.where(before == before, before, float("-inf"))  # infinity times 0, or minus infinity
    after = tl.where(after == after, after, float("inf"))
    return place_key(label_of(key), before), place_key(label_of(key), after)
