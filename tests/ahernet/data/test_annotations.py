import gzip
import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ahernet.data.annotations import (
    Annotations,
    VideoAnnotations,
    find_annotation_problems,
    match_video_ids,
    read_annotations,
    write_annotations,
)
from ahernet.data.detections import read_detections
from ahernet.errors import UserError

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
SECONDS = st.floats(0, 1e7)
INSTANCES = st.lists(st.tuples(SECONDS, SECONDS, NAMES), max_size=4)


@st.composite
def annotation_sets(draw):
    videos = {}
    for key in draw(st.lists(NAMES, min_size=1, max_size=6, unique=True)):
        instances = draw(INSTANCES)
        segments = np.array([sorted(row[:2]) for row in instances], np.float64).reshape(-1, 2)
        duration = draw(st.one_of(st.just(math.nan), st.floats(1e-6, 1e9)))
        subset = draw(st.one_of(st.just(""), NAMES))
        videos[key] = VideoAnnotations(key, subset, duration, segments, tuple(row[2] for row in instances))
    return Annotations(videos, "drawn")


def video(key="a", segments=(), labels=(), duration=10.0, subset=""):
    return VideoAnnotations(key, subset, duration, np.array(segments, float).reshape(-1, 2), tuple(labels))


def annotations(*videos):
    return Annotations({item.video_id: item for item in videos}, "test")


def save(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def flat(**changes):
    """A flat file of one video with one instance, changed."""
    instance = {"segment": [1.0, 2.5], "label": "Run"}
    instance.update(changes.pop("instance", {}))
    return {"v_1": {"duration_second": 10.0, "annotations": [instance], **changes}}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=annotation_sets(), suffix=st.sampled_from([".json", ".json.gz"]))
def test_what_is_written_is_read_back_exactly(tmp_path, written, suffix):
    path = tmp_path / f"a{suffix}"
    write_annotations(path, written)
    read = read_annotations(path)
    assert list(read.videos) == list(written.videos)
    for key, expected in written.videos.items():
        got = read.videos[key]
        assert (got.video_id, got.subset, got.labels) == (key, expected.subset, expected.labels)
        np.testing.assert_array_equal(got.duration, expected.duration)
        np.testing.assert_array_equal(got.segments, expected.segments)
        assert got.segments.dtype == np.float64
        assert got.segments.shape == expected.segments.shape


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(
            st.sampled_from(["database", "annotations", "segment", "label", "class", "duration", "subset", "v_1"]),
            children,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=st.dictionaries(st.sampled_from(["database", "v_1", ""]), JSON, max_size=2))
def test_any_json_is_read_or_refused_in_one_line(tmp_path, document):
    path = save(tmp_path / "any.json", document)
    refusal, videos = "", {}
    try:
        videos = read_annotations(path).videos
    except UserError as error:
        refusal = str(error)
    assert bool(videos) != bool(refusal)
    assert not refusal or (str(path) in refusal and "\n" not in refusal)
    for item in videos.values():
        assert (item.segments >= 0).all()
        assert np.isfinite(item.segments).all()
        assert math.isnan(item.duration) or 0 < item.duration < math.inf


def test_written_files_have_what_the_official_evaluator_asks_for(tmp_path):
    write_annotations(tmp_path / "a.json", annotations(video(segments=[[1, 2]], labels=["Run"], subset="test")))
    document = json.loads((tmp_path / "a.json").read_text())
    assert {"database", "taxonomy", "version"} <= set(document)
    assert document["database"]["a"] == {
        "subset": "test",
        "duration": 10.0,
        "annotations": [{"segment": [1.0, 2.0], "label": "Run"}],
    }


def test_compressed_output_does_not_depend_on_the_clock(tmp_path):
    write_annotations(tmp_path / "a.json.gz", annotations(video()))
    assert (tmp_path / "a.json.gz").read_bytes()[4:8] == bytes(4)


