from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_videos import TINY

from ahernet.extraction.decoding import ClipDecoder
from ahernet.extraction.network import ClipNetwork
from ahernet.extraction.video import Frame, Framing
from ahernet.extraction.video_features import extract_videos

FRAMES = 60


class Damaged:
    """Decodes to frames of one grey each; without care they are black, and the last one is damaged."""

    name = "damaged"
    declared_frames, declared_duration, declared_rate, declared_start = FRAMES, FRAMES / 10, 10.0, 0.0

    @contextmanager
    def open(self, path: Path, framing: Framing, *, careful: bool = False):
        opened = Damaged()
        opened.careful, opened.damaged = careful, 0
        yield opened

    def frames(self):
        for number in range(FRAMES):
            self.damaged = int(number == FRAMES - 1)
            yield Frame(number / 10, np.full((16, 16, 3), number if self.careful else 0, np.uint8))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_video_that_begins_again_has_the_rows_of_its_last_attempt_alone(batch_size):
    network = ClipNetwork(TINY, None, "cpu", "float32")
    decode = ClipDecoder(Damaged(), Framing(20, 16), clip_length=16, stride=8)
    videos = [(f"v{number}", Path("v")) for number in range(3)]
    found = {video.video_id: video for video in extract_videos(videos, network, decode, batch_size, workers=2)}
    assert found.keys() == {"v0", "v1", "v2"}
    for video in found.values():
        starts = np.arange(len(video.features)) * 8
        levels = np.minimum(starts[:, None] + np.arange(16), FRAMES - 1)
        np.testing.assert_allclose(video.features[:, :16], levels, atol=1e-3)
        assert video.remarks == ("1 damaged frames or packets",)


def test_batches_are_told_of_while_a_video_is_computed():
    network = ClipNetwork(TINY, None, "cpu", "float32")
    decode = ClipDecoder(Damaged(), Framing(20, 16), clip_length=16, stride=8)
    told = []
    found = extract_videos([("v", Path("v"))], network, decode, 2, 1, lambda batch: told.append(batch.places))
    video = next(found)
    assert len(told) > 1
    assert list(found) == []
    last_attempt = [clip.number for places in told for clip in places if clip is not None and clip.attempt == 1]
    assert sorted(last_attempt) == list(range(len(video.features)))
