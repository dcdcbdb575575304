"""`pick` on a CPU: positions that suppression kept to detections.

python -m pytest bench/bench_pick.py
"""

import functools

import ahernet_kernels as kernels
import pytest

from bench import cases
from bench.contest import Contest
from bench.peers.localization import rows_by_gather, rows_by_index

CASES = {  # videos, candidates, outputs
    "small": (2, 96, 20),
    "design": (64, 765, 100),
    "20,000": (1, 20_000, 20_000),
}
CLASSES = 200
WAYS = ("ahernet", "torch, gathered", "torch, video by video")


@pytest.fixture(scope="module", params=CASES)
def contest(request):
    videos, candidates, outputs = CASES[request.param]
    rows = cases.candidates(videos, candidates, CLASSES)
    index, _ = kernels.nms(*rows, tiou_threshold=0.9, max_output=outputs)
    ways = {
        "ahernet": functools.partial(kernels.pick, *rows, index),
        "torch, gathered": functools.partial(rows_by_gather, *rows, index),
        "torch, video by video": functools.partial(rows_by_index, *rows, index),
    }
    sizes = {"videos": videos, "candidates": candidates, "outputs": outputs}
    return Contest(f"pick, {request.param}", sizes, ways)


@pytest.mark.parametrize("way", WAYS)
def test_pick(race, contest, way):
    race(contest, way)
