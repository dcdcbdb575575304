import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ahernet.data import annotations as annotations_module
from ahernet.data.annotations import Annotations, VideoAnnotations, read_annotations
from ahernet.data.archive import FeatureArchive, open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.moment_labels import read_moment_labels, write_moment_labels
from ahernet.data.moments import cut_moments
from ahernet.errors import UserError

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).filter(str.strip)


def save(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path


def annotated(segments, labels, video_id="a", duration=math.nan):
    return VideoAnnotations(video_id, "", duration, np.array(segments, float).reshape(-1, 2), tuple(labels))


def annotation_set(**videos):
    """Annotations of {id: [(start, end, label), ...] or (instances, duration)}."""
    made = {}
    for video_id, video in videos.items():
        instances, duration = video if isinstance(video, tuple) else (video, math.nan)
        segments = [row[:2] for row in instances]
        made[video_id] = annotated(segments, [row[2] for row in instances], video_id, duration)
    return Annotations(made, "truth.json")


def ramp(rows, start):
    return np.arange(start, start + rows * 3, dtype=np.float32).reshape(rows, 3)


A, B, C = ramp(10, 0), ramp(4, 100), ramp(7, 200)
TRUTH = annotation_set(
    b=[(0.0, 1.0, "Run"), (1.5, 1.6, "Jump")],
    a=[(2.0, 5.0, "Jump"), (0.0, 10.0, "Run"), (8.5, 30.0, "Jump")],
    c=([(0.0, 7.0, "Swim")], 14.0),
)


@pytest.fixture
def archive(tmp_path):
    """Rows of 1 s in `a`, 0.5 s in `b`; the duration of `c` is unknown."""
    path = tmp_path / "videos.h5"
    with ArchiveWriter(path, dimension=3, dtype="float16", frame_rate=25.0, clip_stride=8, origin="a net") as writer:
        writer.add("a", A, 10.0)
        writer.add("b", B, 2.0)
        writer.add("c", C)
    with open_archive(path) as opened:
        yield opened


def cut(archive, truth, folder, **arguments):
    """Cut into `folder`; return the summary, {id: rows}, {id: duration} and the labels."""
    folder.mkdir(exist_ok=True)
    done = cut_moments(archive, truth, folder / "m.h5", folder / "m.csv", progress=False, **arguments)
    with open_archive(done.archive) as moments:
        rows = {name: moments.read([position])[0] for position, name in enumerate(moments.ids)}
        durations = dict(zip(moments.ids, moments.durations.tolist(), strict=True))
    return done, rows, durations, read_moment_labels(done.labels)


# --- reading labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["video", "id", "youtube_id"])
@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_in_file_order_whatever_its_form(tmp_path, column, separator, compress, end):
    lines = [["label", column, "split"], ["Long jump", "m2", "x"], ['"Say ""hi"""', "m1", "y"], [], ["Run", "m0", ""]]
    content = end.join(separator.join(line) for line in lines).encode()
    path = save(tmp_path / "labels.csv", gzip.compress(content) if compress else b"\xef\xbb\xbf" + content)
    assert list(read_moment_labels(path).items()) == [("m2", "Long jump"), ("m1", 'Say "hi"'), ("m0", "Run")]


def test_commas_in_a_table_of_tabs_belong_to_the_label(tmp_path):
    path = save(tmp_path / "labels.tsv", "video\tlabel\nm\tHand car wash, dry\n")
    assert read_moment_labels(path) == {"m": "Hand car wash, dry"}


def test_clips_of_kinetics_are_named_by_id_and_times(tmp_path):
    path = save(
        tmp_path / "k600.csv",
        "label,youtube_id,time_start,time_end,split\n"
        "abseiling,-0B32jodoPo,31,41,train\n"
        '"playing, trumpet",-0B32jodoPo,50.0,60.0,train\n'
        "abseiling,_x,0,1234567,train\n",
    )
    assert read_moment_labels(path) == {
        "-0B32jodoPo_000031_000041": "abseiling",
        "-0B32jodoPo_000050_000060": "playing, trumpet",
        "_x_000000_1234567": "abseiling",
    }


def test_annotations_give_each_video_the_label_all_its_segments_share(tmp_path):
    database = {
        "v_2": {"annotations": [{"segment": [0, 1], "label": "Run"}, {"segment": [5, 5], "label": "Run"}]},
        "none": {"duration": 3.0, "annotations": []},
        "v_1": {"annotations": [{"segment": [0, 1], "label": "Jump"}]},
    }
    for document in ({"database": database}, database):
        path = save(tmp_path / "a.json", document)
        assert list(read_moment_labels(path).items()) == [("v_2", "Run"), ("v_1", "Jump")]


def test_a_moment_may_be_listed_twice_with_one_label(tmp_path):
    assert read_moment_labels(save(tmp_path / "l.csv", "id,label\nm,Run\nm,Run\n")) == {"m": "Run"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        (b"video,label\n\xff\xfe,Run\n", "not UTF-8"),
        (b"\x1f\x8bnot gzip", "cannot read"),
        ("m,Run\nn,Jump\n", r"line 1: .*columns 'label' and one of 'video', 'id', 'youtube_id'.*got 'm,Run'"),
        ("video,class\nm,Run\n", "columns 'label'"),
        ("\nvideo,label\nm,Run\n", "columns 'label'"),
        ("video,id,label\nm,n,Run\n", "columns 'label' and one of"),
        ("video,label,label\nm,Run,Run\n", "columns 'label' and one of"),
        ("id,label,time_start\nm,Run,1\n", "'time_start' and 'time_end' both or neither"),
        ("id,label,time_start,time_end,time_end\nm,Run,1,2,2\n", "both or neither"),
        ("youtube_id,time_start,time_end,split\nm,0,10,test\n", "columns 'label'"),
        ("video,label\n", "holds no label"),
        ("video,label\nm,Run\nm,Jump\n", r"line 3: 'm' has label 'Jump', before it had 'Run'"),
        ("video,label\nm, \n", "line 2: 'm' has an empty label"),
        ("video,label\n,Run\n", "line 2: a moment without id"),
        ("video,label\nm,Run,fast\n", "line 2: expected 2 values, got 3"),
        ("video,label\nm\n", "line 2: expected 2 values, got 1"),
        ('video,label\nm,"Run\nfast"\n', r"line 3: label 'Run\\nfast' holds a control character"),
        ("video,label\nm\x00,Run\n", r"line 2: id 'm\\x00' holds a control character"),
        ("video,label\nm,Run\x85\n", "line 2: label .* holds a control character"),
        ('video,label\nm,"Run\n', "not valid CSV"),
        pytest.param("video,label\nm,Run\nm," + "x" * 200_000 + "\n", "line 3: not valid CSV", id="huge label"),
        ("id,label,time_start,time_end\nm,Run,1.5,2\n", r"line 2: time from '1.5' to '2', expected whole seconds"),
        ("id,label,time_start,time_end\nm,Run,2,2\n", "line 2: time"),
        ("id,label,time_start,time_end\nm,Run,-1,2\n", "line 2: time"),
        ("id,label,time_start,time_end\nm,Run,0,inf\n", "line 2: time"),
        ("id,label,time_start,time_end\nm,Run,,nan\n", "line 2: time"),
        ("id,label,time_start,time_end\nm,Run,1,2\nm,Jump,1,2\n", "line 3: 'm_000001_000002' has label 'Jump'"),
        ("{}", "holds no video"),
        ("{", "invalid JSON"),
        ({"results": {}}, "file of detections"),
        ({"m": {"annotations": []}}, "holds no label"),
        (
            {"m": {"annotations": [{"segment": [0, 1], "label": "Run"}, {"segment": [2, 3], "label": "Jump\n"}]}},
            r"video 'm' is annotated as 'Jump\\n', 'Run'; expected one class",
        ),
        ({"m": {"annotations": [{"segment": [0, 1], "label": "\t"}]}}, "'m' has an empty label"),
        ({"m\n": {"annotations": [{"segment": [0, 1], "label": "Run"}]}}, "id .* holds a control character"),
    ],
)
def test_bad_label_files_are_refused_in_one_line_that_says_where(tmp_path, content, expected):
    path = save(tmp_path / "labels", content)
    with pytest.raises(UserError, match=expected) as raised:
        read_moment_labels(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < len(str(path)) + 300


def test_missing_and_too_large_label_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"absent\.csv: cannot read"):
        read_moment_labels(tmp_path / "absent.csv")
    path = save(tmp_path / "l.csv.gz", gzip.compress(b"video,label\nm,Run\n" + b"\n" * 1000))
    monkeypatch.setattr(annotations_module, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="holds more than"):
        read_moment_labels(path)


