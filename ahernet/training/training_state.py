"""The state of a run: what changes while training, how it is kept on disk and taken up again."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ahernet.checkpoint import CHECKPOINT_NAME, save_checkpoint
from ahernet.config import Config, config_to_dict
from ahernet.data.zip_guard import check_torch, why_refused
from ahernet.errors import UserError, is_out_of_memory
from ahernet.files import replace_when_complete
from ahernet.model.localizer import Localizer
from ahernet.training.captured_steps import CapturedSteps
from ahernet.training.iteration_batches import first_main_iteration
from ahernet.training.ranks import ALONE, Ranks
from ahernet.training.steps import ClassRows, Networks
from ahernet.training.training_data import TrainingData

STATE_NAME = "training_state.pt"
STATE_FORMAT = "ahernet training state 5"
# A resumed run may change these; everything else must be as it was.
FREE_ON_RESUME = ("preset", "training.iterations", "training.checkpoint_every", "inference.")


@dataclass
class Run:
    """What changes while training: the networks, their optimizer, and how many iterations they have seen.

    Attributes:
        config: settings, fixed.
        rows: which of the network's classes untrimmed videos and moments have, fixed.
        networks: that are trained.
        average: weighted mean of the localizer's parameters after all iterations, if the settings ask for it.
        optimizer: of all networks.
        iteration: how many iterations the networks have seen.
        ranks: that train the same networks together, fixed.
        captured: what takes the steps of an iteration, or None where nothing is captured.
        parts: how many each batch is divided into, which are computed in turn: more than 1 once memory was short.
    """

    config: Config
    rows: ClassRows
    networks: Networks
    average: Localizer | None
    optimizer: torch.optim.Optimizer
    iteration: int
    ranks: Ranks = ALONE
    captured: CapturedSteps | None = None
    parts: int = 1

    def best_localizer(self) -> Localizer:
        """Return the localizer to use: the average where there is one."""
        return self.networks.localizer if self.average is None else self.average

    @torch.no_grad()
    def update_average(self) -> None:
        """Take the parameters that the iteration at hand has left into the average, if there is one.

        Those of k iterations ago weigh `training.average` to the k, and all together 1: the initial parameters, which
        no iteration has left, have no part in it.
        """
        if self.average is None:
            return
        past, localizer = self.config.training.average, self.networks.localizer
        weight = (1 - past) / (1 - past**self.iteration)
        torch._foreach_lerp_(list(self.average.parameters()), list(localizer.parameters()), weight)
        torch._foreach_copy_(list(self.average.buffers()), list(localizer.buffers()))


def start_or_resume(
    folder: Path, config: Config, data: TrainingData, device: torch.device, resume: bool, ranks: Ranks = ALONE
) -> Run:
    """Return a new run, or with `resume` the one in `folder` if it holds one.

    Raises:
        UserError: the folder holds a run and `resume` is not given, or one of other settings or data, or a checkpoint
            alone, which would be lost.
    """
    path, checkpoint = folder / STATE_NAME, folder / CHECKPOINT_NAME
    if not resume and (path.exists() or checkpoint.exists()):
        raise UserError(f"{folder}: holds a run already, give another folder or resume it")
    if checkpoint.exists() and not path.exists():
        raise UserError(f"{folder}: holds a checkpoint but no {STATE_NAME} to go on from, give another folder")
    run = new_run(config, data, device, ranks)
    if path.exists():
        _load_state(path, run, data)
    return run


def new_run(config: Config, data: TrainingData, device: torch.device, ranks: Ranks = ALONE) -> Run:
    """Return a run before its first iteration: all parameters follow from the settings and the number of classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        networks = Networks(config, len(data.classes)).to(device)
    average = deepcopy(networks.localizer).requires_grad_(False) if config.training.average else None
    rows = ClassRows(*(torch.tensor(numbers, device=device) for numbers in (data.base_rows, data.moment_rows)))
    captured = captured_on(device.type) if ranks.count == 1 else None
    return Run(config, rows, networks, average, make_optimizer(networks), 0, ranks, captured)


def captured_on(device_type: str) -> CapturedSteps | None:
    """Return what takes the steps of one process on a device, if they can be captured there."""
    return CapturedSteps() if device_type == "cuda" else None


def make_optimizer(networks: Networks) -> torch.optim.Optimizer:
    """Return Adam for all networks, with learning rates of 0 until `set_learning_rates`."""
    device = next(networks.parameters()).device
    # Fused: all parameters in one pass. A graph reads the learning rates, and counts its steps, in memory.
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(_parameter_groups(networks), lr=0.0, fused=True, capturable=on_gpu)
    if on_gpu:
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)
    return optimizer


def _parameter_groups(networks: Networks) -> list[dict[str, Any]]:
    """Return the parameters by what their learning rate depends on: `set_learning_rates` names the groups."""
    localizer = networks.localizer
    return [
        {"params": [*localizer.backbone.parameters(), *localizer.heads.parameters()]},
        {"params": list(localizer.segment_classifier.parameters())},
        {"params": list(localizer.transfer.parameters())},
        {"params": [*networks.generators.parameters(), *networks.discriminators.parameters()]},
    ]


