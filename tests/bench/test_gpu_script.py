"""What can be checked of the GPU script without a GPU: its lines on the CPU, its record, its table, its refusal."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import cases, device_timing, gpu

TINY = gpu.Sizes(
    batch=3,
    small_batch=2,
    classes=7,
    most_ground_truths=4,
    outputs=10,
    many=(1100, 2300),
    resampled_videos=3,
    mean_rows=12,
    dimension=8,
    steps=16,
    pairs=50,
)


class FakeTimer:
    """Answers as `DeviceTimer` does, with made times."""

    def replays(self, calls, arguments):
        return {name: {mode: self.times(calls, name) for mode in ("cold", "hot")} for name in calls}

    def eager(self, calls, arguments):
        return {name: self.times(calls, name) for name in calls}

    def launches(self, call, arguments):
        return 1

    def times(self, calls, name):
        return device_timing.quantiles([1e-4 * (1 + list(calls).index(name))] * 5)


@pytest.fixture(scope="module")
def record():
    entries = [entry for line in gpu.lines("cpu", TINY) for entry in gpu.measured(line, FakeTimer(), 3e12)]
    return {
        "tests": gpu.tests_outcome(0),
        "device": {"name": "NVIDIA H0", "torch": "2", "triton": "3"},
        "ceilings": {"copy_bytes_per_second": 3e12, "bf16_operations_per_second": 8e14},
        "lines": entries,
    }


def test_every_line_and_peer_runs_and_agrees(record):
    assert all(entry["equal"] == 1 for entry in record["lines"])
    assert not any(entry.get("failed") for entry in record["lines"])


def test_every_op_has_a_line(record):
    ops = {entry["op"] for entry in record["lines"]}
    assert ops >= {"decode", "assign", "match", "nms", "soft_nms", "resample", "resample backward", "pairwise_tiou"}


def test_the_record_survives_json_with_its_schema(record):
    for entry in json.loads(json.dumps(record))["lines"]:
        assert {"op", "case", "way", "bytes", "equal", "launches", "eager", "share_of_copy"} <= set(entry)
        for mode in ("cold", "hot", "eager"):
            assert set(entry[mode]) == {"median_us", "q20_us", "q80_us", "n"}


def test_bytes_are_those_of_arguments_and_results(record):
    decode = next(entry for entry in record["lines"] if entry["case"] == "B=3 C=7 bf16")
    cells, anchors = sum(cases.CELLS), cases.ANCHORS
    assert decode["bytes"] == 3 * cells * (7 + 6 + 3) * 2 + anchors * 2 * 4 + 3 * anchors * (2 * 4 + 4 + 8)
    assert decode["bytes_per_second"] == pytest.approx(decode["bytes"] / 1e-4)
    assert decode["share_of_copy"] == pytest.approx(decode["bytes"] / 1e-4 / 3e12)


def test_the_table_has_a_row_a_way_and_says_how_many_times_ours(record):
    rows = gpu.table(record).splitlines()
    assert rows[0] == "NVIDIA H0, torch 2, triton 3; kernel tests: passed"
    assert rows[1] == "ceilings: copy 3.00 TB/s, bf16 800 TFLOP/s"
    assert len(rows) == 3 + len(record["lines"])
    eager = next(row for row in rows if "eager torch" in row)
    assert eager.split()[-2:] == ["2.0", "yes"]
    assert max(map(len, rows)) < 160


def test_the_table_shows_peers_that_failed_or_differ_or_wait_for_the_device(record):
    own = record["lines"][0]
    lines = [
        own,
        {"op": "nms", "case": "c", "way": "broken", "bytes": 1, "failed": True},
        {**own, "way": "different", "equal": 0.5},
        {name: value for name, value in own.items() if name not in ("cold", "hot")} | {"way": "waits"},
    ]
    broken, different, waits = gpu.table({**record, "lines": lines}).splitlines()[-3:]
    assert broken.endswith("failed")
    assert different.endswith("50.000%")
    assert waits.split()[-9:-7] == ["waits", "-"]


def test_a_failing_peer_does_not_end_the_run(capsys):
    def broken(*arguments):
        raise RuntimeError("no such kernel\nmore")

    line = next(gpu.lines("cpu", TINY))
    line = gpu.Line(line.op, line.case, line.arguments, line.call, line.checked, line.tolerance, {"broken": broken})
    own, failed = gpu.measured(line, FakeTimer(), 3e12)
    assert own["equal"] == 1
    assert failed["failed"]
    assert "RuntimeError: no such kernel" in capsys.readouterr().out


def test_disagreement_is_the_share_in_the_worst_tensor():
    expected = (torch.zeros(4), torch.arange(4))
    assert gpu.agreement(expected, expected, 0.0) == 1
    assert gpu.agreement((torch.zeros(4), torch.tensor([0, 1, 2, 4])), expected, 0.0) == 0.75
    assert gpu.agreement((torch.full((4,), 1e-5), torch.arange(4)), expected, 1e-4) == 1
    assert gpu.agreement((torch.zeros(4).double(), torch.arange(4)), expected, 0.0) == 0


@pytest.mark.parametrize(("bytes_of_one", "copies"), [(10, 30), (99, 4), (100, 3), (301, 1), (0, 1)])
def test_copies_exceed_the_cache_three_times(bytes_of_one, copies):
    assert device_timing.copies_needed(bytes_of_one, 100) == copies


def test_quantiles_are_in_microseconds():
    found = device_timing.quantiles([i * 1e-6 for i in range(11)])
    assert found == pytest.approx({"median_us": 5, "q20_us": 2, "q80_us": 8, "n": 11})


def test_names_of_records_are_plain():
    path = gpu.record_path(Path("x"), "NVIDIA H100 80GB HBM3", datetime.date(2030, 1, 2))
    assert path == Path("x/gpu_nvidia_h100_80gb_hbm3_2030-01-02.json")


@pytest.mark.parametrize(
    ("status", "outcome"), [(None, "not run"), (0, "passed"), (124, "cut short"), (1, "failed (status 1)")]
)
def test_outcome_of_the_kernel_tests(status, outcome):
    assert gpu.tests_outcome(status) == outcome


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so(root, tmp_path):
    environment = {"PYTHONPATH": f"{root / 'kernels'}:{root}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "bench.gpu", str(tmp_path / "out")]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "no GPU found" in run.stderr
    assert not (tmp_path / "out").exists()
