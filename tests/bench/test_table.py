import json

import pytest

from bench import table


def entry(group, way, median):
    statistics = {"median": median, "q20": median / 2, "q80": median * 2}
    return {"group": group, "extra_info": {"way": way}, "stats": statistics}


@pytest.fixture
def record():
    return {
        "machine_info": {"processor": "P", "threads": 1, "python": "3.12", "torch": "2.13", "numpy": "2.4"},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2030-01-02T03:04:05",
        "benchmarks": [
            entry("nms, design", "peer", 0.025),
            entry("nms, design", "ahernet", 0.01),
            entry("nms, small", "ahernet", 0.001),
            {"group": "of another form", "extra_info": {}, "stats": {}},
        ],
    }


def test_ratios_are_to_our_own_way_wherever_it_stands(record):
    assert "| nms, design | peer | 25.00 | 12.50 - 50.00 | 2.50 |" in table.table(record)
    assert "| nms, design | ahernet | 10.00 | 5.00 - 20.00 | 1.00 |" in table.table(record)


def test_small_cases_and_other_benches_are_left_out(record):
    assert "small" not in table.table(record)
    assert "another" not in table.table(record)


def test_the_commit_and_its_changes_are_named(record):
    assert "commit 0123456789ab with changes." in table.table(record)


def test_the_readme_holds_the_table_of_a_record(root):
    readme = (root / "bench" / "README.md").read_text(encoding="utf-8")
    name = readme.split("From `results/")[1].split("`")[0]
    record = json.loads((root / "bench" / "results" / name).read_text(encoding="utf-8"))
    assert table.with_table(readme, name, table.table(record)) == readme


def test_no_record_names_a_machine_or_a_path(root):
    for path in (root / "bench" / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "/home" not in text
        assert "/root" not in text
        assert '"node"' not in text