def test_activitynet_json(tmp_path):
    document = {
        "version": "VERSION 1.3",
        "taxonomy": [{"nodeName": "Run", "nodeId": 1}],
        "database": {
            "sJFgo9H6zNo": {
                "subset": "training",
                "duration": 138.97,
                "url": "...",
                "annotations": [{"segment": [0, 123.4], "label": "Fun sliding down"}],
            },
            "hidden": {"subset": "testing", "duration": 5, "annotations": []},
        },
    }
    read = read_annotations(save(tmp_path / "a.json", document))
    assert list(read.videos) == ["sJFgo9H6zNo", "hidden"]
    assert read.videos["sJFgo9H6zNo"].segments.tolist() == [[0.0, 123.4]]
    assert read.videos["hidden"].segments.shape == (0, 2)
    assert read.videos["hidden"].duration == 5.0
    assert read.classes() == ("Fun sliding down",)
    assert read.source == str(tmp_path / "a.json")


def test_flat_json_prefers_the_class_name_to_a_number(tmp_path):
    document = flat(instance={"label": 23, "class": "CricketBowling"}, subset="Validation")
    read = read_annotations(save(tmp_path / "a.json", document))
    assert read.videos["v_1"].labels == ("CricketBowling",)
    assert read.videos["v_1"].duration == 10.0


def test_numbers_are_named_by_the_file_of_classes(tmp_path):
    names = save(tmp_path / "names.txt", "Run\nJump high\n\n")
    path = save(tmp_path / "a.json", flat(instance={"label": 1}))
    assert read_annotations(path, names).videos["v_1"].labels == ("Jump high",)
    with pytest.raises(UserError, match=r"'v_1'.*label 1, expected a class name"):
        read_annotations(path)
    for wrong in (2, -1, True, 0.0):
        save(path, flat(instance={"label": wrong}))
        with pytest.raises(UserError, match=r"'v_1'.*label"):
            read_annotations(path, names)


def test_text_with_class_numbers(tmp_path):
    names = save(tmp_path / "names.txt", "abseiling\r\nair drumming\r\n")
    path = save(tmp_path / "k600.txt", "-id\u2028one\t48.91\t109.17\t1\r\nx\t0\t1\t0\n\n-id\u2028one\t1\t2\t0\n")
    read = read_annotations(path, names)
    assert list(read.videos) == ["-id\u2028one", "x"]
    assert read.videos["-id\u2028one"].labels == ("air drumming", "abseiling")
    assert read.videos["-id\u2028one"].segments.tolist() == [[48.91, 109.17], [1.0, 2.0]]
    assert math.isnan(read.videos["x"].duration)
    assert read.videos["x"].subset == ""


@pytest.mark.parametrize("prefix", ["", "\ufeff"])
def test_compression_is_told_by_content_not_by_name(tmp_path, prefix):
    content = (prefix + json.dumps(flat())).encode()
    (tmp_path / "plain.gz").write_bytes(content)
    (tmp_path / "packed.json").write_bytes(gzip.compress(content, mtime=0))
    for name in ("plain.gz", "packed.json"):
        assert read_annotations(tmp_path / name).videos["v_1"].labels == ("Run",)


