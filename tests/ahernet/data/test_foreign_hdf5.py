"""Foreign HDF5 files: each layout as its own tools write it, and attacks through each."""

import h5py
import numpy as np
import pytest

from ahernet.data.archive_writer import ArchiveWriter
from ahernet.data.foreign_hdf5 import DATASETS, GROUPS, SUMMARIES, open_foreign_hdf5
from ahernet.errors import UserError

DIMENSION = 5


def rows(count, start=0.0, dtype=np.float32):
    return (np.arange(count * DIMENSION).reshape(count, DIMENSION) / 4 + start).astype(dtype)


def write_groups(file, names=("v_a", "v_b"), **options):
    for k, name in enumerate(names):
        file.create_dataset(f"{name}/c3d_features", data=rows(3 + k, k), **options)


def write_datasets(file, names=("v_a", "v_b"), **options):
    for k, name in enumerate(names):
        file.create_dataset(name, data=rows(3 + k, k), **options)


def write_summaries(file, names=("video_1", "video_2"), stride=15):
    for k, name in enumerate(names):
        steps = 3 + k
        file[f"{name}/features"] = rows(steps, k)
        file[f"{name}/picks"] = np.arange(steps, dtype=np.int32) * stride
        file[f"{name}/n_frames"] = (steps - 1) * stride + 7
        file[f"{name}/gtscore"] = np.zeros(steps, np.float32)
        file[f"{name}/change_points"] = np.zeros((2, 2), np.int32)
        file[f"{name}/user_summary"] = np.zeros((20, steps), np.float32)


WRITERS = {GROUPS: write_groups, DATASETS: write_datasets, SUMMARIES: write_summaries}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "foreign.h5"


def written(path, write, **options):
    with h5py.File(path, "w") as file:
        write(file, **options)
    return path


def complaint(path):
    """What is said of a file whose every video is read, nothing if all is well."""
    try:
        with open_foreign_hdf5(path) as source:
            for found in source.videos:
                assert found.read().rows.ndim == 2
    except UserError as error:
        return str(error)
    return ""


def video(source, name):
    return next(video for video in source.videos if video.name == name)


def refused_video(path, name, message):
    """The file opens, its other videos are read, and this one is refused in one line that names it."""
    with open_foreign_hdf5(path) as source:
        for other in source.videos:
            if other.name == name:
                with pytest.raises(UserError, match=message) as caught:
                    other.read()
                assert "\n" not in str(caught.value)
                assert str(caught.value).startswith(f"{path}: {name}")
            else:
                assert other.read().rows.shape[1] == DIMENSION


def refused_file(path, message):
    with pytest.raises(UserError, match=message), open_foreign_hdf5(path):
        pass


@pytest.mark.parametrize("layout", WRITERS)
def test_each_layout_is_recognised_and_read(path, layout):
    with open_foreign_hdf5(written(path, WRITERS[layout])) as source:
        assert source.kind == layout
        assert len(source.videos) == 2
        for k, found in enumerate(source.videos):
            np.testing.assert_array_equal(found.read().rows, rows(3 + k, k))


@pytest.mark.parametrize("options", [{"chunks": (2, 5)}, {"compression": "gzip"}, {"compression": "lzf"}])
@pytest.mark.parametrize("layout", [GROUPS, DATASETS])
def test_chunked_and_compressed_features_are_read(path, layout, options):
    with open_foreign_hdf5(written(path, WRITERS[layout], **options)) as source:
        np.testing.assert_array_equal(video(source, "v_b").read().rows, rows(4, 1))


@pytest.mark.parametrize("name", ["c3d_features", "features", "feats", "whatever_fc6"])
def test_the_features_of_a_group_are_its_only_dataset_or_of_a_known_name(path, name):
    with h5py.File(path, "w") as file:
        file[f"v_a/{name}"] = rows(3)
        if name != "whatever_fc6":
            file["v_a/other"] = np.zeros(3)
    with open_foreign_hdf5(path) as source:
        np.testing.assert_array_equal(source.videos[0].read().rows, rows(3))


