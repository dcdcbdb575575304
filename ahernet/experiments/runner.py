"""One run of an experiment: train, localize, score. Finished runs are kept as files and not repeated."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ahernet.checkpoint import load_checkpoint
from ahernet.config import Config, config_from_dict, config_to_dict
from ahernet.data.annotations import Annotations, read_annotations
from ahernet.data.archive import FeatureArchive, open_archive
from ahernet.data.moment_labels import read_moment_labels
from ahernet.evaluation.average_precision import average_precision
from ahernet.evaluation.average_recall import average_recall
from ahernet.evaluation.diagnosis import diagnose
from ahernet.experiments.setting import TRAINING, Setting, validation_of
from ahernet.files import make_folder, replace_when_complete
from ahernet.inference.localize import localize
from ahernet.training.trainer import train


@dataclass(frozen=True)
class Unit:
    """One run with one seed: `name` of the run, `config` with the seed, `setting` with the split."""

    name: str
    config: Config
    setting: Setting

    @property
    def file_name(self) -> str:
        """Name of the file that keeps the result."""
        return f"{self.name}-{self.setting.split}.json"


def run_unit(unit: Unit, folder: Path, progress: bool = False) -> dict[str, Any]:
    """Return the result of a unit, from its file in `folder` if it is there and of the same settings.

    Novel and base classes are scored apart: localized among themselves, in the videos that show them (as the paper
    scores the classes of its moment set). Base classes only where the run has learnt them.
    """
    path = folder / unit.file_name
    wanted = json.loads(json.dumps({"config": config_to_dict(unit.config), "setting": _described(unit.setting)}))
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(found.get(key) == value for key, value in wanted.items()):
            return found
    result = {"run": unit.name, "seed": unit.config.training.seed, **wanted, **_measure(unit, folder, progress)}
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _measure(unit: Unit, folder: Path, progress: bool) -> dict[str, Any]:
    setting, method = unit.setting, unit.config.method
    annotations = read_annotations(setting.source.annotations)
    oracle = method.moments == "none"
    run_folder = folder / f"{unit.file_name}.run"
    shutil.rmtree(run_folder, ignore_errors=True)
    make_folder(run_folder)
    with open_archive(setting.source.archive) as archive, open_archive(setting.moments) as moments:
        trained = train(
            archive,
            annotations,
            run_folder,
            config_from_dict(config_to_dict(unit.config)),
            subset=TRAINING,
            classes=setting.base + setting.novel if oracle else setting.base,
            moments=None if oracle else moments,
            moment_labels=None if oracle else read_moment_labels(setting.labels),
            device="cpu",
            progress=progress,
        )
        learnt = {"novel": setting.novel}
        if method.untrimmed in ("transfer", "supervised"):
            learnt["base"] = setting.base
        measures = {
            group: _score(archive, annotations, run_folder, classes, progress) for group, classes in learnt.items()
        }
    shutil.rmtree(run_folder)
    return {"seconds": round(trained.seconds, 1), "measures": measures}


def _score(
    archive: FeatureArchive, annotations: Annotations, checkpoint: Path, classes: tuple[str, ...], progress: bool
) -> dict[str, Any]:
    truth = validation_of(annotations, classes)
    found = localize(
        archive,
        load_checkpoint(checkpoint),
        video_ids=list(truth.videos),
        classes=classes,
        device="cpu",
        progress=progress,
    )
    precision = average_precision(found, truth)
    return {
        "mean_average_precision": round(precision.mean, 6),
        "at_0.5": round(float(precision.mean_per_threshold[0]), 6),
        "per_threshold": [round(value, 6) for value in precision.mean_per_threshold.tolist()],
        "proposal_area": round(average_recall(found, truth).area, 6),
        "diagnosis": {name: round(value, 6) for name, value in asdict(diagnose(found, truth)).items()},
    }


def _described(setting: Setting) -> dict[str, Any]:
    return {"source": setting.source.name, "split": setting.split, "base": setting.base, "novel": setting.novel}
