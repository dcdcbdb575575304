import math
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ahernet import timelines
from ahernet.data.annotations import Annotations, VideoAnnotations
from ahernet.data.detections import Detections
from ahernet.errors import UserError
from ahernet.timelines import draw_timelines

Row = tuple[str, str, float, float, float]  # video, label, start, end, score
PNG = b"\x89PNG\r\n\x1a\n"


def detections_of(rows: Sequence[Row], videos: Sequence[str] = ()) -> Detections:
    video_ids = tuple(dict.fromkeys([*videos, *(row[0] for row in rows)]))
    classes = tuple(dict.fromkeys(row[1] for row in rows))
    return Detections(
        video_ids=video_ids,
        classes=classes,
        video=np.array([video_ids.index(row[0]) for row in rows], np.int64),
        label=np.array([classes.index(row[1]) for row in rows], np.int64),
        segments=np.array([row[2:4] for row in rows], np.float64).reshape(-1, 2),
        scores=np.array([row[4] for row in rows], np.float64),
    )


def annotations_of(rows: Sequence[Row], videos: Sequence[str] = (), duration: float = 100.0) -> Annotations:
    built = {}
    for video in dict.fromkeys([*videos, *(row[0] for row in rows)]):
        own = [row for row in rows if row[0] == video]
        segments = np.array([row[2:4] for row in own], np.float64).reshape(-1, 2)
        built[video] = VideoAnnotations(video, "", duration, segments, tuple(row[1] for row in own))
    return Annotations(built, "made.json")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, in order; saving itself is left out for speed."""
    saved: list[Figure] = []

    def keep(figure: Figure, path: Path, **_: object) -> None:
        saved.append(figure)
        path.write_bytes(PNG)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in (*figure.texts, *figure.axes[0].texts)]


def bars(figure: Figure) -> list[Rectangle]:
    """Ground truth and detections, without the shadows of the ground truth."""
    return [patch for patch in figure.axes[0].patches if patch.get_zorder() == 3]


def is_hollow(bar: Rectangle) -> bool:
    return to_rgba(bar.get_facecolor()) == to_rgba("white")


def test_each_listed_video_becomes_one_png_named_after_it(tmp_path: Path) -> None:
    found = detections_of([("v_abc", "jump", 1, 9, 0.5), ("../x", "jump", 1, 9, 0.5)], videos=("empty",))
    truth = annotations_of([("v_abc", "jump", 1.0, 9.0, 0)])
    paths = draw_timelines(truth, found, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["empty.png", "v_abc.png", "%2E%2E%2Fx.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(path.name for path in paths)
    assert all(path.read_bytes().startswith(PNG) and path.stat().st_size > 5000 for path in paths)


def test_pictures_repeat_byte_for_byte(tmp_path: Path) -> None:
    found = detections_of([("a", "jump", 1, 9, 0.5)])
    (first,) = draw_timelines(None, found, tmp_path / "1")
    (second,) = draw_timelines(None, found, tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()


def test_chosen_videos_are_found_with_and_without_prefix(tmp_path: Path, figures: list[Figure]) -> None:
    found = detections_of([("a", "jump", 1, 9, 0.5), ("b", "jump", 1, 9, 0.5)])
    truth = annotations_of([("v_only annotated", "jump", 1, 9, 0)])
    paths = draw_timelines(truth, found, tmp_path, video_ids=["only annotated", "v_b", "v_b"])
    assert [path.name for path in paths] == ["v_only%20annotated.png", "b.png"]
    assert "0 detections" in texts(figures[0])[1]


def test_a_video_nobody_lists_is_named_with_the_nearest_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"video 'vidoe1'.*mean 'video1'\?"):
        draw_timelines(None, detections_of([], videos=["video1"]), tmp_path, video_ids=["vidoe1"])


def test_hits_are_filled_and_misses_hollow(tmp_path: Path, figures: list[Figure]) -> None:
    truth = annotations_of([("a", "jump", 0, 10, 0), ("a", "run", 50, 60, 0)])
    rows: list[Row] = [
        ("a", "jump", 0, 20, 0.9),  # tiou exactly 0.5
        ("a", "jump", 0, 20.1, 0.8),
        ("a", "run", 0, 10, 0.7),  # right place, wrong class
        ("a", "run", 50, 61, 0.6),
    ]
    draw_timelines(truth, detections_of(rows), tmp_path)
    truth_colour = to_rgba(timelines.TRUTH)
    found = [bar for bar in bars(figures[0]) if to_rgba(bar.get_facecolor()) != truth_colour]
    assert len(bars(figures[0])) - len(found) == 2
    assert {(bar.get_x(), round(bar.get_width(), 6)): is_hollow(bar) for bar in found} == {
        (0.0, 20.0): False,
        (0.0, 20.1): True,
        (0.0, 10.0): True,
        (50.0, 11.0): False,
    }


def test_without_annotations_all_bars_are_filled_and_no_legend_is_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    draw_timelines(None, detections_of([("a", "jump", 0, 20, 0.9), ("a", "run", 0, 20, 0.1)]), tmp_path)
    assert [is_hollow(bar) for bar in bars(figures[0])] == [False, False]
    assert not figures[0].legends
    assert texts(figures[0])[:2] == ["a", "2 detections"]


def test_higher_scores_are_stronger_and_the_best_are_written(tmp_path: Path, figures: list[Figure]) -> None:
    rows: list[Row] = [("a", "jump", 5 * n, 5 * n + 1, n / 20) for n in range(20)]
    draw_timelines(None, detections_of(rows), tmp_path)
    by_start = sorted(bars(figures[0]), key=lambda bar: bar.get_x())
    strengths = [bar.get_facecolor()[3] for bar in by_start]
    assert strengths == sorted(strengths)
    assert (strengths[0], strengths[-1]) == pytest.approx((0.4, 1.0))
    written = [text for text in texts(figures[0]) if text.startswith("0.")]
    assert written == [f"{n / 20:.2f}" for n in range(19, 19 - timelines.SCORES_WRITTEN, -1)]


def test_what_is_not_drawn_is_counted(tmp_path: Path, figures: list[Figure]) -> None:
    rows: list[Row] = [("a", "jump", n, n + 1, n / 10) for n in range(10)]
    draw_timelines(None, detections_of(rows), tmp_path, top=4, minimum_score=0.3)
    assert "4 of 10 detections drawn; not drawn: 3 below score 0.3, 3 beyond the best 4" in texts(figures[0])
    assert sorted(bar.get_x() for bar in bars(figures[0])) == [6, 7, 8, 9]


def test_classes_beyond_the_lanes_are_counted(tmp_path: Path, figures: list[Figure]) -> None:
    rows: list[Row] = [("a", f"class {n:02d}", 2 * n, 2 * n + 1, 0.5) for n in range(33)]
    draw_timelines(annotations_of(rows), detections_of(rows), tmp_path)
    (footer,) = [text for text in texts(figures[0]) if "not drawn" in text]
    assert footer == (
        "30 of 33 detections drawn; not drawn: 3 in classes beyond the first 30, "
        "3 instances in classes beyond the first 30"
    )
    lanes = [text for text in texts(figures[0]) if text.startswith("class ")]
    assert lanes == [f"class {n:02d}" for n in range(30)]


def test_bars_never_cover_one_another(tmp_path: Path, figures: list[Figure]) -> None:
    generator = np.random.default_rng(0)
    starts = generator.uniform(0, 90, 60)
    ends = starts + generator.exponential(10, 60)
    rows: list[Row] = [
        ("a", f"class {generator.integers(3)}", float(start), float(end), float(generator.random()))
        for start, end in zip(starts, ends, strict=True)
    ]
    draw_timelines(annotations_of(rows[:20]), detections_of(rows), tmp_path, top=1000)
    drawn = [bar.get_bbox() for bar in bars(figures[0])]
    assert len(drawn) == 80
    for one, other in combinations(drawn, 2):
        apart_in_time = one.x1 <= other.x0 or other.x1 <= one.x0
        assert apart_in_time or one.y1 <= other.y0 or other.y1 <= one.y0
    low, high = sorted(figures[0].axes[0].get_ylim())
    assert all(low <= box.y0 and box.y1 <= high for box in drawn)


def test_title_gives_instances_detections_and_average_precision(tmp_path: Path, figures: list[Figure]) -> None:
    truth = annotations_of([("a", "jump", 0, 10, 0), ("a", "jump", 20, 30, 0)])
    rows: list[Row] = [("a", "jump", 0, 10, 0.9), ("a", "elsewhere", 0, 10, 0.95)]
    draw_timelines(truth, detections_of(rows), tmp_path)
    assert texts(figures[0])[:2] == ["a", "2 instances of 1 class  ·  2 detections  ·  AP@0.50 50.0 %"]


@pytest.mark.parametrize(
    ("duration", "first_ticks", "unit"),
    [
        (0.8, ["0", "0.1", "0.2"], "time (s)"),
        (90.0, ["0", "10", "20"], "time (s)"),
        (1000.0, ["0:00", "2:00", "4:00"], "time (min:s)"),
        (9000.0, ["0:00:00", "0:15:00", "0:30:00"], "time (h:min:s)"),
        (1e9, ["0:00:00"], "time (h:min:s)"),
    ],
)
def test_time_axis_suits_the_duration(
    duration: float, first_ticks: list[str], unit: str, tmp_path: Path, figures: list[Figure]
) -> None:
    draw_timelines(annotations_of([], ["a"], duration), detections_of([], ["a"]), tmp_path)
    axes = figures[0].axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[: len(first_ticks)] == first_ticks
    assert len(labels) <= 12
    assert axes.get_xlabel() == unit


@pytest.mark.parametrize("duration", [100.0, math.nan])
def test_a_video_with_nothing_in_it_says_so(duration: float, tmp_path: Path, figures: list[Figure]) -> None:
    draw_timelines(annotations_of([], ["a"], duration), detections_of([], ["a"]), tmp_path)
    assert "nothing to draw" in texts(figures[0])
    assert texts(figures[0])[1] == "0 instances  ·  0 detections"


def test_the_axis_reaches_segments_after_the_end_of_the_video(tmp_path: Path, figures: list[Figure]) -> None:
    truth = annotations_of([("a", "jump", 90, 130, 0)], duration=100)
    draw_timelines(truth, detections_of([("a", "jump", 50, 50, 0.5)]), tmp_path)
    assert figures[0].axes[0].get_xlim()[1] > 130
    assert min(bar.get_width() for bar in bars(figures[0])) > 0.1  # zero length stays visible


def test_names_are_drawn_as_they_are_and_long_ones_shortened(tmp_path: Path) -> None:
    names = ["$\\frac{a$", "word " * 40, "unbroken" * 30, "_^%"]
    rows: list[Row] = [("$\\x$ " * 40, name, 0, 10, 0.5) for name in names]
    (path,) = draw_timelines(annotations_of(rows), detections_of(rows), tmp_path)  # drawn for real
    assert path.read_bytes().startswith(PNG)


def test_a_very_full_picture_stays_of_bounded_height(tmp_path: Path, figures: list[Figure]) -> None:
    rows: list[Row] = [("a", "jump", 0, 100, 0.5)] * 400
    draw_timelines(None, detections_of(rows), tmp_path, top=1000)
    assert len(bars(figures[0])) == 400
    assert figures[0].get_size_inches()[1] < timelines.MOST_HEIGHT + 3


def test_fewer_than_one_detection_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="top"):
        draw_timelines(None, detections_of([]), tmp_path, top=0)


def test_drawing_leaves_the_global_state_of_pyplot_alone(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from ahernet.data.detections import Detections\n"
        "from ahernet.timelines import draw_timelines\n"
        "none = np.zeros(0, np.int64)\n"
        "draw_timelines(None, Detections(('a',), (), none, none, np.zeros((0, 2)), np.zeros(0)), Path('.'))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], check=False, env=environment, cwd=tmp_path)
    assert result.returncode == 0
    assert (tmp_path / "a.png").exists()
