import dataclasses
import math
from itertools import chain

import ahernet_kernels as kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from training_worlds import ground_truth_of

from ahernet.config import AssignmentConfig, LossConfig, ModelConfig
from ahernet.model.anchors import make_anchors, scale_cells
from ahernet.model.localizer import Outputs
from ahernet.training.losses import (
    NO_LABEL,
    adversarial_loss,
    assign_anchors,
    cell_labels,
    class_loss,
    context_loss,
    hard_overlap_loss,
    localization_losses,
    segment_loss,
)

MODEL = ModelConfig(steps=64, centre_scale=0.7, width_scale=1.3)
CELLS = scale_cells(64)
CLASSES = 4
ANCHORS = make_anchors(MODEL)


GROUND_TRUTH = ground_truth_of(
    [(0.1, 0.55, 2), (0.7, 0.75, 1), (0.8, 0.98, 2)], [], [(0.0, 1.0, 3)], [(0.2, 0.3, 0), (0.4, 0.5, 0)]
)


def _outputs(videos=4, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def scale(channels, cells):
        values = torch.randn(videos, channels, cells, generator=generator)
        return values.requires_grad_(requires_grad)

    return Outputs([scale(CLASSES, t) for t in CELLS], [scale(6, t) for t in CELLS], [scale(3, t) for t in CELLS])


def _losses(outputs, ground_truth, assignment, weights):
    assigned = assign_anchors(ANCHORS, ground_truth, assignment)
    return localization_losses(outputs, ANCHORS, ground_truth, assigned, MODEL, weights)


def _smooth_l1(x):
    return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5


def _naive(outputs, ground_truth, assignment, class_cells):
    """The three terms in float64, with loops over videos, scales, cells and ratios."""
    outputs = Outputs(*([x.double() for x in group] for group in outputs))
    assigned = kernels.assign(ANCHORS, *ground_truth, *dataclasses.astuple(assignment))
    class_terms, offset_terms, overlap_terms = [], [], []
    for b in range(len(ground_truth.offsets) - 1):
        video_labels = set(ground_truth.labels[ground_truth.offsets[b] : ground_truth.offsets[b + 1]].tolist())
        row = 0
        for j, cells in enumerate(CELLS):
            for t in range(cells):
                best, best_tiou, nearest, nearest_tiou = None, -1.0, NO_LABEL, 0.0
                for r in range(3):
                    tiou, label = assigned.tiou[b, row].item(), assigned.labels[b, row].item()
                    if tiou > nearest_tiou:
                        nearest, nearest_tiou = label, tiou
                    overlap_terms.append((outputs.overlaps[j][b, r, t].sigmoid() - tiou) ** 2)
                    if assigned.kind[b, row] == kernels.FOREGROUND:
                        if tiou > best_tiou:
                            best, best_tiou = label, tiou
                        m_c, m_w = ANCHORS[row].double()
                        phi_c = m_c + MODEL.centre_scale * m_w * outputs.offsets[j][b, 2 * r, t]
                        phi_w = m_w * torch.exp(MODEL.width_scale * outputs.offsets[j][b, 2 * r + 1, t])
                        start, end = assigned.targets[b, row].double()
                        offset_terms.append(_smooth_l1(phi_c - (start + end) / 2))
                        offset_terms[-1] = offset_terms[-1] + _smooth_l1(phi_w - (end - start))
                    row += 1
                if best is None and class_cells == "all":
                    best = video_labels.copy().pop() if len(video_labels) == 1 else nearest
                if best is not None and best != NO_LABEL:
                    class_terms.append(-outputs.logits[j][b, :, t].log_softmax(dim=0)[best])

    def mean(terms):
        return sum(terms) / max(len(terms), 1)

    return mean(class_terms), mean(offset_terms), mean(overlap_terms)


@pytest.mark.parametrize("class_cells", ["foreground", "all"])
@pytest.mark.parametrize("force_match", [False, True])
def test_losses_and_gradients_equal_the_naive_form(class_cells, force_match):
    assignment = AssignmentConfig(0.6, 0.3, force_match)
    weights = LossConfig(classification=0.5, offset=3.0, overlap=2.0, class_cells=class_cells)
    mine, naive = _outputs(requires_grad=True), _outputs(requires_grad=True)
    losses = _losses(mine, GROUND_TRUTH, assignment, weights)
    terms = _naive(naive, GROUND_TRUTH, assignment, class_cells)
    for got, expected in zip(losses[1:], terms, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-9)
    total = 0.5 * terms[0] + 3.0 * terms[1] + 2.0 * terms[2]
    torch.testing.assert_close(losses.total.double(), total, rtol=1e-6, atol=1e-9)
    losses.total.backward()
    total.backward()
    for got, expected in zip(chain(*mine), chain(*naive), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-8)


def test_a_term_of_weight_zero_has_no_gradient():
    outputs = _outputs(requires_grad=True)
    weights = LossConfig(classification=0.0, offset=0.0, overlap=1.0)
    _losses(outputs, GROUND_TRUTH, AssignmentConfig(0.6), weights).total.backward()
    assert not any(x.grad.any() for x in [*outputs.logits, *outputs.offsets])
    assert all(x.grad.any() for x in outputs.overlaps)


def test_without_ground_truth_only_the_overlap_is_learnt():
    outputs = _outputs(videos=2, requires_grad=True)
    nothing = ground_truth_of([], [])
    for class_cells in ("foreground", "all"):
        losses = _losses(outputs, nothing, AssignmentConfig(), LossConfig(class_cells=class_cells))
        assert losses.classification == losses.offset == 0
        assert losses.overlap > 0
    losses.total.backward()
    assert all(x.grad.isfinite().all() for x in chain(*outputs))


def test_huge_offsets_of_background_anchors_give_finite_gradients():
    outputs = _outputs(requires_grad=True)
    with torch.no_grad():
        for scale in outputs.offsets:
            scale.fill_(1e6)
    losses = _losses(outputs, ground_truth_of([], [], [], []), AssignmentConfig(), LossConfig())
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(scale.grad.isfinite().all() for scale in outputs.offsets)


def test_perfect_outputs_have_no_loss():
    assignment = AssignmentConfig(0.6)
    assigned = kernels.assign(ANCHORS, *GROUND_TRUTH, *dataclasses.astuple(assignment))
    centre, width = assigned.targets.mean(dim=2), assigned.targets[..., 1] - assigned.targets[..., 0]
    dc = (centre - ANCHORS[:, 0]) / ANCHORS[:, 1] / MODEL.centre_scale
    dw = torch.log(width / ANCHORS[:, 1]) / MODEL.width_scale
    labels = cell_labels(assigned, GROUND_TRUTH, 3, "foreground")
    logits = 1e4 * torch.nn.functional.one_hot(labels.clamp(min=0), CLASSES).float()
    logits, offsets, overlaps, row = logits, [], [], 0
    for cells in CELLS:
        rows = slice(row, row := row + 3 * cells)
        pairs = torch.stack([dc[:, rows], dw[:, rows]], dim=2).reshape(4, cells, 3, 2)
        offsets.append(pairs.permute(0, 2, 3, 1).reshape(4, 6, cells))
        overlaps.append(assigned.tiou[:, rows].logit(1e-9).reshape(4, cells, 3).transpose(1, 2))
    outputs = Outputs(list(logits.transpose(1, 2).split(CELLS, dim=2)), offsets, overlaps)
    losses = _losses(outputs, GROUND_TRUTH, assignment, LossConfig())
    assert losses.classification < 1e-6
    assert losses.offset < 1e-12
    assert losses.overlap < 1e-12


def _assignment(kind, tiou, labels):
    shape = (1, len(kind))
    return kernels.Assignment(
        torch.tensor(kind).reshape(shape),
        torch.tensor(labels).reshape(shape),
        torch.zeros(1, len(kind), 2),
        torch.tensor(tiou).reshape(shape),
    )


def test_a_cell_takes_the_label_of_its_best_foreground_anchor():
    kind = [1, 1, 0, 0, -1, 1, 0, 0, 0, 1, 1, 0]
    tiou = [0.81, 0.9, 0.0, 0.2, 0.7, 0.6, 0.0, 0.1, 0.0, 0.9, 0.9, 0.0]
    labels = [3, 2, -1, 0, 0, 1, -1, 5, -1, 7, 8, -1]
    truth = ground_truth_of([(0.0, 0.1, 3), (0.2, 0.3, 2)])
    assigned = _assignment(kind, tiou, labels)
    # Second cell: an ignored anchor with a higher tiou does not count. Fourth: ties go to the lowest anchor.
    assert cell_labels(assigned, truth, 3, "foreground").tolist() == [[2, 1, NO_LABEL, 7]]
    assert cell_labels(assigned, truth, 3, "all").tolist() == [[2, 1, 5, 7]]


def test_all_cells_take_the_label_that_the_ground_truths_of_the_video_share():
    assigned = _assignment([1, 0, 0], [0.9, 0.0, 0.2], [3, -1, 3])
    same = ground_truth_of([(0.0, 0.1, 3), (0.2, 0.3, 3)])
    mixed = ground_truth_of([(0.0, 0.1, 3), (0.2, 0.3, 2)])
    none = ground_truth_of([])
    assert cell_labels(assigned, same, 1, "all").tolist() == [[3, 3, 3]]
    assert cell_labels(assigned, mixed, 1, "all").tolist() == [[3, NO_LABEL, 3]]
    assert cell_labels(_assignment([0], [0.0], [-1]), none, 1, "all").tolist() == [[NO_LABEL]]


def test_half_precision_outputs_give_float32_losses():
    outputs = Outputs(*([x.bfloat16() for x in group] for group in _outputs()))
    losses = _losses(outputs, GROUND_TRUTH, AssignmentConfig(0.6), LossConfig())
    assert losses.total.dtype == torch.float32
    assert math.isfinite(losses.total)


# --- losses of segments, of the adversary and of generated context: against plain loops --------------------------


def _leaves(*shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def _assert_equal_with_gradients(loss, naive, leaves):
    """Both are functions of the same leaves; a naive form that counts nothing may return a plain 0."""
    got, expected = loss(), naive()
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=torch.float64).detach(), check_dtype=False)
    found = torch.autograd.grad(got, leaves)
    wanted = [torch.zeros_like(x) for x in leaves]
    if torch.is_tensor(expected) and expected.requires_grad:
        reached = torch.autograd.grad(expected, leaves, allow_unused=True)
        wanted = [zero if x is None else x for x, zero in zip(reached, wanted, strict=True)]
    torch.testing.assert_close(found, tuple(wanted))


