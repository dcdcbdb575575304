"""Checks that make a foreign HDF5 file safe to read.

HDF5 lets a file name other files (external links, external raw storage, virtual datasets), point at other
objects (soft links, object references) and declare sizes that nothing backs. All of that is ordinary HDF5,
so h5py follows it. An archive needs none of it: this module hands out datasets only after it was ruled out.

The guard stops what HDF5 is told to do; it cannot stop errors inside the HDF5 library itself. Open files of
strangers in a sandbox.
"""

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ahernet.errors import UserError

MAX_COMPRESSION = 100  # declared over stored bytes; features do not compress further, bombs do
MAX_ATTRIBUTE_BYTES = 1 << 16
FLETCHER32_BYTES = 4
SAFE_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}

# What h5py raises on damaged files, found by reading mutated ones.
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, ArithmeticError)


@contextmanager
def hdf5_errors(path: Path) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file into one line that names `path`.

    Raises:
        UserError: h5py failed inside the block.
    """
    try:
        yield
    except MemoryError as error:  # of what a damaged file claims, too
        raise UserError(
            f"{path}: cannot read (not enough memory); free some, or copy it again if it is damaged"
        ) from error
    except _HDF5_ERRORS as error:
        message = " ".join(str(error).split())
        if "truncated file" in message:
            raise UserError(f"{path}: truncated, the file is shorter than its header says; copy it again") from error
        raise UserError(
            f"{path}: damaged HDF5 file ({type(error).__name__}: {message[:200]}); copy it again"
        ) from error


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading; the caller closes it.

    Locking is off: archives are renamed into place complete and never change, and many network file systems
    refuse locks.

    Raises:
        UserError: `path` is missing, not a plain file, not readable, not HDF5, truncated or damaged.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: is a folder, expected an HDF5 file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is not a plain file, expected an HDF5 file")
        if status.st_size == 0:
            raise UserError(f"{path}: is empty, expected an HDF5 file")
        with path.open("rb"):  # says "permission denied" better than HDF5 does
            pass
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot open ({getattr(error, 'strerror', None) or error})") from error
    with hdf5_errors(path):
        if not h5py.is_hdf5(os.fspath(path)):
            raise UserError(f"{path}: not an HDF5 file")
        # sec2: the driver whose handle is a plain file descriptor.
        return h5py.File(path, "r", driver="sec2", locking=False)


def file_length(file: h5py.File) -> int:
    """Return the length in bytes of the file behind an open HDF5 file."""
    return os.fstat(file.id.get_vfd_handle()).st_size


def guarded_dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """Return the dataset `name`, reached through hard links alone and backed by bytes of this very file.

    Args:
        file: open HDF5 file.
        path: its path, for messages.
        name: `/`-separated name from the root.

    Raises:
        UserError: absent, not a dataset, reached through a soft, external or user-defined link, virtual,
            stored in other files, of a type other than plain numbers or fixed-width bytes, declaring more
            than the file holds, with chunks outside the file, or compressed by an uncommon filter.
    """
    found = _follow_hard_links(file, path, name)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{path}: {name} is not a dataset")
    _refuse_indirect_storage(found, path, name)
    _refuse_undersized_storage(found, path, name, file_length(file))
    if found.chunks is not None:
        _refuse_bad_chunks(found, path, name, file_length(file))
    return found


def scalar_attribute(file: h5py.File, path: Path, name: str) -> str | int | float:
    """Return a scalar root attribute as text, integer or float.

    Raises:
        UserError: absent, not scalar, too large, or neither text nor a number.
    """
    if name not in file.attrs:
        raise UserError(f"{path}: the attribute {name} is missing")
    identifier = file.attrs.get_id(name)
    if identifier.shape != () or identifier.get_storage_size() > MAX_ATTRIBUTE_BYTES:
        raise UserError(f"{path}: the attribute {name} is not one short value")
    value = file.attrs[name]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.generic) and value.dtype.kind in "iuf":
        return value.item()  # type: ignore[no-any-return]
    raise UserError(f"{path}: the attribute {name} is neither text nor a number")


def list_datasets(file: h5py.File, limit: int) -> tuple[list[str], bool]:
    """Describe up to `limit` datasets ("name (shape) type") reached by hard links, breadth first.

    Returns:
        The descriptions, and whether there are more.
    """
    described: list[str] = []
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    visited: set[int] = set()  # object addresses: hard links can form cycles
    while groups:
        prefix, group = groups.pop(0)
        for name in group:
            if not _is_hard_link(group, name):
                continue
            member = group[name]
            if isinstance(member, h5py.Dataset):
                if len(described) == limit:
                    return described, True
                shown = f"{prefix}{name}".encode("unicode_escape").decode()[:100]
                described.append(f"{shown} {member.shape} {member.dtype}")
            elif isinstance(member, h5py.Group):
                address = h5py.h5o.get_info(member.id).addr
                if address not in visited and len(groups) <= limit:
                    visited.add(address)
                    groups.append((f"{prefix}{name}/", member))
    return described, False


def _is_hard_link(group: h5py.Group, name: str) -> bool:
    try:
        return isinstance(group.get(name, getlink=True), h5py.HardLink)
    except TypeError:  # a user-defined link
        return False


def _follow_hard_links(file: h5py.File, path: Path, name: str) -> object:
    # h5py reports the link type of the last component only: check each on its own.
    found: object = file
    for part in name.strip("/").split("/"):
        if not isinstance(found, h5py.Group) or part not in found:
            # `in` is false for a link that leads nowhere, which is then refused below as a link.
            if isinstance(found, h5py.Group) and found.get(part, getlink=True, default=None) is not None:
                raise UserError(f"{path}: {name} is reached through a link, expected the data itself")
            raise UserError(f"{path}: {name} is missing")
        if not _is_hard_link(found, part):
            raise UserError(f"{path}: {name} is reached through a link, expected the data itself")
        found = found[part]
    return found


def _refuse_indirect_storage(dataset: h5py.Dataset, path: Path, name: str) -> None:
    if dataset.is_virtual:
        raise UserError(f"{path}: {name} is a virtual dataset, expected the data itself")
    if dataset.external:
        raise UserError(f"{path}: {name} keeps its data in other files, expected the data itself")
    if dataset.dtype.kind not in "iufS" or dataset.dtype.hasobject or dataset.dtype.itemsize == 0:
        raise UserError(f"{path}: {name} has type {dataset.dtype}, expected plain numbers or fixed-width text")


def _refuse_undersized_storage(dataset: h5py.Dataset, path: Path, name: str, length: int) -> None:
    if dataset.shape is None:
        raise UserError(f"{path}: {name} is empty, expected values")
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if dataset.chunks is None:
        offset = dataset.id.get_offset() or 0  # None: compact (inside the header) or never allocated
        allowed = min(stored, length - offset)
    else:
        allowed = MAX_COMPRESSION * min(stored, length)
        declared = max(declared, math.prod(dataset.chunks) * dataset.dtype.itemsize)
    if declared > allowed:
        raise UserError(f"{path}: {name} declares {declared:,} bytes, the file has room for {max(allowed, 0):,}")


def _refuse_bad_chunks(dataset: h5py.Dataset, path: Path, name: str, length: int) -> None:
    """Check filters and the table of chunks, which HDF5 trusts (a chunk of zero bytes crashes some versions)."""
    if len(dataset.chunks) != dataset.ndim:  # CVE-2026-19025: reading it takes all memory, or crashes
        raise UserError(
            f"{path}: {name} has {dataset.ndim} dimensions and chunks of {len(dataset.chunks)}, expected as many"
        )
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(k)[0] for k in range(properties.get_nfilters())}
    unknown = filters - SAFE_FILTERS
    if unknown:
        raise UserError(f"{path}: {name} is compressed by HDF5 filter {min(unknown)}, expected gzip, lzf or none")
    whole = math.prod(dataset.chunks) * dataset.dtype.itemsize
    least = 1 if filters else whole
    if h5py.h5z.FILTER_FLETCHER32 in filters:
        least = FLETCHER32_BYTES + 1

    def is_bad(chunk: h5py.h5d.StoreInfo) -> str | None:
        inside = chunk.size >= least and 0 < chunk.byte_offset <= length - chunk.size
        return None if inside else f"a chunk of {chunk.size:,} bytes at {chunk.byte_offset:,}"

    problem = dataset.id.chunk_iter(is_bad)  # stops at the first answer that is not None
    if problem is not None:
        raise UserError(f"{path}: {name} has {problem}, expected at least {least:,} within the file's {length:,}")
