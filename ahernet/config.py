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
UntrimmedUse = Literal["none", "proposals", "transfer", "supervised"]
MomentUse = Literal["none", "classified", "localized"]
Context = Literal["none", "background", "pretrained", "adversarial"]
Shares = Literal["range", "untrimmed", "durations"]
Arrangement = Literal["untrimmed", "random"]
TaughtBy = Literal["untrimmed", "all"]
ClassCells = Literal["foreground", "all"]
OverlapAnchors = Literal["all", "hard"]
Suppression = Literal["hard", "linear", "gaussian"]
SuppressionRank = Literal["score", "overlap"]
ClassScore = Literal["anchor", "segment", "video", "weighted", "product"]
Candidates = Literal["anchors", "crops", "snippets"]
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
        mirrored_context: the generators read a moment backwards, so that what they put next to one of its ends follows
            from that end, and not from the other one.
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
    mirrored_context: bool = False


@dataclass(frozen=True)
class MethodConfig(_Section):
    """What a run learns from; `RUNS` has the runs that the paper compares.

    Attributes:
        untrimmed: what annotated videos teach: "none"; "proposals" alone; the weight "transfer" and proposals, with
            the segment-level weights fixed (the paper); or, "supervised", everything that localizes.
        transfer_taught_by: videos that theta, the weight transfer, learns from where there are "untrimmed" ones: these
            alone (the paper), or "all", synthetic ones too. W_regv is fixed in both.
        annotated_share: share of the annotated videos that are used, drawn by the seed (figure 6 of the paper).
        moments: what moments teach: "none"; to be "classified" as segments; or to be "localized" in synthetic
            videos as well (the paper).
        context: of the moment in its synthetic video: "none" (the moment is the whole video), "background" cut from
            untrimmed videos, by generators "pretrained" on untrimmed videos and then fixed, or by generators that
            learn to be "adversarial" (the paper).
        pretrain_iterations: iterations in which the localizer is first trained on untrimmed videos alone; none where
            a run has no use for them or does nothing else.
        context_iterations: iterations in which the generators are then trained on untrimmed videos; none where a run
            has no generators.
        pretrain_adversaries: generators that learn to be adversarial begin with these iterations, too; if false they
            begin from scratch (the paper).
        shares: share of a synthetic video that its moment fills: log-uniform in a "range"; as the ground truths of
            "untrimmed" videos fill theirs; or by "durations": as the moment would fill an untrimmed video,
            in seconds, or in feature rows where a moment's seconds are unknown.
        neighbours: how many moments may follow the one that a synthetic video is made of, as far as there is room.
        arrangement: how many of them do: as many as ground truths follow one in an "untrimmed" video, at their
            distances; or a "random" number, at distances each of which some two ground truths have that follow one
            another.
        real_residual: to generated context is added what the generators miss of the real context of a foreground
            segment.
        adversarial_backbone: L_adD trains the backbone together with the discriminators (the paper), or, if false,
            these alone.
        minimum_share: smallest share of the range.
        maximum_share: largest share of the range.
    """

    section: ClassVar[str] = "method"
    untrimmed: UntrimmedUse = "supervised"
    transfer_taught_by: TaughtBy = "untrimmed"
    annotated_share: float = _setting(1.0, above=0, maximum=1)
    moments: MomentUse = "none"
    context: Context = "none"
    pretrain_iterations: int = _setting(5_000, minimum=0, maximum=LARGEST_COUNT)
    context_iterations: int = _setting(5_000, minimum=0, maximum=LARGEST_COUNT)
    pretrain_adversaries: bool = False
    real_residual: bool = False
    adversarial_backbone: bool = True
    shares: Shares = "range"
    neighbours: int = _setting(0, minimum=0, maximum=15)
    arrangement: Arrangement = "untrimmed"
    minimum_share: float = _setting(0.7, above=0, maximum=1)
    maximum_share: float = _setting(0.95, above=0, maximum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minimum_share > self.maximum_share:
            raise UserError(
                f"method.minimum_share: expected at most method.maximum_share ({self.maximum_share}), "
                f"got {self.minimum_share}"
            )
        if self.untrimmed == "none" and self.moments == "none":
            raise UserError("method.moments: expected classified or localized where method.untrimmed is none")
        if self.context != "none" and self.untrimmed == "none":
            raise UserError(f"method.context: {self.context} needs untrimmed videos, and method.untrimmed is none")
        if self.untrimmed == "proposals" and self.moments == "localized":
            raise UserError(
                "method.moments: localized needs the weight transfer, which method.untrimmed proposals does not learn; "
                "expected classified here, or transfer there"
            )
        if self.context != "none" and self.moments != "localized":
            raise UserError(
                f"method.context: {self.context} is for moments that are localized, method.moments is {self.moments}"
            )
        if self.context == "pretrained" and not self.context_iterations:
            raise UserError("method.context_iterations: expected at least 1 where method.context is pretrained, got 0")


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
    """Weights of the terms of the losses.

    Attributes:
        segment: weight of L_reg (eq. 4).
        classification: weight of L_cls.
        offset: weight of L_of (eq. 6).
        overlap: weight of L_ov (eq. 7).
        synthetic: factor on L_cls, L_of and L_ov of synthetic videos.
        generation: factor on L_cls, L_of and L_ov in what the generators learn from.
        generator: weight of L_adG (eq. 8).
        context: weight of the L2 distance of generated from real context of foreground segments in what generators
            learn from beside their adversaries.
        discriminator: weight of L_adD (eq. 8).
        class_cells: cells that L_cls looks at: "foreground" (the paper) or "all".
        overlap_anchors: anchors that L_ov looks at: "all" (the paper), or foreground and "hard" background: of every
            video those of the highest predicted overlap, one more than it has foreground anchors.
    """

    section: ClassVar[str] = "loss"
    segment: float = _setting(1.0, minimum=0)
    classification: float = _setting(1.0, minimum=0)
    offset: float = _setting(1.0, minimum=0)
    overlap: float = _setting(1.0, minimum=0)
    synthetic: float = _setting(1.0, minimum=0)
    generation: float = _setting(1.0, minimum=0)
    generator: float = _setting(1.0, minimum=0)
    context: float = _setting(0.0, minimum=0)
    discriminator: float = _setting(1.0, minimum=0)
    class_cells: ClassCells = "foreground"
    overlap_anchors: OverlapAnchors = "all"


@dataclass(frozen=True)
class TrainingConfig(_Section):
    """Optimisation.

    Attributes:
        iterations: main iterations, after those of pre-training.
        batch_size: videos per iteration; computed in parts, whose gradients are added up, where memory is short.
        learning_rate: of Adam, at the start.
        classifier_rate: factor on the learning rate of the segment-level weights W_regv.
        transfer_rate: factor on the learning rate of theta, the weight transfer.
        adversarial_rate: factor on the learning rate of generators and discriminators in the main iterations.
        decay_every: iterations between two decays of the learning rate.
        decay_factor: factor of one decay.
        gradient_clip: largest norm of the gradient of each network, that is of the localizer, the generators and the
            discriminators; 0 leaves gradients as they are.
        seed: of the initial weights and of the order of the videos.
        checkpoint_every: iterations between two checkpoints.
        precision: of the forward pass; "bfloat16" uses autocast and keeps float32 weights. An NVIDIA GPU multiplies
            "float32" in convolutions as TF32, unless torch.backends.cudnn.allow_tf32 is False.
        average: weight of the past in a running mean of the parameters, which the checkpoint then holds; 0 keeps
            the last parameters. The mean is of what the iterations leave, without the initial parameters.
        deterministic: use only algorithms that repeat bit for bit; on a CPU all do. For a GPU the environment variable
            CUBLAS_WORKSPACE_CONFIG is set to :4096:8, unless the process has used the GPU before.
        cpu_threads: threads that share each operation on a CPU; 0 leaves it to torch.
    """

    section: ClassVar[str] = "training"
    iterations: int = _setting(15_000, minimum=1, maximum=LARGEST_COUNT)
    batch_size: int = _setting(16, minimum=1, maximum=1 << 16)
    learning_rate: float = _setting(1e-4, above=0, maximum=10)
    classifier_rate: float = _setting(1.0, above=0, maximum=100)
    transfer_rate: float = _setting(1.0, above=0, maximum=100)
    adversarial_rate: float = _setting(1.0, above=0, maximum=100)
    decay_every: int = _setting(5_000, minimum=1, maximum=LARGEST_COUNT)
    decay_factor: float = _setting(0.1, above=0, maximum=1)
    gradient_clip: float = _setting(0.0, minimum=0)
    seed: int = _setting(0, minimum=0, maximum=(1 << 63) - 1)
    checkpoint_every: int = _setting(1_000, minimum=1, maximum=LARGEST_COUNT)
    precision: Precision = "float32"
    average: float = _setting(0.0, minimum=0, maximum=0.999999)
    deterministic: bool = False
    cpu_threads: int = _setting(0, minimum=0, maximum=4096)


@dataclass(frozen=True)
class InferenceConfig(_Section):
    """Scoring, suppression and output of detections.

    Attributes:
        batch_size: videos per step.
        candidates: what is scored: "anchors" with their own class probabilities (the paper); proposals ranked by
            overlap, cut out as "crops" and classified like moments (AherNet-); or groups of "snippets" that a
            classifier finds alike (AherNet0).
        class_score: where label and class probability come from: the "anchor" (the paper); what its "segment" shows,
            by the anchor-level weights of the finest scale; the mean over the "video" (one label a video); that mean
            "weighted" by the overlap that is predicted at each cell; or the "product" of the anchor's and the video's
            probability of the anchor's label.
        suppression: "hard" NMS, or soft-NMS with "linear" or "gaussian" decay.
        suppression_rank: which of two anchors hard NMS keeps, and which `top_k` are kept: those of the higher "score"
            (the paper), or of the higher predicted "overlap", whatever their classes' probabilities are; in a video
            that is cut into windows, those of each window. Crops have no other rank than overlap, snippets none.
        class_aware: only detections of the same label suppress one another.
        nms_threshold: tiou above which hard NMS removes and linear soft-NMS decays.
        sigma: of gaussian soft-NMS.
        top_k_before: candidates of a video that reach suppression, best first; 0 keeps all.
        top_k: detections of a video after suppression.
        minimum_score: detections have a larger score.
        window: seconds; longer videos are cut into windows of this length, each brought to `model.steps`, and
            suppression chooses among the candidates of all windows, keeping `top_k` times their number. 0 takes every
            video whole.
        window_overlap: share of a window that it has in common with the next, at least.
        precision: of backbone and heads; "float32" is TF32 in convolutions of an NVIDIA GPU, as in training.
    """

    section: ClassVar[str] = "inference"
    batch_size: int = _setting(64, minimum=1, maximum=1 << 16)
    candidates: Candidates = "anchors"
    class_score: ClassScore = "anchor"
    suppression: Suppression = "hard"
    suppression_rank: SuppressionRank = "score"
    class_aware: bool = True
    nms_threshold: float = _setting(0.9, minimum=0, maximum=1)
    sigma: float = _setting(0.5, minimum=2.0**-126)  # of smaller ones fp32 has no inverse
    top_k_before: int = _setting(0, minimum=0, maximum=LARGEST_COUNT)
    top_k: int = _setting(100, minimum=1, maximum=LARGEST_COUNT)
    minimum_score: float = _setting(0.0)
    window: float = _setting(0.0, minimum=0)
    window_overlap: float = _setting(0.5, minimum=0, maximum=0.95)
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.suppression_rank == "overlap" and self.suppression != "hard":
            raise UserError(
                f"inference.suppression_rank: overlap is for hard suppression, inference.suppression is "
                f"{self.suppression}"
            )


@dataclass(frozen=True)
class Config:
    """All settings of a run; `preset` names the preset that it started from."""

    preset: str = "paper"
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    assignment: AssignmentConfig = AssignmentConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()


# What the runs that the paper compares learn from (its tables 1 and 2), as changes to a preset.
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "aher0": {
        "method": {"untrimmed": "none", "moments": "classified", "context": "none"},
        "inference": {"candidates": "snippets"},
    },
    "aher-": {
        "method": {"untrimmed": "proposals", "moments": "classified", "context": "none"},
        "inference": {"candidates": "crops"},
    },
    "aherM": {"method": {"untrimmed": "none", "moments": "localized", "context": "none"}},
    "aherA-": {
        "method": {
            "untrimmed": "transfer",
            "moments": "localized",
            "context": "pretrained",
            "real_residual": False,
        },
    },
    # Not in the paper: aherA- with the residual of real background; and with real background of other videos around the
    # moments, which is what a perfect generator could reach.
    "aherR": {
        "method": {
            "untrimmed": "transfer",
            "moments": "localized",
            "context": "pretrained",
            "real_residual": True,
        },
    },
    "aherB": {"method": {"untrimmed": "transfer", "moments": "localized", "context": "background"}},
    "aher": {"method": {"untrimmed": "transfer", "moments": "localized", "context": "adversarial"}},
    "aher*": {"method": {"untrimmed": "supervised", "moments": "none", "context": "none"}},
}

