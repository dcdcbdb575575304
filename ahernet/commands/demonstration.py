"""The command `demo`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ahernet.commands.command import Command


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
}
