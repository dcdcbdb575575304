"""What a zip file of arrays may claim, looked at before anything of it is unpacked: `.npz` files, and `.pt` files."""

import pickle
import re
import zipfile
from pathlib import Path

from ahernet.errors import UserError

MAX_COMPRESSION = 100  # unpacked over packed size of an .npz member; features do not compress further
SMALL_BYTES = 1 << 26  # members below this are read whatever their compression

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip file does."""
    with path.open("rb") as start:
        return start.read(4) in _ZIP_MAGIC


def check_npz(path: Path) -> None:
    """Refuse an `.npz` whose arrays unpack to more than the file can honestly hold.

    Raises:
        UserError: one does; the message does not name the file.
        OSError, zipfile.BadZipFile: no zip file.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > max(SMALL_BYTES, MAX_COMPRESSION * path.stat().st_size):
                raise UserError(f"array {member.filename!r} unpacks to {member.file_size:,} bytes, too many")


def check_torch(path: Path) -> None:
    """Refuse a file of `torch.save` with packed members: it packs nothing, so that one is a bomb. And a damaged one,
    which torch would read all the same: it compares no checksums.

    Raises:
        UserError: there is such a member; the message does not name the file.
        OSError, RuntimeError, zipfile.BadZipFile: no zip file that can be read.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
                raise UserError(
                    f"member {member.filename!r} is compressed, torch.save leaves them as they are; save it again"
                )
        damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"member {damaged!r} is damaged, its checksum is another one; copy the file again")


def why_refused(error: Exception) -> str:
    """Say in a few words why `torch.load` with `weights_only` raised; its own go on about how to do without."""
    if isinstance(error, pickle.UnpicklingError):
        asked = re.search(r"GLOBAL (\S{1,80})", str(error))
        return f"it asks for {asked[1]}, which could run code" if asked else "it is damaged, or holds other objects"
    return " ".join(str(error).split())[:160] or type(error).__name__