# What measurement says. Where it departs from the paper, and why (figures: results/):
_TUNED = Config(
    preset="tuned",
    # Each ELU cuts large weights at -1, which costs novel classes a third of what their segment-level weights know.
    # What lies next to the beginning of a moment has more to do with its beginning than with its end. Where moments are
    # alone in their videos this is worth two to six points on HAPT; beside neighbours no gain of it is shown.
    model=ModelConfig(transfer_activation="none", mirrored_context=True),
    method=MethodConfig(
        # 0.70 to 0.95 never shows a short action in context. At the pace of real videos nothing is left to choose, and
        # nothing that is seen in training goes at another speed than what is to be found.
        shares="durations",
        # Alone in its video, a moment never teaches where one action ends and the next begins. Videos of novel classes
        # may show more of them, or fewer, than those of base classes do.
        neighbours=5,
        arrangement="random",
        # As the recorded runs have it; beginning from scratch, as the paper does, gives the same.
        pretrain_adversaries=True,
        # A backbone that learns to tell real from synthetic background learns what must not matter.
        adversarial_backbone=False,
    ),
    # More than half of the segments shorter than half the video have no anchor above 0.8, and a small
    # data set cannot afford to lose them. Anchors above 0.5 that learn to move onto the ground truth are
    # also merged with it by suppression instead of ranking beside it.
    assignment=AssignmentConfig(foreground_threshold=0.5, force_match=True),
    # Errors of centre and width are fractions of the video, so that smooth-L1 is nearly e^2 / 2 and with
    # a weight of 1 vanishes beside the class loss (an error of 2 % counts 0.0002). Raising these two
    # weights improved held-out mAP on rendered and on real sequences. Generators that see the localization
    # losses can make moments easy to find, which real ones are not. Left to the adversary alone they find features
    # that deceive it and look like nothing real; the distance to real context holds them (and might allow the former).
    # L_reg is a sum over eight scales and pulls the backbone away from boundaries: with a weight of 1, novel classes'
    # proposals reach an AUC of 80 instead of 87 on the rendered world. Foreground cells alone are too few to learn
    # many classes from. Background that nobody takes for an action teaches L_ov nothing, and is most of it
    # (four points on the rendered world, within the noise elsewhere).
    loss=LossConfig(
        segment=0.05,
        classification=0.5,
        offset=2000.0,
        overlap=20.0,
        generation=0.0,
        generator=0.1,
        context=1.0,
        class_cells="all",
        overlap_anchors="hard",
    ),
    # One bad batch must not undo a run. A linear classifier on features that serve boundaries first learns slowly: at
    # the rate of the rest, W_regv has hardly begun when the rest is done. The weight transfer has only the rows of the
    # base classes to learn from: at the rate of the rest it knows these by heart, and spoils those of novel classes.
    # Fast adversaries drag the generators away from where they started.
    training=TrainingConfig(gradient_clip=5.0, classifier_rate=10.0, transfer_rate=0.1, adversarial_rate=0.1),
    # A cell of a fine map alone is too noisy to tell many classes apart, and one of a coarse map sees more than the
    # action; the mean of the fine cells that a segment covers is what W_regv learnt to classify. Gaussian suppression
    # ranks what overlaps lower instead of removing it: on rendered and on real sequences better than any threshold of
    # hard NMS, which has to choose between neighbours and duplicates.
    inference=InferenceConfig(class_score="segment", suppression="gaussian", sigma=0.7),
)