@pytest.mark.parametrize("duration", [None, 0, 0.0])
def test_a_missing_or_zero_duration_is_unknown(tmp_path, duration):
    read = read_annotations(save(tmp_path / "a.json", flat(duration_second=duration)))
    assert math.isnan(read.videos["v_1"].duration)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (flat(annotations=None), "'v_1': 'annotations' is absent, expected a list"),
        (flat(annotations={}), "'v_1': 'annotations' is an object"),
        (flat(annotations=[[1, 2]]), "'v_1': annotation 0 is a list"),
        ({"v_1": []}, "'v_1': is a list"),
        ({"v_1": None}, "'v_1': is absent"),
        ({"": flat()["v_1"]}, "the id is empty"),
        (flat(subset=3), "'v_1': 'subset' is a number"),
        (flat(duration_second="10"), "'v_1': duration is '10'"),
        (flat(duration_second=-1), "'v_1': duration is -1"),
        (flat(duration_second=True), "'v_1': duration is True"),
        (flat(duration_second=math.nan), "'v_1': duration is nan"),
        (flat(duration_second=10**400), "'v_1': duration is 1000"),
        (flat(instance={"segment": None}), r"'v_1': segment 0 is None"),
        (flat(instance={"segment": [1]}), r"'v_1': segment 0 is \[1\]"),
        (flat(instance={"segment": [1, 2, 3]}), r"'v_1': segment 0 is \[1, 2, 3\]"),
        (flat(instance={"segment": ["1", "2"]}), "'v_1': segment 0"),
        (flat(instance={"segment": [2, 1]}), r"'v_1': segment 0 is \[2, 1\].*start <= end"),
        (flat(instance={"segment": [-0.5, 1]}), r"'v_1': segment 0 is \[-0.5, 1\]"),
        (flat(instance={"segment": [1, math.inf]}), r"'v_1': segment 0 is \[1, inf\]"),
        (flat(instance={"segment": [math.nan, 1]}), r"'v_1': segment 0 is \[nan, 1\]"),
        (flat(instance={"segment": [False, True]}), "'v_1': segment 0"),
        (flat(instance={"segment": "12"}), "'v_1': segment 0"),
        (flat(instance={"label": ""}), "'v_1': annotation 0 has label ''"),
        (flat(instance={"label": None}), "'v_1': annotation 0 has label None"),
        (flat(instance={"label": ["Run"]}), "'v_1': annotation 0 has label"),
        (flat(instance={"label": "\ud800"}), "'v_1': annotation 0 has label"),
        ({"\udfff": flat()["v_1"]}, "not valid Unicode"),
        ([flat()], "a JSON list, expected an object"),
        ({}, "holds no video"),
        ({"database": {}}, "holds no video"),
        ({"database": []}, "'database' is a list"),
        ({"version": "1", "results": {}, "external_data": {}}, "a file of detections"),
        ({"version": "1.3"}, "'version': is text"),
        ('{"v_1": {"annotations": []}, "v_1": {"annotations": []}}', "'v_1' occurs more than once"),
        ('{"v_1": {"annotations": [], "annotations": []}}', "'annotations' occurs more than once"),
        ('{"v_1": {"annotations": [}}', "invalid JSON.*line 1 column"),
        ('{"v_1": {"annotations": [], "duration": 1e999}}', "duration is inf"),
        ('{"v_1": {"annotations": [], "duration": ' + "9" * 5000 + "}}", "invalid JSON"),
        ("{", "invalid JSON"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ("", "is empty, expected annotations"),
        ("video,subset\n", "not JSON.*class names"),
    ],
)
def test_malformed_json_is_refused_in_one_line(tmp_path, document, message):
    path = save(tmp_path / "bad.json", document)
    with pytest.raises(UserError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x\t0\t1", "line 2: expected id, start, end, class number"),
        ("x\t0\t1\t0\t5", "line 2: expected id"),
        ("\t0\t1\t0", "line 2: expected id"),
        ("x 0 1 0", "line 2: expected id"),
        ("x\t2\t1\t0", "line 2: video 'x' has segment"),
        ("x\t-1\t1\t0", "line 2: video 'x' has segment"),
        ("x\tnan\t1\t0", "line 2: video 'x' has segment"),
        ("x\t0\tinf\t0", "line 2: video 'x' has segment"),
        ("x\tone\ttwo\t0", "line 2: video 'x' has segment"),
        ("x\t0\t1\t2", "line 2: video 'x' has class '2', expected a number from 0 to 1"),
        ("x\t0\t1\t-1", "line 2: video 'x' has class"),
        ("x\t0\t1\t0.5", "line 2: video 'x' has class"),
        ("x\t0\t1\tRun", "line 2: video 'x' has class"),
    ],
)
def test_malformed_text_is_refused_by_line_and_video(tmp_path, line, message):
    names = save(tmp_path / "names.txt", "Run\nJump\n")
    path = save(tmp_path / "bad.txt", f"ok\t0\t1\t0\n{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        read_annotations(path, names)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [("", "one class name"), ("a\n\nb", "empty"), ("a\nb\na", "'a'")])
def test_bad_class_files_are_named(tmp_path, content, message):
    names = save(tmp_path / "names.txt", content)
    with pytest.raises(UserError, match=rf"names\.txt.*{message}"):
        read_annotations(save(tmp_path / "a.json", flat()), names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}" * 1000, mtime=0)[:-9], "cannot read"),
        (b"\x1f\x8b" + bytes(50), "cannot read"),
        (b"\x1f\x8b", "cannot read"),
        (gzip.compress(b"{}", mtime=0)[:-8] + bytes(8), "cannot read"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, message):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.json: {message}"):
        read_annotations(tmp_path / "bad.json")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: cannot read \(No such file"):
        read_annotations(tmp_path / "absent.json")
    with pytest.raises(UserError, match="cannot read"):
        read_annotations(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ahernet.data.annotations.MAX_BYTES", 1 << 20)
    (tmp_path / "bomb.json").write_bytes(gzip.compress(b" " * (1 << 22), mtime=0))
    with pytest.raises(UserError, match="more than 1 MiB"):
        read_annotations(tmp_path / "bomb.json")


def test_text_that_unpacks_to_more_than_its_file_can_honestly_hold_is_refused(tmp_path):
    """Empty lists take many times as much memory as text."""
    text = b'{"database": {}, "taxonomy": [' + b"[]," * (1 << 23) + b"[]]}"
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(text))
    assert path.stat().st_size < len(text) / 100
    with pytest.raises(UserError, match=r"bomb\.json\.gz: holds more than 16 MiB of text"):
        read_annotations(path)
    with pytest.raises(UserError, match=r"bomb\.json\.gz: more than 16,777,216 characters"):
        read_detections(path)


def test_subsets_are_joined_from_a_table(tmp_path):
    document = {key: {"annotations": []} for key in ("v_a", "b", "c")}
    path = save(tmp_path / "a.json", document)
    table = tmp_path / "info.csv"
    table.write_bytes(
        gzip.compress(b"video,n,subset\na,1,training\nb,2,validation\nv_c,3,training\nd,4,testing\n", mtime=0)
    )
    read = read_annotations(path, subsets=table)
    assert {key: item.subset for key, item in read.videos.items()} == {
        "v_a": "training",
        "b": "validation",
        "c": "training",
    }


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("video,kind\na,x\n", "columns 'video' and 'subset'"),
        ("", "columns"),
        ("video,subset\na,x\na,y\n", "'a' is in two subsets"),
        ("video,subset\na\n", "'a' has subset None"),
        ("video,subset\na,\n", "'a' has subset ''"),
        ("video,subset\nb,x\n", "no subset for 1 of the 1 videos.*'a'"),
    ],
)
def test_bad_subset_tables_are_named(tmp_path, table, message):
    path = save(tmp_path / "a.json", {"a": {"annotations": []}})
    with pytest.raises(UserError, match=rf"t\.csv: .*{message}"):
        read_annotations(path, subsets=save(tmp_path / "t.csv", table))


