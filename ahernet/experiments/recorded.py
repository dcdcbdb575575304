"""Settings made of labelled recordings (npz, see `ahernet.data.recordings`): how they are cut, and what is novel.

Without a file, recordings are cut where the class changes, subjects above 15 are held out, and a random half of the
classes is novel. A TOML file says it otherwise, every key may be left out:

    [recordings]
    window = 8                      # samples that one row describes
    stride = 4                      # samples from one row to the next
    cut = "classes"                 # "none": a recording is a video; "groups": cut where base and novel classes meet
    training_subjects = "1-15"      # the others are held out
    training_share = 0.75           # instead, for one subject: random share of the recordings, the others are held out
    background = ["SITTING"]        # classes that are no actions: left unlabelled
    trim = true                     # leave out what lies before the first label of a recording and after the last one
    novel = ["two", "four"]         # novel classes; without them a random half, another one with every seed

Where a video shows base and novel classes ("none"), training videos that show a novel class are the source of moments
alone, see `ahernet.experiments.setting`.
"""

import hashlib
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from ahernet.data.recordings import Cut, check_classes, import_recordings, read_recordings, without_classes
from ahernet.errors import UserError
from ahernet.experiments.setting import Setting, Source, make_setting, split_classes
from ahernet.files import make_folder

TABLE = "recordings"
TRAINING_SUBJECTS = "1-15"  # where nothing else is said


@dataclass(frozen=True)
class RecordingsPlan:
    """How recordings become videos of a setting; the module's docstring says what the attributes mean."""

    window: int = 8
    stride: int = 4
    cut: Cut = "classes"
    training_subjects: str | None = TRAINING_SUBJECTS
    training_share: float | None = None
    background: tuple[str, ...] = ()
    trim: bool = False
    novel: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """Recordings of which a setting is made for every split.

    Attributes:
        recordings: npz file.
        plan: how they are cut, and what is novel.
        folder: for archives, annotations and moments; created if need be.
    """

    recordings: Path
    plan: RecordingsPlan
    folder: Path

    @property
    def name(self) -> str:
        """Name of the data, for results."""
        return self.recordings.stem

    def for_split(self, split: int) -> Setting:
        """Import the recordings, split their classes and cut the moments of the novel ones; take what is there.

        Raises:
            UserError: as `import_recordings` and `make_setting`; no class is base or novel.
        """
        plan = self.plan
        base, novel = self._classes(split)
        apart = novel if plan.cut == "groups" else ()
        # Named for all that it depends on, so that others find no archive of these.
        described = f"{asdict(plan)} {apart} {hashlib.sha256(self.recordings.read_bytes()).hexdigest()}"
        folder = self.folder / f"{self.name}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"
        archive, annotations = folder / "archive.h5", folder / "annotations.json"
        if not annotations.exists():
            make_folder(folder)
            import_recordings(
                self.recordings,
                archive,
                annotations,
                window=plan.window,
                stride=plan.stride,
                cut=plan.cut,
                apart=apart,
                background=plan.background,
                trim=plan.trim,
                training_subjects=plan.training_subjects,
                training_share=plan.training_share,
            )
        return make_setting(Source(self.name, archive, annotations), split, folder, (base, novel))

    def _classes(self, split: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return base and novel classes, of those that have an instance."""
        path, plan = self.recordings, self.plan
        recordings = without_classes(read_recordings(path), plan.background, path)
        check_classes(recordings, plan.novel, "novel", path)
        occurring = sorted({recordings.class_names[label] for label in recordings.segment_class})
        if len(occurring) < 2:
            raise UserError(f"{path}: instances are of one class, expected base and novel ones")
        if not plan.novel:
            return split_classes(occurring, split)
        base = tuple(name for name in occurring if name not in plan.novel)
        if not base:
            raise UserError(f"{path}: novel: every class is novel, none is left to learn from annotations; give fewer")
        return base, tuple(sorted(plan.novel))


def read_plan(path: Path) -> RecordingsPlan:
    """Read how recordings are cut from a TOML file.

    Raises:
        UserError: the file cannot be read, has no table `[recordings]`, an unknown key or a value of another type.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the setting ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a TOML file ({error})") from error
    if set(tables) != {TABLE} or not isinstance(tables[TABLE], dict):
        raise UserError(f"{path}: expected a table [{TABLE}] and nothing else, as the setting of recordings")
    table = {key: _checked(path, key, value) for key, value in tables[TABLE].items()}
    # A share holds recordings out instead of subjects.
    held_out: dict[str, Any] = {"training_subjects": None} if "training_share" in table else {}
    return RecordingsPlan(**{**held_out, **table})


def _checked(path: Path, key: str, value: object) -> Any:
    """Return the value of a key as the plan holds it; which values make sense is for the import to say."""
    known = [field.name for field in fields(RecordingsPlan)]
    if key not in known:
        raise UserError(f"{path}: {TABLE}.{key}: unknown key, expected one of {', '.join(known)}")
    if key in ("background", "novel"):
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise UserError(f"{path}: {TABLE}.{key}: expected names of classes in brackets, got {value!r:.80}")
        if len(set(value)) < len(value):
            raise UserError(f"{path}: {TABLE}.{key}: a name occurs twice")
        return tuple(cast(list[str], value))
    kind = {"window": int, "stride": int, "training_share": float, "trim": bool}.get(key, str)
    if type(value) is not kind:
        words = {int: "an integer", float: "a number with a point", bool: "true or false", str: "text"}[kind]
        raise UserError(f"{path}: {TABLE}.{key}: expected {words}, got {value!r:.80}")
    return value
