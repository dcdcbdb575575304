"""A small network with videos to localize in, and slow, obvious forms of what all ways of inference share."""

import math

import numpy as np
import torch

from ahernet.config import InferenceConfig, ModelConfig
from ahernet.data.archive_writer import ArchiveWriter

DIMENSION = 6
CLASSES = ("jump", "fall", "run")
LENGTHS = (30, 1, 700, 512, 3)
# The others repeat a row or three, so that candidates tie but for the last digit, which depends on the CPU.
LONG = (0, 2, 3)
DURATIONS = (15.0, 0.5, 350.0, 300.0, 2.0)
MODEL = ModelConfig(feature_dimension=DIMENSION, width=1 / 128, minimum_channels=4)

Candidate = tuple[tuple[float, float], float, int]
"""Segment, score and label."""


def write_archive(path, durations=DURATIONS):
    rng = np.random.default_rng(0)
    with ArchiveWriter(path, dimension=DIMENSION, dtype="float32") as writer:
        for k, (length, duration) in enumerate(zip(LENGTHS, durations, strict=True)):
            writer.add(f"video{k}", rng.normal(size=(length, DIMENSION)), duration)
    return path


def tiou(a, b) -> float:
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = a[1] - a[0] + b[1] - b[0] - inter
    return inter / union if union > 0 else 0.0


def anchor_segments(localizer, offsets) -> list[tuple[float, float, int, int, int]]:
    """Start, end, scale, cell and ratio of every anchor of one video, given its offsets per scale (1, 6, T_j)."""
    anchors = []
    for j, scale in enumerate(offsets):
        for t in range(scale.shape[2]):
            for r in range(3):
                m_c, m_w = localizer.anchors[len(anchors)].tolist()
                centre = m_c + m_w * scale[0, 2 * r, t].item()
                width = m_w * math.exp(scale[0, 2 * r + 1, t].item())
                start, end = np.clip([centre - width / 2, centre + width / 2], 0, 1).tolist()
                anchors.append((start, end, j, t, r))
    return anchors


def suppressed(candidates: list[Candidate], config: InferenceConfig) -> list[Candidate]:
    """What hard NMS, or gaussian soft-NMS, leaves of the candidates of one video."""
    candidates = sorted((k for k in candidates if k[0][1] > k[0][0]), key=lambda k: -k[1])
    rest = candidates[: config.top_k_before or None]
    kept: list[Candidate] = []
    while rest and len(kept) < config.top_k:
        best = max(rest, key=lambda k: k[1])
        if best[1] <= config.minimum_score:
            break
        kept.append(best)
        rest.remove(best)
        rest = [_beside(best, rival, config) for rival in rest]
        rest = [rival for rival in rest if rival[1] > 0]
    return kept


def _beside(best: Candidate, rival: Candidate, config: InferenceConfig) -> Candidate:
    segment, score, label = rival
    overlap = tiou(best[0], segment) if not config.class_aware or label == best[2] else 0.0
    if config.suppression == "gaussian":
        return segment, score * math.exp(-(overlap**2) / config.sigma), label
    return segment, 0.0 if overlap > config.nms_threshold else score, label


def assert_found(found, video: int, expected: list[Candidate]) -> None:
    """Check the detections of one video, best first."""
    count = int(found.counts[video])
    assert count == len(expected)
    segments = torch.tensor([k[0] for k in expected]).reshape(-1, 2)
    torch.testing.assert_close(found.segments[video, :count], segments, atol=1e-5, rtol=0)
    scores = torch.tensor([k[1] for k in expected])
    torch.testing.assert_close(found.scores[video, :count], scores, atol=1e-5, rtol=0)
    assert found.labels[video, :count].tolist() == [k[2] for k in expected]


def _two_videos(batch):
    """A smaller batch: two other videos of some of the rows."""
    return batch[0][31:1243], torch.tensor([0, 700, 1212])


def assert_compiles(step, batch) -> None:
    """Assert that a step is one graph for batches of any size."""
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for (rows, offsets), videos in ((batch, LONG), (_two_videos(batch), (0, 1))):
        for got, expected in zip(compiled(rows, offsets), step(rows, offsets), strict=True):
            torch.testing.assert_close(got[[*videos]], expected[[*videos]], atol=1e-5, rtol=0)


def assert_exports(step, batch) -> None:
    """Assert that a step is exported for any number of rows and videos."""
    rows_count, offset_count = torch.export.Dim("rows", min=2), torch.export.Dim("offsets", min=3)
    program = torch.export.export(step, batch, dynamic_shapes=({0: rows_count}, {0: offset_count}))
    few = _two_videos(batch)
    for got, expected in zip(program.module()(*few), step(*few), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
