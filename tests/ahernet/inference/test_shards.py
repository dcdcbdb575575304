import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from inference_references import CLASSES, DIMENSION, MODEL

from ahernet.checkpoint import load_checkpoint, save_checkpoint
from ahernet.config import Config, InferenceConfig
from ahernet.data.archive import open_archive
from ahernet.data.archive_set import open_features, write_manifest
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.detection_shards import load_detections
from ahernet.data.detections_parquet import read_parquet
from ahernet.errors import UserError
from ahernet.inference.localize import localize
from ahernet.inference.shards import ShardedJob, _claims, localize_shards, make_ready, on_this_machine, plan, work_on

pytest.importorskip("pyarrow", reason="needs pyarrow")
CONFIG = InferenceConfig(batch_size=2, top_k=9)
VIDEOS = 13


def write_videos(path, names, seed, broken=(), unknown=()):
    rng = np.random.default_rng(seed)
    with ArchiveWriter(path, dimension=DIMENSION, dtype="float32") as writer:
        for name in names:
            rows = rng.normal(size=(int(rng.integers(1, 60)), DIMENSION))
            writer.add(name, rows, float("nan") if name in unknown else len(rows) / 2)


@pytest.fixture
def job(tmp_path, localizer):
    """Thirteen videos in two archives, four a shard: shards of 4, 3, 4 and 2 videos."""
    folder = tmp_path / "archives"
    folder.mkdir()
    write_videos(folder / "a.h5", [f"v_{k}" for k in range(7)], seed=1)
    write_videos(folder / "b.h5", [f"v_{k}" for k in range(7, VIDEOS)], seed=2)
    write_manifest(folder / "manifest.json", [folder / "a.h5", folder / "b.h5"])
    save_checkpoint(tmp_path / "run", Config(model=MODEL), CLASSES, localizer)
    return ShardedJob(folder, tmp_path / "run", tmp_path / "found", CONFIG, shard_videos=4)


