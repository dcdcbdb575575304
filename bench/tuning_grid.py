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
    key: Any = None
    """Where the file has several defaults in one dictionary."""

    def defaults(self) -> Settings:
        """The settings that the file of the kernel has."""
        found: Any = getattr(importlib.import_module(f"ahernet_kernels.{self.module}"), self.attribute)
        return dict(found if self.key is None else found[self.key])


def every(**choices: tuple[int, ...]) -> tuple[Settings, ...]:
    """All combinations."""
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def tiles(names: str, *rows: tuple[int, ...]) -> tuple[Settings, ...]:
    """Chosen combinations, one a row."""
    return tuple(dict(zip(names.split(), row, strict=True)) for row in rows)


GRID: dict[str, Tuned] = {
    "decode_rows": Tuned(
        "decode",
        ("decode_last",),
        "decode",
        tiles(
            "GROUP BLOCK_CLASSES BLOCK_CELLS num_warps",
            *((8, classes, cells, 4) for classes, cells in itertools.product((128, 256, 512, 1024), (4, 8, 16))),
            *((8, 256, cells, 2) for cells in (8, 16)),
        ),
        key=True,
    ),
    "decode_columns": Tuned(
        "decode",
        ("decode",),
        "decode",
        tiles(
            "GROUP BLOCK_CLASSES BLOCK_CELLS num_warps",
            *((group, classes, 16, 4) for group, classes in itertools.product((2, 4, 8), (64, 128, 256, 512))),
            *((4, classes, 32, 4) for classes in (64, 128)),
        ),
        key=False,
    ),
    "assign": Tuned(
        "assign", ("assign", "assign_sweep"), "assign", every(BLOCK_A=(64, 128, 256, 512), num_warps=(1, 2, 4))
    ),
    "match": Tuned("match", ("assign",), "match", every(BLOCK_A=(64, 128, 256, 512), num_warps=(1, 2, 4))),
    "nms": Tuned("nms", ("nms", "nms_sweep"), "nms", every(num_warps=(4, 8, 16))),
    "nms_large": Tuned(
        "nms_large",
        ("nms_large",),
        "nms",
        tiles(
            "ROUNDS BLOCK BLOCK_NEAR LAYOUT_BLOCK num_warps",
            (4, 64, 16, 1024, 4),
            (8, 64, 16, 1024, 4),
            (6, 64, 16, 1024, 2),
            (6, 64, 32, 1024, 4),
            (6, 128, 16, 1024, 4),
            (6, 128, 32, 1024, 4),
            (6, 32, 16, 1024, 1),
            (6, 64, 16, 256, 4),
        ),
    ),
    "soft_nms": Tuned("soft_nms", ("soft_nms",), "soft_nms", every(BLOCK=(256, 512, 1024), num_warps=(4, 8))),
    "resample": Tuned(
        "resample",
        ("resample",),
        "resample",
        tiles(
            "BLOCK_T BLOCK_D num_warps",
            *itertools.product((4, 8, 16), (256, 512), (4,)),
            *itertools.product((4, 8), (1024, 2048), (4, 8)),
        ),
    ),
    "resample_backward": Tuned(
        "resample",
        ("resample",),
        "resample backward",
        tiles("BLOCK_ROWS BLOCK_D num_warps", *itertools.product((2, 4, 8), (256, 512, 1024), (4,))),
        "DEFAULTS_BACKWARD",
    ),
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
