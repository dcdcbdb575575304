import dataclasses
from copy import deepcopy

import ahernet_kernels as kernels
import h5py
import numpy as np
import pytest
import torch

from ahernet.add_class import add_class
from ahernet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ahernet.config import Config, InferenceConfig, ModelConfig
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError
from ahernet.inference.localize import localize
from ahernet.model.localizer import Localizer
from ahernet.model.segment_classifier import pool_segments, segment_logits
from ahernet.training.losses import segment_loss

DIMENSION = 12
MODEL = ModelConfig(feature_dimension=DIMENSION, width=1 / 256, minimum_channels=24, steps=64, moment_steps=32)
CONFIG = Config(model=MODEL, inference=InferenceConfig(batch_size=8))
BASE, NOVEL = ("run", "jump", "fall"), ("swim", "dive")
OLD = BASE + NOVEL
NEW = "größer"
MOMENTS = 30


def _features(label, count, seed=0):
    """Moments of a class of the world: its own pattern and a little noise, (rows, DIMENSION) each."""
    number = [*OLD, NEW, "newest"].index(label)
    pattern = np.random.default_rng([5, number]).normal(size=DIMENSION)
    rng = np.random.default_rng([seed, number])
    lengths = rng.integers(8, 40, size=count)
    return [(pattern + 0.3 * rng.normal(size=(n, DIMENSION))).astype(np.float32) for n in lengths]


def _archive(path, moments):
    with ArchiveWriter(path, dimension=moments[0].shape[1], dtype="float32") as writer:
        for number, rows in enumerate(moments):
            writer.add(f"m{number}", rows, 5.0)
    return open_archive(path)


def _pool(model, moments):
    rows = torch.from_numpy(np.concatenate(moments))
    offsets = torch.tensor([0, *np.cumsum([len(m) for m in moments])])
    with torch.no_grad():
        return pool_segments(model.backbone(kernels.resample(rows, offsets, MODEL.moment_steps)))


