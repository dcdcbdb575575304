"""Settings on the command line: `--training.iterations 500` for every field of the configuration."""

import argparse
import dataclasses
import inspect
import shutil
from collections.abc import Sequence
from typing import Any

from jsonargparse import SUPPRESS, ArgumentParser, Namespace

from ahernet.config import PRESETS, Config, config_from_dict, config_to_dict

WIDTH = 110  # of help, in characters, where the terminal is as wide

SECTIONS = {
    item.name: type(getattr(Config(), item.name)) for item in dataclasses.fields(Config) if item.name != "preset"
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows short names for values and, for every setting, what the presets say."""

    def __init__(self, prog: str) -> None:
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 0)).columns)
        super().__init__(prog, max_help_position=34, width=width)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "VALUE"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        section, _, name = action.dest.partition(".")
        if section not in SECTIONS:
            return action.help
        values = {key: getattr(getattr(config, section), name) for key, config in PRESETS.items()}
        if len(set(values.values())) == 1:
            return f"{action.help} ({_written(next(iter(values.values())))})"
        shown = ", ".join(f"{key}: {_written(value)}" for key, value in values.items())
        return f"{action.help} ({shown})"


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def add_settings(parser: ArgumentParser, sections: Sequence[str]) -> None:
    """Add `--section.name` for every setting of the sections; settings not given are not in the result."""
    for section in sections:
        kind = SECTIONS[section]
        title = (inspect.getdoc(kind) or section).splitlines()[0].rstrip(".")
        group = parser.add_argument_group(f"settings, {section}: {title}")
        group.add_class_arguments(kind, section, as_group=False)
        parser.set_defaults({f"{section}.{item.name}": SUPPRESS for item in dataclasses.fields(kind)})


def given_settings(parsed: Namespace, sections: Sequence[str]) -> dict[str, Any]:
    """Return the settings that were given, as nested dictionaries."""
    return {section: parsed[section].as_dict() for section in sections if section in parsed}


def with_settings(config: Config, changes: dict[str, Any]) -> Config:
    """Return `config` with some settings replaced, checked like those of a file."""
    settings = config_to_dict(config)
    for section, values in changes.items():
        settings[section] |= values
    return config_from_dict(settings, "command line")
