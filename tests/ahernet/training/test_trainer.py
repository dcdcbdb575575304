import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

from ahernet.checkpoint import load_checkpoint
from ahernet.config import PRESETS, Config, config_from_dict
from ahernet.data.annotations import Annotations, VideoAnnotations, write_annotations
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError
from ahernet.evaluation.average_precision import average_precision
from ahernet.inference import localize
from ahernet.training import supervised
from ahernet.training.loss_log import read_loss_log
from ahernet.training.supervised import learning_rate, train

DIMENSION = 8
SMALL = {
    "preset": "tiny",
    "model": {"width": 1 / 256, "minimum_channels": 4, "steps": 128},
    "training": {"batch_size": 4, "iterations": 20, "checkpoint_every": 6, "decay_every": 7},
}


def _config(**training):
    config = config_from_dict(SMALL)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def _write_world(folder, videos=8, seed=0):
    """Videos of noise in which each class adds a pattern of its own; about a second per two rows."""
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(3, DIMENSION)) * 1.5
    truth = {}
    with ArchiveWriter(folder / "features.h5", dimension=DIMENSION) as writer:
        for k in range(videos):
            length = int(rng.integers(100, 200))
            features = rng.normal(size=(length, DIMENSION)) * 0.3
            start, label = int(rng.integers(5, 50)), int(rng.integers(3))
            end = start + int(rng.integers(20, 45))
            features[start:end] += patterns[label]
            writer.add(f"v{k}", features, length / 2)
            truth[f"v{k}"] = VideoAnnotations(
                f"v{k}", "training", length / 2, np.array([[start / 2, end / 2]]), (f"class{label}",)
            )
    annotations = Annotations(truth, "world")
    write_annotations(folder / "truth.json", annotations)
    return annotations


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    annotations = _write_world(folder)
    with open_archive(folder / "features.h5") as archive:
        yield archive, annotations


def _train(world, folder, config, **options):
    return train(*world, folder, config, device="cpu", progress=False, **options)


def _same_weights(one, other):
    a, b = load_checkpoint(one).model.state_dict(), load_checkpoint(other).model.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_network_overfits_a_handful_of_videos(world, tmp_path):
    archive, annotations = world
    config = config_from_dict({"preset": "tiny", "training": {"iterations": 150, "batch_size": 8, "decay_every": 110}})
    _train(world, tmp_path, config)
    detections = localize(archive, load_checkpoint(tmp_path), device="cpu", progress=False)
    assert average_precision(detections, annotations).mean > 0.95


def test_training_in_bfloat16_works_and_keeps_float32_weights(world, tmp_path):
    _train(world, tmp_path, _config(iterations=3, precision="bfloat16"))
    assert load_checkpoint(tmp_path).model.backbone.stem[0].weight.dtype == torch.float32
    assert all(np.isfinite(entry["total"]) for entry in read_loss_log(tmp_path / "losses.jsonl"))


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(world, tmp_path):
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    _train(world, straight, _config(iterations=20))
    _train(world, halves, _config(iterations=10))
    assert not _same_weights(straight, halves)
    result = _train(world, halves, _config(iterations=20), resume=True)
    assert result.iterations == 20
    assert _same_weights(straight, halves)
    assert read_loss_log(straight / "losses.jsonl") == read_loss_log(halves / "losses.jsonl")


