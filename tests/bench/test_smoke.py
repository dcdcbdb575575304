"""Every CPU bench runs, and its ways agree, at the smallest size of each."""

import os
import re
import subprocess
import sys


def test_every_bench_runs_once_at_its_small_size(root):
    command = [sys.executable, "-m", "pytest", "bench", "-v", "-k", "small", "--benchmark-disable"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    path = os.pathsep.join([str(root), str(root / "kernels")])
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=root,
        env={**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = set(re.findall(r"(bench_\w+)\.py::\S.* PASSED", run.stdout))
    assert passed == {file.stem for file in (root / "bench").glob("bench_*.py")}
