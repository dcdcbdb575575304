"""Every CPU bench runs, and its ways agree, at the smallest size of each."""

import os
import re
import subprocess
import sys

from bench.records import OWN, read


def run_benches(root, *arguments):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    path = os.pathsep.join([str(root), str(root / "kernels")])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, arguments), "-k", "small", "-p", "no:cacheprovider"],
        cwd=root,
        env={**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_every_bench_runs_once_at_its_small_size(root):
    said = run_benches(root, "bench", "-v", "--benchmark-disable")
    passed = set(re.findall(r"(bench_\w+)\.py::\S.* PASSED", said))
    assert passed == {file.stem for file in (root / "bench").glob("bench_*.py")}


def test_a_record_has_a_way_of_ours_for_each_case_and_says_what_was_asked_for(root, tmp_path):
    benches = [root / "bench" / f"bench_{name}.py" for name in ("average_recall", "pairwise_tiou")]
    run_benches(root, *benches, f"--benchmark-json={tmp_path / 'record.json'}")
    found = read(tmp_path / "record.json")
    ours = {name.op for name in found.timings if name.way == OWN}
    assert ours == {name.op for name in found.timings} == {"average recall", "both measures", "pairwise_tiou"}
    assert found.asked == {timing.group for timing in found.timings.values()}