def test_the_folder_of_a_run_holds_checkpoint_log_and_picture(world, tmp_path):
    result = _train(world, tmp_path / "run", _config())
    assert (result.folder, result.iterations) == (tmp_path / "run", 20)
    checkpoint = load_checkpoint(result.folder)
    assert checkpoint.config.model.feature_dimension == DIMENSION
    assert checkpoint.classes == world[1].classes()
    entries = read_loss_log(result.folder / "losses.jsonl")
    assert [entry["iteration"] for entry in entries] == list(range(1, 21))
    weights = _config().loss
    for entry in entries:
        total = entry["classification"] * weights.classification + entry["offset"] * weights.offset
        assert entry["total"] == pytest.approx(total + entry["overlap"] * weights.overlap, rel=1e-5)
    assert (result.folder / "losses.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(result.folder.glob(".*"))


def test_the_seed_decides_the_run(world, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(7)  # the state of torch's own generator does not matter
        _train(world, tmp_path / name, _config(iterations=3, seed=seed))
    assert _same_weights(tmp_path / "a", tmp_path / "b")
    assert not _same_weights(tmp_path / "a", tmp_path / "c")


def test_training_leaves_the_generator_of_torch_alone(world, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _train(world, tmp_path, _config(iterations=1))
    assert torch.equal(torch.rand(3), expected)


def test_the_learning_rate_decays_in_steps():
    config = Config().training
    assert learning_rate(config, 0) == learning_rate(config, 4_999) == 1e-4
    assert learning_rate(config, 5_000) == pytest.approx(1e-5)
    assert learning_rate(config, 14_999) == pytest.approx(1e-6)


def test_the_log_records_the_learning_rate_that_was_used(world, tmp_path):
    _train(world, tmp_path, _config(iterations=8))
    rates = [entry["learning_rate"] for entry in read_loss_log(tmp_path / "losses.jsonl")]
    base = PRESETS["tiny"].training.learning_rate
    assert rates == pytest.approx([base] * 7 + [base / 10])


def test_a_folder_that_holds_a_run_is_not_overwritten(world, tmp_path):
    _train(world, tmp_path, _config(iterations=2))
    with pytest.raises(UserError, match="holds a run already, give another folder or resume it"):
        _train(world, tmp_path, _config(iterations=2))


def test_resuming_where_nothing_is_starts_anew(world, tmp_path):
    assert _train(world, tmp_path / "new", _config(iterations=2), resume=True).iterations == 2


def test_resuming_a_finished_run_changes_nothing(world, tmp_path):
    _train(world, tmp_path, _config(iterations=4))
    before = (tmp_path / "losses.jsonl").read_text()
    assert _train(world, tmp_path, _config(iterations=4), resume=True).iterations == 4
    assert (tmp_path / "losses.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"learning_rate": 0.5}}, r"the run to resume has training\.learning_rate = 0\.002"),
        ({"model": {"transfer_layers": 1}}, r"model\.transfer_layers = 2, the settings say 1"),
        ({"training": {"iterations": 1}}, "training.iterations: expected at least 2, where the run to resume is"),
    ],
)
def test_resuming_with_other_settings_is_refused(world, tmp_path, changes, words):
    _train(world, tmp_path, _config(iterations=2))
    data = {key: SMALL.get(key, {}) for key in ("model", "training")}
    data = {key: {**value, **changes.get(key, {})} for key, value in data.items()}
    with pytest.raises(UserError, match=words):
        _train(world, tmp_path, config_from_dict({"preset": "tiny", **data}), resume=True)


def test_resuming_with_other_videos_is_refused(world, tmp_path):
    archive, annotations = world
    _train(world, tmp_path, _config(iterations=2))
    fewer = Annotations(dict(list(annotations.videos.items())[:5]), "fewer")
    with pytest.raises(UserError, match="trained on other videos, segments or classes"):
        _train((archive, fewer), tmp_path, _config(), classes=annotations.classes(), resume=True)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half a zip"])
def test_a_damaged_training_state_is_named(world, tmp_path, content):
    (tmp_path / "training_state.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"training_state\.pt: truncated or not a training state"):
        _train(world, tmp_path, _config(), resume=True)


def test_a_training_state_with_code_in_it_is_not_run(world, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": Evil()}, tmp_path / "training_state.pt")
    with pytest.raises(UserError, match="truncated or not a training state"):
        _train(world, tmp_path, _config(), resume=True)
    assert not (tmp_path / "executed").exists()


def test_a_foreign_training_state_is_refused(world, tmp_path):
    torch.save({"step": 3}, tmp_path / "training_state.pt")
    with pytest.raises(UserError, match="not a training state of this version"):
        _train(world, tmp_path, _config(), resume=True)


def test_lines_of_the_log_after_the_last_checkpoint_are_dropped(world, tmp_path):
    _train(world, tmp_path, _config(iterations=6))
    log = tmp_path / "losses.jsonl"
    whole = log.read_text()
    log.write_text(whole + json.dumps({"iteration": 7, "total": 1.0}) + '\n{"iteration": 8, "to')
    _train(world, tmp_path, _config(iterations=9), resume=True)
    assert log.read_text().startswith(whole)
    assert [entry["iteration"] for entry in read_loss_log(log)] == list(range(1, 10))


def test_an_interrupt_saves_the_iteration_at_hand_and_the_run_can_go_on(world, tmp_path, monkeypatch):
    step = supervised._step

    def interrupted(run, batch, iteration):
        if iteration == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run, batch, iteration)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(supervised, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after iteration 9; .* can be resumed"):
        _train(world, tmp_path / "run", _config())
    assert signal.getsignal(signal.SIGINT) is before
    assert not [t for t in threading.enumerate() if t.name.startswith("ahernet-read")]
    assert len(read_loss_log(tmp_path / "run" / "losses.jsonl")) == 9
    monkeypatch.undo()
    _train(world, tmp_path / "run", _config(), resume=True)
    _train(world, tmp_path / "straight", _config())
    assert _same_weights(tmp_path / "run", tmp_path / "straight")


def test_a_killed_run_can_be_resumed_to_the_same_end(world, tmp_path):
    archive, _ = world
    config = json.dumps(SMALL | {"training": SMALL["training"] | {"iterations": 10**6}})
    script = f"""
        import json
        from pathlib import Path
        from ahernet.config import config_from_dict
        from ahernet.data.annotations import read_annotations
        from ahernet.data.archive import open_archive
        from ahernet.training.supervised import train
        archive = open_archive(Path({str(archive.path)!r}))
        annotations = read_annotations(Path({str(archive.path.parent / "truth.json")!r}))
        config = config_from_dict(json.loads({config!r}))
        train(archive, annotations, Path({str(tmp_path / "killed")!r}), config, device="cpu", progress=False)
    """
    state = tmp_path / "killed" / "training_state.pt"
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        deadline = time.monotonic() + 60
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        process.kill()
        process.wait()
    reached = torch.load(state, weights_only=True)["iteration"]
    assert reached >= 6
    end = reached + 3
    _train(world, tmp_path / "killed", _config(iterations=end), resume=True)
    _train(world, tmp_path / "straight", _config(iterations=end))
    assert _same_weights(tmp_path / "killed", tmp_path / "straight")
    assert len(read_loss_log(tmp_path / "killed" / "losses.jsonl")) == end


def test_training_works_outside_the_main_thread(world, tmp_path):
    thread = threading.Thread(target=_train, args=(world, tmp_path, _config(iterations=2)))
    thread.start()
    thread.join()
    assert load_checkpoint(tmp_path).classes


def test_a_loss_that_is_not_finite_names_iteration_and_videos(world, tmp_path):
    config = _config(learning_rate=10.0, gradient_clip=0.0, decay_every=1000, iterations=500, checkpoint_every=500)
    with pytest.raises(
        UserError, match=r"loss not finite at iteration \d+ \(total .*\): videos 'v\d', 'v\d', 'v\d', 'v\d';"
    ):
        _train(world, tmp_path, config)


def test_features_that_are_not_finite_are_named_as_the_cause(world, tmp_path, monkeypatch):
    archive, _ = world
    read = type(archive).read

    def broken_read(self, positions):
        rows, offsets = read(self, positions)
        for k, position in enumerate(positions):
            if position == 5:
                rows[offsets[k], 2] = np.nan
        return rows, offsets

    monkeypatch.setattr(type(archive), "read", broken_read)
    with pytest.raises(UserError, match=r"not finite at iteration [12] .*: features that are not finite in 'v5'$"):
        _train(world, tmp_path, _config())


def test_another_feature_dimension_is_refused(world, tmp_path):
    with pytest.raises(UserError, match=r"features\.h5: features have 8 values a row, .* says 2048"):
        _train(world, tmp_path / "run", Config())
    assert not (tmp_path / "run").exists()


def test_an_unknown_subset_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="no video of subset 'testing', it has training"):
        _train(world, tmp_path, _config(), subset="testing")


def test_progress_shows_what_is_used_the_losses_and_the_speed(world, tmp_path, capsys):
    train(*world, tmp_path, _config(), device="cpu")
    shown = capsys.readouterr().err
    assert "trains on 8 segments in 8 of 8 videos" in shown
    assert "20/20" in shown
    assert "classification=" in shown
    assert "it/s" in shown
