import errno
import math
import resource
import zlib
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from small_videos import brightness, write_video

from ahernet.errors import UserError
from ahernet.extraction.decoding import ClipDecoder, FailedVideo
from ahernet.extraction.pyav_decoder import PyAVDecoder
from ahernet.extraction.video import Framing, ReadingFailed

FRAMING = Framing(20, 16)


def decoded(path: Path, framing: Framing = FRAMING):
    with PyAVDecoder().open(path, framing) as video:
        return list(video.frames()), video


def numbers(frames) -> list[int]:
    """Tell the numbers of frames by their brightness, which compression changes a little."""
    levels = np.array([frame.pixels.mean() for frame in frames])
    found = np.round((levels - brightness(0)) / (brightness(1) - brightness(0))).astype(int)
    # The conversion of colours rounds by up to 2.
    assert np.abs(levels - [brightness(number) for number in found]).max() <= 2.4
    return found.tolist()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.mpg"])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (98, 34)])
def test_every_frame_comes_once_in_order_with_its_time(name, size, tmp_path):
    path = write_video(tmp_path / name, 40, size=size, codec="mpeg1video" if name == "a.mpg" else "mpeg4")
    frames, video = decoded(path)
    assert numbers(frames) == list(range(40))
    assert {frame.pixels.shape for frame in frames} == {(16, 16, 3)}
    times = np.array([frame.time for frame in frames])
    if name != "a.mpg":  # its multiplexer leaves gaps
        np.testing.assert_allclose(times - times[0], np.arange(40) / 25, atol=0.002)
    if name != "a.ts":  # which has no rate
        assert video.declared_rate == pytest.approx(25)
    assert video.damaged == 0
    if name in ("a.mp4", "a.avi"):
        assert video.declared_frames == 40


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv"])
def test_tags_that_are_not_utf_8_are_no_matter(name, tmp_path):
    path = write_video(tmp_path / name, 20)
    content = path.read_bytes()
    assert b"Lavf" in content  # what wrote it
    path.write_bytes(content.replace(b"Lavf", b"\xff\xe9\xfe\xff"))
    frames, _ = decoded(path)
    assert numbers(frames) == list(range(20))


