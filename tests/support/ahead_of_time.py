"""Compile kernels for GPUs that need not be present, and print what they use as JSON.

Reads names from standard input, a line each; in a process of its own, because an error inside the compiler can take it
along. `VARIANTS` lists what the launchers launch by default, at the sizes of the paper; `LAUNCHED` has beside these
what they launch where `tuning.json` has other settings for a kind of GPU.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels" / "ahernet_kernels"
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


# Sizes that the kernels of `nms_large` take besides pointers.
SIZES = {
    "finisher_kernel": ("candidates", "outputs"),
    "kept_kernel": ("candidates",),
    "lay_out_kernel": ("candidates",),
    "output_kernel": ("candidates", "outputs"),
    "place_key_kernel": ("candidates",),
    "rank_key_kernel": ("candidates",),
    "round_kernel": ("candidates", "number"),
}


@dataclass(frozen=True)
class Variant:
    """A kernel with the argument types and constants that a launcher gives it."""

    module: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, object]
    num_warps: int = 4
    unaligned: tuple[str, ...] = field(default=())
    """Sizes that are not a multiple of 16."""
    num_stages: int | None = None
    """Steps of a loop in flight, or None for what the target does by itself."""
    targets: tuple[str, ...] = tuple(TARGETS)


def per_scale(dtype: str, *kinds: str) -> dict[str, str]:
    """Types of the pointers that a kernel takes for each of 8 scales."""
    return {f"{kind}_{j}": f"*{dtype}" for kind in kinds for j in range(8)}


DEPTHS = (256, 256, 512, 512, 1024, 1024, 2048, 2048)


def scale_sizes(order: range) -> dict[str, object]:
    """Cells and channels of the scales of the paper, in the order that a kernel takes them."""
    places = {f"D{place}": DEPTHS[j] for place, j in enumerate(order)}
    return places | {f"T{place}": 128 >> j for place, j in enumerate(order)}


def classify_variant(dtype: str, channels_last: bool) -> Variant:
    tile = {"BLOCK_ROWS": 64, "BLOCK_CLASSES": 64, "BLOCK_D": 16}
    if dtype != "fp32":
        tile = {"BLOCK_ROWS": 128, "BLOCK_CLASSES": 128, "BLOCK_D": 64}
    first_cells = {f"C{j}": 255 - (2 << j) + 1 for j in range(8)}
    outputs = {"top_ptr": "*fp32", "total_ptr": "*fp32", "label_ptr": "*i32", "videos": "i32", "classes": "i32"}
    return Variant(
        "classify",
        "classify_kernel",
        per_scale(dtype, "features", "weights", "biases") | outputs,
        scale_sizes(range(7, -1, -1)) | first_cells | {"CHANNELS_LAST": int(channels_last)} | tile,
        num_warps=8,
        unaligned=("videos", "classes"),
        num_stages=3,
    )


def labelled_types(dtype: str) -> dict[str, str]:
    """What kernels of `classification_loss` take of all scales."""
    types = dict.fromkeys(("labels_ptr", "order_ptr", "ends_ptr"), "*i64")
    return per_scale(dtype, "features", "weights", "biases") | types | {"videos": "i32", "classes": "i32"}


def log_sum_variant(dtype: str, tile: tuple[int, int, int]) -> Variant:
    return Variant(
        "classification_loss",
        "log_sum_kernel",
        labelled_types(dtype) | {"part_ptr": "*fp32", "picked_ptr": "*fp32"},
        scale_sizes(range(8)) | dict(zip(("BLOCK_ROWS", "BLOCK_CLASSES", "BLOCK_D"), tile, strict=True)),
        num_warps=8,
        unaligned=("videos", "classes"),
        num_stages=3,
    )


def classification_gradient_variant(kind: str, dtype: str, tile: tuple[int, int, int, int]) -> Variant:
    outputs = ("output_ptr",) if kind == "feature" else ("weight_output_ptr", "bias_output_ptr")
    types = {"gradient_ptr": "*fp32", "log_sum_ptr": "*fp32", **dict.fromkeys(outputs, f"*{dtype}")}
    return Variant(
        "_classification_gradients",
        f"{kind}_gradient_kernel",
        labelled_types(dtype) | types,
        scale_sizes(range(8)) | dict(zip(("BLOCK_ROWS", "BLOCK_CLASSES", "BLOCK_D", "BLOCK_OUT"), tile, strict=True)),
        num_warps=8,
        unaligned=("videos", "classes"),
        num_stages=2,
    )


def decode_classified_variant(channels_last: bool) -> Variant:
    pointers = {"probability_ptr": "*fp32", "cell_labels_ptr": "*i64", "anchors_ptr": "*fp32", "segments_ptr": "*fp32"}
    sizes = {f"T{j}": 128 >> j for j in range(8)} | {"RATIOS": 3, "CENTRE_SCALE": 1.0, "WIDTH_SCALE": 1.0}
    return Variant(
        "decode_classified",
        "decode_classified_kernel",
        per_scale("bf16", "offsets", "overlaps") | pointers | {"scores_ptr": "*fp32", "labels_ptr": "*i64"},
        sizes | {"CHANNELS_LAST": channels_last, "BLOCK_ANCHORS": 128},
    )


def decode_variant(dtype: str, channels_last: bool) -> Variant:
    outputs = {f"{name}_{j}": f"*{dtype}" for name in ("logits", "offsets", "overlaps") for j in range(8)}
    pointers = {"anchors_ptr": "*fp32", "segments_ptr": "*fp32", "scores_ptr": "*fp32", "labels_ptr": "*i64"}
    lengths = {f"T{j}": 128 >> j for j in range(8)}
    constants = {"RATIOS": 3, "CENTRE_SCALE": 1.0, "WIDTH_SCALE": 1.0, "CHANNELS_LAST": channels_last}
    tile = {"GROUP": 8, "BLOCK_CLASSES": 64, "BLOCK_CELLS": 8, "BLOCK_ANCHORS": 32}
    if not channels_last:
        tile = {"GROUP": 4, "BLOCK_CLASSES": 16, "BLOCK_CELLS": 16, "BLOCK_ANCHORS": 64}
    constants |= {**tile, "CLASSES_DIVISOR": 8}
    scratch = {"probability_ptr": "*fp32", "cell_labels_ptr": "*i32"}
    return Variant(
        "decode",
        "decode_kernel",
        {**outputs, **scratch, **pointers, "classes": "i32"},
        {**lengths, **constants},
        num_warps=1,
        unaligned=("classes",),
    )


def nms_variant(class_aware: bool) -> Variant:
    types = {
        "segments_ptr": "*fp32",
        "scores_ptr": "*fp32",
        "labels_ptr": "*i64" if class_aware else "*fp32",
        "ranked_segments_ptr": "*fp32",
        "ranked_labels_ptr": "*i32",
        "index_ptr": "*i64",
        "count_ptr": "*i64",
        "candidates": "i32",
        "outputs": "i32",
    }
    constants = {"MIN_SCORE_BITS": 0, "TIOU_THRESHOLD": 0.9, "CLASS_AWARE": class_aware, "BLOCK": 1024}
    return Variant("nms", "nms_kernel", types, constants, num_warps=8, unaligned=("candidates", "outputs"))


def large_nms_variant(module: str, kernel: str, pointers: tuple[str, ...], constants: dict[str, object]) -> Variant:
    num_warps = {"finisher_kernel": 8, "round_kernel": 1}.get(kernel, 4)
    element = dict.fromkeys(("segments_ptr", "scores_ptr", "end_ptr"), "*fp32") | {"state_ptr": "*i8"}
    element |= dict.fromkeys(("rank_ptr", "place_ptr", "kept_ptr", "number_kept_ptr", "undecided_ptr"), "*i32")
    types = {name: element.get(name, "*i64") for name in pointers} | dict.fromkeys(SIZES[kernel], "i32")
    return Variant(module, kernel, types, constants, num_warps, SIZES[kernel])


def assign_variant(force_match: bool) -> Variant:
    names = ("anchors_ptr", "gt_segments_ptr", "gt_labels_ptr", "gt_offsets_ptr", "kind_ptr", "labels_ptr")
    types = dict.fromkeys(names, "*i64") | {"anchors_ptr": "*fp32", "gt_segments_ptr": "*fp32"}
    types |= {"targets_ptr": "*fp32", "tiou_ptr": "*fp32", "anchors": "i32"}
    constants = {
        "FOREGROUND_THRESHOLD": 0.8,
        "BACKGROUND_THRESHOLD": 0.3,
        "FORCE_MATCH": force_match,
        "BLOCK_A": 1024 if force_match else 256,
    }
    num_warps = 16 if force_match else 4
    return Variant("assign", "assign_kernel", types, constants, num_warps=num_warps, unaligned=("anchors",))


def proposal_loss_variant(dtype: str, channels_last: bool) -> Variant:
    outputs = {f"{name}_{j}": f"*{dtype}" for name in ("offsets", "overlaps") for j in range(8)}
    names = ("anchors_ptr", "kind_ptr", "targets_ptr", "tiou_ptr", "gradient_ptr", "sums_ptr")
    pointers = dict.fromkeys(names, "*fp32") | {"kind_ptr": "*i64"}
    constants = {"RATIOS": 3, "CENTRE_SCALE": 1.0, "WIDTH_SCALE": 1.0, "CHANNELS_LAST": channels_last}
    constants |= {"BLOCK_CELLS": 32}
    lengths = {f"T{j}": 128 >> j for j in range(8)}
    return Variant(
        "proposal_loss", "proposal_loss_kernel", {**outputs, **pointers}, {**lengths, **constants}, num_warps=1
    )


def resample_variant(checked: bool, dtype: str) -> Variant:
    types = {
        "features_ptr": "*fp16",
        "offsets_ptr": "*i64",
        "output_ptr": f"*{dtype}",
        "finite_ptr": "*i1" if checked else f"*{dtype}",
        "dimension": "i32",
    }
    constants = {"STEPS": 512, "CHECKED": checked, "BLOCK_T": 2, "BLOCK_D": 2048}
    return Variant("resample", "resample_kernel", types, constants, num_warps=2)


def soft_nms_variant(gaussian: bool) -> Variant:
    types = {
        "segments_ptr": "*fp32",
        "scores_ptr": "*fp32",
        "labels_ptr": "*i64",
        "decayed_ptr": "*fp32",
        "index_ptr": "*i64",
        "kept_scores_ptr": "*fp32",
        "count_ptr": "*i64",
        "candidates": "i32",
        "outputs": "i32",
    }
    constants = {"MIN_SCORE_BITS": 0, "GAUSSIAN": gaussian, "PARAMETER": 0.5, "CLASS_AWARE": True, "BLOCK": 256}
    return Variant("soft_nms", "soft_nms_kernel", types, constants, num_warps=8, unaligned=("candidates", "outputs"))


def stretch_variant() -> Variant:
    pointers = {"before_ptr": "*bf16", "middle_ptr": "*fp32", "after_ptr": "*bf16", "lengths_ptr": "*i64"}
    pointers["shown_ptr"] = "*i64"
    sizes = ("rows_before", "rows_middle", "rows_after", "sequences", "steps", "dimension")
    types = {**pointers, "output_ptr": "*fp32", **dict.fromkeys(sizes, "i32")}
    return Variant("stretch", "stretch_kernel", types, {"BLOCK_T": 2, "BLOCK_D": 2048}, num_warps=2)


def stretch_backward_variant() -> Variant:
    types = {"gradient_ptr": "*fp32", "lengths_ptr": "*i64", "shown_ptr": "*i64", "output_ptr": "*bf16"}
    types |= dict.fromkeys(("total_rows", "rows", "sequences", "steps", "dimension"), "i32")
    constants = {"PIECE": 2, "BLOCK_ROWS": 2, "BLOCK_D": 1024}
    return Variant("stretch", "stretch_backward_kernel", types, constants)


VARIANTS = {
    "assign": assign_variant(force_match=False),
    "assign_forced": assign_variant(force_match=True),
    "classification_features_bf16": classification_gradient_variant("feature", "bf16", (64, 64, 64, 128)),
    "classification_features_fp32": classification_gradient_variant("feature", "fp32", (64, 64, 16, 64)),
    "classification_log_sum_bf16": log_sum_variant("bf16", (64, 128, 64)),
    "classification_log_sum_fp32": log_sum_variant("fp32", (64, 64, 16)),
    "classification_merge": Variant(
        "classification_loss",
        "merge_log_sums_kernel",
        {
            "order_ptr": "*i64",
            **dict.fromkeys(("part_ptr", "picked_ptr", "loss_ptr", "log_sum_ptr"), "*fp32"),
            **dict.fromkeys(("rows", "chunks"), "i32"),
        },
        {"BLOCK": 128},
        unaligned=("rows", "chunks"),
    ),
    "classification_weights_bf16": classification_gradient_variant("weight", "bf16", (64, 64, 64, 128)),
    "classification_weights_fp32": classification_gradient_variant("weight", "fp32", (32, 32, 16, 64)),
    "classify_bf16": classify_variant("bf16", channels_last=True),
    "classify_bf16_contiguous": classify_variant("bf16", channels_last=False),
    "classify_fp32": classify_variant("fp32", channels_last=True),
    "decode_bf16": decode_variant("bf16", channels_last=True),
    "decode_classified": decode_classified_variant(channels_last=False),
    "decode_classified_rows": decode_classified_variant(channels_last=True),
    "decode_fp32": decode_variant("fp32", channels_last=True),
    "decode_channels_first": decode_variant("bf16", channels_last=False),
    "labelled_cells": Variant(
        "_labelled_cells",
        "labelled_cells_kernel",
        {**dict.fromkeys(("labels_ptr", "order_ptr", "ends_ptr"), "*i64"), "videos": "i32", "classes": "i32"},
        {f"T{j}": 128 >> j for j in range(8)} | {"BLOCK": 2048},
        num_warps=8,
        unaligned=("videos", "classes"),
    ),
    "match": Variant(
        "match",
        "match_kernel",
        {
            "anchors_ptr": "*fp32",
            "gt_segments_ptr": "*fp32",
            "gt_offsets_ptr": "*i64",
            "index_ptr": "*i64",
            "tiou_ptr": "*fp32",
            "anchors": "i32",
        },
        {"BLOCK_A": 256},
        unaligned=("anchors",),
    ),
    "merge_chunks": Variant(
        "classify",
        "merge_chunks_kernel",
        {
            "top_ptr": "*fp32",
            "total_ptr": "*fp32",
            "label_ptr": "*i32",
            "probability_ptr": "*fp32",
            "labels_ptr": "*i64",
            "cells": "i32",
            "chunks": "i32",
        },
        {"BLOCK": 128},
        unaligned=("cells", "chunks"),
    ),
    "nms": nms_variant(class_aware=True),
    "nms_agnostic": nms_variant(class_aware=False),
    "nms_finisher": large_nms_variant(
        "_decide",
        "finisher_kernel",
        ("key_ptr", "end_ptr", "state_ptr", "place_ptr", "undecided_ptr"),
        {"ROUNDS": 3, "TIOU_THRESHOLD": 0.9, "BLOCK": 1024, "BLOCK_NEAR": 32},
    ),
    "nms_kept": large_nms_variant("nms_large", "kept_kernel", ("state_ptr", "place_ptr", "kept_ptr"), {"BLOCK": 1024}),
    "nms_lay_out": large_nms_variant(
        "nms_large",
        "lay_out_kernel",
        (
            "rank_key_ptr",
            "place_key_ptr",
            "order_ptr",
            "segments_ptr",
            "end_ptr",
            "rank_ptr",
            "place_ptr",
            "state_ptr",
            "undecided_ptr",
        ),
        {"ROUNDS": 3, "BLOCK": 1024},
    ),
    "nms_output": large_nms_variant(
        "nms_large", "output_kernel", ("rank_key_ptr", "number_kept_ptr", "index_ptr", "count_ptr"), {"BLOCK": 1024}
    ),
    "nms_place_key": large_nms_variant(
        "nms_large",
        "place_key_kernel",
        ("rank_key_ptr", "segments_ptr", "labels_ptr", "place_key_ptr"),
        {"CLASS_AWARE": True, "BLOCK": 1024},
    ),
    "nms_rank_key": large_nms_variant(
        "nms_large",
        "rank_key_kernel",
        ("segments_ptr", "scores_ptr", "rank_key_ptr"),
        {"MIN_SCORE_BITS": 0, "BLOCK": 1024},
    ),
    "nms_round": large_nms_variant(
        "_decide",
        "round_kernel",
        ("key_ptr", "rank_ptr", "end_ptr", "state_ptr", "undecided_ptr"),
        {"ROUNDS": 3, "TIOU_THRESHOLD": 0.9, "BLOCK": 32, "BLOCK_NEAR": 16},
    ),
    "pairwise_tiou": Variant(
        "pairwise_tiou",
        "pairwise_tiou_kernel",
        {"a_ptr": "*fp32", "b_ptr": "*fp32", "tiou_ptr": "*fp32", "n": "i32", "m": "i32"},
        {"BLOCK_N": 16, "BLOCK_M": 128},
    ),
    "pick": Variant(
        "pick",
        "pick_kernel",
        {
            "segments_ptr": "*fp32",
            "scores_ptr": "*fp32",
            "labels_ptr": "*i64",
            "index_ptr": "*i64",
            "picked_segments_ptr": "*fp32",
            "picked_scores_ptr": "*fp32",
            "picked_labels_ptr": "*i64",
            "rows": "i32",
            "candidates": "i32",
            "outputs": "i32",
        },
        {"BLOCK": 256},
        unaligned=("rows", "candidates", "outputs"),
    ),
    "proposal_loss_bf16": proposal_loss_variant("bf16", channels_last=True),
    "proposal_loss_channels_first": proposal_loss_variant("bf16", channels_last=False),
    "proposal_loss_fp32": proposal_loss_variant("fp32", channels_last=True),
    "proposal_loss_mean": Variant(
        "proposal_loss",
        "proposal_loss_mean_kernel",
        {
            **dict.fromkeys(("sums_ptr", "offset_ptr", "overlap_ptr", "divisor_ptr"), "*fp32"),
            "tiles": "i32",
            "anchors": "i32",
        },
        {"BLOCK": 1024},
        unaligned=("tiles", "anchors"),
    ),
    "proposal_loss_backward": Variant(
        "proposal_loss",
        "proposal_loss_backward_kernel",
        {
            **dict.fromkeys(("gradient_ptr", "offset_gradient_ptr", "overlap_gradient_ptr", "divisor_ptr"), "*fp32"),
            "output_ptr": "*bf16",
            "anchors": "i32",
        },
        {"BLOCK": 1024},
        unaligned=("anchors",),
    ),
    "resample": resample_variant(checked=False, dtype="fp32"),
    "resample_backward": Variant(
        "resample",
        "resample_backward_kernel",
        {
            "gradient_ptr": "*fp32",
            "offsets_ptr": "*i64",
            "video_ptr": "*i64",
            "output_ptr": "*fp32",
            "total_rows": "i32",
            "videos": "i32",
            "dimension": "i32",
        },
        {"STEPS": 512, "BLOCK_ROWS": 4, "BLOCK_D": 256},
        unaligned=("total_rows", "videos"),
    ),
    "resample_checked": resample_variant(checked=True, dtype="bf16"),
    "soft_nms_gaussian": soft_nms_variant(gaussian=True),
    "soft_nms_linear": soft_nms_variant(gaussian=False),
    "stretch": stretch_variant(),
    "stretch_backward": stretch_backward_variant(),
}


# The variants of kernels that `tuning.json` has by another name; contiguous maps are not launched as tuned.
OF_TUNED = {
    "classify": ("classify_bf16",),
    "feature_gradient": ("classification_features_bf16",),
    "resample": ("resample", "resample_checked"),
    "soft_nms": ("soft_nms_gaussian", "soft_nms_linear"),
    "weight_gradient": ("classification_weights_bf16",),
}


def tuned(variant: Variant, settings: dict[str, int], target: str) -> Variant:
    """The variant with what was measured to be best on one kind of GPU."""
    tile = {name: value for name, value in settings.items() if name not in ("num_warps", "num_stages")}
    launch = {name: value for name, value in settings.items() if name not in tile}
    return replace(variant, constants=variant.constants | tile, targets=(target,), **launch)


def tuned_variants() -> dict[str, Variant]:
    table = json.loads((KERNELS / "tuning.json").read_text())
    return {
        f"{name}, {target}": tuned(VARIANTS[name], settings, target)
        for target in TARGETS
        for kernel, settings in table.get(target, {}).items()
        for name in OF_TUNED.get(kernel, (kernel,))
    }


LAUNCHED = VARIANTS | tuned_variants()


def compile_for(variant: Variant, target: str):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"ahernet_kernels.{variant.module}"), variant.kernel)
    signature = {name: variant.types.get(name, "constexpr") for name in kernel.arg_names}
    positions = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={positions[name]: value for name, value in variant.constants.items()},
        attrs={positions[name]: [["tt.divisibility", 16]] for name in variant.types if name not in variant.unaligned},
    )
    options = {"num_warps": variant.num_warps}
    if variant.num_stages is not None:
        options["num_stages"] = variant.num_stages
    return triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)


def nvidia_usage(compiled) -> dict[str, int]:
    """Registers, stack and spills as ptxas reports them."""
    import triton

    ptx = compiled.asm["ptx"]
    gpu = re.search(r"\.target (\S+)", ptx).group(1)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptxas = tools / ("ptxas-blackwell" if gpu.startswith("sm_10") and (tools / "ptxas-blackwell").exists() else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", f"--gpu-name={gpu}", source, "-o", Path(folder) / "kernel.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stack, stores, loads = map(
        int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", report).groups()
    )
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    return {"registers": registers, "stack": stack, "spills": stores + loads}


def amd_usage(compiled) -> dict[str, int]:
    text = compiled.asm["amdgcn"]

    def figure(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))

    return {
        "registers": figure("vgpr_count"),
        "stack": figure("private_segment_fixed_size"),
        "spills": figure("vgpr_spill_count") + figure("sgpr_spill_count"),
    }


def main() -> None:
    """Compile each variant named on a line of stdin for all its targets, in one process: importing takes long."""
    for line in sys.stdin:
        found, variant = {}, LAUNCHED[line.strip()]
        for target in variant.targets:
            compiled = compile_for(variant, target)
            usage = amd_usage(compiled) if target.startswith("gfx") else nvidia_usage(compiled)
            found[target] = {**usage, "shared": compiled.metadata.shared}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
