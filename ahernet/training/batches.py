"""Training data: what of an archive and its annotations is usable, and batches of it in a fixed order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahernet.data.annotations import Annotations, VideoAnnotations, match_video_ids
from ahernet.data.archive import FeatureArchive
from ahernet.device import to_device
from ahernet.errors import UserError
from ahernet.training.losses import GroundTruth
from ahernet.video_time import known_duration, seconds_to_unit

NAMED = 5
SHARE_STREAM = 4  # of random numbers
UNKNOWN = -1  # label of what is none of the classes


@dataclass(frozen=True)
class TrainingSummary:
    """What of the annotations is used for training, and what is left out and why.

    Attributes:
        videos: annotated videos.
        usable_videos: of them, those that are trained on.
        usable_segments: ground truths that are trained on.
        without_features: ids of videos that the archive lacks.
        without_duration: ids of videos whose duration neither the archive nor the annotations know.
        without_segments: ids of videos that have features but no usable segment.
        left_out_by_share: usable videos that `TrainingSet.share` left out.
        classes_without_segments: names that nothing is learnt of.
        unknown_classes: (id, label) of segments whose label is none of the classes.
        empty_segments: (id, start, end) in seconds of segments that have no length inside their video.
        cut_segments: (id, start, end) in seconds of used segments that reach beyond their video.
    """

    videos: int
    usable_videos: int
    usable_segments: int
    without_features: tuple[str, ...]
    without_duration: tuple[str, ...]
    without_segments: tuple[str, ...]
    left_out_by_share: int
    classes_without_segments: tuple[str, ...]
    unknown_classes: tuple[tuple[str, str], ...]
    empty_segments: tuple[tuple[str, float, float], ...]
    cut_segments: tuple[tuple[str, float, float], ...]

    def describe(self) -> str:
        """Return the summary in words, one line, with a few examples of everything left out."""
        parts = [f"trains on {self.usable_segments:,} segments in {self.usable_videos:,} of {self.videos:,} videos"]
        for names, what in (
            (self.without_features, "videos without features"),
            (self.without_duration, "videos of unknown duration"),
            (self.without_segments, "videos without a usable segment"),
            ([f"{name} ({label})" for name, label in self.unknown_classes], "segments of unknown classes"),
            (_spans(self.empty_segments), "segments without length inside their video"),
        ):
            if names:
                parts.append(f"left out {len(names):,} {what}: {_examples(names)}")
        if self.left_out_by_share:
            parts.append(f"left out {self.left_out_by_share:,} videos by the share that is asked for")
        if self.classes_without_segments:
            names = self.classes_without_segments
            parts.append(f"learns nothing of {len(names):,} classes without a segment: {_examples(names)}")
        if self.cut_segments:
            count = len(self.cut_segments)
            parts.append(f"cut {count:,} segments at the ends of their video: {_examples(_spans(self.cut_segments))}")
        return "; ".join(parts)


class Batch(NamedTuple):
    """One batch: feature rows (R, D) with offsets (B + 1,), and the ground truth of the same B videos."""

    video_ids: tuple[str, ...]
    rows: Tensor
    offsets: Tensor
    ground_truth: GroundTruth

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on `device`."""
        return Batch(
            self.video_ids,
            to_device(self.rows, device),
            to_device(self.offsets, device),
            GroundTruth(*(to_device(tensor, device) for tensor in self.ground_truth)),
        )


