"""Decoding with PyAV (FFmpeg): threads of its own, any codec, frames made small before they leave it."""

import errno
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ahernet.errors import UserError
from ahernet.extraction.video import Frame, Framing, ReadingFailed

try:
    import av
    import av.codec.hwaccel
    from av.video.reformatter import VideoReformatter
except ImportError as missing:
    raise UserError("extract: needs PyAV; install it with pip install 'ahernet[video]'") from missing

PLAYLISTS = {"hls", "dash", "concat", "image2", "imf"}  # they would open other files than the one that was named
# What systems say when they fail to read, some of which FFmpeg also says of broken files.
SYSTEM_ERRORS = {
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENODEV,
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ENOTCONN,
    errno.ECONNRESET,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
}
READ_BYTES = 1 << 22
# Titles that are not UTF-8 are no reason to refuse a video. From version 19 on PyAV decodes what is asked for alone.
TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
MOST_PIXELS = 1 << 26  # of a frame, above 8K: a damaged header must not claim all memory


class PyAVVideo:
    """An open file; `OpenVideo` says what the attributes are."""

    def __init__(self, container: Any, stream: Any, framing: Framing, failure: "_Failure") -> None:
        self.declared_frames = int(stream.frames)
        self.declared_duration = _seconds(container, stream)
        self.declared_rate = float(stream.average_rate or math.nan)
        start = container.start_time
        self.declared_start = math.nan if start is None else start / av.time_base
        self.damaged = 0
        self._container = container
        self._stream = stream
        self._framing = framing
        self._failure = failure
        self._reformatter = VideoReformatter()

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; what cannot be decoded is counted in `damaged` and passed over."""
        for decode in self._packets():
            try:
                decoded = decode()
            except av.FFmpegError as error:
                self._failure.check(error)
                self.damaged += 1
                continue
            for frame in decoded:
                self.damaged += bool(frame.is_corrupt)
                time = math.nan if frame.time is None else float(frame.time)
                yield Frame(time, self._cut(frame))

    def _packets(self) -> Iterator[Callable[[], list[Any]]]:
        """Yield what decodes each packet; the last one gives what the decoder still holds."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:  # the file breaks off
                self._failure.check(error)
                self.damaged += 1
                yield lambda: self._stream.decode(None)
                return
            if packet is None:
                return
            yield packet.decode

    def _cut(self, frame: Any) -> np.ndarray:
        """Return the middle of a frame as it is displayed: pixels made square, turned the way it was held.

        The message of an error does not name the file.
        """
        aspect = self._stream.sample_aspect_ratio
        width, height = frame.width * float(aspect or 1), frame.height
        scale = self._framing.resize / min(width, height)
        # a side never comes out smaller than the square, whatever the rounding
        width, height = (max(self._framing.resize, round(length * scale)) for length in (width, height))
        if width * height > MOST_PIXELS:
            raise UserError(f"frames of {frame.width} x {frame.height} pixels are too far from square")
        try:
            small = self._reformatter.reformat(frame, width=width, height=height, format="rgb24").to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            raise UserError(
                f"frames of pixel format {frame.format.name} cannot be converted, expected another such as yuv420p"
            ) from error
        side = self._framing.side
        top, left = ((length - side) // 2 for length in small.shape[:2])
        middle = small[top : top + side, left : left + side]
        return np.rot90(middle, round(frame.rotation / 90))


@dataclass(frozen=True)
class _Failure:
    """Tells a system that fails to read `path` from a broken file. FFmpeg says the same of both, so `careful` reads
    the file once more by other means."""

    path: Path
    careful: bool

    def check(self, error: Exception) -> None:
        """Raise ReadingFailed if the system failed."""
        if getattr(error, "errno", None) in SYSTEM_ERRORS and not (self.careful and self._can_be_read()):
            raise ReadingFailed(getattr(error, "strerror", "")) from error

    def _can_be_read(self) -> bool:
        try:
            with self.path.open("rb", buffering=0) as file:
                while file.read(READ_BYTES):
                    pass
        except OSError:
            return False
        return True


class PyAVDecoder:
    """The `Decoder` in use.

    Args:
        hardware: "cuda" or what else FFmpeg calls a device that decodes; None to decode on the CPU. Videos that
            the device cannot decode are decoded on the CPU; frames are made small there in any case.

    Raises:
        UserError: FFmpeg knows no such device.
    """

    def __init__(self, hardware: str | None = None) -> None:
        self.name = "pyav" if hardware is None else f"pyav {hardware}"
        self._hardware = hardware
        if hardware is not None:
            known = av.codec.hwaccel.hwdevices_available()
            if hardware not in known:
                raise UserError(f"extract: --decode-on: expected cpu or one of {', '.join(known)}, got {hardware!r}")

    @contextmanager
    def open(self, path: Path, framing: Framing, *, careful: bool = False) -> Iterator[PyAVVideo]:
        """Open a video file for decoding; only this file is read, whatever it refers to.

        Raises:
            UserError: it is empty, no video, or of a kind that cannot be decoded. The message does not name it.
            ReadingFailed: the system could not read it.
        """
        failure = _Failure(path, careful)
        with self._open_container(path, failure) as container:
            if PLAYLISTS & set(container.format.name.split(",")):
                raise UserError(f"a list of other files ({container.format.name}), expected a video")
            stream = _moving_pictures(container)
            if stream.width * stream.height > MOST_PIXELS:
                raise UserError(f"frames of {stream.width} x {stream.height} pixels, at most {MOST_PIXELS:,} pixels")
            stream.thread_type = "AUTO"
            if careful:  # what threads make of a damaged frame depends on which of them is first
                stream.codec_context.thread_count = 1
            # frames may be larger than the header says
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            yield PyAVVideo(container, stream, framing, failure)

    def _open_container(self, path: Path, failure: _Failure) -> Any:
        try:
            if not path.stat().st_size:
                raise UserError("the file is empty, expected a video")
            # "file:" because FFmpeg takes what stands before a colon in a name for a protocol
            return av.open(
                f"file:{path}",
                options={"protocol_whitelist": "file"},
                **TOLERANT,
                hwaccel=self._hardware and av.codec.hwaccel.HWAccel(self._hardware),
            )
        except (OSError, av.FFmpegError) as error:
            failure.check(error)
            where = f" on {self._hardware}" if self._hardware else ""
            raise UserError(f"not a readable video{where} ({error.strerror})") from error


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else math.nan


def _moving_pictures(container: Any) -> Any:
    for stream in container.streams.video:
        with suppress(AttributeError):  # streams without a decoder have no such attribute
            if stream.codec_context is not None and not stream.disposition & av.stream.Disposition.attached_pic:
                return stream
    raise UserError("has no video stream that can be decoded, expected one")
