"""Algorithm 1 of the paper: which parameters each step may change, which classes it sees, and what its losses are."""

import math
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import ahernet_kernels as kernels
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_worlds import BASE, DIMENSION, data_of, small_config

from ahernet.config import RUNS, Config
from ahernet.model.context import synthesize
from ahernet.model.segment_classifier import pool_segments, segment_logits
from ahernet.training import take_steps, trainer
from ahernet.training.iteration_batches import IterationBatch, Phase, Placement, phase_of, read_iteration
from ahernet.training.losses import GroundTruth, assign_anchors, localization_losses
from ahernet.training.steps import (
    CHANGES,
    ClassRows,
    Networks,
    step_losses,
    synthetic_ground_truth,
    synthetic_videos,
)
from ahernet.training.training_data import TrainingData, build_training_data
from ahernet.training.training_state import start_or_resume

PARTS = ("backbone", "segment_classifier", "transfer", "heads", "generators", "discriminators")
BATCH = 4
CPU = torch.device("cpu")

# What each step changes by the paper: W_regv is "segment_classifier", theta "transfer", the 1-D network the rest of the
# localizer.
SUPERVISED = {"supervised": {"backbone", "segment_classifier", "transfer", "heads"}}
SEGMENTS = {"segments": {"backbone", "segment_classifier"}}  # line 3
TRANSFER = {"transfer": {"backbone", "transfer", "heads"}}  # line 4: W_regv is fixed
GENERATION = {"generation": {"generators"}}  # line 6: the 1-D network is fixed
SYNTHETIC = {"synthetic": {"backbone", "heads", "discriminators"}}  # line 6: the generators are fixed
WITHOUT_ADVERSARY = {"synthetic": {"backbone", "heads"}}
TAUGHT_BY_ALL = MappingProxyType({"method": {"transfer_taught_by": "all"}})


class Case(NamedTuple):
    """A phase of a run, with settings that differ from the paper's, and the parts that each of its steps changes."""

    run: str
    steps: dict[str, set[str]]
    phase: Phase = "main"
    changes: Mapping[str, dict] = MappingProxyType({})


CASES = {
    "aher0": Case("aher0", SEGMENTS),
    "aher-": Case("aher-", SEGMENTS | {"proposals": {"backbone", "heads"}}),
    "aherM": Case("aherM", SEGMENTS | {"moments": {"backbone", "transfer", "heads"}}),
    "aherA-": Case("aherA-", SEGMENTS | TRANSFER | WITHOUT_ADVERSARY),
    "aherR": Case("aherR", SEGMENTS | TRANSFER | WITHOUT_ADVERSARY, changes={"method": {"real_residual": True}}),
    "aherB": Case("aherB", SEGMENTS | TRANSFER | WITHOUT_ADVERSARY),
    "aher": Case("aher", SEGMENTS | TRANSFER | GENERATION | SYNTHETIC),
    "aher*": Case("aher*", SEGMENTS | SUPERVISED),
    "aher with real context": Case(
        "aher",
        SEGMENTS | TRANSFER | GENERATION | SYNTHETIC,
        changes={"method": {"real_residual": True}, "loss": {"context": 0.5}},
    ),
    "aher whose adversary leaves the backbone alone": Case(
        "aher", SEGMENTS | TRANSFER | GENERATION | SYNTHETIC, changes={"method": {"adversarial_backbone": False}}
    ),
    "aher whose generators see the adversary alone": Case(
        "aher", SEGMENTS | TRANSFER | GENERATION | SYNTHETIC, changes={"loss": {"generation": 0.0}}
    ),
    "aher whose transfer learns from all videos": Case(
        "aher",
        SEGMENTS | TRANSFER | GENERATION | {"synthetic_transfer": {"backbone", "transfer", "heads", "discriminators"}},
        changes=TAUGHT_BY_ALL,
    ),
    "aherA- whose transfer learns from all videos": Case(
        "aherA-",
        SEGMENTS | TRANSFER | {"synthetic_transfer": {"backbone", "transfer", "heads"}},
        changes=TAUGHT_BY_ALL,
    ),
    "pre-training of the localizer": Case("aher", SUPERVISED, phase="localizer"),
    "pre-training of the generators": Case("aher", {"context": {"generators"}}, phase="generators"),
}
STEPS = [(case, step) for case, described in CASES.items() for step in described.steps]


class Setting(NamedTuple):
    """Everything that `step_losses` takes, and the data that it comes from."""

    networks: Networks
    config: Config
    batch: IterationBatch
    phase: Phase
    rows: ClassRows
    data: TrainingData

    def losses(self, **changes):
        """The losses of all steps, with some of the arguments changed."""
        changed = self._replace(**changes)
        return step_losses(changed.networks, changed.config, changed.batch, changed.phase, changed.rows)


