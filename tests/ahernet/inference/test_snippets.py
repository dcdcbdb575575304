import itertools
import math

import ahernet_kernels as kernels
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_references import LONG, assert_compiles, assert_exports, assert_found, suppressed

from ahernet.config import InferenceConfig
from ahernet.inference.snippets import THRESHOLDS, SnippetStep, group_snippets


def _runs(sequence, threshold):
    """First cell, cell after the last and mean of every run above the threshold, cell by cell, in float32."""
    sequence = np.asarray(sequence, np.float32)
    low, high = min(sequence), max(sequence)
    above = [value - low > np.float32(threshold) * (high - low) for value in sequence]
    runs, cell = [], 0
    for is_above, group in itertools.groupby(above):
        first, cell = cell, cell + len(list(group))
        if is_above:
            runs.append((first, cell, math.fsum(map(float, sequence[first:cell])) / (cell - first)))
    return runs


@st.composite
def _sequences(draw):
    """(B, C, T) probabilities: a coarse grid, where values repeat and meet thresholds, or any."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 14)))
    value = draw(st.sampled_from([st.integers(0, 10).map(lambda tenths: tenths / 10), st.floats(0, 1, width=32)]))
    flat = draw(st.lists(value, min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(flat, dtype=torch.float32).reshape(shape)


@settings(deadline=None)
@given(_sequences(), st.lists(st.sampled_from([0.0, *THRESHOLDS, 1.0]), min_size=1, max_size=4))
def test_groups_are_the_runs_above_each_threshold(probabilities, thresholds):
    videos, classes, cells = probabilities.shape
    segments, scores = group_snippets(probabilities, torch.tensor(thresholds))
    places = (videos, classes, len(thresholds), cells)
    assert segments.shape == (videos, math.prod(places[1:]), 2)
    assert segments.dtype == scores.dtype == torch.float32
    expected = torch.zeros(*places, 2), torch.full(places, -torch.inf)
    for b, c, (m, threshold) in itertools.product(range(videos), range(classes), enumerate(thresholds)):
        for first, last, mean in _runs(probabilities[b, c].numpy(), threshold):
            expected[0][b, c, m, first] = torch.tensor([first / cells, last / cells])
            expected[1][b, c, m, first] = mean
    torch.testing.assert_close(segments, expected[0].flatten(1, 3), atol=1e-6, rtol=0)
    # A difference of running sums: what is 1e-15 of the sum before it is lost.
    torch.testing.assert_close(scores, expected[1].flatten(1), atol=1e-12, rtol=1e-6)


def test_thresholds_lie_between_the_lowest_and_the_highest_value():
    segments, scores = group_snippets(torch.tensor([[[0.2, 0.4, 0.6, 0.2, 0.3]]]), torch.tensor([0.2, 0.9]))
    found = {(*segment, score) for segment, score in zip(segments[0].tolist(), scores[0].tolist(), strict=True)}
    found = {tuple(round(value, 5) for value in group) for group in found if group[2] > -math.inf}
    assert found == {(0.2, 0.6, 0.5), (0.8, 1.0, 0.3), (0.4, 0.6, 0.6)}


def test_small_probabilities_are_not_lost_beside_large_ones():
    sequence = torch.tensor([1.0] * 60 + [0.0] + [1e-9] * 3)
    _, scores = group_snippets(sequence[None, None], torch.tensor([0.0]))
    assert scores[0, 61].item() == pytest.approx(1e-9, rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, math.nan])
def test_a_sequence_without_contrast_gives_no_group(value):
    _, scores = group_snippets(torch.full((1, 2, 8), value), torch.tensor(THRESHOLDS))
    assert (scores == -torch.inf).all()


@torch.no_grad()
def _naive(localizer, config, rows, class_rows):
    """Detections of one video (L, D), class by class, threshold by threshold: list of (segment, score, label)."""
    sequence = kernels.resample(rows, torch.tensor([0, len(rows)]), 512)
    features = localizer.backbone(sequence)[0][0]
    weights, biases = (w[0][list(class_rows)] for w in localizer.segment_classifier.class_weights())
    probabilities = torch.stack([(weights @ cell + biases).softmax(dim=0) for cell in features.T], dim=1)
    means = probabilities.mean(dim=1).tolist()
    best = sorted(range(len(class_rows)), key=lambda label: -means[label])[:3]
    candidates = [
        ((first / 128, last / 128), mean, label)
        for label in best
        for threshold in [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
        for first, last, mean in _runs(probabilities[label].numpy(), threshold)
    ]
    return suppressed(candidates, config)


@pytest.mark.parametrize(
    ("config", "class_rows"),
    [
        (InferenceConfig(), None),
        (InferenceConfig(class_aware=False, nms_threshold=0.4, top_k=500), None),
        (InferenceConfig(suppression="gaussian", top_k=20), [6, 1, 3, 0]),
        (InferenceConfig(minimum_score=0.3, top_k_before=60, nms_threshold=0.5), [4, 2]),
    ],
)
def test_detections_equal_a_run_by_run_form(localizer_of_seven, batch, config, class_rows):
    rows, offsets = batch
    step = SnippetStep(localizer_of_seven, config, None if class_rows is None else torch.tensor(class_rows))
    found = step(rows, offsets)
    assert found.counts.sum() > 20
    for b in LONG:
        video = rows[offsets[b] : offsets[b + 1]]
        assert_found(found, b, _naive(localizer_of_seven, config, video, class_rows or range(7)))


def test_only_the_three_most_probable_classes_of_a_video_are_looked_for(localizer_of_seven, batch):
    found = SnippetStep(localizer_of_seven, InferenceConfig(top_k=5000))(*batch)
    labels = [set(row.tolist()) - {-1} for row in found.labels]
    assert max(map(len, labels)) == 3
    assert len(set.union(*labels)) > 3


def test_one_class_has_no_contrast(localizer, batch):
    found = SnippetStep(localizer, InferenceConfig(), torch.tensor([1]))(*batch)
    assert found.counts.tolist() == [0] * 5
    assert (found.labels == -1).all()


def test_only_what_the_finest_scale_needs_is_kept_and_the_model_is_left_alone(localizer):
    before = [tensor.clone() for tensor in localizer.parameters()]
    step = SnippetStep(localizer, InferenceConfig(precision="bfloat16"))
    assert len(step.backbone.scales) == len(step.weights) == 1
    assert len(localizer.backbone.scales) == 8
    assert all(torch.equal(x, y) for x, y in zip(before, localizer.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in localizer.parameters())


def test_videos_that_are_not_finite_are_flagged_and_harm_no_other(localizer, batch):
    rows = batch[0].clone()
    rows[10, 2] = float("nan")  # in the first video
    rows[30, 0] = float("inf")  # the only row of the second
    step = SnippetStep(localizer, InferenceConfig())
    found, whole = step(rows, batch[1]), step(*batch)
    assert found.finite.tolist() == [False, False, True, True, True]
    assert all(torch.equal(got[2:], expected[2:]) for got, expected in zip(found, whole, strict=True))


def test_one_row_is_localized_in(localizer):
    found = SnippetStep(localizer, InferenceConfig())(torch.ones(1, 6), torch.tensor([0, 1]))
    assert found.finite.tolist() == [True]
    assert found.segments.shape == (1, 100, 2)


@pytest.mark.parametrize("config", [InferenceConfig(), InferenceConfig(suppression="gaussian", top_k_before=50)])
def test_the_step_compiles_as_one_graph_for_any_batch(localizer, batch, config):
    step = SnippetStep(localizer, config)
    assert_compiles(step, batch)


def test_the_step_exports_with_any_number_of_rows_and_videos(localizer, batch):
    step = SnippetStep(localizer, InferenceConfig())
    assert_exports(step, batch)
