"""The three settings of the paper (section 4.2), written from the published annotations.

* `anet_un-anet_am`: ActivityNet, split into classes with annotations (87 in the paper) and classes with moments (113).
* `th14-anet_fg`: THUMOS14 validation videos (subset `train` or `validation`) and moments of all ActivityNet classes.
* `anet-k600`: ActivityNet, and moments of Kinetics-600, whose annotated videos are for scoring alone.

Each becomes a folder with a setting file, annotations, class lists and, if asked for, rendered features. A share of the
videos can be taken: of every class in every subset that share, at least one video, at random.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ahernet.data.annotations import (
    Annotations,
    match_video_ids,
    read_annotations,
    read_class_names,
    write_annotations,
)
from ahernet.data.archive import open_archive
from ahernet.data.moment_labels import write_moment_labels
from ahernet.errors import UserError
from ahernet.event_log import warn
from ahernet.files import make_own_folder, replace_when_complete
from ahernet.rendered import write_rendered, write_rendered_moments

SETTING_NAME = "setting.toml"
AMBIGUOUS = "Ambiguous"  # what THUMOS14 calls instances that are to be ignored
MOMENTS_PER_CLASS = 10  # rendered, where moments are clips of their own


@dataclass(frozen=True)
class PublishedFiles:
    """Annotations as they are published; a setting needs some of them.

    Attributes:
        activitynet: annotations of ActivityNet v1.3.
        activitynet_subsets: table of their subsets, where they state none.
        thumos14: annotations of THUMOS14 with the subsets `train` or `validation`, and `test`.
        kinetics600: text of id, start, end, class number.
        kinetics600_classes: names of its classes.
        base_classes: of ActivityNet with annotations.
        novel_classes: of ActivityNet with moments.
    """

    activitynet: Path | None = None
    activitynet_subsets: Path | None = None
    thumos14: Path | None = None
    kinetics600: Path | None = None
    kinetics600_classes: Path | None = None
    base_classes: Path | None = None
    novel_classes: Path | None = None

    def needed(self, name: str) -> Path:
        """Return one of the files.

        Raises:
            UserError: it is not given.
        """
        path: Path | None = getattr(self, name)
        if path is None:
            raise UserError(f"--{name.replace('_', '-')}: this setting needs it")
        return path


@dataclass(frozen=True)
class Part:
    """Classes, the annotated videos that show them, and the subsets to learn from and to score on, None for none."""

    classes: tuple[str, ...]
    annotations: Annotations
    training: str | None
    validation: str | None


@dataclass(frozen=True)
class SettingPlan:
    """What a setting is made of; `base` and `novel` may share their annotations."""

    name: str
    base: Part
    novel: Part

    @property
    def one_source(self) -> bool:
        """Whether base and novel classes are of the same videos."""
        return self.base.annotations is self.novel.annotations


@dataclass(frozen=True)
class Counts:
    """What a part has in one subset."""

    part: str
    classes: int
    videos: int
    instances: int


def anet_un_anet_am(files: PublishedFiles) -> SettingPlan:
    """Return the first setting of the paper."""
    annotations = _activitynet(files)
    base, novel = (tuple(read_class_names(files.needed(name))) for name in ("base_classes", "novel_classes"))
    return SettingPlan(
        "anet_un-anet_am",
        Part(base, annotations, "training", "validation"),
        Part(novel, annotations, "training", "validation"),
    )


def th14_anet_fg(files: PublishedFiles) -> SettingPlan:
    """Return the second setting of the paper."""
    thumos = read_annotations(files.needed("thumos14"))
    # The published validation videos are what one trains on; some files say so.
    training = "train" if any(video.subset.lower() == "train" for video in thumos.videos.values()) else "validation"
    base = tuple(name for name in thumos.classes() if name != AMBIGUOUS)
    activitynet = _activitynet(files)
    return SettingPlan(
        "th14-anet_fg",
        Part(base, thumos, training, "test"),
        Part(activitynet.classes(), activitynet, "training", "validation"),
    )


def anet_k600(files: PublishedFiles) -> SettingPlan:
    """Return the third setting of the paper."""
    activitynet = _activitynet(files)
    kinetics = read_annotations(files.needed("kinetics600"), files.needed("kinetics600_classes"))
    videos = {key: replace(video, subset="validation") for key, video in kinetics.videos.items()}
    return SettingPlan(
        "anet-k600",
        Part(activitynet.classes(), activitynet, "training", "validation"),
        Part(kinetics.classes(), Annotations(videos, kinetics.source), None, "validation"),
    )


FILES: dict[str, tuple[str, ...]] = {
    "anet_un-anet_am": ("activitynet", "activitynet_subsets", "base_classes", "novel_classes"),
    "th14-anet_fg": ("activitynet", "activitynet_subsets", "thumos14"),
    "anet-k600": ("activitynet", "activitynet_subsets", "kinetics600", "kinetics600_classes"),
}
"""What each setting is made of, of `PublishedFiles`."""

PAPER_SETTINGS: dict[str, Callable[[PublishedFiles], SettingPlan]] = {
    "anet_un-anet_am": anet_un_anet_am,
    "th14-anet_fg": th14_anet_fg,
    "anet-k600": anet_k600,
}


def with_share(plan: SettingPlan, share: float, seed: int = 0) -> SettingPlan:
    """Return the setting with a random share of its videos, of every class in every subset at least one.

    Larger shares of a seed hold the smaller ones.

    Raises:
        UserError: a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"share: expected a number above 0 and at most 1, got {share}")
    base = _random_share(plan.base.annotations, share, seed)
    novel = base if plan.one_source else _random_share(plan.novel.annotations, share, seed)
    return replace(plan, base=replace(plan.base, annotations=base), novel=replace(plan.novel, annotations=novel))


