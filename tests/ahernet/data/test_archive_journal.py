import json
import math
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.data.archive import open_archive
from ahernet.data.archive_journal import open_journal, remove_leftovers
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError

SETTINGS = {"backbone": "b", "clip_stride": 8}


def ramp(rows: int, start: float = 0.0) -> np.ndarray:
    return np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) + start


def journal_of(out: Path, **changes):
    return open_journal(out, dimension=3, dtype="float16", settings={**SETTINGS, **changes})


@contextmanager
def killed(journal):
    """End before the archive is published; what is on disk is what a kill leaves."""
    with suppress(ZeroDivisionError), journal as opened:
        yield opened
        raise ZeroDivisionError


def test_an_archive_has_the_videos_in_the_order_of_publication_and_the_folder_is_gone(tmp_path):
    out = tmp_path / "a.h5"
    with journal_of(out) as journal:
        journal.add("b/1.x", ramp(2, 50), 4.0, "source")
        journal.add("a", ramp(3), math.nan, "source", ["short"])
        assert journal.finished["a"].remarks == ("short",)
        journal.publish(["a", "b/1.x"], clip_stride=8, origin="here")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    with open_archive(out) as archive:
        assert archive.ids == ("a", "b/1.x")
        assert (archive.clip_stride, archive.origin) == (8, "here")
        assert math.isnan(archive.durations[0])
        assert archive.durations[1] == 4.0
        assert list(archive.verify()) == []
        assert (archive.read([1])[0] == ramp(2, 50)).all()


def test_the_archive_is_the_one_that_the_plain_writer_makes(tmp_path):
    with journal_of(tmp_path / "a.h5") as journal:
        for name in "cab":
            journal.add(name, ramp(4, ord(name)), 1.0, "")
        journal.publish(["a", "b", "c"], clip_stride=8, origin="o")
    with ArchiveWriter(tmp_path / "b.h5", dimension=3, clip_stride=8, origin="o") as writer:
        for name in "abc":
            writer.add(name, ramp(4, ord(name)), 1.0)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@settings(max_examples=25, deadline=None)
