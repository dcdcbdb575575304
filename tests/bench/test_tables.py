"""Tables from records, and the README, which holds those of the records that it names."""

import json

import pytest
from bench_fakes import cpu_record, gpu_record

from bench import tables
from bench.records import load


@pytest.fixture
def record():
    record = cpu_record(
        {("nms, design", "peer"): 0.025, ("nms, design", "ahernet"): 0.01, ("nms, small", "ahernet"): 0.001},
        half_spread=0.5,
    )
    record["benchmarks"].append({"group": "of another form", "extra_info": {}, "stats": {}})
    return record


def test_ratios_are_to_our_own_way_wherever_it_stands(record):
    assert "| nms, design | peer | 25.00 | 12.50 - 37.50 | 2.50 |" in tables.table(record)
    assert "| nms, design | ahernet | 10.00 | 5.00 - 15.00 | 1.00 |" in tables.table(record)


def test_small_cases_and_other_benches_are_left_out(record):
    assert "small" not in tables.table(record)
    assert "another" not in tables.table(record)


def test_the_commit_and_its_changes_are_named(record):
    assert "commit 0123456789ab with changes." in tables.table(record)


def test_the_table_of_a_gpu_has_targets_ways_and_failures():
    record = gpu_record({("assign", "B=1024 G<=25", "ahernet"): 40.0, ("assign", "B=1024 G<=25", "peer"): 1000.0})
    record["lines"].append({"op": "nms", "case": "B=1", "way": "ahernet", "failed": "RuntimeError: no"})
    text = tables.table(record)
    assert "| assign, B=1024 G<=25 | <= 50 us | 40 us | yes |" in text
    assert "| assign | B=1024 G<=25 | peer | 1,000.0 | 1.0 | 1,000.0 | 1,000.0 | 1 | 50.0 | 25.00 | yes |" in text
    assert "| nms | B=1 | ahernet | failed: RuntimeError: no |" in text
    assert "copy 3.00 TB/s" in text


def test_sweeps_have_no_rows():
    record = gpu_record({("assign", "sweep of videos, B=1", "ahernet"): 40.0})
    record["lines"][0]["axis"] = "videos"
    assert "sweep" not in tables.table(record)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_table_takes_the_place_of_the_one_before_and_leaves_the_other(record, kind):
    other = gpu_record({("assign", "B=1024 G<=25", "ahernet"): 40.0})
    given, kept = (record, other) if kind == "cpu" else (other, record)
    readme = "".join(f"before {tables.begin(x)}\n\nOUTDATED\n\n{tables.END} after\n" for x in (kept, given))
    once = tables.with_table(readme, "given.json", given)
    assert "From `results/given.json`" in once
    assert once.count("OUTDATED") == 1
    assert tables.with_table(once, "given.json", given) == once


def test_the_readme_holds_the_tables_of_its_records(root):
    readme = (root / "bench" / "README.md").read_text(encoding="utf-8")
    names = [part.split("`")[0] for part in readme.split("From `results/")[1:]]
    assert names
    for name in names:
        assert tables.with_table(readme, name, load(root / "bench" / "results" / name)) == readme


def test_no_record_names_a_machine_or_a_path(root):
    for path in (root / "bench" / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "/home" not in text
        assert "/root" not in text
        assert "/work" not in text
        assert '"node"' not in text
        json.loads(text)
