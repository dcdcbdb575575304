import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ahernet.data.detection_shards import load_detections
from ahernet.data.detections import Detections, read_detections, write_detections
from ahernet.errors import UserError

SUFFIXES = ["json", "csv", "json.gz", "csv.gz"]


def made(**changes: object) -> Detections:
    columns = {
        "video_ids": ("v_abc", "v_def", "empty"),
        "classes": ("Long jump", 'Say "hi", twice'),
        "video": np.array([0, 0, 1], np.int64),
        "label": np.array([1, 0, 0], np.int64),
        "segments": np.array([[0.1, 0.30000000000000004], [2.0, 2.0], [1 / 3, 1e3]]),
        "scores": np.array([0.5, 1e-17, -2.0]),
    }
    return Detections(**(columns | changes))  # type: ignore[arg-type]


def rows(detections: Detections) -> list[tuple[str, str, float, float, float]]:
    return [
        (detections.video_ids[video].removeprefix("v_"), detections.classes[label], start, end, score)
        for video, label, (start, end), score in zip(
            detections.video.tolist(),
            detections.label.tolist(),
            detections.segments.tolist(),
            detections.scores.tolist(),
            strict=True,
        )
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_gives_back_every_number_exactly(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"found.{suffix}"
    write_detections(path, made())
    assert rows(read_detections(path)) == rows(made())


def test_json_is_an_activitynet_result_with_ids_without_prefix_and_empty_videos(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_detections(path, made())
    content = json.loads(path.read_text())
    assert content == {
        "version": "VERSION 1.3",
        "results": {
            "abc": [
                {"label": 'Say "hi", twice', "score": 0.5, "segment": [0.1, 0.30000000000000004]},
                {"label": "Long jump", "score": 1e-17, "segment": [2.0, 2.0]},
            ],
            "def": [{"label": "Long jump", "score": -2.0, "segment": [1 / 3, 1000.0]}],
            "empty": [],
        },
        "external_data": {},
    }
    assert read_detections(path).video_ids == ("abc", "def", "empty")


def test_csv_has_the_documented_header_and_leaves_out_empty_videos(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    write_detections(path, made())
    lines = path.read_text().splitlines()
    assert lines[:2] == ["video_id,start,end,label,score", '"abc",0.1,0.30000000000000004,"Say ""hi"", twice",0.5']
    assert read_detections(path).video_ids == ("abc", "def")


def test_packed_files_are_packed_and_repeat_byte_for_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json.gz", tmp_path / "b.json.gz"
    write_detections(first, made())
    write_detections(second, made())
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(gzip.decompress(first.read_bytes()))["version"] == "VERSION 1.3"


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_whether_a_file_is_packed_is_seen_from_its_content(suffix: str, tmp_path: Path) -> None:
    plain = tmp_path / f"found.{suffix}"
    write_detections(plain, made())
    content = plain.read_bytes()
    plain.write_bytes(gzip.compress(content))
    (tmp_path / f"found.{suffix}.gz").write_bytes(content)
    for path in (plain, tmp_path / f"found.{suffix}.gz"):
        assert rows(read_detections(path)) == rows(made())


def test_a_path_may_be_text(tmp_path: Path) -> None:
    path = str(tmp_path / "found.json")
    write_detections(path, made())  # type: ignore[arg-type]
    for read in (read_detections, load_detections):
        assert rows(read(path)) == rows(made())  # type: ignore[arg-type]


def test_prefix_stays_where_two_videos_would_become_one(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_detections(path, made(video_ids=("v_abc", "abc", "v_")))
    assert read_detections(path).video_ids == ("v_abc", "abc", "v_")


def test_interleaved_rows_are_grouped_by_video_and_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_detections(path, made(video=np.array([1, 0, 1], np.int64)))
    assert [row[::4] for row in rows(read_detections(path))] == [("abc", 1e-17), ("def", 0.5), ("def", -2.0)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_detection_at_all_survives_writing(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"found.{suffix}"
    none = np.zeros(0, np.int64)
    write_detections(path, Detections(("a",), (), none, none, np.zeros((0, 2)), np.zeros(0)))
    found = read_detections(path)
    assert len(found) == 0
    assert found.segments.shape == (0, 2)
    assert found.video_ids == (("a",) if "json" in suffix else ())


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: not name.startswith("v_")
)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@example(suffix="csv", written=[("\r", "\n,", 0.0, 1.0, 0.5)])
@given(
    suffix=st.sampled_from(["json", "csv"]),
    written=st.lists(st.tuples(names, names, numbers, numbers, numbers), max_size=6),
)
def test_any_text_and_number_survives_writing(
    suffix: str, written: list[tuple[str, str, float, float, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = sorted(((v, c, min(s, e), max(s, e), x) for v, c, s, e, x in written), key=lambda row: row[0])
    videos = tuple(dict.fromkeys(row[0] for row in written))
    classes = tuple(dict.fromkeys(row[1] for row in written))
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    write_detections(
        path,
        Detections(
            videos,
            classes,
            np.array([videos.index(row[0]) for row in written], np.int64),
            np.array([classes.index(row[1]) for row in written], np.int64),
            np.array([row[2:4] for row in written], np.float64).reshape(-1, 2),
            np.array([row[4] for row in written], np.float64),
        ),
    )
    assert rows(read_detections(path)) == written


def test_csv_columns_may_come_in_any_order_and_with_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    path.write_bytes(b"\xef\xbb\xbflabel,score,video_id,start,end\r\nrun,0.5,abc,1,2\r\n\r\n")
    assert rows(read_detections(path)) == [("abc", "run", 1.0, 2.0, 0.5)]


GOOD = {"label": "run", "score": 0.5, "segment": [1, 2]}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({**GOOD, "score": float("nan")}, "detection 0: start, end and score: expected finite numbers"),
        ({**GOOD, "segment": [0, float("inf")]}, "expected finite numbers"),
        ({**GOOD, "segment": [0, 10**400]}, "expected finite numbers"),
        ({**GOOD, "segment": [2, 1]}, "ends before it starts"),
        ({**GOOD, "segment": [1]}, r'expected {"label", "score", "segment": \[start, end\]}'),
        ({**GOOD, "segment": [1, 2, 3]}, r'expected {"label"'),
        ({**GOOD, "segment": 7}, r'expected {"label"'),
        ({**GOOD, "segment": "12"}, "start: expected a number, got '1'"),
        ({**GOOD, "segment": {"0": 1, "1": 2}}, "start: expected a number"),
        ({**GOOD, "score": "0.5"}, "score: expected a number, got '0.5'"),
        ({**GOOD, "score": True}, "score: expected a number, got True"),
        ({**GOOD, "score": None}, "score: expected a number, got None"),
        ({**GOOD, "label": 3}, "label: expected text, got 3"),
        ({"label": "run", "score": 0.5}, r'expected {"label"'),
        ("run", r'expected {"label"'),
        (None, r'expected {"label"'),
        ([1, 2], r'expected {"label"'),
    ],
)
def test_a_bad_detection_is_named_with_its_file_and_video(found: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"results": {"good": [GOOD], "abc": [found]}}))
    with pytest.raises(UserError, match=rf"found\.json: video 'abc'.*{message}") as caught:
        read_detections(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"results": {"a": [', "not valid JSON"),
        (b"[1, 2]", "expected an ActivityNet result file"),
        (b'{"version": "VERSION 1.3"}', "expected an ActivityNet result file"),
        (b'{"results": [1]}', "expected an ActivityNet result file"),
        (b'{"results": {"a": {"label": 1}}}', "video 'a': expected a list of detections, got dict"),
        (b'{"results": {"a": [], "a": []}}', "the key 'a' occurs more than once"),
        (b'{"results": {"": []}}', "non-empty text"),
        (b'{"results": {"\\ud800": []}}', "'\\\\ud800': expected a video id or label of valid"),
        (b'{"results": {"a": [{"label": "", "score": 1, "segment": [0, 1]}]}}', "non-empty text"),
        (b'{"results": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"results": {"a\xff": []}}', "expected UTF-8 text"),
    ],
)
def test_a_malformed_json_is_one_line_of_error(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"found\.json: .*{message}") as caught:
        read_detections(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the header video_id,start,end,label,score"),
        ("video_id,start,end,label\na,1,2,run\n", "expected the header"),
        ("video_id,start,end,label,score\na,1,2,run\n", "line 2: expected 5 values, got 4"),
        ("video_id,start,end,label,score\na,1,x,run,0.5\n", "line 2: video 'a': .*expected numbers"),
        ("video_id,start,end,label,score\na,1,2,run,nan\n", "line 2: video 'a': .*finite"),
        ("video_id,start,end,label,score\na,2,1,run,0.5\n", "line 2: video 'a': .*ends before it starts"),
        ('video_id,start,end,label,score\na,1,2,"run,0.5\n', "not valid CSV"),
        ("video_id,start,end,label,score\na,1,2," + "r" * 200_000 + ",1\n", "line 2: not valid CSV"),
        ("video_id,start,end,label,score\n,1,2,run,0.5\n", "non-empty text"),
    ],
)
def test_a_malformed_csv_is_one_line_of_error(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"found\.csv: .*{message}") as caught:
        read_detections(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["found.json.gz", "found.csv.gz"])
@pytest.mark.parametrize("damage", ["cut", "plain", "flipped"])
def test_a_damaged_gzip_file_is_one_line_of_error(name: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_detections(path, made())
    content = path.read_bytes()
    flipped = content[:30] + bytes([content[30] ^ 0xFF]) + content[31:]
    path.write_bytes({"cut": content[:-12], "plain": b"not packed", "flipped": flipped}[damage])
    with pytest.raises(UserError, match=r"found\.(json|csv)\.gz: "):
        read_detections(path)


def test_a_missing_file_and_an_unknown_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot read \(No such file"):
        read_detections(tmp_path / "absent.json")
    for name in ("found.pkl", "found.gz", "json"):
        with pytest.raises(UserError, match=r"unknown detection format, expected \.json"):
            read_detections(tmp_path / name)
        with pytest.raises(UserError, match=r"unknown detection format"):
            write_detections(tmp_path / name, made())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.array([0.5, np.nan, 1.0])}, "scores: expected finite"),
        ({"segments": np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]])}, "segments: .*at or after its start"),
        ({"segments": np.full((3, 2), np.inf)}, "segments: expected finite"),
        ({"segments": np.zeros((2, 2))}, r"segments: expected float64 of shape \(3, 2\)"),
        ({"scores": np.zeros(3, np.float32)}, r"scores: expected float64 .* got float32"),
        ({"video": np.array([0, 1, 3], np.int64)}, "video: expected rows from 0 to 2, got 0 to 3"),
        ({"label": np.array([0, 1, -1], np.int64)}, "label: expected rows from 0 to 1, got -1 to 1"),
        ({"label": np.array([0, 1, 1], np.int32)}, "label: expected int64"),
        ({"video_ids": ("a", "a", "b")}, "video_ids: a name occurs twice"),
        ({"classes": ("a", "a")}, "classes: a name occurs twice"),
    ],
)
def test_inconsistent_columns_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changes)