# --- writing labels ---------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.dictionaries(NAMES, NAMES, min_size=1, max_size=6), suffix=st.sampled_from([".csv", ".csv.gz"]))
def test_labels_written_are_read_back_exactly(tmp_path, labels, suffix):
    path = tmp_path / f"l{suffix}"
    write_moment_labels(path, labels)
    assert list(read_moment_labels(path).items()) == list(labels.items())
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == (suffix == ".csv.gz")


def test_labels_are_written_as_a_plain_table(tmp_path):
    write_moment_labels(tmp_path / "l.csv", {"b": "Run", "a": "Wash, dry"})
    assert (tmp_path / "l.csv").read_bytes() == b'video,label\nb,Run\na,"Wash, dry"\n'


@pytest.mark.parametrize(("moment", "label"), [("", "Run"), ("m", " "), ("m\n", "Run"), ("m", "a\r"), ("m", "\ud800")])
def test_labels_that_could_not_be_read_back_are_not_written(tmp_path, moment, label):
    with pytest.raises(UserError, match=r"l\.csv: "):
        write_moment_labels(tmp_path / "l.csv", {"ok": "Run", moment: label})
    assert list(tmp_path.iterdir()) == []


# --- cutting ----------------------------------------------------------------------------------------------------


def test_moments_are_the_rows_centred_in_their_segments_unchanged(archive, tmp_path):
    done, rows, durations, labels = cut(archive, TRUTH, tmp_path / "out")
    expected = {
        "b_000": B[:2],
        "b_001": B[3:4],  # 1.5 s to 1.6 s holds no centre (1.25 s, 1.75 s): the row its middle lies in
        "a_000": A[2:5],
        "a_001": A,
        "a_002": A[8:],  # the centre of row 8 is at 8.5 s, which the segment just includes
        "c_000": C[:3],  # 14 s by the annotations: centres at 1 s, 3 s, 5 s and 7 s, where the segment ends
    }
    assert list(rows) == list(expected)
    for moment, found in rows.items():
        assert found.dtype == np.dtype("<f2")
        np.testing.assert_array_equal(found, expected[moment].astype(np.float16))
    assert durations == pytest.approx(
        {"b_000": 1.0, "b_001": 0.1, "a_000": 3.0, "a_001": 10.0, "a_002": 1.5, "c_000": 7.0}
    )
    assert list(labels.items()) == list(zip(expected, ["Run", "Jump", "Jump", "Run", "Jump", "Swim"], strict=True))
    assert (done.moments, done.videos, done.classes) == (6, 3, ("Jump", "Run", "Swim"))
    assert done.rows == sum(len(found) for found in expected.values())
    assert done.describe() == (
        f"cut 6 moments of 3 classes from 3 videos (21 rows) into {done.archive}, labels in {done.labels}"
    )


