import io
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ahernet.data.array_files import read_array_file
from ahernet.errors import UserError

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) / 8 + 5


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        read_array_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def text(rows, header=None):
    lines = [] if header is None else [header]
    return "\n".join([*lines, *(",".join(repr(float(value)) for value in row) for row in rows)]) + "\n"


@pytest.mark.parametrize(
    "header",
    [None, "f0,f1,f2,f3", "0,1,2,3", "0.0,1.0,2.0,3.0", '"a","b","c","d"', "# one line of words"],
    ids=["none", "BSN and BMN", "numbered", "numbered floats", "quoted", "words"],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_rows_of_text_are_read_with_or_without_a_header(tmp_path, header, ends, mark):
    (tmp_path / "a.csv").write_bytes((mark + text(ROWS, header)).replace("\n", ends).encode())
    read = read_array_file(tmp_path / "a.csv")
    np.testing.assert_array_equal(read, ROWS)
    assert read.dtype == np.float32


@pytest.mark.parametrize("header", [",f0,f1,f2,f3", ",0,1,2,3"])
def test_a_nameless_column_of_row_numbers_is_left_out(tmp_path, header):
    numbered = np.column_stack([np.arange(3), ROWS])
    (tmp_path / "a.csv").write_text(text(numbered, header))
    np.testing.assert_array_equal(read_array_file(tmp_path / "a.csv"), ROWS)
    (tmp_path / "a.csv").write_text(text(numbered[::-1], header))
    refused(tmp_path / "a.csv", "first column has no name and does not number the rows")


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(-4, 4, width=32)))
def test_rows_of_numbers_are_never_taken_for_a_header(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "numbers.csv"
    path.write_text(text(rows))
    first_is_numbered = rows.shape[1] >= 4 and np.array_equal(rows[0], np.arange(rows.shape[1]))
    np.testing.assert_array_equal(read_array_file(path), rows[first_is_numbered:].reshape(-1, rows.shape[1]))


def test_text_without_rows_has_no_rows(tmp_path):
    for content in ("", "f0,f1\n", "\n\n"):
        (tmp_path / "a.csv").write_text(content)
        assert read_array_file(tmp_path / "a.csv").shape[0] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1,2,3\n4,5\n", "not a readable array file .*columns"),
        (b"1,2,3\n4,x,6\n", "not a readable array file .*'x'"),
        (b"1,x,3\n4,5,6\n", "not a readable array file .*'x'"),
        (b"1;2;3\n4;5;6\n7;8;9\n", "not a readable array file .*'4;5;6'"),
        (b"\xff\xfe1,2\n", "not a readable array file .*utf-8"),
        (b"1,2\n\0\n", "not a readable array file"),
        (b"9" * 5000 + b"x", None),
    ],
)
def test_text_that_is_no_table_of_numbers_is_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    if message is None:  # one line of words alone: a header without rows
        assert read_array_file(tmp_path / "a.csv").shape[0] == 0
    else:
        refused(tmp_path / "a.csv", message)


def test_a_first_line_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("ahernet.data.array_files.MAX_LINE", 100)
    (tmp_path / "a.csv").write_text("1," * 1000)
    refused(tmp_path / "a.csv", "first line has more than 100 characters")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16])
def test_tensors_are_read_as_they_are(tmp_path, dtype):
    tensor = (torch.from_numpy(ROWS) * 8).to(dtype)
    torch.save(tensor, tmp_path / "a.pt")
    np.testing.assert_array_equal(read_array_file(tmp_path / "a.pt"), ROWS * 8)


@pytest.mark.parametrize(
    "held",
    [
        {"feats": torch.from_numpy(ROWS), "labels": torch.zeros(3)},
        {"features": torch.from_numpy(ROWS), "fps": 25.0, "name": "v_a"},
        {"anything": torch.from_numpy(ROWS)},
        {7: torch.from_numpy(ROWS)},
        OrderedDict(feats=torch.nn.Parameter(torch.from_numpy(ROWS))),
        torch.from_numpy(ROWS.T.copy()).T,
        torch.from_numpy(np.repeat(ROWS, 2, axis=1))[:, ::2],
    ],
    ids=["feats", "features", "only one", "number as key", "parameter", "transposed", "strided"],
)
def test_tensors_in_dicts_and_views_are_found(tmp_path, held):
    torch.save(held, tmp_path / "a.pt")
    np.testing.assert_array_equal(read_array_file(tmp_path / "a.pt"), ROWS)


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_not_run(tmp_path):
    torch.save({"feats": torch.zeros(3, 4), "x": Intruder(tmp_path / "ran")}, tmp_path / "a.pt")
    message = refused(tmp_path / "a.pt", "holds other Python objects than tensors, which are not loaded")
    assert "weights_only" not in message  # of which torch tells people to switch it off
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Intruder(tmp_path / "ran")))
    refused(tmp_path / "b.pt", "not in the form that torch.save writes since PyTorch 1.6")
    torch.save(torch.zeros(3, 4), tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "c.pt", "load it and save it again")
    for suffix in ("npy", "npz"):
        (tmp_path / f"d.{suffix}").write_bytes(pickle.dumps(Intruder(tmp_path / "ran")))
        assert "pickle" not in refused(tmp_path / f"d.{suffix}", "not a readable array file")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.zeros(3, 4)], "holds a list, expected a tensor"),
        (3.0, "holds a float"),
        ({"feats": [1.0]}, "holds a list"),
        ({"a": torch.zeros(1), "b": torch.zeros(1)}, "holds 'a', 'b'; expected one tensor"),
        ({"feats": torch.zeros(1), "features": torch.zeros(1)}, "expected one tensor"),
        ({}, "holds nothing"),
        (torch.zeros(3, 4, dtype=torch.complex64), "complex64 that is not a plain array of real numbers"),
        (torch.zeros(3, 4).to_sparse(), "not a plain array"),
        (torch.zeros(3, 4, device="meta"), "not a plain array"),
        (torch.zeros(1).expand(1 << 40, 4), r"tensor of shape \(1099511627776, 4\) in a file of"),
    ],
    ids=["list", "number", "list in dict", "two", "both names", "empty", "complex", "sparse", "meta", "bomb"],
)
def test_other_things_in_torch_files_are_refused(tmp_path, held, message):
    torch.save(held, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", message)


def repacked(path, change):
    """Write the members of a file of torch.save again, compressed or changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            change(archive, name, content)


def test_compressed_and_shortened_torch_files_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.zeros(1 << 16, 4), path)
    repacked(path, lambda archive, name, content: archive.writestr(name, content, zipfile.ZIP_DEFLATED))
    refused(path, "member .* is compressed, torch.save leaves them as they are")
    torch.save(torch.zeros(1 << 16, 4), path)
    repacked(path, lambda archive, name, content: archive.writestr(name, content[:2000]))
    refused(path, "not a readable array file|tensor of shape")
    content = io.BytesIO()
    torch.save(torch.zeros(1 << 16, 4), content)
    path.write_bytes(content.getvalue()[:5000])
    refused(path, "not a readable array file")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".NPY"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)), b"{}", b"\x89HDF\r\n\x1a\n" * 9, b"PK\x03\x04"])
def test_files_of_something_else_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    refused(path, "not a readable array file|not in the form that torch.save writes")
