"""A small world of rendered features: videos made of formulas, for demonstrations, tests and ablations.

Nothing is downloaded and nothing is learnt: every video follows from a `WorldConfig`, its id and the names of
its classes, bit for bit the same on every run. The world keeps what makes temporal localization hard: actions
that unfold in an order, backgrounds that move by themselves, things that look like actions and are not, and
videos that differ in ways that do not matter.

The formulas, with `t` in seconds, every vector of D = `dimension` entries, and sizes as root mean squares
(rms) over these entries:

- **Signature of a class.** Three vectors of rms 1, S_0, S_1, S_2: how it starts, what its
  middle is, how it ends. S_k ~ sqrt(q) G_k + sqrt(1 - q) U_k, U_k random per class, G_k shared by all
  classes, q = `similarity`. At q = 0 classes have nothing in common, at q = 1 they are one class.
- **Action.** An instance with segment (s, e) has the phase u = ((t - s) / (e - s)) ^ w; w = exp(`tempo` * n)
  makes it hurry at the start or at the end. a(u) = (1 - 2u) S_0 + 2u S_1 for u <= 1/2 and
  (2 - 2u) S_1 + (2u - 1) S_2 beyond: only a whole instance shows start, middle and end in this order.
- **Presence.** m(t) rises linearly from 0 to 1 over `edge` seconds around s and falls around e.
- **Background.** b(t) = B z(t), B a random D x `background_rank` matrix shared by the world, columns of
  rms 1; each entry of z is a smooth stationary process of variance 1 / `background_rank` whose covariance
  falls as exp(-d^2 / (2 `background_memory`^2)) with the distance d in seconds (random Fourier features).
- **Decoys.** In gaps between instances: `distractors` (on average) episodes of unlabelled signatures, and
  `fragments` (on average) openings of a labelled class that break off between 30 % and 60 % of their phase.
- **Video.** x(t) = g ((1 - m(t)) `background` b(t) + m(t) `strength` a(t)) + o + `noise` n(t), with the gain
  g = exp(`gain_spread` n) and the offset o = `offset_spread` n (a vector) drawn once per video.
  n is standard normal, drawn anew wherever it occurs.

Real annotations can be given features by the same formulas (`write_rendered`): durations, overlaps and the balance of
the classes are then real. The published files of Kinetics-600 state no durations: the last instance of such a video
ends at a share of it that is uniform between 60 % and 100 %.

Row i of a video describes the clip centred at (i + 1/2) `clip_stride` / `frame_rate` seconds.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from ahernet.data.annotations import Annotations, VideoAnnotations, write_annotations
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.files import make_folder
from ahernet.progress import ProgressBar

FOURIER_FEATURES = 24  # terms of one background process: few enough to be fast, many enough to look random
MIN_GAP_SECONDS = 1.0  # between instances; a gap gets a decoy from three times this on
ORIGIN = "rendered features (ahernet.rendered)"


@dataclass(frozen=True)
class WorldConfig:
    """What is rendered and how hard it is; the module's docstring has the formulas.

    Raises:
        ValueError: a value outside its range.
    """

    seed: int = 0
    classes: int = 6
    training_videos: int = 240
    validation_videos: int = 60
    dimension: int = 48
    frame_rate: float = 25.0
    """Frames per second."""
    clip_stride: int = 8
    """Frames from one row to the next."""
    min_duration: float = 30.0
    """Shortest video in seconds; durations are log-uniform."""
    max_duration: float = 120.0
    """Longest video in seconds."""
    max_instances: int = 3
    """A video has 1 to this many instances, all of one class."""
    min_share: float = 0.06
    """Shortest instance as a share of its video; shares are log-uniform."""
    max_share: float = 0.6
    """Longest instance as a share of its video."""
    similarity: float = 0.3
    """Share that the signatures of all classes have in common, 0 to 1."""
    tempo: float = 0.2
    """Spread of the log-exponent that warps an instance's phase."""
    edge: float = 0.5
    """Seconds in which an action fades in or out, centred on its boundary."""
    strength: float = 1.5
    """Root mean square of an action's features."""
    background: float = 1.0
    """Root mean square of the background's features."""
    background_rank: int = 8
    background_memory: float = 4.0
    """Seconds over which the background changes."""
    distractors: float = 0.7
    """Average number of unlabelled episodes in a video."""
    distractor_kinds: int = 6
    fragments: float = 0.5
    """Average number of openings of a class that break off."""
    gain_spread: float = 0.2
    offset_spread: float = 0.3
    noise: float = 0.6

    def __post_init__(self) -> None:
        counts = (
            "classes",
            "dimension",
            "clip_stride",
            "max_instances",
            "background_rank",
            "distractor_kinds",
        )
        positive = (*counts, "frame_rate", "min_duration", "min_share", "background_memory", "strength")
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0 or (field.name in positive and value == 0):
                expected = "a positive number" if field.name in positive else "a number that is not negative"
                raise ValueError(f"{field.name}: expected {expected}, got {value}")
        if self.max_duration < self.min_duration:
            raise ValueError(f"max_duration: expected at least min_duration, got {self.max_duration}")
        if not self.min_share <= self.max_share <= 1:
            raise ValueError(f"max_share: expected min_share <= max_share <= 1, got {self.max_share}")
        if self.similarity > 1:
            raise ValueError(f"similarity: expected at most 1, got {self.similarity}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the world's own classes."""
        return tuple(f"action {number + 1:02d}" for number in range(self.classes))


# What real annotations are rendered with: as hard as the world of the demonstration. Fixed before any run on them was
# made, and not changed since.
ANNOTATED_WORLD = WorldConfig()
SHORTEST_SHARE_TO_LAST_END = 0.6  # of a video of unknown duration


@dataclass(frozen=True)
class RenderedVideo:
    """One video: `features` (L, D) float32, `segments` (G, 2) in seconds, one label per segment."""

    video_id: str
    subset: str
    features: np.ndarray
    duration: float
    segments: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _Episode:
    """Something that shows `signature` (3, D) from `start` to `end`, up to the phase `until`."""

    start: float
    end: float
    signature: np.ndarray
    until: float = 1.0


def render_world(config: WorldConfig) -> Iterator[RenderedVideo]:
    """Yield the training videos, then the validation videos of a world.

    Classes take turns, so that each has its share of both subsets.
    """
    for subset, count in (("training", config.training_videos), ("validation", config.validation_videos)):
        for number in range(count):
            video_id = f"{subset}_{number:05d}"
            rng = _generator(config, "plan", video_id)
            duration = _log_uniform(rng, config.min_duration, config.max_duration)
            segments = _place_instances(config, duration, rng)
            labels = (config.class_names[number % config.classes],) * len(segments)
            features = render_video(config, video_id, duration, segments, labels)
            yield RenderedVideo(video_id, subset, features, duration, segments, labels)


def render_video(
    config: WorldConfig,
    video_id: str,
    duration: float,
    segments: np.ndarray,
    labels: Sequence[str],
) -> np.ndarray:
    """Render the features (L, D) float32 of an untrimmed video with the given instances.

    Any class name has a signature, so real annotations can be given features. `segments` (G, 2) are in
    seconds; parts outside the video and segments without length show nothing.

    Raises:
        ValueError: a duration that is not positive, or segments and labels that do not fit together.
    """
    if not duration > 0 or not math.isfinite(duration):
        raise ValueError(f"duration: expected a positive number of seconds, got {duration}")
    if segments.shape != (len(labels), 2):
        raise ValueError(f"segments: expected shape ({len(labels)}, 2), got {segments.shape}")
    rng = _generator(config, "video", video_id)
    episodes = [
        _Episode(float(start), float(end), _signature(config, label))
        for (start, end), label in zip(segments, labels, strict=True)
        if end > start
    ]
    episodes += _decoys(config, duration, segments, labels, rng)
    return _render(config, duration, episodes, rng)


def render_moment(config: WorldConfig, label: str, number: int = 0) -> RenderedVideo:
    """Render moment `number` of a class: a trimmed clip that one whole instance fills.

    Its length is that of an instance of the world; the only label it would come with is its class.
    """
    video_id = f"moment_{label}_{number:05d}"
    rng = _generator(config, "moment", video_id)
    duration = _log_uniform(rng, config.min_duration, config.max_duration)
    duration *= _log_uniform(rng, config.min_share, config.max_share)
    episode = _Episode(0.0, duration, _signature(config, label))
    features = _render(config, duration, [episode], rng)
    return RenderedVideo(video_id, "moment", features, duration, np.array([[0.0, duration]]), (label,))


def render_annotations(config: WorldConfig, annotations: Annotations) -> Iterator[RenderedVideo]:
    """Yield a rendered video for every annotated one, with its own duration, segments and labels.

    Raises:
        ValueError: a video without a known duration.
    """
    for video in annotations.videos.values():
        features = render_video(config, video.video_id, video.duration, video.segments, video.labels)
        yield RenderedVideo(video.video_id, video.subset, features, video.duration, video.segments, video.labels)


def with_durations(config: WorldConfig, annotations: Annotations) -> Annotations:
    """Return annotations in which every video has a duration: what is unknown is drawn, as the module's docstring says.

    A video without instances gets a duration of the world.
    """
    videos = {
        key: video if video.duration > 0 else replace(video, duration=_draw_duration(config, video))
        for key, video in annotations.videos.items()
    }
    return Annotations(videos, annotations.source)


def _draw_duration(config: WorldConfig, video: VideoAnnotations) -> float:
    rng = _generator(config, "duration", video.video_id)
    last_end = float(video.segments[:, 1].max(initial=0.0))
    if not last_end:
        return _log_uniform(rng, config.min_duration, config.max_duration)
    return last_end / float(rng.uniform(SHORTEST_SHARE_TO_LAST_END, 1.0))


def write_rendered(
    archive: Path, annotations: Annotations, config: WorldConfig = ANNOTATED_WORLD, *, progress: bool = True
) -> None:
    """Render every annotated video into a new archive, one after the other.

    Args:
        archive: to write.
        annotations: videos with segments in seconds; unknown durations are drawn (`with_durations`).
        config: how hard it is.
        progress: show a bar on standard error.

    Raises:
        UserError: the archive cannot be written.
    """
    videos = render_annotations(config, with_durations(config, annotations))
    with _rendered_archive(archive, config) as writer:
        for video in ProgressBar(videos, "render", len(annotations.videos), unit="video", disable=not progress):
            writer.add(video.video_id, video.features, video.duration)


def write_rendered_moments(
    archive: Path, classes: Sequence[str], per_class: int, config: WorldConfig = ANNOTATED_WORLD
) -> dict[str, str]:
    """Render moments of some classes into a new archive; return the class of each by its id.

    Raises:
        UserError: the archive cannot be written.
    """
    labels: dict[str, str] = {}
    with _rendered_archive(archive, config) as writer:
        for label in classes:
            for number in range(per_class):
                moment = render_moment(config, label, number)
                writer.add(moment.video_id, moment.features, moment.duration)
                labels[moment.video_id] = label
    return labels


def _rendered_archive(path: Path, config: WorldConfig) -> ArchiveWriter:
    return ArchiveWriter(
        path,
        dimension=config.dimension,
        dtype="float16",
        frame_rate=config.frame_rate,
        clip_stride=config.clip_stride,
        origin=ORIGIN,
    )


def write_world(folder: Path, config: WorldConfig) -> tuple[Path, Path]:
    """Render a world into `folder` and return the paths of `archive.h5` and `annotations.json`.

    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(folder)
    archive, annotations = folder / "archive.h5", folder / "annotations.json"
    videos: dict[str, VideoAnnotations] = {}
    with _rendered_archive(archive, config) as writer:
        for video in render_world(config):
            writer.add(video.video_id, video.features, video.duration)
            videos[video.video_id] = VideoAnnotations(
                video.video_id, video.subset, video.duration, video.segments, video.labels
            )
    write_annotations(annotations, Annotations(videos, source=ORIGIN))
    return archive, annotations


def _place_instances(config: WorldConfig, duration: float, rng: np.random.Generator) -> np.ndarray:
    """Draw 1 to `max_instances` segments (G, 2) in order, without overlap, with random gaps around them."""
    wanted = int(rng.integers(1, config.max_instances + 1))
    lengths = [duration * _log_uniform(rng, config.min_share, config.max_share)]
    for _ in range(wanted - 1):
        length = duration * _log_uniform(rng, config.min_share, config.max_share)
        if sum(lengths) + length + len(lengths) * MIN_GAP_SECONDS <= 0.9 * duration:
            lengths.append(length)
    inner = np.full(len(lengths) + 1, MIN_GAP_SECONDS)
    inner[[0, -1]] = 0.0
    free = max(duration - sum(lengths) - inner.sum(), 0.0)
    gaps = inner + free * rng.dirichlet(np.ones(len(lengths) + 1))
    starts = np.cumsum(gaps[:-1]) + np.concatenate(([0.0], np.cumsum(lengths)[:-1]))
    return np.stack([starts, np.minimum(starts + lengths, duration)], axis=1)


def _decoys(
    config: WorldConfig,
    duration: float,
    segments: np.ndarray,
    labels: Sequence[str],
    rng: np.random.Generator,
) -> list[_Episode]:
    """Fill some gaps between the instances with distractors and fragments, at most one per gap."""
    gaps = _gaps(segments, duration)
    kinds = ["distractor"] * int(rng.poisson(config.distractors))
    kinds += ["fragment"] * int(rng.poisson(config.fragments))
    rng.shuffle(kinds)
    kinds = kinds[: len(gaps)]
    if not kinds:
        return []
    lengths = gaps[:, 1] - gaps[:, 0]
    chosen = gaps[rng.choice(len(gaps), len(kinds), replace=False, p=lengths / lengths.sum())]
    episodes = []
    for kind, (left, right) in zip(kinds, chosen, strict=True):
        limit = min(0.8 * (right - left), config.max_share * duration)
        length = rng.uniform(0.4, 1.0) * limit
        start = rng.uniform(left, right - length)
        if kind == "distractor":
            name = f"unlabelled\0{rng.integers(config.distractor_kinds)}"
            episodes.append(_Episode(start, start + length, _signature(config, name)))
        else:
            names = sorted(set(labels)) or list(config.class_names)
            name = names[rng.integers(len(names))]
            until = rng.uniform(0.3, 0.6)
            episodes.append(_Episode(start, start + length, _signature(config, name), until))
    return episodes


def _gaps(segments: np.ndarray, duration: float) -> np.ndarray:
    """Return the free intervals (K, 2) of a video that are long enough for a decoy and its margins."""
    ordered = segments[np.argsort(segments[:, 0], kind="stable")] if len(segments) else np.zeros((0, 2))
    busy_until = np.maximum.accumulate(np.concatenate(([0.0], ordered[:, 1])))
    gaps = np.stack([busy_until, np.concatenate((ordered[:, 0], [duration]))], axis=1)
    gaps = np.clip(gaps, 0.0, duration)
    return np.asarray(gaps[gaps[:, 1] - gaps[:, 0] >= 3 * MIN_GAP_SECONDS])


def _render(config: WorldConfig, duration: float, episodes: Sequence[_Episode], rng: np.random.Generator) -> np.ndarray:
    """Evaluate the formula of a video at the centres of its clips: (L, D) float32."""
    step = config.clip_stride / config.frame_rate
    rows = max(1, math.floor(duration / step))
    times = (np.arange(rows) + 0.5) * step
    absent = np.ones(rows)
    action = np.zeros((rows, config.dimension))
    for episode in episodes:
        length = episode.end - episode.start
        phase = np.clip((times - episode.start) / length, 0.0, 1.0)
        phase = episode.until * phase ** math.exp(config.tempo * rng.standard_normal())
        edge = max(min(config.edge, length), 1e-6)
        inside = np.minimum(times - episode.start, episode.end - times)
        presence = np.clip(0.5 + inside / edge, 0.0, 1.0)
        absent *= 1.0 - presence
        action += presence[:, None] * (_hats(phase) @ episode.signature)
    scene = _processes(config, times, rng) @ _background_basis(config)
    signal = config.background * absent[:, None] * scene + config.strength * action
    gain = math.exp(config.gain_spread * rng.standard_normal())
    offset = config.offset_spread * rng.standard_normal(config.dimension)
    noise = config.noise * rng.standard_normal((rows, config.dimension))
    return np.asarray(gain * signal + offset + noise, dtype=np.float32)


def _hats(phase: np.ndarray) -> np.ndarray:
    """Weights (L, 3) of start, middle and end at phases (L,): linear interpolation with knots 0, 1/2, 1."""
    return np.asarray(np.maximum(0.0, 1.0 - 2.0 * np.abs(phase[:, None] - np.array([0.0, 0.5, 1.0]))))


def _processes(config: WorldConfig, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample the smooth background processes z at `times`: (L, background_rank)."""
    shape = (config.background_rank, FOURIER_FEATURES)
    frequency = rng.standard_normal(shape) / config.background_memory
    phase = rng.uniform(0.0, 2.0 * math.pi, shape)
    waves = np.cos(times[:, None, None] * frequency + phase)
    scale = math.sqrt(2.0 / (FOURIER_FEATURES * config.background_rank))
    return np.asarray(scale * waves.sum(axis=2))


@lru_cache(maxsize=4096)
def _signature(config: WorldConfig, name: str) -> np.ndarray:
    """Return the vectors (3, D) of rms 1 at which a class starts, is in its middle, and ends."""
    own = _rms_rows(_generator(config, "signature", name).standard_normal((3, config.dimension)))
    shared = _rms_rows(_generator(config, "shared signature").standard_normal((3, config.dimension)))
    return _rms_rows(math.sqrt(config.similarity) * shared + math.sqrt(1.0 - config.similarity) * own)


@lru_cache(maxsize=16)
def _background_basis(config: WorldConfig) -> np.ndarray:
    """Return B transposed: rows of rms 1 (background_rank, D)."""
    rng = _generator(config, "background")
    return _rms_rows(rng.standard_normal((config.background_rank, config.dimension)))


def _rms_rows(rows: np.ndarray) -> np.ndarray:
    """Scale each row to a root mean square of 1."""
    return np.asarray(rows / np.sqrt((rows**2).mean(axis=1, keepdims=True)))


def _generator(config: WorldConfig, *purpose: str) -> np.random.Generator:
    """Return a generator that depends on the seed and a purpose only, never on what was drawn before."""
    digest = hashlib.sha256("\0".join(purpose).encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([config.seed, *np.frombuffer(digest, np.uint32).tolist()])


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))
