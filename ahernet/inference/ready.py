"""A network made ready for inference: from rows of an archive to detections in seconds, batch by batch."""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahernet.checkpoint import Checkpoint
from ahernet.config import InferenceConfig
from ahernet.data.archive import FeatureArchive
from ahernet.data.detections import Detections
from ahernet.device import choose_device, launches_on
from ahernet.errors import UserError, is_out_of_memory
from ahernet.event_log import warn
from ahernet.inference.anchors import AnchorStep
from ahernet.inference.crops import CropStep
from ahernet.inference.graphs import CapturedStep
from ahernet.inference.snippets import SnippetStep
from ahernet.inference.step import Candidates, Found, Step
from ahernet.inference.windows import (
    Windows,
    batches_of,
    best_of_each,
    in_video_time,
    merge,
    split_into_windows,
    windows_together,
)
from ahernet.model.localizer import Localizer
from ahernet.prefetch import read_ahead
from ahernet.progress import ProgressBar
from ahernet.video_time import unit_to_seconds

NAMED = 5
# Rows of a batch, unless one video has more: 1 GiB of 2,048 values in float16.
MOST_ROWS = 1 << 18
MOST_WINDOWS = 1 << 16  # of a video: 900 hours in windows of 100 s
MOST_SOFT_PAIRS = 1 << 36  # soft suppression compares each candidate of a video with all: some minutes
MOST_OF_A_WINDOW = 1 << 10  # candidates that are reckoned with; a network has hardly more anchors

OnError = Literal["stop", "skip"]

STEPS: dict[str, Callable[[Localizer, InferenceConfig, Tensor | None], Step]] = {
    "anchors": AnchorStep,
    "crops": CropStep,
    "snippets": SnippetStep,
}


def inference_step(model: Localizer, config: InferenceConfig, class_rows: Tensor | None = None) -> Step:
    """Return the step that finds what `config.candidates` names; arguments as `Step` says."""
    return STEPS[config.candidates](model, config, class_rows)


@dataclass(frozen=True)
class _Columns:
    """Detections of some videos as parallel columns, like `Detections`."""

    video: NDArray[np.int64]
    label: NDArray[np.int64]
    segments: NDArray[np.float64]
    scores: NDArray[np.float64]


