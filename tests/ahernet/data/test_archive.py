import errno
import math
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import zlib
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ahernet.data import archive_rows
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter, prepare_features
from ahernet.errors import UserError

IDS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)  # any Unicode, also composed and decomposed forms, slashes, newlines
VIDEOS = st.dictionaries(
    IDS,
    st.tuples(
        hnp.arrays(
            np.float32,
            st.tuples(st.integers(1, 5), st.just(3)),
            elements=st.floats(-65504, 65504, width=32),
        ),
        st.one_of(st.just(math.nan), st.floats(1e-3, 1e9)),
    ),
    min_size=1,
    max_size=8,
)


def write(path, videos, **settings):
    """Write {id: features or (features, duration)} and return the path."""
    first = next(iter(videos.values()))
    dimension = (first[0] if isinstance(first, tuple) else first).shape[1]
    with ArchiveWriter(path, dimension=dimension, **settings) as writer:
        for video_id, video in videos.items():
            writer.add(video_id, *(video if isinstance(video, tuple) else (video,)))
    return path


def ramp(rows, dimension=4, start=0):
    return np.arange(start, start + rows * dimension, dtype=np.float32).reshape(rows, dimension)


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def three(tmp_path):
    videos = {
        "v_a": (ramp(2), 10.0),
        "b": (ramp(1, start=100), math.nan),
        "ç/..\n": (ramp(3, start=200), 0.5),
    }
    return write(tmp_path / "three.h5", videos, frame_rate=25.0, clip_stride=16, origin="réseau ✓"), videos


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(videos=VIDEOS, dtype=st.sampled_from(["float16", "float32"]), data=st.data())
def test_what_is_written_is_read_back(tmp_path, videos, dtype, data):
    path = write(tmp_path / "a.h5", videos, dtype=dtype)
    with open_archive(path) as archive:
        assert archive.ids == tuple(videos)
        np.testing.assert_array_equal(archive.durations, [duration for _, duration in videos.values()])
        assert archive.lengths.tolist() == [len(features) for features, _ in videos.values()]
        positions = data.draw(st.lists(st.integers(0, len(videos) - 1), max_size=12))
        rows, offsets = archive.read(positions)
        assert rows.dtype == np.dtype(dtype) == archive.dtype
        assert offsets.dtype == np.int64
        assert offsets.tolist()[:1] == [0]
        assert len(offsets) == len(positions) + 1
        for k, position in enumerate(positions):
            expected = videos[archive.ids[position]][0].astype(dtype)
            np.testing.assert_array_equal(rows[offsets[k] : offsets[k + 1]], expected)
        assert list(archive.verify()) == []


def test_metadata_survives(three):
    path, videos = three
    with open_archive(path) as archive:
        assert (archive.dimension, archive.frame_rate, archive.clip_stride) == (4, 25.0, 16)
        assert archive.origin == "réseau ✓"
        assert len(archive) == 3
        assert [archive.position(video_id) for video_id in videos] == [0, 1, 2]


def test_unknown_metadata_reads_as_unknown(tmp_path):
    with open_archive(write(tmp_path / "a.h5", {"a": ramp(1)})) as archive:
        assert math.isnan(archive.frame_rate)
        assert math.isnan(archive.durations[0])
        assert archive.clip_stride == 0
        assert archive.origin == ""


def test_composed_and_decomposed_ids_stay_different(tmp_path):
    with open_archive(write(tmp_path / "a.h5", {"é": ramp(1), "e\u0301": ramp(2)})) as archive:
        assert archive.ids == ("é", "e\u0301")
        assert archive.position("e\u0301") == 1


def test_features_lie_contiguous_little_endian_and_aligned(tmp_path):
    path = write(tmp_path / "a.h5", {"a": ramp(40, 64)}, dtype="float32")
    with h5py.File(path) as file:
        features = file["features"]
        assert features.chunks is None
        assert features.compression is None
        assert features.dtype == np.dtype("<f4")
        offset = features.id.get_offset()
    assert offset % 4096 == 0
    stored = np.frombuffer(path.read_bytes()[offset : offset + 40 * 64 * 4], "<f4")
    np.testing.assert_array_equal(stored.reshape(40, 64), ramp(40, 64))


