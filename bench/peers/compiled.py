"""Forms in C++, compiled where the benches run.

`greedy.cpp` is the plain loop as peers build it. `windowed.cpp` and `matching.cpp` are as fast as one core was made to
be without changing a result: for this processor, vectorised, and never contracted.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC")
FASTEST = ("-march=native", "-fno-trapping-math")
SOURCES = {"greedy": (), "windowed": FASTEST, "matching": FASTEST}


def has_compiler() -> bool:
    return shutil.which("g++") is not None


class Compiled:
    """Functions of the compiled libraries, on contiguous CPU tensors of one problem or of a batch."""

    def __init__(self, folder: Path) -> None:
        """Compile into `folder`."""
        libraries = {name: folder / f"{name}.so" for name in SOURCES}
        for name, flags in SOURCES.items():
            command = ["g++", *FLAGS, *flags, str(FOLDER / f"{name}.cpp"), "-o", str(libraries[name])]
            subprocess.run(command, check=True)
        greedy, windowed, matching = (ctypes.CDLL(str(library)) for library in libraries.values())
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._nms, self._soft_nms = greedy.nms, greedy.soft_nms
        self._nms.restype = self._soft_nms.restype = size
        self._nms.argtypes = [pointer, pointer, pointer, size, number, size, pointer]
        self._soft_nms.argtypes = [pointer, pointer, pointer, size, number, number, number, size, pointer, pointer]
        self._windowed_nms = windowed.windowed_nms
        self._windowed_nms.argtypes = [pointer] * 3 + [size, size, number, size] + [pointer] * 2
        self._match, self._assign = matching.match, matching.assign
        self._match.argtypes = [pointer, size, pointer, pointer, size, pointer, pointer]
        self._assign.argtypes = [pointer, size, *[pointer] * 3, size, number, number, *[pointer] * 4]
        self._windowed_nms.restype = self._match.restype = self._assign.restype = None

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

    def windowed_nms(
        self, segments: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, most: int
    ) -> tuple[Tensor, Tensor]:
        """`ahernet_kernels.nms` for finite segments and scores, the whole batch in one call."""
        videos, size = scores.shape
        index = torch.empty((videos, min(most, size)), dtype=torch.int64)
        count = torch.empty(videos, dtype=torch.int64)
        inputs = (segments.data_ptr(), scores.data_ptr(), None if labels is None else labels.data_ptr())
        self._windowed_nms(*inputs, videos, size, threshold, index.shape[1], index.data_ptr(), count.data_ptr())
        return index, count

    def match(self, anchors: Tensor, gt_segments: Tensor, gt_offsets: Tensor) -> tuple[Tensor, Tensor]:
        """`ahernet_kernels.match` for finite anchors and ground truths."""
        shape = (len(gt_offsets) - 1, len(anchors))
        index, tiou = torch.empty(shape, dtype=torch.int64), torch.empty(shape)
        truths = (gt_segments.data_ptr(), gt_offsets.data_ptr())
        self._match(anchors.data_ptr(), shape[1], *truths, shape[0], index.data_ptr(), tiou.data_ptr())
        return index, tiou

    def assign(
        self, anchors: Tensor, gt_segments: Tensor, gt_labels: Tensor, gt_offsets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`ahernet_kernels.assign` with its default thresholds, for finite anchors and ground truths."""
        shape = (len(gt_offsets) - 1, len(anchors))
        kind, labels = torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.int64)
        targets, tiou = torch.empty((*shape, 2)), torch.empty(shape)
        truths = (gt_segments.data_ptr(), gt_labels.data_ptr(), gt_offsets.data_ptr())
        out = (kind.data_ptr(), labels.data_ptr(), targets.data_ptr(), tiou.data_ptr())
        self._assign(anchors.data_ptr(), shape[1], *truths, shape[0], 0.8, 0.3, *out)
        return kind, labels, targets, tiou

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
