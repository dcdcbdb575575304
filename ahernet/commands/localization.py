"""Commands that localize, score and draw."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from ahernet.command_settings import add_settings, given_settings, with_settings
from ahernet.commands.command import (
    Command,
    add_annotation_options,
    add_classes,
    add_device,
    classes_of,
    read_annotations_of,
)
from ahernet.errors import UserError
from ahernet.files import check_output_file, make_folder, replace_when_complete

if TYPE_CHECKING:
    from ahernet.data.annotations import Annotations
    from ahernet.data.detections import Detections

DETECTION_SUFFIXES = (".json", ".csv", ".json.gz", ".csv.gz")
DRAWN_VIDEOS = 20  # by plot, where none are named


def _add_localize(parser: ArgumentParser) -> None:
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="feature archive")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that train wrote")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="detections to write: ActivityNet results (.json) or a table (.csv), either also as .gz",
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="localize only the videos of this annotation file"
    )
    parser.add_argument("--subset", metavar="NAME", help="of the annotations: only its videos")
    add_annotation_options(parser)
    add_classes(parser, "localize these alone (default: all that the checkpoint knows)")
    add_device(parser)
    parser.add_argument("--batch-size", type=int, metavar="VIDEOS", help="the same as --inference.batch_size")
    add_settings(parser, ["inference"])


def _run_localize(parsed: Namespace) -> None:
    _check_detection_file(parsed.out)
    if parsed.subset is not None and parsed.annotations is None:
        raise UserError("localize: --subset needs --annotations, the file that says which videos it has")

    from ahernet.checkpoint import load_checkpoint
    from ahernet.data.archive import open_archive
    from ahernet.data.detections import write_detections
    from ahernet.inference.localize import localize

    with open_archive(parsed.archive) as archive:
        video_ids, durations = None, None
        if parsed.annotations is not None:
            annotations = read_annotations_of(parsed.annotations, parsed).select(parsed.subset)
            found = _videos_with_features(annotations, archive.ids)
            video_ids = list(found.values())
            durations = {here: annotations.videos[annotated].duration for annotated, here in found.items()}
        checkpoint = load_checkpoint(parsed.checkpoint)
        changes = given_settings(parsed, ["inference"])
        if parsed.batch_size is not None:
            changes.setdefault("inference", {})["batch_size"] = parsed.batch_size
        config = with_settings(checkpoint.config, changes).inference
        make_folder(parsed.out.parent)
        detections = localize(
            archive,
            checkpoint,
            config,
            video_ids=video_ids,
            durations=durations,
            classes=classes_of(parsed),
            device=parsed.device,
        )
    write_detections(parsed.out, detections)
    print(f"{parsed.out}: {len(detections):,} detections in {len(detections.video_ids):,} videos")


def _videos_with_features(annotations: "Annotations", available: Sequence[str]) -> dict[str, str]:
    """Return the archive's ids by those of the annotated videos that it has; say on stderr how many it has not."""
    from ahernet.data.annotations import match_video_ids

    found = match_video_ids(annotations.videos, available)
    missing = [video_id for video_id in annotations.videos if video_id not in found]
    if not found:
        raise UserError(f"{annotations.source}: the archive has features of none of {len(missing):,} videos")
    if missing:
        print(
            f"without features: {len(missing):,} of {len(annotations.videos):,} videos, as {missing[0]!r}",
            file=sys.stderr,
        )
    return found


def _check_detection_file(path: Path) -> None:
    """Refuse a file name that detections cannot be written to before anything is computed."""
    check_output_file(path)
    if not path.name.lower().endswith(DETECTION_SUFFIXES):
        raise UserError(f"{path}: expected a file name that ends in {', '.join(DETECTION_SUFFIXES)}")


def _add_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument(
        "detections", type=Path, metavar="DETECTIONS", help="file that localize wrote, or any result file"
    )
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="annotation file")
    parser.add_argument("--subset", metavar="NAME", help="score the videos of this subset (default: all)")
    add_annotation_options(parser)
    add_classes(parser, "score the instances of these, in the videos that have any (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")


def _run_evaluate(parsed: Namespace) -> None:
    from ahernet.data.detections import read_detections
    from ahernet.evaluation.average_precision import average_precision
    from ahernet.evaluation.average_recall import average_recall
    from ahernet.evaluation.report import format_report, report_dictionary

    if parsed.json is not None:
        check_output_file(parsed.json)
    detections = read_detections(parsed.detections)
    annotations = read_annotations_of(parsed.annotations, parsed)
    selected, classes = annotations.select(parsed.subset), classes_of(parsed)
    selected = selected if classes is None else selected.of_classes(classes)
    detections = _of_subset(detections, annotations, selected)
    result, recall = average_precision(detections, selected), average_recall(detections, selected)
    if parsed.json is not None:
        make_folder(parsed.json.parent)
        with replace_when_complete(parsed.json) as path:
            path.write_text(json.dumps(report_dictionary(result, recall=recall), indent=1) + "\n", encoding="utf-8")
    print(format_report(result, recall=recall))


def _of_subset(detections: "Detections", annotations: "Annotations", selected: "Annotations") -> "Detections":
    """Leave out what is of other subsets: annotated videos, and classes that no video of this subset has.

    Neither are errors of this subset: the mean is over the classes that occur in its ground truth.
    """
    import numpy as np

    from ahernet.data.annotations import match_video_ids
    from ahernet.data.detections import Detections

    pairs = match_video_ids(annotations.videos, detections.video_ids)
    others = {found for own, found in pairs.items() if own not in selected.videos}
    keep = np.array([video_id not in others for video_id in detections.video_ids], dtype=bool)
    if others:
        print(f"left out {len(others):,} detected videos of other subsets", file=sys.stderr)
    absent = set(annotations.classes()) - set(selected.classes())
    is_scored = np.array([name not in absent for name in detections.classes], dtype=bool)
    rows = keep[detections.video] & is_scored[detections.label]
    left = int((keep[detections.video] & ~is_scored[detections.label]).sum())
    if left:
        print(f"left out {left:,} detections of classes that only other subsets have", file=sys.stderr)
    return Detections(
        video_ids=tuple(video_id for video_id in detections.video_ids if video_id not in others),
        classes=detections.classes,
        video=(np.cumsum(keep) - 1)[detections.video[rows]],
        label=detections.label[rows],
        segments=detections.segments[rows],
        scores=detections.scores[rows],
    )


def _add_plot(parser: ArgumentParser) -> None:
    parser.add_argument(
        "detections", type=Path, metavar="DETECTIONS", help="file that localize wrote, or any result file"
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
    from ahernet.data.detections import read_detections
    from ahernet.timelines import draw_timelines

    if parsed.top < 1:
        raise UserError(f"plot: --top: expected at least 1, got {parsed.top}")
    detections = read_detections(parsed.detections)
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
        description=("Detect actions with a trained localizer. Settings given here replace those of the checkpoint."),
        usage="ARCHIVE CHECKPOINT --out FILE [options]",
        example=(
            "archive.h5 runs/first --out runs/first/detections.json \\\n"
            "    --annotations annotations.json --subset validation"
        ),
        add_arguments=_add_localize,
        run=_run_localize,
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
