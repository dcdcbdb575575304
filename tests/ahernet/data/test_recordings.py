import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahernet.cli import main
from ahernet.data import archive_writer, recordings, zip_guard
from ahernet.data.annotations import read_annotations
from ahernet.data.archive import open_archive
from ahernet.data.recordings import (
    import_recordings,
    parse_subjects,
    read_recordings,
    standardise,
    window_statistics,
)
from ahernet.errors import UserError

RATE = 10.0


def layout(**changes: object) -> dict[str, np.ndarray]:
    """Two recordings of 200 and 104 samples, 3 channels: runs of class a, b, a and of class b."""
    rng = np.random.default_rng(0)
    arrays: dict[str, object] = {
        "x": rng.integers(-100, 100, (304, 3), dtype=np.int16),
        "scale": np.float64(0.5),
        "zero": np.float64(-1.0),
        "rec_offset": np.array([0, 200, 304]),
        "rec_id": np.array(["one", "two"]),
        "subject": np.array([1, 7], np.int16),
        "rate_hz": np.float64(RATE),
        "seg_rec": np.array([0, 0, 0, 0, 1], np.int32),
        "seg_start": np.array([1.0, 4.0, 9.0, 15.0, 2.0], np.float32),
        "seg_end": np.array([3.0, 6.2, 12.0, 19.0, 10.4], np.float32),
        "seg_class": np.array([0, 0, 1, 0, 1], np.int16),
        "class_names": np.array(["a", "b"]),
    }
    arrays.update(changes)
    return {key: np.asarray(value) for key, value in arrays.items() if value is not None}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "recordings.npz"
    np.savez(path, **layout(**changes))
    return path


def convert(folder: Path, path: Path, **options: object):
    return import_recordings(path, folder / "a.h5", folder / "a.json", **options)


def test_cut_by_classes_cuts_midway_between_runs(tmp_path):
    convert(tmp_path, write(tmp_path), stride=2, window=4)
    videos = read_annotations(tmp_path / "a.json").videos
    assert list(videos) == ["one_a", "one_b", "one_a_2", "two_b"]
    # runs of recording one end at 6.2 and 12.0 and begin at 9.0 and 15.0: cuts at 7.6 s and 13.5 s,
    # the latter on the closest boundary of 0.2 s rows
    assert [video.duration for video in videos.values()] == pytest.approx([7.6, 6.0, 6.4, 10.4])
    np.testing.assert_allclose(videos["one_a"].segments, [[1.0, 3.0], [4.0, 6.2]])
    np.testing.assert_allclose(videos["one_b"].segments, [[1.4, 4.4]])
    assert videos["one_b"].labels == ("b",)


def test_rows_of_clips_together_are_the_rows_of_whole_recordings(tmp_path):
    path = write(tmp_path)
    whole, pieces = tmp_path / "whole.h5", tmp_path / "pieces.h5"
    import_recordings(path, whole, tmp_path / "w.json", window=5, stride=3, cut="none")
    import_recordings(path, pieces, tmp_path / "p.json", window=5, stride=3, cut="classes")
    with open_archive(whole) as a, open_archive(pieces) as b:
        np.testing.assert_array_equal(a.read(range(len(a)))[0], b.read(range(len(b)))[0])
        assert a.ids == ("one", "two")
        assert (a.frame_rate, a.clip_stride, a.dimension) == (RATE, 3, 9)
        assert a.durations == pytest.approx([20.0, 10.4])


def test_subjects_choose_the_subset(tmp_path):
    report = convert(tmp_path, write(tmp_path), training_subjects="1-3")
    videos = read_annotations(tmp_path / "a.json").videos
    assert [video.subset for video in videos.values()] == ["training"] * 3 + ["validation"]
    assert (report.clips, report.training_clips, report.instances, report.dimension) == (4, 3, 5, 9)


def test_without_subjects_everything_is_for_training(tmp_path):
    convert(tmp_path, write(tmp_path), cut="none")
    assert {video.subset for video in read_annotations(tmp_path / "a.json").videos.values()} == {"training"}


def three_runs(**changes: object) -> dict[str, object]:
    """Segments of recording one: a, b, c, c, a; recording two shows b."""
    return {
        "seg_rec": np.array([0, 0, 0, 0, 0, 1], np.int32),
        "seg_start": np.array([1.0, 4.0, 9.0, 13.0, 17.0, 2.0]),
        "seg_end": np.array([3.0, 6.0, 12.0, 15.0, 19.0, 10.0]),
        "seg_class": np.array([0, 1, 2, 2, 0, 1], np.int16),
        "class_names": np.array(["a", "b", "c"]),
        **changes,
    }