def test_same_content_gives_the_same_bytes(tmp_path):
    videos = {f"v{k}": ramp(k + 1, start=k) for k in range(20)}
    assert write(tmp_path / "a.h5", videos).read_bytes() == write(tmp_path / "b.h5", videos).read_bytes()


def test_absent_video_is_named(three):
    with open_archive(three[0]) as archive, pytest.raises(UserError, match=r"three\.h5.*'nobody'"):
        archive.position("nobody")


@pytest.mark.parametrize("positions", [[-1], [3], [0, 99]])
def test_positions_outside_are_refused(three, positions):
    with open_archive(three[0]) as archive, pytest.raises(IndexError, match="positions"):
        archive.read(positions)


def test_reading_nothing_gives_an_empty_batch(three):
    with open_archive(three[0]) as archive:
        rows, offsets = archive.read([])
    assert rows.shape == (0, 4)
    assert offsets.tolist() == [0]


def test_a_closed_archive_refuses_to_read_and_closes_twice(three):
    archive = open_archive(three[0])
    archive.close()
    archive.close()
    with pytest.raises(ValueError, match="closed"):
        archive.read([0])


def test_closing_ends_the_threads_and_frees_the_file(three):
    descriptors = open_descriptors()
    for _ in range(3):
        with open_archive(three[0]) as archive:
            archive.read([0, 1, 2])
    assert open_descriptors() == descriptors
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("archive")]


def test_a_refused_file_is_not_left_open(tmp_path):
    path = write(tmp_path / "a.h5", {"a": ramp(1)})
    with h5py.File(path, "r+") as file:
        file["offsets"][1] = 7
    descriptors = open_descriptors()
    with pytest.raises(UserError, match="offsets"):
        open_archive(path)
    assert open_descriptors() == descriptors


def test_a_pickled_archive_opens_the_file_again(three):
    with open_archive(three[0]) as archive, pickle.loads(pickle.dumps(archive)) as copy:
        np.testing.assert_array_equal(copy.read([2, 0])[0], archive.read([2, 0])[0])


def _sum_in_child(archive, queue):
    queue.put(float(archive.read([0, 1, 2])[0].astype(np.float64).sum()))


@pytest.mark.parametrize("layout", ["contiguous", "chunked"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_reads_with_its_own_threads(three, layout):
    path = three[0] if layout == "contiguous" else chunked_copy(three[0])
    with open_archive(path) as archive:
        expected = float(archive.read([0, 1, 2])[0].astype(np.float64).sum())  # starts the parent's threads
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_sum_in_child, args=(archive, queue))
        child.start()
        assert queue.get(timeout=20) == expected
        child.join(20)
        assert child.exitcode == 0
        assert float(archive.read([0, 1, 2])[0].astype(np.float64).sum()) == expected


def test_many_threads_may_read_one_archive(tmp_path):
    videos = {f"v{k}": np.full((k % 7 + 1, 8), k, np.float32) for k in range(50)}
    wrong = []
    with open_archive(write(tmp_path / "a.h5", videos)) as archive:

        def check(seed):
            order = np.random.default_rng(seed).permutation(50)
            rows, offsets = archive.read(order)
            if not (rows[offsets[:-1], 0] == order).all():
                wrong.append(seed)

        threads = [threading.Thread(target=check, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def chunked_copy(path, **options):
    """The same archive as another writer might store it."""
    copy = path.with_name("chunked.h5")
    with h5py.File(path) as source, h5py.File(copy, "w") as target:
        for name, value in source.attrs.items():
            target.attrs[name] = value
        for name in source:
            extra = {"chunks": (2, 3), **options} if name == "features" else {}
            target.create_dataset(name, data=source[name][...], dtype=source[name].dtype, **extra)
    return copy


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True}, {"fletcher32": True}])
def test_chunked_features_of_another_writer_are_read(three, options):
    path, videos = three
    with open_archive(chunked_copy(path, **options)) as archive:
        rows, offsets = archive.read([2, 0])
        np.testing.assert_array_equal(rows, np.concatenate([videos["ç/..\n"][0], videos["v_a"][0]]))
        assert offsets.tolist() == [0, 3, 5]
        assert list(archive.verify()) == []
    with pytest.raises(ValueError, match="closed"):
        archive.read([0])


