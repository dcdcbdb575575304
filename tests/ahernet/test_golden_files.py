"""Files of format version 1, as version 0.1.0 wrote them (`golden/make.py`), are read for ever with the same values."""

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from ahernet.checkpoint import CHECKPOINT_NAME, load_checkpoint
from ahernet.cli import main
from ahernet.config import config_to_dict
from ahernet.data.annotations import read_annotations
from ahernet.data.archive import open_archive
from ahernet.data.archive_set import open_features
from ahernet.data.detection_shards import load_detections
from ahernet.inference.localize import localize

GOLDEN = Path(__file__).parent / "golden" / "version-1"
ARCHIVES = json.loads((GOLDEN / "archives.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_hold_what_was_put_into_them(name):
    expected = ARCHIVES[name]
    with open_archive(GOLDEN / name) as archive:
        assert list(archive.ids) == expected["ids"]
        assert archive.lengths.tolist() == expected["lengths"]
        assert (archive.dimension, archive.dtype.str) == (expected["dimension"], expected["dtype"])
        assert (archive.clip_stride, archive.origin) == (expected["clip_stride"], expected["origin"])
        unknown = float("nan")
        np.testing.assert_equal(archive.frame_rate, expected["frame_rate"] or unknown)
        np.testing.assert_equal(archive.durations, [seconds or unknown for seconds in expected["durations"]])
        rows = [archive.read([place])[0].tobytes() for place in range(len(archive))]
        assert [hashlib.sha256(block).hexdigest() for block in rows] == expected["rows"]
        assert list(archive.verify()) == []


def test_every_kind_of_number_and_id_is_read_as_it_was_written():
    with open_archive(GOLDEN / "unusual.h5") as archive:
        rows, _ = archive.read([archive.position("../é e\u0301 动作 \U0001f3c3")])
        largest, smallest = np.finfo("f4").max, np.finfo("f4").tiny
        expected = np.float32([[0.0, -0.0, 1e-45], [largest, -largest, smallest]])
        np.testing.assert_array_equal(rows.view("u4"), expected.view("u4"))
        np.testing.assert_array_equal(archive.read([1])[0], np.float32([[1.5, -2.25, 1 / 3]]))


def test_a_set_reads_as_one_archive():
    with open_features(GOLDEN / "set") as archive:
        assert archive.ids == ("video 0", "video 1")
        np.testing.assert_array_equal(archive.read([1, 0])[0], [[1, 2], [3, 4], [0, 1], [2, 3]])


def test_the_strict_inspection_finds_nothing_wrong(capsys):
    assert main(["inspect", str(GOLDEN / "archive.h5"), "--strict"]) == 0
    assert "problems: none" in capsys.readouterr().out
    assert read_annotations(GOLDEN / "annotations.json").videos.keys() == set(ARCHIVES["archive.h5"]["ids"])


def test_a_checkpoint_keeps_its_settings_classes_and_weights():
    stored = json.loads((GOLDEN / "run" / CHECKPOINT_NAME).read_text(encoding="utf-8"))
    checkpoint = load_checkpoint(GOLDEN / "run")
    assert list(checkpoint.classes) == stored["classes"] == ["action 01", "action 02"]
    assert list(checkpoint.moment_classes) == stored["moment_classes"]
    now = config_to_dict(checkpoint.config)
    assert {section: now[section] | values for section, values in stored["config"].items() if section != "preset"} == {
        section: now[section] for section in stored["config"] if section != "preset"
    }
    weights = safetensors.torch.load_file(GOLDEN / "run" / stored["weights"]["file"])
    state = checkpoint.model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", ["detections.csv", "detections"])
def test_detections_of_every_form_are_the_same(name):
    expected, found = load_detections(GOLDEN / "detections.json"), load_detections(GOLDEN / name)
    assert found.video_ids == expected.video_ids == tuple(ARCHIVES["archive.h5"]["ids"])
    np.testing.assert_array_equal(found.video, expected.video)
    assert _labels(found) == _labels(expected)
    np.testing.assert_array_equal(found.segments, expected.segments)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_a_checkpoint_localizes_as_it_did():
    expected = load_detections(GOLDEN / "detections.json")
    with open_archive(GOLDEN / "archive.h5") as archive:
        found = localize(archive, load_checkpoint(GOLDEN / "run"), device="cpu", progress=False)
    assert found.video_ids == expected.video_ids
    np.testing.assert_array_equal(found.video, expected.video)
    assert _labels(found) == _labels(expected)
    # What other processors and libraries may round differently; the closest two scores of a video differ by 0.004.
    np.testing.assert_allclose(found.segments, expected.segments, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-4)


def _labels(detections):
    return [detections.classes[label] for label in detections.label]


def _newer_archive(work):
    with h5py.File(work / "archive.h5", "r+") as file:
        file.attrs["version"] = np.int64(2)
    return work / "archive.h5"


def _newer(*place):
    def change(work):
        path = work.joinpath(*place)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
        return path

    return change


@pytest.mark.parametrize(
    ("make_newer", "command", "words"),
    [
        (_newer_archive, "inspect {0}/archive.h5", "archive version 2, this ahernet reads up to 1"),
        (_newer_archive, "localize {0}/archive.h5 {0}/run --out {0}/new.json", "version 2, this ahernet reads up to 1"),
        (_newer("set", "manifest.json"), "inspect {0}/set", "version 2 of archive sets, this ahernet reads 1"),
        (
            _newer("run", CHECKPOINT_NAME),
            "localize {0}/archive.h5 {0}/run --out {0}/new.json",
            "written by a newer ahernet (version 2 of the format, here 1)",
        ),
        (
            _newer("detections", "manifest.json"),
            "evaluate {0}/detections {0}/annotations.json",
            "version 2, this ahernet reads 1",
        ),
        (
            _newer("detections", "manifest.json"),
            "localize {0}/archive.h5 {0}/run --out {0}/detections",
            "version 2, this ahernet reads 1",
        ),
    ],
)
def test_files_of_a_newer_version_are_refused_in_one_line(tmp_path, capsys, make_newer, command, words):
    work = tmp_path / "work"
    shutil.copytree(GOLDEN, work)
    path = make_newer(work)
    before = sorted(work.rglob("*"))
    assert main(command.format(work).split()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ahernet: error:")]
    assert line.startswith(f"ahernet: error: {path}: ")
    assert words in line
    assert sorted(work.rglob("*")) == before
