"""Tables of runs: every run with every seed, in parallel, then means and deviations."""

import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ahernet.child_process import worker_pool
from ahernet.config import RUNS, Config, config_from_dict, config_to_dict, preset, with_run
from ahernet.errors import UserError
from ahernet.experiments.runner import Unit, find_results, oracle, run_units, with_one_network
from ahernet.experiments.setting import Data
from ahernet.progress import ProgressBar

# Average mAP in per cent that the paper's tables 1 and 2 give for ANet-UN -> ANet-AM and TH14 -> ANet-FG.
PAPER_RUNS = {
    "aher0": (10.2, 9.3),
    "aher-": (12.8, 10.4),
    "aherM": (13.2, 17.3),
    "aherA-": (14.7, 19.1),
    "aher": (17.2, 24.3),
    "aher*": (22.6, 28.9),
}
PAPER_TRANSFERS = {
    "1-fc none": (16.1, 23.2),
    "1-fc relu": (16.4, 23.4),
    "1-fc leaky_relu": (16.5, 23.5),
    "1-fc elu": (16.7, 23.9),
    "2-fc leaky_relu": (16.9, 24.2),
    "2-fc elu": (17.2, 24.3),
    "3-fc elu": (16.8, 24.1),
}
# mAP at 0.5, 0.75 and 0.95 and average mAP in per cent that table 4 gives for ANet -> K600.
PAPER_K600 = {
    "aher0": (19.26, 16.72, 0.88, 14.18),
    "aher-": (21.76, 17.85, 1.71, 15.96),
    "aherM": (28.98, 20.71, 2.95, 19.05),
    "aherA-": (32.71, 23.04, 5.08, 21.68),
    "aher": (36.19, 26.96, 6.55, 24.43),
}
# Shares of the annotations that the oracle of figure 6 learns from; of the paper's own shares the text names one half.
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "runs": dict(PAPER_RUNS),
    "transfer": dict(PAPER_TRANSFERS),
    "k600": dict(PAPER_K600),
    "shares": {"aher": PAPER_RUNS["aher"], "aher* 100 %": PAPER_RUNS["aher*"]},
    "departures": {},
    "released": {},
}
TABLES = tuple(PAPER)
# What the preset decides otherwise than the paper: each of these takes aher back to the paper in one point.
DEPARTURES: dict[str, tuple[str, ...]] = {
    "shares of 0.70 to 0.95": ("method.shares",),
    "one moment a video": ("method.neighbours",),
    "moments as in one video": ("method.arrangement",),
    "context not mirrored": ("model.mirrored_context",),
    "generators from scratch": ("method.pretrain_adversaries",),
    "backbone learns L_adD": ("method.adversarial_backbone",),
    "generators see localization": ("loss.generation",),
    "adversary alone": ("loss.context", "loss.generator", "training.adversarial_rate"),
    "matching at 0.8": ("assignment.foreground_threshold", "assignment.force_match"),
    "class loss on foreground": ("loss.class_cells", "inference.class_score"),
    "score of the anchor": ("inference.class_score",),
    "every anchor in L_ov": ("loss.overlap_anchors",),
    "loss weights of 1": ("loss.segment", "loss.classification", "loss.offset", "loss.overlap"),
    "one learning rate for all": ("training.classifier_rate", "training.transfer_rate"),
    "transfer learns as fast": ("training.transfer_rate",),
    "transfer by ELU": ("model.transfer_activation",),
    "gradients not clipped": ("training.gradient_clip",),
    "hard NMS at 0.9": ("inference.suppression", "inference.sigma"),
}
# What the code that the authors released decides otherwise than their paper, as far as it fits the method of the paper:
# changes to a preset.
RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "label of the video": {"inference": {"class_score": "video"}},
    "hard NMS at 0.9": {"inference": {"suppression": "hard", "nms_threshold": 0.9}},
    "the same by overlap": {
        "inference": {
            "suppression": "hard",
            "nms_threshold": 0.9,
            "suppression_rank": "overlap",
            "class_aware": False,
        }
    },
    "hard negatives": {"loss": {"overlap_anchors": "hard"}},
}
COLUMNS = {
    "novel mAP": "novel.mean_average_precision",
    "@0.5": "novel.at_0.5",
    "AUC": "novel.proposal_area",
    "true labels": "novel.diagnosis.true_labels",
    "true ranking": "novel.diagnosis.true_ranking",
    "accuracy": "novel.diagnosis.accuracy",
    "base mAP": "base.mean_average_precision",
}
# Where videos show base and novel classes, novel mAP with all classes localized that the run knows.
BESIDE = {"beside base": "novel.beside_others.mean_average_precision"}
# Table 4 has its own columns, and the paper's figures in their order.
K600_COLUMNS = {
    "@0.5": "novel.at_0.5",
    "@0.75": "novel.at_0.75",
    "@0.95": "novel.at_0.95",
    "novel mAP": "novel.mean_average_precision",
}


