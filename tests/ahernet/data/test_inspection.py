import json
import math
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from ahernet.cli import main
from ahernet.data import inspection as inspection_module
from ahernet.data.annotations import read_annotations
from ahernet.data.archive_set import write_manifest
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.inspection import format_inspection, inspect_archive
from ahernet.errors import UserError


def write(path, videos, **settings):
    with ArchiveWriter(path, dimension=4, **settings) as writer:
        for video_id, (rows, duration) in videos.items():
            writer.add(video_id, np.arange(1, rows * 4 + 1).reshape(rows, 4), duration)
    return path


def overwrite_row(path, row, values):
    with h5py.File(path, "r+") as file:
        file["features"][row] = values


def annotate(path, **durations):
    document = {
        key: {
            "subset": "training" if key < "m" else "validation",
            "duration": seconds,
            "annotations": [{"segment": [0, 1], "label": "Run"}],
        }
        for key, seconds in durations.items()
    }
    path.write_text(json.dumps({"database": document}))
    return path


def found(problems):
    return {(problem.kind, problem.video_id) for problem in problems}


def test_a_healthy_archive_is_counted_and_has_no_problems(tmp_path):
    videos = {"a": (10, 5.0), "b": (20, 15.0), "c": (30, 10.0)}
    path = write(tmp_path / "a.h5", videos, frame_rate=25.0, origin="network 7")
    seen = inspect_archive(path)
    assert (seen.videos, seen.rows, seen.dimension, seen.dtype) == (3, 60, 4, "float16")
    assert (seen.shortest, seen.longest) == (10, 30)
    assert (seen.known_durations, seen.shortest_seconds, seen.longest_seconds) == (3, 5.0, 15.0)
    assert seen.hours == pytest.approx(30 / 3600)
    assert seen.rows_per_second == pytest.approx(2.0)
    assert (seen.origin, seen.frame_rate, seen.clip_stride) == ("network 7", 25.0, 0)
    assert seen.file_bytes == path.stat().st_size
    assert seen.problems == seen.notes == ()
    assert seen.annotations is None


def test_rows_a_second_counts_videos_of_known_duration_only(tmp_path):
    seen = inspect_archive(write(tmp_path / "a.h5", {"a": (10, 5.0), "b": (90, math.nan)}))
    assert seen.rows_per_second == pytest.approx(2.0)
    assert found(seen.problems) == {("duration unknown", "b")}


def test_durations_unlike_rows_and_stride_are_noted(tmp_path):
    videos = {"fits": (100, 40.0), "cut": (97, 40.0), "rescaled": (100, 180.0), "unknown": (100, math.nan)}
    path = write(tmp_path / "a.h5", videos, frame_rate=25.0, clip_stride=10)
    (note,) = inspect_archive(path).notes
    assert (note.kind, note.video_id) == ("duration does not fit rows and stride", "rescaled")
    assert note.detail == "180.00 s, but its rows make 40.00 s"


def test_without_any_duration_nothing_is_made_up(tmp_path):
    seen = inspect_archive(write(tmp_path / "a.h5", {"a": (10, math.nan)}))
    assert math.isnan(seen.rows_per_second)
    assert math.isnan(seen.shortest_seconds)
    assert seen.hours == 0
    assert "durations      unknown" in format_inspection(seen)


@pytest.mark.parametrize("batch", [1, 100, 1 << 26])
def test_damaged_rows_are_found_whatever_the_batch(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(inspection_module, "BATCH_BYTES", batch)
    path = write(tmp_path / "a.h5", {"fine": (2, 1.0), "nan": (3, 1.0), "zero": (1, 1.0), "last": (2, 1.0)})
    overwrite_row(path, 3, [1, math.nan, 1, 1])
    overwrite_row(path, 4, [1, math.inf, 1, 1])
    overwrite_row(path, 5, 0)
    seen = inspect_archive(path)
    damaged = "checksum differs, the file is damaged"
    assert found(seen.problems) == {
        (damaged, "nan"),
        ("NaN or infinite", "nan"),
        (damaged, "zero"),
        ("all zero", "zero"),
    }
    details = {problem.kind: problem.detail for problem in seen.problems}
    assert details["NaN or infinite"] == "2 of 3 rows, first 1"
    assert found(seen.notes) == {("only one row", "zero")}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (math.nan, {"NaN or infinite"}),
        (-math.nan, {"NaN or infinite"}),
        (math.inf, {"NaN or infinite"}),
        (-math.inf, {"NaN or infinite"}),
        (-0.0, {"all zero"}),
        (0.0, {"all zero"}),
        (-65504.0, set()),
        (6e-8, set()),
    ],
)
def test_numbers_are_judged_by_their_size_alone(tmp_path, dtype, value, kinds):
    path = write(tmp_path / "a.h5", {"a": (2, 1.0)}, dtype=dtype)
    overwrite_row(path, 0, 0)
    overwrite_row(path, 1, [0, 0, value, 0])
    damaged = "checksum differs, the file is damaged"
    assert {problem.kind for problem in inspect_archive(path).problems} == kinds | {damaged}