def left_half_white(pixels, number):
    pixels[:, : pixels.shape[1] // 2] = 255


@pytest.mark.parametrize(("rotation", "white"), [(0, "left"), (90, "bottom"), (180, "right"), (-90, "top")])
def test_a_video_that_was_held_sideways_is_turned_up(rotation, white, tmp_path):
    frames, _ = decoded(write_video(tmp_path / "a.mp4", 2, rotation=rotation, paint=left_half_white))
    picture = frames[0].pixels.astype(int)
    halves = {
        "left": (picture[:, :7], picture[:, 9:]),
        "right": (picture[:, 9:], picture[:, :7]),
        "top": (picture[:7], picture[9:]),
        "bottom": (picture[9:], picture[:7]),
    }
    bright, dark = halves[white]
    assert bright.min() > 200 > 60 > dark.max()


def test_the_middle_is_cut_out_and_colours_are_red_green_blue(tmp_path):
    def red_middle(pixels, number):
        pixels[:, 24:40] = (250, 10, 10)  # of 64 x 48: the middle 16 columns, 6.67 of 20 after the resizing

    frames, _ = decoded(write_video(tmp_path / "a.mkv", 1, paint=red_middle, codec="ffv1"))
    middle, edge = frames[0].pixels[8, 8], frames[0].pixels[8, 1]
    assert middle[0] > 200
    assert middle[1:].max() < 60
    assert np.ptp(edge.astype(int)) < 20


def test_pixels_that_are_not_square_are_displayed_so(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 3  # displayed 96 x 48
        pixels = np.zeros((48, 32, 3), np.uint8)
        pixels[:, 14:18] = 255  # 1/8 of the width, displayed 12 of 96
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    frames, _ = decoded(path)
    assert frames[0].pixels[8, :, 0].astype(float).sum() / 255 == pytest.approx(12 * 20 / 48, abs=0.7)


def test_frames_that_are_nearly_lines_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 2, size=(640, 16))
    monkeypatch.setattr("ahernet.extraction.pyav_decoder.MOST_PIXELS", 1_000_000)
    with pytest.raises(UserError, match="frames of 640 x 16 pixels are too far from square"):
        decoded(path, Framing(400, 16))  # which makes them 16,000 x 400


def test_times_of_a_video_with_a_changing_rate_are_kept(tmp_path):
    times = [0.0, 0.04, 0.08, 1.0, 1.5, 1.54]
    frames, _ = decoded(write_video(tmp_path / "a.mkv", 6, times=times))
    assert numbers(frames) == list(range(6))
    np.testing.assert_allclose([frame.time for frame in frames], times, atol=0.002)


FAST_START = {"movflags": "faststart"}


@pytest.mark.parametrize(
    ("name", "options"), [("a.mp4", FAST_START), ("a.mkv", {}), ("a.ts", {}), ("a.avi", {}), ("a.mp4", {})]
)
@pytest.mark.parametrize("share", [0.97, 0.8, 0.5, 0.2, 0.03])
def test_a_file_cut_anywhere_gives_its_first_frames_or_one_error(name, options, share, tmp_path):
    def noise(pixels, number):
        pixels[:, :10] = np.random.default_rng(number).integers(0, 255, (48, 10, 3), np.uint8)  # not in the middle

    whole = write_video(tmp_path / f"whole-{name}", 40, options=options, paint=noise)
    content = whole.read_bytes()
    cut = tmp_path / name
    cut.write_bytes(content[: int(len(content) * share)])
    try:
        frames, _ = decoded(cut)
    except UserError:
        assert (name == "a.mp4" and not options) or share < 0.5
        return
    assert len(frames) < 40 or share > 0.9
    whole_frames = frames[:-2]  # the last ones may be cut through
    assert not whole_frames or numbers(whole_frames) == list(range(len(whole_frames)))


def test_damage_inside_is_counted_and_passed_over(tmp_path):
    path = write_video(tmp_path / "a.ts", 40)
    content = bytearray(path.read_bytes())
    for place in range(3000, len(content), 400):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    frames, video = decoded(path)
    assert 0 < len(frames) <= 40
    assert video.damaged > 0


def bad_files(folder: Path) -> dict[str, str]:
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video at all\n" * 100)
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.ts\n#EXT-X-ENDLIST\n")
    (folder / "list.ffconcat").write_text("ffconcat version 1.0\nfile a.ts\n")
    write_video(folder / "a.ts", 3)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return {
        "empty.mp4": "the file is empty",
        "text.mp4": "not a readable video",
        "list.m3u8": "a list of other files|not a readable video",
        "list.ffconcat": "a list of other files|not a readable video",
        "sound.mp4": "has no video stream",
        "missing.mp4": "not a readable video .No such file",
    }


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("readable", [False, True])
def test_a_system_that_fails_to_read_is_told_from_a_broken_file(tmp_path, monkeypatch, careful, readable):
    path = write_video(tmp_path / "a.mp4", 20)
    with PyAVDecoder().open(path, FRAMING, careful=careful) as video:
        if not readable:
            path.unlink()

        def demux(stream):
            yield from ()
            raise av.error.OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(video, "_container", SimpleNamespace(demux=demux))
        if careful and readable:
            list(video.frames())
            assert video.damaged == 1
        else:
            with pytest.raises(ReadingFailed, match="Input/output error"):
                list(video.frames())


def test_with_care_damaged_frames_are_the_same_every_time(real_data, tmp_path):
    content = bytearray((real_data / "videos" / "arm_wrestling_k400_demo.mp4").read_bytes())
    random = np.random.default_rng(1)
    for place in random.integers(len(content) // 10, len(content) * 9 // 10, size=40):
        content[place] ^= 1 << random.integers(8)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)

    def digest() -> tuple[int, int]:
        with PyAVDecoder().open(path, FRAMING, careful=True) as video:
            checksum = 0
            for frame in video.frames():
                checksum = zlib.crc32(frame.pixels.tobytes(), checksum)
            return checksum, video.damaged

    first, *others = (digest() for _ in range(3))
    assert first[1] > 0
    assert others == [first] * 2


def test_pixel_formats_that_cannot_be_converted_end_a_video(tmp_path):
    path = tmp_path / "a.nut"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr4"
        frame = av.VideoFrame(64, 48, "bgr4")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="frames of pixel format bgr4 cannot be converted"):
        decoded(path)


