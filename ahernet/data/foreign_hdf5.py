"""HDF5 files of features in the layouts that are in use, read through the guards of `hdf5_guard`.

* Group per video: `/ID/c3d_features` (ActivityNet's C3D features), or the one dataset of the group, or the one
  named as in `FEATURE_NAMES`.
* Video summaries (TVSum, SumMe): `/ID/features` of the frames `/ID/picks` of `/ID/n_frames` frames.
* Dataset per video: `/ID`.

A file is of the layout that most of its first members have; a member of another is a bad video, never left out
unsaid.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

from ahernet.data.archive import FORMAT
from ahernet.data.foreign_videos import FEATURE_NAMES, ForeignFeatures, ForeignSource, ForeignVideo, choose_features
from ahernet.data.hdf5_guard import (
    MAX_COMPRESSION,
    file_length,
    guarded_dataset,
    hdf5_errors,
    list_datasets,
    open_hdf5,
    scalar_attribute,
)
from ahernet.errors import UserError
from ahernet.files import file_version

GROUPS = "an HDF5 file of one group per video"
SUMMARIES = "an HDF5 file of video summaries (features, picks, n_frames)"
DATASETS = "an HDF5 file of one dataset per video"
SAMPLED = 64  # members that decide on the layout
MAX_MEMBERS = 64  # datasets of one group
MAX_PICKS = 1 << 24


@contextmanager
def open_foreign_hdf5(path: Path) -> Iterator[ForeignSource]:
    """List the videos of a foreign HDF5 file, which stays open inside the `with` block.

    Raises:
        UserError: damaged, an ahernet archive, or of no known layout.
    """
    version = functools.partial(file_version, path)
    opened = version()
    file = open_hdf5(path)
    try:
        with hdf5_errors(path):
            layout = _layout(file, path)
            names = list(file)
        budget = _Budget(path, MAX_COMPRESSION * file_length(file))
        videos = [
            ForeignVideo(name, f"{path}: {name}", functools.partial(_read, file, path, name, layout, budget), version)
            for name in names
        ]
        summaries = layout == SUMMARIES
        stride = _common_stride(file, path, names) if summaries else 0
        yield ForeignSource(layout, videos, clip_stride=stride, counts_frames=summaries, version=opened)
    finally:
        file.close()


class _Budget:
    """Bytes that this run may still read: hard links can show the same data under any number of names."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._left = size

    def spend(self, dataset: h5py.Dataset) -> None:
        self._left -= dataset.size * dataset.dtype.itemsize
        if self._left < 0:
            raise UserError(f"{self._path}: its videos are together more than {MAX_COMPRESSION} times the file")


def _layout(file: h5py.File, path: Path) -> str:
    if _is_archive(file, path):
        raise UserError(f"{path}: is an ahernet archive already, use it as it is")
    sampled = [_layout_of_member(file, path, name) for name in islice(file, SAMPLED)]
    layout, count = Counter(sampled).most_common(1)[0] if sampled else (None, 0)
    if layout is None or 2 * count <= len(sampled):
        datasets, more = list_datasets(file, 4)
        holds = "; ".join(datasets) + ("; ..." if more else "") if datasets else "no datasets"
        raise UserError(
            f"{path}: HDF5 of no layout that can be imported (it holds {holds}); expected a group per video with "
            f"a dataset {', '.join(FEATURE_NAMES)}, or a dataset (rows, dimension) per video at the root"
        )
    return layout


def _is_archive(file: h5py.File, path: Path) -> bool:
    try:
        return scalar_attribute(file, path, "format") == FORMAT
    except UserError:
        return False


def _layout_of_member(file: h5py.File, path: Path, name: str) -> str | None:
    if not isinstance(_link(file, name), h5py.HardLink):
        return None
    member = file[name]
    if isinstance(member, h5py.Dataset):
        return DATASETS if member.ndim == 2 else None
    if not isinstance(member, h5py.Group):
        return None
    parts = list(islice(member, MAX_MEMBERS))
    chosen = choose_features(parts)
    if chosen is None or not isinstance(_link(member, chosen), h5py.HardLink):
        return None
    if not isinstance(member[chosen], h5py.Dataset):
        return None
    return SUMMARIES if {"features", "n_frames"} <= set(parts) else GROUPS


