"""Commands that localize, score and draw."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from ahernet.command_settings import add_settings, given_settings, with_settings
from ahernet.commands.command import (
    Command,
    add_annotation_options,
    add_classes,
    add_device,
    add_groups,
    add_log,
    check_draws,
    classes_of,
    groups_of,
    read_annotations_of,
)
from ahernet.config import Config, InferenceConfig
from ahernet.errors import UserError
from ahernet.event_log import say_result, warn
from ahernet.files import check_output_file, make_folder, replace_when_complete

if TYPE_CHECKING:
    from ahernet.data.annotations import Annotations
    from ahernet.data.detections import Detections
    from ahernet.evaluation.average_recall import AverageRecall

# What a file of detections may end in; any other name is a folder.
SUFFIXES = (".json", ".csv", ".json.gz", ".csv.gz", ".parquet")
EXPECTED_FILE = f"expected a file name that ends in {', '.join(SUFFIXES)}"
SHARD_VIDEOS = 4096
MAX_THRESHOLD_CHARACTERS = 1 << 24
DRAWN_VIDEOS = 20  # by plot, where none are named


def _add_localize(parser: ArgumentParser) -> None:
    parser.add_argument(
        "archive", type=Path, metavar="ARCHIVE", help="feature archive, or the folder or manifest of several"
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that train wrote")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="detections to write: ActivityNet results (.json) or a table (.csv), either also as .gz, or .parquet; a "
        "name without suffix is a folder of shards, for archives of any size",
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="localize only the videos of this annotation file"
    )
    parser.add_argument("--subset", metavar="NAME", help="of the annotations: only its videos")
    add_annotation_options(parser)
    add_classes(parser, "localize these alone (default: all that the checkpoint knows)")
    parser.add_argument("--thresholds", type=Path, metavar="FILE", help="JSON object of minimum scores by class name")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with a video of unknown duration or with broken features: stop, or leave it out and list it "
        "(default: stop)",
    )
    add_device(parser)
    add_log(parser)
    parser.add_argument("--batch-size", type=int, metavar="VIDEOS", help="the same as --inference.batch_size")
    parser.add_argument(
        "--shard-videos", type=int, metavar="VIDEOS", help=f"videos of a shard in a folder (default: {SHARD_VIDEOS:,})"
    )
    parser.add_argument(
        "--shard-format", metavar="NAME", help="of the shards: parquet, json, csv, json.gz or csv.gz (default: parquet)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="NUMBER",
        help="that share the shards of a folder, each with a GPU or one thread of a CPU (default: one for each)",
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        help="what runs the processes of a folder: this machine, or the Ray cluster at RAY_ADDRESS (default: local)",
    )
    add_settings(parser, ["inference"])


def _run_localize(parsed: Namespace) -> None:
    if parsed.out.name.lower().endswith(SUFFIXES):
        for name in ("shard_videos", "shard_format", "processes", "engine"):
            if parsed[name] is not None:
                option = name.replace("_", "-")
                raise UserError(f"localize: --{option} is for a folder of shards, --out names a file: {parsed.out}")
        _localize_into_file(parsed)
    elif parsed.out.is_dir() or not parsed.out.suffix:
        _localize_into_folder(parsed)
    else:
        raise UserError(f"{parsed.out}: {EXPECTED_FILE}, or a folder name without suffix")


def _localize_into_file(parsed: Namespace) -> None:
    check_output_file(parsed.out)

    from ahernet.checkpoint import load_checkpoint
    from ahernet.data.archive_set import open_features
    from ahernet.data.detection_shards import PARQUET, write_shard
    from ahernet.data.detections_parquet import require_parquet
    from ahernet.inference.localize import localize

    if parsed.out.suffix.lower() == PARQUET:
        require_parquet()
    with open_features(parsed.archive) as archive:
        video_ids, durations = None, None
        if parsed.annotations is not None:
            annotations = read_annotations_of(parsed.annotations, parsed).select(parsed.subset)
            found = _videos_with_features(annotations, archive.ids)
            video_ids = list(found.values())
            durations = {here: annotations.videos[annotated].duration for annotated, here in found.items()}
        checkpoint = load_checkpoint(parsed.checkpoint)
        config = _inference_config(parsed, checkpoint.config)
        make_folder(parsed.out.parent)
        detections = localize(
            archive,
            checkpoint,
            config,
            video_ids=video_ids,
            durations=durations,
            classes=classes_of(parsed),
            minimum_scores=read_thresholds(parsed.thresholds),
            device=parsed.device,
            on_error=parsed.on_error,
        )
    write_shard(parsed.out, detections)
    videos = len(detections.video_ids)
    say_result(
        f"{parsed.out}: {len(detections):,} detections in {videos:,} videos",
        out=parsed.out,
        detections=len(detections),
        videos=videos,
    )


def _localize_into_folder(parsed: Namespace) -> None:
    for name in ("shard_videos", "processes"):
        if parsed[name] is not None and parsed[name] < 1:
            raise UserError(f"localize: --{name.replace('_', '-')}: expected at least 1, got {parsed[name]}")

    from ahernet.checkpoint import load_checkpoint
    from ahernet.data.detections_parquet import require_parquet
    from ahernet.inference.ray_engine import on_ray
    from ahernet.inference.shards import ShardedJob, localize_shards

    suffix = f".{(parsed.shard_format or 'parquet').removeprefix('.')}"
    if suffix == ".parquet":
        require_parquet()
    durations = None
    if parsed.annotations is not None:
        annotations = read_annotations_of(parsed.annotations, parsed).select(parsed.subset)
        durations = {video_id: video.duration for video_id, video in annotations.videos.items()}
    classes = classes_of(parsed)
    job = ShardedJob(
        parsed.archive,
        parsed.checkpoint,
        parsed.out,
        _inference_config(parsed, load_checkpoint(parsed.checkpoint).config),
        None if classes is None else tuple(classes),
        read_thresholds(parsed.thresholds),
        durations,
        parsed.shard_videos or SHARD_VIDEOS,
        suffix,
        parsed.on_error,
    )
    result = localize_shards(
        job,
        device=parsed.device,
        processes=parsed.processes or _devices(parsed.device),
        engine=on_ray if parsed.engine == "ray" else None,
    )
    if result.without_features:
        warn(_without_features(len(durations or ()), result.without_features))
    if result.skipped:
        warn(f"left out {result.skipped:,} videos, listed in part-*.skipped.json")
    say_result(
        f"{parsed.out}: {result.shards:,} shards of {result.videos:,} videos",
        out=parsed.out,
        shards=result.shards,
        videos=result.videos,
        skipped=result.skipped,
    )


def _devices(device: str) -> int:
    """Return how many GPUs there are to use, or else how many CPUs."""
    import torch

    from ahernet.device import choose_device

    if choose_device(device).type == "cpu":
        return len(os.sched_getaffinity(0))
    return torch.cuda.device_count() if device in ("auto", "cuda") else 1


def _inference_config(parsed: Namespace, config: Config) -> InferenceConfig:
    """Return the settings of a checkpoint, changed by those of the command line."""
    changes = given_settings(parsed, ["inference"])
    if parsed.batch_size is not None:
        if "batch_size" in changes.get("inference", {}):
            raise UserError("localize: --batch-size and --inference.batch_size are the same, give one of them")
        changes.setdefault("inference", {})["batch_size"] = parsed.batch_size
    return with_settings(config, changes).inference


def read_thresholds(path: Path | None) -> dict[str, float]:
    """Read a JSON object of scores by class name; nothing of no file.

    Raises:
        UserError: not such a file.
    """
    if path is None:
        return {}
    from ahernet.data.bounded_read import parse_json, read_up_to

    try:
        with path.open(encoding="utf-8-sig") as file:
            content = parse_json(read_up_to(file.read, MAX_THRESHOLD_CHARACTERS))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: expected an object of scores by class name, {{"Juggling": 0.25}}')
    for name, score in content.items():
        if type(score) not in (int, float) or not abs(score) <= sys.float_info.max:
            raise UserError(f"{path}: {name!r:.80}: expected a finite score, got {score!r:.40}")
    return {name: float(score) for name, score in content.items()}


def _videos_with_features(annotations: "Annotations", available: Sequence[str]) -> dict[str, str]:
    """Return the archive's ids by those of the annotated videos that it has; say on stderr how many it has not."""
    from ahernet.data.annotations import match_video_ids

    found = match_video_ids(annotations.videos, available)
    missing = [video_id for video_id in annotations.videos if video_id not in found]
    if not found:
        raise UserError(
            f"{annotations.source}: the archive has features of none of {len(missing):,} videos, expected some"
        )
    if missing:
        warn(_without_features(len(annotations.videos), missing))
    return found


