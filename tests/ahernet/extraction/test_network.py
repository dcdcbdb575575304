"""Batches of clips where memory is short."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_videos import TINY
from torch import nn

from ahernet.extraction.network import ClipNetwork


class ShortOfMemory(nn.Module):
    """A network for which memory is short if there are more than `most` clips; notes how many it was given."""

    def __init__(self, network, most):
        super().__init__()
        self.network, self.most, self.seen = network, most, []

    def forward(self, clips):
        self.seen.append(len(clips))
        if len(clips) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.network(clips)


def _network(most):
    """A network that computes features, and that within it which is short of memory."""
    limited = ShortOfMemory(TINY.build(), most)
    return ClipNetwork(replace(TINY, build=lambda: limited), None, "cpu", "float32"), limited


def _clips(count):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 16, 3), dtype=np.uint8)


def test_a_batch_is_halved_until_it_fits_and_stays_so(capsys):
    network, limited = _network(most=3)
    found = network.launch(_clips(8))()
    assert limited.seen == [8, 4, 2, 2, 2, 2]
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert [line.partition("goes on with ")[2][:18] for line in said] == ["4 clips at a time;", "2 clips at a time;"]
    limited.seen.clear()
    again = network.launch(_clips(8))()
    assert limited.seen == [2, 2, 2, 2]
    assert not capsys.readouterr().err
    limited.most = 8
    expected = ClipNetwork(replace(TINY, build=lambda: limited), None, "cpu", "float32").launch(_clips(8))()
    for features in (found, again):
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-3)


def test_a_clip_too_many_for_memory_ends_in_its_error():
    network, limited = _network(most=0)
    with pytest.raises(torch.OutOfMemoryError):
        network.launch(_clips(5))
    assert limited.seen == [5, 2, 1]


def test_an_error_of_another_kind_is_not_tried_again():
    network, limited = _network(most=8)
    limited.network = nn.Flatten(start_dim=9)
    with pytest.raises(IndexError, match="Dimension out of range"):
        network.launch(_clips(4))
    assert limited.seen == [4]
