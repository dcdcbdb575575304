import ast
import gzip
import io
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

import ahernet
from ahernet.data.annotations import read_text
from ahernet.data.archive_set import read_manifest
from ahernet.data.bounded_read import PIECE, parse_json, read_up_to
from ahernet.data.detections import read_detections
from ahernet.errors import UserError


@pytest.mark.parametrize("length", [0, 1, PIECE, 2 * PIECE + 5])
@pytest.mark.parametrize("limit", [0, 1, PIECE + 1, 4 * PIECE])
def test_as_much_is_read_as_there_is_and_may_be(length, limit):
    content = bytes(range(256)) * (length // 256) + bytes(length % 256)
    assert read_up_to(io.BytesIO(content).read, limit) == content[:limit]
    packed = gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(content, 1)))
    assert read_up_to(packed.read, limit) == content[:limit]
    text = "ä" * length
    assert read_up_to(io.StringIO(text).read, limit) == text[:limit]


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("names.txt", b"run\njump\n", read_text),
        ("found.json", b'{"results": {}}', read_detections),
        ("manifest.json", b"{}", read_manifest),
    ],
)
def test_a_small_file_reserves_little_memory(tmp_path, name, content, read):
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with suppress(UserError):
            read(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * PIECE


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "a"),
        (b'[{"b": {"": 1, "": 2}}]', ""),
        ('{"\\ud800": 1, "\\ud800": 2}', "\\\\ud800"),
    ],
)
def test_json_that_says_something_twice_is_refused(text, key):
    with pytest.raises(ValueError, match=f"^the key '{key}' occurs more than once in one object$"):
        parse_json(text)


def test_keys_of_several_objects_may_be_the_same():
    assert parse_json(b'[{"a": {"a": 1}}, {"a": 2}]') == [{"a": {"a": 1}}, {"a": 2}]


def test_no_reader_takes_json_that_says_something_twice():
    """Everything is read by `parse_json`; `json.loads` is for what `json.dumps` has just written."""
    others = []
    for path in Path(ahernet.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.load", "json.loads"):
                others += [path.name] if not ast.unparse(node.args[0]).startswith("json.dumps(") else []
    assert others == ["bounded_read.py"]
