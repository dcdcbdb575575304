import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_videos import SIDE, TINY, brightness, write_video

from ahernet.data.archive import open_archive
from ahernet.errors import UserError
from ahernet.extraction import extract as module
from ahernet.extraction.backbones import Preprocessing
from ahernet.extraction.decoding import ClipDecoder
from ahernet.extraction.extract import ExtractionSettings, extract
from ahernet.extraction.network import ClipNetwork
from ahernet.extraction.p3d import P3D
from ahernet.extraction.pyav_decoder import PyAVDecoder
from ahernet.extraction.video import Framing
from ahernet.extraction.video_features import extract_videos
from ahernet.progress import ProgressBar

LENGTHS = {"long": 40, "short": 5, "a.b": 17, "exact": 16, "ü x": 33}
QUICK = ExtractionSettings(batch_size=3, workers=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: write_video(folder / f"{name}.mp4", frames) for name, frames in LENGTHS.items()}


def network_of(backbone=TINY, weights=None) -> ClipNetwork:
    return ClipNetwork(backbone, weights, "cpu", "float32")


def run(videos, out, network=None, settings=QUICK):
    return extract(videos, out, network or network_of(), PyAVDecoder(), settings, progress=False)


def features_of(path: Path) -> dict[str, np.ndarray]:
    with open_archive(path) as archive:
        return {video_id: archive.read([k])[0] for k, video_id in enumerate(archive.ids)}


def test_the_bar_counts_clips_as_they_are_computed_and_ends_full(videos, tmp_path, monkeypatch):
    counts, ends = [], []

    class Bar(ProgressBar):
        def update(self, n=1):
            counts.append(n)
            return super().update(n)

        def close(self):
            ends.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(module, "ProgressBar", Bar)
    settings = replace(QUICK, batch_size=2)
    extract(videos, tmp_path / "a.h5", network_of(), PyAVDecoder(), settings)
    assert max(counts) <= 2
    assert sum(counts) == 4 + 1 + 2 + 1 + 4
    assert ends[-1] == (12, 12)


def test_every_video_has_the_rows_of_its_clips_in_order(videos, tmp_path):
    report = run(videos, tmp_path / "a.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5"]
    assert (report.videos, report.rows, report.skipped, report.remarks) == (5, 4 + 1 + 2 + 1 + 4, {}, {})
    features = features_of(tmp_path / "a.h5")
    assert list(features) == list(LENGTHS)
    for video_id, frames in LENGTHS.items():
        for row, values in enumerate(features[video_id]):
            expected = [brightness(min(8 * row + k, frames - 1)) for k in range(16)]
            np.testing.assert_allclose(values[:16], expected, atol=2.4)
    with open_archive(tmp_path / "a.h5") as archive:
        np.testing.assert_allclose(archive.durations, [frames / 25 for frames in LENGTHS.values()])
        assert archive.clip_stride == 8
        origin = json.loads(archive.origin)["ahernet extract"]
    assert origin["backbone"] == "means"
    assert origin["clip_length"] == 16
    assert origin["clip_stride"] == 8
    assert origin["decoder"] == "pyav"
    assert origin["preprocessing"]["side"] == SIDE
    assert "for testing the pipeline only" in origin["weights"]


def test_features_say_which_weights_they_are_of(videos, tmp_path):
    torch.save(network_of()._network.state_dict(), tmp_path / "w.pt")
    run({"short": videos["short"]}, tmp_path / "a.h5", network_of(weights=tmp_path / "w.pt"))
    run({"short": videos["short"]}, tmp_path / "b.h5")
    with open_archive(tmp_path / "a.h5") as archive:
        assert json.loads(archive.origin)["ahernet extract"]["weights"].startswith("sha256 ")
    assert (features_of(tmp_path / "a.h5")["short"] == features_of(tmp_path / "b.h5")["short"]).all()


SMALL_P3D = replace(
    TINY, name="small", dimension=64, build=lambda: P3D("caffe", (1, 1, 1, 1), 2), preprocessing=Preprocessing(36, 32)
)


@pytest.mark.parametrize("backbone", [TINY, SMALL_P3D], ids=["means", "p3d"])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_features_are_the_same_bits_alone_and_in_any_company(backbone, batch_size, videos):
    network = network_of(backbone)
    framing = Framing(backbone.preprocessing.resize, backbone.preprocessing.side)
    decode = ClipDecoder(PyAVDecoder(), framing, 16, 8)

    def features(*names: str, workers: int) -> dict[str, np.ndarray]:
        done = extract_videos([(name, videos[name]) for name in names], network, decode, batch_size, workers)
        return {video.video_id: video.features for video in done}

    together = features(*LENGTHS, workers=3)
    backwards = features(*reversed(LENGTHS), workers=1)
    assert set(together) == set(backwards) == set(LENGTHS)
    for name in LENGTHS:
        assert np.array_equal(together[name], backwards[name])
        assert np.array_equal(together[name], features(name, workers=1)[name])


