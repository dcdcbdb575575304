"""The demonstration: all steps on a small rendered world, from features to pictures, in half a minute."""

import json
import shlex
import shutil
import time
from pathlib import Path

from ahernet.checkpoint import load_checkpoint
from ahernet.config import Config, config_to_dict, preset
from ahernet.data.annotations import read_annotations
from ahernet.data.archive import open_archive
from ahernet.data.detections import write_detections
from ahernet.errors import UserError
from ahernet.evaluation.average_precision import AveragePrecision, average_precision
from ahernet.evaluation.report import format_report, report_dictionary
from ahernet.files import make_folder, replace_when_complete
from ahernet.inference.localize import localize
from ahernet.rendered import WorldConfig, write_world
from ahernet.timelines import draw_timelines
from ahernet.training.loss_log import CURVE_NAME
from ahernet.training.trainer import train

MARKER = "ahernet-demo.json"  # says that a folder is the demonstration's own, to be written again
REPEATED = "again"  # where the commands that it prints write to
PRODUCTS = ("world", "run", "pictures", "detections.json", "scores.json", REPEATED)
PICTURES = 8


def run_demo(out: Path, world: WorldConfig | None = None, config: Config | None = None) -> AveragePrecision:
    """Render a world, train, localize in videos that training has not seen, evaluate and draw.

    Says on stdout what it does and found; progress bars go to stderr.

    Args:
        out: folder to work in: new, empty, or of an earlier demonstration (which is replaced).
        world: what to render.
        config: settings of training and inference; the preset `tiny` by default.

    Returns:
        the score on the validation videos.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    world, config = world or WorldConfig(), config or preset("tiny")
    began = time.monotonic()
    _claim(out)
    _step(1, f"render {world.training_videos + world.validation_videos} videos of {world.classes} classes")
    archive_path, annotations_path = write_world(out / "world", world)
    annotations = read_annotations(annotations_path)
    with open_archive(archive_path) as archive:
        _step(2, f"train on {world.training_videos} videos, {config.training.iterations:,} iterations")
        train(archive, annotations, out / "run", config, subset="training")
        held_out = annotations.select("validation")
        _step(3, f"localize in the {world.validation_videos} videos kept for validation")
        checkpoint = load_checkpoint(out / "run")
        detections = localize(archive, checkpoint, video_ids=list(held_out.videos))
        write_detections(out / "detections.json", detections)
    _step(4, "evaluate")
    result = average_precision(detections, held_out)
    with replace_when_complete(out / "scores.json") as path:
        path.write_text(json.dumps(report_dictionary(result), indent=1) + "\n", encoding="utf-8")
    print(format_report(result))
    _step(5, f"draw {min(PICTURES, len(held_out.videos))} videos")
    draw_timelines(
        held_out, detections, out / "pictures", video_ids=list(held_out.videos)[:PICTURES], minimum_score=0.05
    )
    print(_ending(out, archive_path, annotations_path, config, result, time.monotonic() - began))
    return result


def _step(number: int, what: str) -> None:
    print(f"\n[{number}/5] {what}", flush=True)


def _claim(out: Path) -> None:
    """Make `out` the demonstration's own folder and remove what an earlier one left."""
    make_folder(out)
    if not (out / MARKER).exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds other files, expected a new folder or that of an earlier demonstration")
    with replace_when_complete(out / MARKER) as path:
        path.write_text(json.dumps({"made by": "ahernet demo", "replaced by the next": PRODUCTS}) + "\n")
    for name in PRODUCTS:
        product = out / name
        if product.is_dir() and not product.is_symlink():
            shutil.rmtree(product)
        else:
            product.unlink(missing_ok=True)


def _ending(
    out: Path, archive: Path, annotations: Path, config: Config, result: AveragePrecision, seconds: float
) -> str:
    again = out / REPEATED
    run, detections, pictures = again / "run", again / "detections.json", again / "pictures"
    commands = (
        ("train", archive, annotations, "--subset", "training", *_options(config), "--out", run),
        (
            "localize",
            archive,
            run,
            "--annotations",
            annotations,
            "--subset",
            "validation",
            "--out",
            detections,
        ),
        ("evaluate", detections, annotations, "--subset", "validation"),
        ("plot", detections, "--annotations", annotations, "--minimum-score", "0.05", "--out", pictures),
    )
    lines = [shlex.join(["ahernet", *map(str, command)]) for command in commands]
    return "\n".join(
        [
            "",
            f"mAP {result.mean_per_threshold[0]:.3f} at tIoU {result.thresholds[0]:.2f}, "
            f"{result.mean:.3f} on average over tIoU 0.50:0.05:0.95, after {seconds:.0f} s",
            f"pictures of videos   {out / 'pictures'}",
            f"picture of the loss  {out / 'run' / CURVE_NAME}",
            "",
            "The same in single commands:",
            *(f"  {line}" for line in lines),
        ]
    )


def _options(config: Config) -> list[str]:
    """Return the options of `train` that make `config`: its preset and what differs from it."""
    start, settings = config_to_dict(preset(config.preset)), config_to_dict(config)
    sections = [name for name in settings if name != "preset"]
    changed = [
        (f"--{section}.{name}", str(value).lower())
        for section in sections
        for name, value in settings[section].items()
        if value != start[section][name]
    ]
    return ["--preset", config.preset, *(word for pair in changed for word in pair)]
