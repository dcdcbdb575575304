"""Training on a GPU: every run trains there as on a CPU, in both precisions, and repeats itself where asked to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import training_worlds
from training_worlds import PHASES, same_states, small_config, train_in

import ahernet
from ahernet.config import RUNS
from ahernet.training import trainer, training_state
from ahernet.training.captured_steps import EAGER
from ahernet.training.loss_log import read_loss_log

pytestmark = pytest.mark.gpu

# cuBLAS takes its workspace from the environment when it starts: a process of its own, which has not used the GPU.
REPEATED = """
import sys
from pathlib import Path

from training_worlds import PHASES, open_world, small_config, train_in

from ahernet.training import trainer, training_state
from ahernet.training.captured_steps import EAGER

trainer.draw_loss_curve = lambda log, picture: None
folder, run, precision = Path(sys.argv[1]), *sys.argv[2:]


def config(iterations):
    training = {"iterations": iterations, "deterministic": True, "precision": precision}
    return small_config(run, **PHASES | {"training": training})


with open_world(folder) as world:
    for name in ("one", "other"):
        train_in(world, folder / name, config(6), device="cuda")
    train_in(world, folder / "resumed", config(3), device="cuda")
    train_in(world, folder / "resumed", config(6), device="cuda", resume=True)
"""


def _losses(world, folder, run, device, **training):
    config = small_config(run, **PHASES | {"training": {"iterations": 4, **training}})
    train_in(world, folder, config, device=device)
    return read_loss_log(folder / "losses.jsonl")


def _assert_close(losses, others, **tolerance):
    assert len(losses) == len(others) > 0
    for one, other in zip(losses, others, strict=True):
        assert one == pytest.approx(other, **tolerance)


@pytest.mark.parametrize("run", RUNS)
def test_every_run_trains_as_on_a_cpu(world, tmp_path, run):
    found, expected = (_losses(world, tmp_path / device, run, device) for device in ("cuda", "cpu"))
    _assert_close(found, expected, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("run", ["aher", "aherM", "aher*"])
def test_half_precision_trains_nearly_as_single_precision_does(world, tmp_path, run):
    found, expected = (
        _losses(world, tmp_path / precision, run, "cuda", precision=precision) for precision in ("bfloat16", "float32")
    )
    _assert_close(found, expected, rel=0.2, abs=0.05)


@pytest.mark.parametrize(("run", "precision"), [("aher", "float32"), ("aher", "bfloat16"), ("aher*", "float32")])
def test_replayed_iterations_train_as_eager_ones_bit_for_bit(world, tmp_path, run, precision, monkeypatch):
    several = 2 * EAGER + 2
    method = {"pretrain_iterations": several, "context_iterations": several}
    config = small_config(run, method=method, training={"iterations": several, "precision": precision})
    captured, make = [], training_state.CapturedSteps
    monkeypatch.setattr(training_state, "CapturedSteps", lambda: captured.append(make()) or captured[-1])
    train_in(world, tmp_path / "replayed", config, device="cuda")
    assert captured[0].captures >= (3 if run == "aher" else 1)
    monkeypatch.setattr(training_state, "CapturedSteps", lambda: None)
    train_in(world, tmp_path / "eager", config, device="cuda")
    assert same_states(tmp_path / "replayed", tmp_path / "eager")


def test_the_average_of_the_parameters_is_kept_on_the_gpu(world, tmp_path):
    assert _losses(world, tmp_path, "aher", "cuda", average=0.9)


@pytest.mark.parametrize(
    ("run", "precision"), [("aher", "float32"), ("aher", "bfloat16"), ("aherB", "float32"), ("aher*", "float32")]
)
def test_deterministic_runs_repeat_themselves_and_go_on_bit_for_bit(tmp_path, run, precision):
    places = [Path(training_worlds.__file__).parent, Path(ahernet.__file__).parent.parent, *sys.path]
    environment = {name: value for name, value in os.environ.items() if name != trainer.WORKSPACE}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, places))
    subprocess.run([sys.executable, "-c", REPEATED, tmp_path, run, precision], env=environment, check=True, timeout=300)
    assert same_states(tmp_path / "one", tmp_path / "other")
    assert same_states(tmp_path / "one", tmp_path / "resumed")
