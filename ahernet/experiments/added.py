"""What `add-class` is worth (not in the paper): classes added afterwards against those that training knew.

A quarter of the novel classes is kept from the training of `aher`, then added, one after the other, and scored in the
videos that show them with all novel classes localized. Beside it stands the network that learnt from the moments of
all of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from ahernet.add_class import add_class
from ahernet.checkpoint import Checkpoint, load_checkpoint
from ahernet.data.annotations import match_video_ids
from ahernet.data.archive_set import open_features
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.moment_labels import write_moment_labels
from ahernet.errors import UserError
from ahernet.evaluation.average_precision import average_precision
from ahernet.experiments.runner import Unit, found_in, trained_unit
from ahernet.experiments.setting import Setting
from ahernet.experiments.table import aligned
from ahernet.files import make_folder, replace_when_complete

RUNS = ("aher",)
SHARE_ADDED = 0.25
ADDED_STREAM = 5  # of random numbers
GROUPS = {"added": "added classes", "others": "other novel classes"}


def measure_added(networks: dict[str, Path], setting: Setting, seed: int) -> dict[str, Any]:
    """Return the average mAP of the added classes and of the other novel ones, for each way to know the former.

    Raises:
        UserError: there is one novel class alone, or as training and localizing.
    """
    if len(setting.novel) < 2:
        raise UserError(f"{setting.name}: one novel class alone, expected one to learn and one to add")
    trained = load_checkpoint(networks["aher"])
    added = added_classes(setting.novel, seed)
    folder = networks["aher"].parent / f"added-{seed}"
    make_folder(folder)
    without = _without(setting, added, folder / "labels.csv")
    grown = load_checkpoint(trained_unit(Unit("aher before", trained.config, without), folder))
    for name in added:
        grown = _with_class(grown, setting, name, folder / "class.h5", seed)
    by_crops = replace(grown.config.inference, candidates="crops")
    ways = {
        "learnt with the others": trained,
        "added": grown,
        "added, localized by crops": replace(grown, config=replace(grown.config, inference=by_crops)),
    }
    return {
        "added": list(added),
        "others": list(without.novel),
        "ways": {
            name: {
                "added": _mean_average_precision(setting, network, added, without.novel),
                "others": _mean_average_precision(setting, network, without.novel, added),
            }
            for name, network in ways.items()
        },
    }


def added_classes(novel: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return which novel classes are added: a quarter, at least one, drawn by the seed."""
    count = max(1, round(SHARE_ADDED * len(novel)))
    order = np.random.default_rng([seed, ADDED_STREAM]).permutation(len(novel))[:count]
    return tuple(novel[row] for row in sorted(order))


def format_added(result: dict[str, Any]) -> str:
    """Return the average mAP in per cent of each way, as the mean over the seeds and its range."""
    lines = [["", *GROUPS.values()]]
    for name in result["results"][0]["ways"]:
        found = [one["ways"][name] for one in result["results"]]
        lines.append([name, *(_cell([100 * ways[group] for ways in found]) for group in GROUPS)])
    return aligned(lines)


def draw_added(result: dict[str, Any], path: Path) -> None:
    """Draw the average mAP of each way as bars.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    names = list(result["results"][0]["ways"])
    figure = Figure(figsize=(7, 2.5), layout="constrained")
    axes = figure.subplots()
    for row, (group, label) in enumerate(GROUPS.items()):
        means = [mean(100 * one["ways"][name][group] for one in result["results"]) for name in names]
        places = np.arange(len(names)) + 0.4 * (row - 0.5)
        axes.barh(places, means, height=0.38, label=label, color=("#0072B2", "#9AA5B1")[row])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="mAP (%)", title=f"classes added to {result['source']}, {len(result['seeds'])} seeds")
    axes.legend()
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def _without(setting: Setting, classes: Sequence[str], labels: Path) -> Setting:
    """Return the setting without the moments of some novel classes; their table goes to `labels`."""
    write_moment_labels(
        labels, {moment: name for moment, name in setting.moment_labels().items() if name not in classes}
    )
    return replace(setting, novel=tuple(name for name in setting.novel if name not in classes), labels=labels)


def _with_class(checkpoint: Checkpoint, setting: Setting, name: str, path: Path, seed: int) -> Checkpoint:
    """Add a class by its moments, for which an archive is written to `path`."""
    labelled = [moment for moment, label in setting.moment_labels().items() if label == name]
    with open_features(setting.moments) as moments:
        positions = [moments.position(place) for place in match_video_ids(labelled, moments.ids).values()]
        with ArchiveWriter(path, dimension=moments.dimension, dtype="float32") as writer:
            for position in positions:
                writer.add(moments.ids[position], moments.read([position])[0], float(moments.durations[position]))
    with open_features(path) as own:
        return add_class(checkpoint, own, name, seed=seed, device="cpu", progress=False)


def _mean_average_precision(
    setting: Setting, checkpoint: Checkpoint, classes: tuple[str, ...], others: tuple[str, ...]
) -> float:
    source = setting.novel_videos
    found, truth, _ = found_in(source, source.read(), checkpoint, classes, others=others)
    return round(average_precision(found, truth).mean, 6)


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
