"""Small videos whose frames tell their number by their brightness, and a network for them that is quick."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor, nn

from ahernet.extraction.backbones import Backbone, Preprocessing

SIDE = 16


class MeansOfFrames(nn.Module):
    """Features of a clip: the mean of each frame, and a learnt sum of all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.Conv3d(3, 2, (16, SIDE, SIDE))
        self.fc = nn.Linear(2, 3)

    def forward(self, clips: Tensor) -> Tensor:
        return torch.cat([clips.mean((1, 3, 4)), self.sum(clips).flatten(1)], dim=1)


PLAIN = Preprocessing(20, SIDE, peak=255.0, mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0))


# The first 16 features are the brightness of the clip's frames, 0 to 255.
TINY = Backbone("means", dimension=18, build=MeansOfFrames, preprocessing=PLAIN)


def brightness(number: int) -> int:
    return 20 + 5 * number


def write_video(
    path: Path,
    frames: int,
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    rate: int = 25,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    paint: Callable[[np.ndarray, int], None] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose n-th frame has the grey `brightness(n)`, and whatever `paint` puts on it."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.bit_rate = 5_000_000
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), brightness(number), np.uint8)
            if paint is not None:
                paint(pixels, number)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
