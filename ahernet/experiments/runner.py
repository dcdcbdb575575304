"""Runs of an experiment: train, localize, score. Finished runs are kept as files and not repeated."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ahernet.checkpoint import Checkpoint, load_checkpoint
from ahernet.config import Config, InferenceConfig, config_to_dict
from ahernet.data.annotations import Annotations, match_video_ids
from ahernet.data.archive_set import open_features
from ahernet.data.bounded_read import parse_json
from ahernet.data.detections import Detections
from ahernet.errors import UserError
from ahernet.evaluation.average_precision import AveragePrecision, average_precision
from ahernet.evaluation.average_recall import average_recall
from ahernet.evaluation.diagnosis import diagnose
from ahernet.experiments.setting import Setting, Source, validation_of
from ahernet.files import claim_folder, make_folder, replace_when_complete
from ahernet.inference.localize import localize
from ahernet.training.trainer import train

SHOWN_THRESHOLDS = ((0, 0.5), (5, 0.75), (9, 0.95))  # rows of the thresholds, and the thresholds


@dataclass(frozen=True)
class Unit:
    """One run with one seed: `name` of the run, `config` with the seed, `setting` with the split."""

    name: str
    config: Config
    setting: Setting

    @property
    def file_name(self) -> str:
        """Name of the file that keeps the result: rows of the same name may be of other settings in another table."""
        made_with = json.dumps(wanted_of(self), sort_keys=True)
        return f"{self.name}-{self.setting.split}-{hashlib.sha256(made_with.encode()).hexdigest()[:8]}.json"


def with_one_network(units: Iterable[Unit]) -> list[tuple[Unit, ...]]:
    """Put units together that differ in nothing that training depends on, in their order."""
    groups: dict[Any, list[Unit]] = {}
    for unit in units:
        groups.setdefault((replace(unit.config, inference=InferenceConfig()), unit.setting), []).append(unit)
    return [tuple(group) for group in groups.values()]


def run_units(units: Sequence[Unit], folder: Path, progress: bool = False) -> list[dict[str, Any]]:
    """Return the results of units of one network, from their files in `folder` if they are there and of the same
    settings; for the others one network is trained.

    Novel and base classes are scored apart: localized among themselves, in the videos that show them (as the paper
    scores the classes of its moment set). Base classes only where the run has learnt them and the setting has videos.
    Where these videos show other classes that the run knows, "beside_others" is the score if all of them are localized:
    among themselves, novel classes must take every action of a base class for one of theirs.
    """
    with ExitStack() as until_measured:

        @cache
        def network() -> tuple[Path, float]:
            return until_measured.enter_context(_trained(units[0], folder, progress))

        def result(unit: Unit) -> dict[str, Any]:
            head = {"run": unit.name, "seed": unit.config.training.seed}
            path = folder / unit.file_name
            return kept_result(path, head, wanted_of(unit), lambda: _measure(unit, *network(), progress))

        return [result(unit) for unit in units]


def kept_result(
    path: Path, head: dict[str, Any], wanted: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what the file holds if it was made with what is `wanted`, else measure and write it."""
    found = find_result(path, wanted)
    if found is not None:
        return found
    result = {**head, **wanted, **measure()}
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def find_result(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a file of a result holds, None if it has to be measured: there is none, it is damaged, or made with
    something else than is `wanted`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot read the finished run ({error.strerror}); remove it") from error
    if not isinstance(found, dict) or not found or any(found.get(key) != value for key, value in wanted.items()):
        return None
    return found


def find_results(units: Iterable[Unit], folder: Path) -> list[dict[str, Any]] | None:
    """Return the results of units if all of them are in files, as `run_units` would; None if there is work to do."""
    results = []
    for unit in units:
        result = find_result(folder / unit.file_name, wanted_of(unit))
        if result is None:
            return None
        results.append(result)
    return results


def trained_unit(unit: Unit, folder: Path, progress: bool = False) -> Path:
    """Return the folder in `folder` that holds the trained networks of a unit; an interrupted training goes on.

    Raises:
        UserError: as `ahernet.training.trainer.train`.
    """
    kept = folder / unit.file_name.removesuffix(".json")
    make_folder(kept)
    _train(unit, kept, progress, resume=True)
    return kept


def oracle(setting: Setting) -> tuple[Source, tuple[str, ...]]:
    """Return the videos and classes that the fully supervised run learns from: base classes too if they are there.

    Raises:
        UserError: the setting has no annotated training videos of novel classes.
    """
    if setting.novel_videos.training is None:
        raise UserError(f"{setting.name}: aher* needs annotated videos of novel classes, which this setting lacks")
    return setting.novel_videos, (*(setting.base if setting.one_source else ()), *setting.novel)


def found_in(
    source: Source,
    annotations: Annotations,
    checkpoint: Checkpoint,
    classes: tuple[str, ...],
    progress: bool = False,
    *,
    others: tuple[str, ...] = (),
) -> tuple[Detections, Annotations, int]:
    """Localize some classes among themselves in the validation videos that show them.

    Args:
        source: of the videos.
        annotations: of the source.
        checkpoint: trained network, which knows the classes.
        classes: to localize.
        progress: show a bar.
        others: classes that are localized beside them; what is found of these is left out.

    Returns:
        Detections, the ground truth of the videos that have features, and how many annotated videos have none.
    """
    truth = validation_of(annotations, classes, source.validation)
    with open_features(source.archive) as archive:
        places = match_video_ids(truth.videos, archive.ids)
        if not places:
            raise UserError(
                f"{archive.path}: has none of the {len(truth.videos):,} videos of {truth.source} to score on, "
                "expected some"
            )
        scored = Annotations({key: truth.videos[key] for key in places}, truth.source)
        found = localize(
            archive,
            checkpoint,
            video_ids=list(places.values()),
            durations={place: truth.videos[key].duration for key, place in places.items()},
            classes=(*classes, *others),
            device="cpu",
            progress=progress,
        )
    return found.of_classes(classes), scored, len(truth.videos) - len(scored.videos)


def shown_beside(
    source: Source, annotations: Annotations, classes: tuple[str, ...], known: tuple[str, ...]
) -> tuple[str, ...]:
    """Return which other classes, of those known, the validation videos of some classes show."""
    videos = validation_of(annotations, classes, source.validation).videos
    shown = {label for key in videos for label in annotations.videos[key].labels}
    return tuple(name for name in known if name in shown and name not in classes)


def wanted_of(unit: Unit) -> dict[str, Any]:
    """Return what a kept result must have been made with: settings, classes and features."""
    setting = unit.setting
    described = {
        "source": setting.name,
        "split": setting.split,
        "base": setting.base,
        "novel": setting.novel,
        "data": setting.data,
    }
    wanted: dict[str, Any] = json.loads(json.dumps({"config": config_to_dict(unit.config), "setting": described}))
    return wanted


@contextmanager
def _trained(unit: Unit, folder: Path, progress: bool) -> Iterator[tuple[Path, float]]:
    """Train the network of a unit; give its folder, which is removed in the end, and the seconds that it took."""
    run_folder = folder / f"{unit.file_name}.run"
    make_folder(run_folder)
    with claim_folder(run_folder):  # another command may be training it
        shutil.rmtree(run_folder, ignore_errors=True)
    make_folder(run_folder)
    yield run_folder, _train(unit, run_folder, progress)
    shutil.rmtree(run_folder)


def _measure(unit: Unit, run_folder: Path, seconds: float, progress: bool) -> dict[str, Any]:
    setting, method = unit.setting, unit.config.method
    learnt = {"novel": (setting.novel_videos, setting.novel)}
    learnt_base = method.untrimmed == "transfer" or (method.untrimmed == "supervised" and setting.one_source)
    if learnt_base and setting.base_videos.validation is not None:
        learnt["base"] = (setting.base_videos, setting.base)
    known = (*(setting.base if learnt_base else ()), *setting.novel)
    checkpoint = load_checkpoint(run_folder)
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, inference=unit.config.inference))
    measures = {
        group: _score(source, checkpoint, classes, known, progress) for group, (source, classes) in learnt.items()
    }
    return {"seconds": round(seconds, 1), "measures": measures}


