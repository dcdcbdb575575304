"""Rank of a candidate as one sortable 64-bit key: score descending, then position ascending."""

import numpy as np
import triton
import triton.language as tl

from ahernet_kernels._tiou import FLOAT_MAX

NOT_A_CANDIDATE = tl.constexpr(-(1 << 63))
ALL_POSITION_BITS = tl.constexpr(0x7FFFFFFF)  # flipped, so that the lowest position ranks first
LOW_WORD = tl.constexpr(0xFFFFFFFF)
SIGN_CLEARED = tl.constexpr(0x7FFFFFFF)


@triton.jit
def ordered_bits_of(value):
    """int32 that order as the fp32 do; -0.0 equals 0.0."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & SIGN_CLEARED)


@triton.jit
def is_above(score, MIN_SCORE_BITS: tl.constexpr):
    """Whether a score is above the minimum; NaN never is."""
    return (ordered_bits_of(score) > MIN_SCORE_BITS) & (score == score)


@triton.jit
def rank_key(score, start, end, position, inside, MIN_SCORE_BITS: tl.constexpr):
    """int64 keys, distinct and larger for better candidates; `NOT_A_CANDIDATE` for what can never be kept.

    A candidate is inside the input, has a score above the minimum that is not NaN, and finite ends.
    """
    finite = (tl.abs(start) <= FLOAT_MAX) & (tl.abs(end) <= FLOAT_MAX)
    eligible = inside & finite & is_above(score, MIN_SCORE_BITS)
    key = (ordered_bits_of(score).to(tl.int64) << 32) | (position ^ ALL_POSITION_BITS).to(tl.int64)
    return tl.where(eligible, key, NOT_A_CANDIDATE)


@triton.jit
def position_of(key):
    return (key & LOW_WORD).to(tl.int32) ^ ALL_POSITION_BITS


def ordered_bits(value: float) -> int:
    """An int32 that orders as the fp32 nearest to `value` does (infinities too): a threshold a kernel can hold."""
    with np.errstate(over="ignore"):
        bits = int((np.float32(value) + np.float32(0)).view(np.int32))
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
