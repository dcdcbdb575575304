import dataclasses

import numpy as np
import pytest
import torch

import ahernet.inference
from ahernet.checkpoint import Checkpoint
from ahernet.config import Config, InferenceConfig, ModelConfig
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.errors import UserError
from ahernet.inference import InferenceStep, localize
from ahernet.model.localizer import Localizer
from ahernet.model.weight_transfer import WeightTransfer

DIMENSION = 6
CLASSES = ("jump", "fall", "run")
LENGTHS = (30, 1, 700, 512, 3)
DURATIONS = (15.0, 0.5, 350.0, 300.0, 2.0)
MODEL = ModelConfig(feature_dimension=DIMENSION, width=1 / 128, minimum_channels=4)


@pytest.fixture(scope="module")
def localizer():
    torch.manual_seed(3)
    model = Localizer(MODEL, len(CLASSES)).eval()
    with torch.no_grad():  # far enough from the initial state for scores, labels and offsets to differ
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def checkpoint(localizer, tmp_path):
    return Checkpoint(Config(model=MODEL), CLASSES, localizer, tmp_path)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(LENGTHS), DIMENSION, generator=generator)
    return rows, torch.tensor([0, *np.cumsum(LENGTHS)])


def _write(path, durations=DURATIONS):
    rng = np.random.default_rng(0)
    with ArchiveWriter(path, dimension=DIMENSION, dtype="float32") as writer:
        for k, (length, duration) in enumerate(zip(LENGTHS, durations, strict=True)):
            writer.add(f"video{k}", rng.normal(size=(length, DIMENSION)), duration)
    return path


@pytest.fixture
def archive(tmp_path):
    with open_archive(_write(tmp_path / "a.h5")) as opened:
        yield opened


def _tiou(a, b):
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = a[1] - a[0] + b[1] - b[0] - inter
    return inter / union if union > 0 else 0.0


def _naive(localizer, config, sequence):
    """Detections of one video (1, 512, D), box by box: list of (segment, score, label)."""
    with torch.no_grad():
        outputs = localizer(sequence, localizer.class_weights())
    probabilities = torch.cat(outputs.logits, dim=2)[0].softmax(dim=0)
    video = probabilities.mean(dim=1)
    candidates, row, cell = [], 0, 0
    for j, offsets in enumerate(outputs.offsets):
        for t in range(offsets.shape[2]):
            for r in range(3):
                m_c, m_w = localizer.anchors[row].tolist()
                centre = m_c + m_w * offsets[0, 2 * r, t].item()
                width = m_w * np.exp(offsets[0, 2 * r + 1, t].item())
                start, end = np.clip([centre - width / 2, centre + width / 2], 0, 1)
                probability, label = probabilities[:, cell].max(dim=0)
                if config.class_score == "product":
                    probability = probability * video[label]
                elif config.class_score == "video":
                    probability, label = video.max(dim=0)
                score = probability * outputs.overlaps[j][0, r, t].sigmoid()
                if end > start:
                    candidates.append(((start, end), score.item(), label.item()))
                row += 1
            cell += 1
    candidates.sort(key=lambda candidate: -candidate[1])
    candidates = candidates[: config.top_k_before or None]
    kept = []
    for segment, score, label in candidates:
        rivals = [k for k in kept if not config.class_aware or k[2] == label]
        if score > config.minimum_score and all(_tiou(segment, k[0]) <= config.nms_threshold for k in rivals):
            kept.append((segment, score, label))
    return kept[: config.top_k]


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(class_score="video", nms_threshold=0.5),
        InferenceConfig(class_score="product", nms_threshold=0.5, class_aware=False),
        InferenceConfig(top_k_before=40, nms_threshold=0.7, top_k=7),
        InferenceConfig(minimum_score=0.3, top_k=765),
    ],
)
def test_detections_equal_a_box_by_box_form(localizer, batch, config):
    found = InferenceStep(localizer, config)(*batch)
    for b in range(len(LENGTHS)):
        rows = batch[0][batch[1][b] : batch[1][b + 1]]
        sequence = ahernet.inference.kernels.resample(rows, torch.tensor([0, len(rows)]), 512)
        expected = _naive(localizer, config, sequence)
        count = int(found.counts[b])
        assert count == len(expected)
        np.testing.assert_allclose(found.segments[b, :count].tolist(), [k[0] for k in expected], atol=1e-5)
        np.testing.assert_allclose(found.scores[b, :count], [k[1] for k in expected], atol=1e-6)
        assert found.labels[b, :count].tolist() == [k[2] for k in expected]


