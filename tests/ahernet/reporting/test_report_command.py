import json

import numpy as np
import pytest
from evaluation_rows import annotations_of, detections_of

from ahernet.cli import main
from ahernet.commands.localization import read_thresholds
from ahernet.data.annotations import write_annotations
from ahernet.data.detections import read_detections, write_detections

TRUTHS = [("u", "a", 0.0, 10.0), ("v", "a", 0.0, 10.0), ("v", "b", 20.0, 30.0)]
FOUND = [("u", "a", 0.0, 10.0, 0.7), ("v", "a", 0.0, 10.0, 0.5), ("u", "a", 50.0, 60.0, 0.4), ("v", "b", 0.0, 5.0, 0.3)]


@pytest.fixture
def inputs(tmp_path):
    detections, annotations = tmp_path / "found.json", tmp_path / "truth.json"
    write_detections(detections, detections_of(FOUND))
    write_annotations(annotations, annotations_of(TRUTHS))
    return str(detections), str(annotations)


def refused(capsys, *arguments):
    assert main(["report", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


def test_report_writes_one_page(inputs, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "losses.jsonl").write_text('{"iteration": 1, "total": 2.5, "learning_rate": 0.1}\n')
    out = tmp_path / "new" / "report.html"
    assert (
        main(["report", *inputs, "--subset", "validation", "--run", str(run), "--draws", "5", "--out", str(out)]) == 0
    )
    text = out.read_text(encoding="utf-8")
    assert "found.json" in text
    assert str(tmp_path) not in text
    content = json.loads(text.split('id="content">')[1].split("</script>")[0])
    assert content["losses"]["curves"] == {"total": [[1, 2.5]]}
    assert content["sources"] == {
        "detections": "found.json",
        "annotations": "truth.json",
        "subset": "validation",
        "run": "run",
    }
    assert f"average mAP {100 * content['precision']['mean']:.2f} %" in capsys.readouterr().out


def test_thresholds_are_what_localize_takes(inputs, tmp_path):
    path = tmp_path / "thresholds.json"
    out = tmp_path / "report.html"
    assert main(["report", *inputs, "--draws", "5", "--out", str(out), "--thresholds", str(path)]) == 0
    minimum = read_thresholds(path)
    assert list(minimum) == ["a"]  # no detection of b is right
    scores = read_detections(tmp_path / "found.json").scores
    assert np.sort(scores[scores > minimum["a"]]).tolist() == [0.5, 0.7]


def test_bad_arguments_are_one_line_and_write_nothing(inputs, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert "ends in .html" in refused(capsys, *inputs, "--out", tmp_path / "report.pdf")
    page = tmp_path / "report.html"
    assert "--draws" in refused(capsys, *inputs, "--out", page, "--draws", 0)
    assert "no losses.jsonl" in refused(capsys, *inputs, "--out", page, "--run", tmp_path / "absent")
    assert "no video of subset" in refused(capsys, *inputs, "--out", page, "--subset", "testing")
    assert "is a folder" in refused(capsys, *inputs, "--out", page, "--thresholds", tmp_path)
    assert sorted(tmp_path.iterdir()) == before
