"""Figures of the paper, and what needs trained networks like these: kept, then looked into, seed by seed."""

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahernet.child_process import worker_pool
from ahernet.config import Config, with_run
from ahernet.experiments import added, certainty, embedding, layers, side_by_side
from ahernet.experiments.runner import Unit, find_result, kept_result, trained_unit, wanted_of
from ahernet.experiments.setting import Data, Setting
from ahernet.experiments.table import make_units, provenance
from ahernet.files import make_folder
from ahernet.progress import ProgressBar


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        runs: names of the runs that it compares.
        measure: takes their trained networks by name, the setting and the seed; returns plain data.
        text: the whole result as a table.
        draw: writes the picture of the whole result to a path.
    """

    runs: tuple[str, ...]
    measure: Callable[[dict[str, Path], Setting, int], dict[str, Any]]
    text: Callable[[dict[str, Any]], str]
    draw: Callable[[dict[str, Any], Path], None]


FIGURES = {
    "layers": Figure(layers.RUNS, layers.measure_layers, layers.format_layers, layers.draw_layers),
    "embedding": Figure(
        embedding.RUNS, embedding.measure_embedding, embedding.format_embedding, embedding.draw_embedding
    ),
    "timelines": Figure(
        side_by_side.RUNS, side_by_side.measure_timelines, side_by_side.format_timelines, side_by_side.draw_results
    ),
    "certainty": Figure(
        certainty.RUNS, certainty.measure_certainty, certainty.format_certainty, certainty.draw_certainty
    ),
    "added": Figure(added.RUNS, added.measure_added, added.format_added, added.draw_added),
}


def run_figure(
    name: str,
    data: Data,
    config: Config,
    seeds: Sequence[int],
    folder: Path,
    jobs: int = 1,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the runs of a figure with every seed, measure, and return the result as plain data.

    Networks and measures that are in `folder` already are taken from there; figures share their networks. What is
    measured already needs no networks.

    Args:
        name: one of `FIGURES`.
        data: annotated videos, recordings, or a whole setting.
        config: preset that the runs start from.
        seeds: at least one.
        folder: for networks and measures; created if need be.
        jobs: processes that run at the same time.
        progress: show a progress bar on standard error.

    Raises:
        UserError: as training and localizing.
    """
    figure = FIGURES[name]
    make_folder(folder)
    units = make_units({run: with_run(config, run) for run in figure.runs}, data, seeds)
    of_seed = {seed: [unit for unit in units if unit.config.training.seed == seed] for seed in seeds}
    results = {seed: find_result(*_kept_as(name, of_seed[seed], folder)) for seed in seeds}
    missing = [seed for seed in seeds if results[seed] is None]
    with worker_pool(jobs) as pool:  # which starts no process before it is given work
        training = [pool.submit(trained_unit, unit, folder) for seed in missing for unit in of_seed[seed]]
        for future in ProgressBar(as_completed(training), name, len(training), unit="network", disable=not progress):
            future.result()
        measuring = {seed: pool.submit(measured, name, of_seed[seed], folder) for seed in missing}
        results |= {seed: future.result() for seed, future in measuring.items()}
    return {**provenance(name, data, config, seeds), "results": [results[seed] for seed in seeds]}


def measured(name: str, units: list[Unit], folder: Path) -> dict[str, Any]:
    """Return what a figure measures of the runs of one seed, from its file in `folder` if it is there.

    Raises:
        UserError: as `run_figure`.
    """
    figure, seed, setting = FIGURES[name], units[0].config.training.seed, units[0].setting
    networks = {unit.name: trained_unit(unit, folder) for unit in units}
    path, wanted = _kept_as(name, units, folder)
    return kept_result(path, {"seed": seed}, wanted, lambda: figure.measure(networks, setting, seed))


def _kept_as(name: str, units: list[Unit], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that keeps what a figure measures of the runs of one seed, and what that depends on."""
    wanted = {"networks": {unit.name: wanted_of(unit) for unit in units}}
    return folder / f"{name}-{units[0].config.training.seed}.json", wanted
