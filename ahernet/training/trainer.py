"""Training of every run that the paper compares: one loop, whose steps the configuration chooses.

A run is a folder: the checkpoint, the training state to go on from, the loss log and its picture. Batch k is
a pure function of the seed and k, and nothing else is random, so a resumed run repeats an uninterrupted one.
"""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import torch

from ahernet.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, save_checkpoint
from ahernet.config import Config, config_to_dict, with_feature_dimension
from ahernet.data.annotations import Annotations
from ahernet.data.archive import FeatureArchive
from ahernet.data.class_names import warn_of_look_alikes
from ahernet.device import cpu_threads, launches_on
from ahernet.errors import UserError, is_out_of_memory
from ahernet.event_log import inform, warn
from ahernet.files import claim_folder, make_folder
from ahernet.prefetch import read_ahead
from ahernet.progress import ProgressBar
from ahernet.training.iteration_batches import IterationBatch, first_main_iteration, phase_of, read_iteration
from ahernet.training.loss_log import CURVE_NAME, LOG_NAME, append_to_log, draw_loss_curve, open_loss_log, sync_log
from ahernet.training.ranks import Ranks, join_ranks
from ahernet.training.take_steps import take_steps
from ahernet.training.training_data import TrainingData, select_training_data
from ahernet.training.training_state import STATE_NAME, Run, save_state, set_learning_rates, start_or_resume

# Losses stay on the device for this many iterations: reading them waits for it.
LOG_EVERY = 10
SIGNAL_ECHO = 5.0  # seconds
REMEDY = "a smaller training.learning_rate or a training.gradient_clip may help"
# A regular expression of the names of the files that a run replaces.
OWN_NAMES = f"{CHECKPOINT_NAME}|{WEIGHTS_NAME.pattern}|{STATE_NAME}|{LOG_NAME}|{CURVE_NAME}"
# Where cuBLAS looks for its workspace when it starts, and the sizes with which it repeats its results.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REPEATABLE_WORKSPACES = (":4096:8", ":16:8")


@dataclass(frozen=True)
class TrainingResult:
    """Where a finished run is and how it ended.

    Attributes:
        folder: holds the checkpoint, the training state, the loss log and its picture.
        iterations: that the network has seen, those of pre-training included.
        seconds: that this call took; a resumed run counts from the resumption.
        data: what the run learnt from.
    """

    folder: Path
    iterations: int
    seconds: float
    data: TrainingData


