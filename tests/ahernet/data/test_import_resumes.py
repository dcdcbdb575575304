"""Imports that end early, and the same command again."""

import errno
import fcntl
import json
import os
import shutil
import signal
import stat
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

import ahernet.data.archive_journal as archive_journal
import ahernet.data.importers as importers
from ahernet.data.archive import open_archive
from ahernet.data.array_files import read_array_file
from ahernet.data.importers import import_features
from ahernet.errors import UserError
from ahernet.files import BusyFolder

VIDEOS = 4


def ramp(rows, start=0):
    return np.arange(start, start + rows * 3, dtype=np.float32).reshape(rows, 3)


def write_folder(path):
    path.mkdir()
    for number in range(VIDEOS):
        np.save(path / f"v_{number}.npy", ramp(number + 1, 10 * number))
    return path


def write_groups(path):
    with h5py.File(path, "w") as file:
        for number in range(VIDEOS):
            file[f"v_{number}/c3d_features"] = ramp(number + 1, 10 * number)
    return path


@pytest.fixture(params=["folder", "HDF5"])
def source(request, tmp_path):
    return write_folder(tmp_path / "features") if request.param == "folder" else write_groups(tmp_path / "f.hdf5")


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "features")


@pytest.fixture(autouse=True)
def every_video_is_kept_at_once(monkeypatch):
    monkeypatch.setattr(importers, "SYNC_SECONDS", -1.0)


def run(source, out="out.h5", **settings):
    return import_features(source, source.parent / out, frame_rate=25.0, clip_stride=8, progress=False, **settings)


def partial(source):
    return source.parent / "out.h5.partial"


def stopped(source, videos=2, **settings):
    """Import, but end after so many videos as a kill does."""
    before = importers._read_videos

    def few(*arguments):
        for count, video in enumerate(before(*arguments)):
            if count == videos - (len(arguments) > 4):  # the first is read by a call of its own
                raise ZeroDivisionError
            yield video

    with pytest.MonkeyPatch.context() as patch, suppress(ZeroDivisionError):
        patch.setattr(importers, "_read_videos", few)
        run(source, **settings)
    lines = (partial(source) / "journal.jsonl").read_text().splitlines()
    assert len(lines) == videos


def killed_at(call, source, calls):
    """Import in a process that is killed in that call of those that reach the disk; return whether it was."""
    process = os.fork()
    if process == 0:
        count = 0

        def counted(original, *arguments, **options):
            nonlocal count
            count += 1
            if count == call:
                if original is archive_journal._write:
                    file, content = arguments
                    file.write(memoryview(content).cast("B")[: memoryview(content).nbytes // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        for holder, name in calls:
            original = getattr(holder, name)
            setattr(holder, name, lambda *a, original=original, **options: counted(original, *a, **options))
        try:
            run(source)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_killed_at_any_write_the_same_command_ends_with_the_bytes_of_an_undisturbed_run(source):
    expected = run(source, "undisturbed.h5").path.read_bytes()
    calls = [(archive_journal, "_write"), (os, "fsync"), (Path, "replace"), (shutil, "rmtree"), (Path, "unlink")]
    there = sorted(source.parent.iterdir())
    call = kills = earlier = 0
    while killed_at(call := call + 1, source, calls):
        kills += 1
        if call % 4 == 0:
            killed_at(call, source, calls)  # the next run as well
        report = run(source)
        assert report.path.read_bytes() == expected
        assert report.videos == VIDEOS
        earlier = max(earlier, report.earlier)
        report.path.unlink()
        assert sorted(source.parent.iterdir()) == there
    assert kills > 3 * VIDEOS
    assert earlier == VIDEOS


def test_finished_videos_are_not_read_again_but_counted_in_the_report(folder, monkeypatch):
    undisturbed = run(folder, "undisturbed.h5")
    stopped(folder, 3)
    read = []
    monkeypatch.setattr(
        "ahernet.data.array_folders.read_array_file", lambda path: (read.append(path.stem), read_array_file(path))[1]
    )
    report = run(folder)
    assert read == ["v_0", "v_3"]  # the first one gives the dimension
    assert (report.earlier, report.changed, report.rows) == (3, 0, undisturbed.rows)
    assert "4 videos, 10 rows of 3 from a folder of .npy files; 3 of them from an earlier run" in str(report)
    assert report.path.read_bytes() == undisturbed.path.read_bytes()
    assert not partial(folder).exists()


def test_a_file_that_has_changed_since_is_read_again_and_the_report_says_so(folder):
    stopped(folder, 3)
    np.save(folder / "v_1.npy", ramp(5, 500))
    (folder / "v_2.npy").unlink()
    report = run(folder)
    assert (report.earlier, report.changed) == (1, 1)
    assert "1 read again, because they have changed since an earlier run" in str(report)
    with open_archive(report.path) as archive:
        assert archive.ids == ("v_0", "v_1", "v_3")
        np.testing.assert_array_equal(archive.read([1])[0], ramp(5, 500))
    assert report.path.read_bytes() == run(folder, "anew.h5").path.read_bytes()


def test_an_hdf5_file_that_has_changed_since_is_an_error_that_names_the_folder(tmp_path):
    source = write_groups(tmp_path / "f.hdf5")
    stopped(source)
    with h5py.File(source, "r+") as file:
        file["v_9/c3d_features"] = ramp(1)
    message = r"out\.h5\.partial: was begun with source file = .* bytes, changed .*, now it is .*remove the folder"
    with pytest.raises(UserError, match=message):
        run(source)
    shutil.rmtree(partial(source))
    assert run(source).videos == VIDEOS + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float32"}, 'begun with dtype = "float16", now it is "float32"'),
        ({"frame_rate": 30.0}, r"begun with frame rate = 25\.0, now it is 30\.0"),
        ({"clip_stride": 16}, "begun with clip stride = 8, now it is 16"),
    ],
)
def test_other_settings_are_refused(folder, settings, message):
    stopped(folder)
    with pytest.raises(UserError, match=message):
        import_features(
            folder, folder.parent / "out.h5", progress=False, **{"frame_rate": 25.0, "clip_stride": 8, **settings}
        )
    assert partial(folder).exists()


