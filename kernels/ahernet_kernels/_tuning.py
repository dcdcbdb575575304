"""Tile sizes and warps of each kernel: its file's defaults, or what was measured to be best on this kind of GPU.

`tuning.json` holds, by kind of GPU (`sm_90`, `gfx942`) and kernel, the winners of `python -m bench tune`. Changes of
tile size never change a result: every kernel is exact for any tile, and tests run them with several.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("tuning.json")

Settings = Mapping[str, int]

_overrides: dict[str, Settings] = {}


def launch_settings(kernel: str, defaults: Settings) -> dict[str, int]:
    """Settings to launch a kernel with on the current device: `defaults`, and over them what was measured."""
    return {**defaults, **_measured().get(kernel, {}), **_overrides.get(kernel, {})}


@contextmanager
def overridden(kernel: str, settings: Settings) -> Iterator[None]:
    """Launch a kernel with other settings for a while: how they are measured and tested."""
    before = _overrides.get(kernel)
    _overrides[kernel] = settings
    try:
        yield
    finally:
        del _overrides[kernel]
        if before is not None:
            _overrides[kernel] = before


def kind_of_gpu() -> str | None:
    """`sm_90`, `gfx942` and the like of the current device, or None without a GPU."""
    if not torch.cuda.is_available():
        return None
    if torch.version.hip:
        return str(torch.cuda.get_device_properties().gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


@cache
def _measured() -> dict[str, dict[str, int]]:
    kind = kind_of_gpu()
    table: dict[str, dict[str, dict[str, int]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table.get(kind, {}) if kind else {}
