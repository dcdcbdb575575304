"""Iterations of training as CUDA graphs: thousands of launches, replayed as one.

A batch is ragged, so it is copied to static memory with room for more rows; what lies behind the last offset is never
read. A batch that needs more room than any before is captured anew.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import KeyPath, tree_leaves, tree_map_with_path

from ahernet.training.iteration_batches import IterationBatch, Phase
from ahernet.training.take_steps import take_steps

if TYPE_CHECKING:
    from ahernet.training.training_state import Run

# Iterations of a phase that run as they are before it is captured: kernels are compiled and libraries settle.
EAGER = 3
# Room for rows is a multiple of the largest batch so far by this, so that few batches are the largest by that much.
GROWTH = 1.5


class _Captured(NamedTuple):
    """A graph, the static batch that it reads, and the terms of losses that it writes with their names."""

    graph: torch.cuda.CUDAGraph
    batch: IterationBatch
    names: tuple[str, ...]
    terms: Tensor


class CapturedSteps:
    """Takes the steps of iterations on a GPU, the first of every phase as they are, the others by a replay.

    Both change the same parameters in the same way. One at a time may be in use for the same networks.
    """

    def __init__(self) -> None:
        self.captures = 0
        self._phase: Phase | None = None
        self._eager = 0
        self._captured: _Captured | None = None

    def take(self, run: "Run", batch: IterationBatch, phase: Phase) -> dict[str, Tensor]:
        """As `take_steps`."""
        if phase != self._phase:
            self._phase, self._eager, self._captured = phase, EAGER, None
        if self._eager > 0:
            self._eager -= 1
            return take_steps(run, [batch], phase)
        if self._captured is None or not copied(batch, self._captured.batch):
            room = with_room(batch, None if self._captured is None else self._captured.batch)
            self._captured = None  # its memory is free before more is taken
            self._captured = self._capture(run, room, phase)
        run.iteration += 1  # as `take_steps` does before parameters change
        self._captured.graph.replay()
        return dict(zip(self._captured.names, self._captured.terms.clone().unbind(), strict=True))

    def _capture(self, run: "Run", batch: IterationBatch, phase: Phase) -> _Captured:
        self.captures += 1
        graph, taken = torch.cuda.CUDAGraph(), run.iteration
        run.optimizer.zero_grad(set_to_none=True)  # gradients are to have memory of the graph
        try:
            # A capture that fails leaves its own stream the current one. Only this thread is held to what capture
            # forbids: another one reads ahead.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                terms = take_steps(run, [batch], phase)
                values = torch.stack([term.float() for term in terms.values()])
        finally:
            run.iteration = taken  # what is captured has not been done
        return _Captured(graph, batch, tuple(terms), values)


def with_room(batch: IterationBatch, earlier: IterationBatch | None = None) -> IterationBatch:
    """Return a batch in memory of its own, with room for more rows and ground truths than it has.

    Where there was room earlier there is at least as much: it settles once each kind has had its largest batch.
    """

    def own(path: KeyPath, leaf: Any, before: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not _is_ragged(path):
            return leaf.clone()
        least = 0 if earlier is None else len(before)
        room = leaf.new_zeros((max(least, int(GROWTH * len(leaf)) + 1), *leaf.shape[1:]))
        room[: len(leaf)] = leaf
        return room

    room: IterationBatch = tree_map_with_path(own, batch, batch if earlier is None else earlier)
    return room


def _is_ragged(path: KeyPath) -> bool:
    """Whether the length of a tensor of an `IterationBatch` differs from batch to batch."""
    names = [getattr(key, "name", "") for key in path]
    return names[-1] in ("rows", "segments", "before", "after") or names[-2:] == ["ground_truth", "labels"]


def copied(batch: IterationBatch, room: IterationBatch) -> bool:
    """Copy a batch into one with room, unless it needs more; say whether it was."""
    pairs = list(zip(_tensors(batch), _tensors(room), strict=True))
    if any(len(source) > len(target) for source, target in pairs):
        return False
    for source, target in pairs:
        target[: len(source)].copy_(source, non_blocking=True)
    return True


def _tensors(batch: IterationBatch) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
