"""A further class for a trained network, from moments of it alone (not in the paper).

Backbone, heads and weight transfer are the same for every class, so a new class needs no more than its rows of the
segment-level weights W_regv: these are fitted here, with all else fixed, and the transfer turns them into
anchor-level weights like any others. No untrimmed video is needed, and no old moment: what the new class has to
be told apart from are the statistics that training keeps of the features of every class it has seen.
"""

from copy import deepcopy
from typing import NamedTuple

import ahernet_kernels as kernels
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahernet.checkpoint import Checkpoint
from ahernet.data.archive import FeatureArchive
from ahernet.data.moment_labels import CONTROL_CHARACTER
from ahernet.device import choose_device, launches_on
from ahernet.errors import UserError
from ahernet.inference.step import is_finite
from ahernet.model.anchors import scale_channels
from ahernet.model.heads import ClassWeights
from ahernet.model.localizer import Localizer
from ahernet.model.segment_classifier import FeatureStatistics, SegmentClassifier, pool_segments
from ahernet.prefetch import read_ahead
from ahernet.progress import ProgressBar

# Segments drawn for each old class. Means alone do as well where classes are far apart; where they overlap the
# new class then takes more of the old ones' segments (29 % instead of 26 % in a noisy rendered world).
SAMPLES = 16
# Segments that weigh as much as the assumption that the new rows look like the old ones. Fewer leave a class of
# many moments with low probabilities, more make a class of few moments too sure of what it has seen.
PRIOR = 300
FIT_STEPS = 100  # of L-BFGS; most scales converge earlier


