import numpy as np
import pytest
import torch
from inference_references import CLASSES, DIMENSION, DURATIONS, MODEL

from ahernet.checkpoint import Checkpoint
from ahernet.config import Config, InferenceConfig
from ahernet.data.archive import open_archive
from ahernet.data.archive_writer import ArchiveWriter
from ahernet.inference.graphs import TURNS, CapturedStep, Inputs, padded, room
from ahernet.inference.localize import localize
from ahernet.inference.ready import inference_step

CANDIDATES = ["anchors", "crops", "snippets"]
CPU = torch.device("cpu")
VIDEOS = 4


def random_batch(*lengths, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((sum(lengths), DIMENSION), generator=generator).to(dtype)
    return rows, torch.from_numpy(np.cumsum([0, *lengths]))


def assert_close_to(actual, expected, atol):
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, atol=atol, rtol=0)


# padding


def test_a_missing_video_has_one_row_behind_the_others():
    assert padded(torch.tensor([0, 3, 7]), 4).tolist() == [0, 3, 7, 8, 9]
    assert padded(torch.tensor([0, 3, 7]), 2).tolist() == [0, 3, 7]


def test_there_is_room_for_a_batch_and_for_the_rows_of_missing_videos():
    rows, offsets = random_batch(3, 4)
    assert Inputs(2, 7, rows, CPU).hold(rows, offsets)
    assert not Inputs(2, 6, rows, CPU).hold(rows, offsets)
    assert Inputs(4, 9, rows, CPU).hold(rows, offsets)
    assert not Inputs(4, 8, rows, CPU).hold(rows, offsets)


def test_there_is_no_room_for_rows_of_another_type():
    rows, offsets = random_batch(3, 4)
    assert not Inputs(4, 9, rows.half(), CPU).hold(rows, offsets)


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_room_is_reserved_for_more_rows_than_asked_for_whatever_videos_are_missing(rows):
    batch = random_batch(rows)
    assert Inputs(5, room(rows, 5), batch[0], CPU).hold(*batch)
    assert room(1000, 5) > 1200


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_padding_changes_nothing_of_what_is_found(localizer, candidates, precision):
    """Also with the rows of an earlier, longer batch behind those of this one."""
    step = inference_step(localizer, InferenceConfig(candidates=candidates, precision=precision, top_k=9))
    inputs = Inputs(VIDEOS, 800, random_batch(1)[0], CPU)
    for batch in (random_batch(300, 100, 200, 50, seed=1), random_batch(30, 500, seed=2), random_batch(1, seed=3)):
        assert inputs.hold(*batch)
        inputs.fill(batch[0], padded(batch[1], VIDEOS))
        found, expected = step(inputs.rows, inputs.offsets), step(*batch)
        videos = len(batch[1]) - 1
        assert torch.equal(found.counts[:videos], expected.counts)
        assert_close_to([x[:videos] for x in found], expected, atol=1e-5 if precision == "float32" else 0.02)


# on a GPU