def test_summaries_tell_frames_and_stride(path):
    with open_foreign_hdf5(written(path, write_summaries)) as source:
        assert source.clip_stride == 15
        assert [found.read().frames for found in source.videos] == [37, 52]


@pytest.mark.parametrize(
    "picks", [[0, 15, 31], [0, 30, 60]], ids=["uneven within a video", "even but unlike the other video"]
)
def test_strides_that_differ_are_unknown(path, picks):
    written(path, write_summaries)
    with h5py.File(path, "r+") as file:
        file["video_1/picks"][...] = picks
        file["video_1/n_frames"][...] = 61
    with open_foreign_hdf5(path) as source:
        assert source.clip_stride == 0
        assert source.videos[0].read().frames == 61


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_frames", 30, "n_frames is 30, expected a count beyond the last pick 30"),
        ("n_frames", np.nan, "n_frames is nan"),
        ("n_frames", 1e300, "n_frames is 1e.300"),
        ("n_frames", 37.5, "n_frames is 37.5"),
        ("n_frames", [37, 37], "n_frames is no number"),
        ("n_frames", np.bytes_(b"37"), "n_frames is no number"),
        ("picks", [0, 15], "has 3 rows of features but 2 picks"),
        ("picks", [0, 30, 15], "picks does not rise"),
        ("picks", [-1, 0, 15], "picks does not rise"),
        ("picks", [0.0, 15.0, 30.0], "picks is float64"),
        ("picks", [[0, 15, 30]], r"picks is int64 of shape \(1, 3\)"),
        ("picks", np.zeros(0, np.int64), "picks is int64 of shape|is empty|has room for"),
        ("picks", None, "picks is missing"),
        ("features", rows(3)[0], r"features has shape \(5,\)"),
    ],
)
def test_summaries_that_contradict_themselves_are_bad_videos(path, name, value, message):
    written(path, write_summaries)
    with h5py.File(path, "r+") as file:
        del file[f"video_1/{name}"]
        if value is not None:
            file[f"video_1/{name}"] = value
    refused_video(path, "video_1", message)


def spoil(file, name, kind, secret):
    """Put something that is not the data itself where the dataset `name` is."""
    data = file[name][...]
    del file[name]
    if kind == "external link":
        file[name] = h5py.ExternalLink(str(secret), "/secret")
    elif kind == "soft link":
        file["elsewhere/real"] = data
        file[name] = h5py.SoftLink("/elsewhere/real")
    elif kind == "virtual":
        layout = h5py.VirtualLayout(data.shape, data.dtype)
        layout[:] = h5py.VirtualSource(str(secret), "secret", data.shape, data.dtype)
        file.create_virtual_dataset(name, layout)
    elif kind == "external storage":
        file.create_dataset(name, data.shape, data.dtype, external=[(str(secret), 0, data.nbytes)])
    elif kind == "references":
        file.create_dataset(name, data.shape, h5py.ref_dtype)
    elif kind == "texts":
        file.create_dataset(name, data.shape, h5py.string_dtype())
    elif kind == "shape bomb":
        file.create_dataset(name, (1 << 40, DIMENSION), data.dtype)
    elif kind == "chunked shape bomb":
        file.create_dataset(name, (1 << 40, DIMENSION), data.dtype, chunks=(1 << 10, DIMENSION))
    elif kind == "compression bomb":
        zeros = np.zeros((1 << 18, DIMENSION), data.dtype)
        file.create_dataset(name, data=zeros, chunks=(1 << 16, DIMENSION), compression="gzip")
    else:
        assert kind == "too many dimensions"
        file[name] = data[None]


