"""What docs/archive-format.md says can be copied out of it and works."""

import re
from pathlib import Path

import numpy as np

from ahernet.cli import main
from ahernet.data.archive import open_archive
from ahernet.data.array_files import SUFFIXES
from ahernet.data.foreign_videos import FEATURE_NAMES

DOCUMENT = Path(__file__).parents[3] / "docs" / "archive-format.md"


def block(name):
    return re.search(rf"<!-- {name} -->\n```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[1]


def test_the_writer_of_the_document_writes_an_archive_that_its_reader_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    writer, reader = {}, {}
    exec(block("write"), writer)
    exec(block("read"), reader)
    assert len(block("write").strip().splitlines()) <= 15
    assert main(["inspect", "archive.h5", "--strict"]) == 0
    assert "problems: none" in capsys.readouterr().out
    with open_archive(Path("archive.h5")) as archive:
        assert list(archive.ids) == reader["ids"] == ["v_1", "v_2"]
        assert (archive.durations.tolist(), archive.frame_rate, archive.clip_stride) == ([24.0, 6.5], 30.0, 8)
        for video in (1, 0):
            rows, _ = archive.read([video])
            np.testing.assert_array_equal(rows, reader["read"](video))
            np.testing.assert_array_equal(rows, writer["rows"][video])
    reader["os"].close(reader["descriptor"])


def test_the_document_names_every_kind_of_file_and_array():
    table = DOCUMENT.read_text(encoding="utf-8").partition("## What `ahernet import` takes")[2]
    assert all(f"`{name}`" in table for name in SUFFIXES)
    assert all(name in table for name in FEATURE_NAMES)
