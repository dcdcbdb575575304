"""Setting files: which annotations, features and classes an experiment is made on.

A TOML file; paths are relative to it. Base classes may be learnt from their annotations, novel ones from moments alone:

    name = "th14-anet_fg"

    [base]
    classes = "base.txt"            # one name a line
    annotations = "thumos14.json"   # of any kind that `read_annotations` takes
    archive = "thumos14.h5"         # features
    training = "train"              # subset to learn from
    validation = "test"             # subset to score base classes on; without it they are not scored

    [novel]
    classes = "novel.txt"
    annotations = "activitynet.json.gz"
    archive = "activitynet.h5"
    training = "training"           # subset that moments are cut from, and that the oracle aher* learns from
    validation = "validation"       # subset to score novel classes on

    [moments]                       # instead: trimmed clips with an archive of their own
    archive = "clips.h5"
    labels = "clips.csv"            # as `read_moment_labels` takes it

`[base]` and `[novel]` may name the same files; they may have `categories` (class names, where annotations give numbers)
and `subsets` (a CSV of `video,subset`). The subset of a file that states none is "". Without `training` in `[novel]`
there must be `[moments]`, and the oracle cannot be run.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from ahernet.data.annotations import read_class_names
from ahernet.data.archive_set import open_features
from ahernet.data.moment_labels import read_moment_labels
from ahernet.data.moments import cut_moments
from ahernet.errors import UserError
from ahernet.event_log import warn
from ahernet.experiments.setting import Setting, Source, data_hash, source_hash
from ahernet.files import make_folder
from ahernet.training.moment_set import build_moment_set

VIDEO_KEYS = ("classes", "annotations", "archive", "training", "validation", "categories", "subsets")
NEEDED = {
    "base": ("classes", "annotations", "archive", "training"),
    "novel": ("classes", "annotations", "archive", "validation"),
    "moments": ("archive", "labels"),
}


def read_setting(path: Path, folder: Path) -> Setting:
    """Read a setting file; where it has no moments of their own, cut them into `folder` if they are not there.

    Novel classes without a moment are left out; a line on standard error counts them.

    Raises:
        UserError: the file cannot be read, lacks a key or has an unknown one, a class is both base and novel, or what
            it names cannot be read; the message names the file.
    """
    tables = _read_tables(path)
    base = tuple(read_class_names(path.parent / tables["base"]["classes"]))
    novel = tuple(read_class_names(path.parent / tables["novel"]["classes"]))
    both = sorted(set(base) & set(novel))
    if both:
        raise UserError(f"{path}: {len(both)} classes are both base and novel, for example {both[0]!r}")
    name = tables["name"]
    base_videos, novel_videos = (_source(path, name, tables[table]) for table in ("base", "novel"))
    if "moments" in tables:
        moments, labels = (path.parent / tables["moments"][key] for key in ("archive", "labels"))
    else:
        moments, labels = _cut(novel_videos, novel, folder)
    novel = _with_moments(path, novel, moments, labels)
    data = data_hash([base_videos, novel_videos], moments, labels)
    return Setting(name, 0, base, novel, base_videos, novel_videos, moments, labels, data)


def _cut(source: Source, classes: tuple[str, ...], folder: Path) -> tuple[Path, Path]:
    make_folder(folder)
    # Named for all that they depend on, so that others find no moments of these.
    cut = f"{source_hash(source)} {classes}"
    name = f"moments-{hashlib.sha256(cut.encode()).hexdigest()[:16]}"
    moments, labels = folder / f"{name}.h5", folder / f"{name}.csv"
    if not labels.exists():
        with open_features(source.archive) as archive:
            cut_moments(archive, source.read().select(source.training), moments, labels, classes=classes)
    return moments, labels


def _with_moments(path: Path, novel: tuple[str, ...], moments: Path, labels: Path) -> tuple[str, ...]:
    """Return the classes that have a moment with features: nothing could be learnt of the others."""
    with open_features(moments) as archive:
        known = set(build_moment_set(archive, read_moment_labels(labels)).classes)
    without = [name for name in novel if name not in known]
    if len(without) == len(novel):
        raise UserError(f"{path}: no novel class has a moment in {moments}, for example {novel[0]!r}; expected some")
    if without:
        warn(f"{path}: left out {len(without):,} novel classes without a moment, for example {without[0]!r}")
    return tuple(name for name in novel if name in known)


def _source(path: Path, name: str, table: dict[str, str]) -> Source:
    files = {
        key: path.parent / table[key] for key in ("archive", "annotations", "categories", "subsets") if key in table
    }
    return Source(name, training=table.get("training"), validation=table.get("validation"), **files)


def _read_tables(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the setting ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a TOML file ({error})") from error
    _check(path, tables)
    return tables


def _check(path: Path, tables: dict[str, Any]) -> None:
    _refuse_unknown(path, tables, ("name", *NEEDED), "")
    if not isinstance(tables.get("name"), str) or not tables["name"]:
        raise UserError(f"{path}: name: expected the name of the setting")
    for table, needed in NEEDED.items():
        if table not in tables:
            if table == "moments":
                continue
            raise UserError(f"{path}: expected a table [{table}]")
        if not isinstance(tables[table], dict):
            raise UserError(f"{path}: {table}: expected a table")
        _refuse_unknown(path, tables[table], needed if table == "moments" else VIDEO_KEYS, f"{table}.")
        for key, value in tables[table].items():
            if not isinstance(value, str):
                raise UserError(f"{path}: {table}.{key}: expected text, got {value!r:.80}")
        for key in needed:
            if key not in tables[table]:
                raise UserError(f"{path}: {table}.{key}: missing")
    if "moments" not in tables and "training" not in tables["novel"]:
        raise UserError(f"{path}: expected novel.training, to cut moments from, or a table [moments]")


def _refuse_unknown(path: Path, table: dict[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{path}: {prefix}{key}: unknown key, expected one of {', '.join(known)}")