def _config(run, phase="main", **changes):
    """Settings as in the paper but for the size, and for matches that short videos and narrow networks can have."""
    wanted = {
        "model": {"minimum_channels": 8},
        "method": {"pretrain_iterations": 1 if phase == "localizer" else 0, "context_iterations": 1},
        "assignment": {"foreground_threshold": 0.5, "force_match": True},
        "training": {"batch_size": BATCH, "gradient_clip": 0.0},
    }
    wanted = {name: {**wanted.get(name, {}), **changes.get(name, {})} for name in {**wanted, **changes}}
    return small_config(run, "paper", **wanted)


def _iteration_of(config, phase):
    return next(k for k in range(9) if phase_of(config.method, k) == phase)


def _setting(world, run, phase="main", labels=None, classes=BASE, seed=0, **changes):
    config = _config(run, phase, **changes)
    data = data_of(world, config, labels)
    if classes != BASE:
        moments = (world.moments, labels or world.novel_labels) if data.moments else (None, None)
        data = build_training_data(world.archive, world.annotations, classes, *moments, config.method)
    torch.manual_seed(seed)
    networks = Networks(config, len(data.classes))
    with torch.no_grad():  # away from the start, where biases are 0 and the transfer is the identity
        for parameter in networks.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    batch = read_iteration(data.untrimmed, data.moments, config, _iteration_of(config, phase))
    rows = ClassRows(torch.tensor(data.base_rows), torch.tensor(data.moment_rows))
    return Setting(networks, config, batch, phase, rows, data)


def _case(world, name, **changes):
    case = CASES[name]
    return _setting(world, case.run, case.phase, **{**case.changes, **changes})


def _parameters(networks, parts):
    return [parameter for part in parts for parameter in networks.part(part).parameters()]


def _gradients(loss, networks, parts):
    """Gradients of the parameters of some parts, None where no path leads to one."""
    return torch.autograd.grad(loss, _parameters(networks, parts), retain_graph=True, allow_unused=True)


# --- what each step may change ---------------------------------------------------------------------------------


def _changed_parts(world, name, step, monkeypatch, folder):
    """Parts whose parameters differ after an iteration of training that has only this step."""
    case = CASES[name]
    config = _config(case.run, case.phase, **case.changes)
    data = data_of(world, config)
    run = start_or_resume(folder, config, data, CPU, resume=False)
    before = deepcopy(run.networks)
    iteration = _iteration_of(config, case.phase)
    batch = read_iteration(data.untrimmed, data.moments, config, iteration)
    monkeypatch.setattr(take_steps, "step_losses", lambda *arguments: {step: step_losses(*arguments)[step]})
    trainer.train_iteration(run, [batch], iteration)
    return {
        part
        for part in PARTS
        if any(
            not torch.equal(a, b)
            for a, b in zip(_parameters(run.networks, [part]), _parameters(before, [part]), strict=True)
        )
    }


def test_the_cases_have_every_run_and_every_step():
    assert {case.run for case in CASES.values()} == set(RUNS)
    assert {step for _, step in STEPS} == set(CHANGES)


@pytest.mark.parametrize("name", CASES)
def test_every_phase_of_every_run_takes_its_steps(world, name):
    assert set(_case(world, name).losses()) == set(CASES[name].steps)


def test_the_parts_are_the_networks(world):
    networks = _setting(world, "aher").networks
    of_parts = [id(parameter) for parameter in _parameters(networks, PARTS)]
    assert sorted(of_parts) == sorted(id(parameter) for parameter in networks.parameters())


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_training_by_one_step_changes_the_parts_of_that_step(world, name, step, monkeypatch, tmp_path):
    assert _changed_parts(world, name, step, monkeypatch, tmp_path) == CASES[name].steps[step]