def _sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def _naive_cross_entropy(logits, label):
    return torch.log(sum(torch.exp(value) for value in logits)) - logits[label]


def test_segment_loss_is_the_sum_over_scales_of_the_mean_cross_entropy():
    logits, labels = _leaves((3, CLASSES), (3, CLASSES), (3, CLASSES)), torch.tensor([2, 0, 2])

    def naive():
        return sum(sum(_naive_cross_entropy(scale[b], labels[b]) for b in range(3)) / 3 for scale in logits)

    _assert_equal_with_gradients(lambda: segment_loss(logits, labels), naive, logits)


def test_segment_loss_of_one_class_is_zero():
    logits = _leaves((2, 1), (2, 1))
    assert segment_loss(logits, torch.tensor([0, 0])) == 0


def test_class_loss_leaves_cells_without_label_out():
    logits, labels = (
        _leaves((2, CLASSES, 2), (2, CLASSES, 1)),
        torch.tensor([[3, NO_LABEL, 1], [NO_LABEL, 0, NO_LABEL]]),
    )

    def naive():
        cells = [(0, 0, 0), (0, 1, 0), (1, 0, 1)]  # video, scale, cell of those with a label
        columns = {(0, 0, 0): 0, (0, 1, 0): 2, (1, 0, 1): 1}
        terms = [_naive_cross_entropy(logits[j][b, :, t], labels[b, columns[b, j, t]]) for b, j, t in cells]
        return sum(terms) / 3

    _assert_equal_with_gradients(lambda: class_loss(logits, labels), naive, logits)


