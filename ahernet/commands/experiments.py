"""The command `experiment`."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ahernet.command_settings import SECTIONS, add_settings, given_settings, with_settings
from ahernet.commands.command import Command
from ahernet.config import preset
from ahernet.errors import UserError
from ahernet.files import check_output_file, make_folder, replace_when_complete


def _add_experiment(parser: ArgumentParser) -> None:
    parser.add_argument(
        "table",
        choices=("runs", "transfer", "departures"),
        help="runs of table 2, transfer variants of table 1, or departures of the preset from the paper, each undone",
    )
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for data and finished runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write with every number")
    parser.add_argument(
        "--recordings", type=Path, metavar="FILE", help="npz of labelled recordings (default: a rendered world)"
    )
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="rows of the table (default: all)")
    parser.add_argument("--seeds", type=int, default=3, metavar="NUMBER", help="seeds and class splits (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, metavar="NUMBER", help="runs at the same time (default: 1)")
    parser.add_argument("--preset", default="tiny", metavar="NAME", help="settings to start from (default: tiny)")
    add_settings(parser, list(SECTIONS))


def _run_experiment(parsed: Namespace) -> None:
    from ahernet.experiments.setting import recorded_source, rendered_source
    from ahernet.experiments.table import format_table, run_table

    for name in ("seeds", "jobs"):
        if parsed[name] < 1:
            raise UserError(f"experiment: --{name}: expected at least 1, got {parsed[name]}")
    if parsed.out is not None:
        check_output_file(parsed.out)
    config = with_settings(preset(parsed.preset), given_settings(parsed, list(SECTIONS)))
    runs = parsed.work / "runs"
    make_folder(runs)
    if parsed.recordings is None:
        source = rendered_source(parsed.work / "data")
    else:
        source = recorded_source(parsed.work / "data", parsed.recordings)
    table = run_table(parsed.table, source, config, range(parsed.seeds), runs, parsed.jobs, rows=parsed.rows)
    if parsed.out is not None:
        make_folder(parsed.out.parent)
        with replace_when_complete(parsed.out) as path:
            path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(format_table(table))


COMMANDS = {
    "experiment": Command(
        help="compare the runs of the paper on a rendered world or on recordings",
        description=(
            "Train and score every run of a table of the paper with several seeds; half of the classes have moments\n"
            "only. Interrupted, it goes on where it was."
        ),
        usage="TABLE --work FOLDER [options]",
        example="runs --work runs/experiment --recordings ninapro_db1_e1_25hz.npz --jobs 2",
        add_arguments=_add_experiment,
        run=_run_experiment,
    ),
}
