"""Figure 7 of the paper: ground truth, what aher and what aher- find, on the time axis of single videos.

The videos are drawn at random from those that are scored on. Of each run the best few detections of a video are shown.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ahernet.checkpoint import load_checkpoint
from ahernet.data.annotations import Annotations, VideoAnnotations
from ahernet.data.archive_set import open_features
from ahernet.data.detections import Detections
from ahernet.evaluation.average_precision import pair_tiou
from ahernet.experiments.runner import found_in
from ahernet.experiments.sample import sample_videos
from ahernet.experiments.setting import Setting
from ahernet.experiments.table import aligned
from ahernet.timelines import SEPARATOR, counted, counted_instances, draw_timelines

RUNS = ("aher", "aher-")
VIDEOS = 6
BEST = 5


def measure_timelines(networks: dict[str, Path], setting: Setting, seed: int) -> dict[str, Any]:
    """Return the ground truth of some videos and the best detections of both runs in them.

    Raises:
        UserError: no validation video of novel classes has features.
    """
    source = setting.novel_videos
    with open_features(source.archive) as archive:
        sample = sample_videos(setting, archive, VIDEOS, seed)
        places = {archive.ids[video.position]: video for video in sample}
    annotations = Annotations(
        {place: replace(video.annotations, video_id=place) for place, video in places.items()}, str(source.annotations)
    )
    found = {run: found_in(source, annotations, load_checkpoint(networks[run]), setting.novel)[0] for run in RUNS}
    return {
        "videos": [
            {
                "video": place,
                "duration": video.duration,
                "instances": _instances(video.annotations.segments, video.annotations.labels),
                "found": {run: _best(found[run], place) for run in RUNS},
            }
            for place, video in places.items()
        ]
    }


def format_timelines(result: dict[str, Any]) -> str:
    """Return for every video how far the best of the drawn detections overlap with its instances, on average."""
    lines = [["seed  video", "instances", *(f"tiou of {run}" for run in RUNS)]]
    for found in result["results"]:
        for video in found["videos"]:
            cells = [f"{_closest(video, run):.2f}" for run in RUNS]
            lines.append([f"{found['seed']:<4}  {video['video']}", str(len(video["instances"])), *cells])
    return aligned(lines)


def draw_results(result: dict[str, Any], path: Path) -> None:
    """Draw the timelines of every video into a folder named like `path` without its suffix.

    Raises:
        UserError: a picture cannot be written.
    """
    for found in result["results"]:
        truth: dict[str, VideoAnnotations] = {}
        subtitles: dict[str, str] = {}
        rows: list[tuple[int, str, list[float], float]] = []
        for position, video in enumerate(found["videos"]):
            # Every run has lanes of its own, with the ground truth above what it found.
            segments = [one["segment"] for _ in RUNS for one in video["instances"]]
            names = tuple(_lane(run, one["label"]) for run in RUNS for one in video["instances"])
            truth[video["video"]] = VideoAnnotations(
                video["video"], "", video["duration"], np.array(segments, np.float64).reshape(-1, 2), names
            )
            subtitles[video["video"]] = _subtitle(video)
            rows += [
                (position, _lane(run, one["label"]), one["segment"], one["score"])
                for run in RUNS
                for one in video["found"][run]
            ]
        annotations = Annotations(truth, result["source"])
        draw_timelines(
            annotations,
            _detections(list(truth), rows),
            path.with_suffix("") / f"seed-{found['seed']}",
            subtitles=subtitles,
        )


def _subtitle(video: dict[str, Any]) -> str:
    """Return the counts of a video, and of each run; the lanes of both runs show its instances twice."""
    found = [f"{run}: {counted(len(video['found'][run]), 'detection')}" for run in RUNS]
    return SEPARATOR.join([counted_instances([one["label"] for one in video["instances"]]), *found])


def _lane(run: str, label: str) -> str:
    return f"{run}: {label}"


def _instances(segments: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    return [{"segment": segment, "label": label} for segment, label in zip(segments.tolist(), labels, strict=True)]


def _best(found: Detections, video_id: str) -> list[dict[str, Any]]:
    rows = np.flatnonzero(found.video == found.video_ids.index(video_id))
    rows = rows[np.argsort(-found.scores[rows], kind="stable")][:BEST]
    return [
        {
            "segment": found.segments[row].round(3).tolist(),
            "label": found.classes[found.label[row]],
            "score": round(float(found.scores[row]), 6),
        }
        for row in rows
    ]


def _closest(video: dict[str, Any], run: str) -> float:
    """Return the mean over the instances of the largest tiou with a detection of the same label."""
    best = []
    for instance in video["instances"]:
        own = [one["segment"] for one in video["found"][run] if one["label"] == instance["label"]]
        segments = np.array(own, np.float64).reshape(-1, 2)
        truth = np.tile(np.array(instance["segment"], np.float64), (len(own), 1))
        best.append(float(pair_tiou(segments, truth).max(initial=0.0)))
    return float(np.mean(best))


def _detections(video_ids: list[str], rows: list[tuple[int, str, list[float], float]]) -> Detections:
    classes = tuple(dict.fromkeys(name for _, name, _, _ in rows))
    return Detections(
        video_ids=tuple(video_ids),
        classes=classes,
        video=np.array([row[0] for row in rows], np.int64),
        label=np.array([classes.index(row[1]) for row in rows], np.int64),
        segments=np.array([row[2] for row in rows], np.float64).reshape(-1, 2),
        scores=np.array([row[3] for row in rows], np.float64),
    )
