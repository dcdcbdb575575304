"""The command line: `ahernet COMMAND ...`. `commands` has what each command takes and does.

What a user can mend ends as one line on stderr and exit code 2. Everything heavy is imported by the command that
needs it, so that help is instant.
"""

import argparse
import difflib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ahernet import __version__
from ahernet.__main__ import INTERRUPTED
from ahernet.command_settings import HelpFormatter
from ahernet.commands import COMMANDS
from ahernet.data.printable import printable
from ahernet.errors import UserError, is_out_of_memory
from ahernet.event_log import log_to, warnings_as_lines

USER_ERROR = 2
# Files of the folders that commands write, of which one that is given as a whole is read.
PARTS_OF_FOLDERS = re.compile(
    r"(manifest|extraction|checkpoint)\.json|(part|weights)-.*|training_state\.pt|losses\.jsonl|setting\.toml"
)
BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Returns:
        0 if all went well, 2 after an error of the user, 130 if interrupted, 141 if nobody reads the output.
    """
    # Before torch is loaded: threads that wait must not spin, or they stall each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what a terminal cannot show
    try:
        with _termination_interrupts():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        return _fail(str(error), USER_ERROR)
    except KeyboardInterrupt as error:
        return _fail(f"interrupted: {error}" if str(error) else "interrupted", INTERRUPTED)
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except OSError:
        problem = _problem_of_output()
        if problem is None:
            raise
        _discard_output()
        return _fail(f"cannot write to standard output ({problem})", USER_ERROR)
    except SystemExit as error:  # --help and --version
        return error.code if isinstance(error.code, int) else 0
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail("out of memory: try a smaller batch size or network", USER_ERROR)


def _run(arguments: Sequence[str]) -> int:
    parser = _make_parser()
    try:
        parsed = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(_explain(str(error), arguments)) from error
    except OverflowError as error:
        raise UserError("command line: a number is too large, give a smaller one") from error
    name, given = parsed.subcommand, parsed[parsed.subcommand]
    _check_outputs((*COMMANDS[name].outputs, "log_json"), given, arguments)
    _check_annotation_options(name, given)
    with log_to(_log_of(given), name, arguments), warnings_as_lines():
        COMMANDS[name].run(given)
    sys.stdout.flush()
    return 0


def _check_outputs(names: Sequence[str], given: Namespace, arguments: Sequence[str]) -> None:
    """Refuse an output without a name, or one that replaces an input or another output.

    Raises:
        UserError: naming the option.
    """
    options = {name: f"--{name.replace('_', '-')}" for name in names}
    for option in options.values():
        if f"{option}=" in arguments or (option, "") in pairwise(arguments):
            raise UserError(f"{option}: expected a name, got nothing (an empty variable?)")
    paths = [
        (name, path)
        for name, value in vars(given).items()
        for path in (value if isinstance(value, list) else [value])
        if isinstance(path, Path)
    ]
    for name, path in paths:
        for other, taken in paths:
            if name not in options or other == name:
                continue
            written, met = Path(os.path.realpath(path)), Path(os.path.realpath(taken))
            is_part = written.parent == met and PARTS_OF_FOLDERS.fullmatch(written.name) and other not in options
            if written == met or is_part:
                what = "is written to" if other in options else "is read"
                raise UserError(f"{options[name]} {path}: {what} by this command as well, expected another name")


def _check_annotation_options(command: str, given: Namespace) -> None:
    """Refuse options that say how annotations are to be read where no annotations are given.

    Raises:
        UserError: naming the option.
    """
    if given.get("annotations", "positional") is None:
        for name in ("subset", "subsets", "categories"):
            if given.get(name) is not None:
                raise UserError(f"{command}: --{name} needs --annotations, the file that it is about")


def _log_of(given: Namespace) -> Path | None:
    """Return the log that a command was given; of several processes of torchrun the first one alone writes it."""
    path: Path | None = given.get("log_json")
    if path is not None:
        from ahernet.training.ranks import is_first_process

        path = path if is_first_process() else None
    return path


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Let SIGTERM end a command as SIGINT does, so that it can remove what it has half-written."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("terminated")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _problem_of_output() -> str | None:
    """Return why standard output takes nothing any more, None if it does."""
    try:
        print(flush=True)  # what could not be written is gone: to flush alone would succeed
    except OSError as error:
        return error.strerror
    return None


def _discard_output() -> None:
    """Let what the interpreter flushes at exit go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    line = printable(" ".join(message.split()))
    print(f"ahernet: error: {line}", file=sys.stderr)
    return code


def _make_parser() -> ArgumentParser:
    parser = _new_parser(
        prog="ahernet",
        usage="ahernet COMMAND ...",
        description="Localize actions in untrimmed videos from clip features.",
        epilog="ahernet COMMAND --help describes a command. Start with: ahernet demo",
        version=__version__,
    )
    commands = parser.add_subcommands(metavar="COMMAND", title="commands", description=None)
    for name, command in COMMANDS.items():
        subparser = _new_parser(
            usage=f"ahernet {name} {command.usage}",
            description=command.description,
            epilog=f"example:\n  ahernet {name} {command.example}",
        )
        command.add_arguments(subparser)
        commands.add_subcommand(name, subparser, help=command.help)
    return parser


def _new_parser(**options: Any) -> ArgumentParser:
    # abbreviations would turn a typing error into another option
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, formatter_class=HelpFormatter, **options)


def _explain(message: str, arguments: Sequence[str]) -> str:
    """Turn a message of the parser into one line in the words of the command line."""
    command = next((word for word in arguments if word in COMMANDS), None)
    if "one of {" in message and "but it was not provided" in message:
        return f"expected a command: {', '.join(COMMANDS)}; ahernet --help describes them"
    wrong_command = re.match(r"argument COMMAND: invalid choice: '(.*)' \(choose", message)
    if wrong_command:
        return f"{wrong_command[1]}: no such command{_meant(wrong_command[1], COMMANDS)}; ahernet --help lists them"
    unknown = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
    if unknown:
        word = unknown[1].split()[0].partition("=")[0]
        known = _options(command) if command else ["--help", "--version"]
        program = f"ahernet {command}" if command else "ahernet"
        return f"{command or program}: unknown argument {word}{_meant(word, known)}; {program} --help lists them"
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing and command:
        names = [name.strip().removeprefix(f"{command}.") for name in missing[1].split(",")]
        options = _options(command)
        names = [f"--{name}" if f"--{name}" in options else name.upper() for name in names]
        return f"{command}: missing {', '.join(names)}; usage: ahernet {command} {COMMANDS[command].usage}"
    bad_value = re.match(r"Parser key \"(.*?)\":\s*Expected an? (.*)\. Got value: (.*)", message, re.DOTALL)
    if bad_value:
        name = bad_value[1].removeprefix(f"{command}.")
        expected = re.sub(r"<class '(\w+)'>|typing\.Literal", r"\1", bad_value[2])
        expected = {"int": "an integer", "float": "a number", "bool": "true or false"}.get(expected, expected)
        return f"{name}: expected {expected.replace('[', 'one of ').rstrip(']')}, got {bad_value[3]!r}"
    return f"{command}: {message}" if command else message


def _options(command: str) -> list[str]:
    parser = _new_parser()
    COMMANDS[command].add_arguments(parser)
    return re.findall(r"(?<=\[)--[\w.-]+|(?<= )--[\w.-]+", parser.format_usage())


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