def table_configs(table: str, config: Config) -> dict[str, Config]:
    """Return the configuration of each row.

    Tables: the `runs` of table 2 of the paper, the `transfer` variants of its table 1, the runs of its table 4
    (`k600`), the oracle with `shares` of the annotations (figure 6), the `departures` of a preset from the paper,
    each undone, or a preset with each choice of the `released` code that it does not make itself.

    Raises:
        UserError: no such table.
    """
    if table == "runs":
        rows = {name: with_run(config, name) for name in RUNS}
        # The oracle trains as long on untrimmed videos as the runs that are pre-trained on them.
        before, training = config.method.pretrain_iterations, config.training
        longer = replace(training, iterations=training.iterations + before, decay_every=training.decay_every + before)
        rows["aher*"] = replace(rows["aher*"], training=longer)
        return rows
    if table == "k600":
        return {name: with_run(config, name) for name in PAPER_K600}
    if table == "shares":
        rows = table_configs("runs", config)
        return {"aher": rows["aher"], **{share_name(share): _with_share(rows["aher*"], share) for share in SHARES}}
    config = with_run(config, "aher")
    if table == "departures":
        every = tuple(dict.fromkeys(path for paths in DEPARTURES.values() for path in paths))
        points = {"aher": (), **DEPARTURES, "all of them": every}
        return {name: _as_in_the_paper(config, paths) for name, paths in points.items()}
    if table == "released":
        rows = {name: _changed(config, changes.items()) for name, changes in RELEASED.items()}
        rows = {"aher": config, **{name: row for name, row in rows.items() if row != config}}
        rows["all of them"] = _changed(config, [changes for row in RELEASED.values() for changes in row.items()])
        return rows
    if table == "transfer":
        return {name: _with_transfer(config, name) for name in PAPER_TRANSFERS}
    raise UserError(f"table: expected one of {', '.join(TABLES)}, got {table!r}")


def _as_in_the_paper(config: Config, paths: Iterable[str]) -> Config:
    """Return the configuration with some settings, named `section.key`, as the preset `paper` has them."""
    paper, settings = config_to_dict(with_run(preset("paper"), "aher")), config_to_dict(config)
    for section, key in (path.split(".") for path in paths):
        settings[section][key] = paper[section][key]
    return config_from_dict(settings)


def _changed(config: Config, changes: Iterable[tuple[str, dict[str, Any]]]) -> Config:
    """Return the configuration with the changes to its sections made, one after the other."""
    settings = config_to_dict(config)
    for section, values in changes:
        settings[section] |= values
    return config_from_dict(settings)


def share_name(share: float) -> str:
    """Return the name of the row of the oracle with a share of the annotations."""
    return f"aher* {100 * share:g} %"


def _with_share(config: Config, share: float) -> Config:
    return replace(config, method=replace(config.method, annotated_share=share))


def _with_transfer(config: Config, name: str) -> Config:
    """Return the configuration with the weight transfer called, for instance, `2-fc elu`."""
    layers, activation = name.split("-fc ")
    changes: dict[str, Any] = {"transfer_layers": int(layers), "transfer_activation": activation}
    return replace(config, model=replace(config.model, **changes))


