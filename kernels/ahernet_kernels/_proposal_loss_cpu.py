"""The CPU form of `proposal_loss`: offsets are looked at only where an anchor is foreground, a few per cent of them."""

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from ahernet_kernels._arguments import is_channels_last
from ahernet_kernels._tiou import Floats
from ahernet_kernels.assign import FOREGROUND


@custom_op("ahernet_kernels::proposal_loss_cpu", mutates_args=(), device_types="cpu")
def proposal_loss_cpu(
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    kind: Tensor,
    targets: Tensor,
    tiou: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both losses, the packed gradients of their sums, and the divisor of the first, as the kernels return them."""
    (videos, count), ratios = kind.shape, overlaps[0].shape[1]
    gradient = np.zeros(3 * videos * count, np.float32)
    video, anchor = np.divmod(np.flatnonzero(kind.numpy() == FOREGROUND), max(1, count))
    # Where the offsets of the foreground anchors are among all offsets, packed.
    lengths = np.array([scale.shape[2] for scale in offsets])
    ends = ratios * lengths.cumsum()
    scale_of = ends.searchsorted(anchor, side="right")
    length, first = lengths[scale_of], (ends - ratios * lengths)[scale_of]
    cell, ratio = np.divmod(anchor - first, ratios)
    channels_last = is_channels_last([*offsets, *overlaps])
    if channels_last:
        of_centre = 2 * videos * first + 2 * ((video * length + cell) * ratios + ratio)
        places = np.stack([of_centre, of_centre + 1])
    else:
        of_centre = 2 * videos * first + 2 * (video * ratios + ratio) * length + cell
        places = np.stack([of_centre, of_centre + length])
    centre_offset, width_offset = _packed(offsets, channels_last)[torch.from_numpy(places)].float().numpy()
    anchor_centre, anchor_width = anchors.float().numpy()[anchor].T
    start, end = targets.numpy()[video, anchor].T
    with np.errstate(over="ignore", invalid="ignore"):
        centre_step = np.float32(centre_scale) * anchor_width
        width = anchor_width * np.exp(np.float32(width_scale) * width_offset)
        distance = np.stack([anchor_centre + centre_step * centre_offset - (start + end) / 2, width - (end - start)])
        slope = distance.clip(-1, 1)
        gradient[places] = slope * np.stack([centre_step, width * np.float32(width_scale)])
        offset = torch.from_numpy(_smooth_l1(distance)).sum()
    divisor = torch.tensor(max(1, len(anchor)), dtype=torch.float32)

    predicted = _packed(overlaps, channels_last).float().sigmoid()
    by_ratio = tiou.reshape(videos, count // ratios, ratios).transpose(1, 2)
    error = predicted - _packed(list(by_ratio.split(lengths.tolist(), dim=2)), channels_last)
    torch.mul(2 * error * predicted, 1 - predicted, out=torch.from_numpy(gradient)[2 * videos * count :])
    mean_error = error.square().sum() / max(1, videos * count)
    return offset / divisor, mean_error, torch.from_numpy(gradient), divisor


@proposal_loss_cpu.register_fake
def _(
    offsets: list[Tensor],
    overlaps: list[Tensor],
    anchors: Tensor,
    kind: Tensor,
    targets: Tensor,
    tiou: Tensor,
    centre_scale: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    offset, overlap, divisor = (tiou.new_empty((), dtype=torch.float32) for _ in range(3))
    return offset, overlap, tiou.new_empty((3 * kind.shape[0] * kind.shape[1],), dtype=torch.float32), divisor


@custom_op("ahernet_kernels::proposal_loss_backward_cpu", mutates_args=(), device_types="cpu")
def proposal_loss_backward_cpu(
    gradient: Tensor, offset_gradient: Tensor, overlap_gradient: Tensor, divisor: Tensor, dtype: torch.dtype
) -> Tensor:
    """Packed gradients of the sums times those of the losses; what is 0 stays 0, whatever it is multiplied by."""
    anchors = gradient.shape[0] // 3
    output = torch.empty_like(gradient, dtype=dtype)
    factors = offset_gradient / divisor, overlap_gradient / max(1, anchors)
    for part, factor in zip((slice(2 * anchors), slice(2 * anchors, None)), factors, strict=True):
        torch.mul(gradient[part], factor, out=output[part])
        if not factor.isfinite():
            output[part][gradient[part] == 0] = 0
    return output


@proposal_loss_backward_cpu.register_fake
def _(
    gradient: Tensor, offset_gradient: Tensor, overlap_gradient: Tensor, divisor: Tensor, dtype: torch.dtype
) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


def _packed(per_scale: list[Tensor], channels_last: bool) -> Tensor:
    return torch.cat([(scale.transpose(1, 2) if channels_last else scale).flatten() for scale in per_scale])


def _smooth_l1(distance: Floats) -> Floats:
    size = np.abs(distance)
    return np.where(size < 1, np.float32(0.5) * size * size, size - np.float32(0.5))
