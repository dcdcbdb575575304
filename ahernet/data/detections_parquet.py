"""Detections of one shard of an archive as a Parquet file: small, typed, and quick to filter by column.

Columns: `video_id` and `label` (dictionary-encoded text), `start`, `end` (seconds) and `score` (float64), a row per
detection, in the order of the videos and best first within each. The file's metadata names, as JSON lists, every video
that was processed (`ahernet.videos`, also those without a detection) and the classes (`ahernet.classes`). The bytes
depend on nothing but the detections and the version of the library.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ahernet.data.bounded_read import parse_json
from ahernet.data.detections import Detections
from ahernet.errors import UserError
from ahernet.files import replace_when_complete

if TYPE_CHECKING:
    import pyarrow

# Compressed, a few bytes can claim any number of rows: more than these must take a byte of the file each.
FREE_ROWS = 1 << 20
VIDEOS_KEY, CLASSES_KEY = b"ahernet.videos", b"ahernet.classes"
COLUMNS = ("video_id", "label", "start", "end", "score")


def require_parquet() -> None:
    """Refuse to go on without the library.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError("Parquet files: need pyarrow; install it with pip install 'ahernet[parquet]'") from error


def write_parquet(path: Path, detections: Detections) -> None:
    """Write detections as a Parquet file; ids stay as the archive spells them.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be written.
    """
    require_parquet()
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "video_id": _dictionary(detections.video, detections.video_ids),
            "label": _dictionary(detections.label, detections.classes),
            "start": detections.segments[:, 0],
            "end": detections.segments[:, 1],
            "score": detections.scores,
        }
    )
    named = {VIDEOS_KEY: detections.video_ids, CLASSES_KEY: detections.classes}
    metadata = {key: json.dumps(names).encode() for key, names in named.items()}
    with replace_when_complete(path) as temporary:
        parquet.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def read_parquet(path: Path) -> Detections:
    """Read a Parquet file that `write_parquet` wrote.

    Raises:
        UserError: pyarrow is not installed, the file is unreadable, of other columns, claims more rows than it can
            hold, or names videos that it does not list.
    """
    require_parquet()
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(path)
        rows, columns = metadata.num_rows, metadata.schema.names
        if not set(COLUMNS) <= set(columns):
            raise UserError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(columns)!r:.80}")
        if rows > max(FREE_ROWS, path.stat().st_size):
            raise UserError(f"{path}: claims {rows:,} detections, too many for its size")
        # Names stay numbers of a dictionary: a long one that occurs in every row is in memory once.
        with parquet.ParquetFile(path, metadata=metadata, read_dictionary=["video_id", "label"]) as file:
            table = file.read(columns=COLUMNS)
    # ValueError, KeyError: names that are not UTF-8, for instance, of which Arrow itself does not speak.
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from error
    video_ids, classes = (_names(path, table, key) for key in (VIDEOS_KEY, CLASSES_KEY))
    try:
        return Detections(
            video_ids,
            classes,
            video=_numbers(table, "video_id", video_ids),
            label=_numbers(table, "label", classes),
            segments=np.stack([_floats(table, name) for name in ("start", "end")], axis=1),
            scores=_floats(table, "score"),
        )
    except (ValueError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: expected detections as localize writes them ({error})") from error


def _dictionary(numbers: np.ndarray, names: tuple[str, ...]) -> "pyarrow.DictionaryArray":
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(numbers.astype(np.int32), pyarrow.array(names, pyarrow.string()))


def _names(path: Path, table: "pyarrow.Table", key: bytes) -> tuple[str, ...]:
    stored = (table.schema.metadata or {}).get(key)
    try:
        names = parse_json(stored or b"null")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: metadata {key.decode()}: not JSON ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: metadata {key.decode()}: expected a JSON list of names, as localize writes it")
    return tuple(names)


def _numbers(table: "pyarrow.Table", column: str, names: tuple[str, ...]) -> Any:
    """Return the place in `names` of every value of a text column, (N,) int64."""
    import pyarrow
    from pyarrow import compute

    listed = pyarrow.array(names, pyarrow.string())
    parts = [np.empty(0, np.int64)]
    for chunk in table.column(column).chunks:
        words = chunk.dictionary.cast(pyarrow.string())
        places = compute.index_in(words, value_set=listed)
        used = chunk.indices.unique()
        if used.null_count or places.take(used).null_count:
            missing = [word for word in words.take(used.drop_null()).to_pylist() if word not in names]
            raise ValueError(f"{column}: {missing[0]!r} is not listed" if missing else f"{column}: a value is missing")
        parts.append(places.fill_null(-1).to_numpy()[chunk.indices.to_numpy()].astype(np.int64))
    return np.concatenate(parts)


def _floats(table: "pyarrow.Table", column: str) -> Any:
    import pyarrow

    return table.column(column).cast(pyarrow.float64()).to_numpy()