def run_table(
    table: str,
    data: Data,
    config: Config,
    seeds: Sequence[int],
    folder: Path,
    jobs: int = 1,
    *,
    rows: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run every row of a table with every seed and return the table as plain data.

    Seed s also numbers the split into base and novel classes; a setting file has one split for all seeds.
    Finished runs are taken from their files in `folder`; rows that differ in inference alone share a network.

    Args:
        table: one of `TABLES`.
        data: annotated videos, recordings, or a whole setting.
        config: preset that the rows start from.
        seeds: at least one.
        folder: for the results of single runs; created if need be.
        jobs: processes that run at the same time, one thread each.
        rows: names of those to run; all by default.
        progress: show a progress bar on standard error.

    Raises:
        UserError: no such table or row, or a row that the setting has no data for.
    """
    configs = table_configs(table, config)
    for name in rows or ():
        if name not in configs:
            raise UserError(f"rows: expected some of {', '.join(map(repr, configs))}, got {name!r}")
    configs = {name: row for name, row in configs.items() if rows is None or name in rows}
    units = make_units(configs, data, seeds)
    for unit in units:
        if unit.config.method.moments == "none":
            oracle(unit.setting)  # refused before long work, if it has none
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in configs}
    groups = [(group, find_results(group, folder)) for group in with_one_network(units)]
    finished = [found for _, found in groups if found is not None]
    with worker_pool(jobs) as pool:  # which starts no process before it is given work
        futures = [pool.submit(run_units, group, folder) for group, found in groups if found is None]
        with ProgressBar(total=len(units), desc=table, unit="run", disable=not progress) as bar:
            for found in chain(finished, (future.result() for future in as_completed(futures))):
                for result in found:
                    results[result["run"]].append(result)
                    bar.update()
    for found in results.values():
        found.sort(key=lambda result: int(result["seed"]))
    reference = results.get("aher", results.get("2-fc elu"))
    return {
        **provenance(table, data, config, seeds),
        "rows": {
            name: {
                "mean": _summary(found, mean),
                "deviation": _summary(found, _deviation),
                "behind_aher": _behind(found, reference),
            }
            for name, found in results.items()
        },
        "runs": [result for found in results.values() for result in found],
    }


def make_units(configs: dict[str, Config], data: Data, seeds: Sequence[int]) -> list[Unit]:
    """Return every run with every seed, seed by seed."""
    settings = {seed: data.for_split(seed) for seed in seeds}
    return [
        Unit(name, replace(row, training=replace(row.training, seed=seed)), settings[seed])
        for seed in seeds
        for name, row in configs.items()
    ]


def provenance(table: str, data: Data, config: Config, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what a result says about how it was made."""
    return {
        "table": table,
        "source": data.name,
        "preset": config.preset,
        "seeds": list(seeds),
        "versions": {name: version(name) for name in ("ahernet", "torch", "triton", "numpy")},
        "commit": _commit(),
    }


def format_table(table: dict[str, Any]) -> str:
    """Return the table as text: mean and deviation over the seeds in per cent, beside the paper's figures."""
    paper = PAPER[table["table"]]
    columns = K600_COLUMNS if table["table"] == "k600" else COLUMNS
    if any(BESIDE["beside base"] in row["mean"] for row in table["rows"].values()):
        columns = columns | BESIDE
    header = ["", *columns, "aher ahead by", "seconds", "paper"]
    lines = [header]
    for name, row in table["rows"].items():
        cells = [_cell(row["mean"].get(key), row["deviation"].get(key)) for key in columns.values()]
        ahead = _cell(row["behind_aher"]["mean"], row["behind_aher"]["deviation"])
        lines.append(
            [name, *cells, ahead, f"{row['mean']['seconds']:.0f}", " / ".join(map(str, paper.get(name, ("-",))))]
        )
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths) for cells in lines)


def _behind(results: Sequence[dict[str, Any]], aher: Sequence[dict[str, Any]] | None) -> dict[str, float | None]:
    """Compare the novel mAP of aher, if it was run, with that of a row, seed by seed: splits differ more than runs."""
    if aher is None:
        return {"mean": None, "deviation": None}
    distances = [_novel(best) - _novel(result) for best, result in zip(aher, results, strict=True)]
    return {"mean": round(mean(distances), 6), "deviation": round(_deviation(distances), 6)}


def _novel(result: dict[str, Any]) -> float:
    return float(result["measures"]["novel"]["mean_average_precision"])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return "  ".join([f"{name.strip():<{widths[0]}}", *numbers])


def _cell(value: float | None, deviation: float | None) -> str:
    return "-" if value is None or deviation is None else f"{100 * value:.1f} ± {100 * deviation:.1f}"


def _summary(results: Sequence[dict[str, Any]], measure: Any) -> dict[str, float]:
    """Apply `measure` over the seeds to every number that all results have, named by its path."""
    flat = [{"seconds": result["seconds"], **_flat(result["measures"])} for result in results]
    shared = [key for key in flat[0] if all(key in numbers for numbers in flat)]
    return {key: round(measure([numbers[key] for numbers in flat]), 6) for key in shared}


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _flat(measures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in measures.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            flat[prefix + key] = value
    return flat


def _commit() -> str | None:
    """Return the commit of the checkout that this package is in, None outside of one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
