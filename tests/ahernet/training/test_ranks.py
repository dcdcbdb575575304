"""What the processes of a run share: every batch, its draws, and the divisors of its losses."""

import itertools
import os
import signal
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threaded_ranks import in_threads
from training_worlds import assert_same_gradients, data_of, small_config

from ahernet.config import RUNS
from ahernet.errors import UserError
from ahernet.training import ranks as ranks_module
from ahernet.training import trainer
from ahernet.training.iteration_batches import phase_ranges, read_iteration
from ahernet.training.ranks import ALONE, Ranks, join_ranks
from ahernet.training.trainer import train_iteration
from ahernet.training.training_state import new_run

CPU = torch.device("cpu")
BATCH = 5


def _config(run, **changes):
    changes = {"method": {"pretrain_iterations": 1, "context_iterations": 1}, **changes}
    return small_config(run, training={"batch_size": BATCH, "gradient_clip": 1.0}, **changes)


# --- parts of a batch -------------------------------------------------------------------------------------------


@given(st.data())
def test_parts_are_the_batch_and_differ_by_one_at_most(data):
    batch_size = data.draw(st.integers(1, 300))
    count = data.draw(st.integers(1, batch_size))
    parts = [range(batch_size)[Ranks(rank, count).part(batch_size)] for rank in range(count)]
    assert [item for part in parts for item in part] == list(range(batch_size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_of_fewer_videos_than_processes_is_refused():
    with pytest.raises(UserError, match=r"^training\.batch_size: expected at least 3, one for each process, got 2$"):
        Ranks(0, 3).part(2)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_epoch_reads_every_video_and_moment_once_whatever_the_number_of_processes(world, count):
    config = small_config("aher", training={"batch_size": 4}, method={"context_iterations": 0})
    data = data_of(world, config)
    videos, moments = len(data.untrimmed), len(data.moments)
    epoch = videos * moments  # batches of 4: each epoch of both ends with a batch
    read = [
        read_iteration(data.untrimmed, data.moments, config, iteration, Ranks(rank, count))
        for iteration in range(epoch // 2)
        for rank in range(count)
    ]
    for part, members in (("untrimmed", videos), ("moments", moments)):
        ids = [name for batch in read for name in getattr(batch, part).video_ids]
        epochs = [ids[k : k + members] for k in range(0, len(ids), members)]
        assert len(ids) == 4 * (epoch // 2)
        assert all(len(set(names)) == len(names) for names in epochs)
        assert all(len(names) == members for names in epochs[:-1])


def _ragged(rows, offsets):
    return [part.numpy() for part in rows.tensor_split(offsets[1:-1])]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("run", ["aher", "aherB"])
def test_the_parts_hold_what_one_process_reads_and_draws(world, run, count):
    phases = {"pretrain_iterations": 1, "context_iterations": 1}
    config = _config(run, method={**phases, "real_residual": True, "neighbours": 2, "shares": "durations"})
    data = data_of(world, config)
    for iteration in range(4):
        whole = read_iteration(data.untrimmed, data.moments, config, iteration)
        parts = [read_iteration(data.untrimmed, data.moments, config, iteration, Ranks(r, count)) for r in range(count)]
        if whole.neighbours is not None:
            ids = whole.moments.video_ids
            for part, after in zip(
                parts, itertools.accumulate(len(part.moments.video_ids) for part in parts), strict=True
            ):
                assert part.neighbours.video_ids == tuple(ids[(after + k) % len(ids)] for k in range(2))
        for name in ("untrimmed", "foregrounds", "moments"):
            if getattr(whole, name) is None:
                assert all(getattr(part, name) is None for part in parts)
                continue
            expected, found = getattr(whole, name), [getattr(part, name) for part in parts]
            assert sum((part.video_ids for part in found), ()) == expected.video_ids
            rows = [row for part in found for row in _ragged(part.rows, part.offsets)]
            for one, other in zip(_ragged(expected.rows, expected.offsets), rows, strict=True):
                np.testing.assert_array_equal(one, other)
        if whole.placement is not None:
            for k in range(2):
                assert torch.equal(torch.cat([part.placement[k] for part in parts]), whole.placement[k])


# --- losses and gradients ---------------------------------------------------------------------------------------


def _after_an_iteration(run, data, iteration, ranks):
    """Losses of the part of a rank, and the run after the iteration, whose gradients are clipped."""
    run = deepcopy(run)
    run.ranks = ranks
    batch = read_iteration(data.untrimmed, data.moments, run.config, iteration, ranks)
    return train_iteration(run, [batch], iteration), run


@pytest.mark.parametrize(("run", "preset"), [*((run, "tuned") for run in RUNS if run != "aherA-"), ("aher", "paper")])
def test_the_gradients_of_the_parts_add_up_to_those_of_the_batch(world, run, preset):
    config = small_config(
        run,
        preset,
        method={"pretrain_iterations": 1, "context_iterations": 1},
        training={"batch_size": BATCH, "gradient_clip": 1.0, "adversarial_rate": 1.0},
        assignment={"foreground_threshold": 0.5, "force_match": True},
        loss={"context": 0.5},
    )
    data = data_of(world, config)
    start = new_run(config, data, CPU)
    for planned in phase_ranges(config).values():
        expected, alone = _after_an_iteration(start, data, planned[0], ALONE)
        # Of 5 videos the ranks have 1, 1, 1 and 2.
        found = in_threads(4, lambda ranks, k=planned[0]: _after_an_iteration(start, data, k, ranks))
        for name, value in expected.items():
            torch.testing.assert_close(sum(terms[name] for terms, _ in found), value, rtol=1e-5, atol=1e-7)
        for _, run_of_rank in found:
            assert_same_gradients(alone.networks, run_of_rank.networks)


def test_borrowed_background_comes_from_the_videos_of_all_processes(world):
    """Of run aherB: where a video has none of its own, another rank's video lends it."""
    config = _config("aherB")
    data = data_of(world, config)
    start = new_run(config, data, CPU)

    def without(ranks, has):
        run = deepcopy(start)
        run.ranks = ranks
        batch = read_iteration(data.untrimmed, data.moments, config, 2, ranks)
        own = has[ranks.part(BATCH)]
        batch = batch._replace(surroundings=batch.surroundings._replace(has_before=own, has_after=own))
        return train_iteration(run, [batch], 2), run

    for has in ([0, 0, 0, 0, 1], [0, 1, 0, 1, 0]):
        has = torch.tensor(has, dtype=torch.bool)
        _, alone = without(ALONE, has)
        for _, run_of_rank in in_threads(2, lambda ranks, has=has: without(ranks, has)):
            assert_same_gradients(alone.networks, run_of_rank.networks)


@pytest.mark.parametrize("bucket", [1, 100, 1 << 20])
def test_gradients_are_added_up_in_buckets_of_any_size(monkeypatch, bucket):
    monkeypatch.setattr(ranks_module, "BUCKET_BYTES", bucket)
    shapes = [(3,), (4, 5), (), (30, 2), (7,)]

    def add_up(ranks):
        parameters = [torch.zeros(shape, requires_grad=True) for shape in shapes]
        for number, parameter in enumerate(parameters):
            if number != 1:
                parameter.grad = torch.full(parameter.shape, float(10**ranks.rank * (number + 1)))
        ranks.sum_gradients(parameters)
        return [parameter.grad for parameter in parameters]

    for gradients in in_threads(3, add_up):
        assert gradients[1] is None
        for number in (0, 2, 3, 4):
            assert torch.equal(gradients[number], torch.full(shapes[number], 111.0 * (number + 1)))


# --- what happens to one happens to all -------------------------------------------------------------------------


def test_an_error_of_one_process_is_raised_in_all_with_its_message():
    def fail(ranks):
        with ranks.together():
            if ranks.rank == 1:
                raise UserError("archive.h5: cannot read video 'é' (Input/output error)")

    errors = in_threads(3, fail)
    assert {type(error) for error in errors} == {UserError}
    message = "archive.h5: cannot read video 'é' (Input/output error)"
    told = f"process 1 of 3: {message}"
    assert [str(error) for error in errors] == [told, message, told]


def test_an_error_without_words_and_one_of_many_words_are_told_too():
    def fail(ranks):
        with ranks.together():
            if ranks.rank == 1:
                raise RuntimeError("x" * 5000) if ranks.count == 3 else ZeroDivisionError

    one, failed, _ = in_threads(3, fail)
    assert isinstance(failed, RuntimeError)
    assert str(one) == "process 1 of 3: " + "x" * 1000
    assert str(in_threads(2, fail)[0]) == "process 1 of 2: ZeroDivisionError"


def test_nothing_is_raised_where_nothing_failed():
    def work(ranks):
        with ranks.together():
            return ranks.any(ranks.rank == 2)

    assert in_threads(3, work) == [True] * 3
    assert in_threads(2, work) == [False] * 2


def test_processes_that_differ_are_refused_in_all():
    errors = in_threads(2, lambda ranks: ranks.check_same(bytes([7] * 6 + [ranks.rank]), "data"))
    assert [str(error) for error in errors] == [
        "the 2 processes have different data; all need the same files and arguments"
    ] * 2
    assert in_threads(2, lambda ranks: ranks.check_same(b"\xff" * 32, "data")) == [None, None]


@pytest.mark.parametrize("what", ["settings", "data", "iteration", "nothing"])
def test_processes_do_not_train_one_network_from_different_starts(world, what):
    config = _config("aher")

    def start(ranks):
        other = ranks.rank == 1
        own = replace(config, loss=replace(config.loss, offset=3.0)) if other and what == "settings" else config
        data = data_of(world, own, {"v0_002": "novel0", "v2_001": "novel1"} if other and what == "data" else None)
        run = new_run(own, data, CPU, ranks)
        run.iteration = int(other and what == "iteration")
        trainer._refuse_different_ranks(run, data)

    errors = in_threads(2, start)
    words = "the 2 processes have different settings, data or training states; all need the same files and arguments"
    assert [error and str(error) for error in errors] == [None if what == "nothing" else words] * 2


def test_processes_that_are_started_again_meet_each_other_and_not_those_before_them():
    store = torch.distributed.HashStore()
    for rank in range(3):  # what an earlier meeting left
        store.set(f"ahernet/came/{rank}", f"old {rank}")
    store.set("ahernet/here", "old0 old1 old2")

    def meet(ranks):
        part = ranks_module._unused_part(store, ranks.rank, 3)
        part.set(f"address {ranks.rank}", str(ranks.rank))
        return [part.get(f"address {other}") for other in range(3)]

    for _ in range(3):
        store.set("address 1", "nowhere")
        assert in_threads(3, meet) == [[b"0", b"1", b"2"]] * 3


# --- the environment --------------------------------------------------------------------------------------------


def _environment(monkeypatch, **variables):
    for name in ranks_module.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_a_process_of_its_own_is_alone(monkeypatch, variables):
    _environment(monkeypatch, **variables)
    with join_ranks("cpu") as (ranks, device):
        assert (ranks, device) == (ALONE, CPU)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2"}, r"^WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"),
        ({"WORLD_SIZE": "two"}, r"^the environment variable WORLD_SIZE: expected a number, .* got 'two'$"),
    ],
)
def test_an_environment_that_torchrun_did_not_make_is_named(monkeypatch, variables, words):
    _environment(monkeypatch, **variables)
    with pytest.raises(UserError, match=words), join_ranks("cpu"):
        pass


def test_several_processes_do_not_share_one_gpu(monkeypatch):
    _environment(monkeypatch, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UserError, match=r"^device: cuda:1 is one GPU, of 2 processes each needs its own"),
        join_ranks("cuda:1"),
    ):
        pass


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_the_gpu_of_its_number(monkeypatch, name):
    _environment(monkeypatch, WORLD_SIZE="4", RANK="3", LOCAL_RANK="1", MASTER_ADDR="localhost", MASTER_PORT="1")
    started = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(ranks_module, "rendezvous", lambda url: iter([(None, 3, 4)]))
    monkeypatch.setattr(ranks_module, "_unused_part", lambda store, rank, count: (rank, count))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **given: started.append((backend, given))
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: started.append("ended"))
    with join_ranks(name) as (ranks, device):
        assert (ranks, device) == (Ranks(3, 4), torch.device("cuda:1"))
    assert started == [("cpu:gloo,cuda:nccl", {"store": (3, 4), "rank": 3, "world_size": 4}), "ended"]


# --- signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "echo", "interrupts"), [(1, 5.0, True), (2, 5.0, False), (2, 0.0, True)])
def test_a_second_signal_stops_at_once_unless_a_launcher_may_have_handed_on_the_first(
    monkeypatch, count, echo, interrupts
):
    monkeypatch.setattr(trainer, "SIGNAL_ECHO", echo)
    with trainer._stop_requests(Ranks(0, count)) as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt) if interrupts else nullcontext():
            os.kill(os.getpid(), signal.SIGTERM)
