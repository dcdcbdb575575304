"""Wrong arguments: an error that names the argument and what was expected, on every op."""

import ahernet_kernels as kernels
import kernel_samples
import pytest
import torch
from torch.utils._pytree import tree_leaves

SAMPLES = kernel_samples.samples()
SEGMENTS, SCORES = torch.zeros((2, 3, 2)), torch.zeros((2, 3))
ANCHORS, TRUTHS, OFFSETS = torch.zeros((4, 2)), torch.zeros((3, 2)), torch.tensor([0, 1, 3])
WRAPPING = torch.tensor([0, 1 << 62, (1 << 63) - 1, -1 << 63, -1 << 62, 0, 3])  # each less the one before, wrapped, > 0
LABELS = torch.zeros(3, dtype=torch.int64)
SHOWN = torch.zeros((1, 4), dtype=torch.int64)


def stretch(shown):
    return kernels.stretch(*[SEGMENTS] * 3, OFFSETS.expand(2, 3), shown)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kernels.pairwise_tiou(ANCHORS.double(), ANCHORS), TypeError, "a: expected float16 or"),
        (lambda: kernels.pairwise_tiou(ANCHORS, ANCHORS[:, :1]), ValueError, r"b: expected shape \(M, 2\)"),
        (lambda: kernels.pairwise_tiou(ANCHORS, [[0.0, 1.0]]), TypeError, "b: expected a tensor, got list"),
        (lambda: kernels.match(ANCHORS, TRUTHS, OFFSETS.int()), TypeError, "gt_offsets: expected int64, got int32"),
        (lambda: kernels.match(ANCHORS, TRUTHS, OFFSETS[:0]), ValueError, "gt_offsets: expected B"),
        (lambda: kernels.match(ANCHORS, TRUTHS.to("meta"), OFFSETS), ValueError, "gt_segments: expected on cpu"),
        (lambda: kernels.assign(ANCHORS, TRUTHS, LABELS[:2], OFFSETS), ValueError, r"gt_labels: .* \(3\), got \(2,\)"),
        (lambda: kernels.assign(ANCHORS, TRUTHS, LABELS, OFFSETS, 1.5), ValueError, "foreground_threshold: expected"),
        (lambda: kernels.nms(SEGMENTS, SCORES[:1], None, 0.5, 3), ValueError, "segments: expected shape"),
        (lambda: kernels.nms(SEGMENTS, SCORES, SCORES, 0.5, 3), TypeError, "labels: expected int64"),
        (lambda: kernels.nms(SEGMENTS, SCORES, None, float("nan"), 3), ValueError, "tiou_threshold: expected"),
        (lambda: kernels.nms(SEGMENTS, SCORES, None, 0.5, 0), ValueError, "max_output: expected a number >= 1"),
        (lambda: kernels.nms(SEGMENTS, SCORES, None, 0.5, 3, float("nan")), ValueError, "min_score: expected"),
        (lambda: kernels.soft_nms(SEGMENTS, SCORES, None, "cubic", 0.5, 3), ValueError, "method: expected linear"),
        (lambda: kernels.soft_nms(SEGMENTS, SCORES, None, "gaussian", 0.0, 3), ValueError, "parameter: expected a"),
        (lambda: kernels.soft_nms(SEGMENTS, SCORES, None, "linear", 2.0, 3), ValueError, "parameter: expected a"),
        (lambda: kernels.match(ANCHORS, TRUTHS, OFFSETS + 1), ValueError, "gt_offsets: expected numbers from 0 to 3"),
        (lambda: kernels.match(ANCHORS, TRUTHS, OFFSETS.flip(0)), ValueError, "gt_offsets: expected numbers from 0"),
        (lambda: kernels.match(ANCHORS, TRUTHS, WRAPPING), ValueError, "gt_offsets: expected numbers from 0 to 3"),
        (lambda: kernels.assign(ANCHORS, TRUTHS, LABELS, OFFSETS - 1), ValueError, "gt_offsets: expected numbers"),
        (lambda: kernels.assign(ANCHORS, TRUTHS, LABELS, WRAPPING), ValueError, "gt_offsets: expected numbers"),
        (lambda: kernels.resample(ANCHORS, OFFSETS + 2, 2), ValueError, "offsets: expected numbers from 0 to 4"),
        (lambda: kernels.resample_checked(ANCHORS, OFFSETS.flip(0), 2), ValueError, "offsets: expected numbers"),
        (lambda: kernels.nms(SEGMENTS, SCORES, None, 0.5, 1.5), TypeError, "max_output: expected a whole number"),
        (lambda: kernels.soft_nms(SEGMENTS, SCORES, None, "linear", 0.5, None), TypeError, "max_output: expected a"),
        (lambda: kernels.soft_nms(SEGMENTS, SCORES, None, "gaussian", 1e-50, 3), ValueError, "parameter: expected a"),
        (lambda: kernels.resample(ANCHORS, OFFSETS, 2.5), TypeError, "steps: expected a whole number, got 2.5"),
        (lambda: stretch(shown=4), TypeError, "shown: expected a tensor, got int"),
        (lambda: kernels.stretch([1], *[SEGMENTS] * 2, LABELS, SHOWN), TypeError, "before: expected a tensor"),
        (lambda: kernels.stretch(SEGMENTS, [1], SEGMENTS, LABELS, SHOWN), TypeError, "middle: expected a tensor"),
        (lambda: decode_classified(offsets=[1] * 4), TypeError, r"offsets\[0\]: expected a tensor, got int"),
        (lambda: decode_classified(overlaps=[1] * 4), TypeError, r"overlaps\[0\]: expected a tensor, got int"),
        (lambda: decode_classified(probability=SCORES), ValueError, r"probability: .* \(2, 15\), got \(2, 3\)"),
        (lambda: kernels.resample(ANCHORS, OFFSETS, 0), ValueError, "steps: expected a number >= 1"),
        (lambda: kernels.stretch(*[SEGMENTS] * 3, LABELS, SHOWN), ValueError, r"lengths: expected shape \(B \* M, 3\)"),
        (lambda: stretch(shown=LABELS), ValueError, r"shown: expected shape \(B, T\)"),
        (lambda: stretch(shown=SHOWN[:, :0]), ValueError, "steps of shown: expected a number >= 1"),
        (lambda: stretch(shown=SHOWN.expand(3, 4)), ValueError, "as many sequences for each of 3 videos, got 2"),
        (lambda: stretch(shown=SHOWN[:0]), ValueError, "as many sequences for each of 0 videos, got 2"),
        (lambda: kernels.stretch(*[SEGMENTS] * 2, SCORES, OFFSETS, SHOWN), ValueError, "after: expected shape"),
        (lambda: kernels.stretch(*[SEGMENTS] * 2, SEGMENTS[:, :0], OFFSETS, SHOWN), ValueError, "after: expected at"),
        (lambda: kernels.resample(ANCHORS.long(), OFFSETS, 4), TypeError, "features: expected float16"),
        (lambda: kernels.decode([], [], [], ANCHORS), ValueError, "logits: expected 1 to 8 scales, got 0"),
        (lambda: decode(offsets=[]), ValueError, "offsets: expected 4 scales as in logits, got 0"),
        (lambda: decode(anchors=ANCHORS), ValueError, r"anchors: expected shape \(45, 2\)"),
        (lambda: decode(overlaps=[x[:1] for x in SAMPLES["decode"].arguments[2]]), ValueError, r"overlaps\[0\]: "),
        (lambda: decode(logits=[x.double() for x in SAMPLES["decode"].arguments[0]]), TypeError, r"logits\[0\]: "),
        (lambda: proposal_loss(offsets=[]), ValueError, "offsets: expected 1 to 8 scales, got 0"),
        (lambda: proposal_loss(overlaps=[]), ValueError, "overlaps: expected 4 scales as in offsets, got 0"),
        (lambda: proposal_loss(anchors=ANCHORS), ValueError, r"anchors: expected shape \(45, 2\)"),
        (lambda: proposal_loss(kind=SAMPLES["proposal_loss"].arguments[3].int()), TypeError, "kind: expected int64"),
        (lambda: proposal_loss(tiou=SAMPLES["proposal_loss"].arguments[5][:1]), ValueError, r"tiou: .* \(2, 45\)"),
        (lambda: proposal_loss(targets=SEGMENTS.half()), TypeError, "targets: expected float32, got float16"),
    ],
)  # fmt: skip
def test_the_error_names_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def decode(**changes):
    arguments = dict(zip(("logits", "offsets", "overlaps", "anchors"), SAMPLES["decode"].arguments, strict=False))
    return kernels.decode(**{**arguments, **changes})