def test_a_broken_chunk_names_the_video(three):
    path = chunked_copy(three[0], fletcher32=True)
    with h5py.File(path) as file:
        # the chunk that holds the last rows
        place = max(file["features"].id.get_chunk_info(k).byte_offset for k in range(6))
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with open_archive(path) as archive, pytest.raises(UserError, match=r"chunked\.h5.*cannot read video"):
        archive.read([0, 1, 2])


def test_an_archive_of_another_writer_without_videos_is_refused(three):
    path, _ = three
    with h5py.File(path, "r+") as file:
        for name in ("ids", "offsets", "durations", "crc32", "features"):
            empty = file[name][: 1 if name == "offsets" else 0]
            del file[name]
            file[name] = empty
    with pytest.raises(UserError, match=rf"{path.name}: holds no video, expected at least one$"):
        open_archive(path)


def test_text_attributes_may_be_variable_length(three):
    path, _ = three
    with h5py.File(path, "r+") as file:
        file.attrs["origin"] = "another writer"
        file.attrs["format"] = "ahernet-archive"
    with open_archive(path) as archive:
        assert archive.origin == "another writer"


def test_a_flipped_bit_is_found_by_verify(three):
    path, _ = three
    with h5py.File(path) as file:
        place = file["features"].id.get_offset() + 2 * 4 * 2  # first byte of the second video
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with open_archive(path) as archive:
        assert list(archive.verify()) == ["b"]


def test_checksums_are_those_of_zlib(three):
    path, videos = three
    with open_archive(path) as archive:
        expected = [zlib.crc32(features.astype("<f2").tobytes()) for features, _ in videos.values()]
        assert archive.checksums.tolist() == expected


@pytest.mark.parametrize("positions", [[2], [0, 1, 2]])
def test_a_file_cut_after_opening_names_the_video(three, positions):
    path, _ = three
    with h5py.File(path) as file:
        end = file["features"].id.get_offset() + file["features"].nbytes
    with open_archive(path) as archive:
        os.truncate(path, end - 1)
        with pytest.raises(UserError, match=r"three\.h5: the file ends inside video 'ç/\.\.\\n'"):
            archive.read(positions)


def test_a_replaced_file_does_not_mix_with_the_open_one(three):
    path, videos = three
    with open_archive(path) as archive:
        write(path, {"other": ramp(50, 4, 1000)})
        np.testing.assert_array_equal(archive.read([0])[0], videos["v_a"][0])


@pytest.mark.parametrize(
    ("video_id", "features", "duration", "message"),
    [
        ("", ramp(1), 1.0, "at least one character"),
        ("a\0b", ramp(1), 1.0, r"'a\\x00b'.*without NUL"),
        ("\ud800", ramp(1), 1.0, "not valid Unicode"),
        ("x" * 1025, ramp(1), 1.0, "1025 bytes"),
        ("first", ramp(1), 1.0, "'first': added twice"),
        ("bad", ramp(1, 5), 1.0, r"'bad'.*\(1, 5\), expected \(rows, 4\)"),
        ("bad", np.zeros(4), 1.0, r"'bad'.*\(4,\)"),
        ("bad", np.zeros((0, 4)), 1.0, "'bad'.*no rows"),
        ("bad", np.array([[0, 0, 0, 0], [0, math.nan, 0, 0]]), 1.0, "'bad'.*NaN or infinite.*row 1"),
        ("bad", np.full((1, 4), -math.inf), 1.0, "'bad'.*NaN or infinite"),
        ("bad", np.full((1, 4), 65505.0), 1.0, "'bad'.*65505 is beyond float16.*float32"),
        ("bad", np.full((1, 4), -7e4), 1.0, "'bad'.*70000 is beyond float16.*float32"),
        ("bad", np.full((1, 4), "x"), 1.0, "'bad'.*real numbers"),
        ("bad", np.full((1, 4), 1j), 1.0, "'bad'.*real numbers"),
        ("bad", ramp(1), 0.0, "'bad': duration is 0.0"),
        ("bad", ramp(1), -1.0, "'bad': duration is -1.0"),
        ("bad", ramp(1), math.inf, "'bad': duration is inf"),
    ],
)
def test_bad_videos_are_refused_by_name_and_leave_the_writer_usable(tmp_path, video_id, features, duration, message):
    path = tmp_path / "a.h5"
    with ArchiveWriter(path, dimension=4) as writer:
        writer.add("first", ramp(2), 1.0)
        with pytest.raises(UserError, match=message) as caught:
            writer.add(video_id, features, duration)
        assert "\n" not in str(caught.value)
        writer.add("last", ramp(3), 1.0)
    with open_archive(path) as archive:
        assert archive.ids == ("first", "last")
        np.testing.assert_array_equal(archive.read([1])[0], ramp(3))