@pytest.mark.parametrize(
    ("name", "step", "broken"),
    [
        ("aher", "segments", ("segment_classifier",)),
        ("aher", "transfer", ("backbone", "heads")),
        ("aher", "generation", ("generators", "backbone")),
        ("aher", "generation", ("generators", "discriminators")),
        ("aher", "synthetic", ("backbone", "heads", "discriminators", "generators")),
        ("aher", "synthetic", ("backbone", "heads")),
        ("aherA-", "synthetic", ("backbone", "heads", "generators")),
        ("aher*", "supervised", ("backbone", "transfer", "heads")),
    ],
)
def test_a_wrong_table_of_changes_is_noticed(world, name, step, broken, monkeypatch, tmp_path):
    monkeypatch.setitem(CHANGES, step, broken)
    assert _changed_parts(world, name, step, monkeypatch, tmp_path) != CASES[name].steps[step]


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_a_step_reaches_every_parameter_of_its_parts(world, name, step):
    parts = CASES[name].steps[step]
    reached = set()
    names = [
        f"{part}.{inner}" for part in parts for inner, _ in Networks(_config("aher"), 5).part(part).named_parameters()
    ]
    # A scale without foreground teaches neither offsets nor classes, one without background no discriminator. With
    # low thresholds all have foreground, with the usual ones all have background.
    for thresholds in ((0.01, 0.01), (0.5, 0.3)):
        assignment = {"foreground_threshold": thresholds[0], "background_threshold": thresholds[1]}
        setting = _case(world, name, assignment=assignment)
        gradients = _gradients(setting.losses()[step].loss, setting.networks, parts)
        reached |= {name for name, x in zip(names, gradients, strict=True) if x is not None and x.any()}
    # What T adds to the bias of every class alike makes no difference to a softmax.
    assert not [name for name in set(names) - reached if not re.fullmatch(r"transfer\.biases\..*\.bias", name)]


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_freezing_all_else_leaves_the_gradients_of_a_step_as_they_are(world, name, step):
    setting = _case(world, name)
    parts = CASES[name].steps[step]
    free = _gradients(setting.losses()[step].loss, setting.networks, parts)
    for part in set(PARTS) - parts:
        setting.networks.part(part).requires_grad_(False)
    frozen = _gradients(setting.losses()[step].loss, setting.networks, parts)
    for a, b in zip(free, frozen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "step", "part"),
    [
        ("aher", "transfer", "segment_classifier"),
        ("aher", "synthetic", "segment_classifier"),
        ("aher", "generation", "segment_classifier"),
        ("aher", "synthetic", "transfer"),
        ("aher", "generation", "transfer"),
        ("aherA-", "synthetic", "segment_classifier"),
        ("aherA-", "synthetic", "transfer"),
        ("aherM", "moments", "segment_classifier"),
        ("aher whose transfer learns from all videos", "synthetic_transfer", "segment_classifier"),
        ("aher whose transfer learns from all videos", "generation", "segment_classifier"),
        ("aher", "segments", "transfer"),
        ("aher", "segments", "heads"),
        ("aher-", "proposals", "segment_classifier"),
    ],
)
def test_no_path_leads_from_the_loss_of_a_step_to_what_it_must_not_change(world, name, step, part):
    # Whatever the table of changes says: W_regv has no gradient of localization, theta none of synthetic videos.
    setting = _case(world, name)
    gradients = _gradients(setting.losses()[step].loss, setting.networks, [part])
    assert all(gradient is None or not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", CASES)
def test_an_iteration_adds_up_the_gradients_of_its_steps(world, name, monkeypatch, tmp_path):
    case = CASES[name]
    config = _config(case.run, case.phase, **case.changes)
    data = data_of(world, config)
    run = start_or_resume(tmp_path, config, data, CPU, resume=False)
    iteration = _iteration_of(config, case.phase)
    batch = read_iteration(data.untrimmed, data.moments, config, iteration)
    parameters = list(run.networks.parameters())
    expected = [torch.zeros_like(parameter) for parameter in parameters]
    losses = step_losses(run.networks, config, batch, case.phase, run.rows)
    for step, parts in case.steps.items():
        gradients = _gradients(losses[step].loss, run.networks, PARTS)
        allowed = {id(parameter) for parameter in _parameters(run.networks, parts)}
        for parameter, gradient in zip(_parameters(run.networks, PARTS), gradients, strict=True):
            if gradient is not None and id(parameter) in allowed:
                expected[next(k for k, other in enumerate(parameters) if other is parameter)] += gradient
    monkeypatch.setattr(run.optimizer, "step", lambda: None)
    trainer.train_iteration(run, [batch], iteration)
    for parameter, gradient in zip(parameters, expected, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def test_the_gradients_of_one_iteration_do_not_add_to_those_of_the_next(world, monkeypatch, tmp_path):
    config = _config("aher", method={"context_iterations": 0})
    data = data_of(world, config)
    run = start_or_resume(tmp_path, config, data, CPU, resume=False)
    batch = read_iteration(data.untrimmed, data.moments, config, 0)
    monkeypatch.setattr(run.optimizer, "step", lambda: None)
    trainer.train_iteration(run, [batch], 0)
    first = [parameter.grad.clone() for parameter in run.networks.parameters()]
    trainer.train_iteration(run, [batch], 0)
    for parameter, gradient in zip(run.networks.parameters(), first, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_an_adversary_that_leaves_the_backbone_alone_trains_the_discriminators_as_before(world):
    settings = [_setting(world, "aher", method={"adversarial_backbone": value}) for value in (True, False)]
    both, alone = (setting.losses()["synthetic"] for setting in settings)
    torch.testing.assert_close(both.loss, alone.loss)
    of_discriminators = [
        _gradients(losses.loss, setting.networks, ["discriminators"])
        for losses, setting in zip((both, alone), settings, strict=True)
    ]
    for a, b in zip(*of_discriminators, strict=True):
        torch.testing.assert_close(a, b)
    by_adversary = _gradients(alone.terms["discriminator"], settings[1].networks, ["backbone", "heads", "generators"])
    assert all(gradient is None for gradient in by_adversary)
    assert _gradients(both.terms["discriminator"], settings[0].networks, ["backbone"])[0].any()


def test_each_forward_pass_is_computed_once(world):
    setting = _setting(world, "aher")
    seen = []
    backbone = setting.networks.localizer.backbone
    backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[:2]))
    setting.losses()
    # Untrimmed and synthetic videos, foreground segments and moments.
    assert sum(videos * steps for videos, steps in seen) == 2 * BATCH * 128 + 2 * BATCH * 64


# --- which classes ----------------------------------------------------------------------------------------------


def _rows_with_gradient(term, networks):
    """Rows of W_regv and its bias that have a gradient on every scale."""
    gradients = _gradients(term, networks, ["segment_classifier"])
    rows = [[row for row, values in enumerate(gradient) if values.any()] for gradient in gradients]
    assert all(other == rows[0] for other in rows)
    return rows[0]


def test_foregrounds_train_the_rows_of_base_classes_and_moments_those_of_theirs(world):
    setting = _setting(world, "aher")
    assert setting.data.classes == (*BASE, "novel0", "novel1")
    terms = setting.losses()["segments"].terms
    assert _rows_with_gradient(terms["foreground_class"], setting.networks) == [0, 1, 2]
    assert _rows_with_gradient(terms["moment_class"], setting.networks) == [3, 4]


def test_a_class_of_both_sets_is_trained_by_both(world):
    labels = {moment: label for moment, label in world.labels.items() if label in ("base1", "novel0")}
    setting = _setting(world, "aher", labels=labels)
    terms = setting.losses()["segments"].terms
    assert _rows_with_gradient(terms["foreground_class"], setting.networks) == [0, 1, 2]
    assert _rows_with_gradient(terms["moment_class"], setting.networks) == [1, 3]


def _change_rows(setting, rows):
    networks = deepcopy(setting.networks)
    with torch.no_grad():
        for parameter in networks.localizer.segment_classifier.parameters():
            parameter[rows] += torch.randn(parameter[rows].shape, generator=torch.Generator().manual_seed(1))
    return networks


def test_each_set_is_told_apart_from_its_own_classes_alone(world):
    setting = _setting(world, "aher")

    def terms(networks):
        steps = setting.losses(networks=networks)
        named = {name: term.item() for step in steps.values() for name, term in step.terms.items()}
        return {name: value for name, value in named.items() if "class" in name}

    before = terms(setting.networks)
    for rows, of_others in (
        (setting.data.base_rows, {"moment_class", "synthetic_classification"}),
        (setting.data.moment_rows, {"foreground_class", "classification"}),
    ):
        after = terms(_change_rows(setting, rows))
        assert {name for name in before if after[name] == before[name]} == of_others


@pytest.mark.parametrize("classes", [BASE, ("base2", "base0", "base1")])
def test_labels_train_the_row_of_their_class(world, classes):
    setting = _setting(world, "aher", classes=classes, labels=world.labels)
    for term, segments, names in (
        ("foreground_class", setting.batch.foregrounds, setting.data.untrimmed.classes),
        ("moment_class", setting.batch.moments, setting.data.moment_classes),
    ):
        for label, name in enumerate(names):
            only = segments._replace(labels=torch.full_like(segments.labels, label))
            field = "foregrounds" if term == "foreground_class" else "moments"
            loss = setting.losses(batch=setting.batch._replace(**{field: only}))["segments"].terms[term]
            for gradient in torch.autograd.grad(loss, list(setting.networks.localizer.segment_classifier.biases)):
                assert (gradient < 0).nonzero().tolist() == [[setting.data.classes.index(name)]]


@pytest.mark.parametrize("classes", [BASE, ("base2", "base0", "base1")])
def test_labels_localize_with_the_row_of_their_class(world, classes):
    """A row of W_clsa that answers loudest is right for the videos that have its label alone."""
    setting = _setting(world, "aher", classes=classes, labels=world.labels)
    for label, name in enumerate(setting.data.untrimmed.classes):
        networks = deepcopy(setting.networks)
        with torch.no_grad():
            for bias in networks.localizer.segment_classifier.biases:
                bias[setting.data.classes.index(name)] += 1000
            for parameter in networks.localizer.transfer.biases.parameters():
                parameter.copy_(torch.ones(()) if parameter.dim() > 1 else torch.zeros(()))
        truth = setting.batch.untrimmed.ground_truth
        truth = truth._replace(labels=torch.full_like(truth.labels, label))
        batch = setting.batch._replace(untrimmed=setting.batch.untrimmed._replace(ground_truth=truth))
        assert setting.losses(networks=networks, batch=batch)["transfer"].terms["classification"] == 0


# --- what the losses are, against plain forms -------------------------------------------------------------------


def _resampled(rows, offsets, steps):
    """Ragged rows brought to one length, one after the other."""
    parts = [rows[begin:end] for begin, end in zip(offsets.tolist()[:-1], offsets.tolist()[1:], strict=True)]
    return torch.cat([kernels.resample(part.contiguous(), torch.tensor([0, len(part)]), steps) for part in parts])


def _localized(setting, sequence, truth, rows):
    """Feature maps, background by each video's own matching, and localization losses."""
    localizer, config = setting.networks.localizer, setting.config
    outputs = localizer(sequence, localizer.class_weights().select(rows))
    assigned = assign_anchors(localizer.anchors, truth, config.assignment)
    losses = localization_losses(outputs, localizer.anchors, truth, assigned, config.model, config.loss)
    background = []
    for b in range(len(sequence)):
        begin, end = truth.offsets[b : b + 2].tolist()
        alone = GroundTruth(truth.segments[begin:end], truth.labels[begin:end], torch.tensor([0, end - begin]))
        background.append(assign_anchors(localizer.anchors, alone, config.assignment).kind[0] == kernels.BACKGROUND)
    return localizer.backbone(sequence), torch.stack(background), losses


def _untrimmed(setting):
    videos = setting.batch.untrimmed
    sequence = _resampled(videos.rows, videos.offsets, setting.config.model.steps)
    return _localized(setting, sequence, videos.ground_truth, setting.rows.untrimmed)


def _contexts(setting, segments):
    """The segments, and what is generated before and after them."""
    sequence = _resampled(segments.rows, segments.offsets, setting.config.model.moment_steps)
    return (sequence, *setting.networks.generators(sequence))


def _synthetic(setting, contexts=None):
    """Maps, background and losses of the synthetic videos, built video by video, piece by piece."""
    steps, batch = setting.config.model.steps, setting.batch
    if batch.placement is None:
        sequence = _resampled(batch.moments.rows, batch.moments.offsets, steps)
        truth = GroundTruth(torch.tensor([[0.0, 1.0]] * BATCH), batch.moments.labels, torch.arange(BATCH + 1))
        return _localized(setting, sequence, truth, setting.rows.moments)
    moments = list(zip(*_contexts(setting, batch.moments), batch.moments.labels, strict=True))
    if batch.neighbours is not None:
        moments += zip(*_contexts(setting, batch.neighbours), batch.neighbours.labels, strict=True)
    videos, segments, labels, offsets = [], [], [], [0]
    for b, (first, length) in enumerate(zip(*(x.tolist() for x in batch.placement), strict=True)):
        seen, start = [], 0
        row = moments[b : b + len(length)]
        for k, (moment, before, after, label) in enumerate(row):
            if length[k] == 0:
                continue
            if contexts:
                before, after = (real[b] for real in contexts)
            rooms = ((before, first[k]), (moment, length[k]), (after, steps - first[k] - length[k]))
            video = torch.cat([kernels.resample(x, torch.tensor([0, len(x)]), room)[0] for x, room in rooms if room])
            is_last = k + 1 == len(row) or length[k + 1] == 0
            end = steps if is_last else (first[k] + length[k] + first[k + 1]) // 2
            seen.append(video[start:end])
            start = end
            segments.append((first[k] / steps, (first[k] + length[k]) / steps))
            labels.append(label)
        videos.append(torch.cat(seen))
        offsets.append(len(segments))
    truth = GroundTruth(torch.tensor(segments), torch.stack(labels), torch.tensor(offsets))
    return _localized(setting, torch.stack(videos), truth, setting.rows.moments)


def _judged(setting, maps, background, real):
    """Mean of -log D or -log(1 - D) over background anchors of each scale, and over scales that have any."""
    means, row = [], 0
    for logits in setting.networks.discriminators(maps):
        terms = []
        for t in range(logits.shape[2]):
            for r in range(logits.shape[1]):
                sure = (torch.sigmoid(logits[:, r, t]) if real else 1 - torch.sigmoid(logits[:, r, t]))[
                    background[:, row]
                ]
                terms += [-torch.log(value) for value in sure]
                row += 1
        if terms:
            means.append(sum(terms) / len(terms))
    return sum(means) / len(means)


def _segment_class(setting, segments, rows):
    sequence = _resampled(segments.rows, segments.offsets, setting.config.model.moment_steps)
    localizer = setting.networks.localizer
    weights = localizer.segment_classifier.class_weights().select(rows)
    loss = 0.0
    for logits in segment_logits(pool_segments(localizer.backbone(sequence)), weights):
        for b in range(BATCH):
            loss = loss - logits[b].log_softmax(dim=0)[segments.labels[b]] / BATCH
    return loss


def _close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.phase == "main"])
def test_segments_are_classified_in_the_mean_over_each_set(world, name):
    setting = _case(world, name)
    step = setting.losses()["segments"]
    expected = {}
    if setting.batch.foregrounds is not None:
        expected["foreground_class"] = _segment_class(setting, setting.batch.foregrounds, setting.rows.untrimmed)
    if setting.batch.moments is not None:
        expected["moment_class"] = _segment_class(setting, setting.batch.moments, setting.rows.moments)
    assert set(step.terms) == set(expected)
    for term, value in expected.items():
        _close(step.terms[term], value)


