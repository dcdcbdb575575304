"""Backbones: the networks that turn clips into features, and how frames are prepared for each.

Another network is two lines in a module of yours, here `mine.py` in the working folder:

    from ahernet.extraction.backbones import Backbone, Preprocessing, register

    register(Backbone("slow", dimension=2048, build=make_network, preprocessing=Preprocessing(256, 224)))

`ahernet extract ... --backbone mine:slow` imports `mine` and takes what it registered as `slow`. `make_network()`
returns an `nn.Module` whose forward maps clips (B, 3, frames, side, side) to features (B, dimension).
"""

import difflib
import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ahernet.errors import UserError
from ahernet.extraction.p3d import P3D


@dataclass(frozen=True)
class Preprocessing:
    """How frames become the input of a network.

    Attributes:
        resize: the shorter side of a frame, as it is displayed, becomes this many pixels.
        side: of the square that is cut from the middle then; at most `resize`.
        channels: their order.
        peak: white, before `mean` and `deviation` apply: 255 or 1.
        mean: subtracted from each channel, in the order `channels`.
        deviation: each channel is divided by it afterwards.
    """

    resize: int
    side: int
    channels: Literal["RGB", "BGR"] = "RGB"
    peak: float = 1.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 1 <= self.side <= self.resize:
            raise ValueError(f"side: expected 1 to resize = {self.resize} pixels, got {self.side}")


@dataclass(frozen=True)
class Backbone:
    """A network and what it takes.

    Attributes:
        name: that `--backbone` gives.
        dimension: values of one feature row.
        build: makes the network, with any weights; forward maps (B, 3, clip_length, side, side) to (B, dimension).
        preprocessing: of the frames.
        clip_length: frames of a clip.
        unused: tensors of a weight file whose names begin so may be missing or of another shape: heads that
            features do not need.
    """

    name: str
    dimension: int
    build: Callable[[], nn.Module]
    preprocessing: Preprocessing
    clip_length: int = 16
    unused: tuple[str, ...] = field(default=("fc.",))

    def describe(self) -> dict[str, Any]:
        """Return everything that features depend on, but for the weights, as JSON can hold it."""
        return {
            "backbone": self.name,
            "dimension": self.dimension,
            "clip_length": self.clip_length,
            "preprocessing": asdict(self.preprocessing),
        }


BACKBONES: dict[str, Backbone] = {}


def register(backbone: Backbone) -> None:
    """Make a backbone known under its name.

    Raises:
        ValueError: another one has the name, or the name has a colon.
    """
    if ":" in backbone.name:
        raise ValueError(f"name: expected one without a colon, got {backbone.name!r}")
    if BACKBONES.setdefault(backbone.name, backbone) is not backbone:
        raise ValueError(f"name: there is a backbone {backbone.name!r} already")


def find_backbone(name: str) -> Backbone:
    """Return the backbone called `name`; "module:name" imports the module first, which is to register it.

    Raises:
        UserError: there is none, or the module cannot be imported.
    """
    module, _, registered = name.rpartition(":")
    if module:
        _import_from_here(module)
    if registered not in BACKBONES:
        close = difflib.get_close_matches(registered, BACKBONES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else f", expected one of {', '.join(BACKBONES)}"
        raise UserError(f"backbone: there is no {registered!r}{hint}")
    return BACKBONES[registered]


def prepare_clips(clips: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn RGB frames (B, T, H, W, 3) uint8 into network input (B, 3, T, H, W) float32, channels last in memory."""
    mean, deviation = (
        torch.tensor(values, device=clips.device) for values in (preprocessing.mean, preprocessing.deviation)
    )
    if preprocessing.channels == "BGR":
        clips = clips.flip(-1)
    scaled = clips.float().mul_(preprocessing.peak / 255).sub_(mean).div_(deviation)
    return scaled.permute(0, 4, 1, 2, 3)


def _import_from_here(module: str) -> None:
    """Import a module of the user's, also one that lies in the working folder."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    except Exception as error:  # it is the user's code: whatever it raises is theirs to mend
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"backbone: cannot import {module!r} ({reason})") from error
    finally:
        sys.path.remove(here)


register(
    Backbone(
        "p3d199-caffe",
        dimension=2048,
        build=partial(P3D, "caffe"),
        preprocessing=Preprocessing(
            182, 160, channels="BGR", peak=255.0, mean=(104.0, 117.0, 123.0), deviation=(1.0, 1.0, 1.0)
        ),
    )
)
register(Backbone("p3d199-port", dimension=2048, build=partial(P3D, "port"), preprocessing=Preprocessing(182, 160)))
