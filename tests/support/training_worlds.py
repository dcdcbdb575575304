"""A small world to train in, with everything that the runs of the paper learn from, and their settings made small."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ahernet.checkpoint import load_checkpoint
from ahernet.config import Config, preset, with_run
from ahernet.data.annotations import Annotations, VideoAnnotations, write_annotations
from ahernet.data.archive import FeatureArchive, open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.moments import cut_moments
from ahernet.training.losses import GroundTruth
from ahernet.training.trainer import TrainingResult, train
from ahernet.training.training_data import TrainingData, build_training_data
from ahernet.training.training_state import STATE_NAME

DIMENSION = 8
BASE = ("base0", "base1", "base2")
NOVEL = ("novel0", "novel1")
SMALL = {
    "model": {
        "feature_dimension": DIMENSION,
        "width": 1 / 256,
        "minimum_channels": 4,
        "steps": 128,
        "moment_steps": 64,
    },
    "method": {"pretrain_iterations": 0, "context_iterations": 2, "pretrain_adversaries": True},
    "training": {"batch_size": 4, "iterations": 20, "checkpoint_every": 6, "decay_every": 7, "cpu_threads": 1},
}
# Every phase and every step of the method, a few iterations each.
PHASES = {"method": {"pretrain_iterations": 3, "context_iterations": 3}, "training": {"iterations": 4}}


@dataclass(frozen=True)
class World:
    """Untrimmed videos with instances of base and novel classes, and all of these instances cut out as moments.

    Videos are noise in which each class adds a pattern of its own; two rows are a second. Every video but the last
    two has an instance of a base class, every third a second one; every second has one of a novel class, and the last
    two nothing else.
    """

    archive: FeatureArchive
    annotations: Annotations
    moments: FeatureArchive
    labels: dict[str, str]

    @property
    def novel_labels(self) -> dict[str, str]:
        """Class by id of the moments of novel classes."""
        return {moment: label for moment, label in self.labels.items() if label in NOVEL}


@contextmanager
def open_world(folder: Path, videos: int = 8, seed: int = 0) -> Iterator[World]:
    """Write a world into `folder` (`features.h5`, `truth.json`, `moments.h5`, `moments.csv`) and open it."""
    rng = np.random.default_rng(seed)
    patterns = dict(zip(BASE + NOVEL, rng.normal(size=(5, DIMENSION)) * 1.5, strict=True))
    truth = {}
    with ArchiveWriter(folder / "features.h5", dimension=DIMENSION) as writer:
        for k in range(videos):
            labels = [BASE[k % 3], *([BASE[(k + 1) % 3]] if k % 3 == 0 else [])] if k < videos - 2 else []
            labels += [NOVEL[k // 2 % 2]] if k % 2 == 0 or not labels else []
            features = rng.normal(size=(5, DIMENSION)) * 0.3
            segments = []
            for label in labels:
                gap, length = rng.integers(5, 40), rng.integers(20, 45)
                segments.append((len(features) + gap, len(features) + gap + length))
                features = np.concatenate([features, rng.normal(size=(gap + length, DIMENSION)) * 0.3])
                features[-length:] += patterns[label]
            features = np.concatenate([features, rng.normal(size=(rng.integers(10, 60), DIMENSION)) * 0.3])
            writer.add(f"v{k}", features, len(features) / 2)
            truth[f"v{k}"] = VideoAnnotations(
                f"v{k}", "training", len(features) / 2, np.array(segments) / 2, tuple(labels)
            )
    annotations = Annotations(truth, "world")
    write_annotations(folder / "truth.json", annotations)
    with open_archive(folder / "features.h5") as archive:
        cut_moments(archive, annotations, folder / "moments.h5", folder / "moments.csv", progress=False)
        with open_archive(folder / "moments.h5") as moments:
            labels = {f"{name}_{i:03d}": label for name, v in truth.items() for i, label in enumerate(v.labels)}
            yield World(archive, annotations, moments, labels)


def small_config(run: str = "aher*", preset_name: str = "tiny", **changes: dict) -> Config:
    """Return the settings of one of the paper's runs, small and without pre-training but two iterations of generators.

    Args:
        run: as `RUNS` calls it.
        preset_name: what the rest follows.
        changes: by section, `training={...}`.
    """
    config = with_run(preset(preset_name), run)
    for sections in (SMALL, changes):
        changed = {name: replace(getattr(config, name), **section) for name, section in sections.items()}
        config = replace(config, **changed)
    return config


def data_of(world: World, config: Config, labels: dict[str, str] | None = None) -> TrainingData:
    """Return the data of a run on the world's base classes and its moments, those of novel classes by default."""
    uses_moments = config.method.moments != "none"
    return build_training_data(
        world.archive,
        world.annotations,
        BASE,
        world.moments if uses_moments else None,
        (labels or world.novel_labels) if uses_moments else None,
        config.method,
    )


def train_in(world: World, folder: Path, config: Config, **options) -> TrainingResult:
    """Train on the world's base classes, and on its moments of novel classes if the run learns from moments.

    Args:
        world: to train in.
        folder: of the run.
        config: of the run.
        options: in place of what `train` would be given.
    """
    given = {"annotations": world.annotations, "classes": BASE, "device": "cpu", "progress": False}
    if config.method.moments != "none":
        given |= {"moments": world.moments, "moment_labels": world.novel_labels}
    given |= options
    return train(world.archive, given.pop("annotations"), folder, config, **given)


def of_classes(annotations: Annotations, classes: Collection[str]) -> Annotations:
    """Return the annotations without those of other classes; no video is left out."""
    videos = {}
    for name, video in annotations.videos.items():
        kept = [label in classes for label in video.labels]
        labels = tuple(label for label in video.labels if label in classes)
        videos[name] = replace(video, segments=video.segments[kept], labels=labels)
    return Annotations(videos, annotations.source)


def same_weights(one: Path, other: Path) -> bool:
    """Whether the checkpoints of two runs are equal bit for bit."""
    a, b = load_checkpoint(one).model.state_dict(), load_checkpoint(other).model.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def same_states(one: Path, other: Path) -> bool:
    """Whether two runs are: all parameters, generators and discriminators too, and all that the optimizer keeps."""
    a, b = (torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True) for folder in (one, other))
    kept = [[value for state in run["optimizer"]["state"].values() for value in state.values()] for run in (a, b)]
    return (
        a["iteration"] == b["iteration"]
        and a["networks"].keys() == b["networks"].keys()
        and all(torch.equal(a["networks"][name], b["networks"][name]) for name in a["networks"])
        and all(torch.equal(x, y) for x, y in zip(*kept, strict=True))
    )


def ground_truth_of(*videos: list[tuple[float, float, int]]) -> GroundTruth:
    """Return the ground truth of videos; each is a list of (start, end, label)."""
    rows = [row for video in videos for row in video]
    return GroundTruth(
        torch.tensor([row[:2] for row in rows]).float().reshape(-1, 2),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
        torch.tensor([0, *np.cumsum([len(video) for video in videos]).tolist()]),
    )


def assert_same_gradients(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Hold the gradients and buffers of two networks to be the same but for rounding."""
    for (name, x), y in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (x.grad is None) == (y.grad is None), name
        if x.grad is not None:
            torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=2e-6 * max(1.0, x.grad.abs().max().item()))
    for (name, x), y in zip(one.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-6, msg=name)
