"""Which files are to be extracted, and under which ids."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ahernet.data.archive_writer import check_video_id
from ahernet.errors import UserError
from ahernet.event_log import inform

# Of files that are taken from folders; a file that is named itself may have any.
MPEG_SUFFIXES = (".m2ts", ".m4v", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".vob")
SUFFIXES = (".3gp", ".avi", ".flv", ".mkv", ".mov", ".mxf", ".ogv", ".webm", ".wmv", *MPEG_SUFFIXES)


def find_videos(paths: Sequence[Path], ids: Path | None = None) -> dict[str, Path]:
    """Return the files to extract by video id, in the order given.

    Args:
        paths: files, and folders to search for videos, with their sub-folders, through links too and in the order of
            the names. A link to a file that is not there counts as a file. What does not end as videos do is left out
            and counted on standard error.
        ids: table (CSV) with columns `file` and `id`: ids for files, by path as it is found or by name. Without
            it a video's id is its file's name without the last suffix.

    Raises:
        UserError: a path does not exist, a folder has no video, a file has no id in the table or an id that
            archives cannot hold, two files have one id, or a folder or the table cannot be read.
    """
    table = None if ids is None else _read_ids(ids)
    used: set[str] = set()
    videos: dict[str, Path] = {}
    for path in _files(paths):
        if table is None:
            video_id = path.stem
        else:
            name = str(path) if str(path) in table else path.name
            if name not in table:
                raise UserError(f"{ids}: has no id for {path}, expected one for each video")
            used.add(name)
            video_id = table[name]
        try:
            check_video_id(video_id)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if video_id in videos:
            raise UserError(
                f"{path}: has the same video id {video_id!r} as {videos[video_id]}; give ids of your own with --ids"
            )
        videos[video_id] = path
    unused = [name for name in table or () if name not in used]
    if unused:
        inform(f"{ids}: {len(unused):,} files of it are not among the videos, as {unused[0]}")
    return videos


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if "\0" in str(path):
            raise UserError(f"{str(path)!r}: not a file name")
        if path.is_dir():
            files = [file for file in sorted(_below(path)) if not _is_hidden(file.relative_to(path))]
            found = [file for file in files if file.suffix.lower() in SUFFIXES]
            if not found:
                raise UserError(
                    f"{path}: no file in this folder ends as videos do (expected {', '.join(sorted(SUFFIXES))})"
                )
            others = [file for file in files if file.suffix.lower() not in SUFFIXES]
            if others:
                inform(f"{path}: left out {len(others):,} files that do not end as videos do, as {others[0].name}")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}, expected a video")


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those below it, of each folder once however many links lead there."""

    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename}: cannot read this folder ({error.strerror})") from error

    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for file in (Path(place, name) for name in names):
            if file.is_file() or not file.exists():
                yield file


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _read_ids(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"file", "id"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: expected a table with the columns file and id")
            rows = [(row["file"], row["id"]) for row in reader]
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table in UTF-8 ({error})") from error
    table: dict[str, str] = {}
    for file_name, video_id in rows:
        if not file_name or not video_id:
            raise UserError(f"{path}: a row without file or id: {file_name!r}, {video_id!r}; expected both")
        if table.setdefault(file_name, video_id) != video_id:
            raise UserError(f"{path}: has two ids for {file_name!r}, expected one")
    return table
