"""The inference step as one CUDA graph, captured for a shape of batch and replayed for every batch of that shape.

Batches are ragged, so they are padded: to a number of videos, and to the room for rows that was captured. Two sets of
buffers take turns: while one batch is computed, the next is copied to the GPU and the one before is used.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ahernet.inference.step import Found, Step

K = TypeVar("K")

TURNS = 2
WARM_UPS = 3
# Room for rows grows by this factor at least, so that few batches are the largest so far by that much.
GROWTH = 1.25


class Inputs:
    """Static memory that batches of at most `videos` videos are copied into.

    Missing videos are given a row each, of whatever is in the buffer: a step wants at least one.
    """

    def __init__(self, videos: int, rows: int, like: Tensor, device: torch.device) -> None:
        self.videos = videos
        self.rows = torch.zeros((max(rows, videos), like.shape[1]), dtype=like.dtype, device=device)
        self.offsets = torch.arange(videos + 1, device=device)

    def hold(self, rows: Tensor, offsets: Tensor) -> bool:
        """Whether there is room for a batch, of rows of this type."""
        return rows.dtype == self.rows.dtype and len(rows) + self.videos - (len(offsets) - 1) <= len(self.rows)

    def fill(self, rows: Tensor, offsets: Tensor) -> None:
        """Copy a batch in, from pinned memory without waiting; `offsets` as `padded` returns them."""
        self.rows[: len(rows)].copy_(rows, non_blocking=True)
        self.offsets.copy_(offsets, non_blocking=True)


def padded(offsets: Tensor, videos: int) -> Tensor:
    """Offsets of `videos` videos, those that are missing with a row each behind the others."""
    missing = torch.arange(1, videos - (len(offsets) - 1) + 1)
    return torch.cat([offsets, offsets[-1] + missing])


def room(rows: int, videos: int) -> int:
    """Rows to reserve when a batch of `rows` rows is the largest so far."""
    return int(GROWTH * rows) + videos


class _Turn:
    """A graph with the buffers that it reads and writes, and what tells when they are free again."""

    def __init__(self, step: Step, inputs: Inputs, pool: Any, stream: torch.cuda.Stream) -> None:
        self.inputs = inputs
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step(inputs.rows, inputs.offsets)
        self.graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its own stream the current one. Only this thread is held to what capture forbids:
        # another one reads ahead into pinned memory.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            self.found = step(inputs.rows, inputs.offsets)
        self.fetched = Found(*(torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in self.found))
        self.copied, self.computed, self.done = (_event() for _ in range(3))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Pending:
    """A batch on its way."""

    turn: _Turn
    videos: int

    def result(self) -> Found:
        """Wait for the batch; its detections on the CPU, without padding videos. To be asked for once."""
        self.turn.done.synchronize()
        return Found(*(x[: self.videos].clone() for x in self.turn.fetched))


class CapturedStep:
    """Runs a step on a GPU as a graph, on batches of at most `videos` videos.

    Args:
        step: on the GPU.
        videos: of a full batch; smaller batches take as long.
        device: of the step.
    """

    def __init__(self, step: Step, videos: int, device: torch.device) -> None:
        self.step, self.videos, self.device = step, videos, device
        self.captures = 0
        self._turns: deque[_Turn] = deque()
        self._copies, self._captures = _stream(device), _stream(device)

    def localize(self, batches: Iterable[tuple[K, tuple[Tensor, Tensor]]]) -> Iterator[tuple[K, Found]]:
        """Give the detections of batches in order; each is handed in before the result of the one before is waited for.

        Args:
            batches: key, and (R, D) rows and (B + 1,) offsets of a batch, as `Step` takes them, in pinned memory.
        """
        waiting: deque[tuple[K, Pending]] = deque()
        for key, (rows, offsets) in batches:
            waiting.append((key, self.submit(rows, offsets)))
            if len(waiting) == TURNS:
                earlier, pending = waiting.popleft()
                yield earlier, pending.result()
        for key, pending in waiting:
            yield key, pending.result()

    @torch.inference_mode()
    def submit(self, rows: Tensor, offsets: Tensor) -> Pending:
        """Start on a batch in pinned memory and do not wait, unless it has more rows than any before.

        The result has to be taken before `TURNS` more batches are submitted.
        """
        with torch.cuda.device(self.device):
            if not self._turns or not self._turns[0].inputs.hold(rows, offsets):
                self._capture(rows)
            turn = self._turns[0]
            self._turns.rotate(-1)
            padding = padded(offsets, self.videos).pin_memory()
            compute = torch.cuda.current_stream()
            with torch.cuda.stream(self._copies):
                self._copies.wait_event(turn.computed)
                turn.inputs.fill(rows, padding)
                turn.copied.record()
            compute.wait_event(turn.copied)
            turn.graph.replay()
            turn.computed.record()
            for here, there in zip(turn.fetched, turn.found, strict=True):
                here.copy_(there, non_blocking=True)
            turn.done.record()
        return Pending(turn, len(offsets) - 1)

    def _capture(self, rows: Tensor) -> None:
        """Capture with room for more rows than before."""
        self._turns.clear()
        torch.cuda.synchronize()
        self.captures += 1
        pool = torch.cuda.graph_pool_handle()  # of both graphs, which never run at the same time
        for _ in range(TURNS):
            inputs = Inputs(self.videos, room(len(rows), self.videos), rows, self.device)
            self._turns.append(_Turn(self.step, inputs, pool, self._captures))
        torch.cuda.synchronize()