def test_ids_that_look_alike_are_found(tmp_path):
    videos = {"x": (2, 1.0), "v_x": (2, 1.0), "é": (2, 1.0), "e\u0301": (2, 1.0), "v_y": (2, 1.0)}
    seen = inspect_archive(write(tmp_path / "a.h5", videos))
    assert found(seen.problems) == {("ids that look alike", "x"), ("ids that look alike", "e\u0301")}


def test_an_archive_is_compared_with_annotations(tmp_path):
    videos = {"v_a": (2, 10.0), "b": (2, 10.0), "n": (2, math.nan), "extra": (2, 1.0)}
    annotations = annotate(tmp_path / "gt.json", a=10.9, b=11.5, n=3.0, missing=5.0, zebra=1.0)
    seen = inspect_archive(write(tmp_path / "a.h5", videos), annotations)
    assert found(seen.problems) == {
        ("duration unknown", "n"),
        ("duration differs from the annotation", "b"),
        ("annotated but without features", "missing"),
        ("annotated but without features", "zebra"),
    }
    assert ("features without annotation", "extra") in found(seen.notes)
    summary = seen.annotations
    assert (summary.videos, summary.instances, summary.classes, summary.with_features) == (5, 5, 1, 3)
    assert summary.subsets == (("training", 2, 2), ("validation", 3, 1))
    text = format_inspection(seen)
    assert "3 of 5 videos" in text
    assert "1 of 3 videos" in text
    assert "'b' 10.00 s here, 11.50 s annotated" in text


def test_faults_of_the_annotations_are_notes(tmp_path):
    (tmp_path / "gt.json").write_text(
        json.dumps({"a": {"duration_second": 1, "annotations": [{"segment": [0, 9], "label": "Run"}]}})
    )
    seen = inspect_archive(write(tmp_path / "a.h5", {"a": (2, 1.0)}), tmp_path / "gt.json")
    assert seen.problems == ()
    assert found(seen.notes) == {("segment ends after the video", "a")}


def test_progress_is_shown_where_asked_for(tmp_path, capfd):
    path = write(tmp_path / "a.h5", {"a": (2, 1.0)})
    inspect_archive(path)
    assert capfd.readouterr().err == ""
    inspect_archive(path, progress=True)
    assert "1/1" in capfd.readouterr().err


def test_text_is_aligned_and_long_lists_are_shortened(tmp_path):
    videos = {f"v{k:04d}": (2, math.nan) for k in range(1234)}
    text = format_inspection(inspect_archive(write(tmp_path / "a.h5", videos)))
    facts, listing = text.split("\n\n")
    columns = {line.index(line[14:].strip()) for line in facts.splitlines()}
    assert columns == {15}
    assert "problems: 1,234\n  duration unknown: 1,234\n    'v0000'\n" in listing + "\n"
    assert "    ... and 1,229 more" in listing
    assert listing.endswith("notes: none")
    assert len(text.splitlines()) < 25


def test_ids_and_texts_of_strangers_cannot_disturb_a_terminal(tmp_path):
    videos = {"a\x1b[31m\n\u202e": (1, math.nan)}
    path = write(tmp_path / "a.h5", videos, origin="\x1b[2Jline\nline \u202eé")
    text = format_inspection(inspect_archive(path))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "é" in text


def write_foreign(path, names):
    with h5py.File(path, "w") as file:
        for name in names:
            file[name] = np.zeros((3, 5), np.float32)


def test_a_foreign_file_is_described_with_the_way_to_import_it(tmp_path):
    write_foreign(tmp_path / "a b.h5", ["v_1/c3d_features", "v_2/c3d_features"])
    described = (
        r"a b\.h5: not an ahernet archive but an HDF5 file of one group per video: 2 videos, the first, 'v_1', is "
        r"\(3, 5\) float32; ahernet import '.*a b\.h5' --out archive\.h5 makes an archive of it"
    )
    with pytest.raises(UserError, match=described):
        inspect_archive(tmp_path / "a b.h5")
    np.save(tmp_path / "v_1.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(
        UserError, match=r"but a folder of \.npy files: 1 videos, the first, 'v_1', is \(3, 5\) float32"
    ):
        inspect_archive(tmp_path)
    with pytest.raises(UserError, match=r"v_1\.npy: .* the array \(3, 5\) float32 of one video; import the folder"):
        inspect_archive(tmp_path / "v_1.npy")


def test_a_foreign_file_with_a_bad_video_is_described(tmp_path):
    write_foreign(tmp_path / "foreign.h5", ["v_\x1b[2J", "w"])
    with h5py.File(tmp_path / "foreign.h5", "r+") as file:
        file["u"] = h5py.SoftLink("/w")
    with pytest.raises(UserError, match=r"3 videos, the first, 'u', is bad \(.*reached through a link") as caught:
        inspect_archive(tmp_path / "foreign.h5")
    assert str(caught.value).isprintable()


