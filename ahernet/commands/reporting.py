"""The command `report`."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ahernet.commands.command import (
    Command,
    add_annotation_options,
    add_classes,
    add_groups,
    check_draws,
    classes_of,
    groups_of,
    read_annotations_of,
)
from ahernet.errors import UserError
from ahernet.files import check_output_file, make_folder, replace_when_complete


def _add_report(parser: ArgumentParser) -> None:
    parser.add_argument(
        "detections", type=Path, metavar="DETECTIONS", help="file or folder that localize wrote, or any result file"
    )
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="annotation file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="page to write (.html)")
    parser.add_argument("--subset", metavar="NAME", help="score the videos of this subset (default: all)")
    add_annotation_options(parser)
    add_classes(parser, "score the instances of these, in the videos that have any (default: all)")
    parser.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        help="that train wrote: shows its loss curve, and its base and novel classes apart",
    )
    add_groups(parser, "show the means over these groups of classes (default: base and novel classes of the run)")
    parser.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help="also write the operating points there: minimum scores by class name, for localize --thresholds",
    )
    parser.add_argument(
        "--bins",
        choices=("activitynet", "thumos14"),
        default="activitynet",
        help="what counts as a short or long segment, by data set (default: activitynet)",
    )
    parser.add_argument(
        "--draws", type=int, default=500, metavar="NUMBER", help="of the bootstrap interval (default: 500)"
    )


def _run_report(parsed: Namespace) -> None:
    if parsed.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{parsed.out}: expected a file name that ends in .html")
    check_draws(parsed.draws, "report", 1)
    for path in (parsed.out, parsed.thresholds):
        if path is not None:
            check_output_file(path)

    from ahernet.commands.localization import of_subset
    from ahernet.data.detection_shards import load_detections
    from ahernet.reporting.content import ReportSettings, report_content
    from ahernet.reporting.page import write_page

    losses = None if parsed.run is None else _losses(parsed.run)
    groups: Mapping[str, Sequence[str]] = groups_of(parsed, "report")
    detections = load_detections(parsed.detections)
    annotations = read_annotations_of(parsed.annotations, parsed)
    selected, classes = annotations.select(parsed.subset), classes_of(parsed)
    selected = selected if classes is None else selected.of_classes(classes)
    sources = {
        "detections": parsed.detections.name,
        "annotations": parsed.annotations.name,
        **({} if parsed.subset is None else {"subset": parsed.subset}),
        **({} if parsed.run is None else {"run": parsed.run.name}),
    }
    if parsed.run is not None and not groups:
        groups = _groups_of_run(parsed.run, selected.classes())
    settings = ReportSettings(f"Report of {parsed.detections.name}", sources, parsed.bins, parsed.draws, groups)
    content, points = report_content(of_subset(detections, annotations, selected), selected, settings, losses)
    for path in (parsed.out, parsed.thresholds):
        if path is not None:
            make_folder(path.parent)
    write_page(parsed.out, content)
    print(f"{parsed.out}: average mAP {100 * content['precision']['mean']:.2f} %")
    if parsed.thresholds is not None:
        minimum_scores = points.minimum_scores()
        with replace_when_complete(parsed.thresholds) as path:
            path.write_text(json.dumps(minimum_scores, indent=1) + "\n", encoding="utf-8")
        print(f"{parsed.thresholds}: minimum scores of {len(minimum_scores):,} of {len(points.classes):,} classes")


def _losses(run: Path) -> list[dict[str, float]]:
    from ahernet.training.loss_log import LOG_NAME, read_loss_log

    entries = read_loss_log(run / LOG_NAME)
    if not entries:
        raise UserError(f"{run}: no {LOG_NAME} with losses in it, expected a folder that train wrote")
    return entries


def _groups_of_run(run: Path, occurring: Collection[str]) -> dict[str, list[str]]:
    """Return base and novel classes of a run where both occur; none where it has not yet written a checkpoint."""
    from ahernet.checkpoint import CHECKPOINT_NAME, read_classes

    if not (run / CHECKPOINT_NAME).exists():
        return {}
    classes, novel = read_classes(run)
    groups = {"base": [name for name in classes if name not in novel], "novel": list(novel)}
    return groups if all(set(names) & set(occurring) for names in groups.values()) else {}


COMMANDS = {
    "report": Command(
        help="write a page with scores, errors, operating points and timelines",
        description=(
            "Score detections and write one HTML page that needs nothing else: mean average precision with its\n"
            "interval, classes, recall, kinds of errors, sensitivity, operating points and timelines."
        ),
        usage="DETECTIONS ANNOTATIONS --out FILE [options]",
        example=(
            "runs/first/detections.json annotations.json --subset validation \\\n"
            "    --run runs/first --out runs/first/report.html"
        ),
        add_arguments=_add_report,
        run=_run_report,
        outputs=("out", "thresholds"),
    ),
}
