"""Settings of a run: frozen dataclasses, presets, and checked reading from dictionaries and TOML files.

Every section checks itself on construction, so a `Config` that exists is valid. Sections hold plain numbers,
truth values and choices only, so that the same classes serve TOML files, checkpoints and the command line.
"""

import dataclasses
import difflib
import math
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from ahernet.errors import UserError

LARGEST_COUNT = (1 << 31) - 1
SHOWN_CHARACTERS = 80

Activation = Literal["none", "relu", "leaky_relu", "elu"]
ClassCells = Literal["foreground", "all"]
Suppression = Literal["hard", "linear", "gaussian"]
ClassScore = Literal["anchor", "video", "product"]
Precision = Literal["float32", "bfloat16"]


def _setting(
    default: Any, *, minimum: float | None = None, above: float | None = None, maximum: float | None = None
) -> Any:
    """Return a dataclass field with a default and the bounds that `_Section` checks."""
    return field(default=default, metadata={"minimum": minimum, "above": above, "maximum": maximum})


def _problem(value: object, item: "dataclasses.Field[Any]") -> str | None:
    """Say what is wrong with the value of a setting, or return None."""
    if typing.get_origin(item.type) is Literal:
        choices = typing.get_args(item.type)
        if value in choices:
            return None
        return f"expected {_choices(choices)}, got {_shown(value)}{_suggestion(value, choices)}"
    if item.type is bool:
        return None if isinstance(value, bool) else f"expected true or false, got {_shown(value)}"
    kind = "an integer" if item.type is int else "a finite number"
    right_type = isinstance(value, int if item.type is int else (int, float)) and not isinstance(value, bool)
    minimum, above, maximum = (item.metadata[name] for name in ("minimum", "above", "maximum"))
    bounds = [
        *([f"at least {minimum}"] if minimum is not None else []),
        *([f"above {above}"] if above is not None else []),
        *([f"at most {maximum}"] if maximum is not None else []),
    ]
    expected = f"expected {kind}{' ' if bounds else ''}{' and '.join(bounds)}, got {_shown(value)}"
    if not right_type:
        return expected
    number = typing.cast(float, value)
    inside = (
        _is_finite(number)
        and (minimum is None or number >= minimum)
        and (above is None or number > above)
        and (maximum is None or number <= maximum)
    )
    return None if inside else expected


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond float64
        return False


