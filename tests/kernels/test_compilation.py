"""Every kernel compiles for GPUs that are not here, within its budget of registers and memory, and of spills if any."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import ahead_of_time
import pytest

SCRIPT = Path(ahead_of_time.__file__)
AMD_REGISTERS = 96
AMD_SHARED = 65536

# Registers a thread on the NVIDIA targets (the most seen and a few more, as compilers differ), bytes shared.
BUDGETS = {
    "assign": (48, 0),
    "assign_forced": (64, 128),
    "classification_features_bf16": (184, 32800),
    "classification_features_fp32": (136, 32768),
    "classification_log_sum_bf16": (144, 73760),
    "classification_log_sum_fp32": (128, 16384),
    "classification_merge": (48, 0),
    "classification_weights_bf16": (192, 32800),
    "classification_weights_fp32": (120, 12288),
    "classify_bf16": (216, 98336),
    "classify_bf16_contiguous": (216, 98336),
    "classify_fp32": (128, 16384),
    "decode_bf16": (72, 512),
    "decode_channels_first": (88, 512),
    "decode_classified": (72, 512),
    "decode_classified_rows": (72, 512),
    "decode_fp32": (88, 512),
    "labelled_cells": (64, 256),
    "match": (40, 0),
    "merge_chunks": (40, 0),
    "nms": (80, 8192),
    "nms_agnostic": (72, 8192),
    "nms_finisher": (136, 1024),
    "nms_kept": (40, 0),
    "nms_lay_out": (72, 0),
    "nms_output": (56, 0),
    "nms_place_key": (56, 0),
    "nms_rank_key": (64, 0),
    "nms_round": (160, 512),
    "pairwise_tiou": (80, 8192),
    "pick": (40, 2048),
    "proposal_loss_backward": (40, 0),
    "proposal_loss_bf16": (64, 0),
    "proposal_loss_channels_first": (64, 0),
    "proposal_loss_fp32": (64, 0),
    "proposal_loss_mean": (64, 128),
    "resample": (128, 8192),
    "resample_checked": (128, 8192),
    "resample_backward": (80, 4096),
    "soft_nms_gaussian": (40, 128),
    "soft_nms_linear": (40, 128),
    "stretch": (160, 8192),
    "stretch_backward": (80, 8192),
    # As tuned for one kind of GPU.
    "assign, sm_90": (32, 0),
    "classification_features_bf16, sm_90": (184, 73760),
    "classification_weights_bf16, sm_90": (216, 49184),
    "classify_bf16, sm_90": (255, 98336),
    "pairwise_tiou, sm_90": (48, 0),
    "pick, sm_90": (32, 0),
    "resample, sm_90": (136, 8192),
    "resample_backward, sm_90": (80, 0),
    "resample_checked, sm_90": (136, 8192),
    "soft_nms_gaussian, sm_90": (48, 128),
    "soft_nms_linear, sm_90": (72, 128),
    "stretch_backward, sm_90": (72, 0),
}

# Kernels that multiply matrices hold a tile of sums; those that hold one of means are few registers above the others.
AMD_REGISTERS_OF = {
    "stretch": 104,
    "classification_features_bf16": 144,
    "classification_features_fp32": 144,
    "classification_log_sum_bf16": 96,
    "classification_weights_bf16": 248,
    "classification_weights_fp32": 192,
    "classify_bf16": 144,
    "classify_bf16_contiguous": 168,
}
# Bytes that a program of one warp takes to merge its lanes, or that hold what is spilled.
STACKS = {"decode_channels_first": 8, "classify_bf16, sm_90": 8}
# Bytes. With 4 warps a thread has 128 sums: a few bytes spill, and 2,000 classes still take 87 us on an H200 where the
# default of 8 warps, without spills, takes 136.
SPILLS = {"classify_bf16, sm_90": 8}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A process that compiles, and the file of what it says on standard error."""
    folder = tmp_path_factory.mktemp("compiler")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    said = folder / "stderr"
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, SCRIPT],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        yield process, said
        process.stdin.close()


def is_the_pinned_compiler():
    constraints = Path(__file__).parents[2] / "constraints.txt"
    return f"triton=={version('triton')}" in constraints.read_text(encoding="utf-8").splitlines()


@pytest.mark.aot
@pytest.mark.skipif(not is_the_pinned_compiler(), reason="the budgets are those of the Triton in constraints.txt")
@pytest.mark.parametrize("name", ahead_of_time.LAUNCHED)
def test_it_compiles_within_its_budget(name, compiler):
    process, said = compiler
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert said.read_text() == ""
    found = json.loads(answer)
    assert set(found) == set(ahead_of_time.LAUNCHED[name].targets)
    for target, usage in found.items():
        registers, shared = BUDGETS[name]
        assert usage["spills"] <= SPILLS.get(name, 0), target
        assert usage["stack"] <= STACKS.get(name, 0), target
        if target.startswith("gfx"):
            registers = AMD_REGISTERS_OF.get(name, AMD_REGISTERS)
            shared = min(shared, AMD_SHARED)
        assert usage["registers"] <= registers, target
        assert usage["shared"] <= shared, target


def test_every_kernel_of_the_package_is_compiled():
    import ahernet_kernels

    folder = Path(ahernet_kernels.__file__).parent
    defined = {
        line.split("(")[0].removeprefix("def ")
        for path in folder.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    assert defined == {variant.kernel for variant in ahead_of_time.VARIANTS.values()}
