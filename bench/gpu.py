"""Times every kernel and pipeline on one GPU against the forms that are common elsewhere, and records them.

    bench/gpu.sh [folder]                            the kernel tests first, then tuning, then this
    python -m bench gpu [folder] --only nms,decode   some groups of `bench.lines` alone

Every line is checked before it is timed: ops and localizing against their CPU paths, training against its peer. The
record, one JSON file, is written anew after every line, so that a run cut short leaves what it had. What fails is
recorded with its message and the run goes on; where the device is lost, or a line takes too long, a new process goes on
with the same record. Exit status: 0, or 1 where a check failed, or 2 where there is no GPU.
"""

import argparse
import datetime
import gc
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bench import targets
from bench.device_timing import DeviceTimer, first_line
from bench.lines import GROUPS, Call, Line, Sizes
from bench.records import MODES, NOT_BEGUN, NOT_MADE, OWN, ceilings_text

RESULTS = Path(__file__).with_name("results")
SCHEMA = 2
NOT_SWEPT = (None, "", "many")  # axes of lines that stand in the table
PROFILED_SECONDS = 0.05  # peers that take longer start too many kernels to count
LINE_SECONDS = 60.0  # after which a line is given up: a kernel that never ends must not end the run

Record = dict[str, Any]
Ceilings = dict[str, float]


def measured(line: Line, timer: DeviceTimer, ceilings: Ceilings) -> Iterator[Record]:
    """Check a line, time all its ways, and yield an entry of the record for each; peers may fail."""
    expected = line.call(*line.arguments)
    equal, failed = {OWN: agreement_with_reference(line)}, {}
    for name, peer in {**line.peers, **line.uncapturable}.items():
        try:
            equal[name] = agreement(peer(*line.arguments), expected, line.tolerance)
        except Exception as error:  # what others wrote may not fit this device
            failed[name] = first_line(error)
            gc.collect()
            torch.cuda.empty_cache()
    ways = {OWN: line.call} | {name: peer for name, peer in line.peers.items() if name in equal}
    times: dict[str, Record] = timer.replays(ways, line.arguments) if line.capture else {}
    ways |= {name: peer for name, peer in line.uncapturable.items() if name in equal}
    eager = timer.eager(ways, line.arguments)
    cost = line.cost_of(expected)
    floor = cost.floor_seconds(ceilings)
    entry = {"op": line.op, "case": line.case, "axis": line.axis, "value": line.value, **vars(cost)}
    del expected
    for name, call in ways.items():
        own_times = {**times.get(name, {}), "eager": eager[name]}
        seconds = own_times[mode_of(own_times)]["median_us"] * 1e-6
        yield {
            **entry,
            "way": name,
            "equal": equal[name],
            "required": line.required if name == OWN else 0.0,
            "launches": timer.launches(call, line.arguments) if name == OWN or seconds < PROFILED_SECONDS else None,
            **own_times,
            "bytes_per_second": cost.bytes / seconds,
            "share_of_copy": cost.bytes / seconds / ceilings.get("copy_bytes_per_second", math.inf),
            "share_of_matrix": cost.matrix_operations / seconds / ceilings.get("bf16_operations_per_second", math.inf),
            "share_of_ceiling": floor / seconds,
        }
    for name, message in failed.items():
        yield {**entry, "way": name, "failed": message}
    for name, part in line.parts.items():
        yield {**entry, "way": f"part: {name}", **part_times(name, part, timer)}


def part_times(name: str, part: Call, timer: DeviceTimer) -> Record:
    """Times of a part of a call, or why there are none."""
    try:
        replays, eager = timer.replays({name: part}, ())[name], timer.eager({name: part}, ())[name]
        return {"launches": timer.launches(part, ()), **replays, "eager": eager}
    except Exception as error:
        return {"failed": first_line(error)}


def mode_of(times: Record) -> str:
    """The mode that speaks for a way: cold if it was timed so, else hot, else eager."""
    return next(mode for mode in MODES if mode in times)


def agreement_with_reference(line: Line) -> float:
    """How far the device gives what the reference does, on the part of the arguments that is checked."""
    part = line.checked(line.arguments)
    if line.reference is not None:
        compared = line.compared or line.call
        return agreement(compared(*part), line.reference(*part), line.tolerance)
    on_cpu = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, part)
    return agreement(line.call(*part), line.call(*on_cpu), line.tolerance)


