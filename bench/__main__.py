"""The measuring instrument: `python -m bench <command>`."""

import argparse
import importlib
import sys

COMMANDS = {
    "model": "without a GPU: what the compiled kernels say of themselves",
    "report": "draw records and write their tables",
    "compare": "say what became slower between two records",
    "tune": "find the fastest tile sizes on the GPU of this machine, for the launchers",
    "gpu": "time every kernel and pipeline on the GPU of this machine",
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, what in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    name = parser.parse_args(arguments[:1]).command
    module = importlib.import_module(f"bench.{name}")  # only what the command needs: some need a GPU, some a plot
    own = argparse.ArgumentParser(
        prog=f"python -m bench {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(own)
    status: int = module.main(own.parse_args(arguments[1:]))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
