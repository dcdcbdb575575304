"""What can be checked of the GPU suite without a GPU: its lines on the CPU, its record, its table, its refusals."""

import datetime
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bench_fakes import CEILINGS, TINY, FakeTimer

from bench import cases, device_timing, gpu, lines
from bench.training import Training


def new_record():
    return {
        "schema": gpu.SCHEMA,
        "tests": gpu.tests_outcome(0),
        "device": {"name": "NVIDIA H0", "torch": "2", "triton": "3"},
        "ceilings": CEILINGS,
        "lines": [],
    }


def run(folder, groups, record=None, deadline=math.inf):
    made = gpu.Run(folder / "record.json", dict(record or new_record()), groups, deadline, FakeTimer())
    made.measure("cpu", TINY)
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return run(tmp_path_factory.mktemp("gpu"), list(lines.GROUPS))


def test_every_line_and_peer_runs_and_agrees(record):
    assert not [entry for entry in record["lines"] if "failed" in entry]
    assert all(entry.get("equal", 1) > 0.99 for entry in record["lines"] if entry["op"] != "localize")
    assert all(gpu.is_good(entry) for entry in record["lines"])


def test_every_op_has_a_line(record):
    ops = {entry["op"] for entry in record["lines"]}
    assert ops >= {"decode", "assign", "match", "nms", "soft_nms", "resample", "resample backward", "pairwise_tiou"}
    assert "localize" in ops


def test_no_two_lines_have_one_name(record):
    names = [(entry["op"], entry["case"], entry["way"]) for entry in record["lines"]]
    assert len(set(names)) == len(names)


def test_the_record_has_its_schema(record):
    for entry in record["lines"]:
        assert {"op", "case", "way", "launches", "eager"} <= set(entry)
        for mode in ("cold", "hot", "eager"):
            if mode in entry:
                assert set(entry[mode]) == {"median_us", "q20_us", "q80_us", "n"}
        if not entry["way"].startswith("part: "):
            assert {"bytes", "operations", "matrix_operations", "equal", "share_of_copy", "axis"} <= set(entry)


def test_shares_are_of_the_ceilings(record):
    decode = next(entry for entry in record["lines"] if entry["case"] == "B=3 C=7 bf16")
    cells, anchors = sum(cases.CELLS), cases.ANCHORS
    assert decode["bytes"] == 3 * cells * (7 + 6 + 3) * 2 + anchors * 2 * 4 + 3 * anchors * (2 * 4 + 4 + 8)
    assert decode["bytes_per_second"] == pytest.approx(decode["bytes"] / 1e-4)
    assert decode["share_of_copy"] == pytest.approx(decode["bytes"] / 1e-4 / 3e12)
    assert decode["share_of_ceiling"] == pytest.approx(max(decode["bytes"] / 3e12, decode["operations"] / 5e13) / 1e-4)


def test_the_table_has_a_row_a_way_and_says_how_many_times_ours(record):
    rows = gpu.table(record).splitlines()
    assert rows[0] == "NVIDIA H0, torch 2, triton 3; kernel tests: passed"
    assert rows[1] == "ceilings: copy 3.00 TB/s, bf16 800 TFLOP/s, fp32 50 TFLOP/s"
    assert len(rows) == 3 + sum(entry["axis"] in ("", "many") for entry in record["lines"])
    assert max(map(len, rows)) < 150
    eager = next(row for row in rows if "eager torch" in row)
    assert eager.split()[-2:] == ["2.00", "yes"]


def test_the_table_shows_what_failed_or_differs_or_waits_for_the_device(record):
    own = record["lines"][0]
    entries = [
        own,
        {"op": "nms", "case": "c", "way": "broken", "failed": "RuntimeError: no such kernel"},
        {**own, "way": "different", "equal": 0.5},
        {name: value for name, value in own.items() if name not in ("cold", "hot")} | {"way": "waits"},
    ]
    broken, different, waits = gpu.table({**record, "lines": entries}).splitlines()[-3:]
    assert broken.endswith("failed: RuntimeError: no such kernel")
    assert different.endswith("50.000%")
    assert waits.split()[-9:-6] == ["waits", "-", "0.0"]