def test_what_is_neither_keeps_the_first_complaint(tmp_path):
    write_foreign(tmp_path / "foreign.h5", ["a/b/c/d"])
    with pytest.raises(UserError, match=r"not an ahernet archive \(it holds a/b/c/d \(3, 5\) float32\)"):
        inspect_archive(tmp_path / "foreign.h5")
    path = write(tmp_path / "a.h5", {"a": (2, 1.0)})
    with h5py.File(path, "r+") as file:
        del file["offsets"]
    with pytest.raises(UserError, match="offsets is missing"):
        inspect_archive(path)
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(UserError, match=r"text\.npy: not an HDF5 file"):
        inspect_archive(tmp_path / "text.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no \.npy"):
        inspect_archive(tmp_path / "empty")
    (tmp_path / "empty" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: not a manifest"):
        inspect_archive(tmp_path / "empty")


def test_several_archives_are_inspected_as_one(tmp_path):
    files = [write(tmp_path / f"{name}.h5", {name: (3, 1.0)}) for name in "ab"]
    write_manifest(tmp_path / "manifest.json", files)
    overwrite_row(files[1], 0, 0)
    for path in (tmp_path, tmp_path / "manifest.json"):
        seen = inspect_archive(path)
        assert (seen.videos, seen.rows) == (2, 6)
        assert seen.file_bytes == sum(file.stat().st_size for file in files)
        assert found(seen.problems) == {("checksum differs, the file is damaged", "b")}


# What each kind of trouble needs done to an archive of the good videos a and b, each 10 s long.
TROUBLES = {
    "checksum differs": lambda path: overwrite_row(path, 0, 0),
    "NaN or infinite": lambda path: overwrite_row(path, 0, math.nan),
    "all zero": lambda path: [overwrite_row(path, row, 0) for row in (0, 1)],
    "annotated but without features": lambda path: write(path, {"a": (2, 10.0)}),
    "duration unknown": lambda path: write(path, {"a": (2, 10.0), "b": (2, math.nan)}),
    "duration differs": lambda path: write(path, {"a": (2, 10.0), "b": (2, 11.5)}),
    "ids that look alike": lambda path: write(path, {"a": (2, 10.0), "b": (2, 10.0), "v_b": (2, 10.0)}),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_strict_fails_on_every_kind_of_trouble(tmp_path, capsys, trouble):
    path = write(tmp_path / "a.h5", {"a": (2, 10.0), "b": (2, 10.0)})
    words = ["inspect", str(path), "--annotations", str(annotate(tmp_path / "gt.json", a=10.0, b=10.4))]
    assert main([*words, "--strict"]) == 0
    TROUBLES[trouble](path)
    assert main(words) == 0
    reported = capsys.readouterr().out
    assert main([*words, "--strict"]) == 2
    captured = capsys.readouterr()
    assert trouble in captured.out
    assert captured.out in reported
    assert f"ahernet: error: {path}: " in captured.err
    assert "listed above (--strict)" in captured.err


def test_strict_lists_every_problem_and_minds_no_notes(tmp_path, capsys):
    path = write(tmp_path / "a.h5", {f"v{k:04d}": (2, math.nan) for k in range(30)})
    assert main(["inspect", str(path), "--strict"]) == 2
    captured = capsys.readouterr()
    assert all(f"'v{k:04d}'" in captured.out for k in range(30))
    assert "30 problems" in captured.err
    path = write(tmp_path / "b.h5", {"a": (1, 10.0), "extra": (1, 10.0)})
    annotations = annotate(tmp_path / "gt.json", a=10.0)
    assert main(["inspect", str(path), "--annotations", str(annotations), "--strict"]) == 0
    assert "features without annotation: 1" in capsys.readouterr().out


def test_bad_annotations_are_named_before_the_archive_is_read(tmp_path):
    path = write(tmp_path / "a.h5", {"a": (2, 1.0)})
    with pytest.raises(UserError, match=r"absent\.json"):
        inspect_archive(path, tmp_path / "absent.json")


def test_against_the_real_thumos_annotations(tmp_path):
    data = os.environ.get("AHERNET_DATA")
    source = Path(data or "", "thumos14", "thumos14_anno_action.json.gz")
    if not data or not source.exists():
        pytest.skip("needs AHERNET_DATA with thumos14")
    real = read_annotations(source).select("test").videos
    kept = [key for key in real if key != "video_test_0000004"]
    path = write(tmp_path / "a.h5", {key: (2, real[key].duration) for key in kept})
    seen = inspect_archive(path, source)
    summary = seen.annotations
    assert (summary.videos, summary.with_features) == (413, 212)
    assert summary.subsets == (("test", 213, 212), ("train", 200, 0))
    assert {problem.kind for problem in seen.problems} == {"annotated but without features"}
    assert len(seen.problems) == 201
