"""Fully supervised training on annotated videos (the paper's oracle run, AherNet*).

A run is a folder: the checkpoint, the training state to go on from, the loss log and its picture. Batch k is
a pure function of the seed and k, and nothing else is random, so a resumed run repeats an uninterrupted one.
"""

import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ahernet_kernels as kernels
import torch
from torch import nn
from tqdm import tqdm

from ahernet.checkpoint import CHECKPOINT_NAME, save_checkpoint
from ahernet.config import Config, TrainingConfig, config_to_dict, with_feature_dimension
from ahernet.data.annotations import Annotations
from ahernet.data.archive import FeatureArchive
from ahernet.device import choose_device, cpu_threads
from ahernet.errors import UserError
from ahernet.files import claim_folder, make_folder, replace_when_complete
from ahernet.model.localizer import Localizer
from ahernet.prefetch import read_ahead
from ahernet.training.batches import Batch, TrainingSet, TrainingSummary, build_training_set
from ahernet.training.loss_log import CURVE_NAME, LOG_NAME, TERMS, append_to_log, draw_loss_curve, open_loss_log
from ahernet.training.losses import Losses, localization_losses

STATE_NAME = "training_state.pt"
STATE_FORMAT = "ahernet training state 1"
# Losses stay on the device for this many iterations: reading them waits for it.
LOG_EVERY = 10
# A resumed run may change these; everything else must be as it was.
FREE_ON_RESUME = ("preset", "training.iterations", "training.checkpoint_every", "inference.")


@dataclass(frozen=True)
class TrainingResult:
    """Where a finished run is and how it ended.

    Attributes:
        folder: holds the checkpoint, the training state, the loss log and its picture.
        iterations: that the network has seen.
        seconds: that this call took; a resumed run counts from the resumption.
        summary: what of the annotations was used.
    """

    folder: Path
    iterations: int
    seconds: float
    summary: TrainingSummary


@dataclass
class _Run:
    """What changes while training: the network, its optimizer, and how many iterations they have seen."""

    config: Config
    model: Localizer
    optimizer: torch.optim.Optimizer
    iteration: int