def train(
    archive: FeatureArchive,
    annotations: Annotations,
    out_folder: Path,
    config: Config,
    *,
    subset: str | None = None,
    classes: Sequence[str] | None = None,
    moments: FeatureArchive | None = None,
    moment_labels: Mapping[str, str] | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> TrainingResult:
    """Train a localizer on untrimmed videos, moments or both; checkpoints regularly, at the end, when interrupted.

    The first SIGINT or SIGTERM ends the run after the iteration at hand with a checkpoint; a second stops at
    once. Where torchrun has started several processes they train one network together: every one calls this function
    with the same arguments and files, one signal or error in one of them ends all, and only the first writes.

    Args:
        archive: features of untrimmed videos.
        annotations: their segments in seconds.
        out_folder: of the run; created if need be.
        config: settings; a feature dimension of 0 takes the archive's.
        subset: part of the annotations to train on; all by default.
        classes: base classes: names whose annotations are used; all that occur in the annotations by default.
            Nothing is read of the annotations of others.
        moments: features of moments, for runs that learn from them.
        moment_labels: class name by id of the moments.
        resume: go on from the last training state in `out_folder`; starts anew if there is none.
        device: "auto", "cpu", "cuda" or "cuda:<number>"; several processes each take a GPU of their own.
        progress: show what is used and a progress bar on standard error.

    Raises:
        UserError: nothing to train on; moments that the settings have no use for, or the other way round; features
            of another dimension than the settings say; `out_folder` holds a run and `resume` is not given, a run of
            other settings or data, or one that is being written; a loss or parameters that are not finite; a full disk;
            `training.deterministic` on a GPU that this process has used without it before; fewer videos in a batch than
            processes, or another process that failed or ended.
        KeyboardInterrupt: the run was interrupted; its checkpoint is written.
    """
    began = time.monotonic()
    with join_ranks(device) as (ranks, where), ExitStack() as until_done:
        with ranks.together():
            config = with_feature_dimension(config, archive.dimension, str(archive.path))
            ranks.part(config.training.batch_size)  # asked early: it refuses a batch that is too small
            data = select_training_data(archive, annotations.select(subset), classes, moments, moment_labels, config)
            if ranks.first:
                warn_of_look_alikes(data.classes, annotations.source)
                if progress:
                    inform(data.describe())
                make_folder(out_folder)
                until_done.enter_context(claim_folder(out_folder, OWN_NAMES))
            until_done.enter_context(computing_on(where, config))
            run = start_or_resume(out_folder, config, data, where, resume, ranks)
        _refuse_different_ranks(run, data)
        _iterate(run, data, out_folder, where, progress and ranks.first)
        with ranks.together():
            if ranks.first:
                # Once more, as a finished run may have been killed before its checkpoint, or be given other inference
                # settings.
                save_checkpoint(out_folder, run.config, data.classes, run.best_localizer(), data.moment_classes)
    if ranks.first:
        draw_loss_curve(out_folder / LOG_NAME, out_folder / CURVE_NAME)
    return TrainingResult(out_folder, run.iteration, time.monotonic() - began, data)


@contextmanager
def computing_on(device: torch.device, config: Config) -> Iterator[None]:
    """Compute on a device, with the threads and algorithms that the settings ask for.

    Raises:
        UserError: `training.deterministic` on a GPU that this process has used without it before.
    """
    with (
        _deterministic_algorithms(config.training.deterministic, device),  # first: it must precede any use of the GPU
        cpu_threads(config.training.cpu_threads),
        launches_on(device),
    ):
        yield


def _refuse_different_ranks(run: Run, data: TrainingData) -> None:
    """Refuse to train one network on different data, or from different states, in different processes."""
    if run.ranks.count > 1:
        start = json.dumps([config_to_dict(run.config), data.fingerprint(), run.iteration])
        run.ranks.check_same(hashlib.sha256(start.encode()).digest(), "settings, data or training states")


def total_iterations(config: Config) -> int:
    """Return the iterations of a run, pre-training included."""
    return first_main_iteration(config.method) + config.training.iterations


def learning_rate(config: Config, iteration: int) -> float:
    """Return the learning rate of iteration 0, 1, ...; it decays in the main iterations only."""
    settings = config.training
    decays = max(iteration - first_main_iteration(config.method), 0) // settings.decay_every
    return settings.learning_rate * settings.decay_factor**decays


def _iterate(run: Run, data: TrainingData, folder: Path, device: torch.device, progress: bool) -> None:
    settings, end, ranks = run.config.training, total_iterations(run.config), run.ranks
    unread: list[dict[str, torch.Tensor]] = []
    with (
        open_loss_log(folder / LOG_NAME, run.iteration) if ranks.first else nullcontext() as log,
        _stop_requests(ranks) as stop_requested,
        read_ahead(partial(read_batch, run, data, device), range(run.iteration, end)) as batches,
        ProgressBar(
            total=end,
            initial=run.iteration,
            desc="train",
            unit="it",
            smoothing=0,
            disable=not progress,
        ) as bar,
    ):
        while run.iteration < end:
            with ranks.together():
                iteration, parts = next(batches)
            unread.append(train_within_memory(run, parts, iteration, partial(read_batch, run, data, device)))
            stop = ranks.any(stop_requested())
            save = stop or run.iteration % settings.checkpoint_every == 0
            last = run.iteration == end
            if save or last or run.iteration % LOG_EVERY == 0:
                entries = read_losses(unread, run, data)
                with ranks.together():
                    if log is not None:
                        append_to_log(log, entries)
                bar.set_postfix(
                    {"phase": phase_of(run.config.method, iteration), "loss": f"{entries[-1]['total']:.4f}"},
                    refresh=False,
                )
                bar.update(len(unread))
                unread.clear()
            if save or last:
                _refuse_broken(run)
                with ranks.together():
                    if log is not None:
                        sync_log(log)
                        save_state(folder, run, data)
            if stop and not last:
                raise KeyboardInterrupt(f"stopped after iteration {run.iteration}; {folder} can be resumed")


def read_batch(run: Run, data: TrainingData, device: torch.device, iteration: int) -> Sequence[IterationBatch]:
    """Read this process's part of the batch of an iteration, to where it is computed, unless it is in several parts."""
    count = run.parts
    if count > 1:
        ranks = [Ranks(number, count) for number in range(count)]
        return [read_iteration(data.untrimmed, data.moments, run.config, iteration, own) for own in ranks]
    batch = read_iteration(data.untrimmed, data.moments, run.config, iteration, run.ranks)
    try:
        return [batch.to(device)]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return [batch]  # it is tried again, and a lack of memory dealt with, where it is computed


def train_iteration(run: Run, parts: Sequence[IterationBatch], iteration: int) -> dict[str, torch.Tensor]:
    """Do all steps of one iteration and return the terms of their losses, still on the device."""
    settings, phase = run.config.training, phase_of(run.config.method, iteration)
    adversaries = settings.adversarial_rate if phase == "main" else 1.0
    rate = learning_rate(run.config, iteration)
    set_learning_rates(run.optimizer, rate, settings.classifier_rate, settings.transfer_rate, adversaries)
    if run.captured is not None and len(parts) == 1:
        terms = run.captured.take(run, parts[0].to(next(run.networks.parameters()).device), phase)
    else:
        terms = take_steps(run, parts, phase)
    run.iteration = iteration + 1
    run.update_average()
    return terms


def train_within_memory(
    run: Run, parts: Sequence[IterationBatch], iteration: int, read: Callable[[int], Sequence[IterationBatch]]
) -> dict[str, torch.Tensor]:
    """As `train_iteration`; where memory is short, the batch is read again and computed in parts of half the size."""
    while True:
        if len(parts) < run.parts:  # read before, or to be read again
            parts = read(iteration)
        try:
            return train_iteration(run, parts, iteration)
        except (MemoryError, RuntimeError) as error:
            # Several processes would have to agree, and would wait for one another meanwhile.
            several, single = run.ranks.count > 1, run.parts == run.config.training.batch_size
            if run.iteration > iteration or several or single or not is_out_of_memory(error):
                raise
        parts = ()
        _use_more_parts(run)


def _use_more_parts(run: Run) -> None:
    run.captured = None
    run.optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    run.parts = min(2 * run.parts, run.config.training.batch_size)
    warn(f"train: out of memory, goes on with every batch in {run.parts} parts, whose gradients are added up")


def read_losses(unread: list[dict[str, torch.Tensor]], run: Run, data: TrainingData) -> list[dict[str, float]]:
    """Bring the last losses to the host as entries of the log; refuse what is not finite."""
    parts = torch.cat([torch.stack(list(terms.values())).float() for terms in unread])
    values = run.ranks.sum(parts).tolist()
    first = run.iteration - len(unread)
    entries = []
    for iteration, terms in enumerate(unread, start=first):
        losses = {name: values.pop(0) for name in terms}
        if not torch.tensor(list(losses.values())).isfinite().all():
            raise UserError(_not_finite(iteration, losses, run.config, data))
        entries.append({"iteration": iteration + 1, **losses, "learning_rate": learning_rate(run.config, iteration)})
    return entries


def _refuse_broken(run: Run) -> None:
    """Refuse to keep parameters that a gradient which is not finite has spoilt: the last checkpoint stays."""
    if not torch.stack([parameter.isfinite().all() for parameter in run.networks.parameters()]).all():
        raise UserError(f"parameters not finite after iteration {run.iteration}, though its loss is; {REMEDY}")


def _not_finite(iteration: int, losses: dict[str, float], config: Config, data: TrainingData) -> str:
    """Say what made a loss not finite: features, or else the settings."""
    batch = read_iteration(data.untrimmed, data.moments, config, iteration)
    named = ", ".join(f"{term} {value}" for term, value in losses.items())
    what = f"loss not finite at iteration {iteration + 1} ({named})"
    ids: list[str] = []
    archives: list[str] = []
    for part, source in ((batch.untrimmed, data.untrimmed), (batch.moments, data.moments)):
        if part is None or source is None:
            continue
        archives.append(str(source.archive.path))
        whole = torch.stack([rows.isfinite().all() for rows in part.rows.tensor_split(part.offsets[1:-1])])
        broken = dict.fromkeys(name for name, good in zip(part.video_ids, whole.tolist(), strict=True) if not good)
        if broken:
            return f"{source.archive.path}: {what}: features that are not finite in {', '.join(map(repr, broken))}"
        ids += part.video_ids
    return f"{', '.join(archives)}: {what}: videos {', '.join(map(repr, ids))}; {REMEDY}"


@contextmanager
def _deterministic_algorithms(wanted: bool, device: torch.device) -> Iterator[None]:
    """Let torch use deterministic algorithms only, if wanted; on a CPU it does so anyway."""
    if wanted and device.type == "cuda":
        _settle_workspace()
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if wanted:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _settle_workspace() -> None:
    """Give cuBLAS a workspace with which it repeats its results: for as long as the process lives.

    Raises:
        UserError: it may have started already with another one.
    """
    given = os.environ.get(WORKSPACE)
    if given in REPEATABLE_WORKSPACES:
        return
    if given is not None or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise UserError(
            f"training.deterministic: the program has used a GPU already, or {WORKSPACE} is set to another value "
            f"({given}); set this environment variable to {REPEATABLE_WORKSPACES[0]} before the program starts"
        )
    os.environ[WORKSPACE] = REPEATABLE_WORKSPACES[0]


@contextmanager
def _stop_requests(ranks: Ranks) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether SIGINT or SIGTERM came; a second one raises KeyboardInterrupt.

    Signals reach the main thread only, so that elsewhere nothing is ever requested.
    """
    received: list[float] = []
    # torchrun hands on a signal that whoever ended the job may have sent to every process already.
    patience = SIGNAL_ECHO if ranks.count > 1 else 0.0

    def note(number: int, frame: FrameType | None) -> None:
        if received and time.monotonic() - received[0] >= patience:
            raise KeyboardInterrupt
        received.append(time.monotonic())

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
