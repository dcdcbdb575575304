"""One line of what the GPU suite measures: the arguments, our call, and peers that give the same result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bench import cases
from bench.costs import COSTS, Cost

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
    soft_candidates: tuple[int, ...] = (3060, 12240)
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
    compared: Call | None = None
    """What is checked instead of the result of the call, where that says too little; takes the same arguments."""
    reference: Call | None = None
    """What is checked against; None: the CPU path of the op."""
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
