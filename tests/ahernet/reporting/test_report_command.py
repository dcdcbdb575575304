import json
import re

import numpy as np
import pytest
from evaluation_rows import annotations_of, detections_of

from ahernet.cli import main
from ahernet.commands.localization import read_thresholds
from ahernet.data.annotations import read_annotations, write_annotations
from ahernet.data.detections import read_detections, write_detections
from ahernet.evaluation.average_precision import average_precision

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


def table_of(path):
    """Rows of the first table of a page: the name of each, and its cells."""
    table = path.read_text(encoding="utf-8").split("<table>")[1].split("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in table.split("</tr>")[:-1]]
    return {name: cells for name, *cells in rows}


def run_with_classes(folder, classes, moment_classes):
    folder.mkdir()
    (folder / "losses.jsonl").write_text('{"iteration": 1, "total": 2.5, "learning_rate": 0.1}\n')
    description = {"format": "ahernet checkpoint", "version": 1, "classes": classes, "moment_classes": moment_classes}
    (folder / "checkpoint.json").write_text(json.dumps(description))
    return str(folder)


def test_base_and_novel_classes_of_a_run_have_rows_of_their_own(inputs, tmp_path):
    out = tmp_path / "report.html"
    run = run_with_classes(tmp_path / "run", ["a", "c", "b"], ["b"])
    assert main(["report", *inputs, "--draws", "5", "--run", run, "--out", str(out)]) == 0
    table = table_of(out)
    result = average_precision(read_detections(tmp_path / "found.json"), read_annotations(tmp_path / "truth.json"))
    for row, name in (("base (1), %", "a"), ("novel (1), %", "b")):  # c does not occur
        part = result.select([name])
        assert table[row] == [f"{100 * value:.2f}" for value in (part.mean, *part.mean_per_threshold)]
    assert list(table)[4:] == ["base (1), %", "novel (1), %"]


@pytest.mark.parametrize("moment_classes", [[], ["a", "b"]])
def test_a_run_of_one_kind_of_classes_has_no_rows_of_groups(inputs, tmp_path, moment_classes):
    out = tmp_path / "report.html"
    run = run_with_classes(tmp_path / "run", ["a", "b"], moment_classes)
    assert main(["report", *inputs, "--draws", "5", "--run", run, "--out", str(out)]) == 0
    assert len(table_of(out)) == 4


def test_groups_may_be_given_instead(inputs, tmp_path, capsys):
    out, names = tmp_path / "report.html", tmp_path / "names.txt"
    names.write_text("b\n")
    run = run_with_classes(tmp_path / "run", ["a", "b"], ["b"])
    given = ["--run", run, "--groups", f"<late>={names}"]
    assert main(["report", *inputs, "--draws", "5", *given, "--out", str(out)]) == 0
    assert list(table_of(out))[4] == "&lt;late&gt; (1), %"
    names.write_text("z\n")
    out.unlink()
    capsys.readouterr()
    assert "none of its classes occurs" in refused(capsys, *inputs, *given, "--out", out)
    assert "report: --groups: expected NAME=FILE" in refused(capsys, *inputs, "--groups", "x", "--out", out)
    assert not out.exists()


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
