"""Batches that are computed in parts, one after the other, where memory is short."""

from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from training_worlds import (
    PHASES,
    assert_same_gradients,
    data_of,
    load_checkpoint,
    small_config,
    train_in,
)

from ahernet.config import RUNS
from ahernet.model.segment_classifier import SegmentClassifier
from ahernet.training import take_steps
from ahernet.training.captured_steps import EAGER, CapturedSteps
from ahernet.training.iteration_batches import IterationBatch, phase_ranges
from ahernet.training.loss_log import read_loss_log
from ahernet.training.steps import step_losses
from ahernet.training.trainer import read_batch, train_iteration, train_within_memory
from ahernet.training.training_state import new_run

CPU = torch.device("cpu")
BATCH = 5


def _short_of_memory(monkeypatch, most):
    """Let memory be short for more than `most` videos at a time; return how many each look or computation was of."""
    seen = []

    def limited(networks, config, batch, *arguments):
        given = next(part for part in (batch.untrimmed, batch.moments) if part is not None)
        seen.append(len(given.video_ids))
        losses = step_losses(networks, config, batch, *arguments)
        if torch.is_grad_enabled() and seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses

    monkeypatch.setattr(take_steps, "step_losses", limited)
    return seen


@pytest.mark.parametrize(("run", "preset"), [*((run, "tuned") for run in RUNS if run != "aherA-"), ("aher", "paper")])
def test_losses_gradients_and_what_is_observed_are_those_of_the_whole_batch(world, run, preset):
    config = small_config(
        run,
        preset,
        method={"pretrain_iterations": 1, "context_iterations": 1},
        training={"batch_size": BATCH, "gradient_clip": 1.0, "adversarial_rate": 1.0},
        loss={"context": 0.5},
    )
    data = data_of(world, config)
    whole = new_run(config, data, CPU)
    divided = deepcopy(whole)
    divided.parts = 3  # of 1, 2 and 2 videos
    for planned in phase_ranges(config).values():
        terms = [train_iteration(run, read_batch(run, data, CPU, planned[0]), planned[0]) for run in (whole, divided)]
        assert terms[0].keys() == terms[1].keys()
        for name, value in terms[0].items():
            torch.testing.assert_close(terms[1][name], value, rtol=1e-5, atol=1e-7)
        assert_same_gradients(whole.networks, divided.networks)
        divided.networks.load_state_dict(whole.networks.state_dict())  # the optimizer makes much of rounding


def test_a_run_short_of_memory_goes_on_with_smaller_parts_and_says_so(world, tmp_path, monkeypatch, capsys):
    config = small_config("aher", **PHASES)
    train_in(world, tmp_path / "whole", config)
    seen = _short_of_memory(monkeypatch, most=1)
    train_in(world, tmp_path / "parts", config)
    assert seen[:5] == [4, 2, 2, 2, 1]  # whole; two looked at and the first computed; a look at the first of four
    said = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    for line, parts in zip(said, (2, 4), strict=True):
        assert f"train: out of memory, goes on with every batch in {parts} parts" in line
    logs = [read_loss_log(tmp_path / name / "losses.jsonl") for name in ("whole", "parts")]
    for one, other in zip(*logs, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)
    load_checkpoint(tmp_path / "parts")


def test_no_iteration_is_taken_twice(world, tmp_path, monkeypatch):
    """Adam counts its steps, and the segment classifier its segments."""
    config = small_config("aher", **PHASES)
    train_in(world, tmp_path / "whole", config)
    _short_of_memory(monkeypatch, most=2)
    train_in(world, tmp_path / "parts", config)
    states = [torch.load(tmp_path / name / "training_state.pt", weights_only=True) for name in ("whole", "parts")]
    steps, observed = ([], [])
    for state in states:
        steps.append({key: entry["step"].item() for key, entry in state["optimizer"]["state"].items()})
        observed.append(state["networks"]["localizer.segment_classifier.statistics.observed"].tolist())
    assert steps[0] == steps[1]
    assert observed[0] == observed[1]


