"""Three pieces one after the other, each brought to a number of steps of its own: what a moment and its context become.

Every step is the exact mean of the linear interpolant of its piece's rows over the step, as in `resample`; a step sees
no other piece. How many steps a piece gets differs by sequence and is known on the device alone. A video may show parts
of several sequences, as where moments follow one another: only what is shown is made. Pieces are read where they are,
in their own dtype, and forward and backward gather: nothing is joined, cast or added up by atomics.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._arguments import FLOATS, INTEGERS, check_count, check_tensor
from ahernet_kernels._resample_numpy import stretch_backward_band, stretch_band
from ahernet_kernels._tuning import launch_settings
from ahernet_kernels.resample import bin_weight, hat_over_bin

DEFAULTS = {"BLOCK_T": 2, "BLOCK_D": 2048, "num_warps": 2}
BACKWARD_DEFAULTS = {"BLOCK_ROWS": 2, "BLOCK_D": 1024, "num_warps": 4}


@triton.jit
def add_piece(mean, piece_ptr, sequence, own, size, rows, channel, dimension):
    """Add to the means of a tile those of the steps that are of one piece, which has `size` steps and `rows` rows.

    `sequence`, `own` (step of the piece) and `size` are of each step of the tile.
    """
    inside = (own >= 0) & (own < size)
    size = tl.maximum(size, 1)
    edge = tl.where(inside, own, 0).to(tl.int64) * rows  # of the step, by `size` the rows before it
    row = (2 * edge + size) // (2 * size) - 1
    left = ((edge // size - row).to(tl.float32) - 0.5) + tl.div_rn((edge % size).to(tl.float32), size * 1.0)
    right = left + tl.div_rn(rows * 1.0, size * 1.0)
    share = 1.0 / (right - left)
    row = row.to(tl.int32)
    support = tl.max(tl.where(inside, tl.cdiv(rows, size) + 2, 0), 0)
    for k in range(support):
        weight = hat_over_bin(left, right, False, False) * share
        at_row = sequence * rows + tl.minimum(tl.maximum(row + k, 0), rows - 1)
        mask = (inside & (weight != 0.0))[:, None] & (channel < dimension)[None, :]
        at = piece_ptr + at_row[:, None] * dimension + channel[None, :]
        mean += weight[:, None] * tl.load(at, mask=mask, other=0.0).to(tl.float32)
        left -= 1.0
        right -= 1.0
    return mean


@triton.jit
def stretch_kernel(
    before_ptr, middle_ptr, after_ptr, lengths_ptr, shown_ptr, output_ptr,
    rows_before, rows_middle, rows_after, sequences, steps, dimension,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of output steps and channels of one video, which has so many `sequences`."""
    tiles = tl.cdiv(steps, BLOCK_T)  # of a video; one axis has both, for no other one has room for any number of videos
    video = (tl.program_id(0) // tiles).to(tl.int64)
    step = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    shown = tl.load(shown_ptr + video * steps + step, mask=step < steps, other=0).to(tl.int32)
    sequence = video * sequences + tl.minimum(tl.maximum(shown, 0), sequences - 1)
    before = tl.load(lengths_ptr + sequence * 3).to(tl.int32)
    middle = tl.load(lengths_ptr + sequence * 3 + 1).to(tl.int32)
    after = tl.load(lengths_ptr + sequence * 3 + 2).to(tl.int32)
    mean = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    mean = add_piece(mean, before_ptr, sequence, step, before, rows_before, channel, dimension)
    own = step - before
    mean = add_piece(mean, middle_ptr, sequence, own, middle, rows_middle, channel, dimension)
    own -= middle
    mean = add_piece(mean, after_ptr, sequence, own, after, rows_after, channel, dimension)
    at = output_ptr + (video * steps + step)[:, None] * dimension + channel[None, :]
    tl.store(at, mean, mask=(step < steps)[:, None] & (channel < dimension)[None, :])


@triton.jit
def stretch_backward_kernel(
    gradient_ptr, lengths_ptr, shown_ptr, output_ptr, total_rows, rows, sequences, steps, dimension,
    PIECE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of rows of one piece, of whatever sequences they are, and channels."""
    at_row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = at_row < total_rows
    sequence, row = at_row // rows, at_row % rows
    number = (sequence % sequences).to(tl.int32)
    first_step = sequence // sequences * steps
    for piece in tl.static_range(PIECE):
        first_step += tl.load(lengths_ptr + sequence * 3 + piece, mask=inside, other=0)
    size = tl.load(lengths_ptr + sequence * 3 + PIECE, mask=inside, other=0)
    first = tl.maximum((2 * row - 1) * size, 0) // (2 * rows)
    total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    support = tl.max((2 * size + rows - 1) // rows, 0) + 2
    for k in range(support.to(tl.int32)):
        own = first + k
        shown = tl.load(shown_ptr + first_step + own, mask=own < size, other=-1)
        weight = tl.where(shown.to(tl.int32) == number, bin_weight(own, row, rows, tl.maximum(size, 1)), 0.0)
        mask = (weight != 0.0)[:, None] & (channel < dimension)[None, :]
        at = gradient_ptr + (first_step + own)[:, None] * dimension + channel[None, :]
        total += weight[:, None] * tl.load(at, mask=mask, other=0.0).to(tl.float32)
    mask = inside[:, None] & (channel < dimension)[None, :]
    tl.store(output_ptr + at_row[:, None] * dimension + channel[None, :], total, mask=mask)


def stretch_launch(
    kernel: Any, before: Tensor, middle: Tensor, after: Tensor, lengths: Tensor, shown: Tensor
) -> Tensor:
    """Launch `kernel` on tiles of steps, videos and channels; shapes as in `stretch`."""
    (videos, steps), dimension = shown.shape, before.shape[2]
    output = torch.empty((videos, steps, dimension), dtype=torch.float32, device=before.device)
    if output.numel() > 0:
        settings = launch_settings("stretch", DEFAULTS)
        settings["BLOCK_D"] = min(settings["BLOCK_D"], triton.next_power_of_2(dimension))
        grid = (triton.cdiv(steps, settings["BLOCK_T"]) * videos, triton.cdiv(dimension, settings["BLOCK_D"]))
        sizes = *(piece.shape[1] for piece in (before, middle, after)), before.shape[0] // videos, steps, dimension
        kernel[grid](before, middle, after, lengths, shown, output, *sizes, **settings)
    return output


def stretch_backward_launch(
    kernel: Any, gradient: Tensor, lengths: Tensor, shown: Tensor, piece: int, rows: int, dtype: torch.dtype
) -> Tensor:
    """Launch `kernel` on tiles of rows and channels of one piece: gradient (B, T, D) -> (B * M, R, D) in `dtype`."""
    videos, steps, dimension = gradient.shape
    output = torch.empty((len(lengths), rows, dimension), dtype=dtype, device=gradient.device)
    if output.numel() > 0:
        settings = launch_settings("stretch_backward", BACKWARD_DEFAULTS)
        settings["BLOCK_D"] = min(settings["BLOCK_D"], triton.next_power_of_2(dimension))
        total_rows, sequences = len(lengths) * rows, len(lengths) // videos
        grid = (triton.cdiv(total_rows, settings["BLOCK_ROWS"]), triton.cdiv(dimension, settings["BLOCK_D"]))
        sizes = total_rows, rows, sequences, steps, dimension
        kernel[grid](gradient, lengths, shown, output, *sizes, PIECE=piece, **settings)
    return output


@custom_op("ahernet_kernels::stretch_cpu", mutates_args=(), device_types="cpu")
def _stretch_cpu(before: Tensor, middle: Tensor, after: Tensor, lengths: Tensor, shown: Tensor) -> Tensor:
    joined = torch.cat([before, middle, after], dim=1).to(_result_type(before, middle, after))
    rows = [piece.shape[1] for piece in (before, middle, after)]
    total = stretch_band(lengths.numpy(), shown.numpy(), rows).multiply(joined.flatten(0, 1))
    return total.view(*shown.shape, before.shape[2])


@_stretch_cpu.register_fake
def _(before: Tensor, middle: Tensor, after: Tensor, lengths: Tensor, shown: Tensor) -> Tensor:
    return before.new_empty((*shown.shape, before.shape[2]), dtype=_result_type(before, middle, after))


@custom_op("ahernet_kernels::stretch_backward_cpu", mutates_args=(), device_types="cpu")
def _stretch_backward_cpu(
    gradient: Tensor, lengths: Tensor, shown: Tensor, piece: int, rows: int, dtype: torch.dtype
) -> Tensor:
    band = stretch_backward_band(lengths.numpy(), shown.numpy(), piece, rows)
    return band.multiply(gradient.flatten(0, 1)).view(len(lengths), rows, gradient.shape[2]).to(dtype)


@_stretch_backward_cpu.register_fake
def _(gradient: Tensor, lengths: Tensor, shown: Tensor, piece: int, rows: int, dtype: torch.dtype) -> Tensor:
    return gradient.new_empty((lengths.shape[0], rows, gradient.shape[2]), dtype=dtype)


def _result_type(*pieces: Tensor) -> torch.dtype:
    return torch.float64 if any(piece.dtype == torch.float64 for piece in pieces) else torch.float32


@triton_op("ahernet_kernels::stretch", mutates_args=())
def _stretch(before: Tensor, middle: Tensor, after: Tensor, lengths: Tensor, shown: Tensor) -> Tensor:
    if before.device.type == "cpu":
        return _stretch_cpu(before, middle, after, lengths, shown)
    return stretch_launch(wrap_triton(stretch_kernel), before, middle, after, lengths, shown)


@triton_op("ahernet_kernels::stretch_backward", mutates_args=())
def _stretch_backward(
    gradient: Tensor, lengths: Tensor, shown: Tensor, piece: int, rows: int, dtype: torch.dtype
) -> Tensor:
    if gradient.device.type == "cpu":
        return _stretch_backward_cpu(gradient, lengths, shown, piece, rows, dtype)
    return stretch_backward_launch(wrap_triton(stretch_backward_kernel), gradient, lengths, shown, piece, rows, dtype)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    *pieces, lengths, shown = inputs
    ctx.save_for_backward(lengths, shown)
    ctx.pieces = [(piece.shape[1], piece.dtype) for piece in pieces]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    lengths, shown = ctx.saved_tensors
    gradient = gradient.contiguous()
    gradients = (
        _stretch_backward(gradient, lengths, shown, piece, rows, dtype) if ctx.needs_input_grad[piece] else None
        for piece, (rows, dtype) in enumerate(ctx.pieces)
    )
    return *gradients, None, None


_stretch.register_autograd(_backward, setup_context=_save_for_backward)


def stretch(before: Tensor, middle: Tensor, after: Tensor, lengths: Tensor, shown: Tensor) -> Tensor:
    """Join three pieces, each brought to a number of steps of its own; once differentiable in the pieces.

    Such a sequence has T steps. B videos are made of M sequences each, of which one is shown at each step.

    Args:
        before: `(B * M, R_0, D)`, at least one row, the sequences of a video one after the other; fp16, bf16 or fp32,
            and on a CPU fp64.
        middle: `(B * M, R_1, D)`, at least one row; may have another dtype.
        after: `(B * M, R_2, D)`, at least one row; may have another dtype.
        lengths: `(B * M, 3)` int64, the steps that each piece gets; 0 leaves it out. They are not negative and add up
            to T, which is checked on a CPU alone.
        shown: `(B, T)` int64, which sequence of its video each step is of: 0 to M - 1, which is checked on a CPU alone.

    Returns:
        `(B, T, D)` fp32, or fp64 if a piece is: step t is step t of the sequence that is shown there.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    sizes: dict[str, int] = {}
    check_tensor("before", before, (*FLOATS, torch.float64), ("B * M", "rows of before", "D"), sizes)
    dtypes = (*FLOATS, torch.float64) if before.device.type == "cpu" else FLOATS
    for name, piece in (("before", before), ("middle", middle), ("after", after)):
        check_tensor(name, piece, dtypes, ("B * M", f"rows of {name}", "D"), sizes, before.device)
        if piece.shape[1] == 0:
            raise ValueError(f"{name}: expected at least one row a sequence")
    check_tensor("lengths", lengths, INTEGERS, ("B * M", 3), sizes, before.device)
    check_tensor("shown", shown, INTEGERS, ("B", "T"), {}, before.device)
    videos, sequences = shown.shape[0], before.shape[0]
    if sequences % max(videos, 1) or (videos == 0) != (sequences == 0):
        raise ValueError(f"before: expected as many sequences for each of {videos} videos, got {sequences}")
    check_count("steps of shown", shown.shape[1])
    return _stretch(
        before.contiguous(), middle.contiguous(), after.contiguous(), lengths.contiguous(), shown.contiguous()
    )
