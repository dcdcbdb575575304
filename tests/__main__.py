"""Run every test: `python tests`. Arguments go to pytest.

Two processes, because Triton decides when a kernel is defined whether to interpret it: one runs everything as
registered (with kernels compiled ahead of time for GPUs, or on the GPU there is), one holds the same kernel
contracts in the interpreter.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
JOBS = {
    "registered ops, model, data and command line; kernels compiled ahead of time": ({}, TESTS),
    "kernels in Triton's interpreter": ({"TRITON_INTERPRET": "1"}, TESTS / "kernels" / "contracts"),
}


def main() -> int:
    failed = []
    for title, (environment, folder) in JOBS.items():
        print(f"\n=== {title}", flush=True)
        workers = ["-n", str(os.cpu_count() or 1), "--dist", "worksteal"]
        command = [sys.executable, "-m", "pytest", *workers, "-q", str(folder), *sys.argv[1:]]
        # One thread a worker: more would only compete for the same cores.
        settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        if subprocess.run(command, cwd=TESTS.parent, env=settings).returncode:
            failed.append(title)
    print("\n" + ("FAILED: " + "; ".join(failed) if failed else "All test jobs passed."))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
