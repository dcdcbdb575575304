"""Pictures of single videos: ground truth over detections on one time axis, a lane per class."""

import difflib
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ahernet.data.annotations import Annotations, VideoAnnotations, match_video_ids
from ahernet.data.detections import Detections
from ahernet.errors import UserError
from ahernet.evaluation.average_precision import average_precision, pair_tiou
from ahernet.files import make_folder, replace_when_complete, safe_file_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

HIT_TIOU = 0.5
MOST_LANES = 30
SCORES_WRITTEN = 12
SEPARATOR = "  ·  "  # of what is counted in the head of a picture

# Distinct under the common forms of colour blindness: Okabe and Ito without yellow, and a violet.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6A3D9A")
INK, SOFT, FAINT, TRUTH = "#1F2933", "#616E7C", "#E4E7EB", "#323F4B"

# Inches. The vertical data unit of the axes is one inch, too, unless a picture would become too tall.
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 11.0, 2.15, 0.3, 0.85, 0.78
TRUTH_ROW, DETECTION_ROW, LANE_GAP, NAME_LINE = 0.2, 0.18, 0.17, 0.16
SCORE_ROOM, NARROWEST_BAR = 0.34, 0.025
MOST_HEIGHT = 40.0
DOTS_PER_INCH = 130

NAME_LENGTH, NAME_LINES, TITLE_LENGTH = 26, 2, 60
MOST_TICKS = 11
# fmt: off
TICK_STEPS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30,
    60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400,
)
# fmt: on


@dataclass(frozen=True)
class _Bars:
    """Bars of one kind in one lane: (N, 2) seconds, (N,) row from the top, (N,) index of the detection."""

    segments: Floats
    row: Integers
    index: Integers

    @property
    def rows(self) -> int:
        return int(self.row.max(initial=-1)) + 1


@dataclass(frozen=True)
class _Lane:
    name_lines: tuple[str, ...]
    colour: str
    truth: _Bars
    found: _Bars

    @property
    def height(self) -> float:
        rows = TRUTH_ROW * self.truth.rows + DETECTION_ROW * self.found.rows
        return max(rows, NAME_LINE * len(self.name_lines)) + LANE_GAP


@dataclass(frozen=True)
class _Picture:
    """What one picture shows. Detections are best first; `hit` is None where the video is not annotated."""

    title: str
    subtitle: str
    footer: str
    duration: float
    axis_end: float
    lanes: tuple[_Lane, ...]
    scores: Floats
    hit: npt.NDArray[np.bool_] | None

    @property
    def height(self) -> float:
        return sum(lane.height for lane in self.lanes) or 0.6


def draw_timelines(
    annotations: Annotations | None,
    detections: Detections,
    out_folder: Path,
    *,
    video_ids: Sequence[str] | None = None,
    subtitles: Mapping[str, str] | None = None,
    top: int = 40,
    minimum_score: float = 0.0,
) -> list[Path]:
    """Draw one PNG per video into `out_folder` and return their paths, in the order of the videos.

    A lane per class holds the ground truth (dark bars) over the detections (bars in the colour of the class,
    stronger for higher scores). A detection whose tiou with a ground truth of its class is at least 0.5 is
    filled, any other is hollow. What is not drawn is counted at the foot of the picture.

    Args:
        annotations: ground truth, or None to draw the detections alone.
        detections: as read or computed.
        out_folder: made if it does not exist.
        video_ids: videos to draw, with or without `v_`; None draws every video that `detections` lists.
        subtitles: by video id, in place of what is counted and scored in the head of a picture.
        top: how many detections to draw per video at most, best first.
        minimum_score: detections below it are not drawn.

    Raises:
        UserError: a video that neither the detections nor the annotations list, or a picture that cannot be
            written.
        ValueError: `top` is below 1.
    """
    if top < 1:
        raise ValueError(f"top: expected at least 1, got {top}")
    annotated = annotations.videos if annotations else {}
    annotated_id = match_video_ids(detections.video_ids, annotated)
    also_detected = set(annotated_id.values())
    known = [*detections.video_ids, *(name for name in annotated if name not in also_detected)]
    drawn = detections.video_ids if video_ids is None else _known_ids(video_ids, known)
    colours = _shared_colours(annotations, detections)
    make_folder(out_folder)
    paths = []
    for video_id in drawn:
        truth = annotated.get(annotated_id.get(video_id, video_id))
        found = _of_video(detections, video_id)
        subtitle = (subtitles or {}).get(video_id) or _subtitle(truth, found)
        picture = _picture(video_id, subtitle, truth, found, colours, top, minimum_score)
        path = out_folder / f"{safe_file_name(video_id)}.png"
        with replace_when_complete(path) as temporary:
            _figure(picture).savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        paths.append(path)
    return paths