def cut(videos, folder: Path) -> dict[str, Path]:
    """A whole video, one that breaks off, one that is empty, and text."""
    options = {"movflags": "faststart"}
    content = write_video(folder / "whole.mp4", 40, options=options).read_bytes()
    (folder / "half.mp4").write_bytes(content[: len(content) // 2])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("text" * 1000)
    names = ("half", "empty", "text")
    return {**{name: folder / f"{name}.mp4" for name in names}, "short": videos["short"]}


def test_bad_videos_stop_or_are_listed_and_incomplete_ones_are_kept_and_listed(videos, tmp_path):
    mixed = cut(videos, tmp_path)
    out = tmp_path / "a.h5"
    with pytest.raises(
        UserError, match=r"(empty|text)\.mp4: (the file is empty|not a readable video).*--on-error skip"
    ):
        run(mixed, out)
    assert not out.exists()
    report = run(mixed, out, settings=replace(QUICK, on_error="skip"))
    assert list(features_of(out)) == ["half", "short"]
    assert list(report.skipped) == ["empty", "text"]
    assert report.skipped["empty"] == "the file is empty, expected a video"
    kept, of, declared, frames = report.remarks["half"].split(";")[0].split()
    assert (of, declared, frames) == ("of", "40", "frames")
    assert 1 < int(kept) < 39
    text = str(report)
    assert "kept although damaged or incomplete: 1 of 4 videos\n  'half': " in text
    assert (
        "skipped: 2 of 4 videos\n  'empty': the file is empty, expected a video\n  'text': not a readable video" in text
    )
    for names in (("empty", "text"), ("text", "empty")):
        with pytest.raises(UserError, match=rf"none of 2 videos is of use; \S*{names[0]}\.mp4: "):
            run({name: mixed[name] for name in names}, out, settings=replace(QUICK, on_error="skip"))
    assert list(features_of(out)) == ["half", "short"]


def test_features_that_are_not_finite_are_bad_videos(videos, tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, clips):
            return clips.mean((1, 3, 4)) + torch.where(clips.amax((1, 2, 3, 4)) > 120, torch.nan, 0.0)[:, None]

    network = network_of(replace(TINY, name="broken", dimension=16, build=Broken))
    report = run(videos, tmp_path / "a.h5", network, replace(QUICK, on_error="skip"))
    assert list(report.skipped) == ["long", "ü x"]  # the others stay darker
    assert report.skipped["long"].startswith("the network gives NaN or infinite features, first in row ")
    assert "short" in features_of(tmp_path / "a.h5")


def test_a_backbone_that_gives_another_shape_is_named(videos, tmp_path):
    network = network_of(replace(TINY, name="wrong", dimension=5))
    with pytest.raises(UserError, match=r"backbone wrong: gave features of shape \(3, 18\), expected \(3, 5\)"):
        run(videos, tmp_path / "a.h5", network)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_goes_on_and_other_settings_are_refused(videos, tmp_path):
    out = tmp_path / "a.h5"
    (tmp_path / "bad.mp4").write_text("text")
    one_by_one = replace(QUICK, workers=1, batch_size=1)
    with pytest.raises(UserError, match="2 finished videos are kept for the next run"):
        run({"long": videos["long"], "short": videos["short"], "bad": tmp_path / "bad.mp4"}, out, settings=one_by_one)
    for other in ({"clip_stride": 4}, {"batch_size": 2}, {"dtype": "float32"}):
        with pytest.raises(UserError, match=r"a\.h5\.partial: was begun with (clip_stride|batch_size|dtype) = "):
            run(videos, out, settings=replace(one_by_one, **other))
    with pytest.raises(UserError, match="was begun with backbone = "):
        run(videos, out, network_of(replace(TINY, name="other")), one_by_one)
    report = run(videos, out, settings=one_by_one)
    assert report.earlier == 2
    assert "2 of them from an earlier run" in str(report)
    run(videos, tmp_path / "b.h5", settings=one_by_one)
    assert out.read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_video_that_changed_meanwhile_is_read_again(videos, tmp_path):
    mine = {"a": write_video(tmp_path / "a.mp4", 20), "bad": tmp_path / "bad.mp4"}
    mine["bad"].write_text("text")
    with pytest.raises(UserError):
        run(mine, tmp_path / "a.h5", settings=replace(QUICK, workers=1, batch_size=1))
    assert (tmp_path / "a.h5.partial").exists()
    write_video(tmp_path / "a.mp4", 30)
    report = run(mine, tmp_path / "a.h5", settings=replace(QUICK, batch_size=1, on_error="skip"))
    assert (report.earlier, report.rows) == (0, 3)


@pytest.mark.parametrize("name", ["clip_stride", "batch_size", "workers"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"{name}: expected at least 1"):
        ExtractionSettings(**{name: 0})


def test_nothing_to_extract_is_refused(tmp_path):
    with pytest.raises(UserError, match="no video given"):
        run({}, tmp_path / "a.h5")


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from small_videos import TINY, MeansOfFrames
from dataclasses import replace
from ahernet.extraction.extract import ExtractionSettings, extract
from ahernet.extraction.network import ClipNetwork
from ahernet.extraction.pyav_decoder import PyAVDecoder

torch.set_num_threads(1)
folder = Path(sys.argv[1])
videos = {path.stem: path for path in sorted(folder.glob("*.mp4"))}
lines = folder / "killed.h5.partial" / "journal.jsonl"

class Slow(MeansOfFrames):
    def forward(self, clips):
        time.sleep(0.02)
        return super().forward(clips)

def run(name):
    network = ClipNetwork(replace(TINY, build=Slow), None, "cpu", "float32")
    settings = ExtractionSettings(batch_size=2, workers=2)
    extract(videos, folder / name, network, PyAVDecoder(), settings, progress=False)

def finished():
    return len(lines.read_bytes().splitlines()) if lines.exists() else 0

for patience in (0, 1, 1, 2, 3):  # videos that each child may finish, and a little more
    before = finished()
    child = os.fork()
    if not child:
        run("killed.h5")
        os._exit(0)
    time.sleep(0.02)
    ended = False  # on a busy machine it may be done before it is killed
    while finished() < before + patience and not ended:
        time.sleep(0.002)
        ended = os.waitpid(child, os.WNOHANG) != (0, 0)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(finished(), flush=True)
run("killed.h5")
run("calm.h5")
"""


def test_a_run_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(tmp_path):
    for number in range(12):
        write_video(tmp_path / f"v{number:02d}.mp4", 10 + 3 * number)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert any(0 < int(word) < 12 for word in result.stdout.split())  # some kill came in the middle of the work
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "calm.h5").read_bytes()
    assert not list(tmp_path.glob("*.partial"))
    assert list(features_of(tmp_path / "killed.h5")) == [f"v{number:02d}" for number in range(12)]


def test_real_videos_whole_truncated_and_overwritten_are_extracted_or_listed(real_data, tmp_path):
    folder = real_data / "videos"
    whole = sorted(path for path in folder.iterdir() if path.suffix in (".mp4", ".avi", ".mpg"))
    if len(whole) < 6:
        pytest.skip("AHERNET_DATA has not the six videos")
    files = {path.stem: path for path in whole}
    for path in whole:
        content = path.read_bytes()
        files[f"cut {path.stem}"] = tmp_path / f"cut {path.name}"
        files[f"cut {path.stem}"].write_bytes(content[: len(content) * 2 // 3])
        overwritten = bytearray(content)
        overwritten[len(content) // 2 : len(content) // 2 + 20_000] = bytes(20_000)
        files[f"zeros {path.stem}"] = tmp_path / f"zeros {path.name}"
        files[f"zeros {path.stem}"].write_bytes(overwritten)
    report = run(files, tmp_path / "a.h5", settings=replace(QUICK, batch_size=32, on_error="skip"))
    names = [path.stem for path in whole]
    with open_archive(tmp_path / "a.h5") as archive:
        rows = dict(zip(archive.ids, archive.lengths.tolist(), strict=True))
        assert list(archive.verify()) == []
    assert [rows[name] for name in names] == [20, 34, 37, 9, 90, 42]
    assert not set(names) & {*report.remarks, *report.skipped}
    listed = {*report.remarks, *report.skipped}
    assert {name for name in files if name.startswith("cut ")} - listed <= {"cut grid_s1_bbaf2n"}  # has no count
    assert {name for name in files if name.startswith("zeros ")} <= listed
    for name in names:
        assert rows.get(f"cut {name}", 0) < rows[name]
