"""`training.deterministic` makes torch refuse what a GPU computes in no fixed order: no iteration may need any of it.

Read off on a CPU, where the same operators are called.
"""

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_worlds import data_of, small_config

from ahernet.config import RUNS
from ahernet.training import trainer
from ahernet.training.iteration_batches import phase_of, read_iteration
from ahernet.training.training_state import start_or_resume

# Of the operators that torch.use_deterministic_algorithms lists, those that raise on a CUDA tensor.
REFUSED = re.compile(
    r"aten::(nll_loss2d_(forward|backward)|(re|ref)lection_pad\d?d?_backward|max_unpool\d.*|put_?|histc|bincount|median"
    r"|kthvalue|(fractional|adaptive)_(max|avg)_pool.*_backward|avg_pool3d_backward|max_pool3d.*_backward"
    r"|upsample_.*_backward|grid_sampler.*_backward|_ctc_loss_backward)$"
)
REFUSED_IF_FLOATING = re.compile(r"aten::(cumsum|cumsum_)$")


class Watch(TorchDispatchMode):
    """Note the operators that torch would refuse."""

    def __init__(self):
        super().__init__()
        self.seen, self.refused = set(), set()

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator.name().split(".")[0]
        self.seen.add(name)
        floating = isinstance(arguments[0], torch.Tensor) and arguments[0].is_floating_point() if arguments else False
        if REFUSED.match(name) or (floating and REFUSED_IF_FLOATING.match(name)):
            self.refused.add(name)
        return operator(*arguments, **(options or {}))


@pytest.mark.parametrize("preset", ["paper", "tiny"])
@pytest.mark.parametrize("run", RUNS)
def test_no_iteration_needs_an_algorithm_that_is_refused(world, tmp_path, run, preset):
    config = small_config(run, preset, method={"pretrain_iterations": 1, "context_iterations": 1})
    data = data_of(world, config)
    state = start_or_resume(tmp_path, config, data, torch.device("cpu"), resume=False)
    first_of_phase = {phase_of(config.method, k): k for k in reversed(range(3))}
    watch = Watch()
    for iteration in first_of_phase.values():
        batch = read_iteration(data.untrimmed, data.moments, config, iteration)
        with watch:
            trainer.train_iteration(state, [batch], iteration)
    assert "aten::convolution_backward" in watch.seen
    assert not watch.refused


def test_what_would_be_refused_is_noticed():
    values = torch.randn(2, 3, 4, requires_grad=True)
    with Watch() as watch:
        loss = torch.nn.functional.cross_entropy(values.cumsum(dim=2), torch.zeros(2, 4, dtype=torch.int64))
        loss.backward()
        torch.arange(3).cumsum(dim=0)
    # The gradient of a running sum is one, too.
    assert watch.refused == {"aten::cumsum", "aten::nll_loss2d_forward", "aten::nll_loss2d_backward"}
