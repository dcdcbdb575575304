"""Hold every kernel op to its contract on random and adversarial cases: `python -m tests.kernel_campaign`.

    python -m tests.kernel_campaign --cases 1000000
    python -m tests.kernel_campaign --only nms assign --seed 7

runs on a CPU, with `--numba` the loops that numba compiles instead of NumPy's forms; with TRITON_INTERPRET=1 in the
environment it runs the Triton kernels in their interpreter (try `--cases 200`). A case is one independent piece of work
of an op, such as a video with its candidates; what it is for each op is printed with `--list`. A call has a thousand
cases or two (a dozen in the interpreter): ties, exact thresholds, tiny, huge, negative and inverted segments, and what
is not a number, which must stay in its own case. Results are compared with references that are written anew over arrays
of cases, and are held to slow ones in the test-suite: bit for bit where the contract is exact, else within a bound on
the rounding of fp32.

Call k has the seed S + k, so that one call is done again by `--only OP --seed S+k --cases N` with the N that is
printed. Prints a line for each op: cases, calls, seconds, cases that differ. Ends with exit code 1 at the first call
of an op that differs, after the smallest case of it.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ahernet_kernels._cpu_form import why_without_loops

from ahernet.progress import ProgressBar

sys.path.insert(0, str(Path(__file__).parent / "support"))
from kernel_backends import interpreter, registered
from kernel_campaign_blocks import small_blocks
from kernel_campaign_cells import CHECKS as CELLS
from kernel_campaign_checks import Check, Outcome
from kernel_campaign_draws import INTERPRETED, Draws
from kernel_campaign_exact import CHECKS as EXACT
from kernel_campaign_losses import CHECKS as LOSSES
from kernel_campaign_sequences import CHECKS as SEQUENCES

INTERPRETED_CASES = 12  # of a call in the interpreter, where a case takes as long as a thousand do here
CHECKS = EXACT | CELLS | LOSSES | SEQUENCES


def outcome_of(check: Check, name: str, ops: SimpleNamespace, seed: int, size: int) -> Outcome:
    """One call of an op, the same for the same seed and size."""
    draws = Draws(np.random.default_rng([seed, zlib.crc32(name.encode())]))
    with small_blocks(draws):
        return check.hold(ops, draws, size)


def hold(name: str, ops: SimpleNamespace, cases: int, seed: int) -> bool:
    """Call an op until there were enough cases or one differs; print what came of it, and return if all was well."""
    check, begun = CHECKS[name], time.perf_counter()
    size = min(check.size, cases, *([INTERPRETED_CASES] if INTERPRETED else []))
    done = calls = differences = 0
    with ProgressBar(total=cases, desc=name, unit="case", leave=False, disable=None) as bar:
        while done < cases and not differences:
            again = f"seed {seed + calls}; again with --only {name} --seed {seed + calls} --cases {size}"
            try:
                outcome = outcome_of(check, name, ops, seed + calls, size)
            except Exception:
                print(f"{name}: {again}")
                raise
            differences = outcome.differences
            done, calls = done + len(outcome.wrong), calls + 1
            bar.update(len(outcome.wrong))
    seconds = time.perf_counter() - begun
    if differences:
        print(f"{name}: {again}")
        torch.set_printoptions(precision=9, threshold=100_000, linewidth=120)
        for part, value in outcome.smallest().items():
            print(f"  {part}: {value}")
    print(f"{name:20}{done:>10,} cases {calls:>7,} calls {seconds:>8.1f} s {differences:>6,} differ", flush=True)
    return not differences


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold the ops of the command line to their contracts."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernel_campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=1_000_000, help="of every op, at least (default: 1,000,000)")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="these ops (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the first call of every op (default: 0)")
    parser.add_argument("--numba", action="store_true", help="the loops that numba compiles, of match, assign and nms")
    parser.add_argument("--list", action="store_true", help="say what a case of each op is, and end")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{name:20}{CHECKS[name].case}" for name in options.only))
        return 0
    if options.numba and (problem := why_without_loops()):
        parser.error(f"--numba: {problem}")
    torch.set_num_threads(1)
    ops = interpreter() if INTERPRETED else registered("numba" if options.numba else "cpu")
    well = [hold(name, ops, options.cases, options.seed) for name in options.only]
    print(f"{len(well)} ops by {ops.name}, {well.count(False)} not as their contracts say")
    return 0 if all(well) else 1


if __name__ == "__main__":
    raise SystemExit(main())
