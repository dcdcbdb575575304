"""Inference: from the features of videos to ranked detections (section 3.5 of the paper)."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ahernet.checkpoint import Checkpoint
from ahernet.config import Candidates, InferenceConfig
from ahernet.data.archive import FeatureArchive
from ahernet.data.detections import Detections
from ahernet.device import choose_device
from ahernet.errors import UserError
from ahernet.inference.anchors import AnchorStep
from ahernet.inference.crops import CropStep
from ahernet.inference.graphs import CapturedStep
from ahernet.inference.snippets import SnippetStep
from ahernet.inference.step import Found, Step
from ahernet.model.localizer import Localizer
from ahernet.prefetch import read_ahead
from ahernet.video_time import unit_to_seconds

NAMED = 5

STEPS: dict[Candidates, Callable[[Localizer, InferenceConfig, Tensor | None], Step]] = {
    "anchors": AnchorStep,
    "crops": CropStep,
    "snippets": SnippetStep,
}


def inference_step(model: Localizer, config: InferenceConfig, class_rows: Tensor | None = None) -> Step:
    """Return the step that finds what `config.candidates` names; arguments as `Step` says."""
    return STEPS[config.candidates](model, config, class_rows)


def localize(
    archive: FeatureArchive,
    checkpoint: Checkpoint,
    config: InferenceConfig | None = None,
    *,
    video_ids: Sequence[str] | None = None,
    durations: Mapping[str, float] | None = None,
    classes: Sequence[str] | None = None,
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
        classes: names of the classes to localize, which then compete with one another alone; all of the
            checkpoint by default. Labels number them in this order.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        progress: show a progress bar on standard error.

    Returns:
        Detections in seconds, by video, best first.

    Raises:
        UserError: the network expects features of another dimension, a class is unknown or named twice, a video
            is unknown, has no known duration or has features that are not finite.
    """
    config = config or checkpoint.config.inference
    wanted = checkpoint.config.model.feature_dimension
    if archive.dimension != wanted:
        raise UserError(
            f"{archive.path}: features have {archive.dimension} values a row, "
            f"the network in {checkpoint.source} expects {wanted}"
        )
    class_rows = None if classes is None else _class_rows(checkpoint, classes)
    positions = _positions(archive, video_ids)
    seconds = _durations(archive, positions, durations or {})
    where = choose_device(device)
    step = inference_step(checkpoint.model, config, class_rows).to(where).eval()
    parts = _localize_batches(step, archive, positions, seconds, config.batch_size, where, progress)
    return Detections(
        tuple(archive.ids[position] for position in positions),
        checkpoint.classes if classes is None else tuple(classes),
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
    step: Step,
    archive: FeatureArchive,
    positions: NDArray[np.int64],
    durations: NDArray[np.float64],
    batch_size: int,
    device: torch.device,
    progress: bool,
) -> list[_Columns]:
    def read(first: int) -> tuple[Tensor, Tensor]:
        rows, offsets = archive.read(positions[first : first + batch_size].tolist())
        pinned = torch.from_numpy(rows) if device.type == "cpu" else torch.from_numpy(rows).pin_memory()
        return pinned, torch.from_numpy(offsets)

    parts = []
    with (
        torch.inference_mode(),
        read_ahead(read, range(0, len(positions), batch_size)) as batches,
        tqdm(total=len(positions), desc="localize", unit="videos", smoothing=0, disable=not progress) as bar,
    ):
        for first, found in _found(step, batches, min(batch_size, len(positions)), device):
            here = positions[first : first + batch_size]
            broken = [archive.ids[position] for position in here[~found.finite.numpy()]]
            if broken:
                raise UserError(f"{archive.path}: features that are not finite in {', '.join(map(repr, broken))}")
            parts.append(_pack(found, first, durations[first : first + batch_size]))
            bar.update(len(here))
    return parts


def _found(
    step: Step, batches: Iterable[tuple[int, tuple[Tensor, Tensor]]], batch_size: int, device: torch.device
) -> Iterator[tuple[int, Found]]:
    """Run the step on every batch: as it is on a CPU, as a CUDA graph on a GPU."""
    if device.type == "cpu":
        return ((first, step(rows, offsets)) for first, (rows, offsets) in batches)
    return CapturedStep(step, batch_size, device).localize(batches)


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


def _class_rows(checkpoint: Checkpoint, classes: Sequence[str]) -> Tensor:
    """Return the rows of the named classes in the checkpoint's weights."""
    rows = {name: row for row, name in enumerate(checkpoint.classes)}
    for name in classes:
        if name not in rows:
            close = difflib.get_close_matches(name, checkpoint.classes, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(f"classes: the network in {checkpoint.source} has no class {name!r}{hint}")
    if not classes:
        raise UserError("classes: no class to localize")
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise UserError(f"classes: {repeated[0]!r} occurs twice")
    return torch.tensor([rows[name] for name in classes])


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
