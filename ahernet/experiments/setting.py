"""Settings of an experiment: annotated videos of base classes, moments of novel ones, videos to be scored on.

A setting is made of one annotated archive, of which a random half of the classes is novel, of recordings (see
`recorded`), or read from a file (see `setting_file`). Training videos that show a novel class serve as the source of
moments alone, whatever else they show: learnt from with the annotations of base classes only, they would teach that
novel actions are background. Only the oracle sees them whole, with their annotations.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ahernet.data.annotations import Annotations, read_annotations
from ahernet.data.archive_set import open_features
from ahernet.data.moment_labels import read_moment_labels
from ahernet.data.moments import cut_moments
from ahernet.files import file_hash, make_folder, replace_when_complete
from ahernet.rendered import WorldConfig, write_world

TRAINING, VALIDATION = "training", "validation"
# Fixed before any run was compared, and not changed since.
RENDERED_WORLD = WorldConfig(classes=40, training_videos=800, validation_videos=200)
SET_ASIDE = "shows novel classes"  # subset of training videos that nothing is learnt from but moments


@dataclass(frozen=True)
class Source:
    """An annotated archive.

    Attributes:
        name: of the data, for results.
        archive: features.
        annotations: of any kind that `read_annotations` takes.
        training: subset to learn from, None if there is none.
        validation: subset to score on, None if there is none.
        categories: class names, for annotations that number them.
        subsets: table of subsets, for annotations that state none.
    """

    name: str
    archive: Path
    annotations: Path
    training: str | None = TRAINING
    validation: str | None = VALIDATION
    categories: Path | None = None
    subsets: Path | None = None

    def read(self) -> Annotations:
        """Read the annotations.

        Raises:
            UserError: as `read_annotations`.
        """
        return read_annotations(self.annotations, self.categories, self.subsets)

    def for_split(self, split: int) -> "Setting":
        """Return the setting in which a random half of the classes is novel; moments are cut beside the archive."""
        return make_setting(self, split, self.archive.parent)


@dataclass(frozen=True)
class Setting:
    """Base and novel classes, the videos of both, and the moments of the novel ones.

    Attributes:
        name: for results.
        split: number of the split; where there is only one, of the seed.
        base: classes whose annotations training may use.
        novel: classes of which it has moments only.
        base_videos: annotated videos of the base classes.
        novel_videos: annotated videos of the novel classes; may be the same source.
        moments: archive of the moments of the novel classes.
        labels: table of their classes.
        data: hash of features, annotations and labels: others give other results.
    """

    name: str
    split: int
    base: tuple[str, ...]
    novel: tuple[str, ...]
    base_videos: Source
    novel_videos: Source
    moments: Path
    labels: Path
    data: str

    def moment_labels(self) -> dict[str, str]:
        """Read the class of each moment of a novel class; the table may hold others.

        Raises:
            UserError: as `read_moment_labels`.
        """
        return {moment: name for moment, name in read_moment_labels(self.labels).items() if name in self.novel}

    @property
    def one_source(self) -> bool:
        """Whether base and novel classes are of the same archive."""
        return self.base_videos.archive == self.novel_videos.archive

    def for_split(self, split: int) -> "Setting":
        """Return the setting itself, which has one split, numbered for the seed."""
        return replace(self, split=split)


class Data(Protocol):
    """What experiments are made on: it has a setting for every split."""

    @property
    def name(self) -> str:
        """Name of the data, for results."""
        ...

    def for_split(self, split: int) -> Setting:
        """Return the setting of a split."""
        ...


def rendered_source(folder: Path, world: WorldConfig = RENDERED_WORLD) -> Source:
    """Render a world into `folder`, or take the one that is there."""
    archive, annotations = folder / "archive.h5", folder / "annotations.json"
    if not annotations.exists():
        write_world(folder, world)
    return Source("rendered", archive, annotations)


def make_setting(
    source: Source, split: int, folder: Path, classes: tuple[tuple[str, ...], tuple[str, ...]] | None = None
) -> Setting:
    """Split the classes of a source and cut the moments of the novel ones into `folder`, if they are not there.

    Args:
        source: annotated videos of the subsets training and validation.
        split: number of the split.
        folder: for the moments.
        classes: base and novel ones; a random half each by default.

    Raises:
        UserError: the annotations cannot be read, or there is nothing to cut.
    """
    annotations = read_annotations(source.annotations)
    base, novel = split_classes(annotations.classes(), split) if classes is None else classes
    moments, labels = folder / f"moments-{split}.h5", folder / f"moments-{split}.csv"
    if not labels.exists():
        make_folder(folder)
        with open_features(source.archive) as archive:
            cut_moments(archive, annotations.select(TRAINING), moments, labels, classes=novel, progress=False)
    base_videos = _set_aside(source, annotations, novel, folder / f"base-{split}.csv")
    data = data_hash([base_videos, source], moments, labels)
    return Setting(source.name, split, base, novel, base_videos, source, moments, labels, data)


def _set_aside(source: Source, annotations: Annotations, novel: Sequence[str], table: Path) -> Source:
    """Return the source with the training videos that show base and novel classes in a subset of their own."""
    mixed = {
        key
        for key, video in annotations.select(TRAINING).videos.items()
        if not set(video.labels).isdisjoint(novel) and not set(video.labels) <= set(novel)
    }
    if not mixed:
        return source
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "subset"])
    writer.writerows((key, SET_ASIDE if key in mixed else video.subset) for key, video in annotations.videos.items())
    with replace_when_complete(table) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return replace(source, subsets=table)


def features_hash(archives: Sequence[Path]) -> str:
    """Return a hash of ids, lengths, durations and checksums of archives; the features are not read.

    Raises:
        UserError: an archive cannot be read.
    """
    digest = hashlib.sha256()
    for path in archives:
        with open_features(path) as archive:
            digest.update("\0".join(archive.ids).encode())
            for column in (archive.offsets, archive.durations, archive.checksums):
                digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def source_hash(source: Source) -> str:
    """Return a hash of what a source holds and of which subsets are taken, not of its name or where it lies.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256(features_hash([source.archive]).encode())
    for file in (source.annotations, source.categories, source.subsets):
        digest.update(b"-" if file is None else file_hash(file).encode())
    digest.update(repr((source.training, source.validation)).encode())
    return digest.hexdigest()[:16]


def data_hash(sources: Sequence[Source], moments: Path, labels: Path) -> str:
    """Return a hash of all that a setting learns from and is scored on.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256("".join(map(source_hash, sources)).encode())
    digest.update(features_hash([moments]).encode())
    digest.update(file_hash(labels).encode())
    return digest.hexdigest()[:16]


def split_classes(classes: Sequence[str], split: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return base and novel classes, sorted: a random half each (one base class more if the number is odd)."""
    order = np.random.default_rng(split).permutation(len(classes))
    count = (len(classes) + 1) // 2
    base, novel = (tuple(sorted(classes[row] for row in rows)) for rows in (order[:count], order[count:]))
    return base, novel


def validation_of(annotations: Annotations, classes: Sequence[str], subset: str | None = VALIDATION) -> Annotations:
    """Return the videos to score on: those of a subset with an instance of some classes."""
    return annotations.select(subset).of_classes(classes)
