"""Resampling feature sequences, and joining pieces of them, forward and backward."""

import functools
from collections.abc import Iterator
from typing import Any

import ahernet_kernels as kernels
import torch
from torch import Tensor

from bench import cases
from bench.lines.line import CLOSE, Line, Sizes
from bench.peers import resampling

MOMENTS_IN_A_ROW = 6  # of one video, as the preset `tuned` has at most


def resample_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    shape = (sizes.resampled_videos, sizes.mean_rows, sizes.dimension)
    checked_videos = min(8, sizes.resampled_videos)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        features, offsets = cases.sequences(*shape, dtype, device)
        rows = int(offsets[checked_videos])
        case = f"B={shape[0]} L~{shape[1]} D={shape[2]} {str(dtype).removeprefix('torch.')}"

        def first_sequences(arguments: tuple[Any, ...], rows: int = rows) -> tuple[Any, ...]:
            return arguments[0][:rows], arguments[1][: checked_videos + 1]

        call = functools.partial(kernels.resample, steps=sizes.steps)
        peer = functools.partial(resampling.torch_loop, steps=sizes.steps)
        uncapturable = {"torch, dense product a video": peer} if dtype == torch.float32 else {}
        arguments = (features, offsets)
        yield Line("resample", case, arguments, call, first_sequences, CLOSE, uncapturable=uncapturable)
    features, offsets = cases.sequences(*shape, torch.float16, device)
    checked = functools.partial(kernels.resample_checked, steps=sizes.steps, dtype=torch.bfloat16)
    case = f"B={shape[0]} L~{shape[1]} D={shape[2]} fp16 to bf16, checked"
    yield Line("resample", case, (features, offsets), checked, first_sequences, 1e-2)
    gradient = torch.randn((shape[0], sizes.steps, shape[2]), device=device)

    def backward(gradient: Tensor, offsets: Tensor, rows: int) -> Tensor:
        return torch.ops.ahernet_kernels.resample_backward(gradient, offsets, rows)

    def first_gradients(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments[0][:checked_videos], arguments[1][: checked_videos + 1], rows

    arguments = (gradient, offsets, features.shape[0])
    case = f"B={shape[0]} L~{shape[1]} D={shape[2]}"
    yield Line("resample backward", case, arguments, backward, first_gradients, CLOSE)


def stretch_lines(device: str, sizes: Sizes) -> Iterator[Line]:
    """Moments alone in their videos, and several in a row."""
    for each in (1, MOMENTS_IN_A_ROW):
        yield from _stretch_lines(device, sizes, each)


def _stretch_lines(device: str, sizes: Sizes, each: int) -> Iterator[Line]:
    """Moments in fp32 between contexts as a network in bf16 generates them, `each` in a video."""
    videos, steps, dimension = max(1, sizes.resampled_videos // each), sizes.steps, sizes.dimension
    checked_videos = min(8, videos)
    pieces, lengths, shown = cases.moments(videos, each, steps, dimension, device)
    rows = "+".join(str(piece.shape[1]) for piece in pieces)
    case = f"B={videos}{f' M={each}' if each > 1 else ''} {rows} rows T={steps} D={dimension}"

    def first_pieces(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        *of_sequences, shown = arguments
        return *(x[: checked_videos * each] for x in of_sequences), shown[:checked_videos]

    uncapturable = {"torch, dense product a piece": resampling.stretch_loop}
    arguments = (*pieces, lengths, shown)
    yield Line("stretch", case, arguments, kernels.stretch, first_pieces, CLOSE, uncapturable=uncapturable)
    gradient = torch.randn((videos, steps, dimension), device=device)

    def backward(gradient: Tensor, lengths: Tensor, shown: Tensor) -> tuple[Tensor, ...]:
        call = torch.ops.ahernet_kernels.stretch_backward
        return tuple(call(gradient, lengths, shown, place, x.shape[1], x.dtype) for place, x in enumerate(pieces))

    def first_gradients(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        gradient, lengths, shown = arguments
        return gradient[:checked_videos], lengths[: checked_videos * each], shown[:checked_videos]

    yield Line("stretch backward", case, (gradient, lengths, shown), backward, first_gradients, 1e-2)
