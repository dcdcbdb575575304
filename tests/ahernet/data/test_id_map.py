import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.data.id_map import read_id_map
from ahernet.errors import UserError


def test_two_columns_are_name_and_id(tmp_path):
    (tmp_path / "map.csv").write_text('video_1,v_a\n\n"with, comma"," é ""quoted"""\nvideo_2,v_b\n')
    assert read_id_map(tmp_path / "map.csv") == {"video_1": "v_a", "with, comma": ' é "quoted"', "video_2": "v_b"}


def test_a_quoted_name_may_hold_what_ends_a_line(tmp_path):
    (tmp_path / "map.csv").write_bytes('"a\nb",v_a\r\nc\u2028d,v_b\r\n'.encode())
    assert read_id_map(tmp_path / "map.csv") == {"a\nb": "v_a", "c\u2028d": "v_b"}


@pytest.mark.parametrize("content", ["name,video\r\nx,y\r\n", "\ufeffname,video\nx,y", "x,y"])
def test_a_header_a_mark_and_the_last_line_end_do_not_matter(tmp_path, content):
    (tmp_path / "map.csv.gz").write_bytes(gzip.compress(content.encode()))
    assert read_id_map(tmp_path / "map.csv.gz") == {"x": "y"}


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text("ab.-_ ,'é", min_size=1, max_size=6), st.integers(), min_size=1, max_size=6))
def test_names_that_csv_can_say_are_read_exactly(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "map.csv"
    ids = {name: f"v_{k}" for k, name in enumerate(table)}
    path.write_text("".join(f'"{name}",{video_id}\n' for name, video_id in ids.items()))
    assert read_id_map(path) == ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no names"),
        ("name,video\n", "holds no names"),
        ("a,b\nc\n", "line 2 has 1 fields, expected name and video id"),
        ("a,b,c\n", "line 1 has 3 fields"),
        ("a,b\na,c\n", "line 2 names 'a' again"),
        ("a,x\nb,y\nc,x\n", "'a' and 'c' are both to be video 'x'"),
        ("a,\n", "expected an id of at least one character"),
        ("a," + "b" * 2000 + "\n", "the id has 2000 bytes"),
        ('"a"b,c\n', "line 1 is no CSV"),
        ("a," + "b" * 200_000 + "\n", "line 1 is no CSV .*limit"),
    ],
)
def test_bad_maps_name_the_line(tmp_path, content, message):
    (tmp_path / "map.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_id_map(tmp_path / "map.csv")


def test_files_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"map\.csv: cannot read"):
        read_id_map(tmp_path / "map.csv")
    (tmp_path / "map.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_id_map(tmp_path / "map.csv")
