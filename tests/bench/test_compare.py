"""What counts as slower between two records, and which records can be compared."""

import json

import pytest
from bench_fakes import cpu_record, gpu_record

from bench import __main__ as command
from bench import targets
from bench.records import load

NMS, DECODE = ("nms", "B=64", "ahernet"), ("decode", "B=64", "ahernet")
PEER = ("nms", "B=64", "peer")


@pytest.fixture
def compare(tmp_path, capsys):
    def run(before, after, *options):
        for name, record in (("a", before), ("b", after)):
            (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
        status = command.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options])
        return status, capsys.readouterr()

    return run


def test_the_same_record_has_nothing_slower(compare):
    record = gpu_record({NMS: 10.0, DECODE: 5.0})
    status, said = compare(record, record)
    assert status == 0
    assert said.out.splitlines()[-1] == "0 slower, 0 faster, 0 failed, missing or wrong, of 6; 0 of A not asked of B"


def test_what_is_slower_by_the_threshold_and_the_spread_is_named_and_fails(compare):
    status, said = compare(gpu_record({NMS: 10.0, DECODE: 5.0}), gpu_record({NMS: 11.0, DECODE: 4.0}))
    assert status == 1
    rows = [row.split() for row in said.out.splitlines()]
    assert {row[0] for row in rows if row[-1] == "slower"} == {"nms"}
    assert {row[0] for row in rows if row[-1] == "faster"} == {"decode"}
    assert rows[1][:4] == ["nms", "B=64", "ahernet", "cold"]
    assert rows[1][4:7] == ["10.0", "11.0", "1.100"]


@pytest.mark.parametrize(("half_spread", "threshold", "status"), [(0.01, "5%", 1), (0.06, "5%", 0), (0.01, "0.2", 0)])
def test_a_difference_within_the_spread_or_the_threshold_is_none(compare, half_spread, threshold, status):
    before, after = (gpu_record({NMS: median}, half_spread=half_spread) for median in (10.0, 11.0))
    assert compare(before, after, "--threshold", threshold)[0] == status


def test_peers_are_never_slower(compare):
    before, after = gpu_record({NMS: 10.0, PEER: 10.0}), gpu_record({NMS: 10.0, PEER: 20.0})
    assert "peer" not in compare(before, after)[1].out
    status, said = compare(before, after, "--peers")
    assert status == 0
    assert "peer" in said.out


def test_what_ran_and_now_fails_is_told(compare):
    after = gpu_record({DECODE: 5.0})
    after["lines"].append({"op": "nms", "case": "B=64", "way": "ahernet", "failed": "RuntimeError: no"})
    status, said = compare(gpu_record({NMS: 10.0, DECODE: 5.0}), after)
    assert status == 1
    assert "nms, B=64, ahernet: ran in A, in B it failed: RuntimeError: no" in said.out


@pytest.mark.parametrize("case", ["making its arguments", "not begun"])
@pytest.mark.parametrize("group", [None, "decode_last"])
def test_a_group_that_ran_and_now_fails_is_told(compare, case, group):
    before, after = gpu_record({NMS: 10.0, DECODE: 5.0}), gpu_record({NMS: 10.0, DECODE: 5.0})
    before["lines"][-1]["group"] = group
    failed = {"op": group or "decode", "case": case, "way": "ahernet", "failed": "MemoryError: no"}
    after["lines"].append(failed)
    status, said = compare(before, after)
    assert status == 1
    assert f"{failed['op']}, {case}, ahernet: ran in A, in B it failed: MemoryError: no" in said.out
    before["lines"].append(failed)
    assert compare(before, after)[0] == 0


@pytest.mark.parametrize(
    ("gone", "modes"), [(("cold", "hot"), "cold, hot"), (("cold", "hot", "eager"), "cold, hot, eager")]
)
def test_what_is_not_timed_any_more_is_told(compare, gone, modes):
    after = gpu_record({NMS: 10.0, DECODE: 5.0})
    for mode in gone:
        del after["lines"][0][mode]
    status, said = compare(gpu_record({NMS: 10.0, DECODE: 5.0}), after)
    assert status == 1
    assert f"nms, B=64, ahernet: timed in A, not in B: {modes}" in said.out.splitlines()


def test_peers_may_be_missing(compare):
    assert compare(gpu_record({NMS: 10.0, PEER: 10.0}), gpu_record({NMS: 10.0}))[0] == 0


def test_wrong_results_are_told(compare):
    after = gpu_record({NMS: 10.0})
    after["lines"][0].update(equal=0.98, required=0.99)
    status, said = compare(gpu_record({NMS: 10.0}), after)
    assert status == 1
    assert "nms, B=64, ahernet: in B only 98.0000% agree, 99.0000% are required" in said.out.splitlines()


@pytest.mark.parametrize(("asked", "status"), [(["decode"], 0), (["decode", "nms"], 1), (None, 1)])
def test_only_what_was_asked_for_can_be_missing(compare, asked, status):
    before = gpu_record({NMS: 10.0, DECODE: 5.0})
    for entry in before["lines"]:
        entry["group"] = entry["op"]
    found, said = compare(before, gpu_record({DECODE: 5.0}, asked=asked))
    assert found == status
    assert said.out.endswith(f"; {3 if status == 0 else 0} of A not asked of B\n")


