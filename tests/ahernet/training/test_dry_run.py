"""What `ahernet train --dry-run` says, and that it leaves nothing behind."""

import numpy as np
import pytest
import torch
from training_worlds import BASE, PHASES, data_of, small_config

from ahernet.cli import main
from ahernet.errors import UserError
from ahernet.training import dry_run as module
from ahernet.training.dry_run import Estimate, PhaseEstimate, dry_run
from ahernet.training.iteration_batches import read_iteration
from ahernet.training.loss_log import LOG_NAME
from ahernet.training.training_state import STATE_NAME


def _estimate(world, folder, config):
    moments = {"moments": world.moments, "moment_labels": world.novel_labels} if config.method.moments != "none" else {}
    return dry_run(world.archive, world.annotations, folder, config, classes=BASE, device="cpu", **moments)


@pytest.fixture(scope="module")
def estimate(world, tmp_path_factory):
    return _estimate(world, tmp_path_factory.mktemp("dry") / "not" / "there", small_config("aher", **PHASES))


def test_disk_is_what_the_run_takes(finished, estimate):
    """`finished` is a run of the same settings."""
    assert estimate.state_bytes == pytest.approx((finished / STATE_NAME).stat().st_size, rel=0.02)
    assert estimate.log_bytes == pytest.approx((finished / LOG_NAME).stat().st_size, rel=0.1)
    weights = next(finished.glob("weights-*.safetensors"))
    described = 14_000  # a header that names every tensor, which counts in a network as small as this
    assert 0 < weights.stat().st_size - estimate.checkpoint_bytes < described


def test_every_phase_is_tried_and_counts_for_its_iterations(estimate):
    assert [(item.phase, item.iterations) for item in estimate.phases] == [
        ("localizer", 3),
        ("generators", 3),
        ("main", 4),
    ]
    assert [item.tried for item in estimate.phases] == [1, 1, 2]  # all but two of each
    assert estimate.iterations == 10
    assert estimate.seconds == pytest.approx(sum(item.iterations * item.seconds for item in estimate.phases))
    assert all(item.seconds > 0 for item in estimate.phases)


def test_reading_counts_the_rows_of_videos_moments_and_their_neighbours(world, estimate):
    config = small_config("aher", **PHASES)
    data = data_of(world, config)
    lengths = dict(zip(world.archive.ids, world.archive.lengths.tolist(), strict=True))
    lengths |= zip(world.moments.ids, world.moments.lengths.tolist(), strict=True)
    rows = []
    for iteration in range(estimate.iterations):
        batch = read_iteration(data.untrimmed, data.moments, config, iteration)
        parts = (part for part in (batch.untrimmed, batch.moments, batch.neighbours) if part is not None)
        rows.append(sum(lengths[name] for part in parts for name in part.video_ids))
    assert batch.neighbours is not None
    assert estimate.read_bytes == pytest.approx(
        np.mean(rows) * world.archive.dimension * world.archive.dtype.itemsize, abs=1
    )
    assert estimate.read_rate > 0
    assert estimate.gpu_bytes is None


def test_only_a_few_iterations_of_a_long_phase_are_tried(world, tmp_path, monkeypatch):
    seen = []
    step = module.train_within_memory

    def watched(run, parts, iteration, read):
        seen.append(iteration)
        return step(run, parts, iteration, read)

    monkeypatch.setattr(module, "train_within_memory", watched)
    config = small_config("aher*", training={"iterations": 10**6})
    assert _estimate(world, tmp_path, config).phases[0].iterations == 10**6
    assert seen == list(range(module.WARM_UP + module.TIMED))
    seen.clear()
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    assert _estimate(world, tmp_path, config).phases[0].tried == 1
    assert seen == list(range(module.WARM_UP + 1))


def test_nothing_is_written_and_torch_is_left_alone(world, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    folder = tmp_path / "there"
    folder.mkdir()
    _estimate(world, folder, small_config("aher*", training={"iterations": 3}))
    assert list(tmp_path.iterdir()) == [folder]
    assert not list(folder.iterdir())
    assert torch.equal(torch.rand(3), expected)


def test_what_training_would_refuse_is_refused(world, tmp_path):
    with pytest.raises(UserError, match=r"method\.moments: localized, but no moments with labels are given"):
        dry_run(world.archive, world.annotations, tmp_path, small_config("aher"), device="cpu")


def test_the_command_prints_one_table_and_touches_nothing(world, finished, tmp_path, capsys):
    place = world.archive.path.parent
    kept = {path.name: path.read_bytes() for path in finished.iterdir()}
    arguments = [place / "features.h5", place / "truth.json", "--out", finished, "--preset", "tiny", "--dry-run"]
    sizes = ["--model.steps", "64", "--training.batch_size", "2", "--training.iterations", "3", "--device", "cpu"]
    assert main([*map(str, ["train", *arguments]), *sizes]) == 0
    table = capsys.readouterr().out
    for words in ("trains on 13 segments in 8 of 8 videos", "1 x cpu, 2 videos", "main", "memory", "disk", "reading"):
        assert words in table
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == kept


def test_the_table_adds_up():
    phases = (PhaseEstimate("localizer", 5_000, 8, 0.1, 100), PhaseEstimate("main", 15_000, 8, 0.5, 200))
    table = Estimate(
        "trains on much",
        16,
        2,
        "cuda:0",
        phases,
        3_210_000_000,
        45_600_000_000,
        50_000_000,
        150_000_000,
        7 * 10**12,
        1_000_000,
        2.5e9,
    ).describe()
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0] == "trains on much"
    assert "localizer 5,000 0.1000 8 min 20 s" in lines
    assert "main 15,000 0.5000 2 h 5 min" in lines
    assert "all 20,000 0.4000 2 h 13 min" in lines
    assert "memory 3.21 GB a process at the peak so far, 45.6 GB of tensors on the GPU" in lines
    assert "204 MB: checkpoint 50 MB, training state 150 MB, loss log 3.5 MB; 354 MB while" in table
    assert "1 MB an iteration of main a process, 2.5 GB/s where nothing else is done, 2 MB/s needed" in table


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (999_999, "1 MB"), (5 * 10**15, "5 PB")],
)
def test_sizes_are_written_in_the_largest_unit(count, words):
    assert module._size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (59.96, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_are_written_in_their_two_largest_units(seconds, words):
    assert module._time(seconds) == words