def test_cut_by_groups_keeps_some_classes_apart_from_the_others(tmp_path):
    convert(tmp_path, write(tmp_path, **three_runs()), stride=2, cut="groups", apart=["c"])
    videos = read_annotations(tmp_path / "a.json").videos
    assert {name: video.labels for name, video in videos.items()} == {
        "one_others": ("a", "b"),
        "one_apart": ("c", "c"),
        "one_others_2": ("a",),
        "two_others": ("b",),
    }
    assert [video.duration for video in videos.values()] == pytest.approx([7.6, 8.4, 4.0, 10.4])  # cut at 7.5 and 16 s
    np.testing.assert_allclose(videos["one_apart"].segments, [[1.4, 4.4], [5.4, 7.4]])


def test_classes_that_are_background_leave_no_trace(tmp_path):
    report = convert(tmp_path, write(tmp_path, **three_runs()), cut="classes", background=["a", "c"])
    videos = read_annotations(tmp_path / "a.json").videos
    assert {name: video.labels for name, video in videos.items()} == {"one_b": ("b",), "two_b": ("b",)}
    assert report.instances == 2
    assert videos["one_b"].duration == pytest.approx(20.0)


@pytest.mark.parametrize("cut", ["none", "classes"])
def test_trimmed_recordings_begin_with_their_first_label_and_end_with_the_last(tmp_path, cut):
    path = write(tmp_path, **three_runs())
    kept = convert(tmp_path, path, stride=2, cut=cut, trim=True, background=["a"])
    videos = read_annotations(tmp_path / "a.json").videos
    # Segments of the background count: they say that nothing happens. 1 to 19 s and 2 to 10 s are labelled.
    assert sum(video.duration for video in videos.values()) == pytest.approx(18 + 8)
    assert kept.rows == (18 + 8) * RATE / 2
    first = videos["one" if cut == "none" else "one_b"]
    np.testing.assert_allclose(first.segments[0], [3.0, 5.0])
    with open_archive(tmp_path / "a.h5") as archive:
        trimmed = archive.read(range(len(archive)))[0]
    convert(tmp_path, path, stride=2, cut=cut, background=["a"])
    with open_archive(tmp_path / "a.h5") as archive:
        whole = archive.read(range(len(archive)))[0]
    np.testing.assert_array_equal(trimmed, np.concatenate([whole[5:95], whole[110:150]]))


def test_a_recording_without_a_label_cannot_be_trimmed(tmp_path):
    only = {"seg_rec": np.array([0]), "seg_start": np.array([1.0]), "seg_end": np.array([3.0])}
    path = write(tmp_path, **only, seg_class=np.array([0]))
    with pytest.raises(UserError, match="recording 'two' has no segment, so nothing to trim it to"):
        convert(tmp_path, path, cut="none", trim=True)


def test_a_share_of_the_recordings_trains_and_is_always_the_same(tmp_path):
    count = 40
    path = write(
        tmp_path,
        x=np.zeros((10 * count, 3), np.int16),
        rec_offset=np.arange(0, 10 * count + 1, 10),
        rec_id=np.array([f"r{k}" for k in range(count)]),
        subject=np.ones(count, np.int16),
        seg_rec=np.arange(count),
        seg_start=np.full(count, 0.2),
        seg_end=np.full(count, 0.6),
        seg_class=np.arange(count) % 2,
    )
    convert(tmp_path, path, cut="none", training_share=0.75)
    first = (tmp_path / "a.json").read_bytes()
    subsets = [video.subset for video in read_annotations(tmp_path / "a.json").videos.values()]
    assert subsets.count("training") == 30
    assert subsets[:30] != ["training"] * 30  # neighbours are alike, so that the last ones would be no fair sample
    convert(tmp_path, path, cut="none", training_share=0.75)
    assert (tmp_path / "a.json").read_bytes() == first


