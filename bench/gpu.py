"""Times every kernel on one GPU against the forms that are common elsewhere, and records them.

    bench/gpu.sh [folder]                the kernel tests first, then this
    python -m bench.gpu [folder]         this alone

Every line is checked against the CPU path of the same op before it is timed. The record, one JSON file, is written
anew after every line, so that a run cut short leaves what it had. Exit status: 0, or 1 where a check failed, or 2
where there is no GPU.
"""

import argparse
import datetime
import functools
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ahernet_kernels as kernels
import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bench import cases
from bench.device_timing import DeviceTimer, tensor_bytes
from bench.peers import assignment, decoding, pairs, suppression

RESULTS = Path(__file__).with_name("results")
CANDIDATE_CLASSES = 200
CHECKED_VIDEOS = 64
CLOSE = 1e-4  # where sums and exponentials are rounded differently

Call = Callable[..., Any]


@dataclass(frozen=True)
class Line:
    """One op on one set of arguments; `peers` take the same arguments and give the same result."""

    op: str
    case: str
    arguments: tuple[Any, ...]
    call: Call
    checked: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    """Arguments of the part that the CPU path checks: all of them, or those of the first videos."""
    tolerance: float = 0.0
    """Absolute and relative; 0 where every bit must agree."""
    peers: dict[str, Call] = field(default_factory=dict)
    uncapturable: dict[str, Call] = field(default_factory=dict)
    """Peers that wait for the device: timed as eager calls only."""


@dataclass(frozen=True)
class Sizes:
    """How large the lines are; the smallest possible ones test the script without a GPU."""

    batch: int = 1024
    small_batch: int = 64
    classes: int = 600
    most_ground_truths: int = 25
    outputs: int = 100
    many: tuple[int, ...] = (100_000, 1_000_000)
    resampled_videos: int = 256
    mean_rows: int = 440
    dimension: int = 2048
    steps: int = 512
    pairs: int = 4096


