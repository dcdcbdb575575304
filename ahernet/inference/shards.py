"""Localization of archives of any size into a folder of shards, by one process or many, killed at any time or not.

The unit of work is a shard: some thousand videos of one archive file. Memory is bounded by a shard and the tables of
one file. A process takes a shard by locking one byte of a file in the folder, a lock that ends with the process
however that comes; it gives the shard its name when it is complete. Batches never reach over the end of a shard, so
that its bytes do not depend on who computed what before.
"""

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ahernet.checkpoint import load_checkpoint
from ahernet.child_process import end_with_parent
from ahernet.config import InferenceConfig
from ahernet.data.annotations import match_video_ids
from ahernet.data.archive import FeatureArchive, open_archive
from ahernet.data.archive_set import one_after_the_other
from ahernet.data.bounded_read import parse_json
from ahernet.data.detection_shards import MANIFEST_NAME, shard_names, write_manifest, write_shard
from ahernet.device import cpu_threads
from ahernet.errors import UserError
from ahernet.files import make_own_folder, remove_copies, replace_when_complete
from ahernet.inference.localize import progress_bar
from ahernet.inference.ready import OnError, ReadyLocalizer
from ahernet.progress import ProgressBar

CLAIMS_NAME = ".claims"
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class ShardedJob:
    """What is localized, how, and where the shards go.

    Attributes:
        archive: feature archive, or set of them.
        checkpoint: folder of the network.
        folder: that gets the shards.
        config: scoring and suppression; that of the checkpoint by default.
        classes: names of those to localize; all by default.
        minimum_scores: by class name.
        durations: seconds by id: localize only in these videos, and take the durations that the archive does not know
            from here. None: in all videos. `plan` takes ids that differ from the archive's in the prefix `v_`.
        shard_videos: videos of a shard, at most.
        suffix: of the shards: ".parquet" or that of any detection file.
        on_error: what to do with a video that cannot be localized in.
    """

    archive: Path
    checkpoint: Path
    folder: Path
    config: InferenceConfig | None = None
    classes: tuple[str, ...] | None = None
    minimum_scores: Mapping[str, float] = field(default_factory=dict)
    durations: Mapping[str, float] | None = None
    shard_videos: int = 4096
    suffix: str = ".parquet"
    on_error: OnError = "stop"


@dataclass(frozen=True)
class Shard:
    """Videos first:last of those that are chosen in one archive file, and the file that gets their detections.

    `fingerprint` of the archive and `digest` of the network are those of the plan: work on others is refused.
    """

    number: int
    archive: Path
    first: int
    last: int
    path: Path
    fingerprint: str
    digest: str

    @property
    def skipped_path(self) -> Path:
        """Where the videos that were left out are listed, if any."""
        return self.path.with_name(f"part-{self.number:06d}.skipped.json")


@dataclass(frozen=True)
class ShardedResult:
    """What a folder of shards holds now.

    Attributes:
        shards: of the folder, in all.
        videos: of them, in all.
        skipped: of them, left out.
        without_features: annotated videos that the archive lacks.
    """

    shards: int
    videos: int
    skipped: int
    without_features: tuple[str, ...]


Engine = Callable[[ShardedJob, Sequence[Shard], str, int, ProgressBar], None]
"""Completes shards of a job, given the device, how many processes may share the work, and a bar that counts videos."""


def localize_shards(
    job: ShardedJob,
    *,
    device: str = "auto",
    processes: int = 1,
    engine: Engine | None = None,
    progress: bool = True,
) -> ShardedResult:
    """Localize actions in the videos of an archive into a folder of shards; shards that are there are kept.

    Shards that another process works on are waited for, and taken over should it end.

    Args:
        job: what, how and where.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        processes: that share the work; with "auto" or "cuda" each takes the next GPU, on a CPU each has one thread.
        engine: what shares the work; `on_this_machine` by default.
        progress: show a progress bar on standard error.

    Raises:
        UserError: as `localize`; the folder holds detections of another run; a process died.
    """
    job, shards, without_features = plan(job)
    pending = [shard for shard in shards if not shard.path.exists()]
    with progress_bar(_videos(shards), progress) as bar:
        bar.update(_videos(shards) - _videos(pending))
        if pending:
            (engine or on_this_machine)(job, pending, device, processes, bar)
    (job.folder / CLAIMS_NAME).unlink(missing_ok=True)
    remove_copies(job.folder / MANIFEST_NAME)
    skipped = sum(_skipped_of(shard) for shard in shards if shard.skipped_path.exists())
    return ShardedResult(len(shards), _videos(shards), skipped, without_features)


