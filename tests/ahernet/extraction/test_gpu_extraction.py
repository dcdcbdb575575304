from dataclasses import replace

import numpy as np
import pytest
from small_videos import TINY, write_video

from ahernet.extraction.backbones import Preprocessing
from ahernet.extraction.decoding import ClipDecoder
from ahernet.extraction.network import ClipNetwork
from ahernet.extraction.p3d import P3D
from ahernet.extraction.pyav_decoder import PyAVDecoder
from ahernet.extraction.video import Framing
from ahernet.extraction.video_features import extract_videos

SMALL = replace(
    TINY, name="small", dimension=256, build=lambda: P3D("caffe", (1, 2, 2, 1), 8), preprocessing=Preprocessing(72, 64)
)


@pytest.mark.gpu
@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_a_gpu_gives_the_features_of_the_cpu_and_the_same_bits_in_any_company(arithmetic, tmp_path):
    videos = {str(k): write_video(tmp_path / f"{k}.mp4", 10 + 8 * k, size=(96, 80)) for k in range(4)}
    decode = ClipDecoder(PyAVDecoder(), Framing(72, 64), 16, 8)

    def features(device: str, *names: str) -> dict[str, np.ndarray]:
        network = ClipNetwork(SMALL, None, device, arithmetic)
        done = extract_videos([(name, videos[name]) for name in names], network, decode, 6, 2)
        return {video.video_id: video.features for video in done}

    together, backwards = features("cuda", *videos), features("cuda", *reversed(videos))
    expected = features("cpu", *videos)
    for name in videos:
        assert np.array_equal(together[name], backwards[name])
        assert np.array_equal(together[name], features("cuda", name)[name])
        error = np.linalg.norm(together[name] - expected[name]) / np.linalg.norm(expected[name])
        assert error < (1e-4 if arithmetic == "float32" else 0.03)
