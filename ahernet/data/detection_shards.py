"""Detections of a large archive: a folder of shards, each a file with the detections of some videos, and a manifest.

    manifest.json             what was localized, how, and which shards there are
    part-000000.parquet       a shard: a Parquet file, or any other detection file
    part-000000.skipped.json  why videos of the shard were left out, by id; only where there are any

The name of a shard depends on nothing but its place, and a shard that has its name is complete. So a run that was
killed is finished by the same command, and several processes may work on one folder.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ahernet.data.bounded_read import parse_json, read_up_to
from ahernet.data.detections import SUFFIXES, Detections, read_detections, write_detections
from ahernet.data.detections_parquet import read_parquet, write_parquet
from ahernet.errors import UserError
from ahernet.files import write_once

SHARDS_FORMAT = "ahernet-detections"
SHARDS_VERSION = 1
MANIFEST_NAME = "manifest.json"
PARQUET = ".parquet"
MAX_MANIFEST_BYTES = 1 << 28


def load_detections(path: Path) -> Detections:
    """Read detections from a file (JSON, CSV, either as .gz, or Parquet) or from a folder of shards.

    Raises:
        UserError: as `read_detections` and `read_parquet`; a folder without manifest, or one whose shards are not all
            there.
    """
    path = Path(path)
    if not path.is_dir():
        return _read(path)
    manifest = read_manifest(path)
    parts = [path / name for name in manifest["shards"]]
    missing = [part for part in parts if not part.exists()]
    if missing:
        raise UserError(
            f"{path}: {len(missing):,} of {len(parts):,} shards are missing, as {missing[0].name}; "
            f"the command that began this folder goes on with it"
        )
    return joined_detections(path, [_read(part) for part in parts], manifest["classes"])


def write_shard(path: Path, detections: Detections, *, as_spelled: bool = False) -> None:
    """Write detections in the format that the name of the file says.

    Args:
        path: to write.
        detections: what it gets.
        as_spelled: keep ids as they are: in shards, where another one may hold the video that an id without `v_` names.

    Raises:
        UserError: unknown suffix, a library is missing, or the file cannot be written.
    """
    if path.suffix.lower() == PARQUET:
        write_parquet(path, detections)
    else:
        write_detections(path, detections, as_spelled=as_spelled)


def shard_names(count: int, suffix: str) -> list[str]:
    """Return the file names of the shards of a folder.

    Raises:
        UserError: no such format.
    """
    known = (PARQUET, *SUFFIXES)
    if suffix not in known:
        raise UserError(f"format: expected one of {', '.join(name[1:] for name in known)}, got {suffix[1:]!r}")
    return [f"part-{number:06d}{suffix}" for number in range(count)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder of shards.

    Raises:
        UserError: it cannot be read, is malformed, or names a shard that is not in the folder.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            content = read_up_to(file.read, MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise UserError(f"{path}: more than {MAX_MANIFEST_BYTES:,} bytes, too large for a manifest")
        manifest = parse_json(content)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: a folder without {MANIFEST_NAME}, expected one that localize wrote") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read the manifest of detections ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a manifest of detections ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != SHARDS_FORMAT:
        raise UserError(f"{path}: not a manifest of detections, expected the format {SHARDS_FORMAT!r}")
    if manifest.get("version") != SHARDS_VERSION:
        raise UserError(f"{path}: version {manifest.get('version')!r}, this ahernet reads {SHARDS_VERSION}")
    for key in ("shards", "classes"):
        names = manifest.get(key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: {key}: expected a list of names")
    if not manifest["shards"]:
        raise UserError(f"{path}: shards: expected at least one")
    for name in manifest["shards"]:
        if name != Path(name).name or not name.startswith("part-"):
            raise UserError(f"{path}: shards: expected names of files in its folder, got {name!r:.80}")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a folder of shards, or find that it is there.

    Raises:
        UserError: the folder holds another one: of other videos, another network or other settings.
    """
    whole = {"format": SHARDS_FORMAT, "version": SHARDS_VERSION, **manifest}
    content = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    if write_once(folder / MANIFEST_NAME, content):
        return
    found = read_manifest(folder)
    for key, value in whole.items():
        if found.get(key) != value:
            raise UserError(
                f"{folder}: holds detections of another run: {_difference(key, found.get(key), value)}; "
                f"give another folder"
            )


def joined_detections(source: Path, parts: Sequence[Detections], classes: Sequence[str]) -> Detections:
    """Put the detections of shards behind one another.

    Args:
        source: for messages.
        parts: of different videos.
        classes: names that the labels of the result number.

    Raises:
        UserError: a video is in two parts, or a class is none of `classes`.
    """
    number = {name: label for label, name in enumerate(classes)}
    for part in parts:
        unknown = [name for name in part.classes if name not in number]
        if unknown:
            raise UserError(f"{source}: class {unknown[0]!r} is none that the manifest names, expected one of these")
    video_ids = tuple(video_id for part in parts for video_id in part.video_ids)
    twice = [video_id for video_id, count in Counter(video_ids).items() if count > 1]
    if twice:
        raise UserError(f"{source}: video {twice[0]!r} is in two shards, expected in one")
    starts = np.cumsum([0, *(len(part.video_ids) for part in parts)])
    maps = [np.array([number[name] for name in part.classes], np.int64) for part in parts]
    return Detections(
        video_ids,
        tuple(classes),
        video=np.concatenate([part.video + start for part, start in zip(parts, starts, strict=False)]),
        label=np.concatenate([table[part.label] for part, table in zip(parts, maps, strict=True)]),
        segments=np.concatenate([part.segments for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
    )


def _read(path: Path) -> Detections:
    return read_parquet(path) if path.suffix.lower() == PARQUET else read_detections(path)


def _difference(key: str, found: Any, wanted: Any) -> str:
    """Name the first entry that differs, in dictionaries the entry of the entry."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for inner in wanted:
            if found.get(inner) != wanted[inner]:
                return _difference(f"{key}.{inner}", found.get(inner), wanted[inner])
    return f"{key} is {found!r:.80}, now {wanted!r:.80}"
