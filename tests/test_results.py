"""The tables in results/ are those of the recorded runs."""

import json
from pathlib import Path

import pytest

from ahernet.experiments.figures import FIGURES
from ahernet.experiments.table import format_table

RESULTS = Path(__file__).parents[1] / "results"
RECORDED = sorted(RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_the_printed_table_is_that_of_the_recorded_runs(path):
    table = json.loads(path.read_text(encoding="utf-8"))
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert path.name in text
    printed = FIGURES[table["table"]].text if table["table"] in FIGURES else format_table
    assert printed(table) in text


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_runs_say_what_they_were_made_with(path):
    table = json.loads(path.read_text(encoding="utf-8"))
    assert table["commit"]
    assert not table["commit"].endswith("dirty")
    assert set(table["versions"]) == {"ahernet", "torch", "triton", "numpy"}
    assert len(table["seeds"]) >= (3 if table["table"] == "runs" else 2)
    if table["table"] in FIGURES:
        assert [found["seed"] for found in table["results"]] == table["seeds"]
        return
    for run in table["runs"]:
        assert run["config"]["training"]["seed"] == run["seed"] == run["setting"]["split"]
        assert run["setting"]["base"]
        assert run["setting"]["novel"]
    assert len(table["runs"]) == len(table["rows"]) * len(table["seeds"])


def test_there_are_recorded_runs():
    assert RECORDED
