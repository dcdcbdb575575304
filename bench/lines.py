"""What the GPU suite measures: one line an op and case, in groups that can be run alone.

A line has the arguments, our call, and peers that take the same arguments and give the same result. Sweeps are lines
that name the axis they lie on.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ahernet_kernels as kernels
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bench import cases
from bench.costs import COSTS, Cost
from bench.peers import assignment, classification, decoding, loss, pairs, resampling, suppression
from bench.peers.localization import rows_by_gather

CANDIDATE_CLASSES = 200
CHECKED_VIDEOS = 64
CLOSE = 1e-4  # where sums and exponentials are rounded differently

Call = Callable[..., Any]


@dataclass(frozen=True)
class Sizes:
    """How large the lines are; the smallest possible ones test the suite without a GPU."""

    batch: int = 1024
    small_batch: int = 64
    classes: int = 600
    most_ground_truths: int = 25
    outputs: int = 100
    many: tuple[int, ...] = (100_000, 1_000_000)
    stairs: int = 20_000
    resampled_videos: int = 256
    mean_rows: int = 440
    dimension: int = 2048
    steps: int = 512
    pairs: int = 4096
    localized: tuple[int, ...] = (256, 64)
    trained: tuple[int, ...] = (16, 256)
    training_precision: str = "bfloat16"
    width: float = 1.0
    sweep_videos: tuple[int, ...] = (1, 8, 256)
    sweep_candidates: tuple[int, ...] = (128, 512, 1024)
    sweep_ground_truths: tuple[int, ...] = (1, 5, 100)
    sweep_classes: tuple[int, ...] = (20, 200, 2000)
    many_classes: int = 5000


def whole(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments


def first_videos(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first videos of every batched tensor of rank 2 or more; anchors (A, 2) have no videos."""

    def cut(leaf: Any) -> Any:
        is_batched = isinstance(leaf, Tensor) and leaf.dim() > 1 and leaf.shape != (cases.ANCHORS, 2)
        return leaf[:CHECKED_VIDEOS] if is_batched else leaf

    return tree_map(cut, arguments)


@dataclass(frozen=True)
class Line:
    """One op on one set of arguments."""

    op: str
    case: str
    arguments: tuple[Any, ...]
    call: Call
    checked: Callable[[tuple[Any, ...]], tuple[Any, ...]] = whole
    """Arguments of the part that the reference checks: all of them, or those of the first videos."""
    tolerance: float = 0.0
    """Absolute and relative; 0 where every bit must agree."""
    peers: dict[str, Call] = field(default_factory=dict)
    uncapturable: dict[str, Call] = field(default_factory=dict)
    """Peers that wait for the device: timed as eager calls only."""
    reference: Call | None = None
    """What the result is checked against on the same device; None: the CPU path of the op."""
    required: float = 1.0
    """The share of elements that must agree with the reference."""
    parts: dict[str, Call] = field(default_factory=dict)
    """Parts of the call, without arguments: timed like it, compared with nothing."""
    cost: Callable[[Any], Cost] | None = None
    """From the result; None: what `COSTS` says of the op."""
    capture: bool = True
    axis: str = ""
    """The name of what a sweep varies."""
    value: float = 0

    def cost_of(self, result: Any) -> Cost:
        """Bytes and operations of one call."""
        return self.cost(result) if self.cost else COSTS[self.op](self.arguments, result)


def compiled(call: Call, device: str) -> dict[str, Call]:
    """The peer that `torch.compile` makes of one in eager torch, for one line an op: it takes seconds to compile.

    None without a GPU, where it takes longer and says little.
    """
    return {"torch.compile": torch.compile(call, fullgraph=True, dynamic=False)} if device == "cuda" else {}


def decode_lines(device: str, sizes: Sizes, channels_last: bool = False) -> Iterator[Line]:
    anchors = cases.anchors().to(device)
    for videos in (sizes.batch, sizes.small_batch):
        peers = {"eager torch": decoding.decode}
        if videos == sizes.small_batch:
            peers |= compiled(decoding.decode, device)
        outputs = cases.network_outputs(videos, sizes.classes, torch.bfloat16, device)
        if channels_last:
            outputs = tree_map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), outputs)
        case = f"B={videos} C={sizes.classes} bf16{' channels last' if channels_last else ''}"
        yield Line("decode", case, (*outputs, anchors), kernels.decode, first_videos, CLOSE, peers)


