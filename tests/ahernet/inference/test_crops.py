import ahernet_kernels as kernels
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_references import LONG, anchor_segments, assert_compiles, assert_exports, assert_found, suppressed

import ahernet.inference.crops
from ahernet.config import InferenceConfig
from ahernet.inference.crops import CropStep, cut_segments
from ahernet.video_time import unit_to_rows


def _rows_inside(start, end, length):
    """Rows of a segment: every row whose centre lies inside, else the one in its middle."""
    rows = [row for row in range(length) if start <= (row + 0.5) / length < end]
    return rows or [min(int((start + end) / 2 * length), length - 1)]


@torch.no_grad()
def _naive(localizer, config, rows, class_rows=(0, 1, 2)):
    """Detections of one video (L, D), proposal by proposal: list of (segment, score, label)."""
    sequence = kernels.resample(rows, torch.tensor([0, len(rows)]), 512)
    offsets, overlaps = localizer.heads(localizer.backbone(sequence))
    candidates = [
        ((start, end), overlaps[j][0, r, t].sigmoid().item(), 0)
        for start, end, j, t, r in anchor_segments(localizer, offsets)
    ]
    found = []
    for segment, overlap, _ in suppressed(candidates, config):
        crop = rows[_rows_inside(*segment, len(rows))]
        moment = kernels.resample(crop, torch.tensor([0, len(crop)]), 256)
        total = torch.zeros(len(class_rows))
        for j, features in enumerate(localizer.backbone(moment)):
            weights, biases = (w[j][list(class_rows)] for w in localizer.segment_classifier.class_weights())
            total += (weights @ features[0].mean(dim=1) + biases).softmax(dim=0)
        probability, label = (total / 8).max(dim=0)
        if (score := probability.item() * overlap) > config.minimum_score:
            found.append((segment, score, label.item()))
    return sorted(found, key=lambda k: -k[1])


@pytest.mark.parametrize(
    ("config", "class_rows"),
    [
        (InferenceConfig(top_k=20), None),
        (InferenceConfig(top_k=9, nms_threshold=0.4), [2, 0]),
        (InferenceConfig(top_k=12, suppression="gaussian"), None),
        (InferenceConfig(top_k=20, top_k_before=25, nms_threshold=0.5), [1]),
        (InferenceConfig(top_k=40, minimum_score=0.25, nms_threshold=0.6), None),
        (InferenceConfig(top_k=200, minimum_score=-1.0, nms_threshold=0.2), None),  # fewer proposals than places
    ],
)
def test_detections_equal_a_proposal_by_proposal_form(localizer, batch, config, class_rows):
    rows, offsets = batch
    found = CropStep(localizer, config, None if class_rows is None else torch.tensor(class_rows))(rows, offsets)
    for b in LONG:
        expected = _naive(localizer, config, rows[offsets[b] : offsets[b + 1]], class_rows or (0, 1, 2))
        assert_found(found, b, expected)


def test_scores_below_the_minimum_are_dropped_after_classification(localizer, batch):
    every = CropStep(localizer, InferenceConfig(top_k=50))(*batch)
    some = CropStep(localizer, InferenceConfig(top_k=50, minimum_score=0.2))(*batch)
    assert some.counts.tolist() == (every.scores > 0.2).sum(dim=1).tolist()
    assert 0 < some.counts.sum() < every.counts.sum()
    beyond = torch.arange(50) >= some.counts[:, None]
    assert not some.segments[beyond].any()
    assert not some.scores[beyond].any()
    assert (some.labels[beyond] == -1).all()
    assert (some.scores[:, :-1] >= some.scores[:, 1:]).all()


def test_proposals_compete_whatever_their_later_label(localizer, batch):
    aware, agnostic = (
        CropStep(localizer, InferenceConfig(top_k=30, nms_threshold=0.5, class_aware=value))(*batch)
        for value in (True, False)
    )
    assert len(set(aware.labels.flatten().tolist()) - {-1}) > 1
    assert all(torch.equal(x, y) for x, y in zip(aware, agnostic, strict=True))


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_the_result_does_not_depend_on_how_many_go_through_at_once(localizer, batch, monkeypatch, at_once):
    expected = CropStep(localizer, InferenceConfig(top_k=10))(*batch)
    monkeypatch.setattr(ahernet.inference.crops, "PROPOSALS_AT_ONCE", at_once)
    for got, wanted in zip(CropStep(localizer, InferenceConfig(top_k=10))(*batch), expected, strict=True):
        torch.testing.assert_close(got[[*LONG]], wanted[[*LONG]], atol=1e-6, rtol=0)