def test_float32_holds_what_float16_cannot(tmp_path):
    with open_archive(write(tmp_path / "a.h5", {"a": np.full((1, 4), 1e30)}, dtype="float32")) as archive:
        assert archive.read([0])[0][0, 0] == np.float32(1e30)
    with pytest.raises(UserError, match=r"1e\+39 is beyond float32$"):
        write(tmp_path / "b.h5", {"a": np.full((1, 4), 1e39)}, dtype="float32")


def test_float16_limit_itself_is_accepted():
    assert prepare_features("a", np.array([[65504.0, -65504.0]]), 2, "float16").tolist() == [[65504, -65504]]


@pytest.mark.parametrize("layout", ["fortran", "strided", "big-endian", "integers", "list"])
def test_any_memory_layout_is_stored_alike(tmp_path, layout):
    wanted = ramp(3)
    features = {
        "fortran": np.asfortranarray(wanted),
        "strided": np.repeat(wanted, 2, axis=1)[:, ::2],
        "big-endian": wanted.astype(">f4"),
        "integers": wanted.astype(np.int16),
        "list": wanted.tolist(),
    }[layout]
    with ArchiveWriter(tmp_path / "a.h5", dimension=4) as writer:
        writer.add("a", features)
    with open_archive(tmp_path / "a.h5") as archive:
        np.testing.assert_array_equal(archive.read([0])[0], wanted)


def test_nothing_is_left_when_the_block_fails(tmp_path):
    videos = {"a": ramp(100), "b": np.full((1, 4), math.nan)}
    with pytest.raises(UserError, match="'b'"):
        write(tmp_path / "a.h5", videos)
    assert list(tmp_path.iterdir()) == []


def test_the_former_archive_stays_until_the_new_one_is_complete(tmp_path):
    path = write(tmp_path / "a.h5", {"old": ramp(1)})
    before = path.read_bytes()
    with ArchiveWriter(path, dimension=4) as writer:
        writer.add("new", ramp(2))
        assert path.read_bytes() == before
    with open_archive(path) as archive:
        assert archive.ids == ("new",)
    with pytest.raises(UserError, match="no rows"):
        write(path, {"newer": ramp(1), "bad": ramp(0)})
    with open_archive(path) as archive:
        assert archive.ids == ("new",)
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_without_videos_is_refused(tmp_path):
    with (
        pytest.raises(UserError, match=r"a\.h5: no video was added"),
        ArchiveWriter(tmp_path / "a.h5", dimension=4),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_wrong_target_is_said_before_any_work(tmp_path):
    with pytest.raises(UserError, match="cannot write there"):
        ArchiveWriter(tmp_path / "no" / "a.h5", dimension=4).__enter__()
    with pytest.raises(UserError, match="is a folder"):
        ArchiveWriter(tmp_path, dimension=4).__enter__()


def test_an_archive_is_not_given_a_name_that_readers_take_for_a_set(tmp_path):
    with pytest.raises(UserError, match="name of a set of archives"):
        ArchiveWriter(tmp_path / "a.JSON", dimension=4).__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dimension": 0}, ValueError),
        ({"dimension": 4, "dtype": "float64"}, ValueError),
        ({"dimension": 4, "frame_rate": 0.0}, UserError),
        ({"dimension": 4, "frame_rate": math.inf}, UserError),
        ({"dimension": 4, "clip_stride": -1}, UserError),
        ({"dimension": 4, "origin": "x" * 40000}, UserError),
        ({"dimension": 4, "origin": "a\0"}, UserError),
    ],
)
def test_bad_settings_are_refused(tmp_path, arguments, error):
    with pytest.raises(error):
        ArchiveWriter(tmp_path / "a.h5", **arguments)


