"""Several feature archives as one: a manifest that lists them, and what opens either kind.

A large archive is a folder of immutable files of a few gigabytes and a small manifest beside them (JSON, version 1):

    {"format": "ahernet-archive-set", "version": 1,
     "archives": [{"file": "part-000.h5", "videos": 5000, "rows": 640000}, ...]}

`file` is the name of an archive in the manifest's folder. Videos keep the order of the files and within them. All
files have the same dimension and type of features and the same origin, and no video occurs twice.
"""

import json
import resource
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ahernet.data.archive import FeatureArchive, open_archive
from ahernet.data.archive_rows import JoinedRows
from ahernet.data.bounded_read import parse_json, read_up_to
from ahernet.errors import UserError
from ahernet.files import replace_when_complete

SET_FORMAT = "ahernet-archive-set"
SET_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 26
SPARE_FILES = 256  # that a process may open beside a set: pipes of workers, checkpoints, further archives


@dataclass(frozen=True)
class ListedArchive:
    """One file of a set: its name in the manifest's folder, and how many videos and rows it holds."""

    file: str
    videos: int
    rows: int


class ArchiveSet(FeatureArchive):
    """Several open archives that read as one; `open_features` makes it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_features, (self.path,)


def open_features(path: Path) -> FeatureArchive:
    """Open a feature archive, or a set of them: its manifest (.json) or the folder that holds one.

    Raises:
        UserError: as `open_archive`; the manifest is malformed, does not fit the files, or lists more of them than
            a process may have open.
    """
    path = Path(path)
    if not is_set(path):
        return open_archive(path)
    manifest, listed = read_manifest(path)
    _allow_open_files(manifest, len(listed))
    archives: list[FeatureArchive] = []
    try:
        for item in listed:
            archives.append(open_archive(manifest.parent / item.file))
            _check_listed(manifest, item, archives[-1])
        check_uniform(archives)
        return _join(manifest, archives)
    except BaseException:
        for archive in archives:
            archive.close()
        raise


def is_set(path: Path) -> bool:
    """Whether a path names a set of archives: a folder or a .json file."""
    return path.is_dir() or path.suffix.lower() == ".json"


def one_after_the_other(path: Path) -> Iterator[FeatureArchive]:
    """Open the archives that a path names, each until the next one is asked for, however many there are.

    Raises:
        UserError: as `open_features`, but that videos may occur twice.
    """
    if not is_set(path):
        with open_archive(path) as archive:
            yield archive
        return
    manifest, listed = read_manifest(path)
    first: FeatureArchive | None = None
    for item in listed:
        with open_archive(manifest.parent / item.file) as archive:
            _check_listed(manifest, item, archive)
            first = first or archive
            check_uniform([first, archive])
            yield archive


def archive_files(path: Path) -> list[tuple[Path, int]]:
    """Return the archive files that a path names, with their numbers of videos, without opening those of a set.

    Raises:
        UserError: as `open_features`.
    """
    if is_set(path):
        manifest, listed = read_manifest(path)
        return [(manifest.parent / item.file, item.videos) for item in listed]
    with open_archive(path) as archive:
        return [(path, len(archive))]


def read_manifest(path: Path) -> tuple[Path, list[ListedArchive]]:
    """Return the path of the manifest that `path` is or holds, and what it lists.

    Raises:
        UserError: it cannot be read or is malformed, lists a file twice, or names one that is not in its folder.
    """
    manifest = path / MANIFEST_NAME if path.is_dir() else path
    try:
        with manifest.open("rb") as file:
            content = read_up_to(file.read, MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise UserError(f"{manifest}: more than {MAX_MANIFEST_BYTES:,} bytes, too large for a manifest")
        stored = parse_json(content)
    except FileNotFoundError as error:
        what = f"a folder without {MANIFEST_NAME}" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}, expected a feature archive or a folder of archives") from error
    except OSError as error:
        raise UserError(f"{manifest}: cannot read the manifest of archives ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{manifest}: not a manifest of archives ({error})") from error
    if not isinstance(stored, dict) or stored.get("format") != SET_FORMAT:
        raise UserError(f"{manifest}: not a manifest of archives, expected the format {SET_FORMAT!r}")
    if stored.get("version") != SET_VERSION:
        raise UserError(
            f"{manifest}: version {stored.get('version')!r} of archive sets, this ahernet reads {SET_VERSION}"
        )
    archives = stored.get("archives")
    if not isinstance(archives, list) or not archives:
        raise UserError(f"{manifest}: archives: expected a list of at least one file")
    listed = [_listed(manifest, item) for item in archives]
    names = [item.file for item in listed]
    if len(set(names)) < len(names):
        raise UserError(f"{manifest}: lists {next(name for name in names if names.count(name) > 1)!r} twice")
    return manifest, listed


def write_manifest(manifest: Path, files: Sequence[Path]) -> None:
    """List archives in a manifest after opening each of them.

    Args:
        manifest: file to write, in the folder that holds the archives.
        files: archives in the order that the set is to have.

    Raises:
        UserError: an archive cannot be opened or lies in another folder, the archives do not fit together, a video
            occurs twice, or the manifest cannot be written.
    """
    if manifest.suffix.lower() != ".json":
        raise UserError(f"{manifest}: expected a file name that ends in .json")
    if not files:
        raise UserError(f"{manifest}: expected at least one archive to list")
    for file in files:
        if file.resolve().parent != manifest.resolve().parent:
            raise UserError(f"{file}: expected in the folder of the manifest, {manifest.parent}")
    archives: list[FeatureArchive] = []  # closed: there may be more of them than files that a process may have open
    for file in files:
        with open_archive(file) as archive:
            archives.append(archive)
    check_uniform(archives)
    _refuse_repeated(archives)
    listed = [ListedArchive(file.name, len(a), int(a.offsets[-1])) for file, a in zip(files, archives, strict=True)]
    content = {"format": SET_FORMAT, "version": SET_VERSION, "archives": [asdict(item) for item in listed]}
    with replace_when_complete(manifest) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_uniform(archives: Sequence[FeatureArchive]) -> None:
    """Refuse archives whose features do not mix.

    Raises:
        UserError: dimension, type or origin differ; it names two files.
    """
    first = archives[0]
    for other in archives[1:]:
        for name in ("dimension", "dtype", "origin"):
            here, there = getattr(first, name), getattr(other, name)
            if here != there:
                raise UserError(
                    f"{other.path}: its {name} is {there!s}, that of {first.path} is {here!s}; expected the same"
                )


def _check_listed(manifest: Path, item: ListedArchive, archive: FeatureArchive) -> None:
    videos, rows = len(archive), int(archive.offsets[-1])
    if (videos, rows) != (item.videos, item.rows):
        raise UserError(
            f"{archive.path}: has {videos:,} videos and {rows:,} rows, "
            f"{manifest} says {item.videos:,} and {item.rows:,}; write the manifest again"
        )


def _allow_open_files(manifest: Path, count: int) -> None:
    """Let this process have so many more files open; the usual limit of 1,024 is one that it may raise itself."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + len(list(Path("/dev/fd").glob("*")))
    if allowed != resource.RLIM_INFINITY and allowed < needed + SPARE_FILES:
        with suppress(OSError, ValueError):  # some systems have a lower limit than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            allowed = most
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise UserError(
            f"{manifest}: lists {count:,} archives, too many to open at once: this process may have {allowed:,} files "
            "open; raise the limit (ulimit -n), or list fewer and larger archives"
        )


