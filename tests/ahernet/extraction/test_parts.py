import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
from small_videos import TINY, write_video

from ahernet.data.archive_journal import ArchiveJournal
from ahernet.data.archive_set import open_features
from ahernet.errors import UserError
from ahernet.extraction.backbones import BACKBONES
from ahernet.extraction.extract import ExtractionSettings
from ahernet.extraction.parts import JOB_NAME, PartsJob, extract_parts, part_path, report_path
from ahernet.files import claim_folder

VIDEOS = 7


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {f"v{k}": write_video(folder / f"v{k}.mp4", 12 + 5 * k) for k in range(VIDEOS)}


@pytest.fixture
def job(videos, tmp_path, monkeypatch):
    """Seven videos, three a part."""
    monkeypatch.setitem(BACKBONES, TINY.name, TINY)
    settings = ExtractionSettings(batch_size=3, workers=2)
    return PartsJob(videos, tmp_path / "parts", TINY.name, device="cpu", settings=settings, part_videos=3)


def run(job, **settings):
    return extract_parts(job, progress=False, **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def broken(job, *names):
    """The same job with files that are no videos under these ids."""
    path = job.folder.parent / "broken.mp4"
    path.write_bytes(b"not a video")
    skip = dataclasses.replace(job.settings, on_error="skip")
    return dataclasses.replace(job, videos={**job.videos, **dict.fromkeys(names, path)}, settings=skip)


def test_parts_read_as_one_archive_in_the_order_of_the_videos(job):
    report = run(job)
    assert (report.parts, report.videos, report.missing, report.unfinished) == (3, VIDEOS, (), 0)
    assert sorted(contents(job.folder)) == [
        "extraction.json",
        "manifest.json",
        *(f"part-00000{k}.{suffix}" for k in range(3) for suffix in ("h5", "json")),
    ]
    with open_features(job.folder) as archive:
        assert archive.ids == tuple(job.videos)
        assert list(archive.verify()) == []


def test_parts_that_are_missing_are_made_again_to_the_same_bytes(job):
    run(job)
    before = contents(job.folder)
    part_path(job, 1).unlink()
    (job.folder / "manifest.json").unlink()
    kept = part_path(job, 0).stat().st_mtime_ns
    run(job)
    assert contents(job.folder) == before
    assert part_path(job, 0).stat().st_mtime_ns == kept


def test_videos_of_no_use_are_named_even_where_a_part_has_no_other(job):
    report = run(broken(job, "v1", "v6"))
    assert (report.parts, report.videos, report.missing) == (3, VIDEOS - 2, ("v1", "v6"))
    for part, name in ((0, "v1"), (2, "v6")):
        listed = json.loads((job.folder / f"part-00000{part}.json").read_text())
        assert list(listed["skipped"]) == [name]
    assert not part_path(job, 2).exists()
    with open_features(job.folder) as archive:
        assert archive.ids == ("v0", "v2", "v3", "v4", "v5")
    assert "skipped 2 videos, as 'v1'; part-*.json say why" in str(report)
    with pytest.raises(UserError, match="none of 7 videos is of use"):
        run(broken(dataclasses.replace(job, folder=job.folder.with_name("none")), *job.videos))


def test_a_video_of_no_use_stops_the_work_if_so_wanted(job):
    stop = dataclasses.replace(broken(job, "v4"), settings=job.settings)
    with pytest.raises(UserError, match=r"broken\.mp4"):
        run(stop)
    assert part_path(job, 0).exists()
    assert not (job.folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"part_videos": 4}, "part_videos"),
        ({"settings": ExtractionSettings(batch_size=3, clip_stride=4)}, "clip_stride"),
        ({"videos": {}}, "videos"),
    ],
)
def test_a_folder_of_another_extraction_is_refused(job, change, named):
    run(job)
    if "videos" in change:
        change = {"videos": dict(list(job.videos.items())[:5])}
    with pytest.raises(UserError, match=f"holds parts of another extraction, with {named} .* instead of "):
        run(dataclasses.replace(job, **change))


