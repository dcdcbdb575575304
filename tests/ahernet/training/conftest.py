import pytest
from training_worlds import PHASES, open_world, small_config, train_in

from ahernet.training import trainer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """The folder of a run of all phases."""
    folder = tmp_path_factory.mktemp("finished")
    train_in(world, folder, small_config("aher", **PHASES))
    return folder


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Drawing the losses takes longer than these runs."""
    monkeypatch.setattr(trainer, "draw_loss_curve", lambda log, picture: None)