def _shown(value: object) -> str:
    """Return the value as Python writes it, shortened."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or tables in tables without end
        return f"a value of type {type(value).__name__} that is too long to write"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def _choices(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)


def _suggestion(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f" (did you mean {close[0]}?)" if close else ""


@dataclass(frozen=True)
class _Section:
    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            problem = _problem(getattr(self, item.name), item)
            if problem:
                raise UserError(f"{self.section}.{item.name}: {problem}")


@dataclass(frozen=True)
class ModelConfig(_Section):
    """Shape of the network.

    Attributes:
        feature_dimension: D, values per feature row; 0 takes the dimension of the training archive.
        width: factor on every channel count of the backbone.
        minimum_channels: no layer gets fewer channels than this, however small `width` is.
        steps: length that every untrimmed video is resampled to.
        moment_steps: length that every moment is resampled to.
        ratios_per_cell: anchors per cell; ratio i is 2^(i / ratios_per_cell).
        transfer_layers: fully-connected layers of the weight transfer T.
        transfer_activation: activation after each of them.
        centre_scale: alpha1 of eq. 5.
        width_scale: alpha2 of eq. 5.
    """

    section: ClassVar[str] = "model"
    feature_dimension: int = _setting(2048, minimum=0, maximum=1 << 20)
    width: float = _setting(1.0, above=0, maximum=16)
    minimum_channels: int = _setting(1, minimum=1, maximum=4096)
    steps: int = _setting(512, minimum=8, maximum=1 << 20)
    moment_steps: int = _setting(256, minimum=8, maximum=1 << 20)
    ratios_per_cell: int = _setting(3, minimum=1, maximum=16)
    transfer_layers: int = _setting(2, minimum=1, maximum=3)
    transfer_activation: Activation = "elu"
    centre_scale: float = _setting(1.0, above=0)
    width_scale: float = _setting(1.0, above=0)


@dataclass(frozen=True)
class AssignmentConfig(_Section):
    """Which anchors are foreground and which background.

    Attributes:
        foreground_threshold: an anchor with a larger tiou is foreground.
        background_threshold: an anchor with a smaller tiou is background; between the two it is ignored.
        force_match: the best anchor of every ground truth is foreground whatever its tiou.
    """

    section: ClassVar[str] = "assignment"
    foreground_threshold: float = _setting(0.8, minimum=0, maximum=1)
    background_threshold: float = _setting(0.3, minimum=0, maximum=1)
    force_match: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.background_threshold > self.foreground_threshold:
            raise UserError(
                f"assignment.background_threshold: expected at most assignment.foreground_threshold "
                f"({self.foreground_threshold}), got {self.background_threshold}"
            )


@dataclass(frozen=True)
class LossConfig(_Section):
    """Weights of the terms of the localization loss.

    Attributes:
        classification: weight of L_cls.
        offset: weight of L_of (eq. 6).
        overlap: weight of L_ov (eq. 7).
        class_cells: cells that L_cls looks at: "foreground" (the paper) or "all".
    """

    section: ClassVar[str] = "loss"
    classification: float = _setting(1.0, minimum=0)
    offset: float = _setting(1.0, minimum=0)
    overlap: float = _setting(1.0, minimum=0)
    class_cells: ClassCells = "foreground"


@dataclass(frozen=True)
class TrainingConfig(_Section):
    """Optimisation.

    Attributes:
        iterations: length of the run.
        batch_size: videos per iteration.
        learning_rate: of Adam, at the start.
        decay_every: iterations between two decays of the learning rate.
        decay_factor: factor of one decay.
        gradient_clip: largest norm of the whole gradient; 0 leaves gradients as they are.
        seed: of the initial weights and of the order of the videos.
        checkpoint_every: iterations between two checkpoints.
        precision: of the forward pass; "bfloat16" uses autocast and keeps float32 weights.
        cpu_threads: threads that share each operation on a CPU; 0 leaves it to torch.
    """

    section: ClassVar[str] = "training"
    iterations: int = _setting(15_000, minimum=1, maximum=LARGEST_COUNT)
    batch_size: int = _setting(16, minimum=1, maximum=1 << 16)
    learning_rate: float = _setting(1e-4, above=0, maximum=10)
    decay_every: int = _setting(5_000, minimum=1, maximum=LARGEST_COUNT)
    decay_factor: float = _setting(0.1, above=0, maximum=1)
    gradient_clip: float = _setting(0.0, minimum=0)
    seed: int = _setting(0, minimum=0, maximum=(1 << 63) - 1)
    checkpoint_every: int = _setting(1_000, minimum=1, maximum=LARGEST_COUNT)
    precision: Precision = "float32"
    cpu_threads: int = _setting(0, minimum=0, maximum=4096)


@dataclass(frozen=True)
class InferenceConfig(_Section):
    """Scoring, suppression and output of detections.

    Attributes:
        batch_size: videos per step.
        class_score: where label and class probability come from: the "anchor" (the paper), the mean over the
            "video", or the "product" of the anchor's and the video's probability of the anchor's label.
        suppression: "hard" NMS, or soft-NMS with "linear" or "gaussian" decay.
        class_aware: only detections of the same label suppress one another.
        nms_threshold: tiou above which hard NMS removes and linear soft-NMS decays.
        sigma: of gaussian soft-NMS.
        top_k_before: candidates of a video that reach suppression, best first; 0 keeps all.
        top_k: detections of a video after suppression.
        minimum_score: detections have a larger score.
        precision: of backbone and heads.
    """

    section: ClassVar[str] = "inference"
    batch_size: int = _setting(64, minimum=1, maximum=1 << 16)
    class_score: ClassScore = "anchor"
    suppression: Suppression = "hard"
    class_aware: bool = True
    nms_threshold: float = _setting(0.9, minimum=0, maximum=1)
    sigma: float = _setting(0.5, above=0)
    top_k_before: int = _setting(0, minimum=0, maximum=LARGEST_COUNT)
    top_k: int = _setting(100, minimum=1, maximum=LARGEST_COUNT)
    minimum_score: float = _setting(0.0)
    precision: Precision = "float32"


@dataclass(frozen=True)
class Config:
    """All settings of a run; `preset` names the preset that it started from."""

    preset: str = "paper"
    model: ModelConfig = ModelConfig()
    assignment: AssignmentConfig = AssignmentConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()


PRESETS: dict[str, Config] = {
    "paper": Config(),
    # A network for a CPU. Where it departs from the paper, and why:
    "tiny": Config(
        preset="tiny",
        # 1/32 of the width: an iteration of 16 videos takes tens of milliseconds on one core. At least 32
        # channels, because 8 on the finest maps cannot tell classes apart.
        model=ModelConfig(feature_dimension=0, width=1 / 32, minimum_channels=32),
        # More than half of the segments shorter than half the video have no anchor above 0.8, and a small
        # data set cannot afford to lose them. Anchors above 0.5 that learn to move onto the ground truth are
        # also merged with it by suppression instead of ranking beside it.
        assignment=AssignmentConfig(foreground_threshold=0.5, force_match=True),
        # Errors of centre and width are fractions of the video, so that smooth-L1 is nearly e^2 / 2 and with
        # a weight of 1 vanishes beside the class loss (an error of 2 % counts 0.0002). Raising these two
        # weights improved held-out mAP on rendered and on real sequences.
        loss=LossConfig(offset=2000.0, overlap=20.0),
        # A small network takes (and in a short run needs) a larger step; one bad batch must not undo it.
        # Small data sets are soon known by heart: 2,000 iterations score worse than 500. Layers this small are
        # not worth sharing, and threads that wait for each other stall as soon as the machine is busy: with
        # another process on two cores, 100 iterations took 11 s on one thread and 72 s on two.
        training=TrainingConfig(
            iterations=500,
            learning_rate=2e-3,
            decay_every=350,
            gradient_clip=5.0,
            checkpoint_every=250,
            cpu_threads=1,
        ),
        # Ranks what overlaps lower instead of removing it: on rendered and on real sequences better than any
        # threshold of hard NMS, which has to choose between neighbours and duplicates.
        inference=InferenceConfig(suppression="gaussian", sigma=0.7),
    ),
}


def preset(name: str) -> Config:
    """Return the preset called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"preset: expected {_choices(PRESETS)}, got {_shown(name)}{_suggestion(name, PRESETS)}")
    return PRESETS[name]


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dictionaries of plain values (TOML and JSON can hold them)."""
    return dataclasses.asdict(config)


def config_from_dict(data: Mapping[str, Any], source: str = "configuration") -> Config:
    """Build a configuration: the preset that `data["preset"]` names ("paper" if none), changed by the rest.

    Args:
        data: as `config_to_dict` returns it; sections and keys may be left out.
        source: what error messages start with, for instance the name of the file.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of range; the message names the key.
    """
    try:
        sections = {item.name: item.type for item in fields(Config) if item.name != "preset"}
        _refuse_unknown(data, ["preset", *sections], "")
        name = data.get("preset", "paper")
        if not isinstance(name, str):
            raise UserError(f"preset: expected a name, got {_shown(name)}")
        config = preset(name)
        changed: dict[str, Any] = {
            key: _changed_section(key, getattr(config, key), data[key]) for key in sections if key in data
        }
        return dataclasses.replace(config, **changed)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def read_config(path: Path, preset_name: str | None = None) -> Config:
    """Read a configuration from a TOML file (tables as in `config_to_dict`).

    Args:
        path: the file.
        preset_name: preset to start from instead of the one that the file names.

    Raises:
        UserError: the file cannot be read, is not TOML, or `config_from_dict` refuses it.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a configuration (nested too deeply)") from error
    except ValueError as error:  # also bytes that are not UTF-8, and integers of thousands of digits
        raise UserError(f"{path}: not a TOML file ({error})") from error
    return config_from_dict(data if preset_name is None else {**data, "preset": preset_name}, str(path))


def with_feature_dimension(config: Config, dimension: int, source: str) -> Config:
    """Return the configuration for features of `dimension` values a row.

    Raises:
        UserError: the configuration already names another dimension; the message names `source`.
    """
    wanted = config.model.feature_dimension
    if wanted not in (0, dimension):
        raise UserError(
            f"{source}: features have {dimension} values a row, model.feature_dimension says {wanted} "
            f"(0 takes what the archive has)"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, feature_dimension=dimension))


def _changed_section(key: str, section: _Section, changes: Any) -> _Section:
    if not isinstance(changes, Mapping):
        raise UserError(f"{key}: expected a table of settings, got {_shown(changes)}")
    _refuse_unknown(changes, [item.name for item in fields(section)], f"{key}.")
    return dataclasses.replace(section, **changes)


def _refuse_unknown(data: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    known = list(known)
    for key in data:
        if key not in known:
            raise UserError(f"{prefix}{key}: unknown key{_suggestion(key, known)}, expected {_choices(known)}")