@dataclass(frozen=True)
class TrainingSet:
    """The usable videos of an archive with their ground truth.

    Attributes:
        archive: where the features are.
        classes: names that the labels number.
        positions: (V,) int64 places of the videos in the archive.
        segments: (G, 2) float32 start, end in [0, 1] of the video.
        labels: (G,) int64.
        offsets: (V + 1,) int64; video v owns segments offsets[v]:offsets[v + 1].
        durations: (V,) float64 seconds.
        summary: what was left out.
    """

    archive: FeatureArchive
    classes: tuple[str, ...]
    positions: NDArray[np.int64]
    segments: NDArray[np.float32]
    labels: NDArray[np.int64]
    offsets: NDArray[np.int64]
    durations: NDArray[np.float64]
    summary: TrainingSummary

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def row_lengths(self) -> NDArray[np.int64]:
        """(V,) feature rows of the videos."""
        lengths: NDArray[np.int64] = self.archive.lengths[self.positions]
        return lengths

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """(G,) the video of each segment."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @cached_property
    def _by_start(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(G,) the segments video by video in the order of their starts, and (G,) the place of each there."""
        order = np.lexsort((self.segments[:, 0], self.owners))
        return order, np.argsort(order)

    def following(self, chosen: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Return (B, count) the segments of the same video that start after `chosen` (B,), -1 where there is none."""
        order, places = self._by_start
        after = places[chosen, None] + np.arange(1, count + 1)
        segments = order[np.minimum(after, len(order) - 1)]
        known = (after < len(order)) & (self.owners[segments] == self.owners[chosen, None])
        return np.where(known, segments, -1)

    @cached_property
    def distances(self) -> NDArray[np.float64]:
        """Seconds from each ground truth to the next one of its video, of those that do not overlap."""
        order, _ = self._by_start
        owner = self.owners[order]
        start, end = self.segments[order].astype(np.float64).T * self.durations[owner]
        distances = start[1:] - end[:-1]
        found: NDArray[np.float64] = distances[(owner[1:] == owner[:-1]) & (distances >= 0)]
        return found

    def fingerprint(self) -> str:
        """Return a hash of the videos, their lengths and ground truth, and the stored checksums of their features."""
        digest = hashlib.sha256()
        digest.update("\0".join(self.classes).encode())
        digest.update("\0".join(self.archive.ids[position] for position in self.positions).encode())
        checksums = self.archive.checksums[self.positions]
        for column in (checksums, self.row_lengths, self.segments, self.labels, self.offsets, self.durations):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def share(self, share: float, seed: int) -> "TrainingSet":
        """Return a random share of the videos, at least one; larger shares of a seed hold the smaller ones."""
        count = max(1, round(share * len(self)))
        chosen = np.sort(np.random.default_rng([seed, SHARE_STREAM]).permutation(len(self))[:count])
        source, offsets = self._segment_rows(chosen)
        summary = replace(
            self.summary,
            usable_videos=count,
            usable_segments=len(source),
            left_out_by_share=len(self) - count,
            classes_without_segments=_untaught(self.classes, self.labels[source]),
        )
        return replace(
            self,
            positions=self.positions[chosen],
            segments=self.segments[source],
            labels=self.labels[source],
            offsets=offsets,
            durations=self.durations[chosen],
            summary=summary,
        )

    def _segment_rows(self, members: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of `segments` of some videos, one after the other, and the offsets of each among them."""
        counts = np.diff(self.offsets)[members]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        # Start of the segment's video plus its rank in the video.
        return np.repeat(self.offsets[members] - offsets[:-1], counts) + np.arange(offsets[-1]), offsets

    def members(self, seed: int, iteration: int, batch_size: int) -> NDArray[np.int64]:
        """Return the videos (rows of `positions`) of one batch; depends on nothing but the arguments."""
        return batch_members(seed, iteration, batch_size, len(self))

    def read(self, members: NDArray[np.int64]) -> Batch:
        """Read the features and the ground truth of some videos."""
        positions = self.positions[members].tolist()
        rows, offsets = self.archive.read(positions)
        source, gt_offsets = self._segment_rows(members)
        return Batch(
            tuple(self.archive.ids[position] for position in positions),
            torch.from_numpy(rows),
            torch.from_numpy(offsets),
            GroundTruth(
                torch.from_numpy(self.segments[source]),
                torch.from_numpy(self.labels[source]),
                torch.from_numpy(gt_offsets),
            ),
        )


def build_training_set(
    archive: FeatureArchive, annotations: Annotations, classes: Sequence[str] | None = None
) -> TrainingSet:
    """Bring features and annotations together, in the order of the annotations.

    The duration of a video is that of the archive, or of the annotations where the archive does not know it.

    Args:
        archive: features.
        annotations: segments in seconds.
        classes: names to train on; all that occur in the annotations by default.

    Raises:
        UserError: no video is usable, or `classes` names one twice.
    """
    names = annotations.classes() if classes is None else tuple(classes)
    if len(set(names)) != len(names):
        raise UserError("classes: a name occurs twice")
    number = {name: label for label, name in enumerate(names)}
    found = _find_videos(archive, annotations)
    videos, durations = found.videos, np.array(found.durations)
    # All segments of all videos at once: there may be very many videos, each with a segment or two.
    owner = np.repeat(np.arange(len(videos)), np.array([len(video.labels) for video in videos], np.int64))
    segments = np.concatenate([np.empty((0, 2)), *(video.segments for video in videos)])
    names_of = [label for video in videos for label in video.labels]
    labels = np.array([number.get(label, UNKNOWN) for label in names_of], np.int64)
    unit = seconds_to_unit(segments, durations[owner])
    known, has_length = labels != UNKNOWN, unit[:, 1] > unit[:, 0]
    used = known & has_length
    cut = used & ((segments[:, 0] < 0) | (segments[:, 1] > durations[owner]))
    counts = np.bincount(owner[used], minlength=len(videos))

    def spans(rows: NDArray[np.bool_]) -> tuple[tuple[str, float, float], ...]:
        chosen = np.flatnonzero(rows)
        ids = [videos[video].video_id for video in owner[chosen]]
        return tuple((video_id, *segment) for video_id, segment in zip(ids, segments[chosen].tolist(), strict=True))

    summary = TrainingSummary(
        len(annotations.videos),
        int((counts > 0).sum()),
        int(used.sum()),
        tuple(found.without_features),
        tuple(found.without_duration),
        tuple(videos[video].video_id for video in np.flatnonzero(counts == 0)),
        0,
        _untaught(names, labels[used]),
        tuple((videos[owner[row]].video_id, names_of[row]) for row in np.flatnonzero(~known)),
        spans(known & ~has_length),
        spans(cut),
    )
    if not used.any():
        raise UserError(
            f"{annotations.source}: no video can be trained on with {archive.path}, expected at least one; "
            f"{summary.describe()}"
        )
    return TrainingSet(
        archive,
        names,
        np.array(found.positions, np.int64)[counts > 0],
        unit[used].astype(np.float32),
        labels[used],
        np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64),
        durations[counts > 0],
        summary,
    )


