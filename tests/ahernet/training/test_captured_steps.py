"""What a graph of an iteration needs: a batch in static memory, with room, that trains as the batch itself does."""

from copy import deepcopy

import pytest
import torch
from torch.utils._pytree import tree_leaves
from training_worlds import PHASES, data_of, small_config

from ahernet.config import RUNS
from ahernet.training.captured_steps import copied, with_room
from ahernet.training.iteration_batches import IterationBatch, phase_of, read_iteration
from ahernet.training.take_steps import take_steps
from ahernet.training.trainer import total_iterations
from ahernet.training.training_state import new_run

CPU = torch.device("cpu")


def _first_iterations(config):
    """The first iteration of every phase."""
    phases = [phase_of(config.method, k) for k in range(total_iterations(config))]
    return {phase: phases.index(phase) for phase in phases}


def _tensors(batch):
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]


def _spoil(room, batch):
    """Fill what no batch has written with what must not be read."""
    for tensor, used in zip(_tensors(room), _tensors(batch), strict=True):
        if len(tensor) > len(used):
            tensor[len(used) :] = torch.nan if tensor.is_floating_point() else -7


@pytest.mark.parametrize("run", RUNS)
def test_a_batch_with_room_trains_as_the_batch_does_bit_for_bit(world, run):
    config = small_config(run, **PHASES)
    data = data_of(world, config)
    for phase, iteration in _first_iterations(config).items():
        batch = read_iteration(data.untrimmed, data.moments, config, iteration)
        room = with_room(batch)
        _spoil(room, batch)
        trained = []
        for given in (batch, room):
            state = new_run(config, data, CPU)
            terms = take_steps(state, given, phase)
            trained.append({**terms, **state.networks.state_dict()})
        for name, expected in trained[0].items():
            assert torch.equal(trained[1][name], expected), (phase, name)


def test_batches_are_copied_into_room_as_long_as_it_lasts(world):
    config = small_config("aher", **PHASES)
    data = data_of(world, config)
    batches = [read_iteration(data.untrimmed, data.moments, config, k) for k in range(6, 10)]
    largest = max(batches, key=lambda batch: len(batch.untrimmed.rows))
    room = with_room(largest)
    for batch in batches:
        if all(len(a) <= len(b) for a, b in zip(_tensors(batch), _tensors(room), strict=True)):
            assert copied(batch, room)
            for source, target in zip(_tensors(batch), _tensors(room), strict=True):
                assert torch.equal(target[: len(source)], source)
    rows = largest.untrimmed.rows
    longer = largest.untrimmed._replace(rows=rows.repeat(3, 1))
    before = deepcopy(room)
    assert not copied(largest._replace(untrimmed=longer), room)
    assert all(torch.equal(a, b) for a, b in zip(_tensors(room), _tensors(before), strict=True))


def test_room_is_memory_of_its_own_for_every_tensor(world):
    config = small_config("aher", **PHASES)
    data = data_of(world, config)
    batch = read_iteration(data.untrimmed, data.moments, config, total_iterations(config) - 1)
    room = with_room(batch)
    assert isinstance(room, IterationBatch)
    assert not {x.data_ptr() for x in _tensors(batch)} & {x.data_ptr() for x in _tensors(room)}
