"""Localizing in a feature archive on a CPU, from the file to detections, with the paper's network made narrow.

python -m pytest bench/bench_localize_archive.py

Wall time, because the archive is read with several threads. The other way reads the same rows from a folder of .npy
files, one video at a time, and localizes in it alone, in the forms that are common elsewhere.
"""

import functools
import time

import numpy as np
import pytest
import torch

from ahernet.checkpoint import Checkpoint
from ahernet.config import Config
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.inference.localize import localize
from bench import cases
from bench.contest import Contest
from bench.localization import Localization
from bench.own_ways import absent_ways, own_ways
from bench.records import OWN, OWN_WITH_NUMBA

CASES = {"small": (2, 1 / 64), "design": (32, 1 / 32)}  # videos, share of the network's channels
CLASSES, MEAN_ROWS, SECONDS = 200, 440, 120.0
WAYS = (OWN, OWN_WITH_NUMBA, "folder of .npy, peers' forms")


def nearly_all(actual, expected):
    """Two scores that differ by a rounding may change places, so that not every row need agree."""
    assert actual.shape == expected.shape
    assert np.isclose(actual, expected, rtol=1e-4, atol=1e-3).mean() > 0.98


def from_archive(archive, checkpoint, config):
    found = localize(archive, checkpoint, config, device="cpu", progress=False)
    return np.column_stack([found.video, found.segments, found.scores])


def from_folder(folder, made):
    tables = []
    for video in range(made.videos):
        rows = torch.from_numpy(np.load(folder / f"{video}.npy"))
        segments, scores, _, counts, _ = (part[0].numpy() for part in made.peer(rows, torch.tensor([0, len(rows)])))
        owner = np.full(counts, video)
        tables.append(np.column_stack([owner, SECONDS * segments[:counts], scores[:counts]]))
    return np.concatenate(tables)


@pytest.fixture(scope="module", params=CASES)
def contest(request, tmp_path_factory):
    videos, width = CASES[request.param]
    made = Localization("cpu", videos, CLASSES, width, MEAN_ROWS, precision="float32")
    folder = tmp_path_factory.mktemp("videos")
    rows, offsets = cases.sequences(videos, MEAN_ROWS, made.model.feature_dimension, torch.float16)
    with ArchiveWriter(folder / "a.h5", dimension=made.model.feature_dimension) as writer:
        for video, own in enumerate(rows.tensor_split(offsets[1:-1])):
            writer.add(f"{video:03}", own.numpy(), SECONDS)
            np.save(folder / f"{video}.npy", own.numpy())
    names = tuple(map(str, range(CLASSES)))
    checkpoint = Checkpoint(Config(model=made.model), names, (), made.network, folder)
    with open_archive(folder / "a.h5") as archive:
        ways = {
            **own_ways(from_archive, archive, checkpoint, made.config),
            "folder of .npy, peers' forms": functools.partial(from_folder, folder, made),
        }
        sizes = {"videos": videos, "classes": CLASSES, "width": width, "dimension": made.model.feature_dimension}
        yield Contest(f"localize, archive, {request.param}", sizes, ways, nearly_all, absent_ways(), time.perf_counter)


@pytest.mark.parametrize("way", WAYS)
def test_localize_archive(race, contest, way):
    race(contest, way)