@given(
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1).map(np.random.default_rng),
)
def test_window_statistics_equal_a_loop(samples, window, stride, rng):
    values = rng.standard_normal((samples, 2)).astype(np.float32)
    rows = window_statistics(values, window, stride)
    assert rows.shape == (-(-samples // stride), 6)
    half = max(window // 2, 1)
    for number, row in enumerate(rows):
        first = number * stride - (window - stride) // 2
        part = values[np.clip(np.arange(first, first + window), 0, samples - 1)]
        change = part[-half:].mean(0) - part[:half].mean(0)
        np.testing.assert_allclose(row, np.concatenate([part.mean(0), part.std(0), change]), atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 30, 47])
def test_window_statistics_are_the_same_to_the_bit_however_many_rows_are_computed_at_once(monkeypatch, at_once):
    values = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    for window, stride in ((1, 1), (5, 1), (5, 3), (50, 7)):
        whole = window_statistics(values, window, stride)
        with monkeypatch.context() as patched:
            patched.setattr(recordings, "VALUES_AT_ONCE", at_once)
            np.testing.assert_array_equal(window_statistics(values, window, stride), whole)


def test_a_window_as_long_as_the_recording_takes_little_memory():
    values = np.zeros((6_000, 2), np.float32)  # all windows together hold 275 MiB
    tracemalloc.start()
    try:
        window_statistics(values, 6_000, 1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 150 << 20


def test_standardised_columns_have_mean_zero_and_variance_one_and_constants_vanish():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(5e3, 3, (400, 2)), np.full((400, 1), 1e4 / 3)], axis=1)
    result = standardise(features.astype(np.float32))
    np.testing.assert_allclose(result.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(result.std(0), [1, 1, 0], atol=1e-4)


def test_standardisation_is_over_the_recording_not_over_the_clip(tmp_path):
    x = np.concatenate([np.zeros((100, 3)), np.ones((100, 3)), np.zeros((104, 3))]).astype(np.int16)
    convert(tmp_path, write(tmp_path, x=x), window=1, stride=1)
    with open_archive(tmp_path / "a.h5") as archive:
        first, _ = archive.read([archive.position("one_a")])
        np.testing.assert_allclose(first[:, 0], -1, atol=1e-2)  # the low half of the recording, not 0


@pytest.mark.parametrize(("text", "subjects"), [("1-3", {1, 2, 3}), (" 2 , 4-5", {2, 4, 5}), ("7", {7})])
def test_subject_ranges(text, subjects):
    assert parse_subjects(text) == subjects


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "1-2-3", "-1", "1;2", "1-9999999999", "²"])
def test_bad_subject_ranges_are_refused(text):
    with pytest.raises(UserError, match="training_subjects"):
        parse_subjects(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seg_end": None, "zero": None}, "missing: zero, seg_end"),
        ({"x": np.zeros(304)}, "x: expected shape"),
        ({"x": np.full((304, 3), np.nan)}, "x: there are values that are not finite"),
        ({"x": np.zeros((304, 3), complex)}, "x: expected numbers"),
        ({"scale": np.zeros(2)}, "scale: expected one value or 3"),
        ({"rec_offset": np.array([0, 200, 200])}, "rec_offset: expected to rise from 0 to 304"),
        ({"rec_offset": np.array([0, 250, 240])}, "rec_offset"),
        ({"rec_offset": np.array([0, 304])}, "rec_offset: expected shape"),
        ({"rec_offset": np.array([0.0, 200.0, 304.0])}, "rec_offset: expected integers"),
        ({"rec_id": np.array(["one", "one"])}, "twice"),
        ({"rate_hz": np.float64(0)}, "rate_hz"),
        ({"seg_rec": np.array([0, 0, 0, 0, 2])}, "seg_rec: expected 0 to 1; segment 4 has 2"),
        ({"seg_class": np.array([0, -1, 1, 0, 1])}, "seg_class: expected 0 to 1; segment 1 has -1"),
        ({"seg_end": np.array([3.0, 6.2, 12.0, 19.0, 11.0])}, "seg_start, seg_end.*segment 4"),
        ({"seg_start": np.array([1.0, 4.0, 12.0, 15.0, 2.0])}, "segment 2"),
        ({"seg_start": np.array([1.0, np.nan, 9.0, 15.0, 2.0])}, "segment 1"),
        ({"seg_start": np.array([1.0])}, "seg_start: expected shape"),
        ({"class_names": np.array([1, 2])}, "class_names: expected text"),
        ({"class_names": np.array(["walk", ""])}, "class_names: expected a name of every class, one is empty"),
        ({"seg_start": np.array([1.0, 4.0, 5.0, 15.0, 2.0])}, "different classes overlap at 5 s"),
        ({"seg_rec": np.array([0, 0, 0, 0, 0]), "seg_start": np.array([1, 4, 9, 15, 19.5])}, "segment 4"),
        ({"seg_rec": np.zeros(5, int), "seg_end": np.array([3, 6.2, 12, 19, 10.4])}, "overlap|'two' has no"),
        (  # the cut between 8.7 and 9.0 s is that of the rows at 8.8 s
            {"seg_start": np.array([1.0, 8.6, 8.64, 15.0, 2.0]), "seg_end": np.array([3.0, 8.63, 8.66, 19.0, 10.4])},
            "recording 'one': no row is left of the segment from 8.64 to 8.66 s with a stride of 4, use a smaller one",
        ),
    ],
)
def test_contradicting_content_is_refused_and_nothing_is_written(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path, path)
    assert "recordings.npz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["recordings.npz"]


def test_an_import_that_finds_the_disk_full_leaves_no_annotations(tmp_path, monkeypatch):
    path = write(tmp_path)

    def be_full(*_, **__):
        raise UserError("No space left on device")

    with monkeypatch.context() as full:
        full.setattr(archive_writer, "replace_when_complete", be_full)
        with pytest.raises(UserError, match="No space left"):
            convert(tmp_path, path)
    assert not (tmp_path / "a.json").exists()
    convert(tmp_path, path)
    with open_archive(tmp_path / "a.h5") as archive:
        assert set(archive.ids) == set(read_annotations(tmp_path / "a.json").videos)