def _without_features(annotated: int, missing: Sequence[str]) -> str:
    return f"without features: {len(missing):,} of {annotated:,} videos, as {missing[0]!r}"


def _add_export(parser: ArgumentParser) -> None:
    parser.add_argument("detections", type=Path, metavar="DETECTIONS", help="detections in any form")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"file to write: {', '.join(SUFFIXES)}")


def _run_export(parsed: Namespace) -> None:
    from ahernet.data.detection_shards import load_detections, write_shard

    check_output_file(parsed.out)
    if not parsed.out.name.lower().endswith(SUFFIXES):
        raise UserError(f"{parsed.out}: {EXPECTED_FILE}")
    detections = load_detections(parsed.detections)
    make_folder(parsed.out.parent)
    write_shard(parsed.out, detections)
    print(f"{parsed.out}: {len(detections):,} detections in {len(detections.video_ids):,} videos")


def _add_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument(
        "detections", type=Path, metavar="DETECTIONS", help="file or folder that localize wrote, or any result file"
    )
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="annotation file")
    parser.add_argument("--subset", metavar="NAME", help="score the videos of this subset (default: all)")
    add_annotation_options(parser)
    add_classes(parser, "score the instances of these, in the videos that have any (default: all)")
    add_groups(parser, "also the means over groups of classes, and what is found of their instances")
    parser.add_argument(
        "--bins", choices=("activitynet", "thumos14"), help="also short and long segments, by the bins of a data set"
    )
    parser.add_argument(
        "--draws", type=int, default=0, metavar="NUMBER", help="also a bootstrap interval of so many (default: none)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")


