"""What a graph of an iteration needs: a batch in static memory, with room, that trains as the batch itself does."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves
from training_worlds import PHASES, data_of, small_config

from ahernet.config import RUNS
from ahernet.training.captured_steps import EAGER, CapturedSteps, _Captured, copied, with_room
from ahernet.training.iteration_batches import IterationBatch, phase_of, read_iteration
from ahernet.training.take_steps import take_steps
from ahernet.training.trainer import total_iterations, train_iteration
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
            terms = take_steps(state, [given], phase)
            trained.append({**terms, **state.networks.state_dict()})
        for name, expected in trained[0].items():
            assert torch.equal(trained[1][name], expected), (phase, name)


def _longer(batch, part, times):
    """The batch, with the rows of one of its parts so many times over."""
    given = getattr(batch, part)
    return batch._replace(**{part: given._replace(rows=given.rows.repeat(times, 1))})


def _main_batch(world, config):
    data = data_of(world, config)
    return read_iteration(data.untrimmed, data.moments, config, total_iterations(config) - 1)


def test_batches_are_copied_into_room_as_long_as_it_lasts(world):
    batch = _main_batch(world, small_config("aher", **PHASES))
    room = with_room(_longer(batch, "moments", 3))
    assert copied(batch, room)
    for source, target in zip(_tensors(batch), _tensors(room), strict=True):
        assert torch.equal(target[: len(source)], source)
    before = deepcopy(room)
    assert not copied(_longer(batch, "untrimmed", 3), room)
    assert all(torch.equal(a, b) for a, b in zip(_tensors(room), _tensors(before), strict=True))


def test_room_that_was_made_for_one_part_stays_when_another_needs_more(world):
    batch = _main_batch(world, small_config("aher", **PHASES))
    many_moments, long_videos = _longer(batch, "moments", 5), _longer(batch, "untrimmed", 5)
    room = with_room(long_videos, earlier=with_room(many_moments))
    assert copied(many_moments, room)
    assert copied(long_videos, room)


class _Replayed(CapturedSteps):
    """Captures no graph: a replay takes the steps with the static batch."""

    def _capture(self, run, batch, phase):
        self.captures += 1
        terms = take_steps(deepcopy(run), [batch], phase)
        values = torch.stack([torch.zeros(())] * len(terms))

        def replay():
            values.copy_(torch.stack([term.float() for term in take_steps(run, [batch], phase).values()]))

        return _Captured(SimpleNamespace(replay=replay), batch, tuple(terms), values)


def test_replayed_iterations_of_all_phases_train_as_eager_ones(world):
    method = {"pretrain_iterations": EAGER + 2, "context_iterations": EAGER + 2}
    config = small_config("aher", method=method, training={"iterations": EAGER + 3})
    data = data_of(world, config)
    eager, replayed = new_run(config, data, CPU), new_run(config, data, CPU)
    replayed.captured = _Replayed()
    seen = []
    for iteration in range(total_iterations(config)):
        batch = read_iteration(data.untrimmed, data.moments, config, iteration)
        terms = [train_iteration(run, [batch], iteration) for run in (eager, replayed)]
        assert terms[0].keys() == terms[1].keys()
        seen.append(terms)
    for one, other in seen:  # that no later iteration has written over
        for name, expected in one.items():
            torch.testing.assert_close(other[name], expected.float(), rtol=0, atol=0)
    for one, other in zip(eager.networks.parameters(), replayed.networks.parameters(), strict=True):
        assert torch.equal(one, other)
    assert 3 <= replayed.captured.captures <= 9


def test_room_is_memory_of_its_own_for_every_tensor(world):
    config = small_config("aher", **PHASES)
    data = data_of(world, config)
    batch = read_iteration(data.untrimmed, data.moments, config, total_iterations(config) - 1)
    room = with_room(batch)
    assert isinstance(room, IterationBatch)
    assert not {x.data_ptr() for x in _tensors(batch)} & {x.data_ptr() for x in _tensors(room)}
