"""What a command is, and options that several share. What commands need is imported when they run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from ahernet.errors import UserError

if TYPE_CHECKING:
    from ahernet.data.annotations import Annotations


LARGEST_DRAWS = 1_000_000  # of a bootstrap: hours of work, and scores that still fit into memory


@dataclass(frozen=True)
class Command:
    """One subcommand: `usage` is what follows its name, `example` one line that works.

    `outputs` are the arguments that name what it writes; other paths that it is given are read.
    """

    help: str
    description: str
    usage: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]
    outputs: tuple[str, ...] = ("out",)


def add_categories(parser: ArgumentParser) -> None:
    """Add `--categories`."""
    parser.add_argument(
        "--categories",
        type=Path,
        metavar="FILE",
        help="class names, one a line, if the annotations number them",
    )


def add_annotation_options(parser: ArgumentParser) -> None:
    """Add the options that say how an annotation file is to be read."""
    add_categories(parser)
    parser.add_argument(
        "--subsets",
        type=Path,
        metavar="CSV",
        help="table with columns video and subset, if the annotations do not name subsets",
    )


def read_annotations_of(path: Path, parsed: Namespace) -> "Annotations":
    """Read an annotation file by the options of `add_annotation_options`."""
    from ahernet.data.annotations import read_annotations

    return read_annotations(path, categories=parsed.categories, subsets=parsed.subsets)


def add_device(parser: ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:NUMBER (default: auto)"
    )


def add_log(parser: ArgumentParser) -> None:
    """Add `--log-json`, which the command line obeys for every command that has it."""
    parser.add_argument(
        "--log-json",
        type=Path,
        metavar="FILE",
        help="append progress, warnings, errors and results to this file, one JSON object a line",
    )


def add_classes(parser: ArgumentParser, meaning: str) -> None:
    """Add `--classes`, a file of class names."""
    parser.add_argument("--classes", type=Path, metavar="FILE", help=f"class names, one a line: {meaning}")


def classes_of(parsed: Namespace) -> list[str] | None:
    """Return the names in the file that `--classes` gives, None without."""
    from ahernet.data.annotations import read_class_names

    return None if parsed.classes is None else read_class_names(parsed.classes)


def check_draws(draws: int, command: str, minimum: int) -> None:
    """Check `--draws`, how many sets of videos a bootstrap draws.

    Raises:
        UserError: fewer than `minimum`, or more than anyone could wait for.
    """
    if not minimum <= draws <= LARGEST_DRAWS:
        raise UserError(f"{command}: --draws: expected {minimum} to {LARGEST_DRAWS:,}, got {draws}")


def add_groups(parser: ArgumentParser, meaning: str) -> None:
    """Add `--groups`, files of class names by the name of the group."""
    parser.add_argument(
        "--groups",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help=f"{meaning}, for instance base=base.txt novel=novel.txt (names, one a line)",
    )


def groups_of(parsed: Namespace, command: str) -> dict[str, list[str]]:
    """Return the names in the files that `--groups` gives, by the name of the group.

    Raises:
        UserError: a group without a name or a file, a name that is taken, or a file that cannot be read.
    """
    from ahernet.data.annotations import read_class_names

    groups = {}
    for text in parsed.groups:
        name, _, path = text.partition("=")
        if not name or not path:
            raise UserError(f"{command}: --groups: expected NAME=FILE, got {text!r:.80}")
        if name == "all" or name in groups:
            raise UserError(f"{command}: --groups: the name {name!r:.40} is taken already, give another")
        groups[name] = read_class_names(Path(path))
    return groups