@pytest.mark.parametrize("name", ["aher", "aher-", "aherA-", "aher*", "pre-training of the localizer"])
def test_untrimmed_videos_are_localized_among_base_classes(world, name):
    setting = _case(world, name)
    steps = setting.losses()
    (kind,) = set(steps) & {"supervised", "proposals", "transfer"}
    _, _, losses = _untrimmed(setting)
    _close(steps[kind].loss, losses.total if kind != "proposals" else losses.offset + losses.overlap)
    for term in ("classification", "offset", "overlap"):
        _close(steps[kind].terms[term], getattr(losses, term))


@pytest.mark.parametrize("name", ["aher", "aherA-", "aherM"])
def test_moments_are_localized_where_they_lie_in_their_synthetic_videos(world, name):
    setting = _case(world, name)
    steps = setting.losses()
    (kind,) = set(steps) & {"synthetic", "moments"}
    _, _, losses = _synthetic(setting)
    for term in ("classification", "offset", "overlap"):
        _close(steps[kind].terms[f"synthetic_{term}"], getattr(losses, term))


def test_discriminators_see_the_background_of_real_and_of_synthetic_videos(world):
    setting = _setting(world, "aher")
    steps = setting.losses()
    real_maps, real_background, _ = _untrimmed(setting)
    fake_maps, fake_background, losses = _synthetic(setting)
    assert real_background.any()
    assert fake_background.any()
    told_apart = _judged(setting, real_maps, real_background, real=True)
    told_apart = told_apart + _judged(setting, fake_maps, fake_background, real=False)
    deceived = _judged(setting, fake_maps, fake_background, real=True)
    _close(steps["synthetic"].terms["discriminator"], told_apart)
    _close(steps["generation"].terms["generator"], deceived)
    _close(steps["synthetic"].loss, losses.total + told_apart)
    _close(steps["generation"].loss, losses.total + deceived)