def _listed(manifest: Path, item: Any) -> ListedArchive:
    if not isinstance(item, dict) or set(item) != {"file", "videos", "rows"}:
        raise UserError(f'{manifest}: archives: expected {{"file", "videos", "rows"}}, got {item!r:.80}')
    name = item["file"]
    if not isinstance(name, str) or name in ("", "..") or name != Path(name).name or "\0" in name:
        raise UserError(f"{manifest}: file: expected the name of a file in the manifest's folder, got {name!r:.80}")
    for key in ("videos", "rows"):
        if type(item[key]) is not int or item[key] < 1:
            raise UserError(f"{manifest}: {name}: {key}: expected a number of at least 1, got {item[key]!r:.80}")
    return ListedArchive(name, item["videos"], item["rows"])


def _refuse_repeated(archives: Sequence[FeatureArchive]) -> None:
    owner: dict[str, Path] = {}
    for archive in archives:
        for video_id in archive.ids:
            if video_id in owner:
                raise UserError(
                    f"{archive.path}: holds video {video_id!r}, as {owner[video_id]} does; expected it in one"
                )
            owner[video_id] = archive.path


def _join(manifest: Path, archives: Sequence[FeatureArchive]) -> ArchiveSet:
    _refuse_repeated(archives)
    first = archives[0]
    ends = np.cumsum([archive.offsets[-1] for archive in archives])
    starts = ends - [archive.offsets[-1] for archive in archives]
    shifted = [archive.offsets[1:] + start for archive, start in zip(archives, starts, strict=True)]
    frame_rates = {archive.frame_rate for archive in archives}
    strides = {archive.clip_stride for archive in archives}
    return ArchiveSet(
        manifest,
        JoinedRows([archive.source for archive in archives], ends),
        ids=tuple(video_id for archive in archives for video_id in archive.ids),
        durations=np.concatenate([archive.durations for archive in archives]),
        offsets=np.concatenate([[0], *shifted]).astype(np.int64),
        checksums=np.concatenate([archive.checksums for archive in archives]),
        dimension=first.dimension,
        dtype=first.dtype,
        frame_rate=first.frame_rate if len(frame_rates) == 1 else float("nan"),
        clip_stride=first.clip_stride if len(strides) == 1 else 0,
        origin=first.origin,
    )
