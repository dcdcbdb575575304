"""Weights of a backbone: a file of tensors by name, or a random start that is good for trying the pipeline only.

Nothing here unpickles objects: files of torch are read with `weights_only=True`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ahernet.data.zip_guard import check_torch, is_zip, why_refused
from ahernet.errors import UserError, is_out_of_memory
from ahernet.extraction.backbones import Backbone
from ahernet.files import file_hash

RANDOM_SEED = 0
RANDOM_WEIGHTS = f"random initialisation, seed {RANDOM_SEED}: for testing the pipeline only"
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
NUMBERS |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
COUNTER = "num_batches_tracked"  # of training; files written before torch 0.4.1 lack it


def load_network(backbone: Backbone, weights: Path | None) -> tuple[nn.Module, str]:
    """Build the network of a backbone, with the weights of a file or with random ones.

    Args:
        backbone: what to build.
        weights: a .safetensors file, or what `torch.save` wrote of a state dictionary, by itself or under the key
            `state_dict`; names may begin with `module.`. None for random weights, always the same.

    Returns:
        The network in evaluation mode on the CPU, and what its weights are: "sha256 <digest of the file>" or
        `RANDOM_WEIGHTS`.

    Raises:
        UserError: the file cannot be read, needs unpickling, or does not hold what the network needs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        network = backbone.build()
    if weights is None:
        return network.eval(), RANDOM_WEIGHTS
    origin = f"sha256 {file_hash(weights)}"
    state = _read_state(weights)
    expected = network.state_dict()
    _check_state(state, expected, backbone, weights)
    network.load_state_dict({**expected, **{name: state[name] for name in expected if _taken(name, state, backbone)}})
    return network.eval(), origin


def _taken(name: str, state: Mapping[str, Tensor], backbone: Backbone) -> bool:
    return name in state and not name.startswith(backbone.unused)


def _read_state(path: Path) -> dict[str, Tensor]:
    content: Any
    if path.suffix == ".safetensors":
        try:
            content = safetensors.torch.load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"{path}: not a safetensors file ({' '.join(str(error).split())})") from error
    else:
        try:
            if is_zip(path):  # not so before PyTorch 1.6
                check_torch(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises nearly anything; one that asks for objects is refused
            if is_out_of_memory(error):  # of what a damaged file claims, too
                raise UserError(
                    f"{path}: cannot read (not enough memory); free some, or copy it again if it is damaged"
                ) from error
            raise UserError(
                f"{path}: not a file of tensors that is safe to read ({why_refused(error)}); save its state dictionary "
                "as safetensors where you trust it"
            ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise UserError(f"{path}: expected tensors by name, or a dictionary that has them under state_dict")
    if all(str(name).startswith("module.") for name in content):  # saved from several GPUs
        return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    return {str(name): tensor for name, tensor in content.items()}


def _check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], backbone: Backbone, path: Path) -> None:
    needed = [name for name in expected if not name.startswith(backbone.unused)]
    missing = [name for name in needed if name not in state and not name.endswith(COUNTER)]
    foreign = [name for name in state if name not in expected and not name.startswith(backbone.unused)]
    if missing or foreign:
        parts = [
            f"{len(names):,} tensors {what}, as {names[0]}"
            for names, what in ((missing, "are missing"), (foreign, "are not of this network"))
            if names
        ]
        raise UserError(f"{path}: not weights of {backbone.name}: {'; '.join(parts)}")
    for name in needed:
        if name in state:
            _check_tensor(name, state[name], expected[name], backbone, path)


def _check_tensor(name: str, tensor: Tensor, expected: Tensor, backbone: Backbone, path: Path) -> None:
    # Others have no shape, no values, or none that can be compared.
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta or tensor.dtype not in NUMBERS:
        raise UserError(f"{path}: tensor {name} of {tensor.dtype} is not a plain array of numbers")
    if tensor.shape != expected.shape:
        raise UserError(
            f"{path}: tensor {name} has shape {tuple(tensor.shape)}, {backbone.name} expects {tuple(expected.shape)}"
        )
    used = tensor.to(expected.dtype) if expected.is_floating_point() else tensor  # may exceed what the network can hold
    if not used.isfinite().all():
        raise UserError(f"{path}: tensor {name} holds NaN or infinite values, expected finite ones")
