"""Figure 5 of the paper: features of foreground, of generated and of real background, in two dimensions.

Looked at are cells of one feature map of `aher`: foreground if their centre lies in an action, background if they meet
none. Foreground and generated background are of synthetic videos, made of moments as a main iteration of training makes
them, real background is of validation videos that show novel classes. As in the paper: 200 moments, 500 cells of each
kind, at most 256 principal components, then t-SNE if scikit-learn is installed; else the first two components.

How well two kinds can be told apart is said by a number, too: the share of cells whose nearest neighbour in the
principal components is of their own kind (1/2 where two kinds are alike, 1 where they lie apart).
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import ahernet_kernels as kernels
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from ahernet.checkpoint import Checkpoint, load_checkpoint
from ahernet.config import ModelConfig
from ahernet.data.annotations import VideoAnnotations
from ahernet.data.archive_set import open_features
from ahernet.errors import UserError
from ahernet.experiments.sample import sample_videos
from ahernet.experiments.setting import Setting
from ahernet.experiments.synthetic import AT_ONCE, load_generators, synthetic_batches
from ahernet.experiments.table import aligned
from ahernet.files import replace_when_complete
from ahernet.model.anchors import scale_cells
from ahernet.model.context import ContextGenerators
from ahernet.video_time import seconds_to_unit

Floats = NDArray[np.float64]

RUNS = ("aher",)
KINDS = ("foreground", "synthetic background", "real background")
MOMENTS, VIDEOS, CELLS, COMPONENTS = 200, 200, 500, 256
# The map with about so many cells is looked at: many of them lie wholly outside of actions, and each has seen what is
# around it.
CELLS_OF_VIDEO = 16
LARGEST_PERPLEXITY = 30.0


def measure_embedding(networks: dict[str, Path], setting: Setting, seed: int) -> dict[str, Any]:
    """Return the points (N, 2) of each kind, how they were projected, and how well kinds can be told apart.

    Raises:
        UserError: there is no cell of some kind.
    """
    checkpoint = load_checkpoint(networks["aher"])
    generators = load_generators(networks["aher"], checkpoint.config)
    with torch.inference_mode():
        foreground, synthetic = _synthetic_cells(checkpoint, generators, setting, seed)
        real = _real_cells(checkpoint, setting, seed)
    rng = np.random.default_rng(seed)
    cells = [_some(values, rng) for values in (foreground, synthetic, real)]
    for kind, values in zip(KINDS, cells, strict=True):
        if len(values) < 2:
            raise UserError(f"{setting.name}: fewer than two cells of {kind} in {VIDEOS} videos, nothing to draw")
    reduced = principal_components(np.concatenate(cells), COMPONENTS)
    projection, points = _project(reduced, seed)
    kind_of = np.repeat(np.arange(len(KINDS)), [len(values) for values in cells])
    return {
        "projection": projection,
        "layer": _layer(checkpoint.config.model) + 1,
        "points": {name: np.round(points[kind_of == row], 4).tolist() for row, name in enumerate(KINDS)},
        "told_apart": {
            "synthetic from real background": round(told_apart(reduced[kind_of == 1], reduced[kind_of == 2]), 6),
            "foreground from real background": round(told_apart(reduced[kind_of == 0], reduced[kind_of == 2]), 6),
        },
    }


def format_embedding(result: dict[str, Any]) -> str:
    """Return how well the kinds can be told apart, seed by seed, in per cent."""
    pairs = list(result["results"][0]["told_apart"])
    lines = [["seed", *pairs]]
    for found in result["results"]:
        lines.append([str(found["seed"]), *(f"{100 * found['told_apart'][pair]:.1f}" for pair in pairs)])
    note = "share of cells whose nearest neighbour is of their kind: 50 if alike, 100 if apart"
    paper = "paper (figure 5, no numbers given): synthetic and real background are indistinguishable"
    return f"{aligned(lines)}\n{note}; drawn: {result['results'][0]['projection']}\n{paper}"


def draw_embedding(result: dict[str, Any], path: Path) -> None:
    """Draw the points of every seed.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    results = result["results"]
    figure = Figure(figsize=(5 * len(results), 4.6), layout="constrained")
    for axes, found in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        for (kind, points), colour in zip(found["points"].items(), ("#D55E00", "#0072B2", "#009E73"), strict=True):
            axes.scatter(*np.array(points).T, s=6, color=colour, label=kind, alpha=0.7, linewidths=0)
        axes.set(xticks=[], yticks=[], title=f"{result['source']}, seed {found['seed']}", xlabel=found["projection"])
        axes.legend(fontsize=8)
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def principal_components(rows: Floats, most: int) -> Floats:
    """Return rows (N, d) in their first principal components (N, min(most, N, d)), that of largest variance first."""
    centred = rows - rows.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    reduced: Floats = left[:, :most] * sizes[:most]
    return reduced


