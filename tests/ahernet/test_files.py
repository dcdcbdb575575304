import errno
import fcntl
import hashlib
import multiprocessing
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahernet.errors import UserError
from ahernet.files import (
    MAX_NAME_BYTES,
    BusyFolder,
    check_output_file,
    claim_folder,
    make_folder,
    make_own_folder,
    one_at_a_time,
    remove_copies,
    replace_when_complete,
    safe_file_name,
    write_once,
)


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "out.txt"
    with replace_when_complete(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.txt"]


def test_a_failure_keeps_the_former_content_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def fails() -> None:
        with replace_when_complete(path) as temporary:
            temporary.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.txt"]


def test_a_link_is_followed_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with replace_when_complete(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o027)
    try:
        with replace_when_complete(tmp_path / "out") as temporary:
            temporary.touch()
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["folder", "pipe", "NUL"])
def test_what_a_file_cannot_replace_is_refused(kind, tmp_path):
    path = tmp_path / ("a\0b" if kind == "NUL" else "taken")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError):
        check_output_file(path)
    with pytest.raises(UserError), replace_when_complete(path):
        pass


def test_a_folder_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot create this folder"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(UserError, match="cannot write there"), replace_when_complete(tmp_path / "file" / "below"):
        pass


def claims(folder: Path, answers: "multiprocessing.SimpleQueue[str]") -> None:
    try:
        with claim_folder(folder):
            answers.put("claimed")
    except UserError as error:
        answers.put(str(error))


def asked_by_another_process(folder: Path) -> str:
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=claims, args=(folder, answers))
    process.start()
    process.join()
    return answers.get()


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with claim_folder(tmp_path):
        assert "another process is writing there" in asked_by_another_process(tmp_path)
    assert asked_by_another_process(tmp_path) == "claimed"


def test_claiming_a_folder_removes_what_a_killed_writer_left(tmp_path):
    theirs = ["state.pt", ".mine.tmp", ".other.json.abcdefgh.tmp", ".state.pt.swp.tmp", "x.state.pt.abcdefgh.tmp"]
    for name in (*theirs, ".state.pt.abcdefgh.tmp", ".losses.png.0123_abc.tmp"):
        (tmp_path / name).touch()
    with claim_folder(tmp_path, r"state\.pt|losses\.png"):
        assert sorted(found.name for found in tmp_path.iterdir()) == sorted(theirs)


def test_a_file_that_another_writes_into_a_claimed_folder_arrives(tmp_path):
    with replace_when_complete(tmp_path / "report.html") as temporary, claim_folder(tmp_path, r"state\.pt"):
        temporary.write_text("report")
    assert (tmp_path / "report.html").read_text() == "report"


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_folder_that_its_owner_removed_before_the_claim_is_not_claimed(made_anew, tmp_path, monkeypatch):
    folder = tmp_path / "a"
    folder.mkdir()
    lock = fcntl.flock

    def lock_late(descriptor, how):
        folder.rename(tmp_path / "removed")
        if made_anew:
            folder.mkdir()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with pytest.raises(BusyFolder, match="just removed it"), claim_folder(folder):
        pass


def test_a_folder_that_is_gone_is_not_claimed(tmp_path):
    with pytest.raises(BusyFolder, match="just removed it"), claim_folder(tmp_path / "gone"):
        pass


@given(st.text())
def test_a_name_of_any_id_stays_in_its_folder(video_id):
    name = safe_file_name(video_id)
    assert name
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert not set(name) & set("/\\.\0\n")


@given(st.lists(st.text(), unique=True, min_size=2, max_size=2))
def test_different_ids_have_different_names(video_ids):
    assert safe_file_name(video_ids[0]) != safe_file_name(video_ids[1])


def test_long_ids_that_differ_at_the_end_have_different_names():
    assert safe_file_name("a" * 500 + "b") != safe_file_name("a" * 500 + "c")


def test_a_folder_of_other_files_is_not_taken_for_ones_own(tmp_path):
    make_own_folder(tmp_path / "new", "mark")
    (tmp_path / "new" / ".hidden").touch()
    make_own_folder(tmp_path / "new", "mark")
    (tmp_path / "new" / "mark").touch()
    (tmp_path / "new" / "result").touch()
    make_own_folder(tmp_path / "new", "mark")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter").touch()
    with pytest.raises(UserError, match="other: holds other files"):
        make_own_folder(tmp_path / "other", "mark")


