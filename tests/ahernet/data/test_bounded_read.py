import gzip
import io
import tracemalloc
from contextlib import suppress

import pytest

from ahernet.data.annotations import read_text
from ahernet.data.archive_set import read_manifest
from ahernet.data.bounded_read import PIECE, read_up_to
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
