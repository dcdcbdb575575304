"""The command `doctor`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ahernet.commands.command import Command
from ahernet.errors import UserError


def _add_doctor(parser: ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        type=Path,
        nargs="*",
        metavar="PATH",
        help="archives, folders that train wrote, or detections to check as well",
    )


def _run_doctor(parsed: Namespace) -> None:
    from ahernet.doctor import examine

    wrong = 0
    for check in examine(parsed.paths):
        print(check, flush=True)
        wrong += not check.fine
    if wrong:
        raise UserError(f"doctor: {wrong} of these are wrong; paste all of it into an issue")


COMMANDS = {
    "doctor": Command(
        help="say what is installed, and whether everything works here",
        description=(
            "Print versions and devices, try every op where it can run, and check files, in a form that can be\n"
            "pasted into an issue: it names neither the machine nor your folders."
        ),
        usage="[PATH...]",
        example="archive.h5 runs/first detections.json",
        add_arguments=_add_doctor,
        run=_run_doctor,
    ),
}
