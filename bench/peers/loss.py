"""Proposal losses as model code has them: outputs permuted, concatenated and masked, gradients by autograd."""

from torch import Tensor
from torch.nn import functional as F

from bench.peers.decoding import per_anchor


def proposal_loss(
    offsets: list[Tensor], overlaps: list[Tensor], anchors: Tensor, kind: Tensor, targets: Tensor, tiou: Tensor
) -> tuple[Tensor, Tensor]:
    """Masks over all anchors; nothing waits for the device."""
    foreground = kind == 1
    dc, dw = per_anchor(offsets, 2).where(foreground[..., None], 0.0).unbind(-1)
    centre, width = anchors[:, 0] + anchors[:, 1] * dc, anchors[:, 1] * dw.exp()
    start, end = targets.unbind(-1)
    distance = F.smooth_l1_loss(centre, (start + end) / 2, reduction="none")
    distance = distance + F.smooth_l1_loss(width, end - start, reduction="none")
    offset = distance.where(foreground, 0.0).sum() / foreground.sum().clamp(min=1)
    return offset, F.mse_loss(per_anchor(overlaps, 1)[..., 0].sigmoid(), tiou)


def proposal_loss_selected(
    offsets: list[Tensor], overlaps: list[Tensor], anchors: Tensor, kind: Tensor, targets: Tensor, tiou: Tensor
) -> tuple[Tensor, Tensor]:
    """Foreground anchors selected by index, of which there must be some; on a GPU the host waits for their number."""
    video, anchor = (kind == 1).nonzero(as_tuple=True)
    dc, dw = per_anchor(offsets, 2)[video, anchor].unbind(-1)
    default_centre, default_width = anchors[anchor].unbind(-1)
    start, end = targets[video, anchor].unbind(-1)
    offset = F.smooth_l1_loss(default_centre + default_width * dc, (start + end) / 2)
    offset = offset + F.smooth_l1_loss(default_width * dw.exp(), end - start)
    return offset, F.mse_loss(per_anchor(overlaps, 1)[..., 0].sigmoid(), tiou)