def run(job, **settings):
    return localize_shards(job, device="cpu", progress=False, **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_together_are_what_one_call_finds(job):
    result = run(job)
    assert (result.shards, result.videos, result.skipped) == (4, VIDEOS, 0)
    assert sorted(contents(job.folder)) == ["manifest.json", *(f"part-00000{k}.parquet" for k in range(4))]
    assert [len(read_parquet(job.folder / f"part-00000{k}.parquet").video_ids) for k in range(4)] == [4, 3, 4, 2]
    shards = load_detections(job.folder)
    with open_features(job.archive) as archive:
        whole = localize(archive, load_checkpoint(job.checkpoint), CONFIG, device="cpu", progress=False)
    assert shards.video_ids == whole.video_ids
    assert shards.classes == whole.classes
    np.testing.assert_array_equal(shards.video, whole.video)
    np.testing.assert_array_equal(shards.label, whole.label)
    np.testing.assert_allclose(shards.scores, whole.scores, rtol=1e-5)
    np.testing.assert_allclose(shards.segments, whole.segments, atol=1e-4)


def test_what_is_finished_is_kept_and_what_is_missing_made_again_byte_for_byte(job):
    run(job)
    before = contents(job.folder)
    kept = job.folder / "part-000000.parquet"
    times = kept.stat().st_mtime_ns
    (job.folder / "part-000002.parquet").unlink()
    (job.folder / ".part-000002.parquet.abc.tmp").write_bytes(b"half")
    (job.folder / ".manifest.json.abcd_123.tmp").write_bytes(b"half")
    with pytest.raises(UserError, match=r"1 of 4 shards are missing, as part-000002\.parquet"):
        load_detections(job.folder)
    run(job)
    assert contents(job.folder) == before
    assert kept.stat().st_mtime_ns == times


def work(job, shards):
    from tqdm import tqdm

    with tqdm(disable=True) as bar:
        work_on(job, make_ready(job, "cpu"), shards, bar)


def test_an_archive_that_changes_after_the_plan_is_refused(job):
    job, shards, _ = plan(job)
    write_videos(job.archive / "b.h5", [f"v_{k}" for k in range(6, VIDEOS)], seed=2)
    with pytest.raises(UserError, match=r"b\.h5: has changed since this run began"):
        work(job, shards)
    assert [shard.path.exists() for shard in shards] == [True, True, False, False]


def test_a_network_that_changes_after_the_plan_is_refused(job, localizer_of_seven):
    job, shards, _ = plan(job)
    save_checkpoint(job.checkpoint, Config(model=MODEL), [f"class {k}" for k in range(7)], localizer_of_seven)
    with pytest.raises(UserError, match="run: has changed since this run began"):
        work(job, shards)
    assert not any(shard.path.exists() for shard in shards)


def test_shards_are_computed_by_one_thread_whatever_the_process_has(job, monkeypatch):
    import ahernet.inference.shards as module

    threads = []
    complete = module._complete
    monkeypatch.setattr(module, "_complete", lambda *given: (threads.append(torch.get_num_threads()), complete(*given)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(job)
    finally:
        torch.set_num_threads(before)
    assert threads == [1] * 4


def test_ids_that_differ_in_their_prefix_stay_apart(job):
    write_videos(job.archive / "a.h5", ["v_x", "y"], seed=1)
    write_videos(job.archive / "b.h5", ["x", "z"], seed=2)
    write_manifest(job.archive / "manifest.json", [job.archive / "a.h5", job.archive / "b.h5"])
    for suffix in (".json", ".csv"):
        folder = job.folder.with_name(suffix[1:])
        run(dataclasses.replace(job, folder=folder, suffix=suffix))
        assert load_detections(folder).video_ids == ("v_x", "y", "x", "z")
    run(dataclasses.replace(job, durations={"x": 5.0}))
    assert load_detections(job.folder).video_ids == ("x",)


def test_a_video_in_two_archives_is_refused(job):
    write_videos(job.archive / "b.h5", ["v_3", *(f"v_{k}" for k in range(8, VIDEOS))], seed=2)
    with pytest.raises(UserError, match=r"b\.h5: holds video 'v_3', as .*a\.h5 does"):
        run(job)


def test_archives_that_are_not_what_their_manifest_says_are_refused(job):
    write_videos(job.archive / "b.h5", ["v_7", "v_8"], seed=2)
    with pytest.raises(UserError, match=r"b\.h5: has 2 videos and \d+ rows, .*manifest\.json says 6 and "):
        run(job)


def test_archives_of_two_networks_are_refused(job):
    rng = np.random.default_rng(2)
    with ArchiveWriter(job.archive / "b.h5", dimension=DIMENSION, dtype="float32", origin="another network") as writer:
        for name in (f"v_{k}" for k in range(7, VIDEOS)):
            rows = rng.normal(size=(int(rng.integers(1, 60)), DIMENSION))
            writer.add(name, rows, len(rows) / 2)
    with pytest.raises(UserError, match=r"b\.h5: its origin is another network"):
        run(job)


@pytest.mark.parametrize("suffix", [".json", ".csv.gz"])
def test_shards_have_the_format_that_is_asked_for(job, suffix):
    run(dataclasses.replace(job, suffix=suffix))
    found = load_detections(job.folder)
    assert len(found.video_ids) == VIDEOS
    assert all((job.folder / f"part-00000{k}{suffix}").exists() for k in range(4))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": dataclasses.replace(CONFIG, top_k=8)}, "inference.top_k is 9, now 8"),
        ({"classes": ("run",)}, "classes is"),
        ({"shard_videos": 5}, "shard_videos is 4, now 5"),
        ({"minimum_scores": {"run": 0.5}}, "minimum_scores.run is None, now 0.5"),
        ({"on_error": "skip"}, "on_error is 'stop', now 'skip'"),
    ],
)
def test_a_folder_of_other_settings_is_refused(job, change, named):
    run(job)
    before = contents(job.folder)
    with pytest.raises(UserError, match=r"holds detections of another run: .*; give another folder") as raised:
        run(dataclasses.replace(job, **change))
    assert named in str(raised.value)
    assert contents(job.folder) == before


def test_a_folder_of_other_features_or_another_network_is_refused(job, localizer_of_seven):
    run(job)
    write_videos(job.archive / "b.h5", [f"v_{k}" for k in range(7, VIDEOS)], seed=3)
    write_manifest(job.archive / "manifest.json", [job.archive / "a.h5", job.archive / "b.h5"])
    with pytest.raises(UserError, match="holds detections of another run: archives is"):
        run(job)
    save_checkpoint(job.checkpoint, Config(model=MODEL), [f"class {k}" for k in range(7)], localizer_of_seven)
    with pytest.raises(UserError, match="holds detections of another run"):
        run(job)


def test_annotated_videos_alone_are_localized_in_and_missing_ones_returned(job):
    durations = {"3": 20.0, "9": 20.0, "absent": 5.0, "v_12": 20.0}
    result = run(dataclasses.replace(job, durations=durations))
    assert (result.shards, result.videos, result.without_features) == (2, 3, ("absent",))
    assert load_detections(job.folder).video_ids == ("v_3", "v_9", "v_12")
    with pytest.raises(UserError, match="has features of none of 1 annotated videos"):
        run(dataclasses.replace(job, durations={"absent": 5.0}, folder=job.folder / "none"))


def test_videos_that_are_left_out_are_listed_beside_their_shard(job):
    write_videos(job.archive / "c.h5", ["good", "v_unknown"], seed=4, unknown=["v_unknown"])
    alone = dataclasses.replace(job, archive=job.archive / "c.h5")
    with pytest.raises(UserError, match="the duration is unknown of 'v_unknown'"):
        run(dataclasses.replace(alone, folder=job.folder.with_name("stopped")))
    result = run(dataclasses.replace(alone, on_error="skip"))
    assert (result.videos, result.skipped) == (2, 1)
    assert json.loads((job.folder / "part-000000.skipped.json").read_bytes()) == {"v_unknown": "unknown duration"}
    assert load_detections(job.folder).video_ids == ("good",)
    for content in (b"", b"5", b"[" * 100_000, b'{"v_1": "short", "v_1": "damaged"}'):
        (job.folder / "part-000000.skipped.json").write_bytes(content)
        with pytest.raises(UserError, match=r"part-000000\.skipped\.json: "):
            run(dataclasses.replace(alone, on_error="skip"))


def test_a_shard_that_another_process_works_on_is_waited_for_and_taken_over_when_that_ends(job):
    _, shards, _ = plan(job)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys, time\n"
            "d = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
            "fcntl.lockf(d, fcntl.LOCK_EX, 1, 2)\n"
            "print('held', flush=True)\n"
            "others = [sys.argv[2] % k for k in (0, 1, 3)]\n"
            "while not all(map(os.path.exists, others)):\n"
            "    time.sleep(0.01)\n"
            "os._exit(int(os.path.exists(sys.argv[2] % 2)))",
            str(job.folder / ".claims"),
            str(job.folder / "part-00000%d.parquet"),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    run(job)
    assert holder.wait() == 0  # it held its shard until the others were there
    assert all(shard.path.exists() for shard in shards)
    assert not (job.folder / ".claims").exists()


def test_two_processes_share_the_shards(job):
    run(dataclasses.replace(job, folder=job.folder.with_name("alone")))
    result = run(job, processes=2)
    assert result.shards == 4
    alone = contents(job.folder.with_name("alone"))
    assert contents(job.folder) == alone


SCRIPT = """
import sys, time
import ahernet.inference.shards as shards
from pathlib import Path
from ahernet.config import InferenceConfig

write = shards.write_shard

def slow(path, detections, **settings):
    print("shard", flush=True)
    time.sleep(0.3)
    write(path, detections, **settings)

shards.write_shard = slow
archive, run, found = map(Path, sys.argv[1:])
job = shards.ShardedJob(archive, run, found, InferenceConfig(batch_size=2, top_k=9), shard_videos=4)
shards.localize_shards(job, device="cpu", progress=False)
"""


def test_a_run_that_is_killed_is_finished_to_the_same_bytes(job):
    undisturbed = dataclasses.replace(job, folder=job.folder.with_name("undisturbed"))
    run(undisturbed)
    command = [sys.executable, "-c", SCRIPT, job.archive, job.checkpoint, job.folder]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE)
    for _ in range(2):
        assert process.stdout.readline() == b"shard\n"
    time.sleep(0.15)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= len(list(job.folder.glob("part-*.parquet"))) < 4
    run(job)
    assert contents(job.folder) == contents(undisturbed.folder)
    listed = [video for part in sorted(job.folder.glob("part-*.parquet")) for video in read_parquet(part).video_ids]
    assert listed == [f"v_{k}" for k in range(VIDEOS)]


