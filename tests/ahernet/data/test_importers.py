import json
import math
import os
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ahernet.data.archive import open_archive
from ahernet.data.importers import import_features
from ahernet.errors import UserError


def ramp(rows, dimension=4, start=0):
    return np.arange(start, start + rows * dimension, dtype=np.float32).reshape(rows, dimension)


@pytest.fixture
def folder(tmp_path):
    """A folder with three good videos in three forms."""
    folder = tmp_path / "features"
    folder.mkdir()
    np.save(folder / "v_a.npy", ramp(3))
    np.savez(folder / "v_b.npz", anything=ramp(2, start=100))
    np.savez_compressed(folder / "v_c.npz", feats=ramp(1, start=200), frames=np.arange(3))
    return folder


def run(folder, **settings):
    return import_features(folder, folder.parent / "out.h5", progress=False, **settings)


def durations_file(tmp_path, **durations):
    document = {key: {"duration_second": value, "annotations": []} for key, value in durations.items()}
    path = tmp_path / "durations.json"
    path.write_text(json.dumps(document))
    return path


def left_over(folder):
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def test_arrays_of_every_form_become_videos(folder):
    report = run(folder, origin="network 7", frame_rate=25.0, clip_stride=16)
    assert (report.videos, report.rows, report.dimension) == (3, 6, 4)
    assert report.skipped == report.without_duration == ()
    with open_archive(report.path) as archive:
        assert archive.ids == ("v_a", "v_b", "v_c")
        np.testing.assert_array_equal(archive.read([0, 1, 2])[0][:, 0], [0, 4, 8, 100, 104, 200])
        np.testing.assert_allclose(archive.durations, np.array([3, 2, 1]) * 16 / 25)
        assert (archive.origin, archive.frame_rate, archive.clip_stride) == ("network 7", 25.0, 16)
        assert archive.dtype == np.float16


def test_durations_come_from_annotations_first_then_from_the_grid(folder, tmp_path):
    durations = durations_file(tmp_path, a=12.5, v_b=None, other=3.0)
    report = run(folder, durations=durations, frame_rate=10.0, clip_stride=5)
    with open_archive(report.path) as archive:
        assert archive.durations.tolist() == [12.5, 1.0, 0.5]
    assert report.without_duration == ()
    assert report.not_annotated == ("v_b", "v_c")
    assert "2 without a duration in the annotations, as 'v_b'" in str(report)


@pytest.mark.parametrize("settings", [{}, {"frame_rate": 25.0}, {"clip_stride": 16}])
def test_durations_that_nothing_tells_are_unknown_and_said_so(folder, tmp_path, settings):
    report = run(folder, durations=durations_file(tmp_path, v_b=4.0), **settings)
    with open_archive(report.path) as archive:
        np.testing.assert_array_equal(archive.durations, [math.nan, 4.0, math.nan])
    assert report.without_duration == ("v_a", "v_c")
    assert "2 without duration" in str(report)


def test_a_link_to_a_file_that_is_not_there_is_a_bad_video(folder):
    (folder / "v_d.npy").symlink_to("/not/mounted/v_d.npy")
    with pytest.raises(UserError, match=r"v_d\.npy: .*No such file"):
        run(folder)


def test_a_prefix_is_removed_from_names(folder):
    with open_archive(run(folder, prefix="v_").path) as archive:
        assert archive.ids == ("a", "b", "c")


def test_a_name_without_the_prefix_is_an_error(folder):
    np.save(folder / "w_d.npy", ramp(1))
    with pytest.raises(UserError, match=r"w_d\.npy: the name does not begin with the prefix 'v_'"):
        run(folder, prefix="v_")


def test_float32_is_kept_where_asked_for(folder):
    np.save(folder / "v_d.npy", np.full((1, 4), 1e9))
    with pytest.raises(UserError, match=r"v_d\.npy: .*beyond float16.*float32"):
        run(folder)
    with open_archive(run(folder, dtype="float32").path) as archive:
        assert archive.read([3])[0][0, 0] == np.float32(1e9)


def test_two_files_of_one_video_are_an_error_even_when_skipping(folder):
    np.save(folder / "v_b.npy", ramp(1))
    for on_error in ("stop", "skip"):
        with pytest.raises(UserError, match=r"v_b\.npz: gives the same video id 'v_b' as v_b\.npy"):
            run(folder, on_error=on_error)


