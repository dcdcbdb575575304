import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ahernet.checkpoint import load_checkpoint, save_checkpoint
from ahernet.config import Config, ModelConfig
from ahernet.model.anchors import scale_channels
from ahernet.model.localizer import Localizer
from ahernet.model.segment_classifier import REMEMBERED, FeatureStatistics, SegmentClassifier

MODEL = ModelConfig(feature_dimension=5, width=1 / 256, minimum_channels=2)
CLASSES = 4


def _classifier():
    return SegmentClassifier(MODEL, CLASSES)


def _pooled(size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, d, generator=generator).to(dtype) for d in scale_channels(MODEL)]


def _reference(batches):
    """Count, mean and variance of every class after batches of (features, rows), one class at a time."""
    dimension = batches[0][0].shape[1]
    count, mean, variance = np.zeros(CLASSES), np.zeros((CLASSES, dimension)), np.zeros((CLASSES, dimension))
    for features, rows in batches:
        for label in range(CLASSES):
            here = features[rows == label]
            if not len(here):
                continue
            # As if there were min(count, REMEMBERED) segments of the old mean and variance before these.
            remembered = min(count[label], REMEMBERED)
            total = remembered + len(here)
            mixed = (remembered * mean[label] + here.sum(axis=0)) / total
            squares = remembered * (variance[label] + mean[label] ** 2) + (here**2).sum(axis=0)
            mean[label], variance[label] = mixed, squares / total - mixed**2
            count[label] += len(here)
    return count, mean, variance


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batches=st.lists(st.lists(st.integers(0, CLASSES - 1), max_size=40), min_size=1, max_size=6),
)
def test_statistics_are_those_of_a_slow_reference(seed, batches):
    rng = np.random.default_rng(seed)
    statistics = FeatureStatistics(3, CLASSES)
    seen = []
    for rows in batches:
        features = rng.normal(loc=2.0, size=(len(rows), 3)).astype(np.float32)
        seen.append((features.astype(np.float64), np.array(rows, np.int64)))
        statistics.observe(torch.from_numpy(features), torch.tensor(rows, dtype=torch.int64))
    count, mean, variance = _reference(seen)
    assert statistics.observed.tolist() == count.tolist()
    np.testing.assert_allclose(statistics.mean, mean, atol=1e-5)
    np.testing.assert_allclose(statistics.variance, variance, atol=1e-5)


def test_few_segments_have_their_own_mean_and_variance_however_they_came():
    features = torch.randn(REMEMBERED, 3, generator=torch.Generator().manual_seed(1)) + 5
    statistics = FeatureStatistics(3, 2)
    for part in torch.split(features, [1, 2, 30, REMEMBERED - 33]):
        statistics.observe(part, torch.ones(len(part), dtype=torch.int64))
    assert statistics.observed.tolist() == [0, REMEMBERED]
    torch.testing.assert_close(statistics.mean[1], features.mean(dim=0))
    torch.testing.assert_close(statistics.variance[1], features.var(dim=0, unbiased=False))
    assert not statistics.mean[0].any()
    assert not statistics.variance[0].any()


def test_segments_of_long_ago_are_forgotten():
    statistics = FeatureStatistics(1, 1)
    row = torch.zeros(16, dtype=torch.int64)
    for value in [100.0] * 20 + [1.0] * 60:
        statistics.observe(torch.full((16, 1), value), row)
    assert statistics.observed.tolist() == [80 * 16]
    torch.testing.assert_close(statistics.mean, torch.ones(1, 1), atol=1e-3, rtol=0)
    assert statistics.variance.item() < 1e-2


def test_scales_are_kept_side_by_side_in_their_order():
    classifier, pooled = _classifier(), _pooled(3)
    classifier.observe(pooled, torch.tensor([2, 2, 0]))
    assert classifier.statistics.observed.tolist() == [1, 0, 2, 0]
    for mean, scale in zip(
        torch.split(classifier.statistics.mean, list(scale_channels(MODEL)), dim=1), pooled, strict=True
    ):
        assert torch.equal(mean[0], scale[2])
        torch.testing.assert_close(mean[2], scale[:2].mean(dim=0))


def test_observing_changes_no_weight_and_leads_no_gradient_anywhere():
    classifier = _classifier()
    before = [parameter.clone() for parameter in classifier.parameters()]
    pooled = [x.requires_grad_() for x in _pooled(6)]
    classifier.observe(pooled, torch.tensor([0, 1, 2, 3, 0, 1]))
    assert all(torch.equal(a, b) for a, b in zip(classifier.parameters(), before, strict=True))
    assert not any(buffer.requires_grad for buffer in classifier.buffers())


def test_features_of_a_forward_pass_in_half_precision_are_not_rounded_again():
    rows = torch.tensor([0, 1, 1, 1])
    inside, outside = _classifier(), _classifier()
    with torch.autocast("cpu", torch.bfloat16):
        inside.observe(_pooled(4, dtype=torch.bfloat16), rows)
    outside.observe([x.float() for x in _pooled(4, dtype=torch.bfloat16)], rows)
    for a, b in zip(inside.statistics.buffers(), outside.statistics.buffers(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_shapes_depend_on_no_value():
    classifier = _classifier()
    whole = torch.compile(classifier.observe, fullgraph=True, backend="eager")
    whole(_pooled(5), torch.tensor([0, 0, 3, 1, 3]))
    assert classifier.statistics.observed.tolist() == [2, 1, 0, 2]


def test_every_tensor_of_the_state_has_a_row_a_class():
    assert {len(tensor) for tensor in _classifier().state_dict().values()} == {CLASSES}


def test_statistics_are_part_of_the_checkpoint(tmp_path):
    model = Localizer(MODEL, CLASSES)
    model.segment_classifier.observe(_pooled(30), torch.arange(30) % 3)
    save_checkpoint(tmp_path, Config(model=MODEL), ("a", "b", "c", "d"), model)
    loaded = load_checkpoint(tmp_path).model.segment_classifier
    assert loaded.statistics.observed.tolist() == [10, 10, 10, 0]
    for name, tensor in model.segment_classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.gpu
def test_a_gpu_repeats_itself_and_agrees_with_the_cpu():
    results = []
    for device in ("cpu", "cuda", "cuda"):
        classifier = _classifier().to(device)
        for seed in range(5):
            rows = torch.randint(0, CLASSES, (64,), generator=torch.Generator().manual_seed(seed))
            classifier.observe([x.to(device) for x in _pooled(64, seed)], rows.to(device))
        results.append([buffer.cpu() for buffer in classifier.statistics.buffers()])
    for cpu, first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, cpu, atol=1e-5, rtol=0)
