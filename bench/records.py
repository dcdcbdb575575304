"""Recorded runs, of the GPU suite and of pytest-benchmark, as one form: timings by name, on a named device."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN = "ahernet"  # on a CPU, as a plain installation runs it
OWN_WITH_NUMBA = "ahernet[cpu]"
MODES = ("cold", "hot", "eager")
NOT_MADE, NOT_BEGUN = "making its arguments", "not begun"  # cases of entries that stand for a group of lines


@dataclass(frozen=True)
class Name:
    """What was timed."""

    op: str
    case: str
    way: str
    mode: str


@dataclass(frozen=True)
class Timing:
    """Seconds: median, 20 % and 80 % quantile."""

    median: float
    q20: float
    q80: float
    group: str | None = None
    """What of its suite it is of: a group of lines on a GPU, a test on a CPU; older records do not say."""

    @property
    def spread(self) -> float:
        """Half the distance of the quantiles, of the median."""
        return (self.q80 - self.q20) / 2 / self.median


@dataclass(frozen=True)
class Recorded:
    """One run: where, what was timed, what did not work and why, whose result was wrong and how far."""

    kind: str
    device: str
    versions: dict[str, str]
    timings: dict[Name, Timing]
    failed: dict[tuple[str, str, str], str]
    wrong: dict[tuple[str, str, str], str]
    asked: frozenset[str] | None
    """The groups that the run was asked for; None: all, as of records that do not say."""


def load(path: Path) -> dict[str, Any]:
    """The JSON of a record, as it is."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "lines" not in record and "benchmarks" not in record:
        raise ValueError(f"{path}: neither a record of `python -m bench gpu` nor of pytest-benchmark")
    return record


def ceilings_text(ceilings: dict[str, float]) -> str:
    """The ceilings that a record of a GPU has measured."""
    tera = {name.partition("_")[0]: (rate / 1e12, "bytes" in name) for name, rate in ceilings.items()}
    rates = (
        f"{name} {rate:.2f} TB/s" if moved else f"{name} {rate:.0f} TFLOP/s" for name, (rate, moved) in tera.items()
    )
    return ", ".join(rates)


def is_gpu(record: dict[str, Any]) -> bool:
    """Whether the GPU suite wrote it."""
    return "lines" in record


def read(path: Path) -> Recorded:
    """A record of either kind."""
    record = load(path)
    return _gpu(record) if is_gpu(record) else _cpu(record)


def _gpu(record: dict[str, Any]) -> Recorded:
    timings, failed, wrong = {}, {}, {}
    for entry in record["lines"]:
        key = entry["op"], entry["case"], entry["way"]
        if "failed" in entry:
            failed[key] = entry["failed"]
        if entry.get("equal", 1.0) < entry.get("required", 0.0):
            wrong[key] = f"{entry['equal']:.4%} agree, {entry['required']:.4%} are required"
        for mode in MODES:
            if mode in entry:
                values = (entry[mode][name] * 1e-6 for name in ("median_us", "q20_us", "q80_us"))
                timings[Name(*key, mode)] = Timing(*values, entry.get("group"))
    device = record["device"]
    versions = {name: str(device.get(name)) for name in ("python", "numpy", "torch", "triton", "driver")}
    return Recorded("gpu", device["name"], versions, timings, failed, wrong, _asked(record))


def _cpu(record: dict[str, Any]) -> Recorded:
    timings = {}
    for entry in record["benchmarks"]:
        op, _, case = entry["group"].partition(", ")
        statistics = entry["stats"]
        values = (statistics[name] for name in ("median", "q20", "q80"))
        timings[Name(op, case, _way(entry, op), "cpu")] = Timing(*values, entry.get("name"))
    machine = record["machine_info"]
    versions = {name: str(machine.get(name)) for name in ("python", "numpy", "torch", "numba")}
    device = f"{machine['processor']}, threads: {machine['threads']}"
    return Recorded("cpu", device, versions, timings, {}, {}, _asked(record))


def _way(entry: dict[str, Any], op: str) -> str:
    """The name of a way. In older records those of evaluation are functions; ours has the name of the op."""
    function = str(entry.get("param") or OWN).rpartition("-")[2]
    unnamed = OWN if function == op.replace(" ", "_") else function
    return str(entry["extra_info"].get("way", unnamed))


def _asked(record: dict[str, Any]) -> frozenset[str] | None:
    asked = record.get("asked")
    return None if asked is None else frozenset(asked)