class ReadyLocalizer:
    """A network on its device, ready to localize in the videos of any archive of its features.

    Args:
        checkpoint, config, classes, minimum_scores, device: as `localize` says.

    Raises:
        UserError: a class is unknown or named twice, or there is no such device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: InferenceConfig | None = None,
        *,
        classes: Sequence[str] | None = None,
        minimum_scores: Mapping[str, float] | None = None,
        device: str = "auto",
    ) -> None:
        self.checkpoint = checkpoint
        self.config = config or checkpoint.config.inference
        self.classes = checkpoint.classes if classes is None else tuple(classes)
        self._minimum_scores = _minimum_scores(self.classes, minimum_scores or {})
        class_rows = None if classes is None else _class_rows(checkpoint, classes)
        self._device = choose_device(device)
        self._step = inference_step(checkpoint.model, self.config, class_rows).to(self._device).eval()
        self._use_batches_of(self.config.batch_size)

    def check_dimension(self, archive: FeatureArchive) -> None:
        """Refuse features that the network does not take.

        Raises:
            UserError: another dimension.
        """
        wanted = self.checkpoint.config.model.feature_dimension
        if archive.dimension != wanted:
            raise UserError(
                f"{archive.path}: features have {archive.dimension} values a row, "
                f"the network in {self.checkpoint.source} expects {wanted}"
            )

    def localize(
        self,
        archive: FeatureArchive,
        positions: NDArray[np.int64],
        durations: Mapping[str, float],
        on_error: OnError,
        bar: ProgressBar,
    ) -> tuple[Detections, dict[str, str]]:
        """Localize in some videos of an archive.

        Args:
            archive: features of the network's dimension.
            positions: (V,) places of the videos in it, all different.
            durations: as `localize` says.
            on_error: as `localize` says.
            bar: counts the videos.

        Returns:
            Detections by video, best first, and what is wrong with each video that was left out.

        Raises:
            UserError: with "stop": as `localize` says.
        """
        if self._batch_size != self.config.batch_size:  # memory was short for other videos
            self._use_batches_of(self.config.batch_size)
        seconds = _durations(archive, positions, durations, on_error)
        skipped = {archive.ids[position]: "unknown duration" for position in positions[np.isnan(seconds)]}
        skipped |= _too_long(archive, positions, seconds, self.config, on_error)
        bar.update(len(skipped))
        usable = np.array([archive.ids[position] not in skipped for position in positions], bool)
        positions, seconds = positions[usable], seconds[usable]
        is_long = (seconds > self.config.window) if self.config.window else np.zeros(len(positions), bool)
        parts, broken = [], []
        with torch.inference_mode(), launches_on(self._device):
            for members, localize_in in ((~is_long, self._whole), (is_long, self._windowed)):
                numbers = np.flatnonzero(members)
                for some, found in localize_in(archive, positions[numbers], seconds[numbers]):
                    here = numbers[some]
                    bad = here[~found.finite.numpy()]
                    if len(bad) and on_error == "stop":
                        names = ", ".join(repr(archive.ids[position]) for position in positions[bad])
                        raise UserError(f"{archive.path}: features that are not finite in {names}")
                    broken.append(bad)
                    parts.append(self._pack(found, here, seconds[here]))
                    bar.update(len(here))
                    _show_rate(bar, float(seconds[here].sum()))
        bad = np.concatenate([*broken, np.empty(0, np.int64)])
        skipped |= {archive.ids[position]: "features that are not finite" for position in positions[bad]}
        good = np.setdiff1d(np.arange(len(positions)), bad)
        return _joined(parts, tuple(archive.ids[position] for position in positions[good]), self.classes, good), skipped

    def _whole(
        self, archive: FeatureArchive, positions: NDArray[np.int64], seconds: NDArray[np.float64]
    ) -> Iterator[tuple[slice, Found]]:
        """Localize in videos that go through the network whole; yield which, and what was found in them."""

        def read(batch: slice) -> tuple[Tensor, Tensor]:
            here = positions[batch]
            return self._read(archive, here, np.zeros(len(here), np.int64), archive.lengths[here])

        done = 0
        while done < len(positions):
            batches = list(_batches(archive.lengths[positions], done, self._batch_size))
            try:
                with read_ahead(read, batches) as read_batches:
                    for batch, found in self._localize_batches(read_batches):
                        done = batch.stop
                        yield batch, found
            except (MemoryError, RuntimeError) as error:
                self._halve_batches(error)

    def _windowed(
        self, archive: FeatureArchive, positions: NDArray[np.int64], seconds: NDArray[np.float64]
    ) -> Iterator[tuple[slice, Found]]:
        """Localize in long videos, a few at a time; yield which, and what was found in them."""
        config, lengths = self.config, archive.lengths[positions]
        for first, last in windows_together(lengths, seconds, config):
            here, rows = positions[first:last], lengths[first:last]
            windows = split_into_windows(rows, seconds[first:last], config.window, config.window_overlap)

            def read(batch: slice, here: NDArray[np.int64] = here, windows: Windows = windows) -> tuple[Tensor, Tensor]:
                return self._read(archive, here[windows.video[batch]], windows.first[batch], windows.last[batch])

            parts: list[Candidates] = []
            while not parts:
                try:
                    with read_ahead(read, batches_of(windows, self._batch_size)) as batches:
                        for batch, (window_rows, offsets) in batches:
                            found = self._step.candidates(window_rows.to(self._device), offsets.to(self._device))
                            parts.append(best_of_each(in_video_time(found, windows, batch, rows), config.top_k_before))
                except (MemoryError, RuntimeError) as error:
                    parts.clear()
                    self._halve_batches(error)
            candidates = Candidates(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
            for some, merged in merge(candidates, windows.counts, config):
                yield slice(first + some.start, first + some.stop), Found(*(x.cpu() for x in merged))

    def _read(
        self, archive: FeatureArchive, positions: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Read rows of videos, for a GPU straight into pinned memory."""
        pinned: list[Tensor] = []

        def allocate(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
            kind = torch.float16 if dtype.itemsize == 2 else torch.float32
            pinned.append(torch.empty(shape, dtype=kind, pin_memory=self._device.type == "cuda"))
            memory: NDArray[Any] = pinned[0].numpy()
            return memory

        _, offsets = archive.read_spans(positions, first, last, allocate)
        return pinned[0], torch.from_numpy(offsets)

    def _use_batches_of(self, size: int) -> None:
        """Localize in batches of a size from now on: as a CUDA graph on a GPU, as it is on a CPU."""
        self._batch_size = size
        graph = None if self._device.type == "cpu" else CapturedStep(self._step, size, self._device)
        self._localize_batches = self._in_turn if graph is None else graph.localize

    def _halve_batches(self, error: Exception) -> None:
        """Go on with smaller batches after a lack of memory; raise any other error again."""
        if not is_out_of_memory(error) or self._batch_size == 1:
            raise error
        self._use_batches_of(self._batch_size // 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        warn(f"localize: out of memory, goes on with batches of {self._batch_size:,} videos")

    def _in_turn(self, batches: Iterable[tuple[slice, tuple[Tensor, Tensor]]]) -> Iterator[tuple[slice, Found]]:
        return ((batch, self._step(rows, offsets)) for batch, (rows, offsets) in batches)

    def _pack(self, found: Found, videos: NDArray[np.int64], durations: NDArray[np.float64]) -> _Columns:
        """Drop the padding and what is below the minimum of its class or not finite, and go over to seconds."""
        counts = found.counts.where(found.finite, 0).numpy()
        kept = np.arange(found.scores.shape[1]) < counts[:, None]
        labels, scores = found.labels.numpy(), found.scores.numpy()
        kept[kept] = scores[kept] > self._minimum_scores[labels[kept]]
        return _Columns(
            videos[np.nonzero(kept)[0]],
            labels[kept],
            unit_to_seconds(found.segments.numpy(), durations[:, None])[kept],
            scores[kept].astype(np.float64),
        )


def _batches(lengths: NDArray[np.int64], first: int, size: int) -> Iterator[slice]:
    """Divide videos from the first on into batches of at most `size`, and of at most `MOST_ROWS` unless of one."""
    ends = np.cumsum(lengths)
    while first < len(lengths):
        before = ends[first] - lengths[first]
        fitting = int(np.searchsorted(ends, before + MOST_ROWS, side="right"))
        last = min(first + size, max(fitting, first + 1), len(lengths))
        yield slice(first, last)
        first = last


def _show_rate(bar: ProgressBar, seconds: float) -> None:
    """Show how many hours of video a second are localized."""
    bar.hours = getattr(bar, "hours", 0.0) + seconds / 3600
    elapsed = bar.format_dict["elapsed"]
    bar.set_postfix_str(f"{bar.hours / elapsed:,.1f} hours of video/s" if elapsed else "", refresh=False)


def _too_long(
    archive: FeatureArchive,
    positions: NDArray[np.int64],
    seconds: NDArray[np.float64],
    config: InferenceConfig,
    on_error: OnError,
) -> dict[str, str]:
    """Return what is wrong with videos of so many windows that their candidates would fill the memory."""
    if not config.window:
        return {}
    long = np.flatnonzero(seconds > config.window)
    lengths = archive.lengths[positions[long]]
    counts = split_into_windows(lengths, seconds[long], config.window, config.window_overlap).counts
    most = MOST_WINDOWS
    if config.suppression != "hard":
        most = min(most, math.isqrt(MOST_SOFT_PAIRS) // min(config.top_k, MOST_OF_A_WINDOW))
    wrong = {
        archive.ids[positions[k]]: f"{seconds[k]:g} s are {count:,} windows of {config.window:g} s, at most {most:,}"
        for k, count in zip(long.tolist(), counts.tolist(), strict=True)
        if count > most
    }
    if wrong and on_error == "stop":
        video_id, reason = next(iter(wrong.items()))
        raise UserError(f"{archive.path}: {video_id!r}: {reason}; give a longer window, or see to its duration")
    return wrong


def _joined(
    parts: Sequence[_Columns], video_ids: tuple[str, ...], classes: tuple[str, ...], good: NDArray[np.int64]
) -> Detections:
    """Put the detections of all parts in the order of the videos; `good` are the numbers of those in `video_ids`."""
    video = np.concatenate([part.video for part in parts] or [np.empty(0, np.int64)])
    order = np.argsort(video, kind="stable")
    return Detections(
        video_ids,
        classes,
        video=np.searchsorted(good, video[order]).astype(np.int64),
        label=np.concatenate([part.label for part in parts] or [np.empty(0, np.int64)])[order],
        segments=np.concatenate([part.segments for part in parts] or [np.empty((0, 2))])[order],
        scores=np.concatenate([part.scores for part in parts] or [np.empty(0)])[order],
    )


def _minimum_scores(classes: Sequence[str], given: Mapping[str, float]) -> NDArray[np.float64]:
    """Return (C,) the minimum score of every class, -inf where none is given."""
    unknown = [name for name in given if name not in classes]
    if unknown:
        close = difflib.get_close_matches(unknown[0], classes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "expected one of these"
        raise UserError(
            f"thresholds: {unknown[0]!r} is none of the {len(classes):,} classes that are localized, {hint}"
        )
    return np.array([given.get(name, -np.inf) for name in classes], np.float64)


def _class_rows(checkpoint: Checkpoint, classes: Sequence[str]) -> Tensor:
    """Return the rows of the named classes in the checkpoint's weights."""
    rows = {name: row for row, name in enumerate(checkpoint.classes)}
    for name in classes:
        if name not in rows:
            close = difflib.get_close_matches(name, checkpoint.classes, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else f"; it has {', '.join(checkpoint.classes):.200}"
            raise UserError(f"classes: the network in {checkpoint.source} has no class {name!r}{hint}")
    if not classes:
        raise UserError("classes: no class to localize, expected at least one")
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise UserError(f"classes: {repeated[0]!r} occurs twice")
    return torch.tensor([rows[name] for name in classes])


def _durations(
    archive: FeatureArchive, positions: NDArray[np.int64], known: Mapping[str, float], on_error: OnError
) -> NDArray[np.float64]:
    """Return the seconds of the videos at `positions`: the archive's, else those in `known`, else NaN if allowed."""
    seconds = archive.durations[positions]
    given = np.array([known.get(archive.ids[position], np.nan) for position in positions])
    seconds = np.where(seconds > 0, seconds, given)
    seconds = np.where(seconds > 0, seconds, np.nan)
    without = positions[np.isnan(seconds)]
    if len(without) and on_error == "stop":
        names = [repr(archive.ids[position]) for position in without[:NAMED]]
        more = f" and {len(without) - NAMED:,} more" if len(without) > NAMED else ""
        raise UserError(
            f"{archive.path}: the duration is unknown of {', '.join(names)}{more}; give annotations that have it, "
            f"or import with --annotations or --frame-rate and --clip-stride"
        )
    return seconds