def test_a_folder_that_says_twice_what_it_holds_is_refused(job):
    run(job)
    described = job.folder / JOB_NAME
    described.write_text('{"part_videos": 1, ' + described.read_text()[1:])
    with pytest.raises(UserError, match=rf"{JOB_NAME}: .*the key 'part_videos' occurs more than once"):
        run(job)


def test_a_part_that_another_process_makes_is_waited_for_and_made_if_that_one_dies(job, monkeypatch):
    run(job)
    before = contents(job.folder)
    for number in (1, 2):
        part_path(job, number).unlink()
    (job.folder / "manifest.json").unlink()
    busy = job.folder / "part-000001.h5.partial"
    busy.mkdir()
    waits = []
    with contextlib.ExitStack() as other:
        other.enter_context(claim_folder(busy))

        def wait(seconds):
            waits.append(sorted(path.name for path in job.folder.glob("part-*.h5")))
            if len(waits) == 3:
                other.close()

        monkeypatch.setattr("ahernet.extraction.parts.time.sleep", wait)
        report = run(job)
    assert waits == [["part-000000.h5", "part-000002.h5"]] * 3
    assert report.unfinished == 0
    assert contents(job.folder) == before


def test_parts_of_files_that_have_changed_are_made_again(job, videos, tmp_path, capsys):
    copies = {video_id: tmp_path / path.name for video_id, path in videos.items()}
    for video_id, path in copies.items():
        shutil.copy2(videos[video_id], path)
    job = dataclasses.replace(job, videos=copies)
    run(job)
    before = contents(job.folder)
    write_video(copies["v4"], 40)
    report = run(job)
    assert "1 parts are made again, because files of theirs have changed since" in capsys.readouterr().err
    after = contents(job.folder)
    assert {name for name in before if before[name] != after[name]} == {
        "manifest.json",
        "part-000001.h5",
        "part-000001.json",
    }
    with open_features(job.folder) as archive:
        assert archive.lengths[4] == 4
    assert run(job) == report
    assert capsys.readouterr().err == ""


