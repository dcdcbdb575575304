import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.data import archive_rows
from ahernet.data.archive import open_archive
from ahernet.data.archive_set import archive_files, open_features, write_manifest
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError

DIMENSION = 3


def write(path, names, first_row=0, dimension=DIMENSION, **settings):
    """Write an archive whose row k holds the number first_row + k; video v has 1 + v % 3 rows."""
    with ArchiveWriter(path, dimension=dimension, dtype="float32", **settings) as writer:
        for number, name in enumerate(names):
            rows = 1 + number % 3
            values = np.arange(first_row, first_row + rows, dtype=np.float32)
            writer.add(name, np.repeat(values[:, None], dimension, axis=1), duration=float(number + 1))
            first_row += rows
    return first_row


@pytest.fixture
def folder(tmp_path):
    """Three archives of 4, 1 and 5 videos with a manifest, and one archive of all videos."""
    row, names = 0, []
    for file, count in (("a.h5", 4), ("b.h5", 1), ("c.h5", 5)):
        here = [f"{file}-{number}" for number in range(count)]
        row = write(tmp_path / file, here, row)
        names += here
    write_manifest(tmp_path / "manifest.json", [tmp_path / name for name in ("a.h5", "b.h5", "c.h5")])
    return tmp_path


def test_a_set_reads_like_one_archive(folder):
    with open_features(folder) as joined:
        parts = [open_archive(folder / name) for name in ("a.h5", "b.h5", "c.h5")]
        assert joined.ids == tuple(name for part in parts for name in part.ids)
        np.testing.assert_array_equal(joined.lengths, np.concatenate([part.lengths for part in parts]))
        np.testing.assert_array_equal(joined.durations, np.concatenate([part.durations for part in parts]))
        rows, _ = joined.read(range(len(joined)))
        np.testing.assert_array_equal(rows[:, 0], np.arange(len(rows)))
        assert list(joined.verify()) == []


@settings(max_examples=30)
@given(positions=st.lists(st.integers(0, 9), max_size=30))
def test_any_videos_can_be_read_in_any_order(tmp_path_factory, positions):
    folder = tmp_path_factory.getbasetemp() / "joined"
    if not folder.exists():
        folder.mkdir()
        row = write(folder / "a.h5", [f"a{number}" for number in range(4)])
        write(folder / "b.h5", [f"b{number}" for number in range(6)], row)
        write_manifest(folder / "manifest.json", [folder / "a.h5", folder / "b.h5"])
    with open_features(folder) as joined:
        rows, offsets = joined.read(positions)
        for place, position in enumerate(positions):
            expected = np.arange(joined.offsets[position], joined.offsets[position + 1])
            np.testing.assert_array_equal(rows[offsets[place] : offsets[place + 1], 2], expected)


def test_manifest_folder_and_single_archive_are_opened_alike(folder):
    for path in (folder, folder / "manifest.json"):
        with open_features(path) as joined:
            assert len(joined) == 10
    with open_features(folder / "a.h5") as single:
        assert len(single) == 4
    assert archive_files(folder) == [(folder / "a.h5", 4), (folder / "b.h5", 1), (folder / "c.h5", 5)]
    assert archive_files(folder / "b.h5") == [(folder / "b.h5", 1)]


def test_a_set_can_be_pickled(folder):
    with open_features(folder) as joined, pickle.loads(pickle.dumps(joined)) as copy:
        np.testing.assert_array_equal(copy.read([7])[0], joined.read([7])[0])


def test_a_repeated_video_is_refused(folder):
    write(folder / "d.h5", ["a.h5-2"])
    with pytest.raises(UserError, match=r"d\.h5: holds video 'a\.h5-2', as .*a\.h5 does"):
        write_manifest(folder / "more.json", [folder / "a.h5", folder / "d.h5"])
    assert not (folder / "more.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimension": 4}, r"d\.h5: its dimension is 4, that of .*a\.h5 is 3"),
        ({"origin": "another network"}, r"d\.h5: its origin is another network, that of .*a\.h5 is "),
    ],
)
def test_features_that_do_not_mix_are_refused(folder, settings, message):
    write(folder / "d.h5", ["new"], **settings)
    with pytest.raises(UserError, match=message):
        write_manifest(folder / "more.json", [folder / "a.h5", folder / "d.h5"])


