"""Moments to learn from: an archive of trimmed clips and a label for each."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ahernet.data.annotations import match_video_ids
from ahernet.data.archive import FeatureArchive
from ahernet.errors import UserError
from ahernet.training.batches import batch_members
from ahernet.training.segment_batches import SegmentBatch

MOMENT_STREAM = 1  # of random numbers: the order of moments does not follow that of untrimmed videos


class MomentLengths(NamedTuple):
    """How long moments are: feature `rows` int64, and `seconds` float64, not positive or NaN where that is unknown."""

    rows: NDArray[np.int64]
    seconds: NDArray[np.float64]


@dataclass(frozen=True)
class MomentSet:
    """The labelled moments of an archive.

    Attributes:
        archive: where the features are.
        classes: names that the labels number.
        positions: (M,) int64 places of the moments in the archive.
        labels: (M,) int64.
        unlabelled: moments of the archive that have no label and are left out.
        without_features: labelled ids that the archive lacks.
        without_moments: classes of these ids that no other moment has, so that nothing is learnt of them.
    """

    archive: FeatureArchive
    classes: tuple[str, ...]
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    unlabelled: int
    without_features: tuple[str, ...]
    without_moments: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.positions)

    def fingerprint(self) -> str:
        """Return a hash of the moments, their lengths, durations, labels and the stored checksums of features."""
        digest = hashlib.sha256()
        digest.update("\0".join(self.classes).encode())
        digest.update("\0".join(self.archive.ids[position] for position in self.positions).encode())
        checksums = self.archive.checksums[self.positions]
        for column in (checksums, *self.lengths(np.arange(len(self))), self.labels):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """Return in one line what is used and what is left out."""
        parts = [f"learns from {len(self):,} moments of {len(self.classes):,} classes"]
        if self.without_features:
            parts.append(
                f"left out {len(self.without_features):,} labels without features, as {self.without_features[0]}"
            )
        if self.without_moments:
            parts.append(
                f"left out {len(self.without_moments):,} classes without a moment, as {self.without_moments[0]}"
            )
        if self.unlabelled:
            parts.append(f"left out {self.unlabelled:,} moments without a label")
        return "; ".join(parts)

    def members(self, seed: int, iteration: int, batch_size: int) -> NDArray[np.int64]:
        """Return the moments (rows of `positions`) of one batch; depends on nothing but the arguments."""
        return batch_members(seed, iteration, batch_size, len(self), MOMENT_STREAM)

    def lengths(self, members: NDArray[np.int64]) -> "MomentLengths":
        """Return how long some moments are."""
        positions = self.positions[members]
        return MomentLengths(self.archive.lengths[positions], self.archive.durations[positions])

    def read(self, members: NDArray[np.int64]) -> SegmentBatch:
        """Read the features and labels of some moments."""
        positions = self.positions[members].tolist()
        rows, offsets = self.archive.read(positions)
        return SegmentBatch(
            tuple(self.archive.ids[position] for position in positions),
            torch.from_numpy(rows),
            torch.from_numpy(offsets),
            torch.from_numpy(self.labels[members]),
        )


def build_moment_set(archive: FeatureArchive, labels: Mapping[str, str]) -> MomentSet:
    """Bring moments and their labels together, in the order of the labels.

    Args:
        archive: features of the moments.
        labels: class name by moment id.

    Raises:
        UserError: no moment has both features and a label.
    """
    places = match_video_ids(list(labels), archive.ids)
    if not places:
        raise UserError(f"{archive.path}: has none of the {len(labels):,} labelled moments, expected some")
    names = tuple(sorted({labels[moment] for moment in places}))
    number = {name: label for label, name in enumerate(names)}
    return MomentSet(
        archive,
        names,
        np.array([archive.position(place) for place in places.values()], np.int64),
        np.array([number[labels[moment]] for moment in places], np.int64),
        unlabelled=len(archive) - len(places),
        without_features=tuple(moment for moment in labels if moment not in places),
        without_moments=tuple(sorted(set(labels.values()) - set(names))),
    )