def test_adding_outside_the_block_is_refused(tmp_path):
    writer = ArchiveWriter(tmp_path / "a.h5", dimension=4)
    with pytest.raises(ValueError, match="with"):
        writer.add("a", ramp(1))


@contextmanager
def largest_file(size):
    """Let writes beyond `size` bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room", [50_000, 900_000, 1_001_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, room):
    # 1,000,000 bytes of rows: fails in the spill file, and (with the tables on top) in the archive.
    videos = {f"v{k}": np.ones((500, 10)) for k in range(100)}
    with largest_file(room), pytest.raises(UserError, match=r"a\.h5: cannot write") as caught:
        write(tmp_path / "a.h5", videos)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_archive(tmp_path):
    code = (
        "import os, signal, numpy\n"
        "from pathlib import Path\n"
        "from ahernet.data.archive_writer import ArchiveWriter\n"
        f"with ArchiveWriter(Path({str(tmp_path / 'a.h5')!r}), dimension=4) as writer:\n"
        "    writer.add('a', numpy.ones((1000, 4)))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def change(path, name, value, dtype=None):
    with h5py.File(path, "r+") as file:
        if name in file.attrs:
            del file.attrs[name]
            if value is not None:
                file.attrs[name] = value
        else:
            del file[name]
            if value is not None:
                file.create_dataset(name, data=np.asarray(value, dtype))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("version", 2, "version 2.*newer ahernet"),
        ("version", 0, "version 0"),
        ("version", "1", "expected an integer"),
        ("version", None, "version is missing"),
        ("format", "something-else", "not an ahernet archive"),
        ("format", None, "not an ahernet archive.*features"),
        ("format", np.zeros(3), "not one short value"),
        ("dimension", 5, r"\(6, 4\), expected \(rows, dimension=5\)"),
        ("dimension", 4.0, "dimension is 4.0"),
        ("frame_rate", -1.0, "frame_rate"),
        ("frame_rate", "fast", "frame_rate"),
        ("clip_stride", -16, "clip_stride"),
        ("origin", None, "origin is missing"),
        ("offsets", np.array([0, 2, 3]), "offsets has 3 entries, expected 4"),
        ("offsets", np.array([1, 2, 3, 6]), "from 1 to 6"),
        ("offsets", np.array([0, 2, 3, 7]), "from 0 to 7, expected 0 to 6"),
        ("offsets", np.array([0, 3, 2, 6]), "do not rise at video 'b'"),
        ("offsets", np.array([0, 2, 2, 6]), "do not rise at video 'b'"),
        ("offsets", np.array([0, 2**63 - 1, -(2**63), 6]), "do not rise at video 'b'"),
        ("offsets", np.array([0.0, 2.0, 3.0, 6.0]), "offsets is 1-dimensional float64"),
        ("offsets", np.zeros((4, 1), np.int64), "offsets is 2-dimensional"),
        ("offsets", None, "offsets is missing"),
        ("ids", np.array([b"a", b"b", b"a"]), "holds 'a' more than once"),
        ("ids", np.array([b"a", b"", b"c"]), "holds ''"),
        ("ids", np.array([b"a", b"\xff", b"c"]), "not UTF-8"),
        ("ids", np.array([b"a", b"b\0b", b"c"]), "without NUL"),
        ("ids", np.array([1, 2, 3]), "ids is 1-dimensional int64"),
        ("ids", np.array([b"a", b"b"]), "offsets has 4 entries, expected 3"),
        ("durations", np.array([1.0, -1.0, 2.0]), "'b' has duration -1.0"),
        ("durations", np.array([1.0, 0.0, 2.0]), "'b' has duration 0.0"),
        ("durations", np.array([1.0, 1.0, math.inf]), "has duration inf"),
        ("durations", np.array([1.0]), "durations has 1 entries"),
        ("crc32", np.array([1, 2], np.uint32), "crc32 has 2 entries"),
        ("crc32", np.array([1, 2, 3], np.int64), "crc32 is 1-dimensional int64"),
        ("features", np.zeros((6, 4), ">f2"), "features has type >f2"),
        ("features", np.zeros((6, 4), "<f8"), "features has type float64"),
        ("features", np.zeros(24, "<f2"), r"shape \(24,\)"),
        ("features", np.zeros((6, 3), "<f2"), r"shape \(6, 3\)"),
        ("features", None, "features is missing"),
    ],
)
def test_archives_that_break_the_rules_are_refused_in_one_line(three, name, value, message):
    path, _ = three
    change(path, name, value)
    with pytest.raises(UserError, match=message) as caught:
        open_archive(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_of_group_per_video_is_described(tmp_path):
    with h5py.File(tmp_path / "c3d.h5", "w") as file:
        for k in range(9):
            file[f"v_{k}/c3d_features"] = np.zeros((k + 1, 5), np.float32)
    message = r"not an ahernet archive.*v_0/c3d_features \(1, 5\) float32.*\.\.\..*ahernet inspect c3d\.h5 says how to"
    with pytest.raises(UserError, match=message):
        open_archive(tmp_path / "c3d.h5")


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 3), "compression": "gzip", "fletcher32": True}])
def test_randomly_damaged_archives_are_refused_or_read(tmp_path, options):
    # Runs in a child: damage may also hit the HDF5 library itself.
    code = f"""