@pytest.mark.parametrize("run", ["aherA-", "aherB", "aher"])
@pytest.mark.parametrize("class_cells", ["foreground", "all"])
def test_a_synthetic_video_may_hold_neighbours_of_its_moment(world, run, class_cells):
    changes = {"method": {"neighbours": 2}, "loss": {"class_cells": class_cells}, "model": {"steps": 64}}
    setting = _setting(world, run, **changes)
    first = torch.tensor([[3, 30, 60], [0, 64, 64], [10, 40, 50], [20, 51, 56]])
    length = torch.tensor([[20, 30, 0], [64, 0, 0], [30, 10, 12], [11, 5, 4]])
    batch, contexts = setting.batch._replace(placement=Placement(first, length)), None
    if run == "aherB":
        everywhere = torch.ones(BATCH, dtype=torch.bool)
        around = batch.surroundings._replace(has_before=everywhere, has_after=everywhere)
        batch = batch._replace(surroundings=around)
        contexts = [real for real, _ in _real_contexts(setting)]
    setting = setting._replace(batch=batch)
    _, _, losses = _synthetic(setting, contexts)
    terms = setting.losses()["synthetic"].terms
    for name in ("classification", "offset", "overlap"):
        _close(terms[f"synthetic_{name}"], getattr(losses, name))


