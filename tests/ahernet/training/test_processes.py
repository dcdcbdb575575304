"""Runs in real processes: several that train one network, and those that are killed."""

import io
import random

import pytest
import torch
from rank_processes import exit_codes, start_processes, train_elastically, train_in_processes, train_upset
from training_worlds import same_states, same_weights, small_config, train_in

from ahernet.checkpoint import load_checkpoint
from ahernet.training.loss_log import read_loss_log

SAVED_EVERY = 3


def _config(run, **method):
    phases = {"pretrain_iterations": 2, "context_iterations": 1} if run == "aher" else {}
    return small_config(
        run,
        method=phases | method,
        # Of 5 videos two processes have 2 and 3.
        training={"batch_size": 5, "iterations": 5, "checkpoint_every": SAVED_EVERY, "average": 0.9},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def place(world):
    return world.archive.path.parent


@pytest.fixture(scope="module")
def together(folder, place):
    """The undisturbed run `aher` of two processes."""
    assert train_in_processes(2, place, folder / "together", _config("aher"), progress=True) == [0, 0]
    return folder / "together"


def _said(run, rank):
    return run.with_name(f"{run.name}.{rank}.txt").read_text()


def _assert_almost_the_same(one, other):
    states = [torch.load(run / "training_state.pt", weights_only=True) for run in (one, other)]
    assert states[0]["iteration"] == states[1]["iteration"]
    for networks in ("networks", "average"):
        for name, expected in states[0][networks].items():
            # These add the same to the logits of all classes: their gradients are rounding errors around 0, which
            # Adam makes steps of any direction, and the losses do not depend on them.
            tolerance = 1e-3 if "transfer" in name and name.endswith("bias") else 1e-5
            torch.testing.assert_close(states[1][networks][name], expected, rtol=1e-4, atol=tolerance, msg=name)
    for a, b in zip(*(read_loss_log(run / "losses.jsonl") for run in (one, other)), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)


def _equal(one, other):
    """Whether two nested structures are, all tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


@pytest.mark.parametrize("run", ["aher", "aher*"])
def test_two_processes_train_the_network_that_one_trains(world, place, folder, together, run):
    train_in(world, folder / f"alone {run[4:]}", _config(run))
    if run != "aher":
        together = folder / "together supervised"
        assert train_in_processes(2, place, together, _config(run)) == [0, 0]
    _assert_almost_the_same(folder / f"alone {run[4:]}", together)


def test_all_processes_end_with_the_same_bits_and_the_first_alone_speaks(together):
    first, second = (_said(together, rank) for rank in range(2))
    assert len(second) == 64  # the hash, and nothing before it
    assert first.endswith(second)
    assert "trains on 8 segments" in first
    assert "8/8" in first


def test_a_signal_to_one_process_stops_all_after_the_same_iteration_with_a_checkpoint(place, folder, together):
    run = folder / "terminated"
    assert train_in_processes(2, place, run, _config("aher"), "terminated:1:4") == [3, 3]
    for rank in range(2):
        assert _said(run, rank).startswith("KeyboardInterrupt: stopped after iteration 5; ")
    assert torch.load(run / "training_state.pt", weights_only=True)["iteration"] == 5
    assert load_checkpoint(run).classes
    assert train_in_processes(2, place, run, _config("aher"), resume=True) == [0, 0]
    assert same_states(run, together)
    assert same_weights(run, together)


def test_what_one_process_cannot_read_stops_all_with_its_message(place, folder):
    run = folder / "unreadable"
    assert train_in_processes(2, place, run, _config("aher"), "unreadable:1") == [3, 3]
    message = f"{place / 'features.h5'}: cannot read (Input/output error)"
    assert [_said(run, rank) for rank in range(2)] == [f"UserError: process 1 of 2: {message}", f"UserError: {message}"]
    assert not (run / "training_state.pt").exists()


def test_a_process_that_is_gone_ends_the_others(place, folder):
    run = folder / "gone"
    assert train_in_processes(2, place, run, _config("aher"), "killed:1:4") == [3, -9]
    assert _said(run, 0).startswith("UserError: lost another of the 2 processes of this run (")
    assert torch.load(run / "training_state.pt", weights_only=True)["iteration"] % SAVED_EVERY == 0


def test_a_killed_process_is_replaced_and_the_run_ends_as_if_undisturbed(place, folder, together):
    run = folder / "elastic"
    assert train_elastically(place, run, _config("aher"), "killed:1:4") == 0
    assert (folder / "elastic.killed.4").exists()
    assert same_states(run, together)
    assert same_weights(run, together)
    assert read_loss_log(run / "losses.jsonl") == read_loss_log(together / "losses.jsonl")


def test_a_run_killed_at_any_moment_of_any_phase_ends_with_the_same_bytes(world, place, folder):
    """Parameters, their average, all that the optimizer keeps, the log: every file of the run."""
    straight, killed = folder / "straight", folder / "killed"
    train_in(world, straight, _config("aher"))
    kills = [random.randrange(*between) for between in ((0, 3), (3, 6), (6, 7))]
    for iteration in kills:
        process = start_processes(
            train_upset, [(place, killed, _config("aher"), f"killed:0:{iteration}", {"resume": True})]
        )
        assert exit_codes(process) == [-9], kills
    assert exit_codes(start_processes(train_upset, [(place, killed, _config("aher"), "", {"resume": True})])) == [0]
    files = [{path.name: path.read_bytes() for path in run.iterdir()} for run in (straight, killed)]
    assert len(files[0]) == 4
    # Pickling writes equal text that is not one object in another way: of the state, what it holds is compared.
    states = [torch.load(io.BytesIO(run.pop("training_state.pt")), weights_only=True) for run in files]
    assert files[0] == files[1], kills
    assert _equal(*states), kills
