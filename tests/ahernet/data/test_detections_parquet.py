import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.data import detections_parquet
from ahernet.data.detection_shards import load_detections, read_manifest, shard_names
from ahernet.data.detections import Detections
from ahernet.data.detections_parquet import read_parquet, write_parquet
from ahernet.errors import UserError

pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")

names = st.lists(st.text(min_size=1, max_size=5).filter(str.isprintable), min_size=1, max_size=4, unique=True)


def detections(rows=3, video_ids=("a", "b"), classes=("run", "jump")):
    generator = np.random.default_rng(rows)
    starts = generator.random(rows)
    return Detections(
        tuple(video_ids),
        tuple(classes),
        video=np.sort(generator.integers(0, len(video_ids), rows)),
        label=generator.integers(0, len(classes), rows),
        segments=np.stack([starts, starts + generator.random(rows)], axis=1),
        scores=generator.random(rows),
    )


def assert_same(first, second):
    assert (first.video_ids, first.classes) == (second.video_ids, second.classes)
    for name in ("video", "label", "segments", "scores"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@settings(max_examples=25)
@given(
    rows=st.integers(0, 9), video_ids=names.map(dict.fromkeys).map(tuple), classes=names.map(dict.fromkeys).map(tuple)
)
def test_reading_gives_back_what_was_written(tmp_path_factory, rows, video_ids, classes):
    path = tmp_path_factory.getbasetemp() / "round.parquet"
    whole = detections(rows, video_ids, classes)
    write_parquet(path, whole)
    assert_same(read_parquet(path), whole)
    assert_same(load_detections(path), whole)


def test_the_bytes_depend_on_the_detections_alone(tmp_path):
    for name in ("first.parquet", "second.parquet"):
        write_parquet(tmp_path / name, detections(50))
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()


def test_other_programs_read_plain_columns(tmp_path):
    write_parquet(tmp_path / "d.parquet", detections())
    table = parquet.read_table(tmp_path / "d.parquet")
    assert table.column_names == ["video_id", "label", "start", "end", "score"]
    assert set(table.column("video_id").to_pylist()) <= {"a", "b"}
    assert table.column("score").type == pyarrow.float64()


def written(path, metadata=None, **columns):
    plain = {"video_id": ["a"], "label": ["run"], "start": [0.0], "end": [1.0], "score": [0.5]}
    table = pyarrow.table({name: column for name, column in {**plain, **columns}.items() if column is not None})
    known = {"ahernet.videos": json.dumps(["a"]), "ahernet.classes": json.dumps(["run"])}
    parquet.write_table(table.replace_schema_metadata({**known, **(metadata or {})}), path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "expected the columns video_id, label, start, end, score, got"),
        ({"video_id": None}, "expected the columns video_id, label, start, end, score, got 'label, start"),
        ({"score": [float("nan")]}, "scores: expected finite numbers"),
        ({"end": [-1.0]}, "segments: expected every end at or after its start"),
        ({"score": ["high"]}, r"d\.parquet: "),
        ({"video_id": ["other"]}, "video_id: 'other' is not listed"),
        ({"metadata": {"ahernet.videos": "[1]"}}, r"metadata ahernet\.videos: expected a JSON list of names"),
        ({"metadata": {"ahernet.classes": "["}}, r"metadata ahernet\.classes: not JSON"),
        ({"metadata": {"ahernet.videos": json.dumps(["a", "a"])}}, "video_ids: a name occurs twice"),
    ],
)
def test_a_file_of_other_content_is_one_clear_line(tmp_path, change, message):
    path = written(tmp_path / "d.parquet", **change)
    with pytest.raises(UserError, match=message) as raised:
        read_parquet(path)
    assert "\n" not in str(raised.value)


def test_a_column_whose_name_is_not_unicode_is_one_clear_line(tmp_path):
    path = written(tmp_path / "d.parquet", more=[1])
    path.write_bytes(path.read_bytes().replace(b"\x04more", b"\x04m\xf6re"))
    with pytest.raises(UserError, match=r"d\.parquet: not a readable Parquet file \('utf-8' codec"):
        read_parquet(path)


def test_a_name_that_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="video_id: a value is missing"):
        read_parquet(written(tmp_path / "d.parquet", video_id=pyarrow.array([None], pyarrow.string())))


def test_a_small_file_that_claims_many_rows_is_refused(tmp_path, monkeypatch):
    many = 10_000
    columns = {"video_id": ["a"], "label": ["run"], "start": [0.0], "end": [1.0], "score": [0.5]}
    path = written(tmp_path / "d.parquet", **{name: values * many for name, values in columns.items()})
    assert path.stat().st_size < many
    assert len(read_parquet(path)) == many
    monkeypatch.setattr(detections_parquet, "FREE_ROWS", 100)
    with pytest.raises(UserError, match=r"d\.parquet: claims 10,000 detections, too many for its size"):
        read_parquet(path)


def test_a_long_name_in_every_row_is_in_memory_once(tmp_path):
    name, rows = "x" * 1_000_000, 400
    same = pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [name])
    columns = {"label": ["run"], "start": [0.0], "end": [1.0], "score": [0.5]}
    path = written(
        tmp_path / "d.parquet",
        {"ahernet.videos": json.dumps([name])},
        video_id=same,
        **{key: values * rows for key, values in columns.items()},
    )
    before = pyarrow.default_memory_pool().max_memory()
    assert read_parquet(path).video.tolist() == [0] * rows
    assert pyarrow.default_memory_pool().max_memory() - before < 100 * len(name)


def test_a_truncated_file_is_refused(tmp_path):
    path = written(tmp_path / "d.parquet")
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="not a readable Parquet file"):
            read_parquet(path)


GOOD = {"format": "ahernet-detections", "version": 1, "shards": ["part-000000.json"], "classes": ["run"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected the format 'ahernet-detections'"),
        ({"version": 2}, "version 2, this ahernet reads 1"),
        ({"shards": "all"}, "shards: expected a list of names"),
        ({"shards": ["../part-0.json"]}, "shards: expected names of files in its folder"),
        ({"shards": ["/etc/passwd"]}, "shards: expected names of files in its folder"),
        ({"classes": [1]}, "classes: expected a list of names"),
    ],
)
def test_a_manifest_of_other_content_is_refused(tmp_path, change, message):
    (tmp_path / "manifest.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_that_says_something_twice_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"classes": ["jump"], ' + json.dumps(GOOD)[1:])
    with pytest.raises(UserError, match=r"manifest\.json: .*the key 'classes' occurs more than once"):
        read_manifest(tmp_path)


def test_a_folder_without_manifest_says_so(tmp_path):
    with pytest.raises(UserError, match=r"a folder without manifest\.json, expected one that localize wrote"):
        load_detections(tmp_path)


def test_a_video_in_two_shards_is_refused(tmp_path):
    shards = ["part-000000.json", "part-000001.json"]
    (tmp_path / "manifest.json").write_text(json.dumps({**GOOD, "shards": shards}))
    for name in shards:
        (tmp_path / name).write_text('{"results": {"a": [{"label": "run", "score": 1, "segment": [0, 1]}]}}')
    with pytest.raises(UserError, match="video 'a' is in two shards"):
        load_detections(tmp_path)


def test_unknown_formats_of_shards_are_refused():
    assert shard_names(2, ".csv") == ["part-000000.csv", "part-000001.csv"]
    with pytest.raises(UserError, match=r"format: expected one of parquet, json, csv, json\.gz, csv\.gz, got 'xml'"):
        shard_names(2, ".xml")