def count(plan: SettingPlan) -> list[Counts]:
    """Return classes, videos and instances of base and novel classes in their subsets."""
    counts = []
    for name, part in (("base", plan.base), ("novel", plan.novel)):
        for use, subset in (("training", part.training), ("validation", part.validation)):
            if subset is not None:
                shown = part.annotations.select(subset).of_classes(part.classes)
                instances = sum(len(video.labels) for video in shown.videos.values())
                counts.append(Counts(f"{name} {use}", len(shown.classes()), len(shown.videos), instances))
    return counts


def write_setting(plan: SettingPlan, folder: Path, *, render: bool, progress: bool = True) -> Path:
    """Write a setting into `folder`: class lists, annotations, with `render` features, and last the setting file.

    Features of these videos that are there are kept: an interrupted call can be repeated.

    Returns:
        The setting file. Without `render` the archives that it names are left to the caller.

    Raises:
        UserError: a class is both base and novel or does not occur in its annotations, the folder holds other files or
            features of other videos, or cannot be written.
    """
    _check_classes(plan)
    stems = ("videos", "videos") if plan.one_source else ("base", "novel")
    parts = dict(zip(stems, (plan.base, plan.novel), strict=True))
    for stem, part in parts.items():
        _check_archive(folder / f"{stem}.h5", part.annotations, render)
    make_own_folder(folder, "base.txt")
    for name, part in (("base", plan.base), ("novel", plan.novel)):
        with replace_when_complete(folder / f"{name}.txt") as temporary:
            temporary.write_text("".join(f"{label}\n" for label in part.classes), encoding="utf-8")
    for stem, part in parts.items():
        write_annotations(folder / f"{stem}.json.gz", part.annotations)
        if render and not (folder / f"{stem}.h5").exists():
            write_rendered(folder / f"{stem}.h5", part.annotations, progress=progress)
    if render and plan.novel.training is None and not (folder / "moments.csv").exists():
        labels = write_rendered_moments(folder / "moments.h5", plan.novel.classes, MOMENTS_PER_CLASS)
        write_moment_labels(folder / "moments.csv", labels)
    path = folder / SETTING_NAME
    with replace_when_complete(path) as temporary:
        temporary.write_text(_setting_text(plan, stems), encoding="utf-8")
    return path


def _check_classes(plan: SettingPlan) -> None:
    both = [name for name in plan.base.classes if name in set(plan.novel.classes)]
    if both:
        raise UserError(f"{plan.name}: {len(both):,} classes are both base and novel, for example {both[0]!r}")
    for kind, part in (("base", plan.base), ("novel", plan.novel)):
        occurring = set(part.annotations.classes())
        unknown = [name for name in part.classes if name not in occurring]
        if unknown:
            raise UserError(
                f"{part.annotations.source}: shows none of {len(unknown):,} {kind} classes, "
                f"for example {unknown[0]!r}; expected all"
            )


def _check_archive(archive: Path, annotations: Annotations, rendered: bool) -> None:
    """Refuse rendered features of other videos; say how many of the videos other features lack."""
    if not archive.exists():
        return
    with open_archive(archive) as there:
        if rendered and set(there.ids) != set(annotations.videos):
            raise UserError(f"{archive}: holds features of other videos, remove it or give another folder")
        missing = len(annotations.videos) - len(match_video_ids(annotations.videos, there.ids))
    if missing:
        warn(f"{archive}: without features: {missing:,} of {len(annotations.videos):,} annotated videos")


def _setting_text(plan: SettingPlan, stems: Sequence[str]) -> str:
    tables = [_table({"name": plan.name})]
    for name, stem, part in zip(("base", "novel"), stems, (plan.base, plan.novel), strict=True):
        entries = {
            "classes": f"{name}.txt",
            "annotations": f"{stem}.json.gz",
            "archive": f"{stem}.h5",
            "training": part.training,
            "validation": part.validation,
        }
        tables.append(f"[{name}]\n{_table(entries)}")
    if plan.novel.training is None:
        tables.append("[moments]\n" + _table({"archive": "moments.h5", "labels": "moments.csv"}))
    return "\n".join(tables)


def _table(entries: dict[str, str | None]) -> str:
    # JSON's strings are TOML's.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in entries.items() if value is not None)


def _activitynet(files: PublishedFiles) -> Annotations:
    """Return the annotated videos of ActivityNet: those of the subset `testing` have no labels."""
    annotations = read_annotations(files.needed("activitynet"), subsets=files.activitynet_subsets)
    return Annotations({key: video for key, video in annotations.videos.items() if video.labels}, annotations.source)


def _random_share(annotations: Annotations, share: float, seed: int) -> Annotations:
    strata: dict[tuple[str, str], list[str]] = {}
    for key, video in annotations.videos.items():
        strata.setdefault((video.subset, video.labels[0] if video.labels else ""), []).append(key)
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    for keys in strata.values():
        order = rng.permutation(len(keys))
        chosen.update(keys[row] for row in order[: max(1, round(share * len(keys)))])
    videos = {key: video for key, video in annotations.videos.items() if key in chosen}
    return Annotations(videos, annotations.source)
