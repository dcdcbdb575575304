"""Grids of launches for more of something than the second axis of a grid has room for."""

import pytest
import torch
from ahernet_kernels.nms_large import Kernels, nms_large_launch
from ahernet_kernels.pairwise_tiou import DEFAULTS, pairwise_tiou_launch
from ahernet_kernels.resample import resample_launch
from ahernet_kernels.stretch import stretch_launch

AXIS_LIMIT = 65_535  # of CUDA, for the second and the third
MANY = AXIS_LIMIT + 1


class Launched:
    """Stands for a kernel, and keeps the grid that it is launched on."""

    def __getitem__(self, grid):
        self.grid = grid
        return lambda *arguments, **settings: None


def grid_of(launch, *arguments):
    kernel = Launched()
    launch(kernel, *arguments)
    return kernel.grid


@pytest.mark.parametrize(
    ("launch", "arguments"),
    [
        (resample_launch, (torch.zeros(1, 1), torch.zeros(MANY + 1, dtype=torch.int64), 1)),
        (
            stretch_launch,
            (
                *[torch.zeros(MANY, 1, 1)] * 3,
                torch.zeros((MANY, 3), dtype=torch.int64),
                torch.zeros((MANY, 1), dtype=torch.int64),
            ),
        ),
        (pairwise_tiou_launch, (torch.zeros(1, 2), torch.zeros(1, 2).expand(MANY * DEFAULTS["BLOCK_M"], 2))),
        (pairwise_tiou_launch, (torch.zeros(1, 2).expand(MANY * DEFAULTS["BLOCK_N"], 2), torch.zeros(1, 2))),
    ],
)
def test_what_there_may_be_any_number_of_is_on_the_first_axis(launch, arguments):
    first, *others = grid_of(launch, *arguments)
    assert first >= MANY
    assert all(size <= AXIS_LIMIT for size in others)


def test_more_videos_of_many_candidates_than_a_grid_has_room_for_are_refused():
    segments, scores = torch.zeros(1, 1, 2).expand(MANY, 2, 2), torch.zeros(1, 1).expand(MANY, 2)
    with pytest.raises(ValueError, match="scores: expected at most 65535 videos"):
        nms_large_launch(Kernels(*[Launched()] * len(Kernels._fields)), segments, scores, None, 0.5, 1, 0.0)
