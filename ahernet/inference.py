"""Inference: from the features of videos to ranked detections (section 3.5 of the paper)."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import ahernet_kernels as kernels
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ahernet.checkpoint import Checkpoint
from ahernet.config import InferenceConfig
from ahernet.data.archive import FeatureArchive
from ahernet.data.detections import Detections
from ahernet.device import choose_device
from ahernet.errors import UserError
from ahernet.model.heads import ClassWeights, class_logits
from ahernet.model.localizer import Localizer, Outputs
from ahernet.prefetch import read_ahead
from ahernet.video_time import unit_to_seconds

NAMED = 5


class Found(NamedTuple):
    """Detections of B videos, padded to K a video; video b has the first counts[b] of its rows, best first.

    segments (B, K, 2) float32 start, end in [0, 1] of the video; scores (B, K) float32; labels (B, K) int64;
    counts (B,) int64; finite (B,) bool, False where the features of a video hold NaN or infinity (its
    rows mean nothing then). Rows beyond the count are 0, their labels -1.
    """

    segments: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    finite: Tensor


class InferenceStep(nn.Module):
    """One batch from feature rows to detections, without a loop over videos, classes or boxes.

    The weight transfer is evaluated here, on construction: the step holds its result only. Runs under
    `torch.compile(fullgraph=True)` and `torch.export`, and does not wait for the device.

    Args:
        model: trained network; it is copied, not changed.
        config: scoring and suppression.
    """

    anchors: Tensor

    def __init__(self, model: Localizer, config: InferenceConfig) -> None:
        super().__init__()
        precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.config = config
        self.model_config = model.config
        self.backbone = deepcopy(model.backbone).to(precision)
        self.heads = deepcopy(model.heads).to(precision)
        with torch.no_grad():
            weights, biases = model.class_weights()
        self.weights = nn.ParameterList(weight.to(precision) for weight in weights)
        self.biases = nn.ParameterList(bias.to(precision) for bias in biases)
        # Of its own: the anchors stay float32 whatever the precision of the network.
        self.register_buffer("anchors", model.anchors.clone(), persistent=False)
        self.requires_grad_(False)

    def forward(self, rows: Tensor, offsets: Tensor) -> Found:
        """Localize in B videos.

        Args:
            rows: (R, D) feature rows of all videos, float16, bfloat16 or float32.
            offsets: (B + 1,) int64; video b owns rows offsets[b]:offsets[b + 1], at least one.
        """
        sequence = kernels.resample(rows, offsets, self.model_config.steps)
        finite = sequence.abs().amax(dim=(1, 2)).isfinite()
        maps = self.backbone(sequence.to(self.weights[0].dtype))
        logits = class_logits(maps, ClassWeights(list(self.weights), list(self.biases)))
        segments, scores, labels = self._scored(Outputs(logits, *self.heads(maps)))
        return Found(*self._suppressed(segments, scores, labels), finite)

    def _scored(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        segments, scores, labels = kernels.decode(
            outputs.logits,
            outputs.offsets,
            outputs.overlaps,
            self.anchors,
            self.model_config.centre_scale,
            self.model_config.width_scale,
        )
        if self.config.class_score == "anchor":
            return segments, scores, labels
        video = torch.cat(outputs.logits, dim=2).float().softmax(dim=1).mean(dim=2)
        if self.config.class_score == "product":
            return segments, scores * video.gather(1, labels), labels
        probability, label = video.max(dim=1, keepdim=True)
        overlaps = torch.cat([scale.transpose(1, 2).flatten(1) for scale in outputs.overlaps], dim=1)
        return segments, probability * overlaps.float().sigmoid(), label.expand_as(scores).contiguous()

    def _suppressed(self, segments: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config = self.config
        # What clipping to the video left nothing of is no detection, whatever its score.
        scores = scores.where(segments[..., 1] > segments[..., 0], -torch.inf)
        if config.top_k_before:
            # A stable sort and not topk: ties go to the lowest anchor.
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            scores, order = scores[:, : config.top_k_before].contiguous(), order[:, : config.top_k_before]
            segments, labels = _rows(segments, order), labels.gather(1, order)
        groups = labels if config.class_aware else None
        if config.suppression == "hard":
            index, count = kernels.nms(
                segments, scores, groups, config.nms_threshold, config.top_k, config.minimum_score
            )
            kept_scores = scores.gather(1, index.clamp(min=0))
        else:
            parameter = config.sigma if config.suppression == "gaussian" else config.nms_threshold
            index, kept_scores, count = kernels.soft_nms(
                segments, scores, groups, config.suppression, parameter, config.top_k, config.minimum_score
            )
        kept = index >= 0
        index = index.clamp(min=0)
        return (
            _rows(segments, index).where(kept.unsqueeze(2), 0.0),
            kept_scores.where(kept, 0.0),
            labels.gather(1, index).where(kept, -1),
            count,
        )


def localize(
    archive: FeatureArchive,
    checkpoint: Checkpoint,
    config: InferenceConfig | None = None,
    *,
    video_ids: Sequence[str] | None = None,
    durations: Mapping[str, float] | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Detections:
    """Localize actions in the videos of an archive.

    Args:
        archive: features.
        checkpoint: trained network with its classes.
        config: scoring and suppression; that of the checkpoint by default.
        video_ids: of the videos to process, in this order; all of the archive by default.
        durations: seconds by the archive's ids, for videos whose duration the archive does not know.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        progress: show a progress bar on standard error.

    Returns:
        Detections in seconds, by video, best first.

    Raises:
        UserError: the network expects features of another dimension, a video is unknown, has no known
            duration or has features that are not finite.
    """
    config = config or checkpoint.config.inference
    wanted = checkpoint.config.model.feature_dimension
    if archive.dimension != wanted:
        raise UserError(
            f"{archive.path}: features have {archive.dimension} values a row, "
            f"the network in {checkpoint.source} expects {wanted}"
        )
    positions = _positions(archive, video_ids)
    seconds = _durations(archive, positions, durations or {})
    where = choose_device(device)
    step = InferenceStep(checkpoint.model, config).to(where).eval()
    parts = _localize_batches(step, archive, positions, seconds, config.batch_size, where, progress)
    return Detections(
        tuple(archive.ids[position] for position in positions),
        checkpoint.classes,
        video=np.concatenate([part.video for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        segments=np.concatenate([part.segments for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
    )


@dataclass(frozen=True)
class _Columns:
    """Detections of some videos as parallel columns, like `Detections`."""

    video: NDArray[np.int64]
    label: NDArray[np.int64]
    segments: NDArray[np.float64]
    scores: NDArray[np.float64]


def _localize_batches(
    step: InferenceStep,
    archive: FeatureArchive,
    positions: NDArray[np.int64],
    durations: NDArray[np.float64],
    batch_size: int,
    device: torch.device,
    progress: bool,
) -> list[_Columns]:
    def read(first: int) -> tuple[Tensor, Tensor]:
        rows, offsets = archive.read(positions[first : first + batch_size].tolist())
        tensors = torch.from_numpy(rows), torch.from_numpy(offsets)
        if device.type == "cpu":
            return tensors
        rows_there, offsets_there = (tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)
        return rows_there, offsets_there

    parts = []
    with (
        torch.inference_mode(),
        read_ahead(read, range(0, len(positions), batch_size)) as batches,
        tqdm(total=len(positions), desc="localize", unit="videos", smoothing=0, disable=not progress) as bar,
    ):
        for first, (rows, offsets) in batches:
            found = Found(*(tensor.cpu() for tensor in step(rows, offsets)))
            here = positions[first : first + batch_size]
            broken = [archive.ids[position] for position in here[~found.finite.numpy()]]
            if broken:
                raise UserError(f"{archive.path}: features that are not finite in {', '.join(map(repr, broken))}")
            parts.append(_pack(found, first, durations[first : first + batch_size]))
            bar.update(len(here))
    return parts


def _pack(found: Found, first: int, durations: NDArray[np.float64]) -> _Columns:
    """Drop the padding of a batch whose first video is number `first`, and go over to seconds."""
    kept = np.arange(found.scores.shape[1]) < found.counts.numpy()[:, None]
    seconds = unit_to_seconds(found.segments.numpy(), durations[:, None])
    return _Columns(
        first + np.nonzero(kept)[0],
        found.labels.numpy()[kept],
        seconds[kept],
        found.scores.numpy()[kept].astype(np.float64),
    )


def _positions(archive: FeatureArchive, video_ids: Sequence[str] | None) -> NDArray[np.int64]:
    """Return the places of the videos in the archive."""
    if video_ids is None:
        positions = np.arange(len(archive))
    else:
        positions = np.array([archive.position(video_id) for video_id in video_ids], np.int64)
    if not len(positions):
        raise UserError(f"{archive.path}: no video to localize in")
    if len(np.unique(positions)) < len(positions):
        raise UserError("video_ids: an id occurs twice")
    return positions


def _durations(
    archive: FeatureArchive, positions: NDArray[np.int64], known: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return the seconds of the videos at `positions`: the archive's, else those in `known`."""
    seconds = archive.durations[positions]
    given = np.array([known.get(archive.ids[position], np.nan) for position in positions])
    seconds = np.where(seconds > 0, seconds, given)
    without = positions[~(seconds > 0)]
    if len(without):
        names = [repr(archive.ids[position]) for position in without[:NAMED]]
        more = f" and {len(without) - NAMED:,} more" if len(without) > NAMED else ""
        raise UserError(
            f"{archive.path}: the duration is unknown of {', '.join(names)}{more}; give annotations that have it, "
            f"or import with --annotations or --frame-rate and --clip-stride"
        )
    return seconds


def _rows(segments: Tensor, order: Tensor) -> Tensor:
    """Pick segments (B, N, 2) by (B, K) row numbers."""
    return segments.gather(1, order.unsqueeze(2).expand(-1, -1, 2))