def decode_classified(**changes):
    names = ("probability", "labels", "offsets", "overlaps", "anchors")
    arguments = dict(zip(names, SAMPLES["decode_classified"].arguments, strict=False))
    return kernels.decode_classified(**{**arguments, **changes})


def proposal_loss(**changes):
    names = ("offsets", "overlaps", "anchors", "kind", "targets", "tiou")
    arguments = dict(zip(names, SAMPLES["proposal_loss"].arguments, strict=False))
    return kernels.proposal_loss(**{**arguments, **changes})


@pytest.mark.parametrize("name", SAMPLES)
def test_inputs_need_not_be_contiguous(name):
    def strided(x):
        if isinstance(x, list):
            return [strided(item) for item in x]
        if not isinstance(x, torch.Tensor) or x.ndim == 0:
            return x
        return torch.stack([x, torch.full_like(x, -9)], dim=-1)[..., 0]

    sample = SAMPLES[name]
    expected, actual = sample.function(*sample.arguments), sample.function(*map(strided, sample.arguments))
    torch.testing.assert_close(
        tuple(actual) if isinstance(actual, tuple) else actual,
        tuple(expected) if isinstance(expected, tuple) else expected,
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_inputs_are_left_as_they_were(name):
    sample = SAMPLES[name]
    tensors = [x for x in tree_leaves(sample.arguments) if isinstance(x, torch.Tensor)]
    before = [x.clone() for x in tensors]
    sample.function(*sample.arguments)
    torch.testing.assert_close(tensors, before)