def test_the_background_of_each_set_is_that_of_its_own_matching(world):
    setting = _setting(world, "aher", method={"minimum_share": 0.3})
    truth = setting.batch.untrimmed.ground_truth
    shorter = torch.stack([truth.segments[:, 0], truth.segments.mean(dim=1)], dim=1)
    moved = setting.batch.untrimmed._replace(ground_truth=truth._replace(segments=shorter))
    elsewhere = Placement(*(setting.batch.placement.first * 0, setting.batch.placement.length))

    def parts(batch):
        changed = setting._replace(batch=batch)
        steps, real, fake = changed.losses(), _untrimmed(changed), _synthetic(changed)
        judged = _judged(changed, *real[:2], real=True), _judged(changed, *fake[:2], real=False)
        _close(steps["synthetic"].terms["discriminator"], judged[0] + judged[1])
        return steps["generation"].terms["generator"], *judged, real[1], fake[1]

    deceived, real, fake, real_background, fake_background = parts(setting.batch)
    other = parts(setting.batch._replace(untrimmed=moved))
    assert not torch.equal(other[3], real_background)
    assert other[1] != real
    assert torch.equal(other[0], deceived)
    assert torch.equal(other[2], fake)
    other = parts(setting.batch._replace(placement=elsewhere))
    assert not torch.equal(other[4], fake_background)
    assert other[0] != deceived
    assert other[2] != fake
    assert torch.equal(other[1], real)