@pytest.fixture
def on_gpu(localizer):
    """Build a step on the GPU; a network of full precision computes without TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield lambda **config: inference_step(localizer, InferenceConfig(top_k=9, **config)).cuda().eval()
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def captured(step, videos=VIDEOS):
    return CapturedStep(step, videos, torch.device("cuda", torch.cuda.current_device()))


def pinned(batch):
    return batch[0].pin_memory(), batch[1]


@torch.inference_mode()
def eager(step, batch, videos=VIDEOS):
    """What the step finds in the same padded batch, launch by launch."""
    rows = torch.zeros((len(batch[0]) + videos, DIMENSION), dtype=batch[0].dtype)
    rows[: len(batch[0])] = batch[0]
    found = step(rows.cuda(), padded(batch[1], videos).cuda())
    return [x[: len(batch[1]) - 1].cpu() for x in found]


@pytest.mark.gpu
@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_graph_finds_what_its_step_finds_bit_for_bit(on_gpu, candidates, precision, dtype):
    step = on_gpu(candidates=candidates, precision=precision)
    graph = captured(step)
    for lengths in ([300, 100, 1, 50], [30, 250, 20, 5], [400]):
        batch = random_batch(*lengths, seed=len(lengths), dtype=dtype)
        assert_close_to(graph.submit(*pinned(batch)).result(), eager(step, batch), atol=0)
    assert graph.captures == 1


@pytest.mark.gpu
@pytest.mark.parametrize("candidates", CANDIDATES)
def test_a_batch_is_handed_in_without_waiting_for_the_gpu(on_gpu, candidates):
    graph = captured(on_gpu(candidates=candidates))
    batch = pinned(random_batch(300, 100, 1, 50))
    expected = graph.submit(*batch).result()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = graph.submit(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close_to(pending.result(), expected, atol=0)


@pytest.mark.gpu
def test_batches_in_flight_do_not_overwrite_one_another(on_gpu):
    step = on_gpu(precision="bfloat16")
    graph = captured(step)
    batches = [random_batch(*lengths, seed=k) for k, lengths in enumerate([[90, 7], [4, 80, 3], [60], [33] * 4] * 10)]
    found = dict(graph.localize((k, pinned(batch)) for k, batch in enumerate(batches)))
    assert list(found) == list(range(len(batches)))
    for k, batch in enumerate(batches):
        assert_close_to(found[k], eager(step, batch), atol=0)


@pytest.mark.gpu
def test_a_batch_with_more_rows_is_captured_anew_while_others_are_in_flight(on_gpu):
    step = on_gpu()
    graph = captured(step)
    batches = [random_batch(length, 2, seed=length) for length in (10, 11, 100, 12, 1000, 9)]
    found = dict(graph.localize((k, pinned(batch)) for k, batch in enumerate(batches)))
    for k, batch in enumerate(batches):
        assert_close_to(found[k], eager(step, batch), atol=0)
    assert graph.captures == 3


@pytest.mark.gpu
def test_videos_that_are_not_finite_are_flagged_and_harm_no_later_batch(on_gpu):
    graph = captured(on_gpu(precision="bfloat16"))
    good = random_batch(30, 100)
    expected = graph.submit(*pinned(good)).result()
    bad = random_batch(30, 100)
    bad[0][40, 2] = float("nan")
    assert graph.submit(*pinned(bad)).result().finite.tolist() == [True, False]
    for _ in range(TURNS):
        assert_close_to(graph.submit(*pinned(good)).result(), expected, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("candidates", ["anchors", "snippets"])
@pytest.mark.usefixtures("on_gpu")
def test_localize_finds_on_a_gpu_what_it_finds_on_a_cpu(localizer, tmp_path, candidates):
    rng = np.random.default_rng(0)
    with ArchiveWriter(tmp_path / "a.h5", dimension=DIMENSION, dtype="float32") as writer:
        for k in range(11):
            writer.add(f"video{k}", rng.normal(size=(100 + 60 * k, DIMENSION)), DURATIONS[2])
    checkpoint = Checkpoint(Config(model=MODEL), CLASSES, moment_classes=(), model=localizer, source=tmp_path)
    config = InferenceConfig(candidates=candidates, top_k=3, batch_size=VIDEOS, nms_threshold=0.3)
    with open_archive(tmp_path / "a.h5") as archive:
        on_cpu, on_gpu = (
            localize(archive, checkpoint, config, device=device, progress=False) for device in ("cpu", "cuda")
        )
    np.testing.assert_array_equal(on_gpu.video, on_cpu.video)
    np.testing.assert_array_equal(on_gpu.label, on_cpu.label)
    np.testing.assert_allclose(on_gpu.scores, on_cpu.scores, atol=1e-4)
    np.testing.assert_allclose(on_gpu.segments, on_cpu.segments, atol=0.05)
