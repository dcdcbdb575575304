import pytest
from small_videos import write_video

from ahernet.cli import main
from ahernet.data.archive import open_archive
from ahernet.data.archive_set import open_features

MODULE = """
from small_videos import TINY
from ahernet.extraction.backbones import BACKBONES, register
if TINY.name not in BACKBONES:
    register(TINY)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_backbone.py").write_text(MODULE)
    write_video(tmp_path / "a.mp4", 20)
    return tmp_path


TINY_BACKBONE = ["--backbone", "tiny_backbone:means", "--device", "cpu"]


def refused(capsys, *arguments: str) -> str:
    assert main(["extract", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_videos_become_an_archive_that_knows_their_durations(here, capsys):
    assert main(["extract", "a.mp4", "--out", "new/a.h5", *TINY_BACKBONE]) == 0
    captured = capsys.readouterr()
    assert captured.out == "new/a.h5: 1 videos, 0.8 s, 2 rows of 18\n"
    assert "means is initialised at random (always the same): its features are for testing the pipeline only" in (
        captured.err
    )
    assert "2/2" in captured.err  # clips, of as many as the header promised
    with open_archive(here / "new" / "a.h5") as archive:
        assert archive.ids == ("a",)
        assert archive.durations[0] == pytest.approx(0.8)


def test_options_reach_the_work(here, capsys):
    (here / "ids.csv").write_text("file,id\na.mp4,sports/one\n")
    (here / "text.mp4").write_text("text")
    (here / "more.csv").write_text("file,id\na.mp4,sports/one\ntext.mp4,two\n")
    arguments = ["--out", "a.h5", "--clip-stride", "2", "--batch-size", "3", "--workers", "1", "--dtype", "float32"]
    assert main(["extract", "a.mp4", *arguments, "--ids", "ids.csv", *TINY_BACKBONE]) == 0
    with open_archive(here / "a.h5") as archive:
        assert (archive.ids, archive.clip_stride, archive.dtype) == (("sports/one",), 2, "float32")
        assert archive.lengths.tolist() == [3]
    capsys.readouterr()
    line = refused(capsys, "a.mp4", "text.mp4", "--ids", "more.csv", *arguments, *TINY_BACKBONE)
    assert "text.mp4: not a readable video" in line
    skip = ["--ids", "more.csv", "--on-error", "skip"]
    assert main(["extract", "a.mp4", "text.mp4", *skip, *arguments, *TINY_BACKBONE]) == 0
    assert "skipped: 1 of 2 videos\n  'two': not a readable video" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.h5"], "extract: missing VIDEOS"),
        (["a.mp4"], "extract: missing --out"),
        (["a.mp4", "--out", ".", *TINY_BACKBONE], ".: holds other files"),
        (["a.mp4", "--out", "x.h5", "--batch-size", "0"], "extract: --batch-size: expected at least 1, got 0"),
        (["a.mp4", "--out", "x.h5", "--clip-stride", "-1"], "extract: --clip-stride: expected at least 1"),
        (["no.mp4", "--out", "x.h5"], "no.mp4: no such file"),
        (["a.mp4", "--out", "x.h5", "--backbone", "p3d199"], "there is no 'p3d199' (did you mean p3d199-port?)"),
        (["a.mp4", "--out", "x.h5", *TINY_BACKBONE, "--weights", "no.pt"], "no.pt: cannot read (No such file"),
        (["a.mp4", "--out", "x.h5", *TINY_BACKBONE, "--weights", "a.mp4"], "a.mp4: not a file of tensors"),
        (["tiny_backbone.py", "--out", "x.h5", *TINY_BACKBONE], "tiny_backbone.py: not a readable video"),
        (["a.mp4", "--out", "x.h5", "--device", "cuda:9", "--backbone", "tiny_backbone:means"], "cuda:9"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, message, here, capsys):
    before = sorted(path.name for path in here.iterdir() if path.name != "__pycache__")
    assert message in refused(capsys, *arguments)
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == before


def test_without_pyav_the_message_names_the_extra(here, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "ahernet.extraction.pyav_decoder", raising=False)
    assert "pip install 'ahernet[video]'" in refused(capsys, "a.mp4", "--out", "x.h5", *TINY_BACKBONE)


def test_a_name_without_suffix_is_a_folder_of_archives(here, capsys):
    write_video(here / "b.mp4", 30)
    arguments = ["a.mp4", "b.mp4", "--out", "features", "--part-videos", "1", *TINY_BACKBONE]
    assert main(["extract", *arguments]) == 0
    assert capsys.readouterr().out == "features: 2 videos in 2 archives\n"
    with open_features(here / "features") as archive:
        assert archive.ids == ("a", "b")
    assert "with clip_stride 8 instead of 4" in refused(capsys, *arguments, "--clip-stride", "4")
    assert "--actors: expected at least 1, got 0" in refused(capsys, *arguments, "--actors", "0")
    line = refused(capsys, "a.mp4", "--out", "a.h5", "--part-videos", "3", *TINY_BACKBONE)
    assert "--part-videos is for a folder of archives, --out names a file: a.h5" in line
