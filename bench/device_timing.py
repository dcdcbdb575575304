"""Times on a GPU: CUDA-graph replays with a cold and a hot cache, eager calls, launches, and the device's ceilings.

A graph of many calls has no gaps between launches, so that a replay divided by its calls is the kernels' own time.
Cold: the calls rotate over copies of the inputs, outputs kept, that together exceed three times the L2 cache.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._pytree import tree_map

from bench.costs import tensor_bytes

ROUNDS = 20
FEWEST_ROUNDS = 3
WAY_SECONDS = 0.4  # device time that one way may take in one mode; slow ways get fewer rounds
GRAPH_SECONDS = 1e-3  # the least that one replay should take: its launch is then hidden
MOST_CALLS = 100
L2_MULTIPLE = 3
MOST_COLD_SECONDS = 0.1  # of one replay: where the copies take longer, the cache matters little
COPY_BYTES = 1 << 31
MATRIX_SIZE = 8192
CHAINS, LANES, PROGRAMS, STEPS = 8, 1024, 1 << 13, 512

Call = Callable[..., Any]


def copies_needed(bytes_of_one: int, cache_bytes: int) -> int:
    """How many copies of a working set together exceed the cache `L2_MULTIPLE` times."""
    return math.ceil(L2_MULTIPLE * cache_bytes / max(bytes_of_one, 1)) if bytes_of_one else 1


def rounds_for(seconds: float) -> int:
    """How often something that takes so long is timed."""
    return max(FEWEST_ROUNDS, min(ROUNDS, int(WAY_SECONDS / max(seconds, 1e-9))))


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 20 % and 80 % quantiles in microseconds, and how many times they are of."""
    low, median, high = torch.tensor(seconds, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    return {
        "median_us": median.item() * 1e6,
        "q20_us": low.item() * 1e6,
        "q80_us": high.item() * 1e6,
        "n": len(seconds),
    }


def first_line(error: BaseException) -> str:
    """What went wrong, shortly."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


@triton.jit
def multiply_add_kernel(output_ptr, STEPS: tl.constexpr, CHAINS: tl.constexpr, LANES: tl.constexpr):
    """Independent chains of fp32 multiply-adds in registers: the rate of the vector units."""
    x = tl.arange(0, LANES)[:, None].to(tl.float32) + tl.arange(0, CHAINS)[None, :].to(tl.float32)
    for _ in range(STEPS):
        x = x * 0.999 + 0.001
        x = x * 1.001 + 0.002
        x = x * 0.998 + 0.003
        x = x * 1.002 + 0.004
    tl.store(output_ptr + tl.program_id(0) * LANES + tl.arange(0, LANES), tl.sum(x, 1))


@dataclass(frozen=True)
class Captured:
    """A CUDA graph of some calls, with the inputs that it reads at every replay."""

    graph: torch.cuda.CUDAGraph
    sets: list[tuple[Any, ...]]
    calls: int

    def seconds(self) -> float:
        """The time of one replay."""
        return between_events(self.graph.replay)


class DeviceTimer:
    """Times calls on the current CUDA device."""

    def __init__(self) -> None:
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size

    def is_alive(self) -> bool:
        """Whether the device still answers: after an invalid access none of this process's calls does."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def replays(
        self, calls: Mapping[str, Call], arguments: tuple[Any, ...], both: bool = True, rounds: int = ROUNDS
    ) -> dict[str, dict[str, Any]]:
        """Quantiles of a call's time by name, with a cold and a hot cache; the names take turns.

        Unless `both`, only what speaks for a call is timed: the cold cache where that is possible. A call that cannot
        be captured has `not_captured`, the reason, instead.
        """
        graphs: dict[tuple[str, str], Captured] = {}
        found: dict[str, dict[str, Any]] = {name: {} for name in calls}
        for name, call in calls.items():
            try:
                graphs |= {(name, mode): graph for mode, graph in self._graphs(call, arguments, both).items()}
            except RuntimeError as error:
                torch.cuda.synchronize()  # raises where the device is lost, not only the capture
                found[name] = {"not_captured": first_line(error)}
        turns = {key: min(rounds, rounds_for(graph.seconds())) for key, graph in graphs.items()}
        times: dict[tuple[str, str], list[float]] = {key: [] for key in graphs}
        for turn in range(ROUNDS):
            for key, graph in graphs.items():
                if turn < turns[key]:
                    times[key].append(graph.seconds() / graph.calls)
        for (name, mode), seconds in times.items():
            found[name][mode] = quantiles(seconds)
        return found

    def _graphs(self, call: Call, arguments: tuple[Any, ...], both: bool) -> dict[str, Captured]:
        once = captured(call, [arguments], 1)
        seconds = max(1e-6, min(once.seconds() for _ in range(2)))
        repeats = min(MOST_CALLS, math.ceil(GRAPH_SECONDS / seconds))
        copies = copies_needed(tensor_bytes(arguments) + tensor_bytes(call(*arguments)), self.cache_bytes)
        graphs: dict[str, Captured] = {}
        if copies > 1 and copies * seconds <= MOST_COLD_SECONDS:
            sets = [arguments, *(_copied(arguments) for _ in range(copies - 1))]
            graphs["cold"] = captured(call, sets, max(repeats, copies))
        if both or not graphs:
            graphs["hot"] = once if repeats == 1 else captured(call, [arguments], repeats)
        if copies == 1:  # what one call reads and writes leaves nothing of itself in the cache
            graphs["cold"] = graphs["hot"]
        return graphs

    def eager(self, calls: Mapping[str, Call], arguments: tuple[Any, ...]) -> dict[str, dict[str, float]]:
        """Quantiles of the time from one eager call to the next by name, dispatch included; the names take turns."""
        first = {name: wall_seconds(call, arguments, 1) for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(ROUNDS):
            for name, call in calls.items():
                repeats = max(1, min(20, int(WAY_SECONDS / ROUNDS / max(first[name], 1e-9))))
                if turn < rounds_for(first[name] * repeats):
                    times[name].append(wall_seconds(call, arguments, repeats))
        return {name: quantiles(seconds) for name, seconds in times.items()}

    def launches(self, call: Call, arguments: tuple[Any, ...]) -> int | None:
        """How many kernels and fills one call starts; None where the profiler sees nothing."""
        torch.cuda.synchronize()
        try:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                call(*arguments)
                torch.cuda.synchronize()
        except RuntimeError:
            return None
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events()) or None

    def ceilings(self) -> dict[str, float]:
        """Bytes a second of a copy on the device (read and written), and operations a second.

        bf16 is a large product of matrices, fp32 multiply-adds in registers, each two operations.
        """
        source = torch.randn(COPY_BYTES // 4, device="cuda")
        target = torch.empty_like(source)
        a, b = (torch.randn((MATRIX_SIZE,) * 2, device="cuda").bfloat16() for _ in range(2))
        product = torch.empty_like(a)
        sums = torch.empty(PROGRAMS * LANES, device="cuda")
        constants = {"STEPS": STEPS, "CHAINS": CHAINS, "LANES": LANES}
        amounts: dict[str, tuple[Call, int]] = {
            # By a kernel: the driver's own copy is slower on some GPUs.
            "copy_bytes_per_second": (lambda: torch.neg(source, out=target), 2 * COPY_BYTES),
            "bf16_operations_per_second": (lambda: torch.mm(a, b, out=product), 2 * MATRIX_SIZE**3),
            "fp32_operations_per_second": (
                lambda: multiply_add_kernel[(PROGRAMS,)](sums, **constants),
                8 * STEPS * CHAINS * LANES * PROGRAMS,
            ),
        }
        rates = {}
        for name, (call, amount) in amounts.items():
            try:
                rates[name] = amount / (quantiles(warm_times(call))["median_us"] * 1e-6)
            except Exception as error:  # a ceiling that is not known bounds nothing: no reason to measure nothing
                print(f"{name}: {first_line(error)}", flush=True)
        return rates


def captured(call: Call, sets: list[tuple[Any, ...]], calls: int) -> Captured:
    """Capture calls that rotate over `sets`, each with outputs of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call(*sets[0])
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    held: deque[Any] = deque(maxlen=len(sets) - 1)  # while outputs are held, the next ones lie elsewhere
    with torch.cuda.graph(graph):
        for i in range(calls):
            held.append(call(*sets[i % len(sets)]))
    return Captured(graph, sets, calls)


def between_events(call: Call) -> float:
    """Seconds the device takes for what a call puts on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def warm_times(call: Call) -> list[float]:
    """Device times of a call after three that do not count."""
    for _ in range(3):
        call()
    return [between_events(call) for _ in range(ROUNDS)]


def wall_seconds(call: Call, arguments: tuple[Any, ...], repeats: int) -> float:
    """Time from one call to the next, until the device has done them all."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call(*arguments)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _copied(arguments: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, arguments)