def decode_sweep(device: str, sizes: Sizes) -> Iterator[Line]:
    anchors, peers = cases.anchors().to(device), {"eager torch": decoding.decode}
    points = [
        *(("classes", classes, sizes.small_batch, classes, torch.bfloat16) for classes in sizes.sweep_classes),
        *(("videos", videos, videos, sizes.classes, torch.bfloat16) for videos in sizes.sweep_videos),
        *(("bits", 8 * t.itemsize, sizes.batch, sizes.classes, t) for t in (torch.float16, torch.float32)),
    ]
    for axis, value, videos, classes, dtype in points:
        arguments = (*cases.network_outputs(videos, classes, dtype, device), anchors)
        name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
        case = f"sweep of {axis}, B={videos} C={classes} {name}"
        yield Line("decode", case, arguments, kernels.decode, first_videos, CLOSE, peers, axis=axis, value=value)


def truths(device: str, videos: int, most: int) -> tuple[Tensor, ...]:
    """Arguments of `assign`."""
    return tuple(part.to(device) for part in (cases.anchors(), *cases.ground_truths(videos, most)))


def assign_broadcast(
    anchors: Tensor, segments: Tensor, labels: Tensor, offsets: Tensor, most: int
) -> tuple[Tensor, ...]:
    matched = assignment.match_broadcast(anchors, segments, offsets, most)
    return assignment.assigned(anchors, segments, labels, matched)


def assign_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    most = sizes.most_ground_truths
    everything = truths(device, sizes.batch, most)
    case = f"B={sizes.batch} G<={most}"

    def broadcast(*arguments: Tensor) -> tuple[Tensor, ...]:
        return assign_broadcast(*arguments, most=most)

    peers = {"torch broadcast": broadcast, **compiled(broadcast, device)}
    yield Line("assign", case, everything, kernels.assign, peers=peers)
    yield Line("assign", f"{case} forced", everything, functools.partial(kernels.assign, force_match=True))
    anchors, gt_segments, _, gt_offsets = everything
    peers = {"torch broadcast": functools.partial(assignment.match_broadcast, most=most)}
    yield Line("match", case, (anchors, gt_segments, gt_offsets), kernels.match, peers=peers)


def assign_sweep(device: str, sizes: Sizes) -> Iterator[Line]:
    points = [
        *(("ground truths", most, sizes.small_batch, most) for most in sizes.sweep_ground_truths),
        *(("videos", videos, videos, sizes.most_ground_truths) for videos in sizes.sweep_videos),
    ]
    for axis, value, videos, most in points:
        peers = {"torch broadcast": functools.partial(assign_broadcast, most=most)}
        case = f"sweep of {axis}, B={videos} G<={most}"
        arguments = truths(device, videos, most)
        yield Line("assign", case, arguments, kernels.assign, peers=peers, axis=axis, value=value)


def scored(device: str, videos: int, count: int) -> tuple[Tensor, ...]:
    """Arguments of `nms`."""
    return tuple(part.to(device) for part in cases.candidates(videos, count, CANDIDATE_CLASSES))


def nms_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    count, outputs = cases.ANCHORS, sizes.outputs
    for videos in (sizes.batch, sizes.small_batch):
        arguments = scored(device, videos, count)
        for threshold, most in ((0.9, outputs), (0.9, count), (0.5, outputs)):
            settings = {"tiou_threshold": threshold, "max_output": most}
            case = f"B={videos} N={count} tiou {threshold} best {most}"
            uncapturable = {}
            if device == "cuda" and threshold == 0.9 and most == outputs and has_torchvision():
                uncapturable["torchvision, video by video"] = functools.partial(torchvision_nms, **settings)
            call = functools.partial(kernels.nms, **settings)
            yield Line("nms", case, arguments, call, uncapturable=uncapturable)


def nms_sweep(device: str, sizes: Sizes) -> Iterator[Line]:
    points = [
        *(("candidates", count, sizes.small_batch, count) for count in sizes.sweep_candidates),
        *(("videos", videos, videos, cases.ANCHORS) for videos in sizes.sweep_videos),
    ]
    for axis, value, videos, count in points:
        call = functools.partial(kernels.nms, tiou_threshold=0.9, max_output=sizes.outputs)
        case = f"sweep of {axis}, B={videos} N={count} best {sizes.outputs}"
        yield Line("nms", case, scored(device, videos, count), call, axis=axis, value=value)


def long_nms_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    """One long video, the best of it and all of it."""
    for count in sizes.many:
        arguments = scored(device, 1, count)
        for most in (sizes.outputs, count):
            call = functools.partial(kernels.nms, tiou_threshold=0.9, max_output=most)
            yield Line("nms", f"one video N={count} tiou 0.9 best {most}", arguments, call, axis="many", value=count)
    call = functools.partial(kernels.nms, tiou_threshold=0.9, max_output=sizes.stairs)
    yield Line("nms", f"staircase N={sizes.stairs} tiou 0.9", staircase(device, sizes.stairs), call)