PRESETS: dict[str, Config] = {
    "paper": Config(),
    "tuned": _TUNED,
    # The same with a network for a CPU.
    "tiny": dataclasses.replace(
        _TUNED,
        preset="tiny",
        # 1/32 of the width: an iteration of 16 videos takes tens of milliseconds on one core. At least 32
        # channels, because 8 on the finest maps cannot tell classes apart.
        model=dataclasses.replace(_TUNED.model, feature_dimension=0, width=1 / 32, minimum_channels=32),
        method=dataclasses.replace(_TUNED.method, pretrain_iterations=200, context_iterations=200),
        # A small network takes (and in a short run needs) a larger step. Small data sets are soon known by heart:
        # 2,000 iterations score worse than 500. Layers this small are not worth sharing, and threads that wait for
        # each other stall as soon as the machine is busy: with another process on two cores, 100 iterations took
        # 11 s on one thread and 72 s on two.
        training=dataclasses.replace(
            _TUNED.training,
            iterations=500,
            learning_rate=2e-3,
            decay_every=350,
            checkpoint_every=250,
            cpu_threads=1,
        ),
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


def with_run(config: Config, name: str) -> Config:
    """Return the configuration of one of the runs that the paper compares.

    Raises:
        UserError: there is no such run.
    """
    if name not in RUNS:
        raise UserError(f"run: expected {_choices(RUNS)}, got {_shown(name)}{_suggestion(name, RUNS)}")
    sections = {key: dataclasses.replace(getattr(config, key), **changes) for key, changes in RUNS[name].items()}
    return dataclasses.replace(config, **typing.cast(Any, sections))


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
    neighbours = changes.get("neighbours")
    if key == "method" and isinstance(neighbours, bool):  # as it was written when there could be one at most
        changes = {**changes, "neighbours": int(neighbours)}
    return dataclasses.replace(section, **changes)


def _refuse_unknown(data: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    known = list(known)
    for key in data:
        if key not in known:
            raise UserError(f"{prefix}{key}: unknown key{_suggestion(key, known)}, expected {_choices(known)}")