def test_the_segment_level_weights_are_used_and_not_the_transferred(localizer, batch, monkeypatch):
    monkeypatch.setattr(type(localizer), "class_weights", lambda self: pytest.fail("the transfer was evaluated"))
    CropStep(localizer, InferenceConfig(top_k=2))(*batch)


def test_building_a_step_leaves_the_model_alone_and_keeps_nothing_of_it(localizer, batch):
    before = {name: tensor.clone() for name, tensor in localizer.state_dict().items()}
    step = CropStep(localizer, InferenceConfig(top_k=3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in localizer.state_dict().items())
    assert all(parameter.requires_grad for parameter in localizer.parameters())
    theirs = {tensor.data_ptr() for tensor in [*localizer.parameters(), *localizer.buffers()]}
    assert not theirs & {tensor.data_ptr() for tensor in [*step.parameters(), *step.buffers()]}
    assert not any(parameter.requires_grad for parameter in step.parameters())


def test_videos_that_are_not_finite_are_flagged_and_harm_no_other(localizer, batch):
    rows = batch[0].clone()
    rows[10, 2] = float("nan")  # in the first video
    rows[30, 0] = float("inf")  # the only row of the second
    step = CropStep(localizer, InferenceConfig(top_k=10))
    found, whole = step(rows, batch[1]), step(*batch)
    assert found.finite.tolist() == [False, False, True, True, True]
    for got, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(got[2:], expected[2:], atol=1e-6, rtol=0)


def test_one_row_is_localized_in(localizer):
    found = CropStep(localizer, InferenceConfig(top_k=5))(torch.ones(1, 6), torch.tensor([0, 1]))
    assert found.finite.tolist() == [True]
    assert found.counts[0] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_cut_as_they_are(localizer, batch, dtype):
    rows = batch[0].to(dtype)
    step = CropStep(localizer, InferenceConfig(top_k=10))
    for got, expected in zip(step(rows, batch[1]), step(rows.float(), batch[1]), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_bfloat16_detections_are_near_the_float32_ones(localizer, batch):
    exact = CropStep(localizer, InferenceConfig(top_k=10))(*batch)
    rough = CropStep(localizer, InferenceConfig(top_k=10, precision="bfloat16"))(*batch)
    assert rough.scores.dtype == torch.float32
    torch.testing.assert_close(rough.scores[:, 0], exact.scores[:, 0], atol=0.02, rtol=0)


# Nine proposals: more than go through at once, so that the loop is in the graph.
def test_the_step_compiles_as_one_graph_for_any_batch(localizer, batch):
    step = CropStep(localizer, InferenceConfig(top_k=9))
    assert_compiles(step, batch)


def test_the_step_exports_with_any_number_of_rows_and_videos(localizer, batch):
    step = CropStep(localizer, InferenceConfig(top_k=9))
    assert_exports(step, batch)


@st.composite
def _cuts(draw):
    """Lengths of the videos and (B, K, 2) segments, some empty, some at the ends, some whole."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    edge = st.one_of(st.floats(0, 1, width=32), st.integers(0, 24).map(lambda k: k / 24))
    count = draw(st.integers(1, 4))
    segments = [[sorted(draw(st.tuples(edge, edge))) for _ in range(count)] for _ in lengths]
    return lengths, torch.tensor(segments, dtype=torch.float32)


@settings(deadline=None)
@given(_cuts())
def test_crops_are_the_rows_of_their_segments(cut):
    lengths, segments = cut
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    rows = torch.arange(sum(lengths), dtype=torch.float32)[:, None] + torch.tensor([0.0, 0.5])
    crops, crop_offsets = cut_segments(rows, offsets, segments)
    assert crops.shape == (segments.shape[1] * len(rows), 2)
    assert len(crop_offsets) == len(lengths) * segments.shape[1] + 1
    assert crop_offsets[0] == 0
    assert crop_offsets[-1] <= len(crops)
    for k, (video, place) in enumerate(np.ndindex(*segments.shape[:2])):
        segment, length = segments[video, place].double().numpy(), lengths[video]
        first, last = unit_to_rows(segment[None], np.array([length]))
        expected = rows[offsets[video] + first[0] : offsets[video] + last[0]]
        assert torch.equal(crops[crop_offsets[k] : crop_offsets[k + 1]], expected)
