"""Commands that train."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ahernet.command_settings import SECTIONS, add_settings, given_settings, with_settings
from ahernet.commands.command import (
    Command,
    add_annotation_options,
    add_classes,
    add_device,
    add_log,
    classes_of,
    read_annotations_of,
)
from ahernet.config import PRESETS, RUNS, Config, preset, read_config, with_run
from ahernet.errors import UserError
from ahernet.event_log import say_result


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
    add_annotation_options(parser)
    add_classes(parser, "base classes, whose annotations are used (default: all that the annotations have)")
    parser.add_argument("--moments", type=Path, metavar="ARCHIVE", help="features of moments to learn from as well")
    parser.add_argument(
        "--moment-labels",
        type=Path,
        metavar="FILE",
        help="class of every moment: a table with the columns video and label, or annotations",
    )
    parser.add_argument(
        "--run",
        metavar="NAME",
        help=f"what to learn from, as the paper names its runs: {', '.join(RUNS)} "
        "(default: aher with moments, aher* without; with --config what the file says)",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help=f"settings to start from: {' or '.join(PRESETS)} (default: paper)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file of settings that replace those of the preset"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER if it holds one")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: try a few iterations of each phase and say what time, memory and disk the run will take",
    )
    add_device(parser)
    add_log(parser)
    add_settings(parser, list(SECTIONS))


def _run_train(parsed: Namespace) -> None:
    if (parsed.moments is None) != (parsed.moment_labels is None):
        raise UserError("train: --moments and --moment-labels: expected both or neither")
    config = _training_config(parsed)
    annotations = read_annotations_of(parsed.annotations, parsed)
    classes = classes_of(parsed)

    from contextlib import ExitStack

    from ahernet.data.archive_set import open_features
    from ahernet.data.moment_labels import read_moment_labels
    from ahernet.training.dry_run import dry_run
    from ahernet.training.ranks import is_first_process
    from ahernet.training.trainer import train

    with ExitStack() as files:
        archive = files.enter_context(open_features(parsed.archive))
        given = {
            "subset": parsed.subset,
            "classes": classes,
            "moments": parsed.moments and files.enter_context(open_features(parsed.moments)),
            "moment_labels": parsed.moment_labels and read_moment_labels(parsed.moment_labels),
            "device": parsed.device,
        }
        try:
            if parsed.dry_run:
                said, fields = dry_run(archive, annotations, parsed.out, config, **given).describe(), {}
            else:
                result = train(archive, annotations, parsed.out, config, resume=parsed.resume, **given)
                fields = {"out": result.folder, "iterations": result.iterations}
                said = f"{result.folder}: checkpoint after {result.iterations:,} iterations, {result.seconds:.0f} s"
        except (UserError, KeyboardInterrupt) as error:
            if is_first_process():
                raise
            # What ends one process ends all; the first one says why.
            raise SystemExit(2 if isinstance(error, UserError) else 130) from error
    if is_first_process():
        say_result(said, **fields)


def _training_config(parsed: Namespace) -> Config:
    """Return preset < file < run < command line; `--preset` wins over the preset that the file names."""
    config = preset(parsed.preset or "paper") if parsed.config is None else read_config(parsed.config, parsed.preset)
    run = parsed.run
    if run is None and parsed.config is None:
        run = "aher" if parsed.moments else "aher*"
    if run is not None:
        config = with_run(config, run)
    return with_settings(config, given_settings(parsed, list(SECTIONS)))


def _add_add_class(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that train wrote")
    parser.add_argument("--moments", type=Path, required=True, metavar="ARCHIVE", help="features of its moments")
    parser.add_argument("--label", required=True, metavar="NAME", help="name of the new class")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the new checkpoint")
    add_device(parser)


def _run_add_class(parsed: Namespace) -> None:
    from ahernet.add_class import add_class
    from ahernet.checkpoint import CHECKPOINT_NAME, load_checkpoint, save_checkpoint
    from ahernet.data.archive_set import open_features

    if (parsed.out / CHECKPOINT_NAME).exists():
        raise UserError(f"{parsed.out}: holds a checkpoint already, give another folder")
    if parsed.out.exists() and not parsed.out.is_dir():
        raise UserError(f"{parsed.out}: is a file, expected a new folder to write")
    with open_features(parsed.moments) as moments:
        larger = add_class(load_checkpoint(parsed.checkpoint), moments, parsed.label, device=parsed.device)
        count = len(moments)
    save_checkpoint(parsed.out, larger.config, larger.classes, larger.model, larger.moment_classes)
    print(f"{parsed.out}: {len(larger.classes):,} classes, {parsed.label!r} from {count:,} moments")


COMMANDS = {
    "train": Command(
        help="train a localizer on annotated videos, and on moments of further classes",
        description=(
            "Train a localizer on annotated videos and, with --moments, on trimmed clips of classes that have no\n"
            "annotated videos. Settings: a preset, changed by a TOML file, changed by --run, changed by\n"
            "--section.name options. Several processes, and GPUs, train one network with\n"
            "  torchrun --nproc-per-node 2 -m -- ahernet train ARCHIVE ANNOTATIONS --out FOLDER [options]"
        ),
        usage="ARCHIVE ANNOTATIONS --out FOLDER [options]",
        example=(
            "archive.h5 annotations.json --subset training --out runs/first --preset tiny \\\n"
            "    --moments moments.h5 --moment-labels moments.csv"
        ),
        add_arguments=_add_train,
        run=_run_train,
    ),
    "add-class": Command(
        help="teach a trained localizer one more class from moments",
        description=(
            "Add a class to a trained localizer from moments of it alone, without training the network. Detections of\n"
            "the other classes change only in that the probabilities are shared with one class more."
        ),
        usage="CHECKPOINT --moments ARCHIVE --label NAME --out FOLDER",
        example="runs/first --moments juggling.h5 --label Juggling --out runs/with-juggling",
        add_arguments=_add_add_class,
        run=_run_add_class,
    ),
}