def told_apart(one: Floats, other: Floats) -> float:
    """Return the share of rows whose nearest other row is of the same set, each set weighing half (1-NN test)."""
    rows = np.concatenate([one, other])
    own = np.repeat([0, 1], [len(one), len(other)])
    squares = (rows**2).sum(axis=1)
    distance = squares[:, None] + squares - 2 * rows @ rows.T
    np.fill_diagonal(distance, np.inf)
    same = own[distance.argmin(axis=1)] == own
    return float((same[own == 0].mean() + same[own == 1].mean()) / 2)


def _synthetic_cells(
    checkpoint: Checkpoint, generators: ContextGenerators, setting: Setting, seed: int
) -> tuple[Floats, Floats]:
    """Return the cells (N, d) of foreground and of generated background in synthetic videos of some moments."""
    inside, outside = [], []
    for sequence, ground_truth in synthetic_batches(generators, checkpoint.config, setting, seed, MOMENTS):
        features = _cells(checkpoint, sequence)
        spans = rearrange(ground_truth.segments.double().numpy(), "(b moment) ends -> b moment ends", b=len(sequence))
        foreground, background = _inside_and_outside(list(spans), features.shape[1])
        inside.append(features[foreground])
        outside.append(features[background])
    return np.concatenate(inside), np.concatenate(outside)


def _real_cells(checkpoint: Checkpoint, setting: Setting, seed: int) -> Floats:
    """Return the cells (N, d) of real background in validation videos that show novel classes."""
    found = []
    with open_features(setting.novel_videos.archive) as archive:
        sample = sample_videos(setting, archive, VIDEOS, seed)
        for first in range(0, len(sample), AT_ONCE):
            some = sample[first : first + AT_ONCE]
            rows, offsets = (torch.from_numpy(x) for x in archive.read([video.position for video in some]))
            features = _cells(checkpoint, kernels.resample(rows, offsets, checkpoint.config.model.steps))
            spans = [_unit(video.everything, video.duration) for video in some]
            _, background = _inside_and_outside(spans, features.shape[1])
            found.append(features[background])
    return np.concatenate(found)


def _unit(video: VideoAnnotations, duration: float) -> Floats:
    return seconds_to_unit(video.segments, duration)


def _cells(checkpoint: Checkpoint, sequence: Tensor) -> Floats:
    """Return the features (B, T, d) of the cells of the layer."""
    maps = checkpoint.model.backbone(sequence)
    features: Floats = maps[_layer(checkpoint.config.model)].transpose(1, 2).double().numpy()
    return features


def _layer(config: ModelConfig) -> int:
    return int(np.abs(np.array(scale_cells(config.steps)) - CELLS_OF_VIDEO).argmin())


def _inside_and_outside(spans: list[Floats], cells: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which cells (B, T) have their centre in one of the spans (G, 2) of their video, and which meet none."""
    starts, ends = np.arange(cells) / cells, (np.arange(cells) + 1) / cells
    centres = (starts + ends) / 2
    inside = [((span[:, :1] <= centres) & (span[:, 1:] > centres)).any(axis=0) for span in spans]
    outside = [~((span[:, :1] < ends) & (span[:, 1:] > starts)).any(axis=0) for span in spans]
    return np.stack(inside), np.stack(outside)


def _some(cells: Floats, rng: np.random.Generator) -> Floats:
    chosen: Floats = cells[rng.permutation(len(cells))[:CELLS]]
    return chosen


def _project(reduced: Floats, seed: int) -> tuple[str, Floats]:
    """Return how principal components (N, d) were brought to two dimensions, and the points (N, 2)."""
    if importlib.util.find_spec("sklearn") is None:
        two = np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))
        return "first two principal components (scikit-learn is not installed)", two
    perplexity = min(LARGEST_PERPLEXITY, (len(reduced) - 1) / 3)
    manifold: Any = importlib.import_module("sklearn.manifold")
    points = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return f"t-SNE of {reduced.shape[1]} principal components", np.asarray(points, np.float64)
