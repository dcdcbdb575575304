"""Extraction of very many videos into a folder of archives: parts of some hundred videos, made by one process or many.

    extraction.json     which videos, how, and which parts there are
    part-000000.h5      a part: a feature archive, complete when it has its name
    part-000000.json    written before it: why videos are missing from it, what others lack, and whether any is left
    manifest.json       makes the parts readable as one archive; written when all are there

A part is made as any archive is (`ahernet.extraction.extract`), so that whatever is killed goes on where it was, and
ends with the same bytes whoever computes it. Videos that are of no use are missing from their part, which its report
names; a part without remarks has no report, and one without usable videos has no archive.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ahernet.data.archive import open_archive
from ahernet.data.archive_journal import remove_leftovers
from ahernet.data.archive_set import MANIFEST_NAME, write_manifest
from ahernet.errors import UserError
from ahernet.extraction.backbones import find_backbone
from ahernet.extraction.extract import ExtractionSettings, NoUsableVideo, Outcome, extract
from ahernet.extraction.network import Arithmetic, ClipNetwork
from ahernet.extraction.pyav_decoder import PyAVDecoder
from ahernet.files import (
    BusyFolder,
    make_own_folder,
    one_at_a_time,
    remove_copies,
    replace_when_complete,
    write_once,
)
from ahernet.progress import ProgressBar
from ahernet.ray_tasks import Do, run_on_ray

JOB_NAME = "extraction.json"
JOB_FORMAT = "ahernet extraction 1"
Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class PartsJob:
    """What is extracted, how, and where the parts go.

    Attributes:
        videos: files by id, in order.
        folder: that gets the parts.
        backbone: name of the network.
        weights: of the network; None for random ones.
        arithmetic: of the network.
        decode_on: device of FFmpeg that decodes; None for the CPU.
        device: of the network.
        settings: how videos are read and computed.
        part_videos: videos of a part, at most.
    """

    videos: Mapping[str, Path]
    folder: Path
    backbone: str
    weights: Path | None = None
    arithmetic: Arithmetic = "float32"
    decode_on: str | None = None
    device: str = "auto"
    settings: ExtractionSettings = field(default_factory=ExtractionSettings)
    part_videos: int = 500


@dataclass(frozen=True)
class PartsReport:
    """What a folder of parts holds now.

    Attributes:
        folder: of the parts.
        parts: in all.
        videos: in them.
        missing: ids of videos that are of no use, so that their part lacks them.
        unfinished: parts that another process is making.
    """

    folder: Path
    parts: int
    videos: int
    missing: tuple[str, ...]
    unfinished: int

    def __str__(self) -> str:
        there = f"{self.parts - self.unfinished:,} of " if self.unfinished else ""
        text = f"{self.folder}: {self.videos:,} videos in {there}{self.parts:,} archives"
        if self.missing:
            text += f"\nskipped {len(self.missing):,} videos, as {self.missing[0]!r}; part-*.json say why"
        if self.unfinished:
            text += f"\n{self.unfinished:,} archives are being made by other processes"
        return text


def extract_parts(job: PartsJob, *, engine: Engine = "local", actors: int = 1, progress: bool = True) -> PartsReport:
    """Extract the features of videos into a folder of archives; parts that are there are kept.

    Args:
        job: what, how and where.
        engine: this process, or a Ray cluster all of whose machines see the files under the same paths.
        actors: of the cluster, that make parts at a time.
        progress: show a progress bar on standard error.

    Raises:
        UserError: as `extract`, but that all videos of a part may be of no use; the folder holds parts of another
            job.
    """
    make_own_folder(job.folder, JOB_NAME)
    maker = _PartMaker(job)
    maker.compare()
    pending = [number for number in range(count_parts(job)) if not is_made(job, number)]
    done = count_parts(job) - len(pending)
    with ProgressBar(total=count_parts(job), initial=done, desc="extract", unit="part", disable=not progress) as bar:
        if engine == "ray" and pending:
            finished = run_on_ray(_actor, (job, pending), len(pending), min(actors, len(pending)), job.device == "auto")
            for _ in finished:
                bar.update()
        else:
            for number in pending:
                maker.make(number, progress)
                bar.update()
    return _finish(job)


def count_parts(job: PartsJob) -> int:
    """Return how many parts a job has."""
    return -(-len(job.videos) // job.part_videos)


def part_videos(job: PartsJob, number: int) -> dict[str, Path]:
    """Return the files by id of the videos of a part."""
    ids = list(job.videos)[number * job.part_videos : (number + 1) * job.part_videos]
    return {video_id: job.videos[video_id] for video_id in ids}


def part_path(job: PartsJob, number: int) -> Path:
    """Return the archive of a part."""
    return job.folder / f"part-{number:06d}.h5"


def report_path(job: PartsJob, number: int) -> Path:
    """Return where remarks on the videos of a part are, if there are any."""
    return job.folder / f"part-{number:06d}.json"


def is_made(job: PartsJob, number: int) -> bool:
    """Whether a part is complete: its archive is there, or its report says that it has no usable video."""
    if part_path(job, number).exists():
        return True
    try:
        report = json.loads(report_path(job, number).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(report, dict) and report.get("archive") is False


class _PartMaker:
    """Makes parts of a job with a network that it holds."""

    def __init__(self, job: PartsJob) -> None:
        self._job = job
        self.network = ClipNetwork(find_backbone(job.backbone), job.weights, job.device, job.arithmetic)
        self._decoder = PyAVDecoder(job.decode_on)
        self._ids = hashlib.sha256("\0".join(job.videos).encode()).hexdigest()

    def compare(self) -> None:
        """Find that the folder is of this job, if it has been begun.

        Whether parts are computed on the same device as before is a question for those who compute them.

        Raises:
            UserError: it is of another job.
        """
        described = self._describe()
        del described["device"]
        if (self._job.folder / JOB_NAME).exists():
            _compare(self._job.folder, described)

    def make(self, number: int, progress: bool = False) -> None:
        """Make a part, unless it is there or another process makes it."""
        job = self._job
        _begin_or_compare(job.folder, self._describe())
        if is_made(job, number):
            return
        # One who holds another's claim or finds no usable video leaves no archive; the report says which.
        with suppress(BusyFolder, NoUsableVideo):
            extract(
                part_videos(job, number),
                part_path(job, number),
                self.network,
                self._decoder,
                job.settings,
                progress=progress,
                before_publishing=lambda outcome: _write_report(report_path(job, number), outcome),
            )

    def _describe(self) -> dict[str, Any]:
        job = self._job
        described = {
            "format": JOB_FORMAT,
            "network": self.network.describe(),
            "device": self.network.device.type,
            "decoder": self._decoder.name,
            "clip_stride": job.settings.clip_stride,
            "batch_size": job.settings.batch_size,
            "dtype": job.settings.dtype,
            "on_error": job.settings.on_error,
            "part_videos": job.part_videos,
            "videos": len(job.videos),
            "ids": self._ids,
        }
        as_stored: dict[str, Any] = json.loads(json.dumps(described))
        return as_stored


def _write_report(path: Path, outcome: Outcome) -> None:
    """Write what there is to say of a part, before its archive: a kill between them costs only the archive."""
    if not outcome.skipped and not outcome.remarks:
        path.unlink(missing_ok=True)
        return
    content = {"archive": outcome.kept, "skipped": dict(outcome.skipped), "remarks": dict(outcome.remarks)}
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _actor(job: PartsJob, numbers: Sequence[int]) -> Do:
    maker = _PartMaker(job)
    return lambda task: maker.make(numbers[task])


def _begin_or_compare(folder: Path, described: Mapping[str, Any]) -> None:
    """Write down what the folder is to hold, or find that it holds the same already."""
    if not write_once(folder / JOB_NAME, json.dumps(described, indent=1) + "\n"):
        _compare(folder, described)


def _compare(folder: Path, described: Mapping[str, Any]) -> None:
    path = folder / JOB_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot read what the folder holds ({error})") from error
    for key, value in described.items():
        if not isinstance(found, dict) or found.get(key) != value:
            raise UserError(f"{folder}: holds parts of another extraction, of another {key}; give another folder")


def _left_over(folder: Path) -> list[int]:
    """Return the parts beside which a kill may have left something."""
    kind = re.compile(r"(?:part-(\d{6,})\.h5\.partial|\.part-(\d{6,})\.(?:h5|json)\.[a-z0-9_]{8}\.tmp)")
    found = map(kind.fullmatch, (path.name for path in folder.iterdir()))
    return sorted({int(match[1] or match[2]) for match in found if match})


def _finish(job: PartsJob) -> PartsReport:
    """Write the manifest if all parts are there, and say what they hold."""
    numbers = range(count_parts(job))
    for number in _left_over(job.folder):
        if number in numbers and is_made(job, number):
            remove_leftovers(part_path(job, number), report_path(job, number))
    unfinished = sum(not is_made(job, number) for number in numbers)
    paths = [part_path(job, number) for number in numbers if part_path(job, number).exists()]
    held: set[str] = set()
    for path in paths:
        with open_archive(path) as archive:
            held.update(archive.ids)
    if not unfinished:
        if not paths:
            raise UserError(f"{job.folder}: none of {len(job.videos):,} videos is of use; part-*.json say why")
        with one_at_a_time(job.folder):  # others that come to the end write the same
            for name in (JOB_NAME, MANIFEST_NAME):
                remove_copies(job.folder / name)
            write_manifest(job.folder / MANIFEST_NAME, paths)
    made = [video_id for number in numbers if is_made(job, number) for video_id in part_videos(job, number)]
    missing = tuple(video_id for video_id in made if video_id not in held)
    return PartsReport(job.folder, len(numbers), len(held), missing, unfinished)