def test_class_loss_takes_no_op_that_torch_has_no_deterministic_form_of():
    """`nll_loss2d`, which logits of three dimensions would go to, raises where determinism is asked for on CUDA."""
    names = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **kwargs or {})

    with Recorder():
        class_loss(_leaves((2, CLASSES, 2), (2, CLASSES, 1)), torch.zeros(2, 3, dtype=torch.int64)).backward()
    assert {name for name in names if "nll_loss" in name} == {
        "aten.nll_loss_forward.default",
        "aten.nll_loss_backward.default",
    }


def test_class_loss_without_any_label_is_zero_with_zero_gradients():
    logits = _leaves((2, CLASSES, 2), (2, CLASSES, 1))
    _assert_equal_with_gradients(lambda: class_loss(logits, torch.full((2, 3), NO_LABEL)), lambda: 0.0, logits)


RATIOS, FEW_CELLS = 3, (4, 2, 1)
FEW_ANCHORS = RATIOS * sum(FEW_CELLS)


def _naive_adversarial_loss(logits, counted, real):
    """Anchor by anchor; `counted` (B, A) has them by scale, cell and ratio."""
    means, row = [], 0
    for scale in logits:
        terms = []
        for t in range(scale.shape[2]):
            for r in range(scale.shape[1]):
                for b in range(scale.shape[0]):
                    if counted[b, row]:
                        probability = _sigmoid(scale[b, r, t])
                        terms.append(-torch.log(probability if real else 1 - probability))
                row += 1
        if terms:
            means.append(sum(terms) / len(terms))
    return sum(means) / len(means) if means else 0.0


