import dataclasses
import math
from itertools import chain

import ahernet_kernels as kernels
import pytest
import torch

from ahernet.config import AssignmentConfig, LossConfig, ModelConfig
from ahernet.model.anchors import make_anchors, scale_cells
from ahernet.model.localizer import Outputs
from ahernet.training.losses import NO_LABEL, GroundTruth, cell_labels, localization_losses

MODEL = ModelConfig(steps=64, centre_scale=0.7, width_scale=1.3)
CELLS = scale_cells(64)
CLASSES = 4
ANCHORS = make_anchors(MODEL)


def _ground_truth(*videos):
    """Each video is a list of (start, end, label)."""
    rows = [row for video in videos for row in video]
    return GroundTruth(
        torch.tensor([row[:2] for row in rows]).float().reshape(-1, 2),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
        torch.tensor([0, *[sum(len(v) for v in videos[: k + 1]) for k in range(len(videos))]]),
    )


GROUND_TRUTH = _ground_truth(
    [(0.1, 0.55, 2), (0.7, 0.75, 1), (0.8, 0.98, 2)], [], [(0.0, 1.0, 3)], [(0.2, 0.3, 0), (0.4, 0.5, 0)]
)


def _outputs(videos=4, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def scale(channels, cells):
        values = torch.randn(videos, channels, cells, dtype=torch.float64, generator=generator)
        return values.requires_grad_(requires_grad)

    return Outputs([scale(CLASSES, t) for t in CELLS], [scale(6, t) for t in CELLS], [scale(3, t) for t in CELLS])


def _smooth_l1(x):
    return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5


def _naive(outputs, ground_truth, assignment, class_cells):
    """The three terms, with loops over videos, scales, cells and ratios."""
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
    losses = localization_losses(mine, ANCHORS, GROUND_TRUTH, MODEL, assignment, weights)
    terms = _naive(naive, GROUND_TRUTH, assignment, class_cells)
    for got, expected in zip(losses[1:], terms, strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-6, atol=1e-9)
    total = 0.5 * terms[0] + 3.0 * terms[1] + 2.0 * terms[2]
    torch.testing.assert_close(losses.total, total, rtol=1e-6, atol=1e-9)
    losses.total.backward()
    total.backward()
    for got, expected in zip(chain(*mine), chain(*naive), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-5, atol=1e-9)


def test_a_term_of_weight_zero_has_no_gradient():
    outputs = _outputs(requires_grad=True)
    weights = LossConfig(classification=0.0, offset=0.0, overlap=1.0)
    localization_losses(outputs, ANCHORS, GROUND_TRUTH, MODEL, AssignmentConfig(0.6), weights).total.backward()
    assert not any(x.grad.any() for x in [*outputs.logits, *outputs.offsets])
    assert all(x.grad.any() for x in outputs.overlaps)


def test_without_ground_truth_only_the_overlap_is_learnt():
    outputs = _outputs(videos=2, requires_grad=True)
    nothing = _ground_truth([], [])
    for class_cells in ("foreground", "all"):
        losses = localization_losses(
            outputs, ANCHORS, nothing, MODEL, AssignmentConfig(), LossConfig(class_cells=class_cells)
        )
        assert losses.classification == losses.offset == 0
        assert losses.overlap > 0
    losses.total.backward()
    assert all(x.grad.isfinite().all() for x in chain(*outputs))


def test_huge_offsets_of_background_anchors_give_finite_gradients():
    outputs = _outputs(requires_grad=True)
    with torch.no_grad():
        for scale in outputs.offsets:
            scale.fill_(1e6)
    losses = localization_losses(
        outputs, ANCHORS, _ground_truth([], [], [], []), MODEL, AssignmentConfig(), LossConfig()
    )
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
    losses = localization_losses(outputs, ANCHORS, GROUND_TRUTH, MODEL, assignment, LossConfig())
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
    truth = _ground_truth([(0.0, 0.1, 3), (0.2, 0.3, 2)])
    assigned = _assignment(kind, tiou, labels)
    # Second cell: an ignored anchor with a higher tiou does not count. Fourth: ties go to the lowest anchor.
    assert cell_labels(assigned, truth, 3, "foreground").tolist() == [[2, 1, NO_LABEL, 7]]
    assert cell_labels(assigned, truth, 3, "all").tolist() == [[2, 1, 5, 7]]


def test_all_cells_take_the_label_that_the_ground_truths_of_the_video_share():
    assigned = _assignment([1, 0, 0], [0.9, 0.0, 0.2], [3, -1, 3])
    same = _ground_truth([(0.0, 0.1, 3), (0.2, 0.3, 3)])
    mixed = _ground_truth([(0.0, 0.1, 3), (0.2, 0.3, 2)])
    none = _ground_truth([])
    assert cell_labels(assigned, same, 1, "all").tolist() == [[3, 3, 3]]
    assert cell_labels(assigned, mixed, 1, "all").tolist() == [[3, NO_LABEL, 3]]
    assert cell_labels(_assignment([0], [0.0], [-1]), none, 1, "all").tolist() == [[NO_LABEL]]


def test_half_precision_outputs_give_float32_losses():
    outputs = Outputs(*([x.bfloat16() for x in group] for group in _outputs()))
    losses = localization_losses(outputs, ANCHORS, GROUND_TRUTH, MODEL, AssignmentConfig(0.6), LossConfig())
    assert losses.total.dtype == torch.float32
    assert math.isfinite(losses.total)
