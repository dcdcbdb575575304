"""The commands: one step each, from files of features to a score. What they need is imported when they run."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from ahernet.config import PRESETS, Config, preset, read_config
from ahernet.errors import UserError
from ahernet.files import check_output_file, make_folder, replace_when_complete

if TYPE_CHECKING:
    from ahernet.data.annotations import Annotations
    from ahernet.data.detections import Detections

from ahernet.command_settings import SECTIONS, add_settings, given_settings, with_settings

DETECTION_SUFFIXES = (".json", ".csv", ".json.gz", ".csv.gz")
DRAWN_VIDEOS = 20  # by plot, where none are named


@dataclass(frozen=True)
class Command:
    """One subcommand: `usage` is what follows its name, `example` one line that works."""

    help: str
    description: str
    usage: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]


def _add_categories(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--categories",
        type=Path,
        metavar="FILE",
        help="class names, one a line, if the annotations number them",
    )


def _add_annotation_options(parser: ArgumentParser) -> None:
    _add_categories(parser)
    parser.add_argument(
        "--subsets",
        type=Path,
        metavar="CSV",
        help="table with columns video and subset, if the annotations do not name subsets",
    )


def _read_annotations(path: Path, parsed: Namespace) -> "Annotations":
    from ahernet.data.annotations import read_annotations

    return read_annotations(path, categories=parsed.categories, subsets=parsed.subsets)


def _add_demo(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="FOLDER",
        help="where to work (default: runs/demo)",
    )


def _run_demo(parsed: Namespace) -> None:
    from ahernet.demo import run_demo

    run_demo(parsed.out)


def _add_import(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds one .npy or .npz (L, D) per video")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="feature archive to write (.h5)")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="annotation file to take durations from")
    _add_categories(parser)
    parser.add_argument("--frame-rate", type=float, default=float("nan"), metavar="FPS", help="of the videos")
    parser.add_argument("--clip-stride", type=int, default=0, metavar="FRAMES", help="frames from one row to the next")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="start of the file names that is no part of ids")
    parser.add_argument(
        "--origin", default="", metavar="TEXT", help="where the features come from, kept in the archive"
    )
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="of the archive (default: float16)"
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with a bad file: stop, or skip and list it (default: stop)",
    )


def _run_import(parsed: Namespace) -> None:
    from ahernet.data.importers import import_folder

    make_folder(parsed.out.parent)
    report = import_folder(
        parsed.folder,
        parsed.out,
        durations=parsed.annotations,
        categories=parsed.categories,
        frame_rate=parsed.frame_rate,
        clip_stride=parsed.clip_stride,
        dtype=parsed.dtype,
        prefix=parsed.prefix,
        origin=parsed.origin,
        on_error=parsed.on_error,
    )
    print(report)


def _add_import_recordings(parser: ArgumentParser) -> None:
    parser.add_argument("recordings", type=Path, metavar="FILE", help="npz of stacked, labelled recordings")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="gets archive.h5 and annotations.json"
    )
    parser.add_argument(
        "--training-subjects",
        metavar="LIST",
        help="as in 1-15,20: the subset training; others are the subset validation (default: all training)",
    )
    parser.add_argument(
        "--cut",
        choices=("classes", "none"),
        default="classes",
        help="cut recordings where the class changes, or not at all (default: classes)",
    )
    parser.add_argument(
        "--window", type=int, default=8, metavar="SAMPLES", help="samples that one row describes (default: 8)"
    )
    parser.add_argument("--stride", type=int, default=4, metavar="SAMPLES", help="samples from row to row (default: 4)")


def _run_import_recordings(parsed: Namespace) -> None:
    from ahernet.data.recordings import import_recordings

    make_folder(parsed.out)
    report = import_recordings(
        parsed.recordings,
        parsed.out / "archive.h5",
        parsed.out / "annotations.json",
        window=parsed.window,
        stride=parsed.stride,
        cut=parsed.cut,
        training_subjects=parsed.training_subjects,
    )
    print(
        f"{report.archive}: {report.clips:,} clips ({report.training_clips:,} training, "
        f"{report.clips - report.training_clips:,} validation), {report.instances:,} instances, "
        f"{report.rows:,} rows of {report.dimension}\n{report.annotations}"
    )


def _add_inspect(parser: ArgumentParser) -> None:
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="feature archive")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="annotation file to compare with")
    _add_annotation_options(parser)


def _run_inspect(parsed: Namespace) -> None:
    from ahernet.data.inspection import format_inspection, inspect_archive

    inspection = inspect_archive(
        parsed.archive, parsed.annotations, categories=parsed.categories, subsets=parsed.subsets
    )
    print(format_inspection(inspection))


def _add_train(parser: ArgumentParser) -> None:
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="feature archive")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="annotation file")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="of the run: checkpoint, loss log and picture",
    )
    parser.add_argument("--subset", metavar="NAME", help="train on this subset (default: all annotated videos)")
    _add_annotation_options(parser)
    parser.add_argument(
        "--preset", metavar="NAME", help=f"settings to start from: {' or '.join(PRESETS)} (default: paper)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file of settings that replace those of the preset"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER if it holds one")
    _add_device(parser)
    add_settings(parser, list(SECTIONS))


def _run_train(parsed: Namespace) -> None:
    config = _training_config(parsed)
    annotations = _read_annotations(parsed.annotations, parsed)

    from ahernet.data.archive import open_archive
    from ahernet.training.supervised import train

    with open_archive(parsed.archive) as archive:
        result = train(
            archive,
            annotations,
            parsed.out,
            config,
            subset=parsed.subset,
            resume=parsed.resume,
            device=parsed.device,
        )
    print(f"{result.folder}: checkpoint after {result.iterations:,} iterations, {result.seconds:.0f} s")


def _training_config(parsed: Namespace) -> Config:
    """Return preset < file < command line; `--preset` wins over the preset that the file names."""
    config = preset(parsed.preset or "paper") if parsed.config is None else read_config(parsed.config, parsed.preset)
    return with_settings(config, given_settings(parsed, list(SECTIONS)))


def _add_device(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:NUMBER (default: auto)"
    )


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
    _add_annotation_options(parser)
    _add_device(parser)
    parser.add_argument("--batch-size", type=int, metavar="VIDEOS", help="the same as --inference.batch_size")
    add_settings(parser, ["inference"])


def _run_localize(parsed: Namespace) -> None:
    _check_detection_file(parsed.out)
    if parsed.subset is not None and parsed.annotations is None:
        raise UserError("localize: --subset needs --annotations, the file that says which videos it has")

    from ahernet.checkpoint import load_checkpoint
    from ahernet.data.archive import open_archive
    from ahernet.data.detections import write_detections
    from ahernet.inference import localize

    with open_archive(parsed.archive) as archive:
        video_ids, durations = None, None
        if parsed.annotations is not None:
            annotations = _read_annotations(parsed.annotations, parsed).select(parsed.subset)
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
            archive, checkpoint, config, video_ids=video_ids, durations=durations, device=parsed.device
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
    _add_annotation_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number there")


def _run_evaluate(parsed: Namespace) -> None:
    from ahernet.data.detections import read_detections
    from ahernet.evaluation.average_precision import average_precision
    from ahernet.evaluation.report import format_report, report_dictionary

    if parsed.json is not None:
        check_output_file(parsed.json)
    detections = read_detections(parsed.detections)
    annotations = _read_annotations(parsed.annotations, parsed)
    selected = annotations.select(parsed.subset)
    detections = _of_subset(detections, annotations, selected)
    result = average_precision(detections, selected)
    if parsed.json is not None:
        make_folder(parsed.json.parent)
        with replace_when_complete(parsed.json) as path:
            path.write_text(json.dumps(report_dictionary(result), indent=1) + "\n", encoding="utf-8")
    print(format_report(result))


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
    _add_annotation_options(parser)
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
        annotations = _read_annotations(parsed.annotations, parsed)
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
    "demo": Command(
        help="see everything work on a small rendered world, in half a minute",
        description=(
            "Render a small world of features, train on it, localize, evaluate and draw pictures.\n"
            "Needs no data and no GPU."
        ),
        usage="[--out FOLDER]",
        example="--out runs/demo",
        add_arguments=_add_demo,
        run=_run_demo,
    ),
    "import": Command(
        help="make a feature archive of a folder of .npy or .npz files",
        description="Make one feature archive of a folder that holds one .npy or .npz file per video.",
        usage="FOLDER --out FILE [options]",
        example="features --out archive.h5 --annotations activity_net.v1-3.json --prefix v_",
        add_arguments=_add_import,
        run=_run_import,
    ),
    "import-recordings": Command(
        help="make a feature archive and annotations of labelled recordings (npz)",
        description=(
            "Make a feature archive and an annotation file of recordings with labelled segments: an npz of\n"
            "stacked time series (ahernet.data.recordings describes its keys and the features)."
        ),
        usage="FILE --out FOLDER [options]",
        example="ninapro_db1_e1_25hz.npz --out runs/ninapro/data --training-subjects 1-15",
        add_arguments=_add_import_recordings,
        run=_run_import_recordings,
    ),
    "inspect": Command(
        help="describe a feature archive and find what is wrong with it",
        description="Describe a feature archive, check every row, and compare it with an annotation file.",
        usage="ARCHIVE [--annotations FILE]",
        example="archive.h5 --annotations annotations.json",
        add_arguments=_add_inspect,
        run=_run_inspect,
    ),
    "train": Command(
        help="train a localizer on annotated videos",
        description=(
            "Train a localizer on annotated videos. Settings: a preset, changed by a TOML file, changed by\n"
            "--section.name options."
        ),
        usage="ARCHIVE ANNOTATIONS --out FOLDER [options]",
        example=(
            "archive.h5 annotations.json --subset training --out runs/first --preset tiny \\\n"
            "    --training.iterations 500"
        ),
        add_arguments=_add_train,
        run=_run_train,
    ),
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