def write_bad(path, kind):
    if isinstance(kind, np.ndarray):
        np.save(path, kind)
    elif kind == "truncated":
        np.save(path, ramp(100))
        os.truncate(path, 700)
    elif kind == "header only":
        np.save(path, ramp(100))
        os.truncate(path, 60)
    elif kind == "not an array":
        path.write_bytes(b"hello")
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "pickle in npz":
        with path.open("wb") as file:
            np.savez(file, feats=np.array([[None]], dtype=object))
    elif kind == "shape bomb":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    elif kind == "shape bomb in npz":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }\n"
        with zipfile.ZipFile(path, "w") as file:
            content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
            file.writestr("feats.npy", content)
    elif kind == "several arrays":
        with path.open("wb") as file:
            np.savez(file, one=ramp(1), two=ramp(1))
    elif kind == "both keys":
        with path.open("wb") as file:
            np.savez(file, feats=ramp(1), features=ramp(1))
    elif kind == "no arrays":
        with zipfile.ZipFile(path, "w"):
            pass
    else:
        assert kind == "a text in npz"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("feats", "hello")


BAD = {
    "truncated": "not a readable array file",
    "header only": "not a readable array file",
    "not an array": "not a readable array file",
    "empty file": "not a readable array file",
    "pickle": "not a readable array file.*[Oo]bject",
    "pickle in npz": "not a readable array file.*[Oo]bject",
    "shape bomb": "not a readable array file",
    "shape bomb in npz": "not a readable array file",
    "several arrays": "holds 'one', 'two'; expected one array",
    "both keys": "holds 'feats', 'features'; expected one array",
    "no arrays": "holds nothing",
    "a text in npz": "not an array file",
}
BAD_ARRAYS = [
    (np.zeros(4), r"array of shape \(4,\), expected \(rows, dimension\)"),
    (np.zeros((0, 4)), r"array of shape \(0, 4\)"),
    (np.zeros((2, 0)), r"array of shape \(2, 0\)"),
    (np.zeros((2, 4, 1)), r"array of shape \(2, 4, 1\)"),
    (np.zeros(()), r"array of shape \(\)"),
    (np.zeros((2, 5)), r"dimension 5, expected 4 as in v_a\.npy"),
    (np.full((2, 4), math.nan), "NaN or infinite features, first in row 0"),
    (np.full((2, 4), 1e6), "beyond float16"),
    (np.full((2, 4), "x"), "real numbers"),
]


@pytest.mark.parametrize(("kind", "message"), [*BAD.items(), *BAD_ARRAYS])
def test_a_bad_file_stops_the_import_or_is_skipped_by_name(folder, kind, message):
    bad = folder / "v_bad.npy"
    write_bad(bad, kind)
    with pytest.raises(UserError, match=message) as caught:
        run(folder)
    assert str(caught.value).startswith(f"{bad}: ")
    assert "\n" not in str(caught.value)
    assert left_over(folder) == []

    report = run(folder, on_error="skip")
    assert report.videos == 3
    assert report.skipped == (str(caught.value),)
    assert str(caught.value) in str(report)
    with open_archive(report.path) as archive:
        assert archive.ids == ("v_a", "v_b", "v_c")
    assert left_over(folder) == ["out.h5"]