def _known_ids(video_ids: Sequence[str], known: Sequence[str]) -> list[str]:
    matched = match_video_ids(video_ids, known)
    for video_id in video_ids:
        if video_id not in matched:
            close = difflib.get_close_matches(video_id, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f", expected one of their {len(known):,}"
            raise UserError(f"video {video_id!r}: not listed by the detections or the annotations{hint}")
    return list(dict.fromkeys(matched[video_id] for video_id in video_ids))


def _shared_colours(annotations: Annotations | None, detections: Detections) -> dict[str, str]:
    """Return colours that hold across pictures where there are enough of them, else none."""
    names = sorted({*detections.classes, *(annotations.classes() if annotations else ())})
    return dict(zip(names, COLOURS, strict=False)) if len(names) <= len(COLOURS) else {}


def _of_video(detections: Detections, video_id: str) -> Detections:
    """Return the detections of one video, best first; none if the video is not listed."""
    own = detections.video_ids.index(video_id) if video_id in detections.video_ids else -1
    rows = np.flatnonzero(detections.video == own)
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
    return _rows(detections, rows, video_id)


def _rows(detections: Detections, rows: Integers, video_id: str) -> Detections:
    return replace(detections.of_rows(rows), video_ids=(video_id,), video=np.zeros(len(rows), np.int64))


def _picture(
    video_id: str,
    subtitle: str,
    truth: VideoAnnotations | None,
    found: Detections,
    colours: dict[str, str],
    top: int,
    minimum_score: float,
) -> _Picture:
    """Choose what to draw of one video and lay it out; `found` is best first."""
    above = np.flatnonzero(found.scores >= minimum_score)
    best = _rows(found, above[:top], video_id)
    names = _lane_names(truth, best)[:MOST_LANES]
    shown = _rows(best, _rows_of(_labels(best), names), video_id)

    duration = truth.duration if truth else math.nan
    ends = [0.0, *shown.segments[:, 1], *(truth.segments[:, 1] if truth else ())]
    end = float(np.nanmax([duration, max(ends)])) or 1.0
    seconds_per_inch = end / (WIDTH - LEFT - RIGHT - SCORE_ROOM)
    room = np.full(len(shown), 2 * NARROWEST_BAR)
    room[:SCORES_WRITTEN] = SCORE_ROOM
    crowded = f"in classes beyond the first {MOST_LANES}"
    hidden = {
        f"below score {minimum_score:g}": len(found) - len(above),
        f"beyond the best {top:,}": len(above) - len(best),
        crowded: len(best) - len(shown),
        f"instances {crowded}": len(truth.labels) - len(_rows_of(truth.labels, names)) if truth else 0,
    }
    return _Picture(
        title=_shortened(video_id, TITLE_LENGTH),
        subtitle=subtitle,
        footer=_footer(hidden, len(shown), len(found)),
        duration=duration,
        axis_end=end + SCORE_ROOM * seconds_per_inch,
        lanes=tuple(
            _lane(
                name,
                colours.get(name, COLOURS[position % len(COLOURS)]),
                truth,
                shown,
                room * seconds_per_inch,
            )
            for position, name in enumerate(names)
        ),
        scores=shown.scores,
        hit=_hits(truth, shown) if truth else None,
    )


def _lane_names(truth: VideoAnnotations | None, found: Detections) -> list[str]:
    """Return the classes, those of the ground truth in order of time, then the others by best score."""
    in_time = [truth.labels[row] for row in np.argsort(truth.segments[:, 0], kind="stable")] if truth else []
    return list(dict.fromkeys([*in_time, *_labels(found)]))


def _lane(name: str, colour: str, truth: VideoAnnotations | None, found: Detections, room: Floats) -> _Lane:
    own = _rows_of(_labels(found), [name])
    own_truth = _rows_of(truth.labels, [name]) if truth else np.empty(0, np.int64)
    truth_segments = truth.segments[own_truth] if truth else np.empty((0, 2))
    truth_segments = truth_segments[np.argsort(truth_segments[:, 0], kind="stable")]
    segments = found.segments[own]
    return _Lane(
        name_lines=_name_lines(name),
        colour=colour,
        truth=_Bars(truth_segments, _packed(truth_segments, np.zeros(len(truth_segments))), own_truth),
        found=_Bars(segments, _packed(segments, room[own]), own),
    )


def _labels(found: Detections) -> list[str]:
    return [found.classes[label] for label in found.label]


def _rows_of(labels: Sequence[str], names: Collection[str]) -> Integers:
    return np.array([row for row, label in enumerate(labels) if label in names], dtype=np.int64)


def _packed(segments: Floats, room: Floats) -> Integers:
    """Return for each segment the first row where it and the room after it meet no earlier segment."""
    rows: list[list[tuple[float, float]]] = []
    chosen = []
    for (start, end), after in zip(segments.tolist(), room.tolist(), strict=True):
        free = (
            number
            for number, row in enumerate(rows)
            if all(end + after <= other_start or other_end <= start for other_start, other_end in row)
        )
        number = next(free, len(rows))
        if number == len(rows):
            rows.append([])
        rows[number].append((start, end + after))
        chosen.append(number)
    return np.array(chosen, dtype=np.int64)


def _hits(truth: VideoAnnotations, found: Detections) -> npt.NDArray[np.bool_]:
    """Return which detections have tiou >= 0.5 with a ground truth of their class."""
    same = [[label == other for other in truth.labels] for label in _labels(found)]
    row, column = np.nonzero(np.array(same, dtype=bool).reshape(len(found), len(truth.labels)))
    near = pair_tiou(found.segments[row], truth.segments[column]) >= HIT_TIOU
    return np.bincount(row[near], minlength=len(found)) > 0


def _subtitle(truth: VideoAnnotations | None, found: Detections) -> str:
    parts = [counted(len(found), "detection")]
    if truth is not None:
        parts.insert(0, counted_instances(truth.labels))
    if truth is not None and truth.labels:
        known = _rows(found, _rows_of(_labels(found), truth.labels), truth.video_id)
        alone = Annotations(videos={truth.video_id: truth}, source=truth.video_id)
        parts.append(f"AP@{HIT_TIOU:.2f} {100 * average_precision(known, alone, [HIT_TIOU]).mean:.1f} %")
    return SEPARATOR.join(parts)


def _footer(hidden: dict[str, int], shown: int, total: int) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in hidden.items() if count)
    return f"{shown:,} of {counted(total, 'detection')} drawn; not drawn: {reasons}" if reasons else ""