def test_what_names_and_annotations_say_may_change_between_runs(folder, tmp_path):
    annotations, table = tmp_path / "durations.json", tmp_path / "map.csv"
    annotations.write_text(json.dumps({"b": {"duration_second": 7.5, "annotations": []}}))
    table.write_text("v_0,a\nv_1,b\nv_2,c\nv_3,d\n")
    stopped(folder, 3, id_map=table)
    table.write_text("v_0,b\nv_1,a\nv_2,c\nv_3,d\n")  # two ids have changed places
    report = run(folder, id_map=table, durations=annotations, origin="late")
    assert report.path.read_bytes() == (
        run(folder, "anew.h5", id_map=table, durations=annotations, origin="late").path.read_bytes()
    )
    assert (report.earlier, report.changed) == (1, 2)


def test_a_bad_video_keeps_those_before_it_for_a_run_that_skips_it_or_finds_it_mended(folder):
    good = (folder / "v_2.npy").read_bytes()
    (folder / "v_2.npy").write_bytes(b"hello")
    kept = rf"v_2\.npy: .*\(2 finished videos are kept in {partial(folder)} for the next run\)$"
    for _ in range(2):
        with pytest.raises(UserError, match=kept):
            run(folder)
    shutil.copytree(partial(folder), folder.parent / "copy")
    report = run(folder, on_error="skip")
    assert (report.videos, report.earlier, len(report.skipped)) == (3, 2, 1)
    (folder.parent / "copy").rename(partial(folder))
    (folder / "v_2.npy").write_bytes(good)
    report = run(folder)
    assert (report.videos, report.earlier) == (4, 2)
    assert report.path.read_bytes() == run(folder, "anew.h5").path.read_bytes()


def test_a_bad_video_in_a_short_import_leaves_nothing(folder, monkeypatch):
    monkeypatch.setattr(importers, "SYNC_SECONDS", 3600.0)
    (folder / "v_2.npy").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"v_2\.npy: not a readable array file [^;]*$"):
        run(folder)
    assert list(folder.parent.iterdir()) == [folder]


def test_one_who_interrupts_is_told_what_is_kept(folder, monkeypatch):
    def interrupted(path):
        if path.stem == "v_3":
            raise KeyboardInterrupt
        return read_array_file(path)

    with monkeypatch.context() as patch:
        patch.setattr("ahernet.data.array_folders.read_array_file", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"3 finished videos are kept in .*, the same command goes on"):
            run(folder)
    assert run(folder).earlier == 3


def test_a_source_that_changes_while_it_is_read_stops_the_import_even_when_skipping(source, monkeypatch):
    append = archive_journal.ArchiveJournal.append

    def append_and_touch(journal, video_id, *arguments):
        append(journal, video_id, *arguments)
        changed = source / "v_1.npy" if source.is_dir() else source
        if video_id == "v_1":
            os.utime(changed, ns=(0, 0))

    with monkeypatch.context() as patch:
        patch.setattr(archive_journal.ArchiveJournal, "append", append_and_touch)
        with pytest.raises(UserError, match=r"v_1.*: changes while it is read, import it when it is complete"):
            run(source, on_error="skip")
    assert not (source.parent / "out.h5").exists()


def test_a_full_disk_keeps_what_is_finished_and_the_next_run_goes_on(folder, monkeypatch):
    expected = run(folder, "undisturbed.h5").path.read_bytes()
    written = []

    def full(file, content):
        written.append(content)
        if len(written) == 5:  # the rows of the third video
            file.write(memoryview(content).cast("B")[:4])
            raise OSError(28, "No space left on device")
        write(file, content)

    write = archive_journal._write
    with monkeypatch.context() as patch:
        patch.setattr(archive_journal, "_write", full)
        with pytest.raises(UserError, match=r"cannot write \(No space left on device\) \(2 finished videos are kept"):
            run(folder, on_error="skip")
    report = run(folder)
    assert report.earlier == 2
    assert report.path.read_bytes() == expected


def test_two_imports_into_one_archive_are_kept_apart(folder, monkeypatch):
    refused = []

    def read_while_another_imports(path):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ahernet.data.array_folders.read_array_file", read_array_file)
            with suppress(BusyFolder):
                run(folder)
                return read_array_file(path)
        refused.append(path.stem)
        return read_array_file(path)

    monkeypatch.setattr("ahernet.data.array_folders.read_array_file", read_while_another_imports)
    assert run(folder).videos == VIDEOS
    assert refused == ["v_1", "v_2", "v_3"]  # the first is read before it is known what the archive is


@pytest.mark.parametrize("files", [False, True])
def test_on_a_network_file_system_an_import_runs_or_says_that_there_are_no_locks(folder, monkeypatch, files):
    def refuse(descriptor, operation):
        if files or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    if files:
        with pytest.raises(UserError, match=r"out\.h5\.partial: cannot lock files there \(No locks available\)"):
            run(folder)
        assert list(folder.parent.iterdir()) == [folder]
    else:
        assert run(folder).videos == VIDEOS
        assert not partial(folder).exists()
