"""Finds the tile sizes and warps that are fastest on this GPU, and writes them where the launchers read them.

    python -m bench tune [--only decode,nms] [--seconds 60]

`bench.tuning_grid` says what is tried. Every setting must give what the file's defaults give before it is timed; all
are replayed as CUDA graphs in turns. A winner is the best geometric mean over the lines of its kernel, if better than
the defaults by more than the spread of both. Processes compile everything first, side by side; what does not compile
or launch is recorded and left out. Exit status: 0, or 2 where there is no GPU.
"""

import argparse
import concurrent.futures
import datetime
import functools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ahernet_kernels import _tuning

from bench.device_timing import DeviceTimer, first_line
from bench.gpu import RESULTS, agreement, commit, device_description, mode_of, record_path, write
from bench.lines import GROUPS, Line, Sizes
from bench.tuning_grid import GRID, Settings, Tuned, as_text, merged

DEFAULT = "default"
LEAST_GAIN = 0.01
COMPILERS = 12
MOST_LINES = 5
TURNS = 11
SWEPT = ("", "videos", "many")  # axes of the lines that kernels are tuned on

Times = dict[str, dict[str, Any]]


@functools.lru_cache(maxsize=1)
def lines_of(kernel: str, device: str, sizes: Sizes) -> list[Line]:
    """The lines that a kernel is timed on, the targets first."""
    tuned, chosen = GRID[kernel], []
    for line in (line for group in tuned.groups for line in GROUPS[group](device, sizes)):
        left_out = tuned.but is not None and tuned.but in line.case
        if line.op == tuned.op and line.axis in SWEPT and tuned.only in line.case and not left_out:
            chosen.append(line)
        if len(chosen) == MOST_LINES:
            break
    return chosen


def with_settings(kernel: str, settings: Settings, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, launching a kernel with given settings."""

    def run(*arguments: Any) -> Any:
        with _tuning.overridden(kernel, settings):
            return call(*arguments)

    return run


def compile_settings(kernel: str, settings: Settings, device: str, sizes: Sizes) -> str | None:
    """Run a kernel once, so that the compiler's cache has it for other processes; return what went wrong."""
    try:
        for line in lines_of(kernel, device, sizes):
            with_settings(kernel, settings, line.call)(*line.arguments)
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        return first_line(error)
    return None


def compile_all(kernels: list[str], seconds: float) -> None:
    """Compile what is tried in several processes; what fails does so again, and is recorded, where it is timed."""
    jobs = [(kernel, settings) for kernel in kernels for settings in (GRID[kernel].defaults(), *GRID[kernel].tried)]
    workers = min(COMPILERS, os.cpu_count() or 1, len(jobs))
    context = multiprocessing.get_context("spawn")
    small = Sizes(batch=64, small_batch=16, many=(20_000,), resampled_videos=8, pairs=512)
    pool = concurrent.futures.ProcessPoolExecutor(workers, context)
    waiting = [pool.submit(compile_settings, *job, "cuda", small) for job in jobs]
    concurrent.futures.wait(waiting, timeout=seconds)
    for process in list((pool._processes or {}).values()):  # one that hangs must not hold up the rest
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)


def timed(kernel: str, tuned: Tuned, line: Line, timer: DeviceTimer) -> Times:
    """Times of one line with every setting by name, or why there are none."""
    calls = {DEFAULT: with_settings(kernel, tuned.defaults(), line.call)}
    expected = calls[DEFAULT](*line.arguments)
    failed: Times = {}
    for settings in tuned.tried:
        call, name = with_settings(kernel, settings, line.call), as_text(settings)
        try:
            share = agreement(call(*line.arguments), expected, line.tolerance)
        except Exception as error:
            failed[name] = {"failed": first_line(error)}
            continue
        if share >= line.required:
            calls[name] = call
        else:
            failed[name] = {"failed": f"{share:.4%} of the elements agree"}
    del expected
    return {**timer.replays(calls, line.arguments, both=False, rounds=TURNS), **failed}


def spread(times: dict[str, float]) -> float:
    """Half the distance of the 20 % and 80 % quantiles, of the median."""
    return (times["q80_us"] - times["q20_us"]) / 2 / times["median_us"]


def winner(tuned: Tuned, by_line: dict[str, Times]) -> tuple[Settings | None, float]:
    """The best settings, or None for the defaults, and their share of the defaults' time (geometric mean)."""
    best: Settings | None = None
    best_ratio, best_noise = 1.0, 0.0
    for settings in tuned.tried:
        logarithms, noise = [], 0.0
        for times in by_line.values():
            own, default = times[as_text(settings)], times[DEFAULT]
            if "failed" in own or "not_captured" in own or "not_captured" in default:
                break
            mode = mode_of(default)
            if mode not in own:
                break
            logarithms.append(math.log(own[mode]["median_us"] / default[mode]["median_us"]))
            noise = max(noise, spread(own[mode]), spread(default[mode]))
        else:
            ratio = math.exp(sum(logarithms) / max(len(logarithms), 1))
            if ratio < best_ratio:
                best, best_ratio, best_noise = settings, ratio, noise
    if 1 - best_ratio <= max(best_noise, LEAST_GAIN):
        return None, 1.0
    return best, best_ratio


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="where the record of all times goes")
    parser.add_argument("--out", type=Path, default=_tuning.TABLE, help="the table of winners, added to")
    parser.add_argument("--only", default=",".join(GRID), help="kernels, with commas: " + ", ".join(GRID))
    parser.add_argument("--seconds", type=float, default=120.0, help="no kernel is begun after so long")


def main(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.seconds
    kernels = options.only.split(",")
    if unknown := set(kernels) - set(GRID):
        print(f"--only: no kernel {', '.join(sorted(unknown))}; there are {', '.join(GRID)}", file=sys.stderr)
        return 2
    kind = _tuning.kind_of_gpu()
    if kind is None:
        print("no GPU found: torch.cuda.is_available() is false", file=sys.stderr)
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    record: dict[str, Any] = {
        "schema": 1,
        "datetime": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device_description(),
        "kind": kind,
        "kernels": {},
    }
    path = record_path(options.folder, "tuning", record["device"]["name"], now.date())
    compile_all(kernels, options.seconds / 2)
    print(f"compiled after {time.monotonic() - deadline + options.seconds:.0f} s", flush=True)
    timer = DeviceTimer()
    for kernel in kernels:
        if time.monotonic() > deadline:
            print(f"{kernel}: not begun, out of time", flush=True)
            continue
        tuned = GRID[kernel]
        try:
            lines = lines_of(kernel, "cuda", Sizes())
            by_line = {line.case: timed(kernel, tuned, line, timer) for line in lines}
            best, ratio = winner(tuned, by_line)
        except Exception as error:
            print(f"{kernel} failed: {first_line(error)}", flush=True)
            record["kernels"][kernel] = {"failed": first_line(error)}
            continue
        record["kernels"][kernel] = {"winner": best, "share_of_default_time": ratio, "lines": by_line}
        write(path, record)
        table = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        write(options.out, merged(table, kind, {kernel: best}))
        lines_of.cache_clear()
        torch.cuda.empty_cache()
        said = f"{as_text(best)}: {ratio:.3f} of the default's time" if best else "the defaults are best"
        print(f"{kernel}: {said}", flush=True)
    print(f"recorded in {path}")
    return 0
