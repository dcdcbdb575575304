"""Folders that hold one file of features per video."""

import functools
from collections import Counter
from pathlib import Path

from ahernet.data.array_files import SUFFIXES, read_array_file
from ahernet.data.foreign_videos import ForeignFeatures, ForeignSource, ForeignVideo
from ahernet.errors import UserError
from ahernet.files import file_version


def open_folder(folder: Path) -> ForeignSource:
    """List the videos of a folder: its array files in the order of their names, without sub-folders.

    A link to a file that is not there is one that cannot be read, not one left out.

    A video's name is that of its file without suffix.

    Raises:
        UserError: the folder cannot be read or holds no array files.
    """
    try:
        files = sorted(
            file for file in folder.iterdir() if not file.name.startswith(".") and (file.is_file() or not file.exists())
        )
    except OSError as error:
        raise UserError(f"{folder}: cannot read this folder ({error.strerror})") from error
    arrays = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not arrays:
        raise UserError(f"{folder}: holds no {_listed(SUFFIXES, 'or')} files ({_others(files)}), expected one a video")
    found = [suffix for suffix in SUFFIXES if any(file.suffix.lower() == suffix for file in arrays)]
    videos = [
        ForeignVideo(file.stem, str(file), functools.partial(_read, file), functools.partial(file_version, file))
        for file in arrays
    ]
    return ForeignSource(f"a folder of {_listed(found, 'and')} files", videos, ignored=len(files) - len(arrays))


def _read(file: Path) -> ForeignFeatures:
    return ForeignFeatures(read_array_file(file))


def _listed(names: tuple[str, ...] | list[str], last: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def _others(files: list[Path]) -> str:
    if not files:
        return "it is empty or has folders alone"
    counts = Counter(file.suffix.lower() or "no suffix" for file in files).most_common(4)
    return "other files: " + ", ".join(f"{count:,} of {suffix}" for suffix, count in counts)