def whole(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments


def first_videos(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first videos of every batched tensor of rank 2 or 3; anchors (A, 2) have no videos."""

    def cut(leaf: Any) -> Any:
        is_batched = isinstance(leaf, Tensor) and leaf.shape != (cases.ANCHORS, 2)
        return leaf[:CHECKED_VIDEOS] if is_batched else leaf

    return tree_map(cut, arguments)


def lines(device: str, sizes: Sizes) -> Iterator[Line]:
    """Make one line after the other: the arguments of only one are in memory at a time."""
    yield from decode_lines(device, sizes)
    yield from assignment_lines(device, sizes)
    yield from nms_lines(device, sizes)
    yield from long_nms_lines(device, sizes)
    yield from resample_lines(device, sizes)
    a, b = (cases.candidates(1, sizes.pairs, CANDIDATE_CLASSES, seed)[0][0].to(device) for seed in (0, 1))
    case = f"{sizes.pairs} x {sizes.pairs}"
    peers = {"torch broadcast": pairs.torch_broadcast}
    yield Line("pairwise_tiou", case, (a, b), kernels.pairwise_tiou, whole, peers=peers)


def decode_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    anchors = cases.anchors().to(device)
    peers = {"eager torch": decoding.decode}
    if device == "cuda":
        peers["torch.compile"] = torch.compile(decoding.decode, fullgraph=True, dynamic=False)
    for videos in (sizes.batch, sizes.small_batch):
        arguments = (*cases.network_outputs(videos, sizes.classes, torch.bfloat16, device), anchors)
        case = f"B={videos} C={sizes.classes} bf16"
        yield Line("decode", case, arguments, kernels.decode, first_videos, CLOSE, peers)


def assignment_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    most = sizes.most_ground_truths
    truths = [part.to(device) for part in cases.ground_truths(sizes.batch, most)]
    anchors, (gt_segments, gt_labels, gt_offsets) = cases.anchors().to(device), truths

    def assign_broadcast(anchors: Tensor, segments: Tensor, labels: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        matched = assignment.match_broadcast(anchors, segments, offsets, most)
        return assignment.assigned(anchors, segments, labels, matched)

    case = f"B={sizes.batch} G<={most}"
    everything = (anchors, gt_segments, gt_labels, gt_offsets)
    yield Line("assign", case, everything, kernels.assign, whole, peers={"torch broadcast": assign_broadcast})
    forced = functools.partial(kernels.assign, force_match=True)
    yield Line("assign", f"{case} forced", everything, forced, whole)
    peers = {"torch broadcast": functools.partial(assignment.match_broadcast, most=most)}
    yield Line("match", case, (anchors, gt_segments, gt_offsets), kernels.match, whole, peers=peers)


def nms_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    count, outputs = cases.ANCHORS, sizes.outputs
    for videos in (sizes.small_batch, sizes.batch):
        arguments = tuple(part.to(device) for part in cases.candidates(videos, count, CANDIDATE_CLASSES))
        for threshold, most in ((0.9, outputs), (0.9, count), (0.5, outputs)):
            settings = {"tiou_threshold": threshold, "max_output": most}
            case = f"B={videos} N={count} tiou {threshold} best {most}"
            call = functools.partial(kernels.nms, **settings)
            uncapturable = {}
            if device == "cuda" and threshold == 0.9 and most == outputs and has_torchvision():
                uncapturable["torchvision, video by video"] = functools.partial(torchvision_nms, **settings)
            yield Line("nms", case, arguments, call, whole, uncapturable=uncapturable)
    call = functools.partial(kernels.soft_nms, method="gaussian", parameter=0.5, max_output=outputs)
    peer = functools.partial(suppression.soft_torch, method="gaussian", parameter=0.5, most=outputs)
    peers = {"torch, a pass a pick": peer}
    yield Line("soft_nms", f"B={sizes.batch} best {outputs}", arguments, call, first_videos, CLOSE, peers)


def long_nms_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    """One long video. All outputs are asked for at the smaller size only: the work grows with its square."""
    for count in sizes.many:
        arguments = tuple(part.to(device) for part in cases.candidates(1, count, CANDIDATE_CLASSES))
        for most in (sizes.outputs, count) if count == min(sizes.many) else (sizes.outputs,):
            call = functools.partial(kernels.nms, tiou_threshold=0.9, max_output=most)
            yield Line("nms", f"one video N={count} tiou 0.9 best {most}", arguments, call, whole)


def resample_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    shape = (sizes.resampled_videos, sizes.mean_rows, sizes.dimension)
    checked_videos = min(8, sizes.resampled_videos)
    for dtype in (torch.bfloat16, torch.float32):
        features, offsets = cases.sequences(*shape, dtype, device)
        steps, rows = sizes.steps, int(offsets[checked_videos])
        case = f"B={shape[0]} L~{shape[1]} D={shape[2]} {str(dtype).removeprefix('torch.')}"

        def first_sequences(arguments: tuple[Any, ...], rows: int = rows) -> tuple[Any, ...]:
            return arguments[0][:rows], arguments[1][: checked_videos + 1]

        call = functools.partial(kernels.resample, steps=steps)
        yield Line("resample", case, (features, offsets), call, first_sequences, CLOSE)
    gradient = torch.randn((shape[0], sizes.steps, shape[2]), device=device)

    def backward(gradient: Tensor, offsets: Tensor, rows: int) -> Tensor:
        return torch.ops.ahernet_kernels.resample_backward(gradient, offsets, rows)

    def first_gradients(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments[0][:checked_videos], arguments[1][: checked_videos + 1], rows

    arguments = (gradient, offsets, features.shape[0])
    case = f"B={shape[0]} L~{shape[1]} D={shape[2]}"
    yield Line("resample backward", case, arguments, backward, first_gradients, CLOSE)


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


def measured(line: Line, timer: DeviceTimer, copy_bytes_per_second: float) -> Iterator[dict[str, Any]]:
    """Check a line against the CPU path, time all its ways, and yield an entry of the record for each."""
    expected = line.call(*line.arguments)
    entry = {"op": line.op, "case": line.case, "bytes": tensor_bytes(line.arguments) + tensor_bytes(expected)}
    equal_to_cpu = agreement_with_cpu(line)
    ways = {"ahernet": line.call} | {name: peer for name, peer in line.peers.items() if runs(peer, line.arguments)}
    replays = timer.replays(ways, line.arguments)
    ways |= {name: peer for name, peer in line.uncapturable.items() if runs(peer, line.arguments)}
    eager = timer.eager(ways, line.arguments)
    for name, call in ways.items():
        times = {**replays.get(name, {}), "eager": eager[name]}
        bytes_per_second = entry["bytes"] / (times[mode_of(times)]["median_us"] * 1e-6)
        is_own = name == "ahernet"
        yield {
            **entry,
            "way": name,
            "equal": equal_to_cpu if is_own else agreement(call(*line.arguments), expected, line.tolerance),
            "launches": timer.launches(call, line.arguments),
            **times,
            "bytes_per_second": bytes_per_second,
            "share_of_copy": bytes_per_second / copy_bytes_per_second,
        }
    for name in {**line.peers, **line.uncapturable}:
        if name not in ways:
            yield {**entry, "way": name, "failed": True}


def mode_of(times: dict[str, Any]) -> str:
    """The mode that speaks for a way: cold if it was timed so, else hot, else eager."""
    return next(mode for mode in ("cold", "hot", "eager") if mode in times)


def agreement_with_cpu(line: Line) -> float:
    """How far the device gives what the CPU path does, on the part of the arguments that is checked."""
    part = line.checked(line.arguments)
    on_cpu = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, part)
    return agreement(line.call(*part), line.call(*on_cpu), line.tolerance)


def agreement(actual: Any, expected: Any, tolerance: float) -> float:
    """The share of elements that agree, in the tensor where they do least; 0 where shapes or dtypes differ."""
    shares = []
    for left, right in zip(_as_tuple(actual), _as_tuple(expected), strict=True):
        if left.shape != right.shape or left.dtype != right.dtype:
            return 0.0
        equal = torch.isclose(left.cpu(), right.cpu(), rtol=tolerance, atol=tolerance)
        shares.append(equal.double().mean().item())
    return min(shares)


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def runs(call: Call, arguments: tuple[Any, ...]) -> bool:
    """Whether a peer works here at all: what others wrote may not fit this device, and must not end the run."""
    try:
        call(*arguments)
    except Exception as error:
        print(f"a peer failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True)
        return False
    return True


def table(record: dict[str, Any]) -> str:
    """The record as text: one row a way, microseconds by median, in how many times the first way's time."""
    ceilings = record["ceilings"]
    heading = f"{'op':18}{'case':42}{'way':28}{'cold us':>10}{'+-%':>6}{'hot us':>10}{'eager us':>11}"
    rows = [
        f"{record['device']['name']}, torch {record['device']['torch']}, triton {record['device']['triton']}; "
        f"kernel tests: {record['tests']}",
        f"ceilings: copy {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
        f"bf16 {ceilings['bf16_operations_per_second'] / 1e12:.0f} TFLOP/s",
        f"{heading}{'launches':>10}{'% copy':>8}{'x ours':>8}  equal",
    ]
    ours: dict[str, Any] = {}
    for entry in record["lines"]:
        left = f"{entry['op']:18}{entry['case']:42}{entry['way']:28}"
        if entry.get("failed"):
            rows.append(f"{left}{'failed':>10}")
            continue
        ours = entry if entry["way"] == "ahernet" else ours
        mode = mode_of(entry)
        spread = (entry[mode]["q80_us"] - entry[mode]["q20_us"]) / entry[mode]["median_us"] * 50
        cells = [
            f"{_median(entry, 'cold'):>10}{spread:6.1f}{_median(entry, 'hot'):>10}{_median(entry, 'eager'):>11}",
            f"{entry['launches'] or '-':>10}{entry['share_of_copy'] * 100:8.1f}",
            f"{entry[mode]['median_us'] / ours[mode]['median_us']:8.1f}" if mode in ours else f"{'-':>8}",
            f"  {'yes' if entry['equal'] == 1 else format(entry['equal'], '.3%')}",
        ]
        rows.append(left + "".join(cells))
    return "\n".join(rows)


def _median(entry: dict[str, Any], mode: str) -> str:
    return f"{entry[mode]['median_us']:.1f}" if mode in entry else "-"


def device_description() -> dict[str, Any]:
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cache_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def commit() -> dict[str, Any]:
    changes = _output("git", "status", "--porcelain")
    return {"id": _output("git", "rev-parse", "HEAD"), "dirty": None if changes is None else changes != ""}


def _output(*command: str) -> str | None:
    """What a command prints, or None where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def record_path(folder: Path, device_name: str, day: datetime.date) -> Path:
    return folder / f"gpu_{re.sub('[^a-z0-9]+', '_', device_name.lower()).strip('_')}_{day.isoformat()}.json"


def tests_outcome(status: int | None) -> str:
    """What pytest's exit status says; 124 is that of `timeout`."""
    if status is None:
        return "not run"
    return {0: "passed", 124: "cut short"}.get(status, f"failed (status {status})")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="where the record goes")
    parser.add_argument("--tests-status", type=int, help="exit status of the kernel tests, for the record")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no GPU found: torch.cuda.is_available() is false", file=sys.stderr)
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    timer = DeviceTimer()
    record: dict[str, Any] = {
        "schema": 1,
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "tests": tests_outcome(options.tests_status),
        "device": device_description(),
        "ceilings": timer.ceilings(),
        "lines": [],
    }
    path = record_path(options.folder, record["device"]["name"], datetime.datetime.now(datetime.UTC).date())
    for line in lines("cuda", Sizes()):
        print(f"{line.op}, {line.case}", flush=True)
        record["lines"] += measured(line, timer, record["ceilings"]["copy_bytes_per_second"])
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        torch.cuda.empty_cache()
    print(table(record))
    own = [entry for entry in record["lines"] if entry["way"] == "ahernet"]
    return 0 if all(entry["equal"] == 1 for entry in own) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
