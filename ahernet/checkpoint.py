"""Checkpoints: a JSON file that says what the network is, and a safetensors file with its weights.

The weights are named by their own hash and written first, the JSON is put in place last, and older weights
are removed after that: whatever moment the writer is killed at, the folder holds one whole checkpoint.
Nothing here unpickles.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

import ahernet
from ahernet.config import Config, config_from_dict, config_to_dict
from ahernet.data.bounded_read import parse_json
from ahernet.errors import UserError
from ahernet.files import make_folder, replace_when_complete
from ahernet.model.localizer import Localizer

CHECKPOINT_NAME = "checkpoint.json"
FORMAT = "ahernet checkpoint"
FORMAT_VERSION = 1
WEIGHTS_NAME = re.compile(r"weights-[0-9a-f]{12}\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A network with its settings and the class names that its labels number.

    Attributes:
        config: settings of the run that made it.
        classes: (C,) names.
        moment_classes: those of them that the run learnt from moments.
        model: the network, on the CPU, in evaluation mode.
        source: the folder that it was read from; messages name it.
        digest: SHA-256 of the file of the weights; empty where there is none.
    """

    config: Config
    classes: tuple[str, ...]
    moment_classes: tuple[str, ...]
    model: Localizer
    source: Path
    digest: str = ""


def save_checkpoint(
    folder: Path, config: Config, classes: Sequence[str], model: Localizer, moment_classes: Sequence[str] = ()
) -> None:
    """Write a checkpoint into `folder` (created if need be) in place of the one that is there.

    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = safetensors.torch.save(state)
    digest = hashlib.sha256(weights).hexdigest()
    weights_path = folder / f"weights-{digest[:12]}.safetensors"
    with replace_when_complete(weights_path) as path:
        path.write_bytes(weights)
    description = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "preset": config.preset,
        "classes": list(classes),
        "moment_classes": list(moment_classes),
        "weights": {"file": weights_path.name, "sha256": digest},
        "versions": {"ahernet": ahernet.__version__, **_installed("torch", "triton", "numpy")},
        "config": config_to_dict(config),
    }
    with replace_when_complete(folder / CHECKPOINT_NAME) as path:
        path.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for old in folder.iterdir():
        if WEIGHTS_NAME.fullmatch(old.name) and old != weights_path:
            old.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint in `folder` and check that it is whole.

    Raises:
        UserError: a file is missing, damaged, foreign or of a newer version, or the weights do not fit the
            settings or are not finite; the message names the file and what is wrong.
    """
    folder = Path(folder)
    path = folder / CHECKPOINT_NAME
    description = _read_description(path)
    config = config_from_dict(_entry(description, "config", dict, path), f"{path}: config")
    classes, moment_classes = _classes(description, path)
    weights = _entry(description, "weights", dict, path)
    weights_path, state = _read_weights(folder, weights, path)
    try:
        # Tensors without memory: settings that ask for more than the weights hold must not allocate it.
        with torch.device("meta"):
            expected = Localizer(config.model, len(classes)).state_dict()
    except ValueError as error:
        raise UserError(f"{path}: cannot build the network that it describes ({error})") from error
    _check_shapes(state, expected, path)
    _check_values(state, weights_path)
    model = Localizer(config.model, len(classes))
    model.load_state_dict(state)
    return Checkpoint(config, classes, moment_classes, model.eval(), folder, weights["sha256"])


def read_classes(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes of the checkpoint in `folder`, and those of them that the run learnt from moments.

    Raises:
        UserError: the checkpoint is missing, foreign or of a newer version, or the classes are no different names.
    """
    path = folder / CHECKPOINT_NAME
    return _classes(_read_description(path), path)


def _classes(description: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    classes = _entry(description, "classes", list, path)
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes) or not classes:
        raise UserError(f"{path}: classes: expected a list of different names")
    moment_classes = description.get("moment_classes", [])
    if not isinstance(moment_classes, list) or not all(name in classes for name in moment_classes):
        raise UserError(f"{path}: moment_classes: expected a list of names that are in classes")
    return tuple(classes), tuple(moment_classes)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, expected a folder with a checkpoint") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read the checkpoint ({error.strerror})") from error
    except RecursionError as error:
        raise UserError(f"{path}: JSON nested too deeply for a checkpoint") from error
    except ValueError as error:  # also bytes that are not UTF-8, and integers of thousands of digits
        raise UserError(f"{path}: truncated or not JSON ({error})") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f'{path}: not a checkpoint of ahernet (expected "format": "{FORMAT}")')
    found = description.get("version")
    if not isinstance(found, int) or found < 1:
        raise UserError(f"{path}: version: expected a whole number above 0, got {found!r}")
    if found > FORMAT_VERSION:
        raise UserError(
            f"{path}: written by a newer ahernet (version {found} of the format, here {FORMAT_VERSION}); "
            "use a newer ahernet"
        )
    return description


def _entry(description: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    value = description.get(key)
    if not isinstance(value, kind):
        raise UserError(f"{path}: {key}: expected a JSON {'object' if kind is dict else kind.__name__}")
    return value


def _read_weights(folder: Path, entry: Mapping[str, Any], description: Path) -> tuple[Path, dict[str, Tensor]]:
    name, digest = entry.get("file"), entry.get("sha256")
    # A name of any other form could lead out of the folder.
    if not isinstance(name, str) or not WEIGHTS_NAME.fullmatch(name):
        raise UserError(f"{description}: weights.file: expected weights-<12 hex digits>.safetensors, got {name!r}")
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights that {description.name} names ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(
            f"{path}: truncated or changed ({len(content):,} bytes, sha256 is not that in "
            f"{description.name}); copy the checkpoint again"
        )
    try:
        return path, safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a type that torch does not have
        raise UserError(f"{path}: not a safetensors file ({error})") from error


def _check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    for name in [*expected, *state]:
        if name not in state or name not in expected:
            what = "missing" if name not in state else "not of this network"
            raise UserError(f"{path}: tensor {name} is {what}, expected those of its settings")
        if state[name].shape != expected[name].shape:
            raise UserError(
                f"{path}: tensor {name} has shape {tuple(state[name].shape)}, "
                f"the settings and classes ask for {tuple(expected[name].shape)}"
            )


def _check_values(state: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise UserError(f"{path}: tensor {name} has type {tensor.dtype}, expected floating point")
        if not tensor.float().isfinite().all():
            raise UserError(f"{path}: tensor {name} holds NaN or infinite values, expected finite ones")


def _installed(*packages: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