@pytest.mark.parametrize("suppression", ["linear", "gaussian"])
def test_soft_suppression_lowers_scores_and_keeps_the_first(localizer, batch, suppression):
    hard = InferenceStep(localizer, InferenceConfig(top_k=765, nms_threshold=0.4))(*batch)
    config = InferenceConfig(suppression=suppression, top_k=765, nms_threshold=0.4)
    soft = InferenceStep(localizer, config)(*batch)
    assert torch.equal(soft.segments[:, 0], hard.segments[:, 0])
    assert torch.equal(soft.scores[:, 0], hard.scores[:, 0])
    assert (soft.counts >= hard.counts).all()
    assert (soft.scores[:, :-1] >= soft.scores[:, 1:]).all()


def test_padding_is_zero_and_beyond_the_count_only(localizer, batch):
    found = InferenceStep(localizer, InferenceConfig(top_k=765, nms_threshold=0.3))(*batch)
    beyond = torch.arange(765) >= found.counts[:, None]
    assert beyond.any()
    assert not found.segments[beyond].any()
    assert not found.scores[beyond].any()
    assert (found.labels[beyond] == -1).all()
    assert (found.scores[~beyond] > 0).all()
    assert (found.labels[~beyond] >= 0).all()


def test_the_result_for_a_video_does_not_depend_on_its_neighbours(localizer, batch):
    step = InferenceStep(localizer, InferenceConfig())
    together = step(*batch)
    for b in range(len(LENGTHS)):
        rows = batch[0][batch[1][b] : batch[1][b + 1]]
        alone = step(rows, torch.tensor([0, len(rows)]))
        assert alone.counts[0] == together.counts[b]
        torch.testing.assert_close(alone.segments[0], together.segments[b], atol=1e-5, rtol=0)


def test_videos_that_are_not_finite_are_flagged_and_harm_no_other(localizer, batch):
    rows = batch[0].clone()
    rows[10, 2] = float("nan")  # in the first video
    rows[30, 0] = float("inf")  # the only row of the second
    step = InferenceStep(localizer, InferenceConfig())
    found, whole = step(rows, batch[1]), step(*batch)
    assert found.finite.tolist() == [False, False, True, True, True]
    assert torch.equal(found.segments[2:], whole.segments[2:])


def test_the_weight_transfer_is_evaluated_once_and_not_per_batch(localizer, batch, monkeypatch):
    calls = []
    forward = WeightTransfer.forward
    monkeypatch.setattr(WeightTransfer, "forward", lambda self, weights: calls.append(1) or forward(self, weights))
    step = InferenceStep(localizer, InferenceConfig())
    assert len(calls) == 1
    for _ in range(3):
        step(*batch)
    assert len(calls) == 1
    assert not any(isinstance(module, WeightTransfer) for module in step.modules())


