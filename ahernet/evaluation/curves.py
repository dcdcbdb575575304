"""The area under many curves of precision over recall at once, for measures that count in their own way."""

import numpy as np

from ahernet.evaluation.ground_truth import Floats, Integers


def counts_before(key: Integers) -> Integers:
    """Return how many earlier entries of an ascending `key` are equal to each entry."""
    counts: Integers = np.arange(len(key)) - np.searchsorted(key, key)
    return counts


def areas(curve: Integers, precision: Floats, gain: Floats, curves: int) -> Floats:
    """Return the (..., curves) areas under precision made non-increasing in recall; 0 for curves without a hit.

    Precision is highest at hits, so hits are all that is needed.

    Args:
        curve: (H,) number of the curve that each hit is on, ascending; along a curve in the order of rank.
        precision: (..., H) from 0 to 1, at the hit.
        gain: (..., H) recall that the hit adds.
        curves: how many there are.
    """
    area: Floats = np.zeros((*precision.shape[:-1], curves))
    if len(curve):
        # A running maximum from the end that restarts at each curve: earlier curves are lifted above later ones.
        lift = -2.0 * curve
        envelope = np.maximum.accumulate((precision + lift)[..., ::-1], axis=-1)[..., ::-1] - lift
        starts = np.flatnonzero(np.diff(curve, prepend=-1))
        area[..., curve[starts]] = np.add.reduceat(envelope * gain, starts, axis=-1)
    return area