def staircase(device: str, count: int) -> tuple[Tensor, Tensor, None]:
    """Arguments of `nms` where each candidate overlaps its neighbours alone: decided one after the other."""
    start = torch.arange(count, device=device) * 0.04
    scores = torch.linspace(1, 0.5, count, device=device)
    return torch.stack([start, start + 1], dim=-1)[None], scores[None], None


def soft_nms_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    for videos in (sizes.batch, sizes.small_batch):
        arguments = scored(device, videos, cases.ANCHORS)
        call = functools.partial(kernels.soft_nms, method="gaussian", parameter=0.5, max_output=sizes.outputs)
        peer = functools.partial(suppression.soft_torch, method="gaussian", parameter=0.5, most=sizes.outputs)
        peers = {"torch, a pass a pick": peer}
        case = f"B={videos} N={cases.ANCHORS} best {sizes.outputs}"
        # A near tie of two exponentials, rounded differently, may swap two picks.
        yield Line("soft_nms", case, arguments, call, first_videos, CLOSE, peers, required=0.995)


def pick_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    arguments = scored(device, sizes.batch, cases.ANCHORS)
    index, _ = kernels.nms(*arguments, tiou_threshold=0.9, max_output=sizes.outputs)
    case = f"B={sizes.batch} N={cases.ANCHORS} best {sizes.outputs}"
    yield Line("pick", case, (*arguments, index), kernels.pick, peers={"eager torch": rows_by_gather})


def loss_and_gradients(function: Call) -> Call:
    """The call of a loss and of its gradient, of sums over all anchors, so that errors of gradients can be seen."""

    def run(offsets: list[Tensor], overlaps: list[Tensor], *others: Tensor) -> tuple[Tensor, ...]:
        *constants, weight = others
        leaves = [[x.detach().requires_grad_() for x in per_scale] for per_scale in (offsets, overlaps)]
        losses = function(*leaves, *constants)
        return *losses, *torch.autograd.grad(losses, [*leaves[0], *leaves[1]], [weight, weight])

    return run


def proposal_loss_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    for videos in (sizes.batch, sizes.small_batch):
        peers = {"eager torch": loss.proposal_loss}
        if videos == sizes.small_batch:
            peers |= compiled(loss.proposal_loss, device)
        _, offsets, overlaps = cases.network_outputs(videos, 1, torch.bfloat16, device)
        anchors, *others = truths(device, videos, sizes.most_ground_truths)
        assigned = kernels.assign(anchors, *others, force_match=True)
        weight = torch.tensor(float(videos * cases.ANCHORS), device=device)
        yield Line(
            "proposal_loss",
            f"B={videos} bf16, forward and backward",
            (offsets, overlaps, anchors, assigned.kind, assigned.targets, assigned.tiou, weight),
            loss_and_gradients(kernels.proposal_loss),
            first_videos,
            tolerance=1e-2,  # two units in the last place of bf16 gradients
            peers={name: loss_and_gradients(peer) for name, peer in peers.items()},
            uncapturable={"eager torch, selected": loss_and_gradients(loss.proposal_loss_selected)},
        )


