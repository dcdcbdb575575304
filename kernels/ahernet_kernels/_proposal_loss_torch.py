"""The CPU form of `proposal_loss`: offsets are looked at only where an anchor is foreground, a few per cent of them."""

import torch
from torch import Tensor
from torch.library import custom_op

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
    gradient = torch.zeros(3 * videos * count)
    video, anchor = (kind == FOREGROUND).nonzero(as_tuple=True)
    # Where the offsets of the foreground anchors are among all offsets, packed.
    lengths = torch.tensor([scale.shape[2] for scale in offsets])
    ends = ratios * lengths.cumsum(0)
    scale_of = torch.bucketize(anchor, ends, right=True)
    length, first = lengths[scale_of], (ends - ratios * lengths)[scale_of]
    ratio, cell = (anchor - first) % ratios, (anchor - first) // ratios
    of_centre = 2 * (videos * first + (video * ratios + ratio) * length) + cell
    packed = torch.cat([scale.flatten() for scale in offsets])
    centre_offset, width_offset = packed[of_centre].float(), packed[of_centre + length].float()
    anchor_centre, anchor_width = anchors.float()[anchor].unbind(-1)
    start, end = targets[video, anchor].unbind(-1)
    centre_step = centre_scale * anchor_width
    width = anchor_width * (width_scale * width_offset).exp()
    centre_distance, centre_slope = _smooth_l1(anchor_centre + centre_step * centre_offset - (start + end) / 2)
    width_distance, width_slope = _smooth_l1(width - (end - start))
    gradient[of_centre] = centre_slope * centre_step
    gradient[of_centre + length] = width_slope * width * width_scale
    divisor = torch.tensor(float(max(1, len(anchor))))

    predicted = torch.cat([scale.flatten() for scale in overlaps]).float().sigmoid()
    parts = tiou.split([ratios * scale.shape[2] for scale in offsets], dim=1)
    error = predicted - torch.cat([part.unflatten(1, (-1, ratios)).mT.flatten() for part in parts])
    torch.mul(2 * error * predicted, 1 - predicted, out=gradient[2 * videos * count :])
    mean_error = error.square().sum() / max(1, videos * count)
    return (centre_distance + width_distance).sum() / divisor, mean_error, gradient, divisor


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


def proposal_loss_backward_torch(
    gradient: Tensor, offset_gradient: Tensor, overlap_gradient: Tensor, divisor: Tensor, dtype: torch.dtype
) -> Tensor:
    """Packed gradients of the sums times those of the losses; what is 0 stays 0, whatever it is multiplied by."""
    anchors = gradient.shape[0] // 3
    of_offsets, of_overlaps = gradient.split([2 * anchors, anchors])
    scaled = torch.cat([of_offsets * (offset_gradient / divisor), of_overlaps * (overlap_gradient / max(1, anchors))])
    return torch.where(gradient == 0, 0.0, scaled).to(dtype)


def _smooth_l1(x: Tensor) -> tuple[Tensor, Tensor]:
    distance = x.abs()
    return torch.where(distance < 1, 0.5 * x * x, distance - 0.5), x.clamp(-1, 1)
