import os
from pathlib import Path

import pytest

from ahernet.errors import UserError
from ahernet.extraction.video_files import find_videos


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_ids_are_file_names_without_the_last_suffix_in_the_order_given(tmp_path):
    names = ["v_b.mp4", "a.b.c.mkv", "no suffix", "日本 ü.webm", ".hidden.mp4", "-x.avi", "e\u0301.mp4", "\u00e9.mp4"]
    found = find_videos(touch(tmp_path, *names))
    assert list(found) == ["v_b", "a.b.c", "no suffix", "日本 ü", ".hidden", "-x", "e\u0301", "\u00e9"]
    assert found["a.b.c"] == tmp_path / "a.b.c.mkv"


def test_folders_are_searched_through_links_and_each_once(tmp_path):
    touch(tmp_path, "f/1.mp4", "far/2.mp4", "far/deep/3.mp4")
    (tmp_path / "f" / "z").symlink_to(tmp_path / "far")
    (tmp_path / "f" / "y").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "f")
    found = find_videos([tmp_path / "f"])
    assert found == {"1": tmp_path / "f/1.mp4", "2": tmp_path / "f/y/2.mp4", "3": tmp_path / "f/y/deep/3.mp4"}


def test_links_to_videos_that_are_not_there_are_not_left_out(tmp_path):
    touch(tmp_path, "f/1.mp4")
    (tmp_path / "f" / "2.mp4").symlink_to("/not/mounted/2.mp4")
    assert list(find_videos([tmp_path / "f"])) == ["1", "2"]


def test_what_is_left_out_is_counted(tmp_path, capsys):
    touch(tmp_path, "f/1.mp4", "f/2.divx", "f/a/notes.txt", "f/.hidden.txt")
    find_videos([tmp_path / "f"])
    assert capsys.readouterr().err == f"{tmp_path}/f: left out 2 files that do not end as videos do, as 2.divx\n"


def test_folders_are_searched_for_videos_in_the_order_of_names(tmp_path):
    touch(
        tmp_path, "f/b/2.MP4", "f/a/3.mkv", "f/1.avi", "f/notes.txt", "f/.cache/9.mp4", "f/.9.mp4", "f/a/.trash/8.mp4"
    )
    assert list(find_videos([*touch(tmp_path, "0.mp4"), tmp_path / "f"])) == ["0", "1", "3", "2"]


def test_a_table_gives_ids_by_path_or_name_slashes_and_all(tmp_path, capsys):
    first, second = touch(tmp_path, "x/a.mp4", "y/b.mp4")
    table = tmp_path / "ids.csv"
    table.write_text(f'file,id,more\n{first},class/one.é,1\nb.mp4,"two, three",2\nunused.mp4,u,3\n', encoding="utf-8")
    assert find_videos([second, first], table) == {"two, three": second, "class/one.é": first}
    assert capsys.readouterr().err == f"{table}: 1 files of it are not among the videos, as unused.mp4\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,id\nb.mp4,b\n", "ids.csv: has no id for .*a.mp4"),
        ("name,id\na.mp4,b\n", "expected a table with the columns file and id"),
        ("", "expected a table with the columns file and id"),
        ("file,id\na.mp4,x\na.mp4,y\n", "has two ids for 'a.mp4'"),
        ("file,id\na.mp4\n", "a row without file or id"),
        ("file,id\na.mp4,x\0y\n", "without NUL|not a CSV table"),
        (b"file,id\na.mp4,\xff\n", "not a CSV table in UTF-8"),
    ],
)
def test_bad_tables_are_refused(content, message, tmp_path):
    (tmp_path / "ids.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        find_videos(touch(tmp_path, "a.mp4"), tmp_path / "ids.csv")
    with pytest.raises(UserError, match=r"none\.csv: cannot read"):
        find_videos([], tmp_path / "none.csv")


def test_two_files_of_one_id_are_named(tmp_path):
    paths = touch(tmp_path, "x/a.mp4", "y/a.mkv")
    with pytest.raises(UserError, match=r"y/a\.mkv: has the same video id 'a' as .*x/a\.mp4"):
        find_videos(paths)
    with pytest.raises(UserError, match="has the same video id 'a'"):
        find_videos([paths[0], paths[0]])


def test_what_is_not_there_or_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "nope.mp4": r"nope\.mp4: no such file",
        "pipe.mp4": r"pipe\.mp4: not a file",
        "empty": "empty: no file in this folder ends as videos do",
        "a\0b": "not a file name",
    }.items():
        with pytest.raises(UserError, match=message):
            find_videos([tmp_path / name])


def test_names_that_are_no_text_are_refused_by_name(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.mp4"
    try:
        Path(os.fsdecode(path)).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(UserError, match="not valid Unicode"):
        find_videos([Path(os.fsdecode(path))])
