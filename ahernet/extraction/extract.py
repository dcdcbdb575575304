"""Extraction: from videos to an archive of features, that goes on where it was after whatever ended it."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ahernet.data.archive_journal import ArchiveJournal, open_journal
from ahernet.data.archive_writer import Precision
from ahernet.errors import UserError
from ahernet.extraction.clips import clip_count
from ahernet.extraction.decoding import ClipDecoder, FailedVideo
from ahernet.extraction.network import ClipNetwork
from ahernet.extraction.placing import Batch
from ahernet.extraction.video import Decoder, Framing
from ahernet.extraction.video_features import ExtractedVideo, extract_videos
from ahernet.files import file_version
from ahernet.progress import ProgressBar

SHOWN = 10
PROBED = 200  # videos that are asked for their length before the work begins, to estimate how much there is


@dataclass(frozen=True)
class ExtractionSettings:
    """How videos are read and computed.

    Attributes:
        clip_stride: frames from clip to clip.
        batch_size: clips that the network computes at a time. Rounding depends on it, so a run goes on with the same.
        workers: videos that are decoded at a time.
        dtype: what the archive stores.
        on_error: stop at the first video that is of no use, or skip and list them.
    """

    clip_stride: int = 8
    batch_size: int = 8
    workers: int = 4
    dtype: Precision = "float16"
    on_error: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        for name in ("clip_stride", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did.

    Attributes:
        path: the archive.
        videos: in it.
        rows: of features in it.
        dimension: of a row.
        duration: seconds of all videos.
        earlier: videos that an earlier run had finished.
        remarks: by video id, what those that were kept lack.
        skipped: by video id, why those that are not in the archive are of no use.
    """

    path: Path
    videos: int
    rows: int
    dimension: int
    duration: float
    earlier: int
    remarks: Mapping[str, str]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        text = f"{self.path}: {self.videos:,} videos, {self.duration:,.1f} s, {self.rows:,} rows of {self.dimension:,}"
        if self.earlier:
            text += f"; {self.earlier:,} of them from an earlier run"
        for what, lines in (("kept although damaged or incomplete", self.remarks), ("skipped", self.skipped)):
            if lines:
                text += f"\n{what}: {len(lines):,} of {self.videos + len(self.skipped):,} videos"
                text += "".join(f"\n  {video_id!r}: {line}" for video_id, line in list(lines.items())[:SHOWN])
            if len(lines) > SHOWN:
                text += f"\n  ... and {len(lines) - SHOWN:,} more"
        return text


class NoUsableVideo(UserError):
    """None of the videos is of use."""


@dataclass(frozen=True)
class Outcome:
    """What is known of the videos before their archive is there.

    Attributes:
        kept: whether any is of use, so that there will be an archive.
        sources: versions of the files that are there, by video id.
        remarks, skipped: as in `ExtractionReport`.
    """

    kept: bool
    sources: Mapping[str, str]
    remarks: Mapping[str, str]
    skipped: Mapping[str, str]


def extract(
    videos: Mapping[str, Path],
    out: Path,
    network: ClipNetwork,
    decoder: Decoder,
    settings: ExtractionSettings | None = None,
    *,
    progress: bool = True,
    before_publishing: Callable[[Outcome], None] = lambda outcome: None,
) -> ExtractionReport:
    """Extract the features of videos into the archive `out`, in the order given.

    Finished videos are kept in a folder `<out>.partial` (see `ahernet.data.archive_journal`) until all are there. The
    same call after a kill goes on there, and ends with the bytes that an undisturbed run ends with.

    Args:
        videos: files by video id, at least one.
        out: archive to write; its folder must exist.
        network: computes the features.
        decoder: opens the files.
        settings: how the work is done.
        progress: show a progress bar on standard error.
        before_publishing: called when all videos are done, before the archive gets its name and while no other
            process can make it, also where no video is of use.

    Raises:
        UserError: a video is of no use (with "stop") or all are, another process makes the same archive, a partial
            one was begun with other settings, or the disk is full.
    """
    settings = settings or ExtractionSettings()
    if not videos:
        raise UserError("extract: no video given, expected at least one")
    decode = ClipDecoder(
        decoder,
        Framing(network.backbone.preprocessing.resize, network.backbone.preprocessing.side),
        network.backbone.clip_length,
        settings.clip_stride,
    )
    origin = {"ahernet extract": {**network.describe(), "clip_stride": settings.clip_stride, "decoder": decoder.name}}
    computed = {"batch_size": settings.batch_size, **network.describe_device()}
    skipped: dict[str, str] = {}
    with open_journal(
        out,
        dimension=network.backbone.dimension,
        dtype=settings.dtype,
        settings={**origin["ahernet extract"], **computed},
    ) as journal:
        sources = _sources(videos, skipped, settings.on_error)
        todo = {key: videos[key] for key, source in sources.items() if not journal.has(key, source)}
        # Closed at once also after an error: the message must not end up on the line of the progress bar.
        with _kept_for_later(journal), _progress(todo, decode, progress) as shown:
            found = extract_videos(
                todo.items(), network, decode, settings.batch_size, settings.workers, shown.note_batch
            )
            with closing(found):
                for video in found:
                    _keep(video, journal, sources, videos, skipped, settings.on_error)
                    shown.note_end(video)
        kept = [video_id for video_id in videos if video_id not in skipped]
        finished = [journal.finished[video_id] for video_id in kept]
        outcome = Outcome(
            bool(kept),
            sources,
            {video.id: "; ".join(video.remarks) for video in finished if video.remarks},
            {video_id: skipped[video_id] for video_id in videos if video_id in skipped},
        )
        before_publishing(outcome)
        if not kept:
            first, reason = next(iter(outcome.skipped.items()))
            message = f"extract: none of {len(videos):,} videos is of use; {videos[first]}: {reason}"
            raise NoUsableVideo(message)
        journal.publish(kept, clip_stride=settings.clip_stride, origin=json.dumps(origin, ensure_ascii=False))
    return ExtractionReport(
        out,
        len(kept),
        sum(video.rows for video in finished),
        network.backbone.dimension,
        math.fsum(video.duration for video in finished),
        len(sources) - len(todo),
        outcome.remarks,
        outcome.skipped,
    )


