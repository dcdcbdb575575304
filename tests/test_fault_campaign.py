import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_commands_that_are_killed_and_run_out_of_disk_end_as_undisturbed_ones():
    command = [sys.executable, "-m", "tests.fault_campaign", "--kills", "3", "--disks", "1"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in lines] == ["train", "extract", "localize"]
    assert all("1 at named points" in line and "1 disks too small" in line for line in lines)
