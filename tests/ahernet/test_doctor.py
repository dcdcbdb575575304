import ahernet_kernels
import pytest
import torch

from ahernet.cli import main
from ahernet.rendered import WorldConfig, write_world

WORLD = WorldConfig(classes=2, training_videos=3, validation_videos=1, dimension=8, max_duration=30.0)
QUICK = ["--preset", "tiny", "--training.iterations", "1", "--training.batch_size", "2", "--device", "cpu"]


@pytest.fixture
def files(tmp_path):
    archive, annotations = write_world(tmp_path / "secret folder", WORLD)
    run, found = str(archive.parent / "run"), str(archive.parent / "found.json")
    assert main(["train", str(archive), str(annotations), "--out", run, *QUICK]) == 0
    assert main(["localize", str(archive), run, "--out", found, "--device", "cpu"]) == 0
    assert main(["localize", str(archive), run, "--out", found.removesuffix(".json"), "--device", "cpu"]) == 0
    return archive.parent


def test_an_installation_and_files_in_order_are_said_to_be(files, capsys):
    capsys.readouterr()
    paths = [files / name for name in ("archive.h5", "run", "found.json", "found")]
    assert main(["doctor", *map(str, paths)]) == 0
    text = capsys.readouterr().out
    assert "WRONG" not in text
    for line in (
        f"- ok    torch: {torch.__version__}",
        "- ok    ops on cpu: every op gives what it should",
        "- ok    archive.h5: 4 videos, ",
        "all checksums fit",
        "- ok    run: checkpoint of 2 classes, ",
        "- ok    found.json: 400 detections in 4 videos",
        "- ok    found: 400 detections in 4 videos",
    ):
        assert line in text
    assert "secret" not in text


def test_what_is_wrong_is_named_and_the_exit_code_says_so(files, capsys, monkeypatch):
    content = bytearray((files / "archive.h5").read_bytes())
    content[-1] ^= 0xFF
    (files / "archive.h5").write_bytes(content)
    (files / "run" / "checkpoint.json").write_text("{")
    monkeypatch.setattr(ahernet_kernels, "pairwise_tiou", lambda a, b: torch.zeros(1, 1))
    capsys.readouterr()
    paths = [files / name for name in ("archive.h5", "run", "missing.h5")]
    assert main(["doctor", *map(str, paths)]) == 2
    captured = capsys.readouterr()
    wrong = [line for line in captured.out.splitlines() if "WRONG" in line]
    assert wrong[0].startswith("- WRONG op pairwise_tiou on cpu: gives")
    assert "checksums do not fit in 1 videos" in wrong[1]
    assert wrong[2].startswith("- WRONG run: ")
    assert wrong[3].startswith("- WRONG missing.h5: ")
    assert "secret" not in captured.out
    assert "ahernet: error: doctor: 4 of these are wrong" in captured.err