def test_a_lack_of_memory_is_not_called_damage(tmp_path, monkeypatch):
    def be_short(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np, "load", be_short)
    with pytest.raises(UserError, match=r"recordings.npz: cannot read \(not enough memory\)"):
        read_recordings(write(tmp_path))


def test_inspect_says_how_recordings_are_imported(tmp_path, capsys):
    assert main(["inspect", str(write(tmp_path))]) == 2
    assert "2 recordings; import-recordings makes an archive of them" in capsys.readouterr().err


def test_pickled_arrays_are_refused(tmp_path):
    path = write(tmp_path, rec_id=np.array(["one", "two"], dtype=object))
    with pytest.raises(UserError, match="not a readable npz"):
        read_recordings(path)


def test_arrays_that_unpack_to_more_than_the_file_can_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_guard, "SMALL_BYTES", 1000)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1_000_000))
    with pytest.raises(UserError, match=r"x\.npz: array 'x\.npy' unpacks to 8,000,128 bytes, too many"):
        read_recordings(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no zip", b"text"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable npz"):
        read_recordings(path)


@pytest.mark.parametrize(("offset", "value"), [(6, 99), (8, 1)])  # needs a version to come; is encrypted
def test_members_that_nobody_can_unpack_are_refused(tmp_path, offset, value):
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + offset] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable npz"):
        read_recordings(path)


def test_a_single_array_and_a_missing_file_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"^[^:]*x\.npy: expected an npz file of recordings, got a single array$"):
        read_recordings(tmp_path / "x.npy")
    with pytest.raises(UserError, match="no such file"):
        read_recordings(tmp_path / "y.npz")


def test_bad_options_are_refused(tmp_path):
    path = write(tmp_path)
    for options, message in [
        ({"stride": 0}, "window and stride"),
        ({"cut": "half"}, "cut: expected none or classes or groups"),
        ({"cut": "groups"}, "apart: expected names of classes with cut groups"),
        ({"apart": ["a"]}, "apart: expected names of classes with cut groups, and none without"),
        ({"cut": "groups", "apart": ["aa"]}, "apart: class 'aa' does not occur; did you mean 'a'?"),
        ({"background": ["x"]}, "background: class 'x' does not occur; it has a, b"),
        ({"background": ["a", "b"]}, "background: no segment of another class is left"),
        (
            {"training_subjects": "1", "training_share": 0.5},
            "training_subjects and training_share: expected one of the two, got both",
        ),
        ({"training_share": 1.0}, "training_share: expected a number between 0 and 1, got 1"),
        ({"training_subjects": "3-5"}, "none of '3-5' .* has 1, 7"),
        ({"stride": 150}, "closer than the stride"),
        ({"window": 201}, r"recordings\.npz: window: expected at most the 200 samples of the longest .*, got 201"),
        ({"stride": 201, "cut": "none"}, "stride: expected at most the 200 samples of the longest recording, got 201"),
    ]:
        with pytest.raises(UserError, match=message):
            convert(tmp_path, path, **options)


@pytest.fixture(scope="session")
def ninapro() -> Path:
    folder = os.environ.get("AHERNET_DATA")
    path = Path(folder or ".") / "sequences" / "ninapro_db1_e1_25hz.npz"
    if folder is None or not path.exists():
        pytest.skip("AHERNET_DATA does not name a folder with sequences/ninapro_db1_e1_25hz.npz")
    return path


def test_ninapro_gives_276_clips_of_one_class_and_ten_instances(tmp_path, ninapro):
    report = convert(tmp_path, ninapro, training_subjects="1-15")
    assert (report.clips, report.instances, report.dimension) == (276, 2760, 96)
    videos = read_annotations(tmp_path / "a.json").videos
    assert "S01_E1_movement_1" in videos
    subjects = {"training": set(), "validation": set()}
    for video in videos.values():
        assert len(video.segments) == 10
        assert len(set(video.labels)) == 1
        assert video.video_id.endswith(video.labels[0])
        assert (video.segments[:, 0] > 0).all()
        assert (video.segments[:, 1] < video.duration).all()
        subjects[video.subset].add(video.video_id[:3])
    assert max(subjects["training"]) == "S15"
    assert min(subjects["validation"]) == "S16"
    assert report.training_clips == 12 * len(subjects["training"])


def test_ninapro_cut_lengths_add_up_to_the_recordings(tmp_path, ninapro):
    convert(tmp_path, ninapro)
    database = json.loads((tmp_path / "a.json").read_text())["database"]
    seconds = sum(video["duration"] for video in database.values())
    assert seconds == pytest.approx(581_616 / 25, rel=1e-9)