def _run_evaluate(parsed: Namespace) -> None:
    from ahernet.data.class_names import warn_of_look_alikes
    from ahernet.data.detection_shards import load_detections
    from ahernet.evaluation.average_precision import match_detections, precision_of
    from ahernet.evaluation.average_recall import average_recall
    from ahernet.evaluation.bootstrap import bootstrap_interval
    from ahernet.evaluation.characteristics import BINS
    from ahernet.evaluation.parts import format_interval, format_parts, interval_dictionary, parts_dictionary
    from ahernet.evaluation.report import format_report, report_dictionary
    from ahernet.evaluation.sensitivity import sensitivity

    check_draws(parsed.draws, "evaluate", 0)
    if parsed.json is not None:
        check_output_file(parsed.json)
    detections = load_detections(parsed.detections)
    annotations = read_annotations_of(parsed.annotations, parsed)
    selected, classes = annotations.select(parsed.subset), classes_of(parsed)
    selected = selected if classes is None else selected.of_classes(classes)
    warn_of_look_alikes(selected.classes(), annotations.source)
    detections = of_subset(detections, annotations, selected)
    groups = groups_of(parsed, "evaluate")
    matches, recall = match_detections(detections, selected), average_recall(detections, selected)
    result = precision_of(matches)
    recalls = _recalls(groups, detections, selected)
    texts = [format_report(result, groups, recall, recalls)]
    content = report_dictionary(result, groups, recall, recalls)
    if parsed.draws:
        interval = bootstrap_interval(matches, parsed.draws)
        texts.append(format_interval(interval))
        content["interval"] = interval_dictionary(interval)
    if parsed.bins:
        scores = sensitivity(matches, selected, BINS[parsed.bins])
        texts.append(format_parts(BINS[parsed.bins], scores))
        content["parts"] = parts_dictionary(BINS[parsed.bins], scores)
    if parsed.json is not None:
        make_folder(parsed.json.parent)
        with replace_when_complete(parsed.json) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n".join(texts))


def of_subset(detections: "Detections", annotations: "Annotations", selected: "Annotations") -> "Detections":
    """Leave out what is of other subsets: annotated videos, and classes that no video of this subset has.

    Neither are errors of this subset: the mean is over the classes that occur in its ground truth.
    """
    of_videos = _of_videos(detections, annotations, selected)
    found = _of_classes(of_videos, annotations, selected)
    others, left = len(detections.video_ids) - len(of_videos.video_ids), len(of_videos.scores) - len(found.scores)
    if others:
        warn(f"left out {others:,} detected videos of other subsets, or without these classes")
    if left:
        warn(f"left out {left:,} detections of classes that only other subsets have")
    return found


def _recalls(
    groups: Mapping[str, Sequence[str]], detections: "Detections", annotations: "Annotations"
) -> dict[str, "AverageRecall"]:
    """Return what detections of a group's classes find of its instances, in the videos that have any."""
    from ahernet.evaluation.average_recall import average_recall

    recalls = {}
    for name, classes in groups.items():
        truth = annotations.of_classes(classes)
        found = _of_classes(_of_videos(detections, annotations, truth), annotations, truth)
        recalls[name] = average_recall(found, truth)
    return recalls