def test_an_archive_of_another_folder_is_refused(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "e.h5"
    write(elsewhere, ["e"])
    with pytest.raises(UserError, match=r"e\.h5: expected in the folder of the manifest"):
        write_manifest(folder / "more.json", [elsewhere])


def test_an_archive_replaced_by_another_is_noticed(folder):
    write(folder / "b.h5", ["one", "two"])
    with pytest.raises(UserError, match=r"b\.h5: has 2 videos and 3 rows, .*manifest\.json says 1 and 1"):
        open_features(folder)


def test_a_missing_archive_is_named(folder):
    (folder / "b.h5").unlink()
    with pytest.raises(UserError, match=r"b\.h5"):
        open_features(folder)


OPEN_MANY = """
import resource, sys
from pathlib import Path
from ahernet.data.archive_set import open_features, write_manifest
from ahernet.errors import UserError

folder = Path(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
write_manifest(folder / "manifest.json", sorted(folder.glob("*.h5")))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
with open_features(folder) as joined:
    print(len(joined), int(joined.read([59])[0][0, 0]))
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
try:
    open_features(folder)
except UserError as error:
    print(error)
"""


def test_a_set_may_have_more_files_than_a_process_has_leave_to_open_at_first(tmp_path):
    row = 0
    for number in range(60):
        row = write(tmp_path / f"{number:02d}.h5", [f"v{number:02d}"], row)
    result = subprocess.run(
        [sys.executable, "-c", OPEN_MANY, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    lines = result.stdout.splitlines()
    assert lines[:2] == ["40", "60 59"], result.stderr
    assert lines[2].startswith(f"{tmp_path / 'manifest.json'}: lists 60 archives, too many to open at once")
    assert "40 files open; raise the limit (ulimit -n)" in lines[2]


GOOD = {"file": "a.h5", "videos": 4, "rows": 7}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not a manifest of archives"),
        ("[" * 100_000, "not a manifest of archives"),
        ('{"archives": [{"file": "a.h5", "videos": 4, "videos": 5}]}', "the key 'videos' occurs more than once"),
        ({"format": "other"}, "expected the format 'ahernet-archive-set'"),
        ({"version": 2}, "version 2 of archive sets, this ahernet reads 1"),
        ({"archives": []}, "archives: expected a list of at least one file"),
        ({"archives": [GOOD, GOOD]}, "lists 'a.h5' twice"),
        ({"archives": [{**GOOD, "file": "../a.h5"}]}, "expected the name of a file in the manifest's folder"),
        ({"archives": [{**GOOD, "file": "/a.h5"}]}, "expected the name of a file in the manifest's folder"),
        ({"archives": [{**GOOD, "file": ".."}]}, "expected the name of a file"),
        ({"archives": [{**GOOD, "videos": True}]}, "videos: expected a number of at least 1, got True"),
        ({"archives": [{"file": "a.h5"}]}, "archives: expected"),
    ],
)
def test_a_malformed_manifest_is_one_clear_line(folder, content, message):
    manifest = folder / "manifest.json"
    if isinstance(content, dict):
        whole = {"format": "ahernet-archive-set", "version": 1, "archives": [GOOD], **content}
        content = json.dumps(whole)
    manifest.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        open_features(folder)
    assert "\n" not in str(raised.value)


def test_a_folder_without_manifest_says_so(tmp_path):
    with pytest.raises(
        UserError, match=r"a folder without manifest\.json, expected a feature archive or a folder of archives"
    ):
        open_features(tmp_path)


def test_a_read_by_several_threads_crosses_files_and_names_the_file_that_breaks_off(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_rows, "SHARE_BYTES", 16)
    monkeypatch.setattr(archive_rows, "READ_THREADS", 3)
    row = write(tmp_path / "0.h5", ["v0", "v1", "v2"])
    write(tmp_path / "1.h5", ["v3", "v4", "v5"], row)
    starts, lengths = [0, 1, 3, 6, 7, 9], [1, 2, 3, 1, 2, 3]
    rows = [np.tile(starts[k] + np.arange(lengths[k])[:, None], DIMENSION) for k in range(6)]
    write_manifest(tmp_path / "set.json", [tmp_path / "0.h5", tmp_path / "1.h5"])
    order = [2, 3, 4, 0, 5, 1, 1]
    with open_features(tmp_path / "set.json") as archive:
        np.testing.assert_array_equal(archive.read(order)[0], np.concatenate([rows[k] for k in order]))
        with (tmp_path / "1.h5").open("r+b") as file:
            file.truncate(archive.source._sources[1]._offset + 4 * 2 * DIMENSION)
        np.testing.assert_array_equal(archive.read([3, 0])[0], np.concatenate([rows[3], rows[0]]))
        with pytest.raises(UserError, match=r"1\.h5: the file ends inside video 'v4'"):
            archive.read(order)