def add_class(
    checkpoint: Checkpoint,
    moments: FeatureArchive,
    label: str,
    *,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Checkpoint:
    """Return the checkpoint with one more class, learnt from moments; the network that is there does not change.

    Every parameter and statistic of before is kept bit for bit, and so are the logits of the old classes:
    localized among themselves (`classes` of `localize`) they give the same detections, and beside the new class
    their probabilities lose what the softmax gives to it. The statistics of the new class are kept as well, so
    that classes can be added one after the other.

    Segments of the new class are told from others nearly as well as if training had seen it. Its anchors are not: the
    network learnt to classify those of its own classes only. So localize it with proposals that are classified by their
    segment (`inference.class_score` "segment", as the preset `tuned` has it).

    Args:
        checkpoint: of a run that learnt from moments (Algorithm 1, line 3), so that it has statistics.
        moments: features of moments of the new class, all of which are used; their features (M, d) are held in
            memory after pooling, some 30 kB a moment for a network of the paper's width.
        label: name of the new class.
        seed: of the segments that are drawn for the old classes.
        device: where the moments pass the network: "auto", "cpu", "cuda" or "cuda:<number>".
        progress: show a progress bar on standard error.

    Raises:
        UserError: the label is empty or taken, the moments have features of another dimension than the network
            expects or that are not finite, or the checkpoint has no statistics.
    """
    _check(checkpoint, moments, label)
    features = _moment_features(checkpoint, moments, device, progress)
    rows = _fit(checkpoint, features, seed)
    return Checkpoint(
        checkpoint.config,
        (*checkpoint.classes, label),
        (*checkpoint.moment_classes, label),
        _with_class(checkpoint.model, rows, features),
        checkpoint.source,
    )


def _check(checkpoint: Checkpoint, moments: FeatureArchive, label: str) -> None:
    if not label.strip():
        raise UserError("label: expected the name of the new class, got an empty one")
    if label != label.strip() or CONTROL_CHARACTER.search(label):
        raise UserError(f"label: {label!r:.80} begins or ends with a space or holds a control character, give another")
    if label in checkpoint.classes:
        raise UserError(f"label: the network in {checkpoint.source} has a class {label!r} already, give another name")
    wanted = checkpoint.config.model.feature_dimension
    if moments.dimension != wanted:
        raise UserError(
            f"{moments.path}: features have {moments.dimension} values a row, "
            f"the network in {checkpoint.source} expects {wanted}"
        )
    if not (checkpoint.model.segment_classifier.statistics.observed > 0).any():
        raise UserError(
            f"{checkpoint.source}: its training classified no segments, so that there is nothing to tell a new class "
            f"from; expected a network trained with moments, for instance with --run aher"
        )


@torch.no_grad()
def _moment_features(checkpoint: Checkpoint, moments: FeatureArchive, device: str, progress: bool) -> Tensor:
    """Return what the segment classifier sees of all moments, all scales side by side: (M, d) float32 on the CPU."""
    where, size = choose_device(device), checkpoint.config.inference.batch_size
    backbone = deepcopy(checkpoint.model.backbone).to(where)

    def read(first: int) -> tuple[Tensor, Tensor]:
        rows, offsets = moments.read(range(first, min(first + size, len(moments))))
        return torch.from_numpy(rows), torch.from_numpy(offsets)

    parts = []
    with (
        launches_on(where),
        read_ahead(read, range(0, len(moments), size)) as batches,
        ProgressBar(total=len(moments), desc="add class", unit="moments", smoothing=0, disable=not progress) as bar,
    ):
        for first, (rows, offsets) in batches:
            sequence = kernels.resample(rows.to(where), offsets.to(where), checkpoint.config.model.moment_steps)
            features = torch.cat(pool_segments(backbone(sequence)), dim=1)
            finite = is_finite(sequence) & features.isfinite().all(dim=1)
            broken = [moments.ids[first + k] for k, good in enumerate(finite.tolist()) if not good]
            if broken:
                raise UserError(f"{moments.path}: features that are not finite in {', '.join(map(repr, broken))}")
            parts.append(features.cpu())
            bar.update(len(features))
    return torch.cat(parts)


def _fit(checkpoint: Checkpoint, features: Tensor, seed: int) -> ClassWeights:
    """Return the rows of a class whose moments have the pooled features (M, d): weights (1, d_j) and biases (1,)."""
    classifier, transfer = (
        checkpoint.model.segment_classifier,
        deepcopy(checkpoint.model.transfer).double().requires_grad_(False),
    )
    statistics, channels = classifier.statistics, list(scale_channels(checkpoint.config.model))
    seen = statistics.observed > 0
    of_moments = torch.tensor([name in checkpoint.moment_classes for name in checkpoint.classes])
    # Classes are told apart from those of their own set only (C of eq. 4); the new one is compared with each set.
    sets = [rows for rows in ((seen & of_moments).nonzero()[:, 0], (seen & ~of_moments).nonzero()[:, 0]) if len(rows)]
    generator = torch.Generator().manual_seed(seed)
    weights, biases = [], []
    for weight, bias, mean, variance, new, *transfers in zip(
        *classifier.class_weights().detach(),
        *(torch.split(columns, channels, dim=1) for columns in (statistics.mean, statistics.variance, features)),
        transfer.weights,
        transfer.biases,
        strict=True,
    ):
        old = [
            _Set(weight[rows].double(), bias[rows].double(), _draw(mean[rows], variance[rows], generator))
            for rows in sets
        ]
        fitted_weight, fitted_bias = _fit_scale(old, new.double(), *transfers)
        weights.append(fitted_weight)
        biases.append(fitted_bias)
    return ClassWeights(weights, biases)


class _Set(NamedTuple):
    """Old classes at one scale, all float64: weight (K, d_j), bias (K,), and segments (S, d_j) drawn for them."""

    weight: Tensor
    bias: Tensor
    segments: Tensor


class _Rivals(NamedTuple):
    """Old segments (S, d_j), and how strongly the old classes claim these (S,) and the moments (M,).

    The claim to a segment is the logarithm of the summed exponentials of its logits.
    """

    segments: Tensor
    claims: Tensor
    claims_to_new: Tensor

    def loss(self, weight: Tensor, bias: Tensor, new: Tensor) -> Tensor:
        """Return L_reg (eq. 4) of moments (M, d_j) and old segments, but for what no row (1, d_j) can change.

        Both halves weigh the same. With the old rows fixed, a logit z of the new one and a claim e, the softmax
        leaves log(1 + exp(e - z)) of a moment and log(1 + exp(z - e)) of an old segment.
        """
        missed = F.softplus(self.claims_to_new - F.linear(new, weight, bias)[:, 0])
        mistaken = F.softplus(F.linear(self.segments, weight, bias)[:, 0] - self.claims)
        return missed.mean() + mistaken.mean()


def _draw(mean: Tensor, variance: Tensor, generator: torch.Generator) -> Tensor:
    """Draw segments (SAMPLES K, d_j) of classes (K, d_j): Gaussian, and as little below 0 as the maps are (ReLU)."""
    noise = torch.randn((SAMPLES, *mean.shape), generator=generator, dtype=torch.float64)
    return (mean + variance.double().sqrt() * noise).clamp(min=0).flatten(0, 1)


def _fit_scale(
    old: list[_Set], new: Tensor, weight_transfer: nn.Module, bias_transfer: nn.Module
) -> tuple[Tensor, Tensor]:
    """Fit weight (1, d_j) and bias (1,) of the new class at one scale to moments (M, d_j) float64.

    The row has to tell segments apart as it is, and so does what the transfer makes of it: few classes teach a
    transfer little of other rows than theirs, and what it makes of a row fitted for itself alone may be no use.
    The prior: entries scatter around the mean of the old rows as widely as these are large.
    """

    def transferred(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight_transfer(weight), bias_transfer(bias[:, None])[:, 0]

    def as_it_is(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight, bias

    weights, biases = torch.cat([one.weight for one in old]), torch.cat([one.bias for one in old])
    weight_shift = weights.new_zeros((1, weights.shape[1]), requires_grad=True)
    bias_shift = biases.new_zeros(1, requires_grad=True)
    with torch.no_grad():
        rivals = [
            (level, [_rivals(*level(one.weight, one.bias), one.segments, new) for one in old])
            for level in (as_it_is, transferred)
        ]

    def rows() -> tuple[Tensor, Tensor]:
        return (
            weights.mean(dim=0) + weights.square().mean().sqrt() * weight_shift,
            biases.mean() + biases.square().mean().sqrt() * bias_shift,
        )

    def loss() -> Tensor:
        total = (weight_shift.square().sum() + bias_shift.square().sum()) / (2 * PRIOR)
        for level, of_sets in rivals:
            weight, bias = level(*rows())
            total = total + torch.stack([one.loss(weight, bias, new) for one in of_sets]).mean()
        weight_shift.grad, bias_shift.grad = torch.autograd.grad(total, [weight_shift, bias_shift])
        return total

    torch.optim.LBFGS([weight_shift, bias_shift], max_iter=FIT_STEPS, line_search_fn="strong_wolfe").step(loss)  # type: ignore[no-untyped-call]
    weight, bias = rows()
    return weight.detach().float(), bias.detach().float()


def _rivals(weight: Tensor, bias: Tensor, segments: Tensor, new: Tensor) -> _Rivals:
    claims, claims_to_new = (F.linear(features, weight, bias).logsumexp(dim=1) for features in (segments, new))
    return _Rivals(segments, claims, claims_to_new)


def _with_class(model: Localizer, rows: ClassWeights, features: Tensor) -> Localizer:
    """Return a copy of the network with one more class, of the given rows and moments (M, d)."""
    statistics = FeatureStatistics(features.shape[1], 1)
    statistics.observe(features, torch.zeros(len(features), dtype=torch.int64))
    before = model.segment_classifier.state_dict()
    added = {
        **{f"weights.{j}": weight for j, weight in enumerate(rows.weights)},
        **{f"biases.{j}": bias for j, bias in enumerate(rows.biases)},
        **{f"statistics.{name}": tensor for name, tensor in statistics.state_dict().items()},
    }
    with torch.device("meta"):  # neither memory nor random numbers for what is replaced at once
        classifier = SegmentClassifier(model.config, len(before["biases.0"]) + 1)
    classifier.load_state_dict({name: torch.cat([old, added[name]]) for name, old in before.items()}, assign=True)
    grown = deepcopy(model)
    grown.segment_classifier = classifier
    return grown.eval()
