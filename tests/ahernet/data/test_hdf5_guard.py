"""Attacks through HDF5 features, each built with stock h5py, each against the archive reader."""

import os
import struct

import h5py
import numpy as np
import pytest

from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.hdf5_guard import guarded_dataset, list_datasets, open_hdf5, scalar_attribute
from ahernet.errors import UserError

ROWS, DIMENSION = 600, 4
TABLES = ("features", "offsets", "ids", "durations", "crc32")


@pytest.fixture
def path(tmp_path):
    with ArchiveWriter(tmp_path / "archive.h5", dimension=DIMENSION) as writer:
        for k in range(3):
            writer.add(f"v{k}", np.full((ROWS // 3, DIMENSION), k))
    return tmp_path / "archive.h5"


@pytest.fixture
def secret(tmp_path):
    """Another file with a features dataset of the right shape and type."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["features"] = np.full((ROWS, DIMENSION), 7, "<f2")
    return tmp_path / "secret.h5"


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        open_archive(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_untouched_archive_opens(path):
    with open_archive(path) as archive:
        assert archive.read([1])[0][0, 0] == 1


def test_external_storage_is_refused(path, secret):
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", (ROWS, DIMENSION), "<f2", external=[(str(secret), 0, ROWS * DIMENSION * 2)])
    refused(path, "features keeps its data in other files")


def test_an_external_link_is_refused(path, secret):
    with h5py.File(path, "r+") as file:
        del file["features"]
        file["features"] = h5py.ExternalLink(str(secret), "/features")
    refused(path, "features is reached through a link")


def test_a_virtual_dataset_is_refused(path, secret):
    layout = h5py.VirtualLayout((ROWS, DIMENSION), "<f2")
    layout[:] = h5py.VirtualSource(str(secret), "features", (ROWS, DIMENSION), "<f2")
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_virtual_dataset("features", layout)
    refused(path, "features is a virtual dataset")


@pytest.mark.parametrize("name", TABLES)
def test_a_soft_link_is_refused(path, name):
    with h5py.File(path, "r+") as file:
        file.move(name, "moved")
        file[name] = h5py.SoftLink("/moved")
    refused(path, f"{name} is reached through a link")


@pytest.mark.parametrize(
    "link", [h5py.SoftLink("/nowhere"), h5py.SoftLink("/features"), h5py.ExternalLink("absent.h5", "/x")]
)
def test_links_to_nowhere_and_in_circles_are_refused(path, link):
    with h5py.File(path, "r+") as file:
        del file["features"]
        file["features"] = link
    refused(path, "features is reached through a link")


def test_every_component_of_a_name_must_be_a_hard_link(path, secret):
    # Asking h5py for the link type of "a/features" tells about the last component only.
    with h5py.File(path, "r+") as file:
        file["a"] = h5py.ExternalLink(str(secret), "/")
        file["b/real"] = np.zeros(3)
        file["c"] = h5py.SoftLink("/b")
    with open_hdf5(path) as file:
        assert isinstance(file.get("a/features", getlink=True), h5py.HardLink)
        for name in ("a/features", "c/real"):
            with pytest.raises(UserError, match=f"{name} is reached through a link"):
                guarded_dataset(file, path, name)
        assert guarded_dataset(file, path, "b/real").shape == (3,)


def test_a_hard_link_is_the_data_itself(path):
    with h5py.File(path, "r+") as file:
        file["again"] = file["features"]
    with open_archive(path) as archive:
        assert len(archive) == 3


@pytest.mark.parametrize(
    "dtype", [h5py.ref_dtype, h5py.regionref_dtype, h5py.string_dtype(), h5py.vlen_dtype("f4"), [("x", "f2")]]
)
def test_references_variable_lengths_and_compounds_are_refused(path, dtype):
    with h5py.File(path, "r+") as file:
        del file["ids"]
        file.create_dataset("ids", (3,), dtype)
    refused(path, "ids has type")


def test_a_group_or_a_named_type_in_place_of_data_is_refused(path):
    with h5py.File(path, "r+") as file:
        del file["features"], file["ids"]
        file.create_group("features")
    refused(path, "features is not a dataset")
    with h5py.File(path, "r+") as file:
        del file["features"]
        file["features"] = np.dtype("f2")
    refused(path, "features is not a dataset")


def test_a_null_dataset_is_refused(path):
    with h5py.File(path, "r+") as file:
        del file["offsets"]
        file["offsets"] = h5py.Empty("<i8")
    refused(path, "offsets is empty")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("chunks", [None, (1 << 16,)])
def test_a_shape_bomb_is_refused_before_anything_is_allocated(path, name, chunks):
    with h5py.File(path, "r+") as file:
        dtype = file[name].dtype
        del file[name]
        shape = (1 << 40, DIMENSION) if name == "features" else (1 << 40,)
        chunks = (1 << 14, DIMENSION) if chunks and name == "features" else chunks
        file.create_dataset(name, shape, dtype, chunks=chunks)
    assert path.stat().st_size < 1 << 20
    refused(path, f"{name} declares [0-9,]+ bytes, the file has room for 0")


def test_a_compression_bomb_is_refused(path):
    with h5py.File(path, "r+") as file:
        del file["features"]
        zeros = np.zeros((1 << 18, DIMENSION), "<f2")
        file.create_dataset("features", data=zeros, chunks=(1 << 16, DIMENSION), compression="gzip")
    assert path.stat().st_size < zeros.nbytes // 50
    refused(path, "features declares 2,097,152 bytes")


def test_compressed_tables_may_not_outgrow_the_file(path):
    with h5py.File(path, "r+") as file:
        del file["durations"]
        file.create_dataset(
            "durations", data=np.repeat(np.random.default_rng(0).random(300), 10), chunks=(3000,), compression="gzip"
        )
    assert path.stat().st_size < 3000 * 8
    refused(path, "durations declares more bytes than the file has")


def rechunk(path, **options):
    with h5py.File(path, "r+") as file:
        features = file["features"][...]
        del file["features"]
        file.create_dataset("features", data=features, chunks=(50, DIMENSION), **options)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True}])
def test_chunks_outside_the_file_or_of_no_bytes_are_refused(path, options):
    rechunk(path, **options)
    with open_archive(path) as archive:
        assert archive.read([2])[0][0, 0] == 2
    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info(3)
    content = path.read_bytes()
    place = content.index(chunk.byte_offset.to_bytes(8, "little"))  # the chunk's address in the table of chunks
    for wrong in (len(content), len(content) - chunk.size + 1, 2**62):
        path.write_bytes(content[:place] + wrong.to_bytes(8, "little") + content[place + 8 :])
        refused(path, "features has a chunk of|damaged")


def test_a_chunk_of_zero_bytes_is_refused(path):
    # Reading one with a checksum crashes HDF5 2.0.
    rechunk(path, fletcher32=True)
    with h5py.File(path) as file:
        size = file["features"].id.get_chunk_info(0).size
    content = path.read_bytes()
    key = size.to_bytes(4, "little") + bytes(4) + (0).to_bytes(8, "little") * 3  # size, mask, place of chunk 0
    assert content.count(key) == 1
    path.write_bytes(content.replace(key, bytes(len(key))))
    refused(path, "features has a chunk of 0 bytes")


def test_chunks_of_another_number_of_dimensions_are_refused(path):
    # HDF5 takes all memory for the first read of such a dataset.
    with h5py.File(path, "r+") as file:
        del file["durations"]
        file.create_dataset("durations", data=np.ones((7, 5)), chunks=(4, 3))
    content = path.read_bytes()
    space = (
        b"\x01\x02\x01" + bytes(5) + struct.pack("<4Q", 7, 5, 7, 5)
    )  # version, dimensions, flags, shape, largest shape
    assert content.count(space) == 1
    path.write_bytes(content.replace(space, b"\x01\x01\x01" + bytes(5) + struct.pack("<4Q", 3, 3, 0, 0)))
    with h5py.File(path) as file:
        assert (file["durations"].shape, file["durations"].chunks) == ((3,), (4, 3))
    refused(path, "durations has 1 dimensions and chunks of 2")


@pytest.mark.parametrize("options", [{"scaleoffset": 3}, {"compression": 305, "allow_unknown_filter": True}])
def test_uncommon_filters_are_refused(path, options):
    with h5py.File(path, "r+") as file:
        del file["durations"]
        dtype = "<i8" if "scaleoffset" in options else "<f8"
        created = file.create_dataset("durations", (3,), dtype, chunks=(3,), **options)
        created.id.write_direct_chunk((0,), b"x" * 100)
    refused(path, "durations is compressed by HDF5 filter (6|305)")


def test_a_huge_chunk_is_refused(path):
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset(
            "features", (ROWS, DIMENSION), "<f2", chunks=(1 << 26, 4), maxshape=(None, 4), compression="gzip"
        )
        file["features"].id.write_direct_chunk((0, 0), b"x" * 100)
    refused(path, "features declares")


def test_a_dataset_said_to_lie_beyond_the_file_is_refused(path):
    with h5py.File(path) as file:
        offset = file["features"].id.get_offset()
    content = path.read_bytes()
    place = content.index(offset.to_bytes(8, "little") + (ROWS * DIMENSION * 2).to_bytes(8, "little"))
    for wrong in (len(content) - 10, len(content) + 4096, 2**62):
        path.write_bytes(content[:place] + wrong.to_bytes(8, "little") + content[place + 8 :])
        with pytest.raises(UserError, match=r"room for|damaged"):
            open_archive(path)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_a_truncated_file_is_refused(path, share):
    size = path.stat().st_size
    os.truncate(path, min(int(size * share), size - 1))
    refused(path, "truncated|not an HDF5 file|is empty")


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "absent.h5", "cannot open .*No such file")


def test_a_folder_is_named(tmp_path):
    refused(tmp_path, "is a folder")


@pytest.mark.parametrize("content", [b"", b"x", b"\x93NUMPY" * 100, bytes(10000), b"\x89HDF\r\n\x1a\n"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.h5"
    path.write_bytes(content)
    refused(path, "is empty|not an HDF5 file|damaged|truncated")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    refused(tmp_path / "pipe.h5", "not a plain file")


def test_a_name_no_file_can_have_is_refused(tmp_path):
    refused(tmp_path / ("x" * 300), "cannot open")


def test_a_huge_attribute_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["format"] = "x" * 100
        file.attrs.create("big", np.bytes_(b"x" * 100_000), dtype="S100000")
        file.attrs["list"] = [1, 2]
        file.attrs["reference"] = file.ref
        file.attrs["none"] = h5py.Empty("f4")
    with open_hdf5(path) as file:
        assert scalar_attribute(file, path, "format") == "x" * 100
        for name in ("big", "list", "none"):
            with pytest.raises(UserError, match=f"{name} is not one short value"):
                scalar_attribute(file, path, name)
        with pytest.raises(UserError, match="reference is neither"):
            scalar_attribute(file, path, "reference")


def test_listing_survives_circles_and_follows_no_links(tmp_path, secret):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["group/data"] = np.zeros((2, 3), np.float32)
        file["group/circle"] = file["/"]
        file["group/\u202e\n"] = np.zeros(1, np.int8)
        file["out"] = h5py.ExternalLink(str(secret), "/")
    with open_hdf5(path) as file:
        listed, more = list_datasets(file, 10)
    assert "group/data (2, 3) float32" in listed
    assert all(line.isprintable() and line.isascii() for line in listed)
    assert not any("features" in line for line in listed)
    assert not more
