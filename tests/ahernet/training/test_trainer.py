import dataclasses
import json
import os
import signal
import threading
import zipfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from training_worlds import BASE, DIMENSION, PHASES, same_states, same_weights, small_config, train_in

from ahernet.checkpoint import load_checkpoint
from ahernet.config import PRESETS, Config
from ahernet.data.annotations import Annotations
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError
from ahernet.training import take_steps, trainer
from ahernet.training.iteration_batches import phase_of, read_iteration
from ahernet.training.loss_log import draw_loss_curve, read_loss_log
from ahernet.training.steps import step_losses
from ahernet.training.trainer import learning_rate
from ahernet.training.training_data import build_training_data
from ahernet.training.training_state import start_or_resume


def _config(run="aher*", **training):
    return small_config(run, training=training)


# --- resuming ---------------------------------------------------------------------------------------------------


def _train_until(world, folder, config, iteration, monkeypatch, **options):
    """Train until a signal comes during some iteration."""
    step = trainer.train_iteration

    def interrupted(run, batch, number):
        if number == iteration:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run, batch, number)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "train_iteration", interrupted)
        with pytest.raises(KeyboardInterrupt, match=rf"stopped after iteration {iteration + 1}; .* can be resumed"):
            train_in(world, folder, config, **options)


def test_a_run_stopped_in_any_phase_goes_on_bit_for_bit(world, tmp_path, monkeypatch):
    config = small_config("aher", **PHASES | {"training": {"iterations": 4, "average": 0.9}})
    train_in(world, tmp_path / "straight", config)
    for phase, iteration in {"localizer": 1, "generators": 4, "main": 8}.items():
        assert phase_of(config.method, iteration) == phase
        _train_until(world, tmp_path / phase, config, iteration, monkeypatch)
        assert not same_states(tmp_path / phase, tmp_path / "straight")
        assert len(read_loss_log(tmp_path / phase / "losses.jsonl")) == iteration + 1
        load_checkpoint(tmp_path / phase)
        assert train_in(world, tmp_path / phase, config, resume=True).iterations == 10
        assert same_weights(tmp_path / phase, tmp_path / "straight")
        assert same_states(tmp_path / phase, tmp_path / "straight")
        logs = [read_loss_log(tmp_path / name / "losses.jsonl") for name in (phase, "straight")]
        assert logs[0] == logs[1]


def test_a_run_stopped_again_and_again_goes_on_bit_for_bit(world, tmp_path, finished, monkeypatch):
    config = small_config("aher", **PHASES)
    for iteration in (2, 5, 6):  # the last of each pre-training, and the first of the main ones
        _train_until(world, tmp_path, config, iteration, monkeypatch, resume=True)
    train_in(world, tmp_path, config, resume=True)
    assert same_states(tmp_path, finished)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"method": {**PHASES["method"], "maximum_share": 0.8}}, {}),
        ({"method": {**PHASES["method"], "context_iterations": 4}}, {}),
        ({"loss": {"generator": 0.3}}, {}),
        ({"training": {"iterations": 4, "average": 0.5}}, {}),
        ({}, {"moment_labels": {"v0_002": "novel0", "v2_001": "novel1"}}),
    ],
)
def test_resuming_with_another_method_or_other_moments_is_refused(world, finished, changes, options):
    with pytest.raises(UserError, match=r"the run to resume (has|learnt from)"):
        train_in(world, finished, small_config("aher", **PHASES | changes), resume=True, **options)


# --- what is missing, or too much -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "options", "words"),
    [
        ("aher", {"moments": None, "moment_labels": None}, r"method\.moments: localized, but no moments with labels"),
        ("aher", {"moment_labels": None}, r"method\.moments: localized, but no moments with labels"),
        ("aher", {"moment_labels": {"elsewhere": "novel0"}}, r"moments\.h5: has none of the 1 labelled moments"),
        ("aher*", {"moments": ..., "moment_labels": ...}, r"method\.moments: none, but moments are given"),
    ],
)
def test_moments_that_are_missing_or_of_no_use_are_refused_before_anything_is_written(
    world, tmp_path, run, options, words
):
    given = {"moments": world.moments, "moment_labels": world.novel_labels}
    options = {name: given[name] if value is ... else value for name, value in options.items()}
    with pytest.raises(UserError, match=words):
        train_in(world, tmp_path / "run", _config(run), **options)
    assert not (tmp_path / "run").exists()


