"""The commands `experiment` and `setting`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from ahernet.command_settings import SECTIONS, add_settings, given_settings, with_settings
from ahernet.commands.command import Command, add_log
from ahernet.config import Config, preset
from ahernet.errors import UserError
from ahernet.event_log import say_result
from ahernet.files import check_output_file, make_folder, replace_when_complete

if TYPE_CHECKING:
    from ahernet.experiments.setting import Data

# Named here too, so that the help needs none of the modules that make them.
TABLES = ("runs", "transfer", "departures", "released", "k600", "shares")
FIGURES = ("layers", "embedding", "timelines", "certainty", "added")
PAPER_SETTINGS = ("anet_un-anet_am", "th14-anet_fg", "anet-k600")


def _add_experiment(parser: ArgumentParser) -> None:
    parser.add_argument(
        "table",
        choices=(*TABLES, *FIGURES),
        help=(
            "runs of table 2, transfer variants of table 1, departures of the preset from the paper, each undone, "
            "released: choices of the authors' code, each made, k600: runs of table 4, shares of the annotations "
            "(figure 6), layers (figure 4), embedding of background (figure 5), timelines (figure 7), "
            "certainty of good proposals in synthetic and in real videos, or classes added afterwards (add-class)"
        ),
    )
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for data and finished runs")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON to write with every number, a picture beside it (default: in WORK)",
    )
    parser.add_argument(
        "--setting",
        type=Path,
        metavar="FILE",
        help="setting file (see the command setting); with --recordings: how these are cut, and what is novel",
    )
    parser.add_argument(
        "--recordings", type=Path, metavar="FILE", help="npz of labelled recordings (default: a rendered world)"
    )
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="rows of the table (default: all)")
    parser.add_argument("--seeds", type=int, default=3, metavar="NUMBER", help="seeds and class splits (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, metavar="NUMBER", help="runs at the same time (default: 1)")
    parser.add_argument("--preset", default="tiny", metavar="NAME", help="settings to start from (default: tiny)")
    add_log(parser)
    add_settings(parser, list(SECTIONS))


def _run_experiment(parsed: Namespace) -> None:
    _check_experiment(parsed)
    out = parsed.out if parsed.out is not None else parsed.work / f"{parsed.table}.json"
    picture = out.with_suffix(".png")
    for path in (out, picture):
        check_output_file(path)

    from ahernet.experiments.figures import FIGURES, run_figure
    from ahernet.experiments.pictures import draw_table
    from ahernet.experiments.table import format_table, run_table

    given = given_settings(parsed, list(SECTIONS))
    config = with_settings(preset(parsed.preset), given)
    if parsed.table not in FIGURES:
        _refuse_overruled(parsed.table, given, preset(parsed.preset))
    source, seeds, runs = _data_of(parsed), range(parsed.seeds), parsed.work / "runs"
    make_folder(runs)
    if parsed.table in FIGURES:
        figure = FIGURES[parsed.table]
        result = run_figure(parsed.table, source, config, seeds, parsed.work / "networks", parsed.jobs)
        text, draw = figure.text(result), figure.draw
    else:
        result = run_table(parsed.table, source, config, seeds, runs, parsed.jobs, rows=parsed.rows)
        text, draw = format_table(result), draw_table
    make_folder(out.parent)
    with replace_when_complete(out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, picture)
    say_result(text, out=out)


def _data_of(parsed: Namespace) -> "Data":
    from ahernet.experiments.recorded import Recorded, RecordingsPlan, read_plan
    from ahernet.experiments.setting import rendered_source
    from ahernet.experiments.setting_file import read_setting

    folder = parsed.work / "data"
    if parsed.recordings is not None:
        plan = RecordingsPlan() if parsed.setting is None else read_plan(parsed.setting)
        return Recorded(parsed.recordings, plan, folder)
    if parsed.setting is not None:
        return read_setting(parsed.setting, folder)
    return rendered_source(folder)


def _refuse_overruled(table: str, given: Mapping[str, Mapping[str, Any]], original: Config) -> None:
    """Refuse settings that change no row of a table, because each decides them itself."""
    from ahernet.experiments.table import table_configs

    rows = table_configs(table, original)
    for section, values in given.items():
        for name, value in values.items():
            try:
                changed = with_settings(original, {section: {name: value}})
            except UserError:  # it is for another one that is given
                continue
            if changed != original and table_configs(table, changed) == rows:
                raise UserError(f"experiment: --{section}.{name}: every row of {table} decides it, leave it out")


def _check_experiment(parsed: Namespace) -> None:
    for name in ("seeds", "jobs"):
        if parsed[name] < 1:
            raise UserError(f"experiment: --{name}: expected at least 1, got {parsed[name]}")
    if parsed.out is not None and parsed.out.suffix != ".json":
        raise UserError(f"experiment: --out {parsed.out}: expected a name that ends in .json")
    if parsed.rows is not None and parsed.table in FIGURES:
        raise UserError(f"experiment: --rows: {parsed.table} is a figure and has none, leave it out")


def _add_setting(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=PAPER_SETTINGS, help="setting of section 4.2 of the paper")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the setting")
    for option, meaning in (
        ("activitynet", "annotations of ActivityNet v1.3"),
        ("activitynet-subsets", "CSV of video,subset, if these state none"),
        ("thumos14", "annotations of THUMOS14 with the subsets train or validation, and test"),
        ("kinetics600", "text of id, start, end and class number"),
        ("kinetics600-classes", "class names of Kinetics-600, one a line"),
        ("base-classes", "ActivityNet classes with annotations, one a line"),
        ("novel-classes", "ActivityNet classes with moments, one a line"),
    ):
        parser.add_argument(f"--{option}", type=Path, metavar="FILE", help=meaning)
    parser.add_argument(
        "--share", type=float, default=1.0, metavar="NUMBER", help="random share of the videos (default: 1)"
    )
    parser.add_argument("--render", action="store_true", help="render features for the annotated videos")


def _run_setting(parsed: Namespace) -> None:
    from dataclasses import fields

    from ahernet.experiments.paper_settings import (
        FILES,
        PAPER_SETTINGS,
        PublishedFiles,
        count,
        with_share,
        write_setting,
    )

    files = PublishedFiles(**{field.name: parsed[field.name] for field in fields(PublishedFiles)})
    for field in fields(PublishedFiles):
        if parsed[field.name] is not None and field.name not in FILES[parsed.name]:
            raise UserError(f"setting: --{field.name.replace('_', '-')}: {parsed.name} has no use for it, leave it out")
    plan = with_share(PAPER_SETTINGS[parsed.name](files), parsed.share)
    counted = count(plan)
    path = write_setting(plan, parsed.out, render=parsed.render)
    for counts in counted:
        print(
            f"{counts.part}: {counts.instances:,} instances of {counts.classes:,} classes in {counts.videos:,} videos"
        )
    print(f"wrote {path}" + ("" if parsed.render else "; put your features where it says, or change it"))


COMMANDS = {
    "experiment": Command(
        help="repeat the tables and figures of the paper on a setting, a rendered world or recordings",
        description=(
            "Train and score every run of a table or figure of the paper with several seeds: on a setting file, or\n"
            "with half of the classes of recordings or of a rendered world known from moments only. Interrupted, it\n"
            "goes on where it was."
        ),
        usage="TABLE --work FOLDER [options]",
        example="runs --work runs/experiment --setting settings/anet_un-anet_am/setting.toml --jobs 2",
        add_arguments=_add_experiment,
        run=_run_experiment,
    ),
    "setting": Command(
        help="write a setting of the paper from published annotations",
        description=(
            "Write a setting file with annotations and class lists, for `ahernet experiment --setting`. Features are\n"
            "yours, or rendered by formulas onto the real annotations."
        ),
        usage="NAME --out FOLDER [options]",
        example=("th14-anet_fg --thumos14 thumos14.json --activitynet anet.json --share 0.1 --render --out th14"),
        add_arguments=_add_setting,
        run=_run_setting,
    ),
}