def plan(job: ShardedJob) -> tuple[ShardedJob, list[Shard], tuple[str, ...]]:
    """Divide a job into shards, written down in the manifest of its folder.

    Returns:
        The job with durations by the archive's own ids; its shards; annotated videos without features.

    Raises:
        UserError: an archive or the network cannot be read or they do not fit, a video is in two archives, none is
            chosen, or the folder holds detections of another run.
    """
    ready = make_ready(job, "cpu")
    files: list[tuple[Path, tuple[str, ...], str]] = []
    owner: dict[str, Path] = {}
    for archive in one_after_the_other(job.archive):
        ready.check_dimension(archive)
        files.append((archive.path, archive.ids, _fingerprint(archive)))
        for video_id in archive.ids:
            if owner.setdefault(video_id, archive.path) != archive.path:
                raise UserError(
                    f"{archive.path}: holds video {video_id!r}, as {owner[video_id]} does; expected it in one"
                )
    missing: tuple[str, ...] = ()
    annotated = None
    if job.durations is not None:
        annotated = _hash(job.durations)
        found = match_video_ids(job.durations, owner)
        missing = tuple(name for name in job.durations if name not in found)
        job = replace(job, durations={here: job.durations[name] for name, here in found.items()})
    known = job.durations
    counts = [sum(known is None or name in known for name in ids) for _, ids, _ in files]
    if not sum(counts):
        raise UserError(f"{job.archive}: has features of none of {len(missing):,} annotated videos, expected some")
    pieces = [
        (path, first, min(first + job.shard_videos, count), fingerprint)
        for (path, _, fingerprint), count in zip(files, counts, strict=True)
        for first in range(0, count, job.shard_videos)
    ]
    names = shard_names(len(pieces), job.suffix)
    digest = ready.checkpoint.digest
    manifest = {
        "archives": [
            {"file": path.name, "videos": count, "fingerprint": fingerprint}
            for (path, _, fingerprint), count in zip(files, counts, strict=True)
        ],
        "checkpoint": digest,
        "classes": list(ready.classes),
        "inference": asdict(ready.config),
        "minimum_scores": dict(job.minimum_scores),
        "durations": annotated,
        "on_error": job.on_error,
        "shard_videos": job.shard_videos,
        "shards": names,
    }
    make_own_folder(job.folder, MANIFEST_NAME)
    write_manifest(job.folder, json.loads(json.dumps(manifest)))
    shards = [
        Shard(number, path, first, last, job.folder / name, fingerprint, digest)
        for number, ((path, first, last, fingerprint), name) in enumerate(zip(pieces, names, strict=True))
    ]
    return job, shards, missing


def make_ready(job: ShardedJob, device: str) -> ReadyLocalizer:
    """Return the network of a job on a device.

    Raises:
        UserError: as `load_checkpoint` and `ReadyLocalizer`.
    """
    return ReadyLocalizer(
        load_checkpoint(job.checkpoint),
        job.config,
        classes=job.classes,
        minimum_scores=job.minimum_scores,
        device=device,
    )


def work_on(job: ShardedJob, ready: ReadyLocalizer, shards: Sequence[Shard], bar: ProgressBar) -> None:
    """Localize in shards until all are there, in those that no other process has taken.

    On a CPU with one thread: sums depend on the number of threads, and shards must not.

    Raises:
        UserError: as `localize`; an archive or the network is not that of the plan any more.
    """
    pending = list(shards)
    with _claims(job.folder) as claim, cpu_threads(1), ExitStack() as opened:
        chosen: _Chosen | None = None
        while pending:
            busy = []
            for shard in pending:
                with claim(shard.number) as taken:
                    if shard.path.exists():
                        bar.update(_videos([shard]))
                    elif not taken:
                        busy.append(shard)
                    else:
                        if chosen is None or chosen.archive.path != shard.archive:
                            opened.close()
                            chosen = _choose(opened.enter_context(open_archive(shard.archive)), job)
                        _refuse_changed(shard, ready, chosen)
                        _complete(job, ready, chosen, shard, bar)
            pending = busy
            if pending:
                time.sleep(POLL_SECONDS)


def _refuse_changed(shard: Shard, ready: ReadyLocalizer, chosen: "_Chosen") -> None:
    if chosen.fingerprint != shard.fingerprint:
        raise UserError(f"{shard.archive}: has changed since this run began; localize into another folder")
    if ready.checkpoint.digest != shard.digest:
        raise UserError(f"{ready.checkpoint.source}: has changed since this run began; localize into another folder")