@given(rows_cut=st.integers(0, 40), line_cut=st.integers(0, 400))
def test_whatever_is_lost_at_the_end_finished_videos_before_it_stay(rows_cut, line_cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    out, partial = folder / "a.h5", folder / "a.h5.partial"
    with killed(journal_of(out)) as journal:
        for number in range(3):
            journal.add(str(number), ramp(number + 1, number), 1.0, "s")
    for name, cut in (("rows.bin", rows_cut), ("journal.jsonl", line_cut)):
        content = (partial / name).read_bytes()
        (partial / name).write_bytes(content[: max(0, len(content) - cut)])
    with journal_of(out) as journal:
        kept = list(journal.finished)
        assert kept == [str(number) for number in range(len(kept))]
        for number in range(3):
            if not journal.has(str(number), "s"):
                journal.add(str(number), ramp(number + 1, number), 1.0, "s")
        journal.publish(["0", "1", "2"], clip_stride=8, origin="")
    if rows_cut == 0:
        assert len(kept) >= 3 - math.ceil(line_cut / 80)
    with open_archive(out) as archive:
        assert list(archive.verify()) == []
        assert (archive.read([2])[0] == ramp(3, 2)).all()


def test_a_video_is_finished_only_for_the_source_that_it_came_from_and_is_replaced_by_the_new_one(tmp_path):
    with journal_of(tmp_path / "a.h5") as journal:
        journal.add("a", ramp(2), 1.0, "old")
        assert journal.has("a", "old")
        assert not journal.has("a", "new")
        assert not journal.has("b", "old")
        journal.add("a", ramp(1, 9), 2.0, "new")
        journal.publish(["a"], clip_stride=0, origin="")
    with open_archive(tmp_path / "a.h5") as archive:
        assert (archive.read([0])[0] == ramp(1, 9)).all()


def test_another_writer_and_other_settings_are_refused_by_name(tmp_path):
    out = tmp_path / "a.h5"
    with killed(journal_of(out)) as journal:
        journal.add("a", ramp(2), 1.0, "s")
        with pytest.raises(UserError, match=r"a\.h5\.partial: another process is writing"), journal_of(out):
            pass
    with pytest.raises(UserError, match="begun with clip_stride = 8, now it is 16"), journal_of(out, clip_stride=16):
        pass
    with journal_of(out) as journal:
        assert list(journal.finished) == ["a"]


def test_settings_that_say_something_twice_are_refused(tmp_path):
    out = tmp_path / "a.h5"
    with killed(journal_of(out)) as journal:
        journal.add("a", ramp(2), 1.0, "s")
    settings = tmp_path / "a.h5.partial" / "settings.json"
    settings.write_text('{"clip_stride": 16, ' + settings.read_text()[1:])
    with (
        pytest.raises(UserError, match=r"settings\.json: .*the key 'clip_stride' occurs more than once"),
        journal_of(out),
    ):
        pass


def test_a_kill_while_the_folder_is_removed_leaves_no_rows_of_unknown_settings(tmp_path, monkeypatch):
    out, folder = tmp_path / "a.h5", tmp_path / "a.h5.partial"
    left = []

    def killed_at_once(path, **_):
        (path / "settings.json").unlink()
        left.extend(sorted(found.name for found in path.iterdir()))

    monkeypatch.setattr(shutil, "rmtree", killed_at_once)
    with journal_of(out) as journal:
        journal.add("a", ramp(2), 1.0, "s")
    monkeypatch.undo()
    assert left == ["rows.bin"]
    with journal_of(out, clip_stride=16) as journal:
        assert not journal.finished
        journal.add("a", ramp(1, 9), 1.0, "s")
        journal.publish(["a"], clip_stride=16, origin="")
    with open_archive(out) as archive:
        assert (archive.read([0])[0] == ramp(1, 9)).all()
    assert not folder.exists()


def test_finished_videos_of_unknown_settings_are_not_taken_over(tmp_path):
    out = tmp_path / "a.h5"
    with killed(journal_of(out)) as journal:
        journal.add("a", ramp(2), 1.0, "s")
    (tmp_path / "a.h5.partial" / "settings.json").unlink()
    with killed(journal_of(out, clip_stride=16)) as journal:
        assert not journal.finished
        assert (tmp_path / "a.h5.partial" / "rows.bin").stat().st_size == 0


def test_what_a_kill_left_beside_an_archive_is_removed_but_not_from_another_process(tmp_path):
    out, other = tmp_path / "a.h5", tmp_path / ".a.h5.b.h5.abcdefgh.tmp"
    copy, folder = tmp_path / ".a.h5.ab_0efgh.tmp", tmp_path / "a.h5.partial"
    for path in (other, copy):
        path.touch()
    with journal_of(out) as journal:
        assert not copy.exists()
        journal.add("a", ramp(2), 1.0, "s")
        journal.publish(["a"], clip_stride=8, origin="")
        copy.touch()
        remove_leftovers(out)
        assert copy.exists()
        assert (folder / "journal.jsonl").exists()
    remove_leftovers(out)
    assert sorted(tmp_path.iterdir()) == [other, out]


def test_a_foreign_folder_of_that_name_is_left_alone(tmp_path):
    folder = tmp_path / "a.h5.partial"
    folder.mkdir()
    (folder / "settings.json").write_text("[1]")
    with pytest.raises(UserError, match="not the settings of a partial archive"), journal_of(tmp_path / "a.h5"):
        pass
    assert (folder / "settings.json").read_text() == "[1]"


def test_videos_whose_rows_changed_on_disk_are_read_again_and_the_others_kept(tmp_path):
    out = tmp_path / "a.h5"
    with killed(journal_of(out)) as journal:
        for number, name in enumerate("abcd"):
            journal.add(name, ramp(2, number), 1.0, "s")
    with (tmp_path / "a.h5.partial" / "rows.bin").open("r+b") as file:
        for video in (1, 3):
            file.seek(video * 2 * 3 * 2)
            file.write(b"\xff")
    with (
        pytest.raises(UserError, match="the rows of 2 videos have changed on disk, as those of 'b'"),
        journal_of(out) as journal,
    ):
        journal.publish(list("abcd"), clip_stride=0, origin="")
    assert not out.exists()
    with journal_of(out) as journal:
        assert list(journal.finished) == ["a", "c"]
        for number, name in ((1, "b"), (3, "d")):
            assert not journal.has(name, "s")
            journal.add(name, ramp(2, number), 1.0, "s")
        journal.publish(list("abcd"), clip_stride=0, origin="")
    with open_archive(out) as archive:
        rows, _ = archive.read(range(4))
        np.testing.assert_array_equal(rows, np.concatenate([ramp(2, number) for number in range(4)]))


@pytest.mark.parametrize(
    ("video_id", "features", "duration", "message"),
    [
        ("", ramp(1), 1.0, "at least one character"),
        ("x", ramp(1) * np.nan, 1.0, "NaN or infinite"),
        ("x", ramp(1, 1e6), 1.0, "beyond float16"),
        ("x", ramp(1)[:, :2], 1.0, r"expected \(rows, 3\)"),
        ("x", ramp(1), 0.0, "expected seconds above 0"),
    ],
)
def test_bad_videos_are_refused_and_leave_the_journal_as_it_was(video_id, features, duration, message, tmp_path):
    with journal_of(tmp_path / "a.h5") as journal:
        journal.add("a", ramp(1), 1.0, "s")
        with pytest.raises(UserError, match=message):
            journal.add(video_id, features, duration, "s")
        assert list(journal.finished) == ["a"]
        journal.publish(["a"], clip_stride=0, origin="")


def test_nothing_finished_leaves_no_folder_and_something_finished_stays(tmp_path):
    def fails(add: bool) -> None:
        with journal_of(tmp_path / "a.h5") as journal:
            if add:
                journal.add("a", ramp(1), 1.0, "s")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails(add=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError):
        fails(add=True)
    lines = (tmp_path / "a.h5.partial" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a"]


def test_a_full_disk_is_one_message_and_what_was_finished_before_stays(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "from ahernet.data.archive_journal import open_journal\n"
        "from ahernet.errors import UserError\n"
        f"out = Path({str(tmp_path / 'a.h5')!r})\n"
        "try:\n"
        f"    with open_journal(out, dimension=3, dtype='float16', settings={SETTINGS}) as j:\n"
        "        j.add('small', np.zeros((10, 3)), 1.0, 's')\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "        j.add('large', np.zeros((10000, 3)), 1.0, 's')\n"
        "except UserError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == f"{tmp_path / 'a.h5.partial'}: cannot write (File too large)\n", result.stderr
    with journal_of(tmp_path / "a.h5") as journal:
        assert list(journal.finished) == ["small"]
        journal.add("next", ramp(1, 5), 1.0, "s")
        journal.publish(["next", "small"], clip_stride=0, origin="")
    with open_archive(tmp_path / "a.h5") as archive:
        assert list(archive.verify()) == []
        assert (archive.read([0])[0] == ramp(1, 5)).all()


@pytest.mark.parametrize(
    "changes",
    [{"rows": "x"}, {"rows": None}, {"rows": 1.5}, {"rows": -1}, {"id": [1]}, {"crc32": "1"}, {"remarks": [1]}],
)
def test_a_damaged_line_and_what_follows_is_done_again(tmp_path, changes):
    out = tmp_path / "a.h5"
    with killed(journal_of(out)) as journal:
        for name in "abc":
            journal.add(name, ramp(2), 1.0, "s")
    lines = (tmp_path / "a.h5.partial" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = (json.dumps({**json.loads(lines[1]), **changes}) + "\n").encode()
    (tmp_path / "a.h5.partial" / "journal.jsonl").write_bytes(b"".join(lines))
    with killed(journal_of(out)) as journal:
        assert list(journal.finished) == ["a"]