def classify_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    def first_features(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return [x[:2] for x in arguments[0]], *arguments[1:]

    for videos, classes in ((sizes.small_batch, n) for n in (*sizes.sweep_classes[1:], sizes.many_classes)):
        peers = {"eager torch": classification.classify}
        if classes == sizes.sweep_classes[-1]:
            peers |= compiled(classification.classify, device)
        arguments = cases.classifier(videos, classes, torch.bfloat16, device)
        case = f"B={videos} C={classes} bf16"
        # Of two logits that are nearly equal, sums in another order may make the other one the larger.
        yield Line(
            "classify", case, arguments, kernels.classify, first_features, 1e-2, peers, required=0.99, value=classes
        )


def resample_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    shape = (sizes.resampled_videos, sizes.mean_rows, sizes.dimension)
    checked_videos = min(8, sizes.resampled_videos)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        features, offsets = cases.sequences(*shape, dtype, device)
        rows = int(offsets[checked_videos])
        case = f"B={shape[0]} L~{shape[1]} D={shape[2]} {str(dtype).removeprefix('torch.')}"

        def first_sequences(arguments: tuple[Any, ...], rows: int = rows) -> tuple[Any, ...]:
            return arguments[0][:rows], arguments[1][: checked_videos + 1]

        call = functools.partial(kernels.resample, steps=sizes.steps)
        peer = functools.partial(resampling.torch_loop, steps=sizes.steps)
        uncapturable = {"torch, dense product a video": peer} if dtype == torch.float32 else {}
        arguments = (features, offsets)
        yield Line("resample", case, arguments, call, first_sequences, CLOSE, uncapturable=uncapturable)
    features, offsets = cases.sequences(*shape, torch.float16, device)
    checked = functools.partial(kernels.resample_checked, steps=sizes.steps, dtype=torch.bfloat16)
    case = f"B={shape[0]} L~{shape[1]} D={shape[2]} fp16 to bf16, checked"
    yield Line("resample", case, (features, offsets), checked, first_sequences, 1e-2)
    gradient = torch.randn((shape[0], sizes.steps, shape[2]), device=device)

    def backward(gradient: Tensor, offsets: Tensor, rows: int) -> Tensor:
        return torch.ops.ahernet_kernels.resample_backward(gradient, offsets, rows)

    def first_gradients(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments[0][:checked_videos], arguments[1][: checked_videos + 1], rows

    arguments = (gradient, offsets, features.shape[0])
    case = f"B={shape[0]} L~{shape[1]} D={shape[2]}"
    yield Line("resample backward", case, arguments, backward, first_gradients, CLOSE)


def pairwise_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    a, b = (cases.candidates(1, sizes.pairs, CANDIDATE_CLASSES, seed)[0][0].to(device) for seed in (0, 1))
    peers = {"torch broadcast": pairs.torch_broadcast}
    yield Line("pairwise_tiou", f"{sizes.pairs} x {sizes.pairs}", (a, b), kernels.pairwise_tiou, peers=peers)


def localize_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    from bench.localization import Localization  # imports stay with the group: it alone fails where one is absent

    for videos in sizes.localized:
        localization = Localization(device, videos, CANDIDATE_CLASSES, sizes.width, sizes.mean_rows)
        yield Line(
            "localize",
            f"B={videos} D={localization.model.feature_dimension} C={CANDIDATE_CLASSES} bf16",
            localization.arguments,
            localization.call,
            reference=localization.call,  # that every replay and call repeats bit for bit; tests compare with the CPU
            uncapturable={"eager torch, peers' forms": localization.peer},
            tolerance=CLOSE,
            parts=localization.parts(),
            cost=localization.cost,
        )


def training_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    from bench.training import Training

    for videos in sizes.trained:
        training = Training(device, videos, CANDIDATE_CLASSES, sizes.width, sizes.mean_rows, sizes.training_precision)
        peers = {"eager torch, video by video": training.peer}
        yield Line(
            "training",
            f"B={videos} D={training.config.model.feature_dimension} bf16",
            (training.batch,),
            training.call,
            reference=training.peer,
            # Features resampled in another order of sums are rounded to other bf16 values.
            tolerance=2e-2,
            uncapturable=peers,
            cost=training.cost,
            capture=False,
        )


GROUPS: dict[str, Callable[[str, Sizes], Iterator[Line]]] = {
    "decode": decode_lines,
    "decode_last": functools.partial(decode_lines, channels_last=True),
    "nms": nms_lines,
    "assign": assign_lines,
    "localize": localize_lines,
    "nms_large": long_nms_lines,
    "resample": resample_lines,
    "training": training_lines,
    "proposal_loss": proposal_loss_lines,
    "classify": classify_lines,
    "pick": pick_lines,
    "soft_nms": soft_nms_lines,
    "pairwise_tiou": pairwise_lines,
    "nms_sweep": nms_sweep,
    "decode_sweep": decode_sweep,
    "assign_sweep": assign_sweep,
}
"""In the order in which they are measured: the targets first, so that a run cut short has them."""


def has_torchvision() -> bool:
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, OSError, RuntimeError):  # absent, or built for another torch
        return False
    return True


def torchvision_nms(
    segments: Tensor, scores: Tensor, labels: Tensor, tiou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    """`torchvision.ops.batched_nms` on boxes of height 1, a video at a time, as it is used."""
    from torchvision.ops import batched_nms

    index = torch.full((len(scores), min(max_output, scores.shape[1])), -1, device=scores.device)
    boxes = torch.zeros((*scores.shape, 4), device=scores.device)
    boxes[..., 0], boxes[..., 2] = segments.unbind(-1)
    boxes[..., 3] = 1
    for video in range(len(scores)):
        kept = batched_nms(boxes[video], scores[video], labels[video], tiou_threshold)[:max_output]
        index[video, : len(kept)] = kept
    return index, (index >= 0).sum(dim=1)
