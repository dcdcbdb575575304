"""Extraction of very many videos into a folder of archives: parts of some hundred videos, made by one process or many.

    extraction.json     which videos, how, and which parts there are
    part-000000.h5      a part: a feature archive, complete when it has its name
    part-000000.json    written before it: of which versions of the files it is, why videos are missing from it, what
                        others lack, and whether any is left
    manifest.json       makes the parts readable as one archive; written when all are there

A part is made as any archive is (`ahernet.extraction.extract`), so that whatever is killed goes on where it was, and
ends with the same bytes whoever computes it. Videos that are of no use are missing from their part, which its report
names; a part without usable videos has no archive. A part whose files have changed since is made again.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ahernet.data.archive import open_archive
from ahernet.data.archive_journal import remove_leftovers
from ahernet.data.archive_set import MANIFEST_NAME, write_manifest
from ahernet.data.bounded_read import parse_json
from ahernet.errors import UserError
from ahernet.event_log import inform
from ahernet.extraction.backbones import find_backbone
from ahernet.extraction.extract import ExtractionSettings, NoUsableVideo, Outcome, extract
from ahernet.extraction.network import Arithmetic, ClipNetwork
from ahernet.extraction.pyav_decoder import PyAVDecoder
from ahernet.files import (
    BusyFolder,
    file_version,
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
WAIT_SECONDS = 1.0  # between two looks at parts that other processes make
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
        incomplete: ids of videos that are kept although damaged or incomplete.
        unfinished: parts that another process is making, or whose files changed while they were read.
    """

    folder: Path
    parts: int
    videos: int
    missing: tuple[str, ...]
    incomplete: tuple[str, ...]
    unfinished: int

    def __str__(self) -> str:
        there = f"{self.parts - self.unfinished:,} of " if self.unfinished else ""
        text = f"{self.folder}: {self.videos:,} videos in {there}{self.parts:,} archives"
        if self.incomplete:
            text += f"\nkept {len(self.incomplete):,} videos although damaged or incomplete, "
            text += f"as {self.incomplete[0]!r}; part-*.json say what they lack"
        if self.missing:
            text += f"\nskipped {len(self.missing):,} videos, as {self.missing[0]!r}; part-*.json say why"
        if self.unfinished:
            text += f"\n{self.unfinished:,} archives are being made by other processes, or of files that change"
        return text