def train(
    archive: FeatureArchive,
    annotations: Annotations,
    out_folder: Path,
    config: Config,
    *,
    subset: str | None = None,
    classes: Sequence[str] | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> TrainingResult:
    """Train a localizer on annotated videos; checkpoints regularly, at the end, and when interrupted.

    The first SIGINT or SIGTERM ends the run after the iteration at hand with a checkpoint; a second stops at
    once.

    Args:
        archive: features.
        annotations: segments in seconds.
        out_folder: of the run; created if need be.
        config: settings; a feature dimension of 0 takes the archive's.
        subset: part of the annotations to train on; all by default.
        classes: names to train on; all that occur in the annotations by default.
        resume: go on from the last training state in `out_folder`; starts anew if there is none.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        progress: show what is used and a progress bar on standard error.

    Raises:
        UserError: nothing to train on; features of another dimension than the settings say; `out_folder`
            holds a run and `resume` is not given, a run of other settings or data, or one that is being
            written; a loss that is not finite; a full disk.
        KeyboardInterrupt: the run was interrupted; its checkpoint is written.
    """
    began = time.monotonic()
    training_set = build_training_set(archive, annotations.select(subset), classes)
    config = with_feature_dimension(config, archive.dimension, str(archive.path))
    where = choose_device(device)
    if progress:
        print(training_set.summary.describe(), file=sys.stderr)
    make_folder(out_folder)
    with claim_folder(out_folder), cpu_threads(config.training.cpu_threads):
        run = _start_or_resume(out_folder, config, training_set, where, resume)
        _iterate(run, training_set, out_folder, where, progress)
        # Once more, as a finished run may have been killed before its checkpoint, or be given other inference settings.
        save_checkpoint(out_folder, run.config, training_set.classes, run.model)
    draw_loss_curve(out_folder / LOG_NAME, out_folder / CURVE_NAME)
    return TrainingResult(out_folder, run.iteration, time.monotonic() - began, training_set.summary)


def learning_rate(config: TrainingConfig, iteration: int) -> float:
    """Return the learning rate of iteration 0, 1, ..."""
    return config.learning_rate * config.decay_factor ** (iteration // config.decay_every)


def batch_losses(model: Localizer, config: Config, batch: Batch) -> Losses:
    """Compute the losses of one batch that is on the device of the model."""
    device = batch.rows.device.type
    sequence = kernels.resample(batch.rows, batch.offsets, config.model.steps)
    with torch.autocast(device, torch.bfloat16, enabled=config.training.precision == "bfloat16"):
        outputs = model(sequence, model.class_weights())
    return localization_losses(outputs, model.anchors, batch.ground_truth, config.model, config.assignment, config.loss)


def _iterate(run: _Run, training_set: TrainingSet, folder: Path, device: torch.device, progress: bool) -> None:
    settings = run.config.training

    def read(iteration: int) -> Batch:
        members = training_set.members(settings.seed, iteration, settings.batch_size)
        return training_set.read(members).to(device)

    unread: list[Losses] = []
    with (
        open_loss_log(folder / LOG_NAME, run.iteration) as log,
        _stop_requests() as stop_requested,
        read_ahead(read, range(run.iteration, settings.iterations)) as batches,
        tqdm(
            total=settings.iterations,
            initial=run.iteration,
            desc="train",
            unit="it",
            smoothing=0,
            disable=not progress,
        ) as bar,
    ):
        for iteration, batch in batches:
            unread.append(_step(run, batch, iteration))
            stop = stop_requested()
            save = stop or run.iteration % settings.checkpoint_every == 0
            last = run.iteration == settings.iterations
            if save or last or run.iteration % LOG_EVERY == 0:
                entries = _read_losses(unread, run, training_set)
                append_to_log(log, entries)
                bar.set_postfix({term: f"{entries[-1][term]:.4f}" for term in TERMS}, refresh=False)
                bar.update(len(unread))
                unread.clear()
            if save or last:
                _save(run, training_set, folder)
            if stop and not last:
                raise KeyboardInterrupt(f"stopped after iteration {run.iteration}; {folder} can be resumed")


def _step(run: _Run, batch: Batch, iteration: int) -> Losses:
    settings = run.config.training
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(settings, iteration)
    losses = batch_losses(run.model, run.config, batch)
    run.optimizer.zero_grad(set_to_none=True)
    losses.total.backward()  # type: ignore[no-untyped-call]
    if settings.gradient_clip > 0:
        nn.utils.clip_grad_norm_(run.model.parameters(), settings.gradient_clip)
    run.optimizer.step()
    run.iteration = iteration + 1
    return Losses(*(loss.detach() for loss in losses))


def _read_losses(unread: list[Losses], run: _Run, training_set: TrainingSet) -> list[dict[str, float]]:
    """Bring the last losses to the host as entries of the log; refuse what is not finite."""
    values = torch.stack([torch.stack(losses) for losses in unread]).tolist()
    first = run.iteration - len(unread)
    entries = []
    for iteration, row in enumerate(values, start=first):
        losses = dict(zip(Losses._fields, row, strict=True))
        if not torch.tensor(row).isfinite().all():
            raise UserError(_not_finite(iteration, losses, run.config.training, training_set))
        rate = learning_rate(run.config.training, iteration)
        entries.append({"iteration": iteration + 1, **losses, "learning_rate": rate})
    return entries


def _not_finite(iteration: int, losses: dict[str, float], settings: TrainingConfig, training_set: TrainingSet) -> str:
    batch = training_set.read(training_set.members(settings.seed, iteration, settings.batch_size))
    whole = torch.stack([row.isfinite().all() for row in batch.rows.tensor_split(batch.offsets[1:-1])])
    broken = [name for name, good in zip(batch.video_ids, whole.tolist(), strict=True) if not good]
    cause = (
        f"features that are not finite in {', '.join(map(repr, broken))}"
        if broken
        else f"videos {', '.join(map(repr, batch.video_ids))}; a smaller training.learning_rate or a "
        f"training.gradient_clip may help"
    )
    named = ", ".join(f"{term} {value}" for term, value in losses.items())
    return f"{training_set.archive.path}: loss not finite at iteration {iteration + 1} ({named}): {cause}"


def _start_or_resume(
    folder: Path, config: Config, training_set: TrainingSet, device: torch.device, resume: bool
) -> _Run:
    path = folder / STATE_NAME
    if not resume and (path.exists() or (folder / CHECKPOINT_NAME).exists()):
        raise UserError(f"{folder}: holds a run already, give another folder or resume it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = Localizer(config.model, len(training_set.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.training.learning_rate, fused=True)
    run = _Run(config, model, optimizer, 0)
    if resume and path.exists():
        _load_state(path, run, training_set)
    return run


def _save(run: _Run, training_set: TrainingSet, folder: Path) -> None:
    state = {
        "format": STATE_FORMAT,
        "iteration": run.iteration,
        "config": config_to_dict(run.config),
        "training_set": training_set.fingerprint(),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    with replace_when_complete(folder / STATE_NAME) as path:
        try:
            torch.save(state, path)
        except RuntimeError as error:  # what torch makes of a failed write
            raise UserError(f"{folder / STATE_NAME}: cannot write, is the disk full?") from error
    save_checkpoint(folder, run.config, training_set.classes, run.model)


def _load_state(path: Path, run: _Run, training_set: TrainingSet) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: truncated or not a training state ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise UserError(f"{path}: not a training state of this version (expected {STATE_FORMAT!r})")
    try:
        _take_over(state, path, run, training_set)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged training state ({reason})") from error


def _take_over(state: dict[str, Any], path: Path, run: _Run, training_set: TrainingSet) -> None:
    """Go on where `state` is, if it is of the same settings and data."""
    settings = run.config.training
    before, now = _flat(state["config"]), _flat(config_to_dict(run.config))
    for key in now:
        if before.get(key) != now[key] and not key.startswith(FREE_ON_RESUME):
            raise UserError(f"{path}: the run to resume has {key} = {before.get(key)!r}, the settings say {now[key]!r}")
    if state["training_set"] != training_set.fingerprint():
        raise UserError(f"{path}: the run to resume was trained on other videos, segments or classes")
    if state["iteration"] > settings.iterations:
        raise UserError(
            f"training.iterations: expected at least {state['iteration']}, where the run to resume is, "
            f"got {settings.iterations}"
        )
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.iteration = state["iteration"]


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": setting for inner, setting in value.items()}
        else:
            flat[key] = value
    return flat


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether SIGINT or SIGTERM came; a second one raises KeyboardInterrupt.

    Signals reach the main thread only, so that elsewhere nothing is ever requested.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
