"""Reading no more of a stranger's file than is of use, and reserving no more memory than it has content."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, AnyStr

SMALL_TEXT = 1 << 24  # bytes that may be unpacked from anything
MAX_TEXT_COMPRESSION = 100  # unpacked over packed size of text; JSON of annotations has 5 to 20
_GZIP_MAGIC = b"\x1f\x8b"
PIECE = 1 << 20  # what is asked for at a time: Python reserves all that one asks for


def most_unpacked(path: Path) -> int:
    """Return how much text a gzip-compressed file of this size can honestly hold.

    What it holds takes up to 25 times as much in memory, when it is empty lists.

    Raises:
        OSError: the file cannot be looked at.
    """
    return max(SMALL_TEXT, MAX_TEXT_COMPRESSION * path.stat().st_size)


def is_gzip(path: Path) -> bool:
    """Whether a file begins as a gzip-compressed one does, whatever it is called.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def read_up_to(read: Callable[[int], AnyStr], limit: int) -> AnyStr:
    """Return what is left of a stream, but at most `limit` bytes or characters of it.

    Args:
        read: method of the stream that returns at most as much as one asks for, and nothing at its end.
        limit: at least 0.

    Raises:
        OSError, ValueError, EOFError, zlib.error: as the stream does.
    """
    pieces: list[AnyStr] = []
    while limit > 0 and (piece := read(min(limit, PIECE))):
        pieces.append(piece)
        limit -= len(piece)
    return read(0).join(pieces)


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text says, if no object of it has a key twice: one of the two values would be lost unseen.

    Raises:
        ValueError: it is no JSON, or a key occurs more than once in one object.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object_without_repeats)


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r:.80} occurs more than once in one object")
    return content
