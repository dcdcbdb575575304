"""What a ground truth is like: its share of the video, its length and how many there are, in the bins of DETAD.

DETAD (Alwassel et al., "Diagnosing Error in Temporal Action Detectors", ECCV 2018) sorts the ground truth into bins,
XS to XL, with edges of its own for each data set. Bins hold their upper edge, the first its lower edge too:

* coverage: length over duration of the video;
* length: seconds;
* instances: how many of the same class the video has.

DETAD drops ground truths of zero length and of coverage above 1 beforehand. Here they stay, as they do in the official
score, the latter in no bin of coverage.
"""

from dataclasses import dataclass

import numpy as np

from ahernet.data.annotations import Annotations
from ahernet.evaluation.average_precision import Matches
from ahernet.evaluation.ground_truth import Floats, Integers

_FIVE = ("XS", "S", "M", "L", "XL")
_FOUR = ("XS", "S", "M", "L")


@dataclass(frozen=True)
class Characteristic:
    """A property of the ground truth: `bins` have one name less than there are ascending `edges`."""

    name: str
    edges: tuple[float, ...]
    bins: tuple[str, ...]

    def bin_of(self, values: Floats) -> Integers:
        """Return the bin of each value, -1 for values outside all and for NaN."""
        edges = np.array(self.edges)
        row = np.searchsorted(edges, values, side="left") - 1
        row[values == edges[0]] = 0
        row[row >= len(self.bins)] = -1
        return row


# Edges by the data set they were made for.
BINS: dict[str, tuple[Characteristic, ...]] = {
    "activitynet": (
        Characteristic("coverage", (0, 0.2, 0.4, 0.6, 0.8, 1), _FIVE),
        Characteristic("length", (0, 30, 60, 120, 180, np.inf), _FIVE),
        Characteristic("instances", (0, 1, 4, 8, np.inf), _FOUR),
    ),
    "thumos14": (
        Characteristic("coverage", (0, 0.02, 0.04, 0.06, 0.08, 1), _FIVE),
        Characteristic("length", (0, 3, 6, 12, 18, np.inf), _FIVE),
        Characteristic("instances", (0, 1, 40, 80, np.inf), _FOUR),
    ),
}


def characteristic_values(matches: Matches, annotations: Annotations) -> dict[str, Floats]:
    """Return the (G,) values of each characteristic; coverage is NaN where the duration is unknown.

    Args:
        matches: made with `annotations`.
        annotations: what the ground truths are from.
    """
    durations = np.array([video.duration for video in annotations.videos.values()])
    length = matches.truth_segments[:, 1] - matches.truth_segments[:, 0]
    group = matches.truth_video * len(matches.classes) + matches.truth_label
    _, place, counts = np.unique(group, return_inverse=True, return_counts=True)
    return {
        "coverage": length / durations[matches.truth_video],
        "length": length,
        "instances": counts[place].astype(np.float64),
    }
