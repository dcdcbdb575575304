"""Commands that make and check feature archives."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ahernet.commands.command import (
    Command,
    add_annotation_options,
    add_categories,
    add_classes,
    add_log,
    classes_of,
    read_annotations_of,
)
from ahernet.errors import UserError
from ahernet.event_log import say_result
from ahernet.files import make_folder


def _add_import(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder of one .npy, .npz, .pt or .csv per video, or HDF5 file"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="feature archive to write (.h5)")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="annotation file to take durations from")
    add_categories(parser)
    parser.add_argument("--frame-rate", type=float, default=float("nan"), metavar="FPS", help="of the videos")
    parser.add_argument("--clip-stride", type=int, default=0, metavar="FRAMES", help="frames from one row to the next")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="start of the names that is no part of ids")
    parser.add_argument(
        "--map", type=Path, metavar="CSV", help="two columns, name in the source and video id, instead of a prefix"
    )
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
        help="what to do with a bad video: stop, or skip and list it (default: stop)",
    )
    add_log(parser)


def _run_import(parsed: Namespace) -> None:
    from ahernet.data.importers import import_features

    report = import_features(
        parsed.source,
        parsed.out,
        durations=parsed.annotations,
        categories=parsed.categories,
        id_map=parsed.map,
        frame_rate=parsed.frame_rate,
        clip_stride=parsed.clip_stride,
        dtype=parsed.dtype,
        prefix=parsed.prefix,
        origin=parsed.origin,
        on_error=parsed.on_error,
    )
    say_result(str(report), out=report.path, videos=report.videos, rows=report.rows, skipped=report.skipped)


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
        "--training-share",
        type=float,
        metavar="NUMBER",
        help="instead: random share of the recordings for the subset training, for those of one subject",
    )
    parser.add_argument(
        "--cut",
        choices=("classes", "groups", "none"),
        default="classes",
        help=(
            "cut recordings where the class changes, where classes of --apart and others meet, or not at all "
            "(default: classes)"
        ),
    )
    parser.add_argument(
        "--apart", nargs="+", default=(), metavar="CLASS", help="classes that no clip shows together with others"
    )
    parser.add_argument(
        "--background", nargs="+", default=(), metavar="CLASS", help="classes that are no actions: left unlabelled"
    )
    parser.add_argument(
        "--trim",
        action="store_true",
        help="leave out what precedes the first label of a recording, of any class, and what follows its last one",
    )
    parser.add_argument(
        "--window", type=int, default=8, metavar="SAMPLES", help="samples that one row describes (default: 8)"
    )
    parser.add_argument("--stride", type=int, default=4, metavar="SAMPLES", help="samples from row to row (default: 4)")


def _run_import_recordings(parsed: Namespace) -> None:
    from ahernet.data.recordings import import_recordings

    report = import_recordings(
        parsed.recordings,
        parsed.out / "archive.h5",
        parsed.out / "annotations.json",
        window=parsed.window,
        stride=parsed.stride,
        cut=parsed.cut,
        apart=parsed.apart,
        background=parsed.background,
        trim=parsed.trim,
        training_subjects=parsed.training_subjects,
        training_share=parsed.training_share,
    )
    print(
        f"{report.archive}: {report.clips:,} clips ({report.training_clips:,} training, "
        f"{report.clips - report.training_clips:,} validation), {report.instances:,} instances, "
        f"{report.rows:,} rows of {report.dimension}\n{report.annotations}"
    )


def _add_cut_moments(parser: ArgumentParser) -> None:
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="feature archive of annotated videos")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="annotation file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="feature archive of moments to write")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="table of their classes to write")
    parser.add_argument("--subset", metavar="NAME", help="cut from videos of this subset (default: all)")
    add_annotation_options(parser)
    add_classes(parser, "cut instances of these (default: all)")


def _run_cut_moments(parsed: Namespace) -> None:
    from ahernet.data.archive_set import open_features
    from ahernet.data.moments import cut_moments

    annotations = read_annotations_of(parsed.annotations, parsed).select(parsed.subset)
    for path in (parsed.out, parsed.labels):
        make_folder(path.parent)
    with open_features(parsed.archive) as archive:
        report = cut_moments(archive, annotations, parsed.out, parsed.labels, classes=classes_of(parsed))
    print(report.describe())


def _add_join(parser: ArgumentParser) -> None:
    parser.add_argument("archives", type=Path, nargs="+", metavar="ARCHIVE", help="feature archives of one folder")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="manifest to write (.json), in the same folder"
    )


def _run_join(parsed: Namespace) -> None:
    from ahernet.data.archive_set import archive_files, write_manifest

    write_manifest(parsed.out, parsed.archives)
    videos = sum(count for _, count in archive_files(parsed.out))
    print(f"{parsed.out}: {videos:,} videos in {len(parsed.archives):,} archives")


def _add_inspect(parser: ArgumentParser) -> None:
    parser.add_argument("archive", type=Path, metavar="ARCHIVE", help="feature archive, or manifest of several")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="annotation file to compare with")
    add_annotation_options(parser)
    parser.add_argument("--strict", action="store_true", help="fail if there is any problem, and list them all")


def _run_inspect(parsed: Namespace) -> None:
    from ahernet.data.inspection import SHOWN_PER_KIND, format_inspection, inspect_archive
    from ahernet.recognition import recognise

    try:
        inspection = inspect_archive(
            parsed.archive, parsed.annotations, categories=parsed.categories, subsets=parsed.subsets, progress=True
        )
    except UserError as error:
        other = recognise(parsed.archive)
        if other is None:
            raise
        raise UserError(f"{parsed.archive}: not a feature archive but {other}") from error
    print(format_inspection(inspection, shown=None if parsed.strict else SHOWN_PER_KIND))
    if parsed.strict and inspection.problems:
        raise UserError(f"{parsed.archive}: {len(inspection.problems):,} problems, listed above (--strict)")


COMMANDS = {
    "import": Command(
        help="make a feature archive of what others extracted: array files or HDF5",
        description=(
            "Make one feature archive of the features that another program wrote: a folder of one .npy, .npz, .pt or\n"
            ".csv file per video, or an HDF5 file of one group or dataset per video. What it is, is seen from what\n"
            "it holds; docs/archive-format.md lists the layouts."
        ),
        usage="SOURCE --out FILE [options]",
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
    "cut-moments": Command(
        help="cut annotated instances out as moments: trimmed clips with a label",
        description="Make a feature archive of moments, trimmed clips of one instance each, of annotated videos.",
        usage="ARCHIVE ANNOTATIONS --out FILE --labels FILE [options]",
        example=(
            "archive.h5 annotations.json --subset training --classes novel.txt \\\n"
            "    --out moments.h5 --labels moments.csv"
        ),
        add_arguments=_add_cut_moments,
        run=_run_cut_moments,
        outputs=("out", "labels"),
    ),
    "join": Command(
        help="make one archive of several: a manifest that lists them",
        description=(
            "Write a manifest that makes several feature archives of one folder readable as one. A folder whose\n"
            "manifest is called manifest.json can be given wherever an archive can."
        ),
        usage="ARCHIVE... --out FILE",
        example="archives/part-0.h5 archives/part-1.h5 --out archives/manifest.json",
        add_arguments=_add_join,
        run=_run_join,
    ),
    "inspect": Command(
        help="describe a feature archive and find what is wrong with it",
        description=(
            "Describe a feature archive, check every row, and compare it with an annotation file. Problems are rows\n"
            "that are damaged, not finite or all zero, annotated videos that are missing, unknown durations or ones\n"
            "that differ from the annotation by more than a second, and ids that are easily mistaken. Of a file of\n"
            "another program it says what it is and how to import it."
        ),
        usage="ARCHIVE [--annotations FILE] [--strict]",
        example="archive.h5 --annotations annotations.json",
        add_arguments=_add_inspect,
        run=_run_inspect,
    ),
}
