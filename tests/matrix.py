"""Run the tests with each Python, PyTorch and NumPy at the ends of what setup.py declares: `python tests/matrix.py`.

A cell is a virtual environment of its own, made anew. Those with the lowest NumPy have numba, which follows NumPy's
releases some months later, the others not. That with the lowest PyTorch, too, has the lowest release of each other
package that setup.py allows. One whose packages cannot be installed here is reported as such.
`--list` shows the cells, `--only 3.11` those whose name holds the text; further arguments go to pytest. Continuous
integration runs one cell, that of `constraints.txt`. PyTorch is a download of gigabytes where there is no CPU build.
"""

import argparse
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12")
# The lowest that setup.py allows, and the highest of a range that there is.
ENDS = {"lowest": "=={low}.*", "highest": ">={low},<{high}"}


@dataclass(frozen=True)
class Cell:
    """What the tests run with: an interpreter, and what pip is asked for."""

    python: str
    torch: str
    numpy: str
    others: tuple[str, ...] = ()
    """What else pip may not go beyond."""
    extras: str = "test"

    @property
    def name(self) -> str:
        """How a cell is called."""
        others = ", others lowest" if self.others else ""
        return f"Python {self.python}, torch{self.torch}, numpy{self.numpy}{others}"


def cells() -> list[Cell]:
    """Return every combination, from what setup.py declares."""
    declared = (ROOT / "setup.py").read_text(encoding="utf-8")
    lowest = [
        f"{name}=={low}.*"
        for name, low in re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)', declared)
        if name not in ("torch", "numpy", "triton")  # PyTorch chooses its Triton
    ]
    ends = []
    for package in ("torch", "numpy"):
        found = re.search(rf'"{package}>=([\d.]+),<([\d.]+)"', declared)
        if found is None:
            raise SystemExit(f"setup.py: no range of {package} of the form >=LOW,<HIGH")
        ends.append([end.format(low=found[1], high=found[2]) for end in ENDS.values()])
    found = []
    for python, torch, numpy in itertools.product(PYTHONS, *ends):
        extras = "cpu,test" if numpy == ends[1][0] else "test"
        is_lowest = (torch, numpy) == (ends[0][0], ends[1][0])
        found.append(Cell(python, torch, numpy, tuple(lowest) if is_lowest else (), extras))
    return found


def run(cell: Cell, arguments: list[str]) -> str:
    """Install and test a cell; return how that ended."""
    python = shutil.which(f"python{cell.python}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        return "no such Python here"
    with tempfile.TemporaryDirectory() as folder:
        own, constraints = Path(folder) / "bin" / "python", Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(cell.others), encoding="utf-8")
        wanted = [f"torch{cell.torch}", f"numpy{cell.numpy}", "-e", f"{ROOT}[{cell.extras}]"]
        steps = (
            [python, "-m", "venv", folder],
            [str(own), "-m", "pip", "install", "--quiet", "-c", str(constraints), *wanted],
        )
        if any(subprocess.run(step).returncode for step in steps):
            return "cannot be installed here"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        tested = subprocess.run([str(own), str(ROOT / "tests"), *arguments], env=environment)
        return "FAILED" if tested.returncode else "passed"


def main() -> None:
    """Run the cells that the command line chooses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only show the cells")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name holds this")
    options, arguments = parser.parse_known_args()
    chosen = [cell for cell in cells() if options.only in cell.name]
    if options.list:
        print("\n".join(cell.name for cell in chosen))
        return
    ended = {cell.name: run(cell, arguments) for cell in chosen}
    print("\n" + "\n".join(f"{name}: {how}" for name, how in ended.items()))
    raise SystemExit(1 if "FAILED" in ended.values() else 0)


if __name__ == "__main__":
    main()