def test_a_zip_bomb_is_refused(folder, monkeypatch):
    monkeypatch.setattr("ahernet.data.zip_guard.SMALL_BYTES", 1 << 20)
    with zipfile.ZipFile(folder / "v_bad.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("feats.npy", bytes(1 << 22))
    with pytest.raises(UserError, match=r"v_bad\.npz: .*unpacks to 4,194,304 bytes"):
        run(folder)


def test_a_bad_first_file_does_not_set_the_dimension(folder):
    np.save(folder / "a.npy", np.full((1, 7), math.nan))
    report = run(folder, on_error="skip")
    assert (report.videos, report.dimension) == (3, 4)


def test_the_dimension_can_be_given(folder):
    np.save(folder / "a.npy", np.ones((1, 7)))
    assert run(folder, on_error="skip").videos == 1  # the first file decides
    report = run(folder, on_error="skip", dimension=4)
    assert report.videos == 3
    assert "dimension 7, expected 4 as asked for" in report.skipped[0]


def test_skipping_everything_is_an_error(folder):
    for file in folder.iterdir():
        file.write_bytes(b"bad")
    with pytest.raises(UserError, match=r"none of its 3 videos is usable; .*v_a\.npy"):
        run(folder, on_error="skip")
    assert left_over(folder) == []


def test_long_lists_of_skipped_files_are_shortened_for_people_only(folder):
    for k in range(30):
        (folder / f"w{k}.npy").write_bytes(b"bad")
    report = run(folder, on_error="skip")
    assert len(report.skipped) == 30
    assert str(report).count("\n") == 12
    assert str(report).endswith("... and 20 more")


def test_other_files_are_counted_and_sub_folders_left_alone(folder):
    (folder / "README.txt").write_text("x")
    (folder / ".hidden.npy").write_bytes(b"x")
    (folder / "deeper.npy").mkdir()
    report = run(folder)
    assert (report.videos, report.ignored) == (3, 1)
    assert "1 other files ignored" in str(report)


def test_folders_without_features_are_named(tmp_path):
    (tmp_path / "features").mkdir()
    with pytest.raises(UserError, match=r"features: holds no \.npy, \.npz, \.pt or \.csv files \(it is empty"):
        run(tmp_path / "features")
    (tmp_path / "features" / "v_a.pkl").write_bytes(b"x")
    with pytest.raises(UserError, match=r"features: holds no .*\(other files: 1 of \.pkl\)"):
        run(tmp_path / "features")
    with pytest.raises(UserError, match="absent: no such file or folder"):
        run(tmp_path / "absent")


def test_a_wrong_annotation_file_stops_before_reading_features(folder, tmp_path):
    (tmp_path / "durations.json").write_text("{")
    with pytest.raises(UserError, match=r"durations\.json: invalid JSON"):
        run(folder, durations=tmp_path / "durations.json")


def test_a_wrong_frame_rate_is_refused(folder):
    with pytest.raises(UserError, match="frame rate"):
        run(folder, frame_rate=0.0, clip_stride=16)
    assert left_over(folder) == []


def test_an_error_gets_a_line_of_its_own_below_the_progress_bar(folder, capfd):
    with pytest.raises(UserError) as caught:
        import_features(folder, folder / "v_a.npy" / "new" / "out.h5", progress=True)
    shown = capfd.readouterr().err
    assert "import" in shown
    assert shown.endswith("\n")
    assert "cannot create this folder" in str(caught.value)


def test_folders_for_the_archive_are_made_only_if_there_is_one(folder, tmp_path):
    out = tmp_path / "new" / "deeper" / "out.h5"
    with pytest.raises(UserError, match="prefix"):
        import_features(folder, out, prefix="w_", progress=False)
    assert not (tmp_path / "new").exists()
    assert import_features(folder, out, progress=False).videos == 3


def test_a_source_that_is_not_there_leaves_a_former_archive_alone(tmp_path):
    import_features(write_hdf5(tmp_path / "foreign.h5", {"v_a": ramp(3)}), tmp_path / "out.h5", progress=False)
    before = (tmp_path / "out.h5").read_bytes()
    with pytest.raises(UserError, match="absent: no such file or folder"):
        import_features(tmp_path / "absent", tmp_path / "out.h5", progress=False)
    assert (tmp_path / "out.h5").read_bytes() == before


def test_an_archive_does_not_replace_what_it_is_made_of(tmp_path):
    source = write_hdf5(tmp_path / "foreign.h5", {"v_a": ramp(3)})
    before = source.read_bytes()
    (tmp_path / "link.h5").symlink_to(source)
    for out in (source, tmp_path / "link.h5"):
        with pytest.raises(UserError, match="holds something else than an archive"):
            import_features(source, out, progress=False)
    assert source.read_bytes() == before
    with pytest.raises(UserError, match="is a folder, pipe or device"):
        import_features(source, tmp_path, progress=False)
    with pytest.raises(UserError, match="name of a set of archives"):
        import_features(source, tmp_path / "out.json", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign.h5", "link.h5"]


def test_a_wrong_policy_is_refused(folder):
    with pytest.raises(ValueError, match="on_error"):
        run(folder, on_error="ignore")


def test_ids_are_the_exact_names_of_the_files(folder):
    np.save(folder / "é %2F v.1.npy", ramp(1))
    with open_archive(run(folder).path) as archive:
        assert "é %2F v.1" in archive.ids


def test_a_name_that_is_not_unicode_is_named(folder):
    path = os.fsencode(folder / "x.npy")[:-5] + b"\xff.npy"
    with open(path, "wb") as file:  # noqa: PTH123 (a name of bytes)
        np.save(file, ramp(1))
    with pytest.raises(UserError, match="not valid Unicode"):
        run(folder)


def test_real_features_with_real_durations(tmp_path):
    data = os.environ.get("AHERNET_DATA")
    source = Path(data or "", "features", "two_clips_i3d2048.npz")
    if not data or not source.exists():
        pytest.skip("needs AHERNET_DATA with features/two_clips_i3d2048.npz")
    folder = tmp_path / "features"
    folder.mkdir()
    with np.load(source) as arrays:
        seconds = {name: float(arrays[f"{name}_duration_s"]) for name in ("highjump", "tennis26")}
        for name in seconds:
            np.save(folder / f"{name}.npy", arrays[name])
    report = run(folder, durations=durations_file(tmp_path, **seconds))
    assert (report.videos, report.rows, report.dimension) == (2, 253, 2048)
    with open_archive(report.path) as archive:
        assert archive.durations.tolist() == list(seconds.values())


def write_csv(path, rows, header):
    np.savetxt(path, rows, delimiter=",", fmt="%.9g", comments="", header=header)


def write_hdf5(path, datasets):
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file[name] = data
    return path


def write_foreign(folder, kind):
    """Write two videos of 3 and 2 rows in one of the layouts that are in use; return where."""
    place = folder / "foreign"
    videos = {"v_a": ramp(3), "v_b": ramp(2, start=100)}
    if kind == "C3D":
        return write_hdf5(place, {f"{name}/c3d_features": rows for name, rows in videos.items()})
    if kind == "flat":
        return write_hdf5(place, videos)
    if kind == "summaries":
        return write_summaries(place, videos)
    place.mkdir()
    for name, rows in videos.items():
        if kind == "npy":
            np.save(place / f"{name}.npy", rows)
        elif kind == "npz":
            np.savez(place / f"{name}.npz", feats=rows)
        elif kind == "pt":
            torch.save({"feats": torch.from_numpy(rows)}, place / f"{name}.pt")
        elif kind == "BSN":
            write_csv(place / f"{name}.csv", rows, ",".join(f"f{k}" for k in range(4)))
        else:
            assert kind == "AherNet"
            write_csv(place / f"{name}.csv", rows, ",".join(map(str, range(4))))
    return place


def write_summaries(path, videos, stride=15):
    content = {}
    for name, rows in videos.items():
        content[f"{name}/features"] = rows
        content[f"{name}/picks"] = np.arange(len(rows)) * stride
        content[f"{name}/n_frames"] = (len(rows) - 1) * stride + 5
    return write_hdf5(path, content)


KINDS = ("npy", "npz", "pt", "BSN", "AherNet", "C3D", "flat", "summaries")


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_comes_back_as_it_was(tmp_path, kind):
    source = write_foreign(tmp_path, kind)
    report = import_features(source, tmp_path / "out.h5", dtype="float32", progress=False)
    with open_archive(tmp_path / "out.h5") as archive:
        assert archive.ids == ("v_a", "v_b")
        rows, offsets = archive.read([0, 1])
        np.testing.assert_array_equal(rows, np.concatenate([ramp(3), ramp(2, start=100)]))
        assert offsets.tolist() == [0, 3, 5]
    assert (report.videos, report.rows, report.dimension, report.skipped) == (2, 5, 4, ())
    assert report.kind in str(report)


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_names_the_videos_of_every_layout(tmp_path, kind):
    source = write_foreign(tmp_path, kind)
    (tmp_path / "map.csv").write_text("name,video\nv_b,first/../é\nv_a,second\nv_absent,third\n")
    report = import_features(source, tmp_path / "out.h5", id_map=tmp_path / "map.csv", progress=False)
    with open_archive(tmp_path / "out.h5") as archive:
        assert archive.ids == ("second", "first/../é")
        assert archive.read([1])[0][0, 0] == 100
    assert report.unused_names == ("v_absent",)
    assert "1 names of the map not found, as 'v_absent'" in str(report)


def test_names_that_a_map_leaves_out_are_bad_videos(folder, tmp_path):
    (tmp_path / "map.csv").write_text("v_a,one\nv_c,three\n")
    with pytest.raises(UserError, match=r"v_b\.npz: the map of names has no 'v_b'"):
        run(folder, id_map=tmp_path / "map.csv")
    report = run(folder, id_map=tmp_path / "map.csv", on_error="skip")
    assert report.videos == 2
    assert [message.rsplit(": ", 1)[1] for message in report.skipped] == [
        "the map of names has no 'v_b', expected a line for it"
    ]


def test_a_map_and_a_prefix_exclude_each_other(folder, tmp_path):
    (tmp_path / "map.csv").write_text("v_a,one\n")
    with pytest.raises(UserError, match="prefix: the map of names gives whole ids"):
        run(folder, id_map=tmp_path / "map.csv", prefix="v_")


def test_frames_that_the_source_counts_give_durations(tmp_path):
    source = write_summaries(tmp_path / "foreign.h5", {"video_1": ramp(3), "video_2": ramp(5)})
    durations = durations_file(tmp_path, video_2=9.0)
    report = import_features(source, tmp_path / "out.h5", frame_rate=10.0, durations=durations, progress=False)
    with open_archive(tmp_path / "out.h5") as archive:
        assert archive.durations.tolist() == [3.5, 9.0]
        assert (archive.clip_stride, archive.frame_rate) == (15, 10.0)
    assert (report.clip_stride, report.from_rows) == (15, 0)
    report = import_features(source, tmp_path / "out.h5", progress=False)
    assert report.without_duration == ("video_1", "video_2")


def test_a_stride_that_the_source_contradicts_is_refused(tmp_path):
    source = write_summaries(tmp_path / "foreign.h5", {"video_1": ramp(3)})
    with pytest.raises(UserError, match=r"clip stride: 16 frames asked for, .*foreign\.h5 are 15 frames apart"):
        import_features(source, tmp_path / "out.h5", clip_stride=16, progress=False)


def test_rows_of_equal_number_are_told_to_need_durations(tmp_path):
    source = tmp_path / "csv_mean_100"
    source.mkdir()
    for name in ("v_a", "v_b", "v_c"):
        write_csv(source / f"{name}.csv", ramp(100), "f0,f1,f2,f3")
    told = "every video has 100 rows: if they were rescaled to that, only annotations can give the durations"
    assert told in str(run(source))
    known = durations_file(tmp_path, v_a=1.0, b=2.0, v_c=3.0)
    assert told not in str(run(source, durations=known))
    computed = run(source, frame_rate=25.0, clip_stride=16)
    assert computed.from_rows == 3
    assert "the 3 computed from --clip-stride are wrong" in str(computed)
    write_csv(source / "v_d.csv", ramp(99), "f0,f1,f2,f3")
    assert told not in str(run(source))


def test_names_of_strangers_cannot_disturb_a_terminal(tmp_path):
    source = write_hdf5(tmp_path / "foreign.h5", {"v_a": ramp(3), "v_b": ramp(2), "\x1b[2J\n\u202e": np.zeros((0, 4))})
    report = import_features(source, tmp_path / "out.h5", on_error="skip", progress=False)
    (message,) = report.skipped
    assert message.isprintable()
    assert "x1b[2J" in message


def test_a_bad_video_of_hdf5_stops_or_is_skipped_by_name(tmp_path):
    source = write_hdf5(tmp_path / "foreign.h5", {"v_a": ramp(3), "v_b": ramp(2), "v_c": np.full((2, 4), math.nan)})
    with h5py.File(source, "r+") as file:
        file["v_d"] = h5py.SoftLink("/v_a")
    report = import_features(source, tmp_path / "out.h5", on_error="skip", progress=False)
    assert report.videos == 2
    assert report.skipped == (
        f"{source}: v_c: video 'v_c': NaN or infinite features, first in row 0; expected finite ones",
        f"{source}: v_d is reached through a link, expected the data itself",
    )
    with pytest.raises(UserError, match="v_c: video 'v_c': NaN"):
        import_features(source, tmp_path / "new.h5", progress=False)
    assert not (tmp_path / "new.h5").exists()


def test_a_full_disk_is_no_bad_video(folder, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("out.h5: cannot write (No space left on device)")

    monkeypatch.setattr("ahernet.data.archive_journal.ArchiveJournal.append", full)
    with pytest.raises(UserError, match="No space left"):
        run(folder, on_error="skip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", b"PK\x03\x04", r"neither a folder nor an HDF5 file \(it begins with b'PK"),
        ("a.npy", b"\x93NUMPY", "a file of one video, expected the folder that holds it or an HDF5 file"),
        ("a.CSV", b"1,2", "a file of one video"),
        ("a.h5", b"hello", "not an HDF5 file"),
        ("a.hdf5", b"", "is empty"),
        ("a", b"\x89HDF\r\n\x1a\n", "damaged|truncated|not an HDF5"),
    ],
)
def test_sources_of_other_kinds_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        import_features(tmp_path / name, tmp_path / "out.h5", progress=False)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_pipes_and_names_that_no_file_can_have_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "neither a folder nor a plain file"), ("x" * 300, "cannot read")):
        with pytest.raises(UserError, match=message):
            import_features(tmp_path / name, tmp_path / "out.h5", progress=False)


def test_progress_tells_the_rate(folder, capfd):
    import_features(folder, folder.parent / "out.h5", progress=True)
    shown = capfd.readouterr().err
    assert "3/3" in shown
    assert "video/s" in shown