ATTACKS = {
    "external link": "reached through a link",
    "soft link": "reached through a link",
    "virtual": "is a virtual dataset",
    "external storage": "keeps its data in other files",
    "references": "has type object",
    "texts": "has type object",
    "shape bomb": "declares .* the file has room for 0",
    "chunked shape bomb": "declares .* the file has room for 0",
    "compression bomb": "declares 5,242,880 bytes",
    "too many dimensions": r"has shape \(1, ., 5\), expected \(rows, dimension\)",
}


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize(
    ("layout", "name", "attacked"),
    [
        (GROUPS, "v_b", "v_b/c3d_features"),
        (DATASETS, "v_b", "v_b"),
        (SUMMARIES, "video_2", "video_2/features"),
    ],
)
def test_attacks_are_bad_videos(path, tmp_path, kind, layout, name, attacked):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["secret"] = rows(4)
    names = [f"{name[:-1]}{k}" for k in range(1, 4)] if layout == SUMMARIES else ["v_a", "v_b", "v_c"]
    written(path, WRITERS[layout], names=names)
    with h5py.File(path, "r+") as file:
        spoil(file, attacked, kind, secret)
        if kind == "soft link":
            del file["elsewhere"]  # what it leads to is no video; the link then leads nowhere
    refused_video(path, name, ATTACKS[kind])


@pytest.mark.parametrize("link", [h5py.SoftLink("/v_a"), h5py.ExternalLink("secret.h5", "/v_a")])
def test_a_whole_group_behind_a_link_is_a_bad_video(path, tmp_path, link):
    written(tmp_path / "secret.h5", write_groups)
    written(path, write_groups, names=("v_a", "v_c"))
    with h5py.File(path, "r+") as file:
        file["v_b"] = link
    refused_video(path, "v_b", "v_b is reached through a link")


def test_links_alone_are_no_layout(path, tmp_path):
    written(tmp_path / "secret.h5", write_groups)
    with h5py.File(path, "w") as file:
        file["v_a"] = h5py.ExternalLink("secret.h5", "/v_a")
        file["v_b"] = h5py.SoftLink("/v_a")
    refused_file(path, "of no layout that can be imported .*no datasets")


def test_one_dataset_under_many_names_cannot_fill_the_disk(path, monkeypatch):
    monkeypatch.setattr("ahernet.data.foreign_hdf5.MAX_COMPRESSION", 2)
    with h5py.File(path, "w") as file:
        file["v_0"] = np.zeros((1000, DIMENSION))
        for k in range(1, 9):
            file[f"v_{k}"] = file["v_0"]
    with open_foreign_hdf5(path) as source:
        assert len([found.read() for found in source.videos[:2]]) == 2
        with pytest.raises(UserError, match="together more than 2 times the file"):
            [found.read() for found in source.videos[2:]]


def test_members_unlike_the_others_are_bad_videos(path):
    written(path, write_groups, names=[f"v_{k}" for k in range(5)])
    with h5py.File(path, "r+") as file:
        file["v_1x"] = rows(3)
    refused_video(path, "v_1x", "v_1x is not a group as the others are")
    with h5py.File(path, "r+") as file:
        del file["v_1x"]
        file.create_group("v_2x")
    refused_video(path, "v_2x", "v_2x holds nothing; expected one dataset")
    with h5py.File(path, "r+") as file:
        del file["v_2x"]
        file["v_3x/one"], file["v_3x/two"] = rows(3), rows(3)
    refused_video(path, "v_3x", "v_3x holds 'one', 'two'; expected one dataset")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it holds no datasets"),
        ({"x": np.ones(3)}, r"it holds x \(3,\) float64\); expected a group per video"),
        ({"features": rows(9), "labels": np.zeros(9)}, r"features \(9, 5\) float32; labels \(9,\) float64"),
        ({"train/v_a/deep": rows(3)}, r"train/v_a/deep \(3, 5\) float32"),
    ],
)
def test_other_layouts_are_described(path, content, message):
    with h5py.File(path, "w") as file:
        for name, data in content.items():
            file[name] = data
    refused_file(path, message)


def test_an_archive_is_not_imported_again(path):
    with ArchiveWriter(path, dimension=DIMENSION) as writer:
        writer.add("v_a", rows(3))
    refused_file(path, "is an ahernet archive already")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files_are_refused(path, share):
    written(path, write_groups)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused_file(path, "truncated|not an HDF5 file|damaged")


@pytest.mark.parametrize("layout", WRITERS)
def test_flipped_bytes_end_as_one_line_or_as_features(path, layout):
    written(path, WRITERS[layout])
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(content)
        for place in generator.integers(0, min(len(content), 3000), 6):
            changed[place] = int(generator.integers(256))
        path.write_bytes(changed)
        assert "\n" not in complaint(path)