def _sources(videos: Mapping[str, Path], skipped: dict[str, str], on_error: Literal["stop", "skip"]) -> dict[str, str]:
    """Return the versions of the files that are there; note in `skipped` those that are not, or stop."""
    sources: dict[str, str] = {}
    for video_id, path in videos.items():
        try:
            sources[video_id] = file_version(path)
        except UserError as error:
            if on_error == "stop":
                raise
            skipped[video_id] = str(error).removeprefix(f"{path}: ")
    return sources


def _keep(
    video: ExtractedVideo | FailedVideo,
    journal: ArchiveJournal,
    sources: Mapping[str, str],
    videos: Mapping[str, Path],
    skipped: dict[str, str],
    on_error: Literal["stop", "skip"],
) -> None:
    """Keep a finished video in the journal, or deal with one that is of no use as the user wants it."""
    if isinstance(video, FailedVideo):
        reason = video.reason
    else:
        broken = np.flatnonzero(~np.isfinite(video.features).all(axis=1))
        if not len(broken):
            journal.add(video.video_id, video.features, video.duration, sources[video.video_id], video.remarks)
            return
        reason = f"the network gives NaN or infinite features, first in row {broken[0]}"
    if on_error == "stop":
        kept = f"; {len(journal.finished):,} finished videos are kept for the next run" if journal.finished else ""
        raise UserError(f"{videos[video.video_id]}: {reason} (--on-error skip leaves such videos out{kept})")
    skipped[video.video_id] = reason


@contextmanager
def _kept_for_later(journal: ArchiveJournal) -> Iterator[None]:
    """Say to one who interrupts what the next run finds."""
    try:
        yield
    except KeyboardInterrupt as error:
        kept = f"{len(journal.finished):,} finished videos are kept, the same command goes on"
        raise KeyboardInterrupt(kept) from error


class _Shown:
    """A bar of clips as they are computed, and how many there are by what files say of themselves."""

    def __init__(self, bar: ProgressBar, expected: Mapping[str, float]) -> None:
        self._bar, self._expected, self._total = bar, expected, sum(expected.values())
        self._computed: Counter[str] = Counter()
        self._ended = 0

    def note_batch(self, batch: Batch) -> None:
        """Count the clips of a batch."""
        ids = [clip.video_id for clip in batch.places if clip is not None]
        self._computed.update(ids)
        self._bar.update(len(ids))

    def note_end(self, video: ExtractedVideo | FailedVideo) -> None:
        """Put how many clips a video had in the place of how many were expected."""
        self._ended += 1
        self._total += self._computed[video.video_id] - self._expected[video.video_id]
        self._bar.total = round(self._total)
        self._bar.set_postfix_str(f"{self._ended:,}/{len(self._expected):,} videos")


@contextmanager
def _progress(videos: Mapping[str, Path], decode: ClipDecoder, shown: bool) -> Iterator[_Shown]:
    expected = _expected_clips(videos, decode) if shown and videos else dict.fromkeys(videos, 0.0)
    total, disable = round(sum(expected.values())), not (shown and videos)
    with ProgressBar(desc="extract", unit="clip", total=total, disable=disable) as bar:
        yield _Shown(bar, expected)


def _expected_clips(videos: Mapping[str, Path], decode: ClipDecoder) -> dict[str, float]:
    """Return how many clips each video has: by its header, or the mean of others where there are many."""
    expected: dict[str, float] = {}
    for video_id in list(videos)[:: max(1, len(videos) // PROBED)]:
        expected[video_id] = 0
        with suppress(UserError), decode.decoder.open(videos[video_id], decode.framing) as video:
            frames = video.declared_frames or video.declared_duration * video.declared_rate
            if not math.isnan(frames):
                expected[video_id] = clip_count(round(frames), decode.clip_length, decode.stride)
    mean = sum(expected.values()) / len(expected)
    return {video_id: expected.get(video_id, mean) for video_id in videos}