@pytest.mark.parametrize("weight", ["segment", "synthetic", "generation", "generator", "discriminator", "context"])
def test_every_term_has_its_weight(world, weight):
    values = {"segment": 1.0, "synthetic": 1.0, "generation": 1.0, "generator": 1.0, "discriminator": 1.0}
    values |= {"context": 1.0, "classification": 0.5, "offset": 3.0, "overlap": 2.0}
    setting = _setting(world, "aher", loss=values)
    for factor in (0.0, 1.0, 7.0):
        loss = replace(setting.config.loss, **{weight: factor})
        steps = setting.losses(config=replace(setting.config, loss=loss))
        terms = {name: term for step in steps.values() for name, term in step.terms.items()}

        def localization(prefix, terms=terms, loss=loss):
            return sum(getattr(loss, name) * terms[prefix + name] for name in ("classification", "offset", "overlap"))

        expected = {
            "segments": loss.segment * (terms["foreground_class"] + terms["moment_class"]),
            "transfer": localization(""),
            "generation": loss.generation * localization("synthetic_")
            + loss.generator * terms["generator"]
            + loss.context * terms["context"],
            "synthetic": loss.synthetic * localization("synthetic_") + loss.discriminator * terms["discriminator"],
        }
        for name, value in expected.items():
            _close(steps[name].loss, value)


def _real_contexts(setting):
    around = setting.batch.surroundings
    steps = math.ceil(setting.config.model.moment_steps / 2)
    return [(_resampled(rows, offsets, steps), has) for rows, offsets, has in (around[:3], around[3:])]


def test_generators_first_learn_the_real_context_of_foreground_segments(world):
    setting = _setting(world, "aher", phase="generators")
    _, *generated = _contexts(setting, setting.batch.foregrounds)
    expected = 0.0
    for side, (real, has) in zip(generated, _real_contexts(setting), strict=True):
        errors = [(side[b] - real[b]).square().mean() for b in range(BATCH) if has[b]]
        expected = expected + sum(errors) / max(len(errors), 1)
    step = setting.losses()["context"]
    _close(step.loss, expected)
    _close(step.terms["context"], expected)


def test_context_that_is_not_there_is_not_learnt_from(world):
    setting = _setting(world, "aher", phase="generators")
    around = setting.batch.surroundings
    nowhere = torch.zeros(BATCH, dtype=torch.bool)
    batch = setting.batch._replace(surroundings=around._replace(has_before=nowhere))
    loss = setting.losses(batch=batch)["context"].loss
    before, after = (
        list(part.parameters()) for part in (setting.networks.generators.before, setting.networks.generators.after)
    )
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, before, retain_graph=True))
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, after))


def test_real_background_surrounds_moments_where_that_is_their_context(world):
    setting = _setting(world, "aherB", method={"minimum_share": 0.3})
    has = {"has_before": torch.tensor([True, False, True, True]), "has_after": torch.tensor([True, True, True, False])}
    setting = setting._replace(batch=setting.batch._replace(surroundings=setting.batch.surroundings._replace(**has)))
    (before, has_before), (after, has_after) = _real_contexts(setting)
    contexts = (
        torch.stack([before[b] if has_before[b] else after[b] for b in range(BATCH)]),
        torch.stack([after[b] if has_after[b] else before[b] for b in range(BATCH)]),
    )
    _, _, losses = _synthetic(setting, contexts)
    terms = setting.losses()["synthetic"].terms
    for term in ("classification", "offset", "overlap"):
        _close(terms[f"synthetic_{term}"], getattr(losses, term))


@pytest.mark.parametrize("changes", [{}, {"real_residual": True}])
def test_synthetic_videos_are_what_the_steps_learn_from(world, changes):
    setting = _setting(world, "aher", method={"minimum_share": 0.3, **changes})
    sequence, truth = synthetic_videos(setting.networks.generators, setting.config, setting.batch)
    _, _, losses = _localized(setting, sequence, truth, setting.rows.moments)
    terms = setting.losses()["synthetic"].terms
    for term in ("classification", "offset", "overlap"):
        _close(terms[f"synthetic_{term}"], getattr(losses, term))


