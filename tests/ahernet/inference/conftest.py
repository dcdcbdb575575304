import numpy as np
import pytest
import torch
from inference_references import CLASSES, DIMENSION, LENGTHS, MODEL, write_archive

from ahernet.checkpoint import Checkpoint
from ahernet.config import Config
from ahernet.data.archive import open_archive
from ahernet.model.localizer import Localizer


def _random_localizer(class_count, seed):
    torch.manual_seed(seed)
    model = Localizer(MODEL, class_count).eval()
    with torch.no_grad():  # far enough from the initial state for scores, labels and offsets to differ
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="session")
def localizer():
    return _random_localizer(len(CLASSES), seed=3)


@pytest.fixture(scope="session")
def localizer_of_seven():
    return _random_localizer(7, seed=2)  # not the same three classes are the most probable in every video


@pytest.fixture(scope="session")
def batch():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(LENGTHS), DIMENSION, generator=generator)
    return rows, torch.tensor([0, *np.cumsum(LENGTHS)])


@pytest.fixture
def checkpoint(localizer, tmp_path):
    return Checkpoint(Config(model=MODEL), CLASSES, moment_classes=(), model=localizer, source=tmp_path)


@pytest.fixture
def archive(tmp_path):
    with open_archive(write_archive(tmp_path / "a.h5")) as opened:
        yield opened
