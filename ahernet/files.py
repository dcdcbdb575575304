"""Files that appear whole or not at all, folders with one writer, and file names made from untrusted ids."""

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from ahernet.errors import UserError

MAX_NAME_BYTES = 120
SHOWN_NAME = 40  # characters of a file's name in that of its unfinished copy
LOCK_NAME = ".lock"


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    On any exception the temporary file is removed and `path` keeps its former content. A link is followed.

    Raises:
        UserError: `path` is no plain file, its folder does not exist or cannot be written, or writing raised an
            OSError (the disk is full, for instance).
    """
    check_output_file(path)
    path = path.resolve()
    try:
        handle, name = tempfile.mkstemp(prefix=_copy_prefix(path), suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot write there ({error.strerror})") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        flush_to_disk(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_once(path: Path, text: str) -> bool:
    """Write a file that was not there, whole and to disk; return False if there is one already, and leave it.

    Of several processes that try at the same time one writes.

    Raises:
        UserError: the file cannot be written.
    """
    if path.exists():
        return False
    prefix = _copy_prefix(path)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=prefix, suffix=".tmp"
        ) as temporary:
            temporary.write(text)
            temporary.flush()
            os.fsync(temporary.fileno())
            Path(temporary.name).chmod(0o666 & ~_umask())
            os.link(temporary.name, path)
        flush_to_disk(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.exists():
            return False  # written by another process, which then removed what was left of others: `remove_copies`
        raise UserError(f"{path}: cannot write ({error.strerror})") from error
    return True


def remove_copies(path: Path) -> None:
    """Remove what killed calls of `replace_when_complete` and `write_once` left of a file.

    Calls of `replace_when_complete` that are at work fail by it: whoever else may write the file must be kept out.
    """
    path = path.resolve()
    _remove_copies(path.parent, re.escape(_copy_prefix(path)))


def check_output_file(path: Path) -> None:
    """Refuse what a file cannot take the place of; good to ask before long work.

    Raises:
        UserError: `path` is a folder, a pipe or a device, a link into no folder, or no name for a file at all.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: not a file name")
    try:
        is_other = path.exists() and not path.is_file()
    except OSError as error:  # a name that is too long
        raise UserError(f"{str(path)[:80]}...: not a file name ({error.strerror})") from error
    if is_other:
        raise UserError(f"{path}: is a folder, pipe or device, expected a file name to write")
    if path.is_symlink() and not path.resolve().parent.is_dir():
        raise UserError(f"{path}: is a link into a folder that is not there, expected a file name to write")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of what a file holds.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from error


def file_version(path: Path) -> str:
    """Return what tells whether a file is still the one that was read: its size and when it was changed.

    Raises:
        UserError: it is not there or cannot be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from error
    return f"{status.st_size} bytes, changed {status.st_mtime_ns}"


def make_folder(path: Path) -> None:
    """Create the folder `path` with its parents.

    Raises:
        UserError: a file stands in the way or the place is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot create this folder ({error})") from error


def make_own_folder(path: Path, mark: str) -> None:
    """Create the folder `path`, or go on with one that holds the file `mark` or nothing.

    Raises:
        UserError: it holds other files, or cannot be created.
    """
    make_folder(path)
    others = any(not found.name.startswith(".") for found in path.iterdir())
    if others and not (path / mark).exists():  # in this order: another process may just be putting it there
        raise UserError(f"{path}: holds other files, expected a folder that is new, empty or begun by this command")


class BusyFolder(UserError):
    """Another process is writing into a folder."""


@contextmanager
def claim_folder(path: Path, own: str = "") -> Iterator[None]:
    """Be the only writer of some files in the existing folder `path`, and remove what a killed one left half-written.

    The folder itself is locked, or where the file system locks no folders, as NFS, a file `.lock` in it. Where locks
    hold on one machine only, which nobody can see, the user must keep machines apart.

    Args:
        path: the folder.
        own: regular expression of the names of these files, of at most `SHOWN_NAME` characters.

    Raises:
        BusyFolder: another process writes there, or has just removed the folder.
        UserError: it cannot be opened, or the file system has no locks.
    """
    descriptor = _lock(path)
    try:  # closing releases the claim, as does the end of the process however it comes
        if own:
            _remove_copies(path, rf"\.({own})\.")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process is in this block for the existing folder `path`.

    Raises:
        UserError: as `claim_folder`.
    """
    descriptor = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def flush_to_disk(path: Path) -> None:
    """Bring what a file holds, or which files a folder has, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _lock(folder: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> int:
    """Return a descriptor whose lock keeps other writers out of a folder until it is closed."""
    for place, flags in ((folder, os.O_RDONLY | os.O_DIRECTORY), (folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)):
        try:
            descriptor = os.open(place, flags, 0o666)
        except FileNotFoundError as error:
            raise BusyFolder(f"{folder}: another process has just removed it, try again") from error
        except OSError as error:
            raise UserError(f"{place}: cannot write there ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, how)
            if _is_at(descriptor, place):
                return descriptor
            # removed by the former owner, so that a claim of it keeps nobody out
            busy = "another process has just removed it, try again"
        except (BlockingIOError, PermissionError):  # what systems say of a lock that another process holds
            busy = "another process is writing there, wait for it or use another folder"
        except OSError as error:
            os.close(descriptor)
            problem = error.strerror
            continue
        os.close(descriptor)
        raise BusyFolder(f"{folder}: {busy}")
    (folder / LOCK_NAME).unlink(missing_ok=True)
    raise UserError(
        f"{folder}: cannot lock files there ({problem}), so that a second process could not be kept out; "
        "write to a folder of another file system"
    )


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _copy_prefix(path: Path) -> str:
    """Return how the names of unfinished copies of a file begin: those of no other file begin so."""
    name = path.name
    if len(name) > SHOWN_NAME:
        name = f"{name[:SHOWN_NAME]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    return f".{name}."


def _remove_copies(folder: Path, prefix: str) -> None:
    name = re.compile(prefix + r"[a-z0-9_]{8}\.tmp")
    for found in folder.glob(".*.tmp"):
        if name.fullmatch(found.name):
            found.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