def agreement(actual: Any, expected: Any, tolerance: float) -> float:
    """The share of elements that agree, in the tensor where they do least; 0 where shapes or dtypes differ."""
    shares = [1.0]
    for left, right in zip(_as_tuple(actual), _as_tuple(expected), strict=True):
        if left.shape != right.shape or left.dtype != right.dtype:
            return 0.0
        shares.append(_share_that_agrees(left, right.to(left.device), tolerance))
    return min(shares)


def _share_that_agrees(left: Tensor, right: Tensor, tolerance: float) -> float:
    """Of integers those that are equal, of floats those within the tolerance, relative to each and to their mean.

    Floats that are 0 on both sides do not count: most of a sparse gradient is, and would agree with no gradient at all.
    """
    if right.is_floating_point():
        counted = (left != 0) | (right != 0)
        size = right.nan_to_num(0.0, 0.0, 0.0).abs().sum(dtype=torch.float64) / counted.sum().clamp(min=1)
        equal = counted & torch.isclose(left, right, rtol=tolerance, atol=tolerance * size.item())
    else:
        counted, equal = torch.ones_like(right, dtype=torch.bool), left == right
    number = int(counted.sum())
    return int(equal.sum()) / number if number else 1.0  # 1 exactly, where all do


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def is_good(entry: Record) -> bool:
    """Whether our own way ran and gave what it should; peers may do as they like."""
    return entry["way"] != OWN or ("failed" not in entry and entry["equal"] >= entry["required"])


def table(record: Record) -> str:
    """The record as text: one row a way, microseconds by median, in how many times our way's time; sweeps are drawn."""
    ceilings, device = record["ceilings"], record["device"]
    heading = f"{'op':14}{'case':38}{'way':23}{'cold us':>10}{'+-%':>5}{'hot us':>10}{'eager us':>11}"
    rows = [
        f"{device['name']}, torch {device['torch']}, triton {device['triton']}; kernel tests: {record['tests']}",
        "ceilings: " + ceilings_text(ceilings),
        f"{heading}{'starts':>7}{'% floor':>8}{'x ours':>8} equal",
    ]
    ours: Record = {}
    for entry in record["lines"]:
        left = f"{entry['op'][:13]:14}{entry['case'][:37]:38}{entry['way'][:22]:23}"
        ours = entry if entry["way"] == OWN else ours
        if "failed" in entry:
            rows.append(f"{left}failed: {entry['failed'][:60]}")
            continue
        if entry.get("axis") not in NOT_SWEPT:
            continue
        mode = mode_of(entry)
        spread = (entry[mode]["q80_us"] - entry[mode]["q20_us"]) / entry[mode]["median_us"] * 50
        comparable = mode in ours and (entry["op"], entry["case"]) == (ours["op"], ours["case"])
        share = f"{entry['share_of_ceiling'] * 100:8.1f}" if "share_of_ceiling" in entry else f"{'-':>8}"
        cells = [
            f"{_median(entry, 'cold'):>10}{spread:5.1f}{_median(entry, 'hot'):>10}{_median(entry, 'eager'):>11}",
            f"{entry['launches'] or '-':>7}{share}",
            f"{entry[mode]['median_us'] / ours[mode]['median_us']:8.2f}" if comparable else f"{'-':>8}",
            f" {_equality(entry)}",
        ]
        rows.append(left + "".join(cells))
    return "\n".join(rows)


def _median(entry: Record, mode: str) -> str:
    return f"{entry[mode]['median_us']:.1f}" if mode in entry else "-"


def _equality(entry: Record) -> str:
    if "equal" not in entry:
        return "-"
    return "yes" if entry["equal"] == 1 else format(entry["equal"], ".3%")


def device_description() -> Record:
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


def commit() -> Record:
    changes = _output("git", "status", "--porcelain")
    return {"id": _output("git", "rev-parse", "HEAD"), "dirty": None if changes is None else changes != ""}


def _output(*command: str) -> str | None:
    """What a command prints, or None where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def record_path(folder: Path, kind: str, device_name: str, day: datetime.date) -> Path:
    """A file that is not there yet: the later records of a day are numbered, 2 and on."""
    name = f"{kind}_{re.sub('[^a-z0-9]+', '_', device_name.lower()).strip('_')}_{day.isoformat()}"
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    return next(path for path in (folder / f"{name}.json" for name in names) if not path.exists())


def tests_outcome(status: int | None) -> str:
    """What pytest's exit status says; 124 is that of `timeout`."""
    if status is None:
        return "not run"
    return {0: "passed", 124: "cut short"}.get(status, f"failed (status {status})")


