"""All data of a run: untrimmed videos of base classes, moments, and one numbering of both sets' classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ahernet.config import Config, MethodConfig
from ahernet.data.annotations import Annotations
from ahernet.data.archive import FeatureArchive
from ahernet.errors import UserError
from ahernet.training.batches import TrainingSet, build_training_set
from ahernet.training.moment_set import MomentSet, build_moment_set


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from.

    Attributes:
        untrimmed: annotated videos of the base classes.
        moments: None for a run without.
        classes: names that the network's labels number: base classes first, then those of moments alone.
        untrimmed_is_used: False for a run that learns from moments alone.
    """

    untrimmed: TrainingSet
    moments: MomentSet | None
    classes: tuple[str, ...]
    untrimmed_is_used: bool = True

    @property
    def moment_classes(self) -> tuple[str, ...]:
        """Names of the classes that moments have."""
        return () if self.moments is None else self.moments.classes

    @property
    def base_rows(self) -> list[int]:
        """Place in `classes` of each label of `untrimmed`."""
        return [self.classes.index(name) for name in self.untrimmed.classes]

    @property
    def moment_rows(self) -> list[int]:
        """Place in `classes` of each label of `moments`."""
        return [self.classes.index(name) for name in self.moment_classes]

    def fingerprint(self) -> list[str]:
        """Return hashes of videos, moments, their lengths, ground truth and labels; the features are not read."""
        return [self.untrimmed.fingerprint(), *([self.moments.fingerprint()] if self.moments else [])]

    def describe(self) -> str:
        """Say in a line or two what is used and what is left out."""
        untrimmed = self.untrimmed.summary.describe() if self.untrimmed_is_used else "leaves untrimmed videos aside"
        return "\n".join([untrimmed, *([self.moments.describe()] if self.moments else [])])


def select_training_data(
    archive: FeatureArchive,
    annotations: Annotations,
    classes: Sequence[str] | None,
    moments: FeatureArchive | None,
    moment_labels: Mapping[str, str] | None,
    config: Config,
) -> TrainingData:
    """Return what a run learns from, of what it is given: its share of the annotated videos (`method.annotated_share`).

    Raises:
        UserError: as `build_training_data`.
    """
    data = build_training_data(archive, annotations, classes, moments, moment_labels, config.method)
    if config.method.annotated_share == 1:
        return data
    return replace(data, untrimmed=data.untrimmed.share(config.method.annotated_share, config.training.seed))


def build_training_data(
    archive: FeatureArchive,
    annotations: Annotations,
    classes: Sequence[str] | None,
    moments: FeatureArchive | None,
    moment_labels: Mapping[str, str] | None,
    method: MethodConfig,
) -> TrainingData:
    """Bring together what `ahernet.training.trainer.train` is given.

    Raises:
        UserError: nothing to train on, moments without labels, labels without moments, moments of another dimension, or
            moments that the method has no use for or misses.
    """
    untrimmed = build_training_set(archive, annotations, classes)
    if method.moments == "none":
        if moments is not None or moment_labels is not None:
            given = "labels of moments" if moments is None else "moments"
            raise UserError(f"method.moments: none, but {given} are given; choose a run that learns from them")
        return TrainingData(untrimmed, None, untrimmed.classes)
    if moments is None or moment_labels is None:
        raise UserError(f"method.moments: {method.moments}, but no moments with labels are given, expected both")
    if moments.dimension != archive.dimension:
        raise UserError(
            f"{moments.path}: moments have {moments.dimension} values a row, untrimmed videos {archive.dimension}; "
            "expected the same"
        )
    moment_set = build_moment_set(moments, moment_labels)
    novel = tuple(name for name in moment_set.classes if name not in untrimmed.classes)
    return TrainingData(untrimmed, moment_set, untrimmed.classes + novel, method.untrimmed != "none")