def test_building_a_step_leaves_the_model_alone(localizer):
    before = {name: tensor.clone() for name, tensor in localizer.state_dict().items()}
    InferenceStep(localizer, InferenceConfig(precision="bfloat16"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in localizer.state_dict().items())
    assert all(parameter.requires_grad for parameter in localizer.parameters())


def test_bfloat16_detections_are_near_the_float32_ones(localizer, batch):
    exact = InferenceStep(localizer, InferenceConfig())(*batch)
    rough = InferenceStep(localizer, InferenceConfig(precision="bfloat16"))(*batch)
    assert rough.scores.dtype == torch.float32
    torch.testing.assert_close(rough.scores[:, 0], exact.scores[:, 0], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(class_score="product", suppression="gaussian", top_k_before=50),
        InferenceConfig(class_score="video", class_aware=False),
    ],
)
def test_the_step_compiles_as_one_graph_for_any_batch(localizer, batch, config):
    torch._dynamo.reset()
    step = InferenceStep(localizer, config)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    few = batch[0][: batch[1][2]], batch[1][:3]
    for rows, offsets in (batch, few):
        for got, expected in zip(compiled(rows, offsets), step(rows, offsets), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_step_exports_with_any_number_of_rows_and_videos(localizer, batch):
    step = InferenceStep(localizer, InferenceConfig())
    rows_count, offset_count = torch.export.Dim("rows", min=2), torch.export.Dim("offsets", min=3)
    program = torch.export.export(step, batch, dynamic_shapes=({0: rows_count}, {0: offset_count}))
    few = batch[0][: batch[1][2]], batch[1][:3]
    for got, expected in zip(program.module()(*few), step(*few), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_localize_gives_seconds_by_video_best_first(archive, checkpoint):
    detections = localize(archive, checkpoint, device="cpu", progress=False)
    assert detections.video_ids == archive.ids
    assert detections.classes == CLASSES
    assert (np.diff(detections.video) >= 0).all()
    assert set(detections.video) == set(range(5))
    same_video = np.diff(detections.video) == 0
    assert (np.diff(detections.scores)[same_video] <= 0).all()
    durations = np.array(DURATIONS)[detections.video]
    assert (detections.segments[:, 0] >= 0).all()
    assert (detections.segments[:, 1] > detections.segments[:, 0]).all()
    assert (detections.segments <= durations[:, None]).all()
    assert detections.segments[detections.video == 2].max() > 100


def test_localize_does_not_depend_on_the_batch_size(archive, checkpoint):
    one, many = (
        localize(archive, checkpoint, InferenceConfig(batch_size=size), device="cpu", progress=False) for size in (1, 3)
    )
    np.testing.assert_array_equal(one.video, many.video)
    np.testing.assert_array_equal(one.label, many.label)
    np.testing.assert_allclose(one.segments, many.segments, atol=1e-3)


def test_localize_takes_the_wanted_videos_in_their_order(archive, checkpoint):
    everything = localize(archive, checkpoint, device="cpu", progress=False)
    some = localize(archive, checkpoint, video_ids=["video3", "video1"], device="cpu", progress=False)
    assert some.video_ids == ("video3", "video1")
    for new, old in ((0, 3), (1, 1)):
        np.testing.assert_allclose(
            some.segments[some.video == new], everything.segments[everything.video == old], atol=1e-3
        )


def test_a_minimum_score_that_nothing_reaches_gives_no_detection(archive, checkpoint):
    nothing = localize(archive, checkpoint, InferenceConfig(minimum_score=1.0), device="cpu", progress=False)
    assert nothing.video_ids == archive.ids
    assert nothing.segments.shape == (0, 2)


def test_progress_counts_videos(archive, checkpoint, capsys):
    localize(archive, checkpoint, device="cpu")
    assert "videos/s" in capsys.readouterr().err


def test_another_feature_dimension_is_refused(archive, checkpoint):
    wide = dataclasses.replace(MODEL, feature_dimension=7)
    other = dataclasses.replace(checkpoint, config=Config(model=wide))
    with pytest.raises(UserError, match=r"a\.h5: features have 6 values a row, the network in .* expects 7"):
        localize(archive, other)


def test_missing_durations_are_listed(tmp_path, checkpoint):
    path = _write(tmp_path / "b.h5", durations=(1.0, np.nan, 3.0, np.nan, 5.0))
    with open_archive(path) as archive:
        with pytest.raises(UserError, match=r"b\.h5: the duration is unknown of 'video1', 'video3';"):
            localize(archive, checkpoint)
        localize(archive, checkpoint, video_ids=["video0", "video4"], device="cpu", progress=False)


def test_unknown_and_repeated_videos_are_refused(archive, checkpoint):
    with pytest.raises(UserError, match="video9"):
        localize(archive, checkpoint, video_ids=["video9"])
    with pytest.raises(UserError, match="video_ids: an id occurs twice"):
        localize(archive, checkpoint, video_ids=["video1", "video1"])
    with pytest.raises(UserError, match="no video to localize in"):
        localize(archive, checkpoint, video_ids=[])


def test_features_that_are_not_finite_are_named(archive, checkpoint, monkeypatch):
    read = type(archive).read

    def broken_read(self, positions):
        rows, offsets = read(self, positions)
        for k, position in enumerate(positions):
            if position == 3:
                rows[offsets[k]] = np.nan
        return rows, offsets

    monkeypatch.setattr(type(archive), "read", broken_read)
    with pytest.raises(UserError, match=r"a\.h5: features that are not finite in 'video3'$"):
        localize(archive, checkpoint, InferenceConfig(batch_size=2), device="cpu", progress=False)


def test_unknown_devices_are_refused(archive, checkpoint):
    with pytest.raises(UserError, match="device: expected auto, cpu, cuda"):
        localize(archive, checkpoint, device="gpu")