MASKS = {
    "some anchors": torch.rand(2, FEW_ANCHORS, generator=torch.Generator().manual_seed(3)) < 0.4,
    "all anchors": torch.ones(2, FEW_ANCHORS, dtype=torch.bool),
    "one anchor": torch.arange(2 * FEW_ANCHORS).reshape(2, -1) == FEW_ANCHORS + 13,
    "one video without background": torch.tensor([[True], [False]]).expand(2, FEW_ANCHORS),
    "the finest scale without background": (torch.arange(FEW_ANCHORS) >= 12).expand(2, -1),
    "the coarsest scale without background": (torch.arange(FEW_ANCHORS) < 18).expand(2, -1),
    "no background at all": torch.zeros(2, FEW_ANCHORS, dtype=torch.bool),
}


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("counted", MASKS.values(), ids=MASKS)
def test_adversarial_loss_is_the_mean_over_background_of_each_scale_that_has_any(counted, real):
    logits = _leaves(*[(2, RATIOS, cells) for cells in FEW_CELLS])
    _assert_equal_with_gradients(
        lambda: adversarial_loss(logits, counted, real), lambda: _naive_adversarial_loss(logits, counted, real), logits
    )


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=2 * FEW_ANCHORS, max_size=2 * FEW_ANCHORS), st.booleans(), st.integers(0, 99))
def test_adversarial_loss_equals_the_naive_form_for_every_mask(mask, real, seed):
    counted = torch.tensor(mask).reshape(2, FEW_ANCHORS)
    logits = _leaves(*[(2, RATIOS, cells) for cells in FEW_CELLS], seed=seed)
    _assert_equal_with_gradients(
        lambda: adversarial_loss(logits, counted, real), lambda: _naive_adversarial_loss(logits, counted, real), logits
    )


def test_adversarial_loss_of_sure_judgements_stays_finite_and_right():
    counted = torch.ones(1, 3, dtype=torch.bool)
    sure = [torch.tensor([[[200.0], [200.0], [200.0]]], requires_grad=True)]
    assert adversarial_loss(sure, counted, real=True) == 0
    wrong = adversarial_loss(sure, counted, real=False)
    assert wrong == 200
    wrong.backward()
    torch.testing.assert_close(sure[0].grad, torch.full((1, 3, 1), 1 / 3))


def test_logits_that_do_not_count_may_be_anything():
    logits = _leaves((1, 3, 1))
    with torch.no_grad():
        logits[0][0, 1] = math.inf
    counted = torch.tensor([[True, False, True]])
    for real in (True, False):
        loss = adversarial_loss(logits, counted, real)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


CONTEXTS = {
    "every video": [True, True, True],
    "some videos": [False, True, True],
    "one video": [False, False, True],
    "no video": [False, False, False],
}


@pytest.mark.parametrize("counted", CONTEXTS.values(), ids=CONTEXTS)
def test_context_loss_is_the_mean_squared_distance_of_the_videos_that_count(counted):
    generated, real = _leaves((3, 4, 2), (3, 4, 2))

    def naive():
        terms = [
            (generated[b, k, d] - real[b, k, d]) ** 2
            for b in range(3)
            for k in range(4)
            for d in range(2)
            if counted[b]
        ]
        return sum(terms) / len(terms) if terms else 0.0

    _assert_equal_with_gradients(lambda: context_loss(generated, real, torch.tensor(counted)), naive, [generated, real])