def batch_members(seed: int, iteration: int, batch_size: int, count: int, stream: int = 0) -> NDArray[np.int64]:
    """Return which of `count` items the batch of an iteration holds: a pure function of its arguments.

    Batches follow one another through epochs, each a permutation of all items drawn from (seed, epoch, stream);
    a batch may reach over the end of an epoch.
    """
    places = np.arange(iteration * batch_size, (iteration + 1) * batch_size)
    epochs, ranks = np.divmod(places, count)
    members = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        inside = epochs == epoch
        members[inside] = _permutation(seed, epoch, count, stream)[ranks[inside]]
    return members


def _untaught(classes: Sequence[str], labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Return the classes that no label numbers."""
    known = np.bincount(labels, minlength=len(classes)) > 0
    return tuple(name for name, is_known in zip(classes, known.tolist(), strict=True) if not is_known)


class _Found(NamedTuple):
    """Videos with features and a duration, their places in the archive, and the ids of those that miss either."""

    videos: list[VideoAnnotations]
    positions: list[int]
    durations: list[float]
    without_features: list[str]
    without_duration: list[str]


def _find_videos(archive: FeatureArchive, annotations: Annotations) -> _Found:
    places = match_video_ids(list(annotations.videos), archive.ids)
    found = _Found([], [], [], [], [])
    for video_id, video in annotations.videos.items():
        if video_id not in places:
            found.without_features.append(video_id)
            continue
        position = archive.position(places[video_id])
        duration = known_duration(archive.durations[position], video.duration)
        if duration is None:
            found.without_duration.append(video_id)
            continue
        found.videos.append(video)
        found.positions.append(position)
        found.durations.append(duration)
    return found


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, count: int, stream: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, stream]).permutation(count)


def _spans(segments: Sequence[tuple[str, float, float]]) -> list[str]:
    return [f"{video_id} ({start:g} s - {end:g} s)" for video_id, start, end in segments]


def _examples(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return f"{shown}, ..." if len(names) > NAMED else shown
