"""What a run will take, from a few iterations of each of its phases on its own data; nothing is kept."""

import io
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch

from ahernet.config import Config, with_feature_dimension
from ahernet.data.annotations import Annotations
from ahernet.data.archive import FeatureArchive
from ahernet.prefetch import read_ahead
from ahernet.training.captured_steps import EAGER
from ahernet.training.iteration_batches import Phase, phase_ranges
from ahernet.training.loss_log import log_line
from ahernet.training.ranks import join_ranks
from ahernet.training.trainer import computing_on, read_batch, read_losses, total_iterations, train_within_memory
from ahernet.training.training_data import TrainingData, select_training_data
from ahernet.training.training_state import Run, new_run, write_state

WARM_UP = 2  # iterations of a phase that are not timed: memory is reserved, kernels are compiled
TIMED = 8
PATIENCE = 20.0  # seconds after which a phase is not tried any longer
READ = 16  # iterations that are only read


@dataclass(frozen=True)
class PhaseEstimate:
    """One phase: its iterations in a whole run, and what was found of `tried` of them.

    Attributes:
        phase: which one.
        iterations: of a run.
        tried: how many were timed.
        seconds: of one, reading included.
        log_bytes: of one in the loss log.
    """

    phase: Phase
    iterations: int
    tried: int
    seconds: float
    log_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        data: what is used and what is left out, in words.
        batch_size: videos, or moments, of an iteration.
        processes: that train together.
        device: of this process.
        phases: in order.
        memory_bytes: most that this process has had in memory so far.
        gpu_bytes: most that its tensors have had on the GPU, None without one.
        checkpoint_bytes: of the trained network.
        state_bytes: of what a run needs to be resumed.
        free_bytes: of the disk that the run would be on.
        read_bytes: of the features of an iteration of the last phase, in this process.
        read_rate: bytes of features in a second, read without computing.
    """

    data: str
    batch_size: int
    processes: int
    device: str
    phases: tuple[PhaseEstimate, ...]
    memory_bytes: int
    gpu_bytes: int | None
    checkpoint_bytes: int
    state_bytes: int
    free_bytes: int
    read_bytes: int
    read_rate: float

    @property
    def iterations(self) -> int:
        """Iterations of a whole run."""
        return sum(phase.iterations for phase in self.phases)

    @property
    def seconds(self) -> float:
        """Seconds of a whole run, without start and checkpoints."""
        return sum(phase.iterations * phase.seconds for phase in self.phases)

    @property
    def log_bytes(self) -> int:
        """Bytes of the loss log of a whole run."""
        return sum(phase.iterations * phase.log_bytes for phase in self.phases)

    def describe(self) -> str:
        """Return a table of several lines."""
        kept = self.checkpoint_bytes + self.state_bytes + self.log_bytes
        last = self.phases[-1]
        gpu = "" if self.gpu_bytes is None else f", {_size(self.gpu_bytes)} of tensors on the GPU"
        rows = [
            *((item.phase, item.iterations, item.seconds) for item in self.phases),
            ("all", self.iterations, self.seconds / self.iterations),
        ]
        lines = [
            *self.data.splitlines(),
            f"{self.processes} x {self.device}, {self.batch_size:,} videos an iteration; "
            f"timed {', '.join(f'{item.tried} of {item.phase}' for item in self.phases)}",
            "",
            f"{'phase':<11}{'iterations':>12}{'seconds each':>14}{'in all':>14}",
            *(f"{name:<11}{count:>12,}{each:>14.4f}{_time(count * each):>14}" for name, count, each in rows),
            "",
            f"memory     {_size(self.memory_bytes)} a process at the peak so far{gpu}",
            f"disk       {_size(kept)}: checkpoint {_size(self.checkpoint_bytes)}, training state "
            f"{_size(self.state_bytes)}, loss log {_size(self.log_bytes)}; "
            f"{_size(kept + max(self.checkpoint_bytes, self.state_bytes))} while one replaces the last; "
            f"{_size(self.free_bytes)} free",
            f"reading    {_size(self.read_bytes)} an iteration of {last.phase} a process, {_size(self.read_rate)}/s "
            f"where nothing else is done, {_size(self.read_bytes / last.seconds)}/s needed",
        ]
        return "\n".join(lines)


def dry_run(
    archive: FeatureArchive,
    annotations: Annotations,
    out_folder: Path,
    config: Config,
    *,
    subset: str | None = None,
    classes: Sequence[str] | None = None,
    moments: FeatureArchive | None = None,
    moment_labels: Mapping[str, str] | None = None,
    device: str = "auto",
) -> Estimate:
    """Try a few iterations of every phase of a run from its start; the arguments are those of `train`.

    Nothing is written; `out_folder` says whose disk counts and need not exist. Memory can grow beyond the estimate
    with longer videos than those that were read.

    Raises:
        UserError: as `train`, but whatever is in `out_folder`.
    """
    with join_ranks(device) as (ranks, where):
        with ranks.together():
            config = with_feature_dimension(config, archive.dimension, str(archive.path))
            ranks.part(config.training.batch_size)
            data = select_training_data(archive, annotations.select(subset), classes, moments, moment_labels, config)
        with computing_on(where, config):
            run = new_run(config, data, where, ranks)
            phases = tuple(_try_phase(run, data, where, *planned) for planned in phase_ranges(config).items())
            read_bytes, read_rate = _try_reading(run, data)
            state = _Counted()
            write_state(cast(IO[bytes], state), run, data)
        folder = out_folder.absolute()
        return Estimate(
            data.describe(),
            config.training.batch_size,
            ranks.count,
            str(where),
            phases,
            _peak_memory(),
            torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None,
            sum(tensor.nbytes for tensor in run.best_localizer().state_dict().values()),
            state.count,
            shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free,
            read_bytes,
            read_rate,
        )


class _Counted(io.RawIOBase):
    """A file that forgets what is written and knows how much it was."""

    count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        self.count += size
        return size


def _try_phase(run: Run, data: TrainingData, device: torch.device, phase: Phase, planned: range) -> PhaseEstimate:
    before = WARM_UP if run.captured is None else EAGER + 1  # until it is captured
    tried = planned[: before + TIMED]
    warm_up = min(before, len(tried) - 1)
    unread: list[dict[str, torch.Tensor]] = []
    began = start = time.monotonic()
    read = partial(read_batch, run, data, device)
    with read_ahead(read, tried) as batches:
        while len(unread) < len(tried):
            if len(unread) == warm_up:
                _wait(device)
                start = time.monotonic()
            with run.ranks.together():
                iteration, parts = next(batches)
            unread.append(train_within_memory(run, parts, iteration, read))
            if len(unread) > warm_up and run.ranks.any(time.monotonic() - began > PATIENCE):
                break
        _wait(device)
        seconds = time.monotonic() - start
    lines = [log_line(entry) for entry in read_losses(unread, run, data)]
    timed = len(unread) - warm_up
    return PhaseEstimate(phase, len(planned), timed, seconds / timed, sum(map(len, lines)) // len(lines))


def _try_reading(run: Run, data: TrainingData) -> tuple[int, float]:
    """Read the last iterations of a run: bytes of one, and bytes in a second."""
    end = total_iterations(run.config)
    start = time.monotonic()
    batches = [read_batch(run, data, torch.device("cpu"), iteration) for iteration in range(max(0, end - READ), end)]
    seconds = time.monotonic() - start
    parts = [part for batch in batches for own in batch for part in (own.untrimmed, own.moments, own.neighbours)]
    count = sum(part.rows.nbytes for part in parts if part is not None)
    return count // len(batches), count / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _size(count: float) -> str:
    """Return bytes in the largest unit of which there is at least one."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:  # what three digits can write
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def _time(seconds: float) -> str:
    """Return a duration in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