def test_subsets_are_selected_whatever_their_case():
    everything = annotations(
        video("a", subset="Validation"), video("b", subset="validation"), video("c", subset="Test")
    )
    assert list(everything.select("VALIDATION").videos) == ["a", "b"]
    assert everything.select(None) is everything
    with pytest.raises(UserError, match="'training', it has Test, Validation, validation"):
        everything.select("training")
    with pytest.raises(UserError, match="it has no subsets"):
        annotations(video("a")).select("training")


def test_segments_and_labels_must_be_parallel():
    with pytest.raises(ValueError, match="segments"):
        video(segments=[[0, 1]], labels=["a", "b"])


def test_ids_match_exactly_first_then_by_prefix():
    assert match_video_ids(["v_a", "b", "c"], ["a", "v_b", "c", "v_c"]) == {"v_a": "a", "b": "v_b", "c": "c"}
    assert match_video_ids(["a", "v_a"], ["a"]) == {"a": "a"}
    assert match_video_ids(["v_a", "a"], ["a"]) == {"a": "a"}
    assert match_video_ids(["v_a", "a"], ["a", "v_a"]) == {"v_a": "v_a", "a": "a"}
    assert match_video_ids(["v_1234567890"], ["v_v_1234567890"]) == {"v_1234567890": "v_v_1234567890"}
    assert match_video_ids(["V_a"], ["a"]) == {}
    assert match_video_ids([], ["a"]) == match_video_ids(["a"], []) == {}


@given(
    st.lists(st.sampled_from(["a", "v_a", "v_v_a", "b", "v_b"])), st.lists(st.sampled_from(["a", "v_a", "v_v_a", "b"]))
)
def test_matching_is_one_to_one_and_only_ever_changes_the_prefix(wanted, available):
    pairs = match_video_ids(wanted, available)
    assert len(set(pairs.values())) == len(pairs)
    assert set(pairs) <= set(wanted)
    assert set(pairs.values()) <= set(available)
    for one, other in pairs.items():
        assert one == other or one == "v_" + other or "v_" + one == other
    for same in set(wanted) & set(available):
        assert pairs[same] == same