def _trained(classes):
    """A network of which all is random but the segment classifier, which knows the classes and has statistics."""
    torch.manual_seed(0)
    model = Localizer(MODEL, len(classes))
    with torch.no_grad():  # not the identity that the transfer starts as
        for parameter in (*model.transfer.parameters(), *model.heads.parameters()):
            parameter.add_(0.03 * torch.randn_like(parameter))
    classifier = model.segment_classifier
    parts = [_pool(model, _features(name, MOMENTS)) for name in classes]
    pooled = [torch.cat(scale) for scale in zip(*parts, strict=True)]
    rows = torch.arange(len(classes)).repeat_interleave(MOMENTS)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        segment_loss(segment_logits(pooled, classifier.class_weights()), rows).backward()
        optimizer.step()
    classifier.observe(pooled, rows)
    model.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint(CONFIG, OLD, NOVEL, _trained(OLD), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    with _archive(tmp_path_factory.mktemp("moments") / "new.h5", _features(NEW, MOMENTS)) as archive:
        yield archive


def _add(checkpoint, moments, label=NEW, **options):
    return add_class(checkpoint, moments, label, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def grown(checkpoint, moments):
    return _add(checkpoint, moments)


def _shares(checkpoint, classes, class_weights=None):
    """Share (K, K) of held-out moments of each class (rows) that are taken for each class (columns)."""
    weights = class_weights or checkpoint.model.segment_classifier.class_weights()
    weights = weights.select(torch.tensor([checkpoint.classes.index(name) for name in classes]))
    shares = []
    for name in classes:
        logits = segment_logits(_pool(checkpoint.model, _features(name, 20, seed=1)), weights)
        taken = torch.stack(logits).softmax(dim=2).mean(dim=0).argmax(dim=1)
        shares.append(torch.bincount(taken, minlength=len(classes)) / len(taken))
    return torch.stack(shares)


def test_the_class_is_appended_and_nothing_else_is_different(checkpoint, grown):
    assert grown.classes == (*OLD, NEW)
    assert grown.moment_classes == (*NOVEL, NEW)
    assert (grown.config, grown.source) == (checkpoint.config, checkpoint.source)
    assert not grown.model.training
    before, after = checkpoint.model.state_dict(), grown.model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name.startswith("segment_classifier."):
            assert after[name].shape == (len(OLD) + 1, *tensor.shape[1:])
            assert torch.equal(after[name][: len(OLD)], tensor), name
        else:
            assert torch.equal(after[name], tensor), name


def test_the_network_that_was_given_stays_as_it_is(checkpoint, moments):
    before = deepcopy(checkpoint.model.state_dict())
    grown = _add(checkpoint, moments)
    with torch.no_grad():
        for parameter in grown.model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint.model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in checkpoint.model.parameters())


def test_the_new_class_is_told_from_all_old_ones(checkpoint, grown):
    assert _shares(checkpoint, OLD).diagonal().min() >= 0.9
    for others in (BASE, NOVEL):
        shares = _shares(grown, (*others, NEW))
        assert shares.diagonal().min() >= 0.9
        assert shares[:-1, -1].max() <= 0.1


def test_the_new_class_is_told_from_all_old_ones_after_the_transfer(grown):
    with torch.no_grad():
        transferred = grown.model.class_weights()
    old_shares = _shares(grown, OLD, transferred).diagonal().mean()
    shares = _shares(grown, (*OLD, NEW), transferred)
    assert shares[-1, -1] >= 0.9
    assert shares.diagonal()[:-1].mean() >= old_shares - 0.1


@pytest.mark.parametrize("classes", [OLD, NOVEL, BASE[::-1]])
def test_old_classes_are_localized_as_before_among_themselves(checkpoint, grown, tmp_path, classes):
    videos = [np.concatenate(_features(name, 4, seed=2)) for name in OLD]
    with _archive(tmp_path / "videos.h5", videos) as archive:
        before = localize(archive, checkpoint, classes=classes, device="cpu", progress=False)
        after = localize(archive, grown, classes=classes, device="cpu", progress=False)
    assert before.classes == after.classes
    assert len(before.scores) > 50
    for column in ("video", "label", "segments", "scores"):
        np.testing.assert_array_equal(getattr(before, column), getattr(after, column))


def test_logits_of_old_classes_are_the_same_bit_for_bit(checkpoint, grown):
    sequence = torch.randn(3, MODEL.steps, DIMENSION, generator=torch.Generator().manual_seed(0))
    outputs = []
    with torch.no_grad():
        for one in (checkpoint, grown):
            old = one.model.segment_classifier.class_weights().select(torch.arange(len(OLD)))
            segments = segment_logits(pool_segments(one.model.backbone(sequence)), old)
            anchors = one.model(sequence, one.model.transfer(old))
            outputs.append([*segments, *anchors.logits, *anchors.offsets, *anchors.overlaps])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_the_new_class_is_found_where_it_is(grown, tmp_path):
    videos = [np.concatenate(_features(NEW, 3, seed=3)), np.concatenate(_features("dive", 3, seed=3))]
    with _archive(tmp_path / "videos.h5", videos) as archive:
        found = localize(archive, grown, classes=(*NOVEL, NEW), device="cpu", progress=False)
    best = [found.label[found.video == video][0] for video in range(2)]
    assert [found.classes[label] for label in best] == [NEW, "dive"]


def test_the_same_seed_gives_the_same_rows_and_leaves_other_random_numbers_alone(checkpoint, moments, grown):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again, other = _add(checkpoint, moments, seed=0), _add(checkpoint, moments, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in grown.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    weights = [one.model.segment_classifier.weights[0][-1] for one in (grown, other)]
    assert not torch.equal(*weights)
    assert torch.nn.functional.cosine_similarity(*weights, dim=0) > 0.9


def test_a_further_class_is_told_from_the_one_before(grown, tmp_path):
    with _archive(tmp_path / "newest.h5", _features("newest", MOMENTS)) as archive:
        twice = _add(grown, archive, "newest")
    assert twice.classes == (*OLD, NEW, "newest")
    assert twice.moment_classes == (*NOVEL, NEW, "newest")
    assert _shares(twice, (*NOVEL, NEW, "newest")).diagonal().min() >= 0.9


def test_statistics_of_the_new_class_are_those_of_all_its_moments(checkpoint, moments, grown):
    pooled = torch.cat(_pool(checkpoint.model, _features(NEW, MOMENTS)), dim=1)
    statistics = grown.model.segment_classifier.statistics
    assert statistics.observed[-1] == MOMENTS
    torch.testing.assert_close(statistics.mean[-1], pooled.mean(dim=0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(statistics.variance[-1], pooled.var(dim=0, unbiased=False), atol=1e-4, rtol=1e-3)


def test_one_moment_is_enough(checkpoint, tmp_path):
    with _archive(tmp_path / "one.h5", _features(NEW, 1)) as archive:
        grown = _add(checkpoint, archive)
    assert grown.model.segment_classifier.statistics.observed[-1] == 1
    assert _shares(grown, (*OLD, NEW)).diagonal().min() >= 0.8


def test_a_network_of_one_class_can_learn_a_second(tmp_path):
    lonely = Checkpoint(CONFIG, ("swim",), ("swim",), _trained(("swim",)), tmp_path)
    with _archive(tmp_path / "few.h5", _features(NEW, 5)) as archive:
        both = _add(lonely, archive)
    assert all(tensor.isfinite().all() for tensor in both.model.state_dict().values())
    assert both.classes == ("swim", NEW)


def test_classes_that_training_never_saw_do_not_matter(checkpoint, moments):
    """As the base classes of a run that learns from moments alone."""
    states = []
    for filling in (0.0, 100.0):
        model = deepcopy(checkpoint.model)
        classifier = model.segment_classifier
        classifier.statistics.observed[: len(BASE)] = 0
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter[: len(BASE)] = filling
        one = _add(dataclasses.replace(checkpoint, model=model), moments)
        states.append([parameter[-1] for parameter in one.model.segment_classifier.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_what_is_saved_is_loaded_and_can_be_added_to(grown, tmp_path):
    save_checkpoint(tmp_path / "run", grown.config, grown.classes, grown.model, grown.moment_classes)
    loaded = load_checkpoint(tmp_path / "run")
    assert (loaded.classes, loaded.moment_classes) == (grown.classes, grown.moment_classes)
    with _archive(tmp_path / "newest.h5", _features("newest", 5)) as archive:
        states = [_add(one, archive, "newest").model.state_dict() for one in (loaded, grown)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_progress_is_shown(checkpoint, moments, capsys):
    add_class(checkpoint, moments, NEW, device="cpu")
    assert f"{MOMENTS}/{MOMENTS}" in capsys.readouterr().err


@pytest.mark.parametrize(("label", "words"), [("swim", "has a class 'swim' already"), (" ", "got an empty one")])
def test_a_label_that_cannot_be_added_is_refused(checkpoint, moments, label, words):
    with pytest.raises(UserError, match=words):
        _add(checkpoint, moments, label)


def test_features_of_another_dimension_are_refused(checkpoint, tmp_path):
    with (
        _archive(tmp_path / "wide.h5", [np.zeros((4, DIMENSION + 1), np.float32)]) as archive,
        pytest.raises(UserError, match=r"wide\.h5: features have 13 values a row, the network in .* expects 12"),
    ):
        _add(checkpoint, archive)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])  # the last overflows in the network
def test_moments_with_features_that_are_not_finite_are_named(checkpoint, tmp_path, value):
    path = tmp_path / "broken.h5"
    _archive(path, [np.zeros((4, DIMENSION), np.float32)] * 20).close()
    with h5py.File(path, "r+") as file:
        for number in (9, 11, 17):
            file["features"][4 * number + 1 : 4 * number + 3] = value
    with (
        open_archive(path) as archive,
        pytest.raises(UserError, match=r"broken\.h5: features that are not finite in 'm9', 'm11'$"),
    ):
        _add(checkpoint, archive)


def test_a_network_whose_training_classified_no_segments_is_refused(checkpoint, moments):
    model = deepcopy(checkpoint.model)
    model.segment_classifier.statistics.observed.zero_()
    with pytest.raises(UserError, match=r"its training classified no segments.*trained with moments.*--run aher"):
        _add(dataclasses.replace(checkpoint, model=model), moments)


def test_an_unknown_device_is_refused(checkpoint, moments):
    with pytest.raises(UserError, match="device: expected auto, cpu"):
        add_class(checkpoint, moments, NEW, device="abacus", progress=False)
