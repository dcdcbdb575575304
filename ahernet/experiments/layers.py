"""Figure 4 of the paper: how often each anchor layer names the right class, by aher and by the classifier of aher-.

A proposal of `aher` counts if its centre lies in an annotated instance, which says the class it should have; of every
layer and video the best few by score count. Its class by `aher` is that of its cell (weight transfer). For `aher-` the
same proposal is cut out and classified like a moment, as that run does. (The paper does not say which of the proposals
it takes, nor how one is given its class.)
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahernet.checkpoint import Checkpoint, load_checkpoint
from ahernet.data.annotations import VideoAnnotations
from ahernet.data.archive_set import open_features
from ahernet.experiments.sample import sample_videos
from ahernet.experiments.setting import Setting
from ahernet.experiments.table import aligned
from ahernet.files import replace_when_complete
from ahernet.inference.anchors import AnchorStep
from ahernet.inference.crops import CropStep
from ahernet.model.anchors import scale_cells
from ahernet.video_time import seconds_to_unit

RUNS = ("aher-", "aher")
MOST_VIDEOS = 200
PROPOSALS = 8  # of a layer and video
VIDEOS_AT_ONCE = 8


def measure_layers(networks: dict[str, Path], setting: Setting, seed: int) -> dict[str, Any]:
    """Return for every layer its cells, how many proposals count, and the accuracy of both runs, None without any.

    Raises:
        UserError: no validation video of novel classes has features.
    """
    aher, crops = (load_checkpoint(networks[name]) for name in ("aher", "aher-"))
    # The label of the anchor itself, whatever the preset scores with.
    anchors = AnchorStep(
        aher.model, replace(aher.config.inference, class_score="anchor"), _class_rows(aher, setting.novel)
    )
    classifier = CropStep(crops.model, crops.config.inference, _class_rows(crops, setting.novel))
    cells = scale_cells(aher.config.model.steps)
    starts = np.cumsum([0, *cells]) * aher.config.model.ratios_per_cell
    counted = np.zeros(len(cells), np.int64)
    right = {name: np.zeros(len(cells), np.int64) for name in RUNS}
    with open_features(setting.novel_videos.archive) as archive:
        sample = sample_videos(setting, archive, MOST_VIDEOS, seed)
        for first in range(0, len(sample), VIDEOS_AT_ONCE):
            some = sample[first : first + VIDEOS_AT_ONCE]
            rows, offsets = (torch.from_numpy(x) for x in archive.read([video.position for video in some]))
            with torch.inference_mode():
                found = anchors.candidates(rows, offsets)
                truth = _truth([(video.annotations, video.duration) for video in some], found.segments, setting.novel)
                chosen, layer = _best(found.scores.where(truth >= 0, -torch.inf), starts)
                segments = found.segments.gather(1, chosen[:, :, None].expand(-1, -1, 2))
                wanted = truth.gather(1, chosen)
                named = {
                    "aher": found.labels.gather(1, chosen),
                    "aher-": _classify(classifier, rows, offsets, segments),
                }
            counts = (wanted >= 0).numpy()
            counted += _per_layer(counts, layer, len(cells))
            for name, labels in named.items():
                right[name] += _per_layer(counts & (labels == wanted).numpy(), layer, len(cells))
    return {
        "videos": len(sample),
        "layers": [
            {
                "cells": cells[row],
                "proposals": int(counted[row]),
                **{name: round(hits[row] / counted[row], 6) if counted[row] else None for name, hits in right.items()},
            }
            for row in range(len(cells))
        ],
    }


def format_layers(result: dict[str, Any]) -> str:
    """Return the accuracy of both runs in per cent per layer, as the mean over the seeds."""
    lines = [["layer", "cells", "proposals", *RUNS]]
    for row, layers in enumerate(zip(*(found["layers"] for found in result["results"]), strict=True)):
        cells = [_per_cent([layer[name] for layer in layers]) for name in RUNS]
        proposals = sum(layer["proposals"] for layer in layers)
        lines.append([str(row + 1), str(layers[0]["cells"]), f"{proposals:,}", *cells])
    paper = "paper (figure 4, no numbers given): aher better and more stable than aher-, both best on the 7th"
    return f"{aligned(lines)}\n{paper}"


def draw_layers(result: dict[str, Any], path: Path) -> None:
    """Draw the accuracy of both runs over the layers.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    layers = np.arange(1, len(result["results"][0]["layers"]) + 1)
    for name, colour in zip(RUNS, ("#D55E00", "#0072B2"), strict=True):
        values = np.array([[layer[name] for layer in found["layers"]] for found in result["results"]], dtype=np.float64)
        known = ~np.isnan(values).all(axis=0)
        axes.plot(layers[known], 100 * np.nanmean(values[:, known], axis=0), "o-", color=colour, label=name)
    axes.set(xlabel="anchor layer", ylabel="accuracy (%)", title=f"{result['source']}: class of the proposals")
    axes.legend()
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def _class_rows(checkpoint: Checkpoint, classes: tuple[str, ...]) -> Tensor:
    return torch.tensor([checkpoint.classes.index(name) for name in classes])


def _truth(videos: list[tuple[VideoAnnotations, float]], segments: Tensor, classes: tuple[str, ...]) -> Tensor:
    """Return the class (B, N) of the instance that the centre of each segment (B, N, 2) lies in, -1 for none."""
    centres = segments.double().mean(dim=2).numpy()
    labels = np.full(centres.shape, -1, np.int64)
    for row, (video, duration) in enumerate(videos):
        # Backwards, so that the first of several instances has the last word.
        for (start, end), name in zip(
            seconds_to_unit(video.segments, duration)[::-1].tolist(), video.labels[::-1], strict=True
        ):
            labels[row, (centres[row] >= start) & (centres[row] < end)] = classes.index(name)
    return torch.from_numpy(labels)


def _best(scores: Tensor, starts: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the best anchors (B, K) of every layer, and the layer (K,) of each."""
    chosen, layer = [], []
    for row, (first, last) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        count = min(PROPOSALS, last - first)
        chosen.append(scores[:, first:last].topk(count, dim=1).indices + first)
        layer += [row] * count
    return torch.cat(chosen, dim=1), np.array(layer)


def _classify(step: CropStep, rows: Tensor, offsets: Tensor, segments: Tensor) -> Tensor:
    """Return the class (B, K) that `aher-` gives to segments (B, K, 2)."""
    parts = [step.classified(rows, offsets, some) for some in torch.split(segments, PROPOSALS, dim=1)]
    return torch.cat([label for _, label in parts], dim=1)


def _per_layer(counts: NDArray[np.bool_], layer: NDArray[np.int64], layers: int) -> NDArray[np.int64]:
    return np.bincount(layer, weights=counts.sum(axis=0), minlength=layers).astype(np.int64)


def _per_cent(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * sum(known) / len(known):.1f}" if known else "-"