@pytest.mark.parametrize(("asked", "status"), [(["test[nms, design-ahernet]"], 0), (None, 1)])
def test_a_run_of_some_benches_is_compared_in_these(compare, asked, status):
    before = cpu_record({("nms, design", "ahernet"): 0.01, ("decode, design", "ahernet"): 0.01})
    assert compare(before, {**cpu_record({("nms, design", "ahernet"): 0.01}), "asked": asked})[0] == status


def test_our_form_of_older_records_of_evaluation_is_known(compare):
    before = cpu_record({("average precision, full", None): 1.0})
    before["benchmarks"][0]["param"] = "full-average_precision"
    status, said = compare(before, cpu_record({("average precision, full", "ahernet"): 100.0}))
    assert status == 1
    assert said.out.splitlines()[1].endswith("slower")


def test_records_of_different_devices_are_refused_unless_asked_for(compare):
    before, after = gpu_record({NMS: 10.0}), gpu_record({NMS: 30.0}, device="NVIDIA H1")
    status, said = compare(before, after)
    assert status == 2
    assert said.err.startswith("different devices: 'NVIDIA H0' and 'NVIDIA H1'")
    assert compare(before, after, "--across-devices")[0] == 1


def test_records_of_different_kinds_are_refused(compare):
    status, said = compare(gpu_record({NMS: 10.0}), cpu_record({("nms, design", "ahernet"): 1.0}), "--across-devices")
    assert status == 2
    assert "nothing in them is comparable" in said.err


def test_records_of_the_cpu_are_compared(compare):
    before = cpu_record({("nms, design", "ahernet"): 0.01, ("average precision, full", None): 1.0})
    after = cpu_record({("nms, design", "ahernet"): 0.02, ("average precision, full", None): 1.0})
    status, said = compare(before, after)
    assert status == 1
    assert [row.split()[0] for row in said.out.splitlines() if row.endswith("slower")] == ["nms"]


def test_our_form_with_numba_is_ours_and_its_version_is_told(compare):
    before, after = (cpu_record({("nms, design", "ahernet[cpu]"): seconds}) for seconds in (0.01, 0.02))
    before["machine_info"]["numba"], after["machine_info"]["numba"] = "0.61.2", "0.68.1"
    status, said = compare(before, after)
    assert status == 1
    assert "numba: 0.61.2 in A, 0.68.1 in B" in said.out.splitlines()


def test_other_files_are_refused(compare):
    status, said = compare({"made": "up"}, gpu_record({NMS: 1.0}))
    assert status == 2
    assert "neither a record" in said.err


def test_targets_say_what_is_met_and_what_was_not_measured():
    record = gpu_record(
        {
            ("assign", "B=1024 G<=25", "ahernet"): 40.0,
            ("assign", "B=1024 G<=25", "torch broadcast"): 400.0,
            ("nms", "B=1024 N=765 tiou 0.9 best 100", "ahernet"): 100.0,
            ("nms", "one video N=1000000 tiou 0.9 best 1000000", "ahernet"): 100.0,
            ("localize", "B=256 D=2048 C=200 bf16", "ahernet"): 10_000.0,
            ("localize", "B=256 D=2048 C=200 bf16", "part: resampling"): 1_000.0,
            ("localize", "B=256 D=2048 C=200 bf16", "part: backbone"): 8_800.0,
        }
    )
    record["lines"][2]["equal"] = 0.5
    found = {(verdict.what, verdict.target): verdict for verdict in targets.verdicts(record)}
    assert found["assign, B=1024 G<=25", "<= 50 us"].met
    assert not found["assign, B=1024 G<=25", ">= 20x the broadcast"].met
    assert found["assign, B=1024 G<=25", ">= 20x the broadcast"].measured == "10.0x; 10.0x as graphs"
    assert not found["nms, B=1024, best 100", "<= 400 us, exact"].met
    assert found["localize, B=256", "<= 5 % after the backbone"].measured == "2.0%"
    assert found["localize, B=256", ">= 70 % of the bf16 rate"].measured == "50%, 25,600 videos/s"
    assert found["nms, one video, N=10^6, best 100", "<= 5 ms, exact"].met is None
    assert found["nms, one video, N=10^6, all", "<= 5 ms, exact"].met
    assert found["training, B=16", ">= 3x video by video"].met is None


@pytest.mark.parametrize(
    ("op", "case", "way", "what", "target"),
    [
        ("decode", "B=64 C=600 bf16 channels last", "ahernet", "decode, B=64, channels first", ">= 10x eager torch"),
        ("assign", "B=1024 G<=25 forced", "ahernet", "assign, B=1024 G<=25", "<= 50 us"),
        ("training", "B=256 D=2048 bf16", "ahernet, launch by launch", "training, B=256", ">= 50 % of the bf16 rate"),
    ],
)
def test_another_line_that_begins_like_that_of_a_target_does_not_speak_for_it(op, case, way, what, target):
    record = gpu_record({(op, case, way): 1.0, (op, case, "eager torch"): 100.0})
    found = {(verdict.what, verdict.target): verdict for verdict in targets.verdicts(record)}
    assert (found[what, target].measured, found[what, target].met) == ("not measured", None)


def test_a_whole_record_has_every_target(root):
    record = load(root / "bench" / "results" / "gpu_nvidia_h100_80gb_hbm3_2026-11-26.json")
    assert all(verdict.met is not None for verdict in targets.verdicts(record))