def test_a_resumed_run_tries_whole_batches_again(world, tmp_path, monkeypatch):
    config = small_config("aher*", training={"iterations": 3})
    with monkeypatch.context() as patched:
        _short_of_memory(patched, most=2)
        train_in(world, tmp_path, config)
    seen = _short_of_memory(monkeypatch, most=4)
    train_in(world, tmp_path, small_config("aher*", training={"iterations": 4}), resume=True)
    assert seen == [4]


def test_lack_of_memory_for_a_single_video_ends_the_run_without_losing_it(world, tmp_path, monkeypatch):
    train_in(world, tmp_path, small_config("aher*", training={"iterations": 6}))
    kept = (tmp_path / "training_state.pt").read_bytes()
    _short_of_memory(monkeypatch, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        train_in(world, tmp_path, small_config("aher*", training={"iterations": 7}), resume=True)
    assert (tmp_path / "training_state.pt").read_bytes() == kept


def test_parts_become_single_videos_whatever_the_size_of_the_batch(world, tmp_path, monkeypatch):
    config = small_config("aher*", training={"iterations": 1, "batch_size": 3})
    seen = _short_of_memory(monkeypatch, most=1)
    train_in(world, tmp_path, config)
    looks, computed = [1, 1, 1], [1, 1, 1]
    assert seen == [3, 1, 2, 1, 2, *looks, *computed]


@pytest.mark.parametrize(("owner", "name"), [(torch.optim.Adam, "step"), (SegmentClassifier, "observe")])
def test_an_iteration_whose_steps_may_have_been_taken_is_not_tried_again(world, tmp_path, monkeypatch, owner, name):
    calls = []

    def broken(*_):
        calls.append(None)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(torch.OutOfMemoryError):
        train_in(world, tmp_path, small_config("aher", training={"iterations": 1}))
    assert len(calls) == 1


def test_a_lack_of_memory_while_an_iteration_is_captured_is_one_before_it_was_taken(world, monkeypatch):
    @contextmanager
    def short_of_memory(*_, **__):
        yield
        raise torch.OutOfMemoryError("CUDA out of memory")

    for name, replacement in (("CUDAGraph", object), ("graph", short_of_memory), ("current_stream", lambda: None)):
        monkeypatch.setattr(torch.cuda, name, replacement)
    config = small_config("aher*", training={"batch_size": 2, "iterations": EAGER + 1})
    data = data_of(world, config)
    run = new_run(config, data, CPU)
    run.captured = CapturedSteps()
    for iteration in range(EAGER):
        train_within_memory(run, read_batch(run, data, CPU, iteration), iteration, lambda _: ())
    assert (run.iteration, run.parts) == (EAGER, 1)
    parts = read_batch(run, data, CPU, EAGER)
    train_within_memory(run, parts, EAGER, lambda iteration: read_batch(run, data, CPU, iteration))
    assert (run.iteration, run.parts, run.captured) == (EAGER + 1, 2, None)


def test_a_batch_that_does_not_fit_where_it_is_computed_is_divided_too(world, tmp_path, monkeypatch):
    moved = IterationBatch.to

    def limited(batch, device):
        if len(batch.untrimmed.video_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return moved(batch, device)

    config = small_config("aher*", training={"iterations": 3})
    train_in(world, tmp_path / "whole", config)
    monkeypatch.setattr(IterationBatch, "to", limited)
    train_in(world, tmp_path / "parts", config)
    logs = [read_loss_log(tmp_path / name / "losses.jsonl") for name in ("whole", "parts")]
    for one, other in zip(*logs, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_other_errors_are_raised_at_once(world, tmp_path, monkeypatch):
    seen = []

    def broken(*_):
        seen.append(None)
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(take_steps, "step_losses", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        train_in(world, tmp_path, small_config("aher*"))
    assert len(seen) == 1