def _link(group: h5py.Group, name: str) -> object:
    try:
        return group.get(name, getlink=True)
    except TypeError:  # a user-defined link
        return None


def _read(file: h5py.File, path: Path, name: str, layout: str, budget: _Budget) -> ForeignFeatures:
    with hdf5_errors(path):
        if layout == DATASETS:
            return ForeignFeatures(_rows(file, path, name, budget))
        if layout == SUMMARIES:
            return _read_summary(file, path, name, budget)
        return ForeignFeatures(_rows(file, path, f"{name}/{_features_of_group(file, path, name)}", budget))


def _rows(file: h5py.File, path: Path, name: str, budget: _Budget) -> np.ndarray:
    dataset = guarded_dataset(file, path, name)
    if dataset.ndim != 2:
        raise UserError(f"{path}: {name} has shape {dataset.shape}, expected (rows, dimension)")
    budget.spend(dataset)
    rows: np.ndarray = dataset[...]
    return rows


def _features_of_group(file: h5py.File, path: Path, name: str) -> str:
    if not isinstance(_link(file, name), h5py.HardLink):
        raise UserError(f"{path}: {name} is reached through a link, expected the data itself")
    group = file[name]
    if not isinstance(group, h5py.Group):
        raise UserError(f"{path}: {name} is not a group as the others are")
    parts = list(islice(group, MAX_MEMBERS))
    chosen = choose_features(parts)
    if chosen is None:
        held = ", ".join(repr(part) for part in parts[:8]) or "nothing"
        raise UserError(f"{path}: {name} holds {held}; expected one dataset, or one of {', '.join(FEATURE_NAMES)}")
    return chosen


def _read_summary(file: h5py.File, path: Path, name: str, budget: _Budget) -> ForeignFeatures:
    rows = _rows(file, path, f"{name}/features", budget)
    counted = guarded_dataset(file, path, f"{name}/n_frames")
    if counted.size != 1 or counted.dtype.kind not in "iuf":
        raise UserError(f"{path}: {name}/n_frames is no number, expected a count of frames")
    frames = float(counted[...].reshape(-1)[0])
    picks = _picks(file, path, name)
    if len(picks) != len(rows):
        raise UserError(f"{path}: {name} has {len(rows)} rows of features but {len(picks)} picks, expected as many")
    if not int(picks[-1]) < frames < 2**53 or frames != int(frames):
        raise UserError(f"{path}: {name}/n_frames is {frames:g}, expected a count beyond the last pick {picks[-1]}")
    return ForeignFeatures(rows, int(frames))


def _picks(file: h5py.File, path: Path, name: str) -> np.ndarray:
    """Return the frame that each row describes, rising from 0 or more."""
    dataset = guarded_dataset(file, path, f"{name}/picks")
    if dataset.ndim != 1 or not 0 < dataset.size <= MAX_PICKS or dataset.dtype.kind not in "iu":
        raise UserError(f"{path}: {name}/picks is {dataset.dtype} of shape {dataset.shape}, expected frame numbers")
    picks: np.ndarray = dataset[...]
    if int(picks[0]) < 0 or (picks[1:] <= picks[:-1]).any():
        raise UserError(f"{path}: {name}/picks does not rise, expected frame numbers in order")
    return picks


def _common_stride(file: h5py.File, path: Path, names: list[str]) -> int:
    """Return the frames between rows where all videos agree, 0 otherwise. Bad videos are told of when read."""
    strides: set[int] = set()
    for name in names:
        try:
            with hdf5_errors(path):
                picks = _picks(file, path, name)
        except UserError:
            continue
        strides.update(np.unique(np.diff(picks.astype(np.int64))).tolist())
    return strides.pop() if len(strides) == 1 else 0