@pytest.mark.parametrize(
    ("present", "source"), [([True, False, True, False], [0, 2, 2, 2]), ([False, False, False, True], [3, 3, 3, 3])]
)
def test_a_video_without_background_lends_it_from_another(world, present, source):
    setting = _surrounded(world, present)
    around = setting.batch.surroundings
    rows = around.after.tensor_split(around.after_offsets[1:-1])
    lent = around._replace(
        after=torch.cat([rows[b] for b in source]),
        after_offsets=torch.tensor([0, *np.cumsum([len(rows[b]) for b in source])]),
        has_after=torch.ones(BATCH, dtype=torch.bool),
    )
    terms, expected = (_synthetic_terms(setting, one) for one in (around, lent))
    for term, value in expected.items():
        _close(terms[term], value)


def test_without_background_in_any_video_there_is_nothing_around_moments(world):
    setting = _surrounded(world, [False] * BATCH)
    around = setting.batch.surroundings
    nothing = around._replace(before=torch.zeros_like(around.before), after=torch.zeros_like(around.after))
    terms, expected = (_synthetic_terms(setting, one) for one in (around, nothing))
    for term, value in expected.items():
        _close(terms[term], value)


def _synthetic_terms(setting, surroundings):
    batch = setting.batch._replace(surroundings=surroundings)
    return setting.losses(batch=batch)["synthetic"].terms


def _surrounded(world, has_after):
    """Moments in real background, which some videos have after their segment and none before it."""
    setting = _setting(world, "aherB", method={"minimum_share": 0.3})
    has = {"has_before": torch.zeros(BATCH, dtype=torch.bool), "has_after": torch.tensor(has_after)}
    return setting._replace(batch=setting.batch._replace(surroundings=setting.batch.surroundings._replace(**has)))


@pytest.mark.parametrize("run", ["aher", "aherR"])
def test_a_moment_that_is_the_foreground_segment_gets_its_real_context(world, run):
    setting = _setting(world, run, method={"real_residual": True, "minimum_share": 0.3}, labels=world.labels)
    foregrounds = setting.batch.foregrounds
    has = {
        "has_before": torch.tensor([True, False, True, False]),
        "has_after": torch.tensor([True, True, False, False]),
    }
    around = setting.batch.surroundings._replace(**has)
    setting = setting._replace(batch=setting.batch._replace(moments=foregrounds, surroundings=around))
    _, *generated = _contexts(setting, foregrounds)
    contexts = [
        torch.stack([real[b] if has[b] else side[b] for b in range(BATCH)])
        for side, (real, has) in zip(generated, _real_contexts(setting), strict=True)
    ]
    _, _, losses = _synthetic(setting, contexts)
    terms = setting.losses()["synthetic"].terms
    for term in ("classification", "offset", "overlap"):
        _close(terms[f"synthetic_{term}"], getattr(losses, term))


# --- where moments lie ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data())
def test_the_ground_truth_of_synthetic_videos_is_where_the_moments_are(data):
    steps = data.draw(st.integers(8, 512))
    length = torch.tensor(data.draw(st.lists(st.integers(1, steps), min_size=1, max_size=4)))
    first = torch.tensor([data.draw(st.integers(0, steps - size)) for size in length.tolist()])
    videos = len(length)
    labels = torch.arange(videos) + 5
    nothing = torch.zeros(videos, 6, 1)
    first, length = first[:, None], length[:, None]
    shown = synthesize(nothing, torch.ones(videos, 9, 1), nothing, first, length, steps)[..., 0] > 0.5
    truth = synthetic_ground_truth(first, length, labels[:, None], steps)
    assert truth.segments.dtype == torch.float32
    assert torch.equal(truth.labels, labels)
    assert truth.offsets.tolist() == list(range(videos + 1))
    for b in range(videos):
        start, end = (truth.segments[b].double() * steps).round().int().tolist()
        assert shown[b].nonzero()[:, 0].tolist() == list(range(start, end))
        torch.testing.assert_close(truth.segments[b] * steps, torch.tensor([start, end]).float(), rtol=1e-6, atol=0)


def test_a_moment_without_context_is_its_whole_video():
    labels = torch.tensor([[1], [0]])
    truth = synthetic_ground_truth(torch.zeros_like(labels), torch.full_like(labels, 128), labels, 128)
    assert truth.segments.tolist() == [[0.0, 1.0], [0.0, 1.0]]


# --- networks ---------------------------------------------------------------------------------------------------


def test_networks_have_a_generator_and_a_discriminator_for_their_features(world):
    setting = _setting(world, "aher")
    before, after = setting.networks.generators(torch.zeros(2, 64, DIMENSION))
    assert before.shape == after.shape == (2, 32, DIMENSION)
    maps = setting.networks.localizer.backbone(torch.zeros(2, 128, DIMENSION))
    logits = setting.networks.discriminators(maps)
    offsets, _ = setting.networks.localizer.heads(maps)
    assert [2 * x.shape[1] for x in logits] == [x.shape[1] for x in offsets]


def test_an_unknown_part_is_an_error(world):
    with pytest.raises(AttributeError):
        _setting(world, "aher").networks.part("context")