class Run:
    """A record that grows line by line, and the process that makes it."""

    def __init__(self, path: Path, record: Record, groups: list[str], deadline: float, timer: DeviceTimer) -> None:
        self.path, self.record, self.groups, self.deadline, self.timer = path, record, groups, deadline, timer
        self.group = ""  # the one being measured
        record["lines"] = [entry for entry in record["lines"] if entry["case"] != NOT_BEGUN]
        self.done = {(entry["op"], entry["case"]) for entry in record["lines"]}

    def measure(self, device: str = "cuda", sizes: Sizes = Sizes()) -> None:  # noqa: B008
        """Measure the lines of all groups that the record does not have yet, while there is time."""
        for group in self.groups:
            self.group = group
            if (group, NOT_MADE) in self.done:
                continue
            try:
                for line in GROUPS[group](device, sizes):
                    if time.monotonic() > self.deadline:
                        self.add([failure(group, NOT_BEGUN, "out of time")])
                        break
                    if (line.op, line.case) not in self.done:
                        self.add(self.entries(line))
            except Exception as error:
                self.add([failure(group, NOT_MADE, first_line(error))])
                if not self.timer.is_alive():
                    self.restart()

    def entries(self, line: Line) -> list[Record]:
        """Entries of one line, or of its failure."""
        watchdog = threading.Timer(LINE_SECONDS, self.give_up, (line,))
        watchdog.daemon = True
        watchdog.start()
        began = time.monotonic()
        try:
            found = list(measured(line, self.timer, self.record["ceilings"]))
        except Exception as error:
            found = [failure(line.op, line.case, first_line(error))]
            if not self.timer.is_alive():
                self.add(found)
                self.restart()
        finally:
            watchdog.cancel()
        gc.collect()
        torch.cuda.empty_cache()
        print(f"{line.op}, {line.case}: {time.monotonic() - began:.1f} s", flush=True)
        return found

    def add(self, entries: list[Record]) -> None:
        """Put entries into the record and the record onto the disk."""
        self.record["lines"] += [{**entry, "group": self.group} for entry in entries]
        write(self.path, self.record)

    def give_up(self, line: Line) -> None:
        """Record a line that does not end, and go on without it in a new process."""
        self.add([failure(line.op, line.case, f"no end within {LINE_SECONDS:.0f} s")])
        self.restart()

    def restart(self) -> None:
        """Become a new process that goes on with this record: errors of kernels outlast the call that they are of."""
        left = max(0.0, self.deadline - time.monotonic())
        command = ["gpu", "--continue", str(self.path), "--only", ",".join(self.groups), "--seconds", str(left)]
        print("going on in a new process", flush=True)
        os.execv(sys.executable, [sys.executable, "-m", "bench", *command])


def failure(op: str, case: str, message: str) -> Record:
    """The entry of a line that could not be measured."""
    print(f"{op}, {case} failed: {message}", flush=True)
    return {"op": op, "case": case, "way": OWN, "failed": message}


def asked(before: list[str] | None, only: list[str] | None) -> list[str] | None:
    """The groups that a record has been asked for, now with more of them; None: all."""
    return None if before is None or only is None else sorted({*before, *only})


def write(path: Path, record: Record) -> None:
    """Write a record as a whole: whoever reads it meanwhile sees the one before."""
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    whole.replace(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="where the record goes")
    parser.add_argument("--only", help="groups of lines, with commas; all by default: " + ", ".join(GROUPS))
    parser.add_argument("--seconds", type=float, default=600.0, help="no line is begun after so long")
    parser.add_argument("--tests-status", type=int, help="exit status of the kernel tests, for the record")
    parser.add_argument("--continue", dest="resumed", type=Path, help="add to this record what it has not got")


def main(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.seconds
    only = None if options.only is None else options.only.split(",")
    groups = list(GROUPS) if only is None else only
    if unknown := set(groups) - set(GROUPS):
        print(f"--only: no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("no GPU found: torch.cuda.is_available() is false", file=sys.stderr)
        return 2
    if options.resumed:
        path, record = options.resumed, json.loads(options.resumed.read_text(encoding="utf-8"))
        record["asked"] = asked(record.get("asked"), only)
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC)
        record = {
            "schema": SCHEMA,
            "datetime": now.isoformat(timespec="seconds"),
            "commit": commit(),
            "tests": tests_outcome(options.tests_status),
            "asked": only,
            "device": device_description(),
            "ceilings": DeviceTimer().ceilings(),
            "lines": [],
        }
        path = record_path(options.folder, "gpu", record["device"]["name"], now.date())
        torch.cuda.empty_cache()
    Run(path, record, groups, deadline, DeviceTimer()).measure()
    print(table(record))
    print(targets.text_of(record))
    print(f"recorded in {path}")
    return 0 if all(map(is_good, record["lines"])) else 1