def _train(unit: Unit, run_folder: Path, progress: bool, resume: bool = False) -> float:
    setting = unit.setting
    supervised = unit.config.method.moments == "none"
    source, classes = oracle(setting) if supervised else (setting.base_videos, setting.base)
    with open_features(source.archive) as archive, open_features(setting.moments) as moments:
        trained = train(
            archive,
            source.read(),
            run_folder,
            unit.config,
            subset=source.training,
            classes=classes,
            moments=None if supervised else moments,
            moment_labels=None if supervised else setting.moment_labels(),
            resume=resume,
            device="cpu",
            progress=progress,
        )
    return trained.seconds


def _score(
    source: Source, checkpoint: Checkpoint, classes: tuple[str, ...], known: tuple[str, ...], progress: bool
) -> dict[str, Any]:
    annotations = source.read()
    found, truth, without_features = found_in(source, annotations, checkpoint, classes, progress)
    precision = average_precision(found, truth)
    beside: dict[str, Any] = {}
    others = shown_beside(source, annotations, classes, known)
    if others:
        found_beside, _, _ = found_in(source, annotations, checkpoint, classes, progress, others=others)
        beside["beside_others"] = _precision(average_precision(found_beside, truth))
    return {
        "videos": len(truth.videos),
        "without_features": without_features,
        **_precision(precision),
        **beside,
        "per_threshold": [round(value, 6) for value in precision.mean_per_threshold.tolist()],
        "proposal_area": round(average_recall(found, truth).area, 6),
        "diagnosis": {name: round(value, 6) for name, value in asdict(diagnose(found, truth)).items()},
    }


def _precision(precision: AveragePrecision) -> dict[str, float]:
    return {
        "mean_average_precision": round(precision.mean, 6),
        **{f"at_{limit}": round(float(precision.mean_per_threshold[row]), 6) for row, limit in SHOWN_THRESHOLDS},
    }