def test_the_new_archive_describes_itself_like_the_old(archive, tmp_path):
    done, *_ = cut(archive, TRUTH, tmp_path / "out")
    with open_archive(done.archive) as moments:
        assert (moments.frame_rate, moments.clip_stride, moments.dimension) == (25.0, 8, 3)
        assert moments.origin == "moments of a net"


def test_single_precision_stays_single_precision(tmp_path):
    features = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    with ArchiveWriter(tmp_path / "v.h5", dimension=2, dtype="float32", origin="n" * 30_000) as writer:
        writer.add("a", features, 5.0)
    with open_archive(tmp_path / "v.h5") as archive:
        done, rows, *_ = cut(archive, annotation_set(a=[(1.0, 4.0, "Run")]), tmp_path / "out")
    assert rows["a_000"].dtype == np.dtype("<f4")
    np.testing.assert_array_equal(rows["a_000"], features[1:4])
    with open_archive(done.archive) as moments:
        assert len(moments.origin) == 1000


def test_ids_and_rows_do_not_depend_on_the_classes_asked_for(archive, tmp_path):
    _, every, durations, labels = cut(archive, TRUTH, tmp_path / "all")
    for wanted in (["Run"], ["Jump"], ["Swim", "Jump"]):
        done, rows, seconds, names = cut(archive, TRUTH, tmp_path / "some", classes=wanted)
        assert names == {moment: label for moment, label in labels.items() if label in wanted}
        assert list(rows) == list(names)
        assert done.classes == tuple(sorted(wanted))
        for moment, found in rows.items():
            np.testing.assert_array_equal(found, every[moment])
            assert seconds[moment] == durations[moment]


