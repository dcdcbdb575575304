"""The plain C++ greedy, compiled where the benches run."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("greedy.cpp")
FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC")


def has_compiler() -> bool:
    return shutil.which("g++") is not None


class Greedy:
    """Functions of the compiled library, on contiguous CPU tensors of one problem or of a batch."""

    def __init__(self, folder: Path) -> None:
        """Compile into `folder`."""
        library = folder / "greedy.so"
        subprocess.run(["g++", *FLAGS, str(SOURCE), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._nms, self._soft_nms = loaded.nms, loaded.soft_nms
        self._nms.restype = self._soft_nms.restype = size
        self._nms.argtypes = [pointer, pointer, pointer, size, number, size, pointer]
        self._soft_nms.argtypes = [pointer, pointer, pointer, size, number, number, number, size, pointer, pointer]

    def nms_one(self, segments: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
        """Kept positions of one class-agnostic problem, in rank order."""
        kept = torch.empty(min(most, len(scores)), dtype=torch.int64)
        arguments = (segments.data_ptr(), scores.data_ptr(), None, len(scores), threshold, len(kept), kept.data_ptr())
        return kept[: self._nms(*arguments)]

    def nms(
        self, segments: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, most: int
    ) -> tuple[Tensor, Tensor]:
        """`ahernet_kernels.nms` for finite segments and scores."""
        videos, size = scores.shape
        index = torch.full((videos, min(most, size)), -1)
        count = torch.zeros(videos, dtype=torch.int64)
        for video in range(videos):
            own_labels = None if labels is None else labels[video].data_ptr()
            own = (segments[video].data_ptr(), scores[video].data_ptr(), own_labels)
            count[video] = self._nms(*own, size, threshold, index.shape[1], index[video].data_ptr())
        return index, count

    def soft_nms(
        self, segments: Tensor, scores: Tensor, labels: Tensor | None, method: str, parameter: float, most: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`ahernet_kernels.soft_nms` for finite segments and scores."""
        videos, size = scores.shape
        index = torch.full((videos, min(most, size)), -1)
        kept_scores = torch.zeros(index.shape)
        count = torch.zeros(videos, dtype=torch.int64)
        settings = (0.0, parameter) if method == "gaussian" else (parameter, 0.0)
        for video in range(videos):
            own_labels = None if labels is None else labels[video].data_ptr()
            own = (segments[video].data_ptr(), scores[video].data_ptr(), own_labels)
            out = (index[video].data_ptr(), kept_scores[video].data_ptr())
            count[video] = self._soft_nms(*own, size, *settings, 0.0, index.shape[1], *out)
        return index, kept_scores, count