def broken_line(**changes):
    def broken(*arguments):
        raise RuntimeError("no such kernel\nmore")

    line = next(lines.decode_lines("cpu", TINY))
    return lines.Line(line.op, line.case, line.arguments, **{"call": line.call, "peers": {"broken": broken}} | changes)


def test_a_failing_peer_is_recorded_and_does_not_end_its_line():
    own, failed = gpu.measured(broken_line(tolerance=1e-4), FakeTimer(), CEILINGS)
    assert own["equal"] == 1
    assert failed["way"] == "broken"
    assert failed["failed"] == "RuntimeError: no such kernel"


def test_a_failing_line_is_recorded_and_the_run_goes_on(tmp_path, monkeypatch):
    def group(device, sizes):
        yield broken_line(call=broken_line().peers["broken"], peers={})
        yield from lines.pairwise_lines(device, sizes)
        raise MemoryError("too large")

    monkeypatch.setitem(lines.GROUPS, "decode", group)
    failed, good, *_, unmade = run(tmp_path, ["decode"])["lines"]
    assert failed["failed"] == "RuntimeError: no such kernel"
    assert not gpu.is_good(failed)
    assert gpu.is_good(good)
    assert (unmade["case"], unmade["failed"]) == (gpu.NOT_MADE, "MemoryError: too large")


def test_a_run_goes_on_with_what_its_record_lacks(tmp_path):
    first = run(tmp_path, ["pairwise_tiou"])
    again = run(tmp_path, ["pairwise_tiou", "soft_nms"], first)
    assert again["lines"][: len(first["lines"])] == first["lines"]
    assert {entry["op"] for entry in again["lines"][len(first["lines"]) :]} == {"soft_nms"}


def test_entries_name_the_group_that_they_are_asked_for_by(record):
    groups = {entry["case"]: entry["group"] for entry in record["lines"] if entry["op"] == "decode"}
    assert groups["B=3 C=7 bf16"] == "decode"
    assert groups["B=3 C=7 bf16 channels last"] == "decode_last"
    assert {entry["group"] for entry in record["lines"]} == set(lines.GROUPS)


def test_a_record_that_goes_on_was_asked_for_all_that_it_ever_was():
    assert gpu.asked(["nms"], ["decode", "nms"]) == ["decode", "nms"]
    assert gpu.asked(None, ["nms"]) is None
    assert gpu.asked(["nms"], None) is None


def test_what_is_not_begun_in_time_is_said_and_begun_by_the_next_run(tmp_path):
    late = run(tmp_path, ["pairwise_tiou"], deadline=time.monotonic() - 1)
    assert [entry["failed"] for entry in late["lines"]] == ["out of time"]
    later = run(tmp_path, ["pairwise_tiou"], late)
    assert all("failed" not in entry for entry in later["lines"])


def test_disagreement_is_the_share_in_the_worst_tensor():
    expected = (torch.zeros(4), torch.arange(4))
    assert gpu.agreement(expected, expected, 0.0) == 1
    assert gpu.agreement((torch.zeros(4), torch.tensor([0, 1, 2, 4])), expected, 0.0) == 0.75
    assert gpu.agreement((torch.zeros(4).double(), torch.arange(4)), expected, 0.0) == 0
    assert gpu.agreement((torch.empty(0),), (torch.empty(0),), 0.0) == 1


def test_integers_agree_only_where_they_are_equal():
    labels = torch.arange(300)
    assert gpu.agreement(labels + 1, labels, 1e-2) == 0


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_tolerance_of_floats_is_relative_to_their_size(size):
    expected = size * torch.tensor([1.0, -2.0, 3.0, -1e-5])
    assert gpu.agreement(expected + 1e-3 * size, expected, 1e-2) == 1
    assert gpu.agreement(expected + 1e-1 * size, expected, 1e-2) == 0
    assert gpu.agreement(torch.zeros(4), expected, 1e-2) == 0.25


