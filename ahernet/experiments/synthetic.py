"""Synthetic videos of a trained network: moments in generated context, as a main iteration of training makes them."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ahernet.config import Config
from ahernet.data.archive_set import open_features
from ahernet.experiments.setting import Setting
from ahernet.model.context import ContextGenerators
from ahernet.training.batches import build_training_set
from ahernet.training.iteration_batches import first_main_iteration, read_iteration
from ahernet.training.losses import GroundTruth
from ahernet.training.moment_set import build_moment_set
from ahernet.training.steps import synthetic_videos
from ahernet.training.training_state import STATE_NAME, read_state

AT_ONCE = 16  # videos


def load_generators(folder: Path, config: Config) -> ContextGenerators:
    """Load the generators, which a checkpoint does not hold, from the training state beside it.

    Raises:
        UserError: there is no training state, or it cannot be read.
    """
    state = read_state(folder / STATE_NAME)["networks"]
    generators = ContextGenerators(config.model)
    prefix = "generators."
    generators.load_state_dict(
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    )
    return generators.eval()


def synthetic_batches(
    generators: ContextGenerators, config: Config, setting: Setting, seed: int, most: int
) -> Iterator[tuple[Tensor, GroundTruth]]:
    """Yield videos (B, steps, D) with their ground truth, until about `most` moments have been shown, or all."""
    config = replace(config, training=replace(config.training, batch_size=AT_ONCE, seed=seed))
    with open_features(setting.moments) as archive, open_features(setting.base_videos.archive) as untrimmed:
        moments = build_moment_set(archive, setting.moment_labels())
        annotations = setting.base_videos.read().select(setting.base_videos.training)
        training_set = build_training_set(untrimmed, annotations, setting.base)
        first = first_main_iteration(config.method)
        for iteration in range(first, first + math.ceil(min(most, len(moments)) / AT_ONCE)):
            yield synthetic_videos(generators, config, read_iteration(training_set, moments, config, iteration))