def test_a_kill_between_the_report_of_other_files_and_their_archive_leaves_no_archive_of_the_former(
    job, videos, tmp_path, monkeypatch
):
    path = tmp_path / "changing.mp4"
    shutil.copy2(videos["v4"], path)
    job = dataclasses.replace(job, videos={**videos, "v4": path})
    run(job)
    write_video(path, 40)
    with monkeypatch.context() as patch:
        patch.setattr(ArchiveJournal, "publish", lambda *arguments, **settings: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(job)
    assert report_path(job, 1).exists()
    assert not part_path(job, 1).exists()
    run(job)
    with open_features(job.folder) as archive:
        assert archive.lengths[4] == 4


def test_parts_of_a_version_that_wrote_no_reports_are_taken_as_they_are(job):
    run(job)
    before = contents(job.folder)
    for number in range(3):
        report_path(job, number).unlink()
    assert run(job).unfinished == 0
    assert {name: before[name] for name in contents(job.folder)} == contents(job.folder)


def test_damaged_videos_are_counted_and_named(job, videos, tmp_path):
    half = tmp_path / "half.mp4"
    whole = write_video(tmp_path / "whole.mp4", 40, options={"movflags": "faststart"})
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    report = run(dataclasses.replace(job, videos={**videos, "v5": half}))
    assert report.incomplete == ("v5",)
    assert "kept 1 videos although damaged or incomplete, as 'v5'; part-*.json say what they lack" in str(report)


def test_a_file_that_is_gone_is_a_video_of_no_use(job, tmp_path):
    gone = dataclasses.replace(job, videos={**job.videos, "v4": tmp_path / "gone.mp4"})
    with pytest.raises(UserError, match=r"gone\.mp4: cannot read \(No such file or directory\)"):
        run(gone)
    skip = dataclasses.replace(
        gone, folder=tmp_path / "skip", settings=dataclasses.replace(job.settings, on_error="skip")
    )
    assert run(skip).missing == ("v4",)


def test_a_kill_after_a_part_has_its_name_loses_no_report_and_leaves_nothing_beside_it(job, monkeypatch):
    job = broken(job, "v1", "v6")
    undisturbed = dataclasses.replace(job, folder=job.folder.with_name("undisturbed"))
    run(undisturbed)
    publish = ArchiveJournal.publish

    def publish_and_end(*arguments, **settings):
        publish(*arguments, **settings)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(ArchiveJournal, "publish", publish_and_end)
        with pytest.raises(ZeroDivisionError):
            run(job)
    assert part_path(job, 0).exists()
    assert (job.folder / "part-000000.h5.partial").exists()
    left = [
        f".{name}.abcdefgh.tmp" for name in ("part-000000.h5", "part-000000.json", "extraction.json", "manifest.json")
    ]
    for name in (*left, ".part-000001.h5.01234567.tmp"):
        (job.folder / name).touch()
    run(job)
    assert contents(job.folder) == contents(undisturbed.folder)


def test_what_is_beside_a_part_stays_while_another_process_holds_it(job):
    run(job)
    busy = job.folder / "part-000001.h5.partial"
    busy.mkdir()
    with claim_folder(busy):
        (job.folder / ".part-000001.h5.abcdefgh.tmp").touch()
        run(job)
        assert busy.exists()
        assert (job.folder / ".part-000001.h5.abcdefgh.tmp").exists()


@pytest.mark.parametrize("damage", [None, "[", "[]", '{"archive": false, "skipped": {}, "skipped": {}}'])
def test_a_part_with_a_report_is_made_again_when_its_archive_is_gone(job, damage):
    job = broken(job, "v1")
    run(job)
    before = contents(job.folder)
    part_path(job, 0).unlink()
    if damage is not None:
        report_path(job, 0).write_text(damage)
    assert run(job).missing == ("v1",)
    assert contents(job.folder) == before


def test_a_video_of_no_use_that_was_mended_is_no_longer_missing(job):
    assert run(broken(job, "v1")).missing == ("v1",)
    skip = dataclasses.replace(job.settings, on_error="skip")
    assert run(dataclasses.replace(job, settings=skip)).missing == ()
    assert json.loads(report_path(job, 0).read_text())["skipped"] == {}


@pytest.mark.parametrize("key", ["decoder", "device", "cpu_threads"])
def test_parts_of_another_decoder_or_device_are_refused_before_work(job, key):
    run(job)
    part_path(job, 1).unlink()
    described = json.loads((job.folder / "extraction.json").read_text())
    assert described["decoder"] == "pyav"
    assert described["device"] == "cpu"
    (job.folder / "extraction.json").write_text(json.dumps({**described, key: "another"}))
    with pytest.raises(UserError, match=f"holds parts of another extraction, with {key} 'another' instead of "):
        run(job)
    assert not part_path(job, 1).exists()


ON_RAY = """
import sys
from pathlib import Path
from ahernet.extraction.extract import ExtractionSettings
from ahernet.extraction.parts import JOB_NAME, PartsJob, extract_parts
import small_tiny

videos = {path.stem: path for path in sorted(Path(sys.argv[1]).glob("*.mp4"))}
settings = ExtractionSettings(batch_size=3, workers=2)
job = PartsJob(videos, Path(sys.argv[2]), "small_tiny:means", device="cpu", settings=settings, part_videos=3)
print(extract_parts(job, engine="ray", actors=2, progress=False))
"""


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_parts(job, tmp_path):
    pytest.importorskip("ray.data", reason="needs Ray: pip install 'ahernet[ray]'")
    (tmp_path / "small_tiny.py").write_text(
        "from ahernet.extraction.backbones import register\nfrom small_videos import TINY\nregister(TINY)\n"
    )
    run(job)
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    found = tmp_path / "found"
    result = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(next(iter(job.videos.values())).parent), str(found)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "7 videos in 3 archives" in result.stdout, result.stderr
    assert contents(found) == contents(job.folder)
