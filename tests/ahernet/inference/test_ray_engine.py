"""Real clusters of this machine, in processes of their own, so that nothing of Ray outlives a test."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from inference_references import CLASSES, DIMENSION, MODEL

from ahernet.checkpoint import save_checkpoint
from ahernet.config import Config, InferenceConfig
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.detections_parquet import read_parquet
from ahernet.inference.shards import ShardedJob, localize_shards

pytest.importorskip("ray.data", reason="needs Ray: pip install 'ahernet[ray]'")
pytestmark = pytest.mark.slow

VIDEOS, SHARD = 120, 5
DRIVER = """
import sys
from pathlib import Path
from ahernet.config import InferenceConfig
from ahernet.inference.ray_engine import on_ray
from ahernet.inference.shards import ShardedJob, localize_shards

archive, run, found = map(Path, sys.argv[1:])
job = ShardedJob(archive, run, found, InferenceConfig(batch_size=1, top_k=9), shard_videos=5)
print(localize_shards(job, device="cpu", processes=2, engine=on_ray, progress=False))
"""


@pytest.fixture
def job(tmp_path, localizer):
    rng = np.random.default_rng(5)
    with ArchiveWriter(tmp_path / "a.h5", dimension=DIMENSION, dtype="float32") as writer:
        for number in range(VIDEOS):
            writer.add(f"v{number}", rng.normal(size=(30, DIMENSION)), 15.0)
    save_checkpoint(tmp_path / "run", Config(model=MODEL), CLASSES, localizer)
    config = InferenceConfig(batch_size=1, top_k=9)
    return ShardedJob(tmp_path / "a.h5", tmp_path / "run", tmp_path / "found", config, shard_videos=SHARD)


def driver(job):
    command = [sys.executable, "-c", DRIVER, job.archive, job.checkpoint, job.folder]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, start_new_session=True)


def wait_for_shards(job, process, count):
    while process.poll() is None and len(list(job.folder.glob("part-*.parquet"))) < count:
        time.sleep(0.01)


def workers(process):
    """Process numbers of the actors of a driver's cluster."""
    import psutil

    found = []
    for other in psutil.process_iter(["cmdline"]):
        title = " ".join(other.info["cmdline"] or [])
        if title.startswith("ray::") and "_Actor" in title and process.pid in _ancestors(other):
            found.append(other.pid)
    return found


def _ancestors(process):
    import psutil

    try:
        return [parent.pid for parent in process.parents()]
    except psutil.Error:
        return []


def assert_as_if_undisturbed(job):
    alone = job.folder.with_name("alone")
    localize_shards(ShardedJob(job.archive, job.checkpoint, alone, job.config, shard_videos=SHARD), device="cpu")
    names = sorted(path.name for path in alone.iterdir())
    assert sorted(path.name for path in job.folder.iterdir()) == names
    for name in names:
        assert (job.folder / name).read_bytes() == (alone / name).read_bytes()
    listed = [video for part in sorted(alone.glob("part-*.parquet")) for video in read_parquet(part).video_ids]
    assert listed == [f"v{number}" for number in range(VIDEOS)]


ALWAYS_DIES = """
import os
from ahernet.errors import UserError
from ahernet.ray_tasks import run_on_ray

def make():
    return lambda number: os._exit(1) if number == 2 else None

try:
    print(sorted(run_on_ray(make, (), 4, 1, "cpu")))
except UserError as mistake:
    print("mistake:", mistake)
"""


def test_a_task_that_always_takes_its_process_with_it_ends_the_run():
    ended = subprocess.run([sys.executable, "-c", ALWAYS_DIES], capture_output=True, text=True, timeout=300)
    assert "mistake: engine ray: a process died" in ended.stdout, ended.stdout + ended.stderr
    assert "of 4 tasks are not done" in ended.stdout


def test_an_actor_and_then_the_driver_are_killed_and_nothing_is_lost_or_done_twice(job):
    process = driver(job)
    wait_for_shards(job, process, 2)
    victims = workers(process)
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    done = len(list(job.folder.glob("part-*.parquet")))
    wait_for_shards(job, process, done + 2)
    assert process.poll() is None, "the job ended before its driver could be killed"
    process.kill()
    process.wait()
    assert 0 < len(list(job.folder.glob("part-*.parquet"))) < VIDEOS // SHARD
    time.sleep(2)  # Ray's own processes see that their driver is gone
    second = driver(job)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0
    assert b"ShardedResult(shards=24, videos=120, skipped=0" in output
    assert_as_if_undisturbed(job)
