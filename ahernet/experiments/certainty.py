"""How sure the network is of good proposals: in synthetic videos, and in real ones (not in the paper).

Counted are the anchors whose predicted segment has a temporal IoU of `GOOD` or more with an instance; of these, the
mean predicted overlap. What is learnt from moments holds in real videos where both are alike. A network that is surer
in synthetic videos has learnt something that real ones do not have, such as the seam between a moment and its context.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ahernet_kernels as kernels
import numpy as np
import torch
from torch import Tensor

from ahernet.checkpoint import Checkpoint, load_checkpoint
from ahernet.data.archive_set import open_features
from ahernet.experiments.setting import Setting, Source, validation_of
from ahernet.experiments.synthetic import AT_ONCE, load_generators, synthetic_batches
from ahernet.experiments.table import aligned
from ahernet.files import replace_when_complete
from ahernet.training.batches import build_training_set
from ahernet.training.losses import GroundTruth

RUNS = ("aherA-", "aher")
GOOD = 0.8
MOMENTS, VIDEOS = 200, 200
KINDS = ("novel, synthetic", "novel, real", "base, real")

Videos = Iterable[tuple[Tensor, GroundTruth]]


def measure_certainty(networks: dict[str, Path], setting: Setting, seed: int) -> dict[str, Any]:
    """Return for every run and kind of video how many anchors count, and their mean predicted overlap (None of none).

    Raises:
        UserError: no validation video of base or of novel classes has features.
    """
    found = {}
    for run in RUNS:
        checkpoint = load_checkpoint(networks[run])
        generators = load_generators(networks[run], checkpoint.config)
        with torch.inference_mode():
            synthetic = synthetic_batches(generators, checkpoint.config, setting, seed, MOMENTS)
            real = (
                _real_videos(setting.novel_videos, setting.novel, checkpoint),
                _real_videos(setting.base_videos, setting.base, checkpoint),
            )
            found[run] = {
                kind: _certainty(checkpoint, videos) for kind, videos in zip(KINDS, (synthetic, *real), strict=True)
            }
    return {"runs": found}


def format_certainty(result: dict[str, Any]) -> str:
    """Return the mean predicted overlap of every run and kind, in per cent, seed by seed."""
    lines = [["seed  run", *KINDS]]
    for found in result["results"]:
        for run, kinds in found["runs"].items():
            cells = [kinds[kind]["overlap"] for kind in KINDS]
            lines.append([f"{found['seed']:<4}  {run}", *("-" if x is None else f"{100 * x:.1f}" for x in cells)])
    return f"{aligned(lines)}\npredicted overlap of anchors whose tiou is {GOOD} or more"


def draw_certainty(result: dict[str, Any], path: Path) -> None:
    """Draw the mean predicted overlap as bars.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    names = [f"{run}, seed {found['seed']}" for run in RUNS for found in result["results"]]
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row, (kind, colour) in enumerate(zip(KINDS, ("#D55E00", "#0072B2", "#9AA5B1"), strict=True)):
        means = [100 * (found["runs"][run][kind]["overlap"] or 0) for run in RUNS for found in result["results"]]
        axes.barh([k + 0.27 * (row - 1) for k in range(len(names))], means, height=0.25, label=kind, color=colour)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="predicted overlap (%)", title=f"{result['source']}: good proposals")
    axes.legend()
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def _real_videos(
    source: Source, classes: tuple[str, ...], checkpoint: Checkpoint
) -> Iterator[tuple[Tensor, GroundTruth]]:
    """Yield the first validation videos that show some classes, with their instances of these; none without such."""
    if source.validation is None:
        return
    with open_features(source.archive) as archive:
        shown = validation_of(source.read(), classes, source.validation)
        videos = build_training_set(archive, shown, classes)
        for first in range(0, min(VIDEOS, len(videos)), AT_ONCE):
            batch = videos.read(np.arange(first, min(first + AT_ONCE, VIDEOS, len(videos))))
            yield kernels.resample(batch.rows, batch.offsets, checkpoint.config.model.steps), batch.ground_truth


def _certainty(checkpoint: Checkpoint, videos: Videos) -> dict[str, Any]:
    """Return how many anchors of some videos are good, and the mean overlap that is predicted of them."""
    count, total = 0, 0.0
    for sequence, truth in videos:
        segments, predicted = _proposals(checkpoint, sequence)
        for video, (first, last) in enumerate(
            zip(truth.offsets[:-1].tolist(), truth.offsets[1:].tolist(), strict=True)
        ):
            tiou = kernels.pairwise_tiou(segments[video], truth.segments[first:last])
            good = (tiou >= GOOD).any(dim=1)
            count += int(good.sum())
            total += float(predicted[video][good].double().sum())
    return {"anchors": count, "overlap": round(total / count, 6) if count else None}


def _proposals(checkpoint: Checkpoint, sequence: Tensor) -> tuple[Tensor, Tensor]:
    """Return the segments (B, A, 2) of all anchors and the overlaps (B, A) that are predicted of them."""
    model, config = checkpoint.model, checkpoint.config.model
    maps = model.backbone(sequence)
    offsets, overlaps = model.heads(maps)
    cells = (len(sequence), sum(scale.shape[2] for scale in maps))
    certain = torch.ones(cells), torch.zeros(cells, dtype=torch.int64)
    segments, predicted, _ = kernels.decode_classified(
        *certain, offsets, overlaps, model.anchors, config.centre_scale, config.width_scale
    )
    return segments, predicted
