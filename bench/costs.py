"""What each op must do at least: bytes to move, operations to carry out. One table, for the GPU suite and the report.

Bytes: every input read once, every output written once; working memory is not counted, nor what a kernel reads again.
Where the work depends on the values the count is a bound that every form shares:

- `nms`, `soft_nms`: all candidates are read once, though a form that stops at the best 100 may leave some unread; so a
  share above 100 % is possible. Pairs to compare depend on the algorithm, so `nms` has no operations; `soft_nms`
  passes over its candidates once a pick, by definition.
- `match`, `assign`: ragged ground truths are read once and every anchor meets those of its own video, no padding.
- `resample`: a row meets the bins under its hat function, about rows + 2 steps pairs a video.

Operations are additions, multiplications, comparisons and exponentials, each one; those of products of matrices and
convolutions, two a multiply-add, stand apart, because other units of the device do them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ahernet.config import Config, ModelConfig
from ahernet.model.anchors import scale_cells, scale_channels, stem_channels

PAIR_OPERATIONS = 9  # minimum, maximum, difference, clamp, sum of lengths, union, quotient, comparison, selection
ANCHOR_OPERATIONS = 14  # centre, exponential, width, both ends clipped, sigmoid, product
LOGIT_OPERATIONS = 4  # comparison, difference, exponential, sum
KERNEL = 3  # width of the network's convolutions


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    bytes: int
    operations: int = 0
    """Of the vector units."""
    matrix_operations: int = 0

    def floor_seconds(self, ceilings: dict[str, float]) -> float:
        """The least time that a device with these ceilings can take: that of its slowest part."""
        parts = (
            (self.bytes, "copy_bytes_per_second"),
            (self.operations, "fp32_operations_per_second"),
            (self.matrix_operations, "bf16_operations_per_second"),
        )
        return max((amount / ceilings[name] for amount, name in parts if name in ceilings), default=0.0)


def tensor_bytes(tree: Any) -> int:
    """Bytes of all tensors in a nest of lists and tuples."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _moved(arguments: tuple[Any, ...], result: Any) -> int:
    return tensor_bytes(arguments) + tensor_bytes(result)


def decode(arguments: tuple[Any, ...], result: Any) -> Cost:
    logits, scores = arguments[0], result[1]
    operations = LOGIT_OPERATIONS * sum(x.numel() for x in logits) + ANCHOR_OPERATIONS * scores.numel()
    return Cost(_moved(arguments, result), operations)


def match(arguments: tuple[Any, ...], result: Any) -> Cost:
    """Also of `assign`, whose thresholds and targets add little."""
    anchors, gt_segments = arguments[:2]
    return Cost(_moved(arguments, result), PAIR_OPERATIONS * len(anchors) * len(gt_segments))


def nms(arguments: tuple[Any, ...], result: Any) -> Cost:
    return Cost(_moved(arguments, result))


def soft_nms(arguments: tuple[Any, ...], result: Any) -> Cost:
    picks = int(result[2].sum())
    return Cost(_moved(arguments, result), (PAIR_OPERATIONS + 3) * picks * arguments[1].shape[1])


def resample(arguments: tuple[Any, ...], result: Any) -> Cost:
    """Of `resample_checked` too, which has a second result."""
    videos, steps, dimension = (result if isinstance(result, Tensor) else result[0]).shape
    return Cost(_moved(arguments, result), 2 * (len(arguments[0]) + 2 * videos * steps) * dimension)


def resample_backward(arguments: tuple[Any, ...], result: Tensor) -> Cost:
    videos, steps, dimension = arguments[0].shape
    return Cost(_moved(arguments, result), 2 * (len(result) + 2 * videos * steps) * dimension)


def stretch(arguments: tuple[Any, ...], result: Tensor) -> Cost:
    videos, steps, dimension = result.shape
    rows = videos * sum(piece.shape[1] for piece in arguments[:3])
    pieces = tensor_bytes(arguments[:3]) * videos // len(arguments[0])  # of several sequences a part each is shown
    return Cost(pieces + _moved(arguments[3:], result), 2 * (rows + 2 * videos * steps) * dimension)


def stretch_backward(arguments: tuple[Any, ...], result: tuple[Tensor, ...]) -> Cost:
    videos, steps, dimension = arguments[0].shape
    rows = videos * sum(piece.shape[1] for piece in result)
    return Cost(_moved(arguments, result), 2 * (rows + 2 * videos * steps) * dimension)


def pairwise_tiou(arguments: tuple[Any, ...], result: Tensor) -> Cost:
    return Cost(_moved(arguments, result), PAIR_OPERATIONS * result.numel())