def counted_instances(labels: Sequence[str]) -> str:
    """Return in words how many instances of how many classes there are, given the label of each."""
    classes = f" of {counted(len(set(labels)), 'class', 'classes')}" if labels else ""
    return counted(len(labels), "instance") + classes


def counted(count: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun; the plural has an "s" unless it is given."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def _name_lines(name: str) -> tuple[str, ...]:
    lines = textwrap.wrap(name, NAME_LENGTH) or [""]
    if len(lines) > NAME_LINES:
        lines = [*lines[: NAME_LINES - 1], _shortened(" ".join(lines[NAME_LINES - 1 :]), NAME_LENGTH)]
    return tuple(lines)


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def _figure(picture: _Picture) -> "Figure":
    from matplotlib.figure import Figure

    height = min(picture.height, MOST_HEIGHT)
    total = TOP + height + BOTTOM
    figure = Figure(figsize=(WIDTH, total), facecolor="white")
    axes = figure.add_axes(
        (LEFT / WIDTH, BOTTOM / total, (WIDTH - LEFT - RIGHT) / WIDTH, height / total),
        xlim=(0, picture.axis_end),
        ylim=(picture.height, 0),
    )
    _draw_axis(axes, picture)
    above = 0.0
    for lane in picture.lanes:
        _draw_lane(axes, lane, picture, above)
        above += lane.height
    if not picture.lanes:
        axes.text(
            0.5,
            0.5,
            "nothing to draw",
            color=SOFT,
            ha="center",
            va="center",
            backgroundcolor="white",
            transform=axes.transAxes,
        )
    title = {"color": INK, "size": 13, "weight": "bold", "va": "center", "parse_math": False}
    figure.text(0.02, 1 - 0.24 / total, picture.title, title)
    figure.text(0.02, 1 - 0.52 / total, picture.subtitle, color=SOFT, size=9, va="center")
    figure.text(0.02, 0.18 / total, picture.footer, color=SOFT, size=8, va="center")
    if picture.hit is not None:
        _draw_legend(figure, total)
    return figure


def _draw_axis(axes: "Axes", picture: _Picture) -> None:
    span = picture.axis_end
    step = next((step for step in TICK_STEPS if span / step <= MOST_TICKS), span / MOST_TICKS)
    ticks = np.arange(0, span, step)
    axes.set_xticks(ticks, [_clock(tick, span) for tick in ticks], color=SOFT, size=8)
    unit = "s" if span < 120 else "min:s" if span < 3600 else "h:min:s"
    axes.set_xlabel(f"time ({unit})", color=SOFT, size=8, loc="right")
    axes.set_yticks([])
    axes.tick_params(length=0, pad=5)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    if math.isfinite(picture.duration):
        axes.axvline(picture.duration, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(picture.duration, -0.06, "end", color=SOFT, size=7, ha="center", va="bottom")


def _clock(seconds: float, span: float) -> str:
    if span < 120:
        return f"{seconds:g}"
    minutes, rest = divmod(round(seconds), 60)
    if span < 3600:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _draw_lane(axes: "Axes", lane: _Lane, picture: _Picture, above: float) -> None:
    from matplotlib.patches import Rectangle

    per_inch = picture.axis_end / (WIDTH - LEFT - RIGHT)

    def bar(segment: Floats, top: float, height: float, **look: Any) -> None:
        start, end = segment
        width = max(end - start, NARROWEST_BAR * per_inch)
        axes.add_patch(Rectangle((start, top), width, height, **look))

    axes.axhline(above, color=FAINT, linewidth=0.8)
    axes.text(
        -0.12 * per_inch,
        above + lane.height / 2,
        "\n".join(lane.name_lines),
        color=INK if len(lane.truth.segments) else SOFT,
        size=9,
        ha="right",
        va="center",
        linespacing=1.1,
        parse_math=False,
    )
    top = above + LANE_GAP / 2
    below_truth = top + TRUTH_ROW * lane.truth.rows
    for segment, row in zip(lane.truth.segments, lane.truth.row, strict=True):
        bar(segment, top + TRUTH_ROW * row, TRUTH_ROW - 0.05, facecolor=TRUTH, linewidth=0, zorder=3)
        if lane.found.rows:
            shadow = DETECTION_ROW * lane.found.rows + 0.05
            bar(segment, below_truth - 0.05, shadow, facecolor=lane.colour, alpha=0.10, linewidth=0)
    for segment, row, index in zip(lane.found.segments, lane.found.row, lane.found.index, strict=True):
        row_top = below_truth + DETECTION_ROW * row
        filled = picture.hit is None or bool(picture.hit[index])
        strength = _strength(picture.scores, index)
        look = {
            "facecolor": (lane.colour, strength) if filled else "white",
            "edgecolor": (lane.colour, strength),
        }
        bar(segment, row_top, DETECTION_ROW - 0.05, linewidth=1.0, zorder=3, **look)
        if index < SCORES_WRITTEN:
            axes.text(
                segment[1] + 0.05 * per_inch,
                row_top + (DETECTION_ROW - 0.05) / 2,
                f"{picture.scores[index]:.2f}",
                color=INK,
                size=6.5,
                va="center_baseline",
                zorder=4,
            )


def _strength(scores: Floats, index: int) -> float:
    """Return the opacity of a bar, 0.4 for the lowest score drawn to 1 for the highest."""
    lowest, highest = scores.min(), scores.max()
    share = (scores[index] - lowest) / (highest - lowest) if highest > lowest else 1.0
    return float(0.4 + 0.6 * share)


def _draw_legend(figure: "Figure", total: float) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=TRUTH, label="ground truth"),
        Patch(facecolor=SOFT, edgecolor=SOFT, label=f"detection, tIoU ≥ {HIT_TIOU:g} and right class"),
        Patch(facecolor="white", edgecolor=SOFT, label="other detection"),
    ]
    figure.legend(
        handles=handles,
        loc="center right",
        bbox_to_anchor=(1 - 0.2 / WIDTH, 1 - 0.52 / total),
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=SOFT,
        handlelength=1.6,
        handleheight=0.8,
        columnspacing=1.4,
        borderpad=0,
    )
