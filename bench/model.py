"""A model of the kernels where there is no GPU: read from the compiled code, nothing is timed.

    python -m bench model [--out FILE] [--only nms,decode_bf16]

For sm_90, as `tests/support/ahead_of_time.py` compiles them: registers and shared memory, how many warps these let an
SM hold, and instructions in the code by kind. Instructions are counted where they stand, not how often they run, so
loops count once. And for each op on a batch of 64 what it must move and compute, from `bench.costs`.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = "sm_90"
WARPS, BLOCKS, REGISTERS, SHARED = 64, 32, 65536, 233472  # of one SM of compute capability 9.0
REGISTER_UNIT, SHARED_UNIT, SHARED_OF_BLOCK = 256, 128, 1024  # of allocation; the last is what every block takes
SECONDS = 300
KINDS = {
    "global memory": r"(LD|ST|RED|ATOM|LDGSTS|UBLKCP|UTMALDG|UTMASTG)(G|\.|$)",
    "shared memory": r"(LDS|STS|LDSM|STSM|ATOMS|SHFL)",
    "exponentials": r"MUFU\.EX2",
    "other special": r"MUFU\.(?!EX2)",
    "tensor cores": r"(HGMMA|HMMA)",
    "barriers": r"(BAR|WARPSYNC|DEPBAR|SYNCS)",
}
GROUPS = ("decode", "nms", "assign", "resample", "soft_nms", "proposal_loss", "classify", "pick", "pairwise_tiou")
GROUPS += ("classification_loss", "decode_classified", "stretch")


def ahead_of_time() -> ModuleType:
    """The module of the tests that compiles without a GPU."""
    path = ROOT / "tests" / "support" / "ahead_of_time.py"
    specification = importlib.util.spec_from_file_location("ahead_of_time", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["ahead_of_time"] = module
    specification.loader.exec_module(module)
    return module


def instruction_counts(sass: str) -> dict[str, int]:
    """How many instructions the code has, of each kind; padding behind the end is not counted."""
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass)
    names = [name for name in names if name != "NOP"]
    counts = {kind: sum(re.match(pattern, name) is not None for name in names) for kind, pattern in KINDS.items()}
    return {"instructions": len(names), **counts}


def warps_on_a_multiprocessor(registers: int, shared: int, warps: int) -> int:
    """How many warps of such blocks an SM can hold at once."""
    of_a_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // (of_a_warp * warps)
    by_shared = SHARED // (-(-(shared + SHARED_OF_BLOCK) // SHARED_UNIT) * SHARED_UNIT)
    return min(by_registers, by_shared, BLOCKS, WARPS // warps) * warps


def described(name: str) -> dict[str, Any]:
    """Compile one kernel and say what it uses."""
    import triton

    compiler = ahead_of_time()
    variant = compiler.VARIANTS[name]
    compiled = compiler.compile_for(variant, TARGET)
    usage, shared = compiler.nvidia_usage(compiled), compiled.metadata.shared
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        sass = subprocess.run([tool, "-c", binary], capture_output=True, text=True, check=True).stdout
    warps = compiled.metadata.num_warps
    return {
        **usage,
        "shared": shared,
        "warps": warps,
        "warps_on_a_multiprocessor": warps_on_a_multiprocessor(usage["registers"], shared, warps),
        **instruction_counts(sass),
    }


def in_a_process(name: str) -> dict[str, Any]:
    """`described`, or why not: an error inside the compiler can take its process with it."""
    command = [
        sys.executable,
        "-c",
        f"import json; from bench.model import described; print(json.dumps(described({name!r})))",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {SECONDS} s"}
    if run.returncode:
        return {"failed": (run.stderr.strip().splitlines() or ["the compiler crashed"])[-1][:200]}
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def costs_of_a_batch() -> list[dict[str, Any]]:
    """What each op must move and compute at a batch of 64, on the CPU."""
    from bench import lines

    sizes = lines.Sizes(batch=64, small_batch=64, resampled_videos=4, soft_candidates=())
    found = {}
    for group in GROUPS:
        for line in lines.GROUPS[group]("cpu", sizes):
            cost = line.cost_of(line.call(*line.arguments))
            found[line.op, line.case] = {"op": line.op, "case": line.case, **vars(cost)}
    return list(found.values())


def text_of(record: dict[str, Any]) -> str:
    """The record as two tables."""
    names = ("registers", "stack", "spills", "shared", "warps", "warps_on_a_multiprocessor", "instructions", *KINDS)
    short = (
        "regs",
        "stack",
        "spills",
        "shared",
        "warps",
        "warps/SM",
        "instr.",
        "global",
        "smem",
        "exp",
        "mufu",
        "tensor",
        "bar",
    )
    rows = [record["what"], f"{'kernel':28}" + "".join(f"{name:>9}" for name in short)]
    for kernel, found in record["kernels"].items():
        cells = f"failed: {found['failed']}" if "failed" in found else "".join(f"{found[name]:9}" for name in names)
        rows.append(f"{kernel:28}{cells}")
    rows += ["", f"{'op':20}{'case':44}{'MB':>10}{'Mop':>12}{'bf16 Mop':>12}{'op/byte':>10}"]
    for cost in record["costs"]:
        total = cost["operations"] + cost["matrix_operations"]
        rows.append(
            f"{cost['op']:20}{cost['case']:44}{cost['bytes'] / 1e6:10.2f}{cost['operations'] / 1e6:12.1f}"
            f"{cost['matrix_operations'] / 1e6:12.1f}{total / cost['bytes']:10.2f}"
        )
    return "\n".join(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="JSON file to write as well")
    parser.add_argument("--only", help="kernels of ahead_of_time.py, with commas; all by default")


def main(options: argparse.Namespace) -> int:
    from bench.gpu import commit

    names = options.only.split(",") if options.only else list(ahead_of_time().VARIANTS)
    with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        kernels = dict(zip(names, pool.map(in_a_process, names), strict=True))
    record = {
        "what": f"MODEL, not a measurement: read from code that Triton compiled for {TARGET}; nothing ran on a GPU.",
        "commit": commit(),
        "kernels": kernels,
        "costs": costs_of_a_batch(),
    }
    print(text_of(record))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if any("failed" in found for found in kernels.values()) else 0
