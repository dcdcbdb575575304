import dataclasses

import numpy as np
import pytest

from ahernet.config import config_from_dict
from ahernet.data.annotations import read_annotations
from ahernet.data.archive import open_archive
from ahernet.rendered import WorldConfig, write_world
from ahernet.training.batches import build_training_set
from ahernet.training.trainer import train

WORLD = WorldConfig(classes=3, training_videos=20, validation_videos=0, dimension=4, max_duration=40)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    archive, annotations = write_world(tmp_path_factory.mktemp("world"), WORLD)
    with open_archive(archive) as opened:
        yield opened, read_annotations(annotations)


def test_a_share_keeps_whole_videos_with_all_their_segments(world):
    whole = build_training_set(*world)
    part = whole.share(0.3, seed=5)
    assert len(part) == 6
    assert part.summary.usable_videos == 6
    assert part.summary.usable_segments == len(part.segments) == part.offsets[-1]
    for row, position in enumerate(part.positions):
        (of_whole,) = np.flatnonzero(whole.positions == position)
        own, all_of_it = (
            slice(part.offsets[row], part.offsets[row + 1]),
            slice(whole.offsets[of_whole], whole.offsets[of_whole + 1]),
        )
        np.testing.assert_array_equal(part.segments[own], whole.segments[all_of_it])
        np.testing.assert_array_equal(part.labels[own], whole.labels[all_of_it])


def test_what_a_share_leaves_out_is_said(world):
    whole = build_training_set(*world)
    part = whole.share(0.05, seed=5)
    untaught = set(range(len(whole.classes))) - set(part.labels.tolist())
    assert untaught
    assert part.summary.classes_without_segments == tuple(whole.classes[label] for label in sorted(untaught))
    said = part.summary.describe()
    assert "left out 19 videos by the share that is asked for" in said
    assert f"learns nothing of {len(untaught)} classes without a segment" in said
    assert "share" not in whole.summary.describe()


def test_shares_of_a_seed_grow_and_seeds_differ(world):
    whole = build_training_set(*world)
    shares = [set(whole.share(share, seed=1).positions.tolist()) for share in (0.01, 0.2, 0.5, 1.0)]
    assert [len(share) for share in shares] == [1, 4, 10, 20]
    assert shares[0] < shares[1] < shares[2] < shares[3]
    assert set(whole.share(0.5, seed=2).positions.tolist()) != shares[2]


def test_training_uses_the_share_that_is_asked_for(world, tmp_path, capsys):
    config = config_from_dict(
        {
            "preset": "tiny",
            "model": {"width": 1 / 256, "minimum_channels": 4, "steps": 128},
            "training": {"batch_size": 2, "iterations": 1},
        }
    )
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, annotated_share=0.25))
    result = train(*world, tmp_path / "run", config, device="cpu")
    assert len(result.data.untrimmed) == 5
    assert " in 5 of 20 videos" in capsys.readouterr().err