def test_what_is_no_video_is_refused(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=message):
            decoded(tmp_path / name)


@pytest.mark.parametrize("name", ["http:x.mp4", "concat:a|b.mp4", "a?b=%41.mp4", "ü 日本.mp4", "-y.mp4"])
def test_odd_names_are_names_of_files_and_nothing_else(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.mp4", 3).rename(tmp_path / name)
    frames, _ = decoded(Path(name))
    assert len(frames) == 3


def test_a_header_that_claims_huge_frames_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ahernet.extraction.pyav_decoder.MOST_PIXELS", 1000)
    with pytest.raises(UserError, match="frames of 64 x 48 pixels, at most 1,000 pixels"):
        decoded(write_video(tmp_path / "a.mp4", 3))


def test_devices_that_ffmpeg_does_not_know_are_refused_and_those_not_here_said(tmp_path):
    with pytest.raises(UserError, match=r"--decode-on: expected cpu or one of .*, got 'abacus'"):
        PyAVDecoder("abacus")
    path = write_video(tmp_path / "a.mp4", 3)
    decoder = PyAVDecoder("cuda")
    assert (decoder.name, PyAVDecoder().name) == ("pyav cuda", "pyav")
    try:
        with decoder.open(path, FRAMING) as video:
            assert numbers(list(video.frames())) == [0, 1, 2]
    except UserError as error:
        assert "not a readable video on cuda" in str(error)  # noqa: PT017


REAL = {
    "apply_eye_makeup_ucf101_test.avi": (164, 6.56),
    "arm_wrestling_k400_demo.mp4": (280, 10.0),
    "basketball_structuralize.mp4": (300, 10.01),
    "grid_s1_bbaf2n.mpg": (75, 3.0),
    "highjump.mp4": (726, 24.2),
    "tennis26.mp4": (339, 11.3),
}


@pytest.mark.parametrize("name", REAL)
def test_real_videos_decode_whole(name, real_data):
    from ahernet.extraction.video import duration_of, remarks_on

    path = real_data / "videos" / name
    if not path.exists():
        pytest.skip(f"AHERNET_DATA has no videos/{name}")
    frames, video = decoded(path)
    count, seconds = REAL[name]
    assert len(frames) == count
    duration = duration_of(count, frames[-1].time - frames[0].time, 1, video.declared_rate)
    assert duration == pytest.approx(seconds, abs=0.02)
    assert remarks_on(video, count, duration) == ()
    assert not any(math.isnan(frame.time) for frame in frames)


def field(content: bytes, box: bytes, offset: int, value: int) -> bytes:
    """Overwrite four bytes in the first box of an MP4 file, counted from behind its name."""
    at = content.index(box) + 4 + offset
    return content[:at] + value.to_bytes(4, "big") + content[at + 4 :]


@pytest.mark.parametrize(
    ("box", "offset", "value", "duration", "told"),
    [
        (b"mvhd", 16, 0xFFFFFFF0, 1.6, ""),  # a thousand hours, by the header
        (b"mdhd", 16, 0xFFFFFFF0, 1.6, ""),
        (b"stts", 4, 0x7FFFFFFF, None, "not a readable video"),  # entries of a table
        (b"stts", 8, 0x7FFFFFFF, 1.6, "40 of 2,147,483,647 frames"),
        (b"stsz", 8, 0x7FFFFFFF, None, "not a readable video"),
        (b"mdhd", 12, 0, None, "1 of 40 frames"),  # units of no seconds
        (b"mdhd", 12, 0xFFFFFFFF, None, "1 of 40 frames"),
        (b"stts", 12, 0x7FFFFFFF, None, "1 of 40 frames"),  # time from frame to frame
    ],
)
def test_headers_that_lie_are_told_or_do_not_matter(box, offset, value, duration, told, tmp_path):
    content = write_video(tmp_path / "a.mp4", 40).read_bytes()
    (tmp_path / "b.mp4").write_bytes(field(content, box, offset, value))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    *_, end = ClipDecoder(PyAVDecoder(), FRAMING, 16, 8)("b", tmp_path / "b.mp4")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
    if duration is not None:
        assert end.duration == pytest.approx(duration)
    assert told in (end.reason if isinstance(end, FailedVideo) else "; ".join(end.remarks))