def test_moments_of_another_dimension_are_refused(world, tmp_path):
    with ArchiveWriter(tmp_path / "wide.h5", dimension=DIMENSION + 1) as writer:
        writer.add("m", np.zeros((3, DIMENSION + 1)))
    with (
        open_archive(tmp_path / "wide.h5") as wide,
        pytest.raises(UserError, match=r"wide\.h5: moments have 9 values a row, untrimmed videos 8"),
    ):
        train_in(world, tmp_path / "run", _config("aher"), moments=wide, moment_labels={"m": "novel0"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("archive", "broken"), [("archive", "v1"), ("moments", "v6_000")])
def test_features_that_are_not_finite_are_named_with_their_archive(world, tmp_path, monkeypatch, archive, broken):
    read, of_archive = type(world.archive).read, getattr(world, archive)

    def broken_read(self, positions):
        rows, offsets = read(self, positions)
        for k, position in enumerate(positions):
            if self is of_archive and self.ids[position] == broken:
                rows[offsets[k]] = np.nan
        return rows, offsets

    monkeypatch.setattr(type(world.archive), "read", broken_read)
    with pytest.raises(UserError, match=rf"^{of_archive.path}: .*features that are not finite in '{broken}'"):
        train_in(world, tmp_path, _config("aher"))


# --- settings of the optimization -------------------------------------------------------------------------------


def _state(world, folder, config):
    moments = () if config.method.moments == "none" else (world.moments, world.novel_labels)
    data = build_training_data(world.archive, world.annotations, BASE, *(moments or (None, None)), config.method)
    return start_or_resume(folder, config, data, torch.device("cpu"), resume=False), data


def _moved(world, folder, config, iteration):
    """How far the first step of Adam takes each part: the learning rate, where there is a gradient."""
    run, data = _state(world, folder, config)
    before = deepcopy(run.networks)
    trainer.train_iteration(run, [read_iteration(data.untrimmed, data.moments, config, iteration)], iteration)
    return {
        part: max(
            (a - b).abs().max().item()
            for a, b in zip(run.networks.part(part).parameters(), before.part(part).parameters(), strict=True)
        )
        for part in ("backbone", "segment_classifier", "transfer", "heads", "generators", "discriminators")
    }


def test_each_part_learns_at_its_rate(world, tmp_path):
    rates = {"learning_rate": 0.01, "classifier_rate": 0.3, "transfer_rate": 0.2, "adversarial_rate": 0.1}
    config = small_config("aher", **PHASES | {"training": {"iterations": 4, **rates}})
    localizer = {"backbone": 1.0, "segment_classifier": 0.3, "transfer": 0.2, "heads": 1.0}
    nothing = dict.fromkeys([*localizer, "generators", "discriminators"], 0.0)
    for iteration, expected in (
        (0, {**nothing, **localizer}),
        (3, {**nothing, "generators": 1.0}),
        (6, {**localizer, "generators": 0.1, "discriminators": 0.1}),
    ):
        moved = _moved(world, tmp_path, config, iteration)
        assert moved == {part: pytest.approx(0.01 * factor, rel=1e-3) for part, factor in expected.items()}


def test_gradients_of_every_network_are_clipped(world, tmp_path, monkeypatch):
    config = small_config("aher", method={"context_iterations": 0}, training={"gradient_clip": 1e-3})
    run, data = _state(world, tmp_path, config)
    monkeypatch.setattr(run.optimizer, "step", lambda: None)
    trainer.train_iteration(run, [read_iteration(data.untrimmed, data.moments, config, 0)], 0)
    for network in run.networks.children():
        norm = torch.stack([parameter.grad.norm() for parameter in network.parameters()]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_decays_in_the_main_iterations_only():
    config = small_config("aher", method={"pretrain_iterations": 20, "context_iterations": 10})
    rates = [learning_rate(config, k) / config.training.learning_rate for k in (0, 29, 30, 36, 37, 44)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.01])


def test_the_checkpoint_holds_the_average_of_the_parameters(world, tmp_path):
    """Of what every iteration leaves, weighted by w^k after k more; the initial parameters have no part in it."""
    weight = 0.7
    config = small_config("aher", **PHASES | {"training": {"iterations": 2}})
    seen = []
    step = trainer.train_iteration
    with pytest.MonkeyPatch.context() as patched:

        def watched(run, batch, iteration):
            terms = step(run, batch, iteration)
            seen.append({name: x.detach().clone() for name, x in run.networks.localizer.named_parameters()})
            return terms

        patched.setattr(trainer, "train_iteration", watched)
        averaged = dataclasses.replace(config, training=dataclasses.replace(config.training, average=weight))
        train_in(world, tmp_path / "averaged", averaged)
    weights = [weight**k for k in reversed(range(len(seen)))]
    for name, found in load_checkpoint(tmp_path / "averaged").model.named_parameters():
        summed = sum(w * parameters[name] for w, parameters in zip(weights, seen, strict=True))
        torch.testing.assert_close(found, summed / sum(weights))
    # The network that is trained is not the average.
    train_in(world, tmp_path / "plain", config)
    states = [torch.load(tmp_path / name / "training_state.pt", weights_only=True) for name in ("averaged", "plain")]
    assert all(torch.equal(states[0]["networks"][name], states[1]["networks"][name]) for name in states[0]["networks"])
    assert not same_weights(tmp_path / "averaged", tmp_path / "plain")


@pytest.fixture
def torch_flags():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.usefixtures("torch_flags")
@pytest.mark.parametrize(("before", "warn_only"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_algorithms_are_used_while_training_alone(
    world, tmp_path, monkeypatch, before, warn_only, wanted
):
    seen = []

    def watched(*arguments):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return step_losses(*arguments)

    monkeypatch.setattr(take_steps, "step_losses", watched)
    torch.use_deterministic_algorithms(before, warn_only=warn_only)
    train_in(world, tmp_path, _config(iterations=1, deterministic=wanted))
    assert seen == [before or wanted]
    assert torch.are_deterministic_algorithms_enabled() == before
    assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only


@pytest.mark.usefixtures("torch_flags")
def test_a_run_that_fails_leaves_the_flag_as_it_was(world, tmp_path):
    config = _config(learning_rate=10.0, gradient_clip=0.0, iterations=200, deterministic=True)
    with pytest.raises(UserError, match="not finite"):
        train_in(world, tmp_path, config)
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_training_gives_the_same_networks(world, tmp_path):
    for name in ("one", "other"):
        train_in(
            world,
            tmp_path / name,
            small_config("aher", **PHASES | {"training": {"iterations": 4, "deterministic": True}}),
        )
    assert same_states(tmp_path / "one", tmp_path / "other")


@pytest.mark.usefixtures("torch_flags")
@pytest.mark.parametrize("given", [None, ":4096:8", ":16:8"])
def test_cublas_gets_a_workspace_with_which_it_repeats_its_results(monkeypatch, given):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: given is not None)
    _set_workspace(monkeypatch, given)
    with trainer._deterministic_algorithms(True, torch.device("cuda")):
        assert os.environ[trainer.WORKSPACE] == (given or ":4096:8")


@pytest.mark.parametrize(("given", "started"), [(None, True), (":4096:2:16:8", False)])
def test_a_gpu_that_cannot_repeat_its_results_any_more_is_refused(monkeypatch, given, started):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    _set_workspace(monkeypatch, given)
    with (
        pytest.raises(UserError, match=r"^training\.deterministic: .*CUBLAS_WORKSPACE_CONFIG .* to :4096:8 before"),
        trainer._deterministic_algorithms(True, torch.device("cuda")),
    ):
        pass
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ.get(trainer.WORKSPACE) == given


@pytest.mark.parametrize(("wanted", "device"), [(False, "cuda"), (True, "cpu")])
def test_the_environment_stays_as_it_is_where_cublas_does_not_matter(monkeypatch, wanted, device):
    _set_workspace(monkeypatch, None)
    with trainer._deterministic_algorithms(wanted, torch.device(device)):
        assert trainer.WORKSPACE not in os.environ


def _set_workspace(monkeypatch, given):
    monkeypatch.setenv(trainer.WORKSPACE, given or "")  # so that it is restored afterwards
    if given is None:
        monkeypatch.delenv(trainer.WORKSPACE)


# --- runs as files ----------------------------------------------------------------------------------------------


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(world, tmp_path):
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    train_in(world, straight, _config(iterations=20))
    train_in(world, halves, _config(iterations=10))
    assert not same_weights(straight, halves)
    result = train_in(world, halves, _config(iterations=20), resume=True)
    assert result.iterations == 20
    assert same_weights(straight, halves)
    assert read_loss_log(straight / "losses.jsonl") == read_loss_log(halves / "losses.jsonl")


def test_the_folder_of_a_run_holds_checkpoint_log_and_picture(world, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "draw_loss_curve", draw_loss_curve)
    config = small_config("aher*", model={"feature_dimension": 0})  # takes the archive's
    result = train_in(world, tmp_path / "run", config)
    assert (result.folder, result.iterations) == (tmp_path / "run", 20)
    checkpoint = load_checkpoint(result.folder)
    assert checkpoint.config.model.feature_dimension == DIMENSION
    assert checkpoint.classes == BASE
    entries = read_loss_log(result.folder / "losses.jsonl")
    assert [entry["iteration"] for entry in entries] == list(range(1, 21))
    weights = _config().loss
    for entry in entries:
        total = entry["classification"] * weights.classification + entry["offset"] * weights.offset
        total += entry["overlap"] * weights.overlap + entry["foreground_class"] * weights.segment
        assert entry["total"] == pytest.approx(total, rel=1e-5)
    assert (result.folder / "losses.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(result.folder.glob(".*"))


def test_the_seed_decides_the_run(world, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(7)  # the state of torch's own generator does not matter
        train_in(world, tmp_path / name, _config(iterations=3, seed=seed))
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_training_leaves_the_generator_of_torch_alone(world, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_in(world, tmp_path, _config(iterations=1))
    assert torch.equal(torch.rand(3), expected)


def test_the_learning_rate_decays_in_steps():
    config = Config()
    assert learning_rate(config, 0) == learning_rate(config, 4_999) == 1e-4
    assert learning_rate(config, 5_000) == pytest.approx(1e-5)
    assert learning_rate(config, 14_999) == pytest.approx(1e-6)


def test_the_log_records_the_learning_rate_that_was_used(world, tmp_path):
    train_in(world, tmp_path, _config(iterations=8))
    rates = [entry["learning_rate"] for entry in read_loss_log(tmp_path / "losses.jsonl")]
    base = PRESETS["tiny"].training.learning_rate
    assert rates == pytest.approx([base] * 7 + [base / 10])


def test_a_folder_that_holds_a_run_is_not_overwritten(world, tmp_path):
    train_in(world, tmp_path, _config(iterations=2))
    with pytest.raises(UserError, match="holds a run already, give another folder or resume it"):
        train_in(world, tmp_path, _config(iterations=2))


def test_resuming_where_nothing_is_starts_anew(world, tmp_path):
    assert train_in(world, tmp_path / "new", _config(iterations=2), resume=True).iterations == 2


def test_resuming_a_finished_run_changes_nothing(world, tmp_path):
    train_in(world, tmp_path, _config(iterations=4))
    before = (tmp_path / "losses.jsonl").read_text()
    assert train_in(world, tmp_path, _config(iterations=4), resume=True).iterations == 4
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
    train_in(world, tmp_path, _config(iterations=2))
    with pytest.raises(UserError, match=words):
        train_in(world, tmp_path, small_config("aher*", **changes), resume=True)


def test_resuming_with_other_videos_is_refused(world, tmp_path):
    train_in(world, tmp_path, _config(iterations=2))
    fewer = Annotations(dict(list(world.annotations.videos.items())[:5]), "fewer")
    with pytest.raises(UserError, match="learnt from other videos, features, segments, moments or classes"):
        train_in(world, tmp_path, _config(), annotations=fewer, resume=True)


@pytest.mark.parametrize("archive", ["archive", "moments"])
def test_resuming_with_other_features_of_the_same_videos_is_refused(world, tmp_path, monkeypatch, archive):
    train_in(world, tmp_path, small_config("aher", training={"iterations": 2}))
    features = getattr(world, archive)
    monkeypatch.setattr(features, "checksums", features.checksums ^ 1)
    with pytest.raises(UserError, match="learnt from other videos, features, segments, moments or classes"):
        train_in(world, tmp_path, small_config("aher", training={"iterations": 4}), resume=True)


def test_the_loss_log_is_on_the_disk_before_the_state_that_follows_it(world, tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def note(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        sync(descriptor)

    monkeypatch.setattr("os.fsync", note)
    train_in(world, tmp_path, _config(iterations=2))
    last = max(k for k, name in enumerate(synced) if name.startswith(".training_state"))
    assert "losses.jsonl" in synced[:last]


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half a zip"])
def test_a_damaged_training_state_is_named(world, tmp_path, content):
    (tmp_path / "training_state.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"training_state\.pt: truncated or not a training state"):
        train_in(world, tmp_path, _config(), resume=True)


def test_a_training_state_with_a_flipped_bit_is_not_trained_on(world, tmp_path):
    train_in(world, tmp_path, _config(iterations=2))
    path = tmp_path / "training_state.pt"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        number = archive.read(largest)[:16]
    content = bytearray(path.read_bytes())
    content[content.index(number) + 3] ^= 0x40  # an exponent
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"training_state\.pt: member .* is damaged"):
        train_in(world, tmp_path, _config(iterations=4), resume=True)


def test_a_training_state_with_code_in_it_is_not_run(world, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": Evil()}, tmp_path / "training_state.pt")
    with pytest.raises(UserError, match=r"not a training state \(it asks for posix\.mkdir, which could run code\)"):
        train_in(world, tmp_path, _config(), resume=True)
    assert not (tmp_path / "executed").exists()


def test_a_foreign_training_state_is_refused(world, tmp_path):
    torch.save({"step": 3}, tmp_path / "training_state.pt")
    with pytest.raises(UserError, match="not a training state of this version"):
        train_in(world, tmp_path, _config(), resume=True)


def _spoil_iteration(state):
    state["iteration"] = -5


def _spoil_iteration_kind(state):
    state["iteration"] = 1.5


def _shrink_average(state):
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)


def _spread_average(state):
    kept = state["optimizer"]["state"][0]
    kept["exp_avg"] = torch.zeros(1).expand(kept["exp_avg"].numel(), 1)


def _drop_average(state):
    del state["optimizer"]["state"][0]["exp_avg_sq"]


def _add_parameter(state):
    state["optimizer"]["state"][10**6] = state["optimizer"]["state"][0]


def _spoil_steps(state):
    state["optimizer"]["state"][0]["step"] = torch.tensor(float("nan"))


def _spoil_average_kind(state):
    state["optimizer"]["state"][0]["exp_avg"] = [0.0]


@pytest.mark.parametrize(
    "damage",
    [
        _spoil_iteration,
        _spoil_iteration_kind,
        _shrink_average,
        _spread_average,
        _drop_average,
        _add_parameter,
        _spoil_steps,
        _spoil_average_kind,
    ],
)
def test_a_training_state_of_wrong_values_is_refused_before_it_is_used(world, tmp_path, damage):
    train_in(world, tmp_path, _config(iterations=2))
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    damage(state)
    torch.save(state, tmp_path / "training_state.pt")
    with pytest.raises(UserError, match=r"training_state\.pt: damaged training state"):
        train_in(world, tmp_path, _config(iterations=3), resume=True)


def test_settings_of_the_optimizer_are_those_of_the_run_and_not_of_the_file(world, tmp_path):
    for name in ("untouched", "changed"):
        train_in(world, tmp_path / name, _config(iterations=2))
    path = tmp_path / "changed" / "training_state.pt"
    state = torch.load(path, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group["betas"], group["weight_decay"] = (0.0, 0.0), 9.0
    torch.save(state, path)
    for name in ("untouched", "changed"):
        train_in(world, tmp_path / name, _config(iterations=4), resume=True)
    assert same_weights(tmp_path / "untouched", tmp_path / "changed")


def test_a_checkpoint_without_a_training_state_is_not_overwritten_by_resuming(world, tmp_path):
    train_in(world, tmp_path, _config(iterations=2))
    (tmp_path / "training_state.pt").unlink()
    before = (tmp_path / "checkpoint.json").read_bytes()
    with pytest.raises(UserError, match=r"holds a checkpoint but no training_state\.pt to go on from"):
        train_in(world, tmp_path, _config(iterations=2), resume=True)
    assert (tmp_path / "checkpoint.json").read_bytes() == before


@pytest.mark.parametrize("total", ["9" * 400, '"1"', "null", "[" * 100_000, '1, "total": 2', '1, "\\ud800": 2'])
def test_the_loss_log_ends_where_it_is_damaged(tmp_path, total):
    log = tmp_path / "losses.jsonl"
    lines = [{"iteration": k, "total": 1, "learning_rate": 0.1} for k in range(3)]
    text = [json.dumps(line) for line in lines]
    text[1] = text[1].replace('"total": 1', f'"total": {total}')
    log.write_text("\n".join(text) + "\n")
    assert len(read_loss_log(log)) == 1
    draw_loss_curve(log, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").exists()


def test_lines_of_the_log_after_the_last_checkpoint_are_dropped(world, tmp_path):
    train_in(world, tmp_path, _config(iterations=6))
    log = tmp_path / "losses.jsonl"
    whole = log.read_text()
    log.write_text(whole + json.dumps({"iteration": 7, "total": 1.0}) + '\n{"iteration": 8, "to')
    train_in(world, tmp_path, _config(iterations=9), resume=True)
    assert log.read_text().startswith(whole)
    assert [entry["iteration"] for entry in read_loss_log(log)] == list(range(1, 10))


def test_an_interrupt_saves_the_iteration_at_hand_and_the_run_can_go_on(world, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    _train_until(world, tmp_path / "run", _config(), 8, monkeypatch)
    assert signal.getsignal(signal.SIGINT) is before
    assert not [t for t in threading.enumerate() if t.name.startswith("ahernet-read")]
    assert len(read_loss_log(tmp_path / "run" / "losses.jsonl")) == 9
    train_in(world, tmp_path / "run", _config(), resume=True)
    train_in(world, tmp_path / "straight", _config())
    assert same_weights(tmp_path / "run", tmp_path / "straight")


def test_training_works_outside_the_main_thread(world, tmp_path):
    thread = threading.Thread(target=train_in, args=(world, tmp_path, _config(iterations=2)))
    thread.start()
    thread.join()
    assert load_checkpoint(tmp_path).classes


def test_a_loss_that_is_not_finite_names_iteration_and_videos(world, tmp_path):
    config = _config(learning_rate=10.0, gradient_clip=0.0, decay_every=1000, iterations=500, checkpoint_every=500)
    with pytest.raises(
        UserError, match=r"loss not finite at iteration \d+ \(total .*\): videos 'v\d', 'v\d', 'v\d', 'v\d';"
    ):
        train_in(world, tmp_path, config)


def test_a_loss_that_is_not_finite_names_the_archives_that_were_read(world, tmp_path, monkeypatch):
    losses = step_losses

    def broken(*arguments):
        return {name: step._replace(loss=step.loss * torch.nan) for name, step in losses(*arguments).items()}

    monkeypatch.setattr(take_steps, "step_losses", broken)
    untrimmed, moments = world.archive.path, world.moments.path
    for run, archives in (("aherM", f"{moments}"), ("aher*", f"{untrimmed}"), ("aher-", f"{untrimmed}, {moments}")):
        with pytest.raises(UserError, match=rf"^{archives}: loss not finite at iteration 1 "):
            train_in(world, tmp_path / run.strip("*"), _config(run, iterations=1))


def test_parameters_that_are_not_finite_are_not_kept(world, tmp_path, monkeypatch):
    losses = step_losses

    def broken(networks, *arguments):
        # Of value 0, with a gradient of 0 / 0.
        nothing = (next(networks.localizer.parameters()).sum() * 0).sqrt()
        return {name: step._replace(loss=step.loss + nothing) for name, step in losses(networks, *arguments).items()}

    train_in(world, tmp_path, _config(iterations=6))
    kept = (tmp_path / "training_state.pt").read_bytes()
    monkeypatch.setattr(take_steps, "step_losses", broken)
    with pytest.raises(UserError, match=r"^parameters not finite after iteration 7, though its loss is; a smaller"):
        train_in(world, tmp_path, _config(iterations=7), resume=True)
    assert (tmp_path / "training_state.pt").read_bytes() == kept


def test_another_feature_dimension_is_refused(world, tmp_path):
    with pytest.raises(UserError, match=r"features\.h5: features have 8 values a row, .* says 2048"):
        train_in(world, tmp_path / "run", Config())
    assert not (tmp_path / "run").exists()


def test_an_unknown_subset_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="no video of subset 'testing', it has training"):
        train_in(world, tmp_path, _config(), subset="testing")


def test_progress_shows_what_is_used_the_losses_and_the_speed(world, tmp_path, capsys):
    train_in(world, tmp_path, _config(), progress=True)
    shown = capsys.readouterr().err
    assert "trains on 8 segments in 6 of 8 videos" in shown
    assert "20/20" in shown
    assert "loss=" in shown
    assert "it/s" in shown
