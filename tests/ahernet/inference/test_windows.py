from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_references import DURATIONS, LENGTHS, suppressed, write_archive

from ahernet.config import LARGEST_COUNT, InferenceConfig
from ahernet.data.archive import open_archive
from ahernet.errors import UserError
from ahernet.inference import windows as module
from ahernet.inference.localize import localize
from ahernet.inference.ready import inference_step
from ahernet.inference.windows import split_into_windows

WINDOW = 40.0  # seconds: videos 2 and 3 of 350 and 300 seconds are long
COUNTS = (1, 1, 17, 15, 1)


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    rate=st.floats(0.05, 30),
    window=st.floats(0.5, 500),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9]),
)
def test_windows_are_equal_cover_the_video_and_overlap(lengths, rate, window, overlap):
    rows = np.array(lengths)
    durations = rows / rate
    windows = split_into_windows(rows, durations, window, overlap)
    for video, length in enumerate(lengths):
        here = windows.video == video
        first, last = windows.first[here], windows.last[here]
        size = min(max(round(window * length / durations[video]), 1), length)
        assert len(first) == windows.counts[video]
        assert (first[0], last[-1]) == (0, length)
        assert set(last - first) == {size}
        assert (first[1:] - first[:-1] <= size * (1 - overlap) + 1).all()
        fewer = len(first) - 1
        assert fewer == 0 or (fewer - 1) * size * (1 - overlap) + size < length + 1e-6 * length


def test_a_video_no_longer_than_the_window_is_one_window(archive, checkpoint):
    assert split_into_windows(np.array(LENGTHS), np.array(DURATIONS), 400.0, 0.5).counts.tolist() == [1] * 5
    whole, windowed = (
        localize(archive, checkpoint, InferenceConfig(window=window), device="cpu", progress=False)
        for window in (0.0, 350.0)
    )
    np.testing.assert_array_equal(whole.scores, windowed.scores)
    np.testing.assert_array_equal(whole.segments, windowed.segments)


def test_as_many_as_there_can_be_may_be_kept_of_windows(archive, checkpoint):
    config = InferenceConfig(window=WINDOW, top_k=LARGEST_COUNT, suppression="hard", nms_threshold=1.0, batch_size=4)
    every, most = (
        localize(archive, checkpoint, replace(config, top_k=top_k), device="cpu", progress=False)
        for top_k in (LARGEST_COUNT, 100_000)
    )
    np.testing.assert_array_equal(every.scores, most.scores)


@pytest.mark.parametrize("suppression", ["hard", "gaussian"])
def test_suppression_chooses_among_the_candidates_of_all_windows(archive, checkpoint, suppression):
    config = InferenceConfig(window=WINDOW, top_k=5, suppression=suppression, nms_threshold=0.5, batch_size=4)
    assert split_into_windows(np.array(LENGTHS), np.array(DURATIONS), WINDOW, 0.5).counts.tolist() == list(COUNTS)
    detections = localize(archive, checkpoint, config, device="cpu", progress=False)
    step = inference_step(checkpoint.model, config).eval()
    for video in (2, 3):
        rows, _ = archive.read([video])
        windows = split_into_windows(np.array([len(rows)]), np.array([DURATIONS[video]]), WINDOW, 0.5)
        candidates = []
        for first, last in zip(windows.first, windows.last, strict=True):
            part = torch.from_numpy(rows[first:last])
            segments, scores, labels, _ = step.candidates(part, torch.tensor([0, len(part)]))
            spans = (first + segments[0].double() * len(part)) / len(rows)
            candidates += [
                (tuple(span), score, label)
                for span, score, label in zip(spans.tolist(), scores[0].tolist(), labels[0].tolist(), strict=True)
            ]
        expected = suppressed(candidates, replace(config, top_k=5 * COUNTS[video]))
        mine = detections.video == video
        assert mine.sum() == len(expected) > 5
        # Ends are rounded to fp32 of the whole video, which narrow segments feel in their overlaps.
        np.testing.assert_allclose(detections.scores[mine], [score for _, score, _ in expected], atol=5e-5)
        spans = np.array([span for span, _, _ in expected]) * DURATIONS[video]
        np.testing.assert_allclose(detections.segments[mine], spans, atol=1e-3)
        assert detections.label[mine].tolist() == [label for _, _, label in expected]


@pytest.mark.parametrize("candidates", ["anchors", "crops", "snippets"])
def test_what_is_computed_together_changes_nothing(archive, checkpoint, monkeypatch, candidates):
    def found(batch_size):
        config = InferenceConfig(candidates=candidates, window=WINDOW, top_k=5, top_k_before=50, batch_size=batch_size)
        return localize(archive, checkpoint, config, device="cpu", progress=False)

    together = found(64)
    monkeypatch.setattr(module, "HELD", 1)
    monkeypatch.setattr(module, "TOGETHER", 1)
    apart = found(7)
    np.testing.assert_array_equal(together.video, apart.video)
    np.testing.assert_array_equal(together.label, apart.label)
    np.testing.assert_allclose(together.scores, apart.scores, rtol=1e-4)
    np.testing.assert_allclose(together.segments, apart.segments, atol=1e-3)


@settings(max_examples=20)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=12), most=st.integers(1, 40))
def test_videos_are_merged_in_order_and_within_the_bound(counts, most):
    ranges = list(module._together(np.array(counts), most))
    assert [first for first, _ in ranges] == [0, *(last for _, last in ranges[:-1])]
    assert ranges[-1][1] == len(counts)
    for first, last in ranges:
        assert last == first + 1 or max(counts[first:last]) * (last - first) <= most


def test_soft_suppression_of_more_windows_than_could_end_is_refused(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("ahernet.inference.ready.MOST_SOFT_PAIRS", (10 * 500) ** 2)
    with open_archive(write_archive(tmp_path / "a.h5", (*DURATIONS[:2], 1e6, *DURATIONS[3:]))) as archive:
        config = InferenceConfig(window=100.0, top_k=10, suppression="gaussian")
        with pytest.raises(UserError, match=r"'video2': .* windows of 100 s, at most 500; give a longer"):
            localize(archive, checkpoint, config, device="cpu", progress=False)
        localize(archive, checkpoint, replace(config, window=1e5), device="cpu", progress=False)


@pytest.mark.parametrize("seconds", [1e6, 1e300, 1.7e308])
def test_a_duration_of_too_many_windows_is_an_error_or_skipped_by_name(
    tmp_path, checkpoint, monkeypatch, seconds, capsys
):
    monkeypatch.setattr("ahernet.inference.ready.MOST_WINDOWS", 500)
    config = InferenceConfig(window=100.0)
    path = write_archive(tmp_path / "a.h5", (*DURATIONS[:2], seconds, *DURATIONS[3:]))
    with open_archive(path) as archive:
        with pytest.raises(UserError, match=r"'video2': .* s are [\d,]+ windows of 100 s, at most 500; give a longer"):
            localize(archive, checkpoint, config, device="cpu", progress=False)
        found = localize(archive, checkpoint, config, device="cpu", progress=False, on_error="skip")
    assert found.video_ids == ("video0", "video1", "video3", "video4")
    assert "left out 1 videos: 'video2'" in capsys.readouterr().err
