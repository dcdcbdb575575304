from dataclasses import replace

import ahernet_kernels as kernels
import pytest
import torch
from inference_references import CLASSES, LONG, anchor_segments, assert_found, suppressed

from ahernet.config import InferenceConfig
from ahernet.inference import anchors
from ahernet.inference.anchors import AnchorStep
from ahernet.model.heads import ClassWeights
from ahernet.model.weight_transfer import WeightTransfer


def _naive(localizer, config, sequence, class_rows=(0, 1, 2)):
    """Detections of one video (1, 512, D), box by box: list of (segment, score, label)."""
    with torch.no_grad():
        weights, biases = localizer.class_weights()
        chosen = ClassWeights([w[list(class_rows)] for w in weights], [b[list(class_rows)] for b in biases])
        outputs = localizer(sequence, chosen)
    probabilities = torch.cat(outputs.logits, dim=2)[0].softmax(dim=0)
    video = probabilities.mean(dim=1)
    overlaps = torch.cat([scale[0].sigmoid().amax(dim=0) for scale in outputs.overlaps])
    weighted = sum(probabilities[:, cell] * overlaps[cell] for cell in range(len(overlaps))) / overlaps.sum()
    finest = outputs.logits[0][0]
    candidates = []
    for k, (start, end, j, t, r) in enumerate(anchor_segments(localizer, outputs.offsets)):
        probability, label = probabilities[:, k // 3].max(dim=0)
        if config.class_score == "product":
            probability = probability * video[label]
        elif config.class_score == "video":
            probability, label = video.max(dim=0)
        elif config.class_score == "weighted":
            probability, label = weighted.max(dim=0)
        elif config.class_score == "segment":
            probability, label = _shown(finest, start, end).softmax(dim=0).max(dim=0)
        score = probability * outputs.overlaps[j][0, r, t].sigmoid()
        overlap = outputs.overlaps[j][0, r, t].sigmoid().item()
        candidates.append(((start, end), score.item(), label.item(), overlap))
    if config.suppression_rank == "overlap":
        scores = {(segment, overlap): score for segment, score, _, overlap in candidates}
        ranked = [(segment, overlap, label) for segment, _, label, overlap in candidates]
        by_overlap = suppressed(ranked, replace(config, minimum_score=0.0))
        kept = [(segment, scores[segment, overlap], label) for segment, overlap, label in by_overlap]
        return sorted((k for k in kept if k[1] > config.minimum_score), key=lambda k: -k[1])
    return suppressed([candidate[:3] for candidate in candidates], config)


def _shown(cells, start, end):
    """Mean of the columns of cells (C, T), each weighing as much as the segment has of it."""
    count = cells.shape[1]
    shares = [max(0.0, min(end, (t + 1) / count) - max(start, t / count)) for t in range(count)]
    return sum(share * cells[:, t] for t, share in enumerate(shares)) / max(sum(shares), 1e-30)


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(class_score="segment", nms_threshold=0.5),
        InferenceConfig(class_score="video", nms_threshold=0.5),
        InferenceConfig(class_score="weighted", nms_threshold=0.5),
        InferenceConfig(class_score="product", nms_threshold=0.5, class_aware=False),
        InferenceConfig(top_k_before=40, nms_threshold=0.7, top_k=7),
        InferenceConfig(minimum_score=0.3, top_k=765),
        InferenceConfig(suppression_rank="overlap", nms_threshold=0.5, top_k=9),
        InferenceConfig(suppression_rank="overlap", nms_threshold=0.5, class_aware=False, class_score="segment"),
        InferenceConfig(suppression_rank="overlap", nms_threshold=0.5, class_score="product", minimum_score=0.2),
    ],
)
def test_detections_equal_a_box_by_box_form(localizer, batch, config):
    found = AnchorStep(localizer, config)(*batch)
    for b in LONG:
        rows = batch[0][batch[1][b] : batch[1][b + 1]]
        sequence = kernels.resample(rows, torch.tensor([0, len(rows)]), 512)
        assert_found(found, b, _naive(localizer, config, sequence))