import h5py
import numpy as np
from pathlib import Path
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError
path = Path({str(tmp_path / "a.h5")!r})
with ArchiveWriter(path, dimension=4) as writer:
    for k in range(5):
        writer.add(f"v{{k}}", np.ones((k + 1, 4)), 1.0)
with h5py.File(path, "r+") as file:
    rows = file["features"][...]
    del file["features"]
    file.create_dataset("features", data=rows, **{options!r})
whole = path.read_bytes()
random = np.random.default_rng(0)
refused = 0
for k in range(400):
    damaged = bytearray(whole)
    for place in random.integers(0, len(whole), 1 + k % 4):
        damaged[place] = random.integers(256)
    path.write_bytes(damaged)
    try:
        with open_archive(path) as archive:
            archive.read(range(len(archive)))
            list(archive.verify())
    except UserError as error:
        assert "\\n" not in str(error) and "a.h5" in str(error), error
        refused += 1
assert 100 < refused < 400, refused
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        check=False,
        timeout=100,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_real_features_survive(tmp_path):
    folder = os.environ.get("AHERNET_DATA")
    source = Path(folder or "", "features", "two_clips_i3d2048.npz")
    if not folder or not source.exists():
        pytest.skip("needs AHERNET_DATA with features/two_clips_i3d2048.npz")
    with np.load(source) as arrays:
        videos = {name: arrays[name] for name in ("highjump", "tennis26")}
    with open_archive(write(tmp_path / "a.h5", videos)) as archive:
        rows, bounds = archive.read([1, 0])
        assert np.diff(bounds).tolist() == [89, 164]
        np.testing.assert_array_equal(rows[:89], videos["tennis26"])


@pytest.fixture
def several_threads(monkeypatch):
    """Threads also for a few bytes, however few cores there are."""
    monkeypatch.setattr(archive_rows, "SHARE_BYTES", 16)
    monkeypatch.setattr(archive_rows, "READ_THREADS", 3)


