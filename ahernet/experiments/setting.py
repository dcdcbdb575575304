"""Settings of an experiment: annotated videos of base classes, moments of novel ones, videos to be scored on.

A setting is made of one annotated archive: a random half of its classes is novel. Of these, training videos serve
as the source of moments alone; only the oracle sees them whole, with their annotations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ahernet.data.annotations import Annotations, read_annotations
from ahernet.data.archive import open_archive
from ahernet.data.moments import cut_moments
from ahernet.data.recordings import import_recordings
from ahernet.files import make_folder
from ahernet.rendered import WorldConfig, write_world

TRAINING, VALIDATION = "training", "validation"
# Fixed before any run was compared, and not changed since.
RENDERED_WORLD = WorldConfig(classes=40, training_videos=800, validation_videos=200)
RECORDING_SUBJECTS = "1-15"  # of the subset training; the others are held out


@dataclass(frozen=True)
class Source:
    """An annotated archive with the subsets `training` and `validation`."""

    name: str
    archive: Path
    annotations: Path


@dataclass(frozen=True)
class Setting:
    """A source with one split of its classes, and the moments of the novel ones.

    Attributes:
        source: annotated videos.
        split: number of the split.
        base: classes whose annotations training may use.
        novel: classes of which it has moments only.
        moments: archive of these moments.
        labels: table of their classes.
    """

    source: Source
    split: int
    base: tuple[str, ...]
    novel: tuple[str, ...]
    moments: Path
    labels: Path


def rendered_source(folder: Path, world: WorldConfig = RENDERED_WORLD) -> Source:
    """Render a world into `folder`, or take the one that is there."""
    archive, annotations = folder / "archive.h5", folder / "annotations.json"
    if not annotations.exists():
        write_world(folder, world)
    return Source("rendered", archive, annotations)


def recorded_source(folder: Path, recordings: Path) -> Source:
    """Import labelled recordings (npz, see `ahernet.data.recordings`) into `folder`, or take what is there.

    Recordings are cut where the class changes; subjects are held out for validation.
    """
    archive, annotations = folder / "archive.h5", folder / "annotations.json"
    if not annotations.exists():
        make_folder(folder)
        import_recordings(recordings, archive, annotations, training_subjects=RECORDING_SUBJECTS)
    return Source(recordings.stem, archive, annotations)


def make_setting(source: Source, split: int, folder: Path) -> Setting:
    """Split the classes of a source and cut the moments of the novel ones into `folder`, if they are not there."""
    annotations = read_annotations(source.annotations)
    base, novel = split_classes(annotations.classes(), split)
    moments, labels = folder / f"moments-{split}.h5", folder / f"moments-{split}.csv"
    if not labels.exists():
        make_folder(folder)
        with open_archive(source.archive) as archive:
            cut_moments(archive, annotations.select(TRAINING), moments, labels, classes=novel, progress=False)
    return Setting(source, split, base, novel, moments, labels)


def split_classes(classes: Sequence[str], split: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return base and novel classes, sorted: a random half each (one base class more if the number is odd)."""
    order = np.random.default_rng(split).permutation(len(classes))
    count = (len(classes) + 1) // 2
    base, novel = (tuple(sorted(classes[row] for row in rows)) for rows in (order[:count], order[count:]))
    return base, novel


def validation_of(annotations: Annotations, classes: Sequence[str]) -> Annotations:
    """Return the videos to score on: those of the subset `validation` with an instance of some classes."""
    return annotations.select(VALIDATION).of_classes(classes)
