"""One video's features from a file of one array: `.npy`, `.npz`, `.pt` or `.csv`.

The files come from strangers: nothing is unpickled, and nothing is allocated that the file is too small for.

* `.npy`: the array.
* `.npz`: one array, or one of them named as in `FEATURE_NAMES`.
* `.pt` of `torch.save`: a tensor, or a dict of them of which one is named so.
* `.csv`: one row of features a line, comma-separated. A first line of column names is recognised by holding no
  number at all (`f0,f1,...` of the widespread BSN/BMN files) or the numbers of the columns (`0,1,2,...` of the
  original AherNet's files: 2,048 columns under a line that its loader skips).
"""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ahernet.data.foreign_videos import FEATURE_NAMES, choose_features
from ahernet.data.zip_guard import check_npz, check_torch, is_zip
from ahernet.errors import UserError

SUFFIXES = (".npy", ".npz", ".pt", ".csv")
MAX_LINE = 1 << 24  # characters of a first line of text; a million columns
MIN_NUMBERED = 4  # columns from which on a row 0, 1, 2, ... is a line of names


def read_array_file(path: Path) -> np.ndarray:
    """Return the array in `path`, memory-mapped where its kind allows.

    Raises:
        UserError: damaged, not of its kind, larger than the file can be, or not clear which array is meant. The
            message does not name the file.
    """
    read = _READERS[path.suffix.lower()]
    try:
        array = read(path)
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and torch raise all sorts of things on damaged files
        raise UserError(f"not a readable array file ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(array, np.ndarray):
        raise UserError("not an array file")
    return array


def _read_numpy(path: Path) -> Any:
    if is_zip(path):
        return _read_npz(path)
    # Mapping fails where the file is shorter than its header says, and for arrays of Python objects.
    return np.lib.format.open_memmap(path, mode="r")


def _read_npz(path: Path) -> Any:
    check_npz(path)
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[_chosen(list(arrays), "array")]


def _read_torch(path: Path) -> np.ndarray:
    import torch

    size = path.stat().st_size
    if not is_zip(path):
        raise UserError("not in the form that torch.save writes since PyTorch 1.6; load it and save it again")
    check_torch(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            "holds other Python objects than tensors, which are not loaded: they can run code; save tensors alone"
        ) from error
    except (IndexError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"damaged: tensors cannot be read ({type(error).__name__}); copy the file again") from error
    if isinstance(held, dict):
        named = {str(name): value for name, value in held.items()}
        held = named[_chosen(list(named), "tensor")]
    if not isinstance(held, torch.Tensor):
        raise UserError(f"holds a {type(held).__name__}, expected a tensor or a dict with one")
    plain = held.layout == torch.strided and held.device.type == "cpu" and not held.is_quantized
    if not plain or held.is_complex():
        raise UserError(f"holds a tensor of {held.dtype} that is not a plain array of real numbers")
    if held.numel() * held.element_size() > size:  # a view can repeat one stored number without end
        raise UserError(f"tensor of shape {tuple(held.shape)} in a file of {size:,} bytes; save a clone of it")
    held = held.detach()
    return (held.float() if held.dtype == torch.bfloat16 else held).numpy()


def _read_csv(path: Path) -> np.ndarray:
    # utf-8-sig: spreadsheets begin a file with a byte order mark
    with path.open(encoding="utf-8-sig") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are no rows, which the shape says
        first = file.readline(MAX_LINE)
        if len(first) == MAX_LINE:
            raise UserError(f"the first line has more than {MAX_LINE:,} characters")
        columns = first.rstrip("\r\n").split(",")
        if not _is_header(columns):
            file.seek(0)
        rows = np.loadtxt(file, dtype=np.float32, delimiter=",", comments=None, ndmin=2)
    if rows.shape[1] == len(columns) and not columns[0].strip('" '):
        return _without_row_numbers(rows)
    return rows


def _is_header(columns: list[str]) -> bool:
    numbers = [_number(column) for column in columns]
    if all(number is None for number in numbers):
        return True
    start = int(numbers[0] is None)  # an unnamed column of row numbers
    return len(columns) - start >= MIN_NUMBERED and numbers[start:] == list(range(len(columns) - start))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _without_row_numbers(rows: np.ndarray) -> np.ndarray:
    if not np.array_equal(rows[:, 0], np.arange(len(rows))):
        raise UserError("the first column has no name and does not number the rows, expected 0, 1, 2, ...")
    return rows[:, 1:]


def _chosen(names: list[str], what: str) -> str:
    chosen = choose_features(names)
    if chosen is None:
        held = ", ".join(repr(name) for name in names[:8]) or "nothing"
        known = " or ".join(repr(name) for name in FEATURE_NAMES)
        raise UserError(f"holds {held}; expected one {what}, or one named {known}")
    return chosen


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".csv": _read_csv,
}