def test_reading_uses_no_more_threads_than_said(three, several_threads):
    with open_archive(three[0]) as archive:
        archive.read([0, 1, 2] * 20)
        running = [thread for thread in threading.enumerate() if thread.name.startswith("archive")]
        assert 0 < len(running) < archive_rows.READ_THREADS


def test_rows_are_read_to_where_a_page_begins(three):
    with open_archive(three[0]) as archive:
        for positions in ([0], [2, 1], [0, 1, 2] * 50):
            assert archive.read(positions)[0].ctypes.data % archive_rows.PAGE_BYTES == 0


@settings(deadline=None)
@given(order=st.lists(st.integers(0, 2), min_size=1, max_size=12), data=st.data())
def test_spans_in_any_order_are_what_slices_of_the_videos_are(tmp_path_factory, order, data):
    videos = {"a": ramp(3), "b": ramp(1, start=100), "c": ramp(5, start=200)}
    path = write(tmp_path_factory.mktemp("spans") / "a.h5", videos, dtype="float32")
    arrays = list(videos.values())
    first = [data.draw(st.integers(0, len(arrays[k]))) for k in order]
    last = [data.draw(st.integers(start, len(arrays[k]))) for k, start in zip(order, first, strict=True)]
    expected = np.concatenate([arrays[k][i:j] for k, i, j in zip(order, first, last, strict=True)])
    with pytest.MonkeyPatch.context() as patch, open_archive(path) as archive:
        patch.setattr(archive_rows, "SHARE_BYTES", 16)
        patch.setattr(archive_rows, "READ_THREADS", 3)
        rows, offsets = archive.read_spans(order, np.array(first), np.array(last))
    np.testing.assert_array_equal(rows, expected)
    assert np.diff(offsets).tolist() == [j - i for i, j in zip(first, last, strict=True)]


def test_neighbours_in_file_and_memory_are_read_at_once_and_others_are_not(three, monkeypatch):
    lengths = []

    def counted(descriptor, buffers, place, how):
        lengths.append(len(buffers[0]))
        return preadv(descriptor, buffers, place, how)

    preadv = os.preadv
    with open_archive(three[0]) as archive:
        monkeypatch.setattr(os, "preadv", counted)
        archive.read([0, 1, 2])
        row_bytes = archive.dimension * archive.dtype.itemsize
        assert lengths == [int(archive.offsets[-1]) * row_bytes]
        lengths.clear()
        archive.read([2, 0, 1])
        assert lengths == [int(archive.lengths[2]) * row_bytes, int(archive.offsets[2]) * row_bytes]


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EOPNOTSUPP])
def test_what_is_not_in_the_cache_is_announced_and_waited_for(three, monkeypatch, code):
    announced = []

    def not_cached(descriptor, buffers, place, how):
        if how:
            raise OSError(code, os.strerror(code))
        return preadv(descriptor, buffers, place)

    preadv = os.preadv
    path, videos = three
    with open_archive(path) as archive:
        monkeypatch.setattr(os, "preadv", not_cached)
        monkeypatch.setattr(os, "posix_fadvise", lambda _, place, length, advice: announced.append(length))
        rows, _ = archive.read([2, 0])
        assert announced == [archive.lengths[k] * archive.dimension * archive.dtype.itemsize for k in (2, 0)]
    arrays = [features for features, _ in videos.values()]
    np.testing.assert_array_equal(rows, np.concatenate([arrays[2], arrays[0]]).astype(rows.dtype))


def test_the_video_that_cannot_be_read_is_named_among_neighbours(three, monkeypatch):
    def broken(descriptor, buffers, place, how):
        if place >= bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, [buffers[0][: bad - place]], place, how)

    preadv = os.preadv
    with open_archive(three[0]) as archive:
        start = archive.source._offset
        bad = start + int(archive.offsets[1]) * archive.dimension * archive.dtype.itemsize
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(UserError) as caught:
            archive.read([0, 1, 2])
        assert str(caught.value) == f"{three[0]}: cannot read video {archive.ids[1]!r} (Input/output error)"
