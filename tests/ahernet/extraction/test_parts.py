import dataclasses
import json
import os
import subprocess
import sys

import pytest
from small_videos import TINY, write_video

from ahernet.data.archive_journal import ArchiveJournal
from ahernet.data.archive_set import open_features
from ahernet.errors import UserError
from ahernet.extraction.backbones import BACKBONES
from ahernet.extraction.extract import ExtractionSettings
from ahernet.extraction.parts import PartsJob, extract_parts, part_path, report_path
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
        *(f"part-00000{k}.h5" for k in range(3)),
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
    with pytest.raises(UserError, match=f"holds parts of another extraction, of another {named}"):
        run(dataclasses.replace(job, **change))


def test_a_part_that_another_process_makes_is_left_to_it(job):
    run(job)
    part_path(job, 1).unlink()
    (job.folder / "manifest.json").unlink()
    busy = job.folder / "part-000001.h5.partial"
    busy.mkdir()
    with claim_folder(busy):
        report = run(job)
    assert report.unfinished == 1
    assert not part_path(job, 1).exists()
    assert not (job.folder / "manifest.json").exists()
    assert str(report).splitlines()[0] == f"{job.folder}: 4 videos in 2 of 3 archives"
    assert "1 archives are being made by other processes" in str(report)
    assert run(job).unfinished == 0


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


@pytest.mark.parametrize("damage", [None, "[", "[]"])
def test_a_part_with_a_report_is_made_again_when_its_archive_is_gone(job, damage):
    job = broken(job, "v1")
    run(job)
    before = contents(job.folder)
    part_path(job, 0).unlink()
    if damage is not None:
        report_path(job, 0).write_text(damage)
    assert run(job).missing == ("v1",)
    assert contents(job.folder) == before


def test_a_report_that_no_longer_holds_goes_when_its_part_is_made_again(job):
    run(broken(job, "v1"))
    part_path(job, 0).unlink()
    skip = dataclasses.replace(job.settings, on_error="skip")
    assert run(dataclasses.replace(job, settings=skip)).missing == ()
    assert not report_path(job, 0).exists()


@pytest.mark.parametrize("key", ["decoder", "device"])
def test_parts_of_another_decoder_or_device_are_refused_before_work(job, key):
    run(job)
    part_path(job, 1).unlink()
    described = json.loads((job.folder / "extraction.json").read_text())
    assert described["decoder"] == "pyav"
    assert described["device"] == "cpu"
    (job.folder / "extraction.json").write_text(json.dumps({**described, key: "another"}))
    with pytest.raises(UserError, match=f"holds parts of another extraction, of another {key}"):
        run(job)
    assert not part_path(job, 1).exists()


ON_RAY = """
import sys
from pathlib import Path
from ahernet.extraction.extract import ExtractionSettings
from ahernet.extraction.parts import PartsJob, extract_parts
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