def test_of_those_who_write_once_one_writes(tmp_path):
    path = tmp_path / "manifest"
    assert write_once(path, "first")
    assert not write_once(path, "second")
    assert path.read_text() == "first"
    assert [found.name for found in tmp_path.iterdir()] == ["manifest"]
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda number: write_once(tmp_path / "race", str(number)), range(64)))
    assert sum(written) == 1
    assert (tmp_path / "race").read_text() == str(written.index(True))


def test_what_is_written_once_is_utf_8_whatever_the_locale(tmp_path):
    code = "import sys, pathlib; from ahernet.files import write_once; write_once(pathlib.Path(sys.argv[1]), '\\xe9')"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "text")], env=environment, check=True)
    assert (tmp_path / "text").read_bytes() == "\xe9".encode()


def test_who_writes_once_gives_way_to_one_who_was_first_and_tidied_up(tmp_path, monkeypatch):
    path, link = tmp_path / "manifest.json", os.link

    def be_overtaken(source, target):
        monkeypatch.setattr(os, "link", link)
        assert write_once(path, "first")
        remove_copies(path)
        link(source, target)

    monkeypatch.setattr(os, "link", be_overtaken)
    assert not write_once(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_copies_of_one_file_are_removed_and_nothing_else(tmp_path):
    long, other = "x" * 60, "x" * 61
    cut = [f".{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" for name in (long, other)]
    left = [tmp_path / ".part.h5.abcd_123.tmp", tmp_path / f"{cut[0]}.abcd_123.tmp"]
    others = [tmp_path / name for name in ("part.h5", ".part.h5.tmp", ".part.h5.abcd.tmp", ".part.h5x.abcd_123.tmp")]
    others.append(tmp_path / f"{cut[1]}.abcd_123.tmp")
    for path in (*left, *others):
        path.touch()
    remove_copies(tmp_path / "part.h5")
    assert set(tmp_path.iterdir()) == {left[1], *others}
    remove_copies(tmp_path / long)
    assert set(tmp_path.iterdir()) == set(others)


def test_a_block_for_a_folder_is_entered_by_one_at_a_time(tmp_path):
    inside, most = [0], [0]

    def enter(_):
        with one_at_a_time(tmp_path):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.002)
            inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(32)))
    assert most == [1]
    gone = pytest.raises(UserError, match="nowhere: another process has just removed it")
    with gone, one_at_a_time(tmp_path / "nowhere"):
        pass


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a file name"):
        check_output_file(tmp_path / ("x" * 300))


def without_locks(monkeypatch, code, files=False):
    """Refuse to lock folders, as network file systems do, and files as well, as those without a lock service do."""
    lock = fcntl.flock

    def refuse(descriptor, operation):
        if files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)


NO_LOCKS = [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL]


@pytest.mark.parametrize("code", NO_LOCKS)
def test_where_folders_cannot_be_locked_a_file_in_them_keeps_others_out(tmp_path, monkeypatch, code):
    without_locks(monkeypatch, code)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    (tmp_path / ".a.abcdefgh.tmp").touch()
    with claim_folder(tmp_path, "a"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(BusyFolder, match="another process is writing there"), claim_folder(tmp_path):
            pass
    with claim_folder(tmp_path):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_lock_file_that_its_owner_has_removed_keeps_nobody_out_and_is_noticed(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EBADF)
    lock = fcntl.flock

    def lock_late(descriptor, operation):
        lock(descriptor, operation)
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with pytest.raises(BusyFolder, match="just removed it"), claim_folder(tmp_path):
        pass


@pytest.mark.parametrize("code", NO_LOCKS)
def test_a_file_system_without_locks_is_one_error_that_says_what_to_do(tmp_path, monkeypatch, code):
    without_locks(monkeypatch, code, files=True)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    message = rf"cannot lock files there \({os.strerror(code)}\), .*another file system"
    with pytest.raises(UserError, match=message), claim_folder(tmp_path):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert not list(tmp_path.iterdir())