def proposal_loss(arguments: tuple[Any, ...], result: Any) -> Cost:
    """Forward and backward."""
    return Cost(_moved(arguments, result), 3 * ANCHOR_OPERATIONS * arguments[3].numel())


def classify(arguments: tuple[Any, ...], result: Any) -> Cost:
    features, weights, _ = arguments
    classes, cells = weights[0].shape[0], result[0].numel()
    products = sum(2 * classes * x.numel() for x in features)
    return Cost(_moved(arguments, result), LOGIT_OPERATIONS * classes * cells, products)


def classification_loss(arguments: tuple[Any, ...], result: Any) -> Cost:
    """Forward, and backward to features and weights, of the cells that have a label."""
    features, weights, _, labels = arguments[:4]
    classes = weights[0].shape[0]
    labelled = [int((part >= 0).sum()) for part in labels.split([x.shape[2] for x in features], dim=1)]
    products = sum(3 * 2 * classes * cells * x.shape[1] for cells, x in zip(labelled, features, strict=True))
    return Cost(_moved(arguments, result), 2 * LOGIT_OPERATIONS * classes * sum(labelled), products)


def decode_classified(arguments: tuple[Any, ...], result: Any) -> Cost:
    return Cost(_moved(arguments, result), ANCHOR_OPERATIONS * result[1].numel())


def pick(arguments: tuple[Any, ...], result: Any) -> Cost:
    """Only rows that are picked need be read."""
    segments, scores, labels, index = arguments
    row = 2 * segments.element_size() + scores.element_size() + labels.element_size()
    return Cost(tensor_bytes(index) + int((index >= 0).sum()) * row + tensor_bytes(result))


COSTS: dict[str, Callable[[tuple[Any, ...], Any], Cost]] = {
    "assign": match,
    "classification_loss": classification_loss,
    "classify": classify,
    "decode": decode,
    "decode_classified": decode_classified,
    "match": match,
    "nms": nms,
    "pairwise_tiou": pairwise_tiou,
    "pick": pick,
    "proposal_loss": proposal_loss,
    "resample": resample,
    "resample backward": resample_backward,
    "stretch": stretch,
    "stretch backward": stretch_backward,
    "soft_nms": soft_nms,
}


def convolution_operations(model: ModelConfig, steps: int) -> tuple[int, ...]:
    """Operations of each convolution of the backbone on one sequence of `steps` steps; 19.7e9 in all at 512."""
    channels = (model.feature_dimension, *stem_channels(model), *scale_channels(model))
    lengths = (steps, steps, *scale_cells(steps))
    return tuple(
        2 * KERNEL * before * after * length
        for before, after, length in zip(channels, channels[1:], lengths, strict=False)
    )


def localize(model: ModelConfig, videos: int, arguments: tuple[Any, ...], result: Any, weight_bytes: int) -> Cost:
    """Of a batch from feature rows to detections; of the matrix products only the backbone's are counted."""
    operations = videos * sum(convolution_operations(model, model.steps))
    return Cost(_moved(arguments, result) + weight_bytes, 0, operations)


def training_iteration(config: Config, videos: int, arguments: tuple[Any, ...], weight_bytes: int) -> Cost:
    """Of one iteration of Algorithm 1 with a batch of untrimmed videos and one of moments, run `aher`.

    Forward once: untrimmed videos, synthetic videos, foreground segments and moments, generators. Backward once for
    each of these: a convolution's gradients by weight and by input cost what it does, that by input is not needed
    where nothing before it learns. Synthetic videos go back twice, for the generators, down to the input and without
    weights, and for the network. Weights are read and written by each pass and by the optimizer, six times in all.
    """
    model = config.model
    whole, part = convolution_operations(model, model.steps), convolution_operations(model, model.moment_steps)
    hidden = max(model.minimum_channels, model.feature_dimension // 2)
    first = 2 * KERNEL * model.feature_dimension * hidden * model.moment_steps
    second = 2 * KERNEL * model.feature_dimension * hidden * ((model.moment_steps + 1) // 2)
    untrimmed = 3 * sum(whole) - whole[0]
    segments = 2 * (3 * sum(part) - part[0])
    synthetic = 4 * sum(whole) - whole[0]
    generators = 2 * (3 * (first + second) - first)
    operations = videos * (untrimmed + segments + synthetic + generators)
    return Cost(tensor_bytes(arguments) + 6 * weight_bytes, 0, operations)


def parameter_bytes(module: torch.nn.Module) -> int:
    """Bytes of all parameters of a network."""
    return tensor_bytes(list(module.parameters()))