def test_suppression_by_overlap_is_another_one_than_by_score(localizer, batch):
    score, overlap = (
        AnchorStep(localizer, InferenceConfig(suppression_rank=rank, nms_threshold=0.5))(*batch)
        for rank in ("score", "overlap")
    )
    assert not torch.equal(score.segments, overlap.segments)
    # With one label for all anchors of a video score and overlap have the same order.
    score, overlap = (
        AnchorStep(localizer, InferenceConfig(suppression_rank=rank, class_score="video"))(*batch)
        for rank in ("score", "overlap")
    )
    assert torch.equal(score.segments, overlap.segments)
    assert torch.equal(score.scores, overlap.scores)


@pytest.mark.parametrize("suppression", ["linear", "gaussian"])
def test_soft_suppression_lowers_scores_and_keeps_the_first(localizer, batch, suppression):
    hard = AnchorStep(localizer, InferenceConfig(top_k=765, nms_threshold=0.4))(*batch)
    config = InferenceConfig(suppression=suppression, top_k=765, nms_threshold=0.4)
    soft = AnchorStep(localizer, config)(*batch)
    assert torch.equal(soft.segments[:, 0], hard.segments[:, 0])
    assert torch.equal(soft.scores[:, 0], hard.scores[:, 0])
    assert (soft.counts >= hard.counts).all()
    assert (soft.scores[:, :-1] >= soft.scores[:, 1:]).all()


def test_padding_is_zero_and_beyond_the_count_only(localizer, batch):
    found = AnchorStep(localizer, InferenceConfig(top_k=765, nms_threshold=0.3))(*batch)
    beyond = torch.arange(765) >= found.counts[:, None]
    assert beyond.any()
    assert not found.segments[beyond].any()
    assert not found.scores[beyond].any()
    assert (found.labels[beyond] == -1).all()
    assert (found.scores[~beyond] > 0).all()
    assert (found.labels[~beyond] >= 0).all()


def test_the_result_for_a_video_does_not_depend_on_its_neighbours(localizer, batch):
    step = AnchorStep(localizer, InferenceConfig())
    together = step(*batch)
    for b in LONG:
        rows = batch[0][batch[1][b] : batch[1][b + 1]]
        alone = step(rows, torch.tensor([0, len(rows)]))
        assert alone.counts[0] == together.counts[b]
        torch.testing.assert_close(alone.segments[0], together.segments[b], atol=1e-5, rtol=0)


def test_videos_that_are_not_finite_are_flagged_and_harm_no_other(localizer, batch):
    rows = batch[0].clone()
    rows[10, 2] = float("nan")  # in the first video
    rows[30, 0] = float("inf")  # the only row of the second
    step = AnchorStep(localizer, InferenceConfig())
    found, whole = step(rows, batch[1]), step(*batch)
    assert found.finite.tolist() == [False, False, True, True, True]
    assert torch.equal(found.segments[2:], whole.segments[2:])


def test_the_weight_transfer_is_evaluated_once_and_not_per_batch(localizer, batch, monkeypatch):
    calls = []
    forward = WeightTransfer.forward
    monkeypatch.setattr(WeightTransfer, "forward", lambda self, weights: calls.append(1) or forward(self, weights))
    step = AnchorStep(localizer, InferenceConfig())
    assert len(calls) == 1
    for _ in range(3):
        step(*batch)
    assert len(calls) == 1
    assert not any(isinstance(module, WeightTransfer) for module in step.modules())