def test_memory_is_given_back_between_archive_files(job, monkeypatch):
    """One file is open at a time, however many there are."""
    import ahernet.inference.shards as module

    opened, closed = [], []

    def watched(path):
        archive = open_archive(path)
        opened.append(path.name)
        close = archive.close
        archive.close = lambda: (closed.append(path.name), close())
        return archive

    job, shards, _ = plan(job)
    monkeypatch.setattr(module, "open_archive", watched)
    from tqdm import tqdm

    with tqdm(disable=True) as bar, torch.inference_mode():
        work_on(job, make_ready(job, "cpu"), shards, bar)
    assert opened == closed == ["a.h5", "b.h5"]


def test_a_claim_ends_with_its_context(tmp_path):
    with _claims(tmp_path) as claim:
        with claim(3) as taken:
            assert taken
        with claim(3) as taken:
            assert taken


def test_processes_that_die_are_reported_and_what_is_finished_stays(job):
    from tqdm import tqdm

    job, shards, _ = plan(job)
    (job.checkpoint / "checkpoint.json").unlink()
    with tqdm(disable=True) as bar, pytest.raises(UserError, match="2 of 2 processes ended with exit code 2; what is"):
        on_this_machine(job, shards, "cpu", 2, bar)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_error(job, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(UserError, match=rf"found: cannot lock files there \({os.strerror(code)}\)"):
        run(job)
    assert not list(job.folder.glob("part-*"))