def test_half_precision_segments_judgements_and_contexts_give_float32_losses():
    half = [x.detach() for x in _leaves((2, 3, 4), (2, 3), dtype=torch.bfloat16)]
    every = torch.ones(2, 12, dtype=torch.bool)
    assert segment_loss([half[1]], torch.tensor([0, 1])).dtype == torch.float32
    assert adversarial_loss([half[0]], every, real=True).dtype == torch.float32
    assert context_loss(half[0], torch.zeros(2, 3, 4), every[:, 0]).dtype == torch.float32


# --- matching ---------------------------------------------------------------------------------------------------


def test_anchors_are_assigned_by_the_ground_truth_of_their_own_video():
    together = assign_anchors(ANCHORS, GROUND_TRUTH, AssignmentConfig())
    for b, (begin, end) in enumerate(zip(GROUND_TRUTH.offsets[:-1], GROUND_TRUTH.offsets[1:], strict=True)):
        rows = zip(GROUND_TRUTH.segments[begin:end].tolist(), GROUND_TRUTH.labels[begin:end].tolist(), strict=True)
        alone = assign_anchors(
            ANCHORS, ground_truth_of([(*segment, label) for segment, label in rows]), AssignmentConfig()
        )
        for got, expected in zip(together, alone, strict=True):
            assert torch.equal(got[b], expected[0])


@pytest.mark.parametrize(("foreground", "background"), [(0.8, 0.3), (0.5, 0.1)])
def test_foreground_and_background_lie_strictly_beyond_their_thresholds(foreground, background):
    assigned = assign_anchors(ANCHORS, GROUND_TRUTH, AssignmentConfig(foreground, background))
    assert torch.equal(assigned.kind == kernels.FOREGROUND, assigned.tiou > foreground)
    assert torch.equal(assigned.kind == kernels.BACKGROUND, assigned.tiou < background)


# --- hard background --------------------------------------------------------------------------------------------


def _hard_naive(overlaps, assigned):
    """L_ov of foreground and the hardest background, video by video and anchor by anchor, in float64."""
    terms = []
    for b in range(len(assigned.kind)):
        predicted = [x[b, r, t].double().sigmoid() for x in overlaps for t in range(x.shape[2]) for r in range(3)]
        foreground = [k for k in range(len(ANCHORS)) if assigned.kind[b, k] == kernels.FOREGROUND]
        background = [k for k in range(len(ANCHORS)) if assigned.kind[b, k] == kernels.BACKGROUND]
        hardest = sorted(background, key=lambda k: -predicted[k])[: len(foreground) + 1]
        terms += [(predicted[k] - assigned.tiou[b, k]) ** 2 for k in foreground + hardest]
    return sum(terms) / len(terms)


def test_hard_background_is_that_of_highest_predicted_overlap_in_each_video():
    assigned = assign_anchors(ANCHORS, GROUND_TRUTH, AssignmentConfig(0.5, 0.3, True))
    mine, naive = _outputs(requires_grad=True), _outputs(requires_grad=True)
    loss, expected = hard_overlap_loss(mine.overlaps, assigned), _hard_naive(naive.overlaps, assigned)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-9)
    loss.backward()
    expected.backward()
    for got, wanted in zip(mine.overlaps, naive.overlaps, strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-8)
    untouched = sum(int((scale.grad == 0).sum()) for scale in mine.overlaps)
    assert untouched > len(ANCHORS)  # most background is not hard


def test_hard_background_takes_the_place_of_all_anchors_in_the_loss():
    assignment = AssignmentConfig(0.6, 0.3, True)
    everything, hard = (
        _losses(_outputs(), GROUND_TRUTH, assignment, LossConfig(overlap=2.0, overlap_anchors=anchors))
        for anchors in ("all", "hard")
    )
    assigned = assign_anchors(ANCHORS, GROUND_TRUTH, assignment)
    assert hard.overlap == hard_overlap_loss(_outputs().overlaps, assigned)
    assert hard.overlap != everything.overlap
    assert torch.equal(hard.offset, everything.offset)
    torch.testing.assert_close(hard.total - everything.total, 2 * (hard.overlap - everything.overlap))