def _complete(job: ShardedJob, ready: ReadyLocalizer, chosen: "_Chosen", shard: Shard, bar: ProgressBar) -> None:
    """Localize in the videos of a shard and give it its name."""
    for left in job.folder.glob(f".part-{shard.number:06d}.*.tmp"):  # of a process that was killed
        left.unlink(missing_ok=True)
    here = chosen.positions[shard.first : shard.last]
    detections, skipped = ready.localize(chosen.archive, here, chosen.durations, job.on_error, bar)
    if skipped:
        with replace_when_complete(shard.skipped_path) as path:
            path.write_text(json.dumps(skipped, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_shard(shard.path, detections, as_spelled=True)


def _skipped_of(shard: Shard) -> int:
    try:
        skipped = parse_json(shard.skipped_path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{shard.skipped_path}: cannot be read ({error})") from error
    if not isinstance(skipped, dict):
        raise UserError(f"{shard.skipped_path}: expected the videos that were skipped, by their ids")
    return len(skipped)


class _Chosen(NamedTuple):
    """An open archive with its fingerprint, the places of the videos to localize in, and their known durations."""

    archive: FeatureArchive
    fingerprint: str
    positions: NDArray[np.int64]
    durations: Mapping[str, float]


def _choose(archive: FeatureArchive, job: ShardedJob) -> _Chosen:
    known = job.durations
    chosen = [place for place, video_id in enumerate(archive.ids) if known is None or video_id in known]
    return _Chosen(archive, _fingerprint(archive), np.array(chosen, np.int64), known or {})


def on_this_machine(job: ShardedJob, shards: Sequence[Shard], device: str, processes: int, bar: ProgressBar) -> None:
    """Let processes of this machine share the shards, and watch what they finish; see `Engine`.

    Raises:
        UserError: as `localize`; a process died, so that shards are missing.
    """
    processes = min(processes, len(shards))
    if processes == 1:
        work_on(job, make_ready(job, device), shards, bar)
        return
    context = get_context("spawn")
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    workers: list[SpawnProcess] = []
    try:
        for number in range(processes):
            where = f"cuda:{number % gpus}" if gpus else device
            worker = context.Process(target=_work_quietly, args=(job, shards, where), daemon=True)
            worker.start()
            workers.append(worker)
        waiting = list(shards)
        while running := [worker.sentinel for worker in workers if worker.is_alive()]:
            wait(running, POLL_SECONDS)
            finished = [shard for shard in waiting if shard.path.exists()]
            waiting = [shard for shard in waiting if shard not in finished]
            bar.update(_videos(finished))
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed and any(not shard.path.exists() for shard in shards):
        ended = [
            f"with signal {-code}" if code < 0 else f"with exit code {code}" for code in failed if code is not None
        ]
        raise UserError(
            f"{job.folder}: {len(failed)} of {processes} processes ended {ended[0]}; what is finished is kept, "
            f"the same command goes on"
        )


def _work_quietly(job: ShardedJob, shards: Sequence[Shard], device: str) -> None:
    """Work in a process of its own: without a bar, its errors as one line, and no longer than the first process."""
    end_with_parent()
    try:
        with progress_bar(_videos(shards), shown=False) as bar:
            work_on(job, make_ready(job, device), shards, bar)
    except UserError as error:
        print(f"ahernet: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # reaches every process of the terminal; the first one says so
        sys.exit(130)


@contextmanager
def _claims(folder: Path) -> Iterator[Callable[[int], AbstractContextManager[bool]]]:
    """Give what takes a shard: a context that says whether it is ours, until it ends or this process does."""
    try:
        descriptor = os.open(folder / CLAIMS_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror})") from error

    @contextmanager
    def claim(number: int) -> Iterator[bool]:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):  # what systems say of a lock that another process holds
            yield False
            return
        except OSError as error:
            raise UserError(f"{folder}: cannot lock files there ({error.strerror})") from error
        try:
            yield True
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, number)

    try:
        yield claim
    finally:
        os.close(descriptor)


def _videos(shards: Sequence[Shard]) -> int:
    return sum(shard.last - shard.first for shard in shards)


def _fingerprint(archive: FeatureArchive) -> str:
    """Return a hash of the ids, lengths and checksums of an archive: of all that it holds."""
    digest = hashlib.sha256("\0".join(archive.ids).encode())
    for table in (archive.offsets, archive.durations, archive.checksums):
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()


def _hash(durations: Mapping[str, float]) -> str:
    return hashlib.sha256(json.dumps(list(durations.items())).encode()).hexdigest()