def _of_videos(detections: "Detections", annotations: "Annotations", selected: "Annotations") -> "Detections":
    """Leave out the annotated videos that are not selected."""
    import numpy as np

    from ahernet.data.annotations import match_video_ids

    pairs = match_video_ids(annotations.videos, detections.video_ids)
    others = {found for own, found in pairs.items() if own not in selected.videos}
    keep = np.array([video_id not in others for video_id in detections.video_ids], dtype=bool)
    kept = detections.of_rows(keep[detections.video])
    ids = tuple(video_id for video_id in detections.video_ids if video_id not in others)
    return replace(kept, video_ids=ids, video=(np.cumsum(keep) - 1)[kept.video])


def _of_classes(detections: "Detections", annotations: "Annotations", selected: "Annotations") -> "Detections":
    """Leave out detections of the annotated classes that are not among the selected ones."""
    import numpy as np

    absent = set(annotations.classes()) - set(selected.classes())
    is_scored = np.array([name not in absent for name in detections.classes], dtype=bool)
    return detections.of_rows(is_scored[detections.label])


def _add_plot(parser: ArgumentParser) -> None:
    parser.add_argument(
        "detections", type=Path, metavar="DETECTIONS", help="file or folder that localize wrote, or any result file"
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="annotation file: draws the ground truth too")
    add_annotation_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets one PNG per video")
    parser.add_argument("--videos", nargs="+", metavar="ID", help="videos to draw (default: the first 20 detected)")
    parser.add_argument(
        "--top", type=int, default=40, metavar="NUMBER", help="detections to draw per video (default: 40)"
    )
    parser.add_argument(
        "--minimum-score",
        type=float,
        default=0.0,
        metavar="SCORE",
        help="draw detections from this score on (default: 0)",
    )


def _run_plot(parsed: Namespace) -> None:
    from ahernet.data.detection_shards import load_detections
    from ahernet.timelines import draw_timelines

    if parsed.top < 1:
        raise UserError(f"plot: --top: expected at least 1, got {parsed.top}")
    detections = load_detections(parsed.detections)
    annotations = None
    if parsed.annotations is not None:
        annotations = read_annotations_of(parsed.annotations, parsed)
    video_ids = parsed.videos or list(detections.video_ids[:DRAWN_VIDEOS])
    paths = draw_timelines(
        annotations,
        detections,
        parsed.out,
        video_ids=video_ids,
        top=parsed.top,
        minimum_score=parsed.minimum_score,
    )
    print(f"{parsed.out}: {len(paths):,} pictures of {len(detections.video_ids):,} detected videos")


COMMANDS = {
    "localize": Command(
        help="detect actions in the videos of an archive",
        description=(
            "Detect actions with a trained localizer. Settings given here replace those of the checkpoint. Into a\n"
            "folder, videos go in shards: interrupted at any moment, the same command goes on, and several processes\n"
            "may share the work."
        ),
        usage="ARCHIVE CHECKPOINT --out PATH [options]",
        example=(
            "archive.h5 runs/first --out runs/first/detections.json \\\n"
            "    --annotations annotations.json --subset validation"
        ),
        add_arguments=_add_localize,
        run=_run_localize,
    ),
    "export": Command(
        help="write detections of any form, shards too, as one file",
        description="Write detections, of a file or a folder of shards, as one file of another form.",
        usage="DETECTIONS --out FILE",
        example="runs/first/detections --out runs/first/detections.json",
        add_arguments=_add_export,
        run=_run_export,
    ),
    "evaluate": Command(
        help="score detections: mean average precision at tIoU 0.50 to 0.95",
        description=(
            "Score detections against annotations: average precision per class, and the means at tIoU\n0.50:0.05:0.95."
        ),
        usage="DETECTIONS ANNOTATIONS [options]",
        example="runs/first/detections.json annotations.json --subset validation",
        add_arguments=_add_evaluate,
        run=_run_evaluate,
        outputs=("json",),
    ),
    "plot": Command(
        help="draw detections and ground truth of videos on a time axis",
        description=("Draw one picture per video: ground truth and detections on a time axis, a lane per class."),
        usage="DETECTIONS --out FOLDER [options]",
        example="runs/first/detections.json --annotations annotations.json --out runs/first/pictures",
        add_arguments=_add_plot,
        run=_run_plot,
    ),
}