def set_learning_rates(
    optimizer: torch.optim.Optimizer, rate: float, classifier: float, transfer: float, adversaries: float
) -> None:
    """Set the learning rate of backbone and heads, and the others' as multiples of it.

    W_regv learns `classifier` times as fast, theta `transfer` times, generators and discriminators `adversaries` times.
    """
    for group, factor in zip(optimizer.param_groups, (1.0, classifier, transfer, adversaries), strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate * factor)
        else:
            group["lr"] = rate * factor


def save_state(folder: Path, run: Run, data: TrainingData) -> None:
    """Write the training state and the checkpoint of a run.

    Raises:
        UserError: the folder cannot be written, because the disk is full for instance.
    """
    with replace_when_complete(folder / STATE_NAME) as path, path.open("wb") as file:
        try:
            write_state(file, run, data)
        except RuntimeError as error:  # what torch makes of a failed write
            raise UserError(f"{folder / STATE_NAME}: cannot write, is the disk full?") from error
    save_checkpoint(folder, run.config, data.classes, run.best_localizer(), data.moment_classes)


def write_state(file: IO[bytes], run: Run, data: TrainingData) -> None:
    """Write the training state of a run."""
    state = {
        "format": STATE_FORMAT,
        "iteration": run.iteration,
        "config": config_to_dict(run.config),
        "data": data.fingerprint(),
        "networks": run.networks.state_dict(),
        "average": None if run.average is None else run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    torch.save(state, file)


def read_state(path: Path) -> dict[str, Any]:
    """Read a training state; of what it holds only the format is checked.

    Raises:
        UserError: the file cannot be read, or is no training state of this version.
    """
    try:
        check_torch(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file raises nearly anything
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: truncated or not a training state ({why_refused(error)})") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise UserError(f"{path}: not a training state of this version (expected {STATE_FORMAT!r})")
    return state


def _load_state(path: Path, run: Run, data: TrainingData) -> None:
    state = read_state(path)
    try:
        _take_over(state, path, run, data)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged training state ({reason}); give another folder to start again") from error


def _take_over(state: dict[str, Any], path: Path, run: Run, data: TrainingData) -> None:
    """Go on where `state` is, if it is of the same settings and data."""
    before, now = _flat(state["config"]), _flat(config_to_dict(run.config))
    for key in now:
        if before.get(key) != now[key] and not key.startswith(FREE_ON_RESUME):
            raise UserError(
                f"{path}: the run to resume has {key} = {before.get(key)!r}, the settings say {now[key]!r}; "
                "give the same, or another folder"
            )
    if state["data"] != data.fingerprint():
        raise UserError(
            f"{path}: the run to resume learnt from other videos, features, segments, moments or classes; "
            "give the same, or another folder"
        )
    if type(state["iteration"]) is not int or state["iteration"] < 0:
        raise ValueError("iteration: expected a number of iterations")
    done = state["iteration"] - first_main_iteration(run.config.method)
    if done > run.config.training.iterations:
        raise UserError(
            f"training.iterations: expected at least {done}, where the run to resume is, "
            f"got {run.config.training.iterations}"
        )
    run.networks.load_state_dict(state["networks"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    # Settings are those of the run at hand, and of its device.
    own = [{**group} for group in run.optimizer.param_groups]
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": _moments(state["optimizer"]["state"], run), "param_groups": groups})
    for group, settings in zip(run.optimizer.param_groups, own, strict=True):
        group.update(settings)
    run.iteration = state["iteration"]


def _moments(state: dict[int, dict[str, torch.Tensor]], run: Run) -> dict[int, dict[str, torch.Tensor]]:
    """Return what Adam keeps of each parameter, copied: it writes there without a look at shape and strides.

    Raises:
        ValueError: it is not of the parameters of the run.
    """
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    copied: dict[int, dict[str, torch.Tensor]] = {}
    for number, kept in state.items():
        if number not in range(len(parameters)):
            raise ValueError(f"optimizer: parameter {number}")
        parameter = parameters[number]
        room = {
            "step": torch.empty((), device="cpu"),
            "exp_avg": torch.empty_like(parameter, device="cpu"),
            "exp_avg_sq": torch.empty_like(parameter, device="cpu"),
        }
        if {name: value.shape for name, value in kept.items()} != {name: into.shape for name, into in room.items()}:
            raise ValueError(f"optimizer: not of parameter {number}")
        if not 0 <= float(kept["step"]) < float("inf"):
            raise ValueError(f"optimizer: {float(kept['step'])} steps of parameter {number}")
        copied[number] = {name: into.copy_(kept[name]) for name, into in room.items()}
    return copied


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": setting for inner, setting in value.items()}
        else:
            flat[key] = value
    return flat
