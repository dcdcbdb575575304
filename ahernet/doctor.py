"""What an issue about a problem needs: versions, devices, whether the ops give what they should, checks of files."""

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from ahernet_kernels._cpu_form import why_without_loops
from ahernet_kernels.self_test import self_test

import ahernet
from ahernet.checkpoint import CHECKPOINT_NAME, load_checkpoint
from ahernet.data.archive_set import open_features
from ahernet.data.detection_shards import load_detections, read_manifest
from ahernet.data.printable import printable
from ahernet.device import launches_on
from ahernet.errors import UserError

NEEDED = ("torch", "triton", "numpy", "h5py", "einops", "safetensors", "jsonargparse", "tqdm", "matplotlib")
OPTIONAL = ("numba", "av", "pyarrow", "ray")
DETECTION_SUFFIXES = (".json", ".csv", ".gz", ".parquet")


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, whether it is as it should be, and what was found."""

    what: str
    fine: bool
    found: str

    def __str__(self) -> str:
        return printable(f"- {'ok   ' if self.fine else 'WRONG'} {self.what}: {self.found}")


def examine(paths: Sequence[Path] = ()) -> Iterator[Check]:
    """Look at the installation, at every device, and at archives, checkpoints and detections.

    No name of the machine, no folder and no environment variable is part of it: it can be pasted into an issue.

    Args:
        paths: feature archives or sets of them, folders that train wrote, detections or folders of them.
    """
    yield Check("ahernet", True, f"{ahernet.__version__}, Python {platform.python_version()}, {_system()}")
    for name in NEEDED:
        found = _version(name)
        yield Check(name, found is not None or (name == "triton" and sys.platform != "linux"), found or "not installed")
    for name in OPTIONAL:
        yield Check(f"{name} (optional)", True, _version(name) or "not installed")
    yield from _devices()
    for path in paths:
        yield _file(path)


def _devices() -> Iterator[Check]:
    yield Check("CPU", True, f"{torch.get_num_threads()} threads of torch")
    if _version("numba") is not None:
        problem = why_without_loops()
        found = f"NumPy's, for numba cannot be imported: {problem}" if problem else "loops that numba compiles"
        yield Check("match, assign, nms", not problem, found)
    yield from _ops(torch.device("cpu"))
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        driver = torch.version.cuda or torch.version.hip
        memory = properties.total_memory / (1 << 30)
        yield Check(f"cuda:{number}", True, f"{properties.name}, {memory:.0f} GiB, torch built for {driver}")
        with launches_on(torch.device("cuda", number)):
            yield from _ops(torch.device("cuda", number))


def _ops(device: torch.device) -> Iterator[Check]:
    wrong = {name: problem for name, problem in self_test(device).items() if problem}
    if not wrong:
        yield Check(f"ops on {device}", True, "every op gives what it should")
    for name, problem in wrong.items():
        yield Check(f"op {name} on {device}", False, problem)


def _file(path: Path) -> Check:
    """Check what lies at a path, by what it is."""
    try:
        if (path / CHECKPOINT_NAME).exists():
            checkpoint = load_checkpoint(path)
            count = sum(parameter.numel() for parameter in checkpoint.model.parameters())
            return Check(path.name, True, f"checkpoint of {len(checkpoint.classes):,} classes, {count:,} parameters")
        if _holds_detections(path):
            detections = load_detections(path)
            found = f"{len(detections):,} detections in {len(detections.video_ids):,} videos"
            return Check(path.name, True, found)
        with open_features(path) as archive:
            broken = list(archive.verify())
            rows = f"{len(archive):,} videos, {int(archive.offsets[-1]):,} rows of {archive.dimension:,}"
        if broken:
            return Check(path.name, False, f"{rows}; checksums do not fit in {len(broken):,} videos, as {broken[0]!r}")
        return Check(path.name, True, f"{rows}, all checksums fit")
    except UserError as error:
        return Check(path.name, False, str(error).replace(str(path), path.name))


def _holds_detections(path: Path) -> bool:
    if path.is_dir():
        try:
            read_manifest(path)
        except UserError:
            return False
        return True
    return path.suffix.lower() in DETECTION_SUFFIXES and path.exists() and not _is_archive_manifest(path)


def _is_archive_manifest(path: Path) -> bool:
    from ahernet.data import archive_set

    if path.suffix.lower() != ".json":
        return False
    try:
        archive_set.read_manifest(path)
    except UserError:
        return False
    return True


def _version(name: str) -> str | None:
    if name == "torch":
        return torch.__version__  # says which build it is, too
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"