def test_nothing_agrees_with_a_sparse_gradient_but_itself():
    expected = torch.zeros(1000)
    expected[:3] = torch.tensor([1.0, 2.0, 3.0])
    assert gpu.agreement(expected, expected, 1e-2) == 1
    assert gpu.agreement(torch.zeros(1000), expected, 1e-2) == 0
    assert gpu.agreement(expected, torch.zeros(1000), 1e-2) == 0


def test_infinities_agree_with_themselves_and_nan_with_nothing():
    expected = torch.tensor([math.inf, -math.inf, 1.0, math.nan])
    assert gpu.agreement(expected, expected, 1e-2) == 0.75


def test_localizing_is_held_to_the_cpu_path():
    line = next(lines.localize_lines("cpu", TINY))
    assert gpu.agreement_with_reference(line) >= line.required
    for parameter in line.call.__self__.step.heads.parameters():
        parameter.add_(1.0)
    assert gpu.agreement_with_reference(line) < line.required


def test_training_is_held_to_the_gradients_of_its_peer(monkeypatch):
    call = Training.call

    def without_gradients_of_the_transfer(self, batch):
        parameters = self.run.networks.part("transfer").parameters()
        hooks = [parameter.register_hook(torch.zeros_like) for parameter in parameters]
        loss = call(self, batch)
        for hook in hooks:
            hook.remove()
        return loss

    assert gpu.agreement_with_reference(next(lines.training_lines("cpu", TINY))) == 1
    monkeypatch.setattr(Training, "call", without_gradients_of_the_transfer)
    assert gpu.agreement_with_reference(next(lines.training_lines("cpu", TINY))) == 0


@pytest.mark.parametrize(("bytes_of_one", "copies"), [(10, 30), (99, 4), (100, 3), (301, 1), (0, 1)])
def test_copies_exceed_the_cache_three_times(bytes_of_one, copies):
    assert device_timing.copies_needed(bytes_of_one, 100) == copies


def test_slow_ways_get_fewer_rounds():
    assert [device_timing.rounds_for(seconds) for seconds in (1e-6, 0.04, 10.0)] == [20, 10, 3]


def test_quantiles_are_in_microseconds():
    found = device_timing.quantiles([i * 1e-6 for i in range(11)])
    assert found == pytest.approx({"median_us": 5, "q20_us": 2, "q80_us": 8, "n": 11})


def test_names_of_records_are_plain():
    path = gpu.record_path(Path("x"), "gpu", "NVIDIA H100 80GB HBM3", datetime.date(2030, 1, 2))
    assert path == Path("x/gpu_nvidia_h100_80gb_hbm3_2030-01-02.json")


def test_a_record_of_the_same_day_is_kept_and_the_next_numbered(tmp_path):
    names = []
    for kind in ("gpu", "gpu", "tuning", "gpu"):
        path = gpu.record_path(tmp_path, kind, "H0", datetime.date(2030, 1, 2))
        gpu.write(path, {})
        names.append(path.stem)
    assert names == ["gpu_h0_2030-01-02", "gpu_h0_2030-01-02_2", "tuning_h0_2030-01-02", "gpu_h0_2030-01-02_3"]


@pytest.mark.parametrize(
    ("status", "outcome"), [(None, "not run"), (0, "passed"), (124, "cut short"), (1, "failed (status 1)")]
)
def test_outcome_of_the_kernel_tests(status, outcome):
    assert gpu.tests_outcome(status) == outcome


def command(root, *arguments):
    environment = {"PYTHONPATH": f"{root / 'kernels'}:{root}", "PATH": "/usr/bin:/bin"}
    whole = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(whole, cwd=root, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_suite_says_so(root, tmp_path):
    refused = command(root, "gpu", tmp_path / "out")
    assert refused.returncode == 2
    assert "no GPU found" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_group_is_refused_by_name(root):
    refused = command(root, "gpu", "--only", "decode,nmss")
    assert refused.returncode == 2
    assert "no group nmss" in refused.stderr
