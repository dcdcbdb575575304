"""What every bench shares: one thread, ways that take turns, and what a recorded run says of itself."""

import importlib.metadata
import importlib.util
import itertools
import platform
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.peers.compiled import Compiled, has_compiler

PACKAGES = ("torch", "numpy", "pytest-benchmark", *(["numba"] if importlib.util.find_spec("numba") else []))
KEPT_FIELDS = ("group", "name", "fullname", "params", "param", "extra_info")
KEPT_STATISTICS = ("min", "max", "mean", "stddev", "median", "iqr", "outliers", "ops", "rounds", "iterations")
KEPT_COMMIT = ("id", "time", "dirty")


class Clock:
    """A timer that stands still but for what is put on it: replays times that were taken before."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


CLOCK = Clock()
ASKED = pytest.StashKey()  # names of the tests that are run: what of the benches is asked for


def pytest_collection_modifyitems(items):
    for item in items:
        if "race" in item.fixturenames:
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


def pytest_collection_finish(session):
    session.config.stash[ASKED] = [item.name for item in session.items]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads of a shared machine make times that nobody can repeat."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compiled():
    """The forms in C++, or None where there is no compiler."""
    if not has_compiler():
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Compiled(Path(folder))


@pytest.fixture
def race(benchmark, request):
    """Report one way of a contest: its turns were timed between those of the others."""

    def run(contest, name):
        if name not in contest.ways:
            pytest.skip(contest.absent[name])
        benchmark.group = contest.group
        benchmark.extra_info.update(contest.sizes, way=name)
        if benchmark.disabled:
            contest.check(benchmark.pedantic(contest.ways[name]), contest.expected)
            return
        times = contest.times[name]
        turn = itertools.chain(times, itertools.repeat(0.0))

        def replay():
            CLOCK.now += next(turn)

        benchmark.pedantic(replay, rounds=len(times))

    return run


def pytest_benchmark_update_machine_info(machine_info):
    """Say what processor and which versions, not whose machine."""
    processor = machine_info["cpu"].get("brand_raw", machine_info["machine"])
    machine_info.clear()
    machine_info.update(
        processor=processor,
        system=platform.system(),
        python=platform.python_version(),
        threads=1,
        clock="CPU time of the thread, where ways take turns",
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    )


def pytest_benchmark_update_commit_info(commit_info):
    kept = {name: commit_info.get(name) for name in KEPT_COMMIT}
    commit_info.clear()
    commit_info.update(kept)


def pytest_benchmark_update_json(config, output_json):
    """Keep statistics instead of all times, with the 20 % and 80 % quantiles among them, and what was to be timed."""
    output_json["asked"] = config.stash[ASKED]
    output_json["benchmarks"] = [_trimmed(entry) for entry in output_json["benchmarks"]]


def _trimmed(entry):
    times = entry["stats"].pop("data")
    low, high = np.quantile(times, [0.2, 0.8])
    statistics = {name: entry["stats"][name] for name in KEPT_STATISTICS} | {"q20": float(low), "q80": float(high)}
    # Seven digits are more than any clock gives, and keep the file small.
    statistics = {name: float(f"{x:.7g}") if isinstance(x, float) else x for name, x in statistics.items()}
    return {**{name: entry[name] for name in KEPT_FIELDS}, "stats": statistics}
