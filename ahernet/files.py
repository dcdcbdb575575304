"""Files that appear whole or not at all, and file names made from untrusted ids."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from ahernet.errors import UserError

MAX_NAME_BYTES = 120


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    On any exception the temporary file is removed and `path` keeps its former content.

    Raises:
        UserError: the folder of `path` does not exist or cannot be written, or the disk is full.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot write there ({error.strerror})") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _flush_to_disk(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Create the folder `path` with its parents.

    Raises:
        UserError: a file stands in the way or the place is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot create this folder ({error.strerror})") from error


def safe_file_name(video_id: str) -> str:
    """Return a file name (no folder, no suffix) for an untrusted video id.

    Everything but letters, digits, `_` and `-` is percent-encoded (dots too, so that no name is hidden or
    climbs out of a folder). Long names are cut and end with a hash; different ids get different names.
    """
    name = quote(video_id, safe="").replace(".", "%2E").replace("~", "%7E") or "%"
    if len(name) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(video_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{name[: MAX_NAME_BYTES - 17]}-{digest}"


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