def extract_parts(job: PartsJob, *, engine: Engine = "local", actors: int = 1, progress: bool = True) -> PartsReport:
    """Extract the features of videos into a folder of archives; parts that are there are kept.

    This process waits for parts that others make, and makes them should these die.

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
    changed = [number for number in pending if part_path(job, number).exists()]
    if changed:
        inform(f"{job.folder}: {len(changed):,} parts are made again, because files of theirs have changed since")
    with ProgressBar(total=count_parts(job), initial=done, desc="extract", unit="part", disable=not progress) as bar:
        if engine == "ray" and pending:
            finished = run_on_ray(_actor, (job, pending), len(pending), min(actors, len(pending)), job.device)
            for _ in finished:
                bar.update()
        else:
            while pending:
                held = []
                for number in pending:
                    if maker.make(number, progress):
                        bar.update()
                    else:
                        held.append(number)
                if held:
                    time.sleep(WAIT_SECONDS)
                pending = held
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
    """Return where it is said what a part is made of and what it lacks."""
    return job.folder / f"part-{number:06d}.json"


def is_made(job: PartsJob, number: int) -> bool:
    """Whether a part is complete, and of the files as they are now.

    Its archive is there, or its report says that it has no usable video. Parts of former versions may have no report,
    or one that does not name their files: these are taken as they are.
    """
    report = _read_report(job, number)
    sources = report.get("sources")
    if sources is not None and sources != _versions(part_videos(job, number)):
        return False
    return part_path(job, number).exists() or report.get("archive") is False


def _read_report(job: PartsJob, number: int) -> dict[str, Any]:
    """Return what is said of a part, nothing if nothing readable is."""
    try:
        report = parse_json(report_path(job, number).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


def _versions(videos: Mapping[str, Path]) -> dict[str, str]:
    """Return the versions of the files that are there."""
    versions = {}
    for video_id, path in videos.items():
        with suppress(UserError):
            versions[video_id] = file_version(path)
    return versions


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
        for name in self.network.describe_device():
            del described[name]
        if (self._job.folder / JOB_NAME).exists():
            _compare(self._job.folder, described)

    def make(self, number: int, progress: bool = False) -> bool:
        """Make a part, unless it is there; return False if another process is making it."""
        job = self._job
        _begin_or_compare(job.folder, self._describe())
        if is_made(job, number):
            return True
        try:
            extract(
                part_videos(job, number),
                part_path(job, number),
                self.network,
                self._decoder,
                job.settings,
                progress=progress,
                before_publishing=lambda outcome: _write_report(job, number, outcome),
            )
        except BusyFolder:
            return False
        except NoUsableVideo:  # its report says so
            pass
        return True

    def _describe(self) -> dict[str, Any]:
        job = self._job
        described = {
            "format": JOB_FORMAT,
            "network": self.network.describe(),
            **self.network.describe_device(),
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


def _write_report(job: PartsJob, number: int, outcome: Outcome) -> None:
    """Write what there is to say of a part, before its archive: a kill between them costs only the archive."""
    part_path(job, number).unlink(missing_ok=True)  # of other files, which the report is not about
    content = {
        "archive": outcome.kept,
        "sources": dict(outcome.sources),
        "skipped": dict(outcome.skipped),
        "remarks": dict(outcome.remarks),
    }
    with replace_when_complete(report_path(job, number)) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _actor(job: PartsJob, numbers: Sequence[int]) -> Do:
    maker = _PartMaker(job)

    def make(task: int) -> None:
        maker.make(numbers[task])

    return make


def _begin_or_compare(folder: Path, described: Mapping[str, Any]) -> None:
    """Write down what the folder is to hold, or find that it holds the same already."""
    if not write_once(folder / JOB_NAME, json.dumps(described, indent=1) + "\n"):
        _compare(folder, described)


def _compare(folder: Path, described: Mapping[str, Any]) -> None:
    path = folder / JOB_NAME
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot read what the folder holds ({error})") from error
    for key, value in described.items():
        before = found.get(key) if isinstance(found, dict) else None
        if before != value:
            was = f"{before!r:.80} instead of {value!r:.80}" if key != "ids" else "other names"
            raise UserError(
                f"{folder}: holds parts of another extraction, with {key} {was}; give the same, or another folder"
            )


def _left_over(folder: Path) -> list[int]:
    """Return the parts beside which a kill may have left something."""
    kind = re.compile(r"(?:part-(\d{6,})\.h5\.partial|\.part-(\d{6,})\.(?:h5|json)\.[a-z0-9_]{8}\.tmp)")
    found = map(kind.fullmatch, (path.name for path in folder.iterdir()))
    return sorted({int(match[1] or match[2]) for match in found if match})


def _finish(job: PartsJob) -> PartsReport:
    """Write the manifest if all parts are there, and say what they hold."""
    numbers = range(count_parts(job))
    made = [number for number in numbers if is_made(job, number)]
    for number in set(_left_over(job.folder)) & set(made):
        remove_leftovers(part_path(job, number), report_path(job, number))
    paths = [part_path(job, number) for number in made if part_path(job, number).exists()]
    held: set[str] = set()
    for path in paths:
        with open_archive(path) as archive:
            held.update(archive.ids)
    if len(made) == len(numbers):
        if not paths:
            raise UserError(f"{job.folder}: none of {len(job.videos):,} videos is of use; part-*.json say why")
        with one_at_a_time(job.folder):  # others that come to the end write the same
            for name in (JOB_NAME, MANIFEST_NAME):
                remove_copies(job.folder / name)
            write_manifest(job.folder / MANIFEST_NAME, paths)
    missing = [video_id for number in made for video_id in part_videos(job, number) if video_id not in held]
    incomplete = [video_id for number in made for video_id in _read_report(job, number).get("remarks", ())]
    return PartsReport(job.folder, len(numbers), len(held), tuple(missing), tuple(incomplete), len(numbers) - len(made))
