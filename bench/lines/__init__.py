"""What the GPU suite measures: one line an op and case, in groups that can be run alone.

A line has the arguments, our call, and peers that take the same arguments and give the same result. Sweeps are lines
that name the axis they lie on.
"""

import functools
from collections.abc import Callable, Iterator

from bench.lines.assignment import assign_lines, assign_sweep, pairwise_lines
from bench.lines.classification import classify_lines
from bench.lines.decoding import decode_classified_lines, decode_lines, decode_sweep
from bench.lines.line import Call, Line, Sizes
from bench.lines.losses import classification_loss_lines, proposal_loss_lines
from bench.lines.pipelines import localize_lines, training_lines
from bench.lines.resampling import resample_lines, stretch_lines
from bench.lines.suppression import long_nms_lines, nms_lines, nms_sweep, pick_lines, soft_nms_lines

__all__ = ["GROUPS", "Call", "Line", "Sizes"]

GROUPS: dict[str, Callable[[str, Sizes], Iterator[Line]]] = {
    "decode": decode_lines,
    "decode_last": functools.partial(decode_lines, channels_last=True),
    "nms": nms_lines,
    "assign": assign_lines,
    "localize": localize_lines,
    "nms_large": long_nms_lines,
    "resample": resample_lines,
    "stretch": stretch_lines,
    "training": training_lines,
    "proposal_loss": proposal_loss_lines,
    "classify": classify_lines,
    "classification_loss": classification_loss_lines,
    "decode_classified": decode_classified_lines,
    "pick": pick_lines,
    "soft_nms": soft_nms_lines,
    "pairwise_tiou": pairwise_lines,
    "nms_sweep": nms_sweep,
    "decode_sweep": decode_sweep,
    "assign_sweep": assign_sweep,
}
"""In the order in which they are measured: the targets first, so that a run cut short has them."""