def test_building_a_step_leaves_the_model_alone(localizer):
    before = {name: tensor.clone() for name, tensor in localizer.state_dict().items()}
    AnchorStep(localizer, InferenceConfig(precision="bfloat16"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in localizer.state_dict().items())
    assert all(parameter.requires_grad for parameter in localizer.parameters())


def test_bfloat16_detections_are_near_the_float32_ones(localizer, batch):
    exact = AnchorStep(localizer, InferenceConfig())(*batch)
    rough = AnchorStep(localizer, InferenceConfig(precision="bfloat16"))(*batch)
    assert rough.scores.dtype == torch.float32
    torch.testing.assert_close(rough.scores[:, 0], exact.scores[:, 0], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(class_score="product", suppression="gaussian", top_k_before=50),
        InferenceConfig(class_score="weighted", class_aware=False),
        InferenceConfig(class_score="segment"),
    ],
)
def test_the_step_compiles_as_one_graph_for_any_batch(localizer, batch, config):
    torch._dynamo.reset()
    step = AnchorStep(localizer, config)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    few = batch[0][: batch[1][2]], batch[1][:3]
    for rows, offsets in (batch, few):
        for got, expected in zip(compiled(rows, offsets), step(rows, offsets), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("class_score", ["anchor", "segment"])
def test_the_step_exports_with_any_number_of_rows_and_videos(localizer, batch, class_score):
    step = AnchorStep(localizer, InferenceConfig(class_score=class_score))
    rows_count, offset_count = torch.export.Dim("rows", min=2), torch.export.Dim("offsets", min=3)
    program = torch.export.export(step, batch, dynamic_shapes=({0: rows_count}, {0: offset_count}))
    few = batch[0][: batch[1][2]], batch[1][:3]
    for got, expected in zip(program.module()(*few), step(*few), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("class_rows", [[2, 0], [1], [0, 1, 2]])
def test_chosen_classes_compete_with_one_another_alone(localizer, batch, class_rows):
    config = InferenceConfig(class_score="product", nms_threshold=0.5)
    found = AnchorStep(localizer, config, torch.tensor(class_rows))(*batch)
    for b in LONG:
        rows = batch[0][batch[1][b] : batch[1][b + 1]]
        sequence = kernels.resample(rows, torch.tensor([0, len(rows)]), 512)
        assert_found(found, b, _naive(localizer, config, sequence, class_rows))


@pytest.fixture
def without_logits(monkeypatch):
    """Three classes count as many, and to compute logits is a failure."""
    monkeypatch.setattr(anchors, "MANY_CLASSES", len(CLASSES))
    monkeypatch.setattr(anchors, "class_logits", lambda *_: pytest.fail("logits were in memory"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_many_classes_are_found_without_logits_as_few_are_with_them(localizer, batch, precision, request):
    config = InferenceConfig(precision=precision, nms_threshold=0.5)
    expected = AnchorStep(localizer, config)(*batch)
    request.getfixturevalue("without_logits")
    found = AnchorStep(localizer, config)(*batch)
    if precision == "float32":
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.scores[:, 0], expected.scores[:, 0], atol=0.02, rtol=0)


@pytest.mark.usefixtures("without_logits")
def test_many_classes_compile_as_one_graph_and_export(localizer, batch):
    torch._dynamo.reset()
    step = AnchorStep(localizer, InferenceConfig())
    rows_count, offset_count = torch.export.Dim("rows", min=2), torch.export.Dim("offsets", min=3)
    program = torch.export.export(step, batch, dynamic_shapes=({0: rows_count}, {0: offset_count}))
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="eager")
    few = batch[0][: batch[1][2]], batch[1][:3]
    for run in (compiled, program.module()):
        for got, expected in zip(run(*few), step(*few), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("class_score", ["product", "video", "weighted"])
def test_scores_of_the_video_keep_the_logits_of_many_classes(localizer, batch, class_score, monkeypatch):
    config = InferenceConfig(class_score=class_score)
    expected = AnchorStep(localizer, config)(*batch)
    monkeypatch.setattr(anchors, "MANY_CLASSES", 1)
    for left, right in zip(AnchorStep(localizer, config)(*batch), expected, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("segment", "shares"),
    [
        ((0.25, 0.75), [0.0, 0.5, 0.5, 0.0]),
        ((0.0, 1.0), [0.25] * 4),
        ((0.125, 0.5), [1 / 3, 2 / 3, 0.0, 0.0]),
        ((0.3, 0.31), [0.0, 1.0, 0.0, 0.0]),
        ((0.5, 0.5), [0.0] * 4),
        ((0.0, 0.0), [0.0] * 4),
    ],
)
def test_a_cell_counts_as_much_as_the_segment_has_of_it(segment, shares):
    found = anchors.covered_cells(torch.tensor([[segment]]), 4)
    torch.testing.assert_close(found, torch.tensor([[shares]]), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("without_logits")
def test_classes_of_segments_need_no_logits_however_few_they_are(localizer, batch):
    step = AnchorStep(localizer, InferenceConfig(class_score="segment"))
    assert not step.keeps_logits
    assert step(*batch).counts.all()


@pytest.mark.usefixtures("without_logits")
def test_few_chosen_ones_of_many_classes_have_logits(localizer):
    assert not AnchorStep(localizer, InferenceConfig()).keeps_logits
    assert AnchorStep(localizer, InferenceConfig(), torch.tensor([2, 0])).keeps_logits