def test_annotations_of_other_classes_change_no_byte(archive, tmp_path):
    clean, *_ = cut(archive, TRUTH, tmp_path / "clean", classes=["Jump"])
    poisoned = {}
    for video_id, video in TRUTH.videos.items():
        other = np.array([label != "Jump" for label in video.labels])
        segments = np.where(other[:, None], [[0.25, 1e6]], video.segments)
        labels = tuple("Poison" if strange else label for strange, label in zip(other, video.labels, strict=True))
        poisoned[video_id] = replace(video, segments=segments, labels=labels)
    poisoned["stranger"] = annotated([[0, 1]], ["Poison"], "stranger")
    done, *_ = cut(archive, Annotations(poisoned, "poisoned"), tmp_path / "poisoned", classes=["Jump"])
    assert done.archive.read_bytes() == clean.archive.read_bytes()
    assert done.labels.read_bytes() == clean.labels.read_bytes()
    assert done.left_out == clean.left_out


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text("a_01", min_size=1, max_size=5), min_size=1, max_size=5, unique=True),
    count=st.integers(1, 3),
)
def test_no_two_moments_share_an_id(tmp_path, names, count):
    with ArchiveWriter(tmp_path / "v.h5", dimension=1) as writer:
        for name in names:
            writer.add(name, np.zeros((2, 1)), 1.0)
    truth = Annotations({name: annotated([[0, 1]] * count, ["Run"] * count, name) for name in names}, "t")
    with open_archive(tmp_path / "v.h5") as archive:
        _, rows, _, labels = cut(archive, truth, tmp_path / "out")
    assert list(rows) == list(labels) == [f"{name}_{number:03d}" for name in names for number in range(count)]


def test_more_than_a_thousand_instances_keep_their_numbers(archive, tmp_path):
    truth = annotation_set(a=[(0.0, 1.0, "Run")] * 1001)
    *_, labels = cut(archive, truth, tmp_path / "out")
    assert len(labels) == 1001
    assert list(labels)[-2:] == ["a_999", "a_1000"]


def test_ids_are_those_of_the_archive_where_only_the_prefix_differs(archive, tmp_path):
    *_, labels = cut(archive, annotation_set(v_a=[(0.0, 1.0, "Run")]), tmp_path / "out")
    assert labels == {"a_000": "Run"}


def test_what_cannot_be_cut_is_left_out_and_told(archive, tmp_path):
    truth = annotation_set(
        a=[(3.0, 3.0, "Run"), (1.0, 2.0, "Run"), (10.0, 12.0, "Run")],
        absent=[(0.0, 1.0, "Run")],
        irrelevant=[(0.0, 1.0, "Jump")],
        c=[(0.0, 1.0, "Run")],
        b=[(2.5, 3.0, "Run"), (0.0, 1.0, "Jump")],
    )
    done, _, _, labels = cut(archive, truth, tmp_path / "out", classes=["Run"])
    assert labels == {"a_001": "Run"}
    assert done.videos == 1
    assert done.left_out.without_features == ("absent",)
    assert done.left_out.without_duration == ("c",)
    assert done.left_out.without_length == (("a", 3.0, 3.0), ("a", 10.0, 12.0), ("b", 2.5, 3.0))
    assert done.describe().endswith(
        "; left out 1 videos without features: 'absent'; left out 1 videos of unknown duration: 'c'; "
        "left out 3 segments without length inside their video: 'a' (3 s - 3 s), 'a' (10 s - 12 s), 'b' (2.5 s - 3 s)"
    )
    assert "\n" not in done.describe()


