"""The forward passes and losses of an iteration are one graph: no break, no loop that depends on data."""

import pytest
import torch
from training_worlds import data_of, small_config

from ahernet.training.iteration_batches import first_main_iteration, read_iteration
from ahernet.training.steps import ClassRows, Networks, step_losses


@pytest.mark.parametrize(
    ("run", "preset"),
    [("aher", "paper"), ("aher", "tuned"), ("aher*", "tuned"), ("aher-", "paper"), ("aherM", "paper")],
)
def test_an_iteration_traces_as_one_graph_and_computes_the_same(world, run, preset):
    # Statistics of the segments would be updated twice, by the trace and by the plain call.
    config = small_config(run, preset)
    data = data_of(world, config)
    torch.manual_seed(0)
    networks = Networks(config, len(data.classes))
    rows = ClassRows(torch.tensor(data.base_rows), torch.tensor(data.moment_rows, dtype=torch.int64))
    batch = read_iteration(data.untrimmed, data.moments, config, first_main_iteration(config.method))

    def losses():
        steps = step_losses(networks, config, batch, "main", rows)
        return {name: step.loss for name, step in steps.items()}

    expected = losses()
    torch._dynamo.reset()
    found = torch.compile(losses, fullgraph=True, backend="eager")()
    assert found.keys() == expected.keys()
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name])