def test_known_faults_are_described_with_their_video():
    odd = annotations(
        video("fine", [[0, 1]], ["Run"]),
        video("zero", [[3, 3]], ["Run"]),
        video("late", [[3, 10.85]], ["Run"]),
        video("rounded", [[3, 10.01]], ["Run"]),
        video("twice", [[1, 2], [1, 2], [1, 2.5]], ["Run"] * 3),
        video("mixed", [[1, 2], [1, 2]], ["Run", "Jump"]),
        video("unknown", [[3, 99]], ["Run"], duration=math.nan),
    )
    assert [str(problem) for problem in find_annotation_problems(odd)] == [
        "segment of zero length: video 'zero', Run at 3 s",
        "segment ends after the video: video 'late', Run ends at 10.85 s of 10.00 s",
        "instance repeated: video 'twice', Run 1 to 2 s 2 times",
        "more than one class: video 'mixed', Jump, Run",
        "duration unknown: video 'unknown'",
    ]


@pytest.fixture(scope="module")
def data():
    folder = os.environ.get("AHERNET_DATA")
    if not folder or not Path(folder, "activitynet").is_dir():
        pytest.skip("needs AHERNET_DATA with activitynet, thumos14 and kinetics600")
    return Path(folder)


def kinds(read):
    return Counter(problem.kind for problem in find_annotation_problems(read))


def instances(read):
    return sum(len(item.labels) for item in read.videos.values())


def test_real_activitynet(data):
    folder = data / "activitynet"
    read = read_annotations(folder / "anet_anno_action_19994.json.gz", subsets=folder / "video_info_19994.csv.gz")
    assert len(read.videos) == 19_994
    assert len(read.classes()) == 200
    sizes = {name: len(read.select(name).videos) for name in ("Training", "Validation", "Testing")}
    assert sizes == {"Training": 10_024, "Validation": 4_926, "Testing": 5_044}
    assert instances(read.select("training")) == 15_410
    assert instances(read.select("validation")) == 7_654
    assert instances(read.select("testing")) == 0
    found = kinds(read)
    assert found["segment of zero length"] == 12
    assert found["more than one class"] == 13
    assert 1 <= found["segment ends after the video"] <= 3
    assert found["duration unknown"] == 0


def test_real_activitynet_survives_writing(data, tmp_path):
    read = read_annotations(data / "activitynet" / "anet_anno_action_19994.json.gz")
    write_annotations(tmp_path / "copy.json.gz", read)
    copy = read_annotations(tmp_path / "copy.json.gz")
    assert list(copy.videos) == list(read.videos)
    assert all((copy.videos[key].segments == item.segments).all() for key, item in read.videos.items())
    assert all(copy.videos[key].duration == item.duration for key, item in read.videos.items())


def test_real_detections_are_not_taken_for_annotations(data):
    with pytest.raises(UserError, match="a file of detections"):
        read_annotations(data / "activitynet" / "sample_detection_prediction.json.gz")


def test_real_thumos(data):
    read = read_annotations(data / "thumos14" / "thumos14_anno_action.json.gz")
    assert len(read.videos) == 413
    assert len(read.select("Train").videos) == 200
    assert len(read.select("Test").videos) == 213
    assert len(read.classes()) == 21
    ambiguous = sum(label == "Ambiguous" for item in read.videos.values() for label in item.labels)
    assert ambiguous == 188
    assert instances(read) - ambiguous == 3_007 + 3_358
    late = Counter(problem.video_id for problem in find_annotation_problems(read) if "after the video" in problem.kind)
    assert late["video_test_0000270"] == 22


def test_real_kinetics(data):
    folder = data / "kinetics600"
    read = read_annotations(folder / "k600_val_annotation.txt", folder / "k600_category.txt")
    assert len(read.videos) == 6_461
    assert instances(read) == 9_638
    assert len(read.classes()) == 600
    found = kinds(read)
    assert found["instance repeated"] == 13
    assert found["more than one class"] == 1
    assert found["duration unknown"] == 6_461
