"""Which tile sizes and warps are tried for each kernel, and on what: the table that `python -m bench tune` reads."""

import importlib
import itertools
from dataclasses import dataclass
from typing import Any

Settings = dict[str, int]


@dataclass(frozen=True)
class Tuned:
    """A kernel as its launcher names it, where its defaults stand, the lines it is timed on, and what is tried."""

    module: str
    groups: tuple[str, ...]
    op: str
    tried: tuple[Settings, ...]
    attribute: str = "DEFAULTS"
    only: str = ""
    """Lines whose case says this."""
    but: str | None = None
    """No lines whose case says this."""

    def defaults(self) -> Settings:
        """The settings that the file of the kernel has."""
        found: Settings = getattr(importlib.import_module(f"ahernet_kernels.{self.module}"), self.attribute)
        return dict(found)


def every(**choices: tuple[int, ...]) -> tuple[Settings, ...]:
    """All combinations."""
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def tiles(names: str, *rows: tuple[int, ...]) -> tuple[Settings, ...]:
    """Chosen combinations, one a row."""
    return tuple(dict(zip(names.split(), row, strict=True)) for row in rows)


GRADIENT_TILES = tiles(
    "BLOCK_ROWS BLOCK_CLASSES BLOCK_D BLOCK_OUT num_warps num_stages",
    (64, 64, 64, 128, 4, 2),
    (64, 64, 64, 128, 4, 3),
    (32, 64, 64, 128, 4, 2),
    (32, 64, 64, 256, 8, 2),
    (64, 64, 64, 256, 8, 2),
    (64, 64, 64, 256, 8, 3),
    (64, 128, 64, 128, 8, 3),
    (128, 64, 64, 128, 8, 3),
    (64, 64, 32, 128, 8, 3),
)
GRID: dict[str, Tuned] = {
    "decode": Tuned(
        "decode",
        ("decode_last",),
        "decode",
        tiles(
            "GROUP BLOCK_CLASSES BLOCK_CELLS num_warps",
            *((8, 64, cells, warps) for cells, warps in itertools.product((8, 16), (1, 2))),
            *((8, 64, cells, 4) for cells in (16, 32)),
            *((8, 128, 16, warps) for warps in (2, 4)),
            *((8, 128, 8, warps) for warps in (1, 2)),
            *((8, 32, 16, warps) for warps in (1, 2)),
            (8, 64, 4, 1),
        ),
    ),
    "nms": Tuned("nms", ("nms", "nms_sweep"), "nms", every(num_warps=(4, 8, 16))),
    "assign": Tuned(
        "assign",
        ("assign", "assign_sweep"),
        "assign",
        every(BLOCK_A=(64, 128, 256, 512), num_warps=(1, 2, 4)),
        but="forced",
    ),
    "resample": Tuned(
        "resample",
        ("resample",),
        "resample",
        tiles(
            "BLOCK_T BLOCK_D num_warps",
            *itertools.product((4, 8, 16), (256, 512), (4,)),
            *itertools.product((4, 8), (1024, 2048), (4, 8)),
            (2, 2048, 2),
            (2, 1024, 1),
            (4, 1024, 2),
            (4, 512, 2),
        ),
    ),
    "nms_large": Tuned(
        "nms_large",
        ("nms_large",),
        "nms",
        tiles(
            "ROUNDS BLOCK BLOCK_NEAR LAYOUT_BLOCK num_warps",
            (2, 32, 16, 1024, 1),
            (4, 32, 16, 1024, 1),
            (3, 16, 16, 1024, 1),
            (3, 32, 8, 1024, 1),
            (3, 32, 32, 1024, 1),
            (3, 32, 16, 1024, 2),
            (3, 64, 16, 1024, 1),
            (3, 64, 16, 1024, 2),
            (3, 64, 32, 1024, 2),
            (3, 32, 16, 256, 1),
        ),
    ),
    "classify": Tuned(
        "classify",
        ("classify",),
        "classify",
        tiles(
            "BLOCK_ROWS BLOCK_CLASSES BLOCK_D num_warps num_stages",
            (128, 128, 64, 8, 4),
            (128, 128, 64, 4, 3),
            (128, 128, 32, 8, 4),
            (128, 256, 64, 8, 3),
            (64, 256, 64, 8, 3),
            (64, 128, 64, 4, 4),
            (256, 128, 64, 8, 3),
            (64, 64, 64, 4, 4),
        ),
    ),
    "proposal_loss": Tuned(
        "proposal_loss",
        ("proposal_loss",),
        "proposal_loss",
        every(BLOCK_CELLS=(16, 32, 64, 128), num_warps=(1, 2, 4)),
    ),
    "decode_channels_first": Tuned(
        "decode",
        ("decode",),
        "decode",
        tiles(
            "GROUP BLOCK_CLASSES BLOCK_CELLS num_warps",
            *((group, 16, 32, 1) for group in (1, 2, 4)),
            *((group, 16, 16, 1) for group in (1, 4)),
            *((group, 32, 32, 1) for group in (2, 4)),
            (2, 32, 16, 1),
            (4, 8, 32, 1),
        ),
        "DEFAULTS_CHANNELS_FIRST",
    ),
    "soft_nms": Tuned("soft_nms", ("soft_nms",), "soft_nms", every(BLOCK=(256, 512, 1024), num_warps=(4, 8))),
    "resample_backward": Tuned(
        "resample",
        ("resample",),
        "resample backward",
        tiles("BLOCK_ROWS BLOCK_D num_warps", *itertools.product((2, 4, 8), (256, 512, 1024), (4,))),
        "BACKWARD_DEFAULTS",
    ),
    "stretch": Tuned(
        "stretch",
        ("stretch",),
        "stretch",
        tiles("BLOCK_T BLOCK_D num_warps", *itertools.product((1, 2, 4), (1024, 2048), (2, 4, 8))),
    ),
    "stretch_backward": Tuned(
        "stretch",
        ("stretch",),
        "stretch backward",
        tiles("BLOCK_ROWS BLOCK_D num_warps", *itertools.product((1, 2, 4), (512, 1024, 2048), (4, 8))),
        "BACKWARD_DEFAULTS",
    ),
    "assign_forced": Tuned(
        "assign",
        ("assign",),
        "assign",
        tiles("BLOCK_A num_warps", (256, 4), (512, 4), (1024, 4), (1024, 16)),
        "DEFAULTS_FORCED",
        only="forced",
    ),
    "proposal_loss_backward": Tuned(
        "proposal_loss",
        ("proposal_loss",),
        "proposal_loss",
        every(BLOCK=(512, 1024, 2048), num_warps=(4, 8)),
        "DEFAULTS_BACKWARD",
    ),
    "decode_classified": Tuned(
        "decode_classified",
        ("decode_classified",),
        "decode_classified",
        every(BLOCK_ANCHORS=(64, 128, 256), num_warps=(2, 4, 8)),
    ),
    "log_sum": Tuned(
        "classification_loss",
        ("classification_loss",),
        "classification_loss",
        tiles(
            "BLOCK_ROWS BLOCK_CLASSES BLOCK_D num_warps num_stages",
            (64, 128, 64, 4, 3),
            (64, 128, 64, 8, 4),
            (64, 64, 64, 4, 3),
            (64, 256, 64, 8, 3),
            (32, 128, 64, 4, 3),
            (128, 128, 64, 8, 3),
        ),
    ),
    "feature_gradient": Tuned(
        "_classification_gradients",
        ("classification_loss",),
        "classification_loss",
        GRADIENT_TILES,
    ),
    "weight_gradient": Tuned(
        "_classification_gradients",
        ("classification_loss",),
        "classification_loss",
        GRADIENT_TILES,
    ),
    "labelled_cells": Tuned(
        "_labelled_cells",
        ("classification_loss",),
        "classification_loss",
        every(BLOCK=(1024, 2048, 4096), num_warps=(8, 16)),
    ),
    "match": Tuned("match", ("assign",), "match", every(BLOCK_A=(64, 128, 256, 512), num_warps=(1, 2, 4))),
    "pick": Tuned("pick", ("pick",), "pick", every(BLOCK=(128, 256, 512), num_warps=(2, 4))),
    "pairwise_tiou": Tuned(
        "pairwise_tiou",
        ("pairwise_tiou",),
        "pairwise_tiou",
        every(BLOCK_N=(4, 16, 32), BLOCK_M=(128, 256), num_warps=(4, 8)),
    ),
}


def as_text(settings: Settings) -> str:
    """Settings as records name them."""
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))


def merged(table: dict[str, Any], kind: str, found: dict[str, Settings | None]) -> dict[str, Any]:
    """The table of winners with those of one kind of GPU replaced; None: the defaults are best, no entry."""
    own = {**table.get(kind, {}), **found}
    own = {kernel: dict(sorted(settings.items())) for kernel, settings in sorted(own.items()) if settings}
    return dict(sorted({**table, kind: own}.items()))