def test_the_duration_of_the_archive_wins(archive, tmp_path):
    _, rows, durations, _ = cut(archive, annotation_set(a=([(0.0, 5.0, "Run")], 5.0)), tmp_path / "out")
    assert len(rows["a_000"]) == 5
    assert durations["a_000"] == 5.0


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["Run", "Jmp"], r"class 'Jmp': does not occur in truth.json; did you mean 'Jump'\?"),
        (["Zzz"], r"class 'Zzz': does not occur in truth.json; it has 'Jump', 'Run', 'Swim'$"),
        (["Run", "Run"], "occurs twice"),
        ([], "truth.json: nothing to cut from .*videos.h5; no class was asked for"),
    ],
)
def test_classes_that_cannot_be_cut_are_refused(archive, tmp_path, classes, expected):
    with pytest.raises(UserError, match=expected):
        cut(archive, TRUTH, tmp_path / "out", classes=classes)
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_to_cut_says_why(archive, tmp_path):
    truth = annotation_set(z=[(0.0, 1.0, "Run")], a=[(11.0, 12.0, "Run")])
    with pytest.raises(UserError, match=r"nothing to cut from .*left out 1 videos without features: 'z'; .*'a' \(11 s"):
        cut(archive, truth, tmp_path / "out")
    with pytest.raises(UserError, match=r"nothing to cut .*none occurs"):
        cut(archive, annotation_set(a=[]), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_outputs_may_not_be_inputs_nor_the_same_file(archive, tmp_path):
    before = archive.path.read_bytes()
    (tmp_path / "link").symlink_to(archive.path)
    truth = Annotations(TRUTH.videos, str(save(tmp_path / "truth.json", "{}")))
    other = tmp_path / "other"
    for out, labels in [
        (archive.path, other),
        (other, archive.path),
        (tmp_path / "x" / ".." / archive.path.name, other),
        (tmp_path / "link", other),
        (other, tmp_path / "truth.json"),
    ]:
        with pytest.raises(UserError, match="is what the moments are cut from"):
            cut_moments(archive, truth, out, labels, progress=False)
    with pytest.raises(UserError, match="expected two files"):
        cut_moments(archive, truth, other, other, progress=False)
    with pytest.raises(UserError, match="is a folder"):
        cut_moments(archive, truth, other, tmp_path, progress=False)
    with pytest.raises(UserError, match="name of a set of archives"):
        cut_moments(archive, truth, tmp_path / "moments.json", other, progress=False)
    for missing in ((other, tmp_path / "x" / "l.csv"), (tmp_path / "x" / "m.h5", other)):
        with pytest.raises(UserError, match="cannot write there"):
            cut_moments(archive, truth, *missing, progress=False)
    assert archive.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "truth.json", "videos.h5"]


def test_an_id_that_a_label_file_cannot_hold_is_refused_before_any_work(tmp_path, monkeypatch):
    with ArchiveWriter(tmp_path / "v.h5", dimension=1) as writer:
        writer.add("a\nb", np.zeros((2, 1)), 1.0)
    monkeypatch.setattr(FeatureArchive, "read", lambda *_: pytest.fail("read features"))
    with open_archive(tmp_path / "v.h5") as archive, pytest.raises(UserError, match="holds a control character"):
        cut(archive, annotation_set(**{"a\nb": [(0.0, 1.0, "Run")]}), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("error", [UserError("the disk failed"), KeyboardInterrupt()])
def test_an_error_half_way_leaves_both_outputs_as_they_were(archive, tmp_path, monkeypatch, error):
    out, labels = tmp_path / "m.h5", save(tmp_path / "m.csv", "old too")
    out.write_bytes((tmp_path / "videos.h5").read_bytes())
    before = out.read_bytes()
    read, calls = FeatureArchive.read, []

    def failing(self, positions):
        calls.append(positions)
        if len(calls) == 2:
            raise error
        return read(self, positions)

    monkeypatch.setattr(FeatureArchive, "read", failing)
    with pytest.raises(type(error)):
        cut_moments(archive, TRUTH, out, labels, progress=False)
    assert [len(positions) for positions in calls] == [1, 1]  # video by video
    assert (out.read_bytes(), labels.read_text()) == (before, "old too")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "m.h5", "videos.h5"]


def test_the_bar_goes_to_stderr(archive, tmp_path, capsys):
    cut_moments(archive, TRUTH, tmp_path / "m.h5", tmp_path / "m.csv")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "cut: 100%" in captured.err
    cut(archive, TRUTH, tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")


# --- real annotations -------------------------------------------------------------------------------------------


def test_every_instance_of_thumos14_becomes_a_moment(real_data: Path, tmp_path):
    truth = read_annotations(real_data / "thumos14" / "thumos14_anno_action.json.gz")
    with ArchiveWriter(tmp_path / "v.h5", dimension=1, dtype="float32") as writer:
        for video_id, video in truth.videos.items():
            writer.add(video_id, np.arange(int(video.duration) + 1)[:, None], video.duration)
    with open_archive(tmp_path / "v.h5") as archive:
        done, rows, durations, labels = cut(archive, truth, tmp_path / "out")
    instances = sum(len(video.labels) for video in truth.videos.values())
    assert done.moments + len(done.left_out.without_length) == instances
    assert done.moments > 6000
    assert list(labels) == list(rows)
    # A row is a second, about: as many rows as seconds, but for rounding at both ends.
    assert all(abs(len(rows[moment]) - seconds) < 2.1 for moment, seconds in durations.items())
    with pytest.raises(UserError, match="is annotated as"):  # no moments themselves: several classes in a video
        read_moment_labels(real_data / "thumos14" / "thumos14_anno_action.json.gz")
