"""Ragged sequences to a fixed length: linear interpolation averaged inside each output bin.

Row k of a sequence of L rows stands at (k + 0.5) / L; between rows the signal is linear, beyond the first and the
last it is constant. Output step i of T is the exact mean of that signal over [i / T, (i + 1) / T]. So a long video
is low-pass filtered, not subsampled, and a short one is interpolated. Both directions gather, without atomics:
output i is a weighted sum of the rows under its bin, the gradient of row k one of the bins over its hat function.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from ahernet_kernels._arguments import FLOATS, check_count, check_offset_values, check_offsets, check_tensor
from ahernet_kernels._resample_numpy import resample_band
from ahernet_kernels._tiou import FLOAT_MAX
from ahernet_kernels._tuning import launch_settings

# A warp holds 1,024 channels of each step, so that a weight serves four loads of 16 bytes a thread.
DEFAULTS = {"BLOCK_T": 2, "BLOCK_D": 2048, "num_warps": 2}
BACKWARD_DEFAULTS = {"BLOCK_ROWS": 4, "BLOCK_D": 256, "num_warps": 4}


@triton.jit
def hat_over_bin(left, right, flat_before, flat_after):
    """The hat function of a row integrated over a bin whose edges are measured from the row, in rows.

    It rises from 0 to 1 over the row before, or is 1 there; and falls likewise over the row after.
    """
    a = tl.where(flat_before, left, tl.maximum(left, -1.0))
    b = tl.minimum(right, 0.0)
    rising = tl.maximum(b - a, 0.0) * tl.where(flat_before, 1.0, 1.0 + 0.5 * (a + b))
    a = tl.maximum(left, 0.0)
    b = tl.where(flat_after, right, tl.minimum(right, 1.0))
    falling = tl.maximum(b - a, 0.0) * tl.where(flat_after, 1.0, 1.0 - 0.5 * (a + b))
    return rising + falling


@triton.jit
def resample_kernel(
    features_ptr,
    offsets_ptr,
    output_ptr,
    finite_ptr,
    dimension,
    STEPS: tl.constexpr,
    CHECKED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of output steps and channels of one video.

    The first and the last row stand once more beyond the ends, which makes the signal constant there without a case
    of its own. A bin's edges are measured from the row before it, so they are as exact hours into a video.
    """
    tiles = tl.cdiv(STEPS, BLOCK_T)  # of a video; one axis has both, for no other one has room for any number of videos
    video = (tl.program_id(0) // tiles).to(tl.int64)
    step = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.load(offsets_ptr + video)
    rows = (tl.load(offsets_ptr + video + 1) - begin).to(tl.int32)
    features_ptr += begin * dimension
    edge = step.to(tl.int64) * rows  # of the bin, by STEPS the rows before it
    row = (2 * edge + STEPS) // (2 * STEPS) - 1
    left = ((edge // STEPS - row).to(tl.float32) - 0.5) + (edge % STEPS).to(tl.float32) * (1.0 / STEPS)
    right = left + rows.to(tl.float32) * (1.0 / STEPS)
    share = 1.0 / tl.where(rows > 0, right - left, 1.0)
    row = row.to(tl.int32)
    mean = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    support = tl.where(rows > 0, tl.cdiv(rows, STEPS) + 2, 0)
    for k in range(support):
        weight = hat_over_bin(left, right, False, False) * share
        inside = tl.minimum(tl.maximum(row + k, 0), rows - 1).to(tl.int64)
        mask = (weight != 0.0)[:, None] & (channel < dimension)[None, :]
        at = features_ptr + inside[:, None] * dimension + channel[None, :]
        mean += weight[:, None] * tl.load(at, mask=mask, other=0.0).to(tl.float32)
        left -= 1.0
        right -= 1.0
    mask = (step < STEPS)[:, None] & (channel < dimension)[None, :]
    at = output_ptr + (video * STEPS + step)[:, None] * dimension + channel[None, :]
    stored = mean.to(output_ptr.dtype.element_ty)
    tl.store(at, stored, mask=mask)
    if CHECKED:
        # Every row weighs something in some step, so what is not finite in the rows is not in the output either.
        broken = mask & ~(tl.abs(stored.to(tl.float32)) <= FLOAT_MAX)
        if tl.max(tl.max(broken.to(tl.int32), 1), 0) != 0:
            tl.store(finite_ptr + video, 0)


@triton.jit
def bin_weight(step, row, rows, steps):
    """Share of a row in the mean over an output bin; integers keep the bin's edges exact however long the sequence."""
    near, far = step.to(tl.int64) * rows, (step.to(tl.int64) + 1) * rows
    left = ((near // steps - row).to(tl.float32) - 0.5) + tl.div_rn((near % steps).to(tl.float32), steps * 1.0)
    right = ((far // steps - row).to(tl.float32) - 0.5) + tl.div_rn((far % steps).to(tl.float32), steps * 1.0)
    return hat_over_bin(left, right, row == 0, row == rows - 1) * tl.div_rn(steps * 1.0, rows.to(tl.float32))


@triton.jit
def resample_backward_kernel(
    gradient_ptr,
    offsets_ptr,
    video_ptr,
    output_ptr,
    total_rows,
    videos,
    dimension,
    STEPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of input rows, of whatever videos they are, and channels."""
    at_row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_output = at_row < total_rows
    video = tl.load(video_ptr + at_row, mask=in_output, other=0)
    inside = in_output & (video < videos)  # rows behind the last video are nobody's
    begin = tl.load(offsets_ptr + video, mask=inside, other=0)
    rows = tl.load(offsets_ptr + video + 1, mask=inside, other=1) - begin
    row = at_row - begin
    first = tl.maximum((2 * row - 1) * STEPS, 0) // (2 * rows)
    total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    support = tl.max(tl.where(inside, (2 * STEPS + rows - 1) // rows, 0), 0) + 2
    for k in range(support.to(tl.int32)):
        step = first + k
        weight = tl.where(inside & (step < STEPS), bin_weight(step, row, rows, STEPS), 0.0)
        mask = (weight != 0.0)[:, None] & (channel < dimension)[None, :]
        at = gradient_ptr + (video * STEPS + step)[:, None] * dimension + channel[None, :]
        total += weight[:, None] * tl.load(at, mask=mask, other=0.0).to(tl.float32)
    mask = in_output[:, None] & (channel < dimension)[None, :]
    tl.store(output_ptr + at_row[:, None] * dimension + channel[None, :], total, mask=mask)


def resample_launch(
    kernel: Any, features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Launch `kernel` on tiles of steps, videos and channels; shapes as in `resample`."""
    return _launch(kernel, features, offsets, steps, dtype, None)


def resample_checked_launch(
    kernel: Any, features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Launch `kernel` as `resample_launch` does, and find out which videos are finite."""
    finite = torch.ones((offsets.shape[0] - 1,), dtype=torch.bool, device=features.device)
    return _launch(kernel, features, offsets, steps, dtype, finite), finite


def _launch(
    kernel: Any, features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype, finite: Tensor | None
) -> Tensor:
    videos, dimension = offsets.shape[0] - 1, features.shape[1]
    output = torch.empty((videos, steps, dimension), dtype=dtype, device=features.device)
    if videos > 0 and dimension > 0:
        settings = launch_settings("resample", DEFAULTS)
        settings["BLOCK_D"] = min(settings["BLOCK_D"], triton.next_power_of_2(dimension))
        grid = (triton.cdiv(steps, settings["BLOCK_T"]) * videos, triton.cdiv(dimension, settings["BLOCK_D"]))
        checked = finite is not None
        kernel[grid](
            features,
            offsets,
            output,
            finite if checked else output,
            dimension,
            STEPS=steps,
            CHECKED=checked,
            **settings,
        )
    return output


def resample_backward_launch(kernel: Any, gradient: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """Launch `kernel` on tiles of rows and channels: gradient (B, T, D) -> (R, D)."""
    _, steps, dimension = gradient.shape
    output = torch.empty((rows, dimension), dtype=torch.float32, device=gradient.device)
    if rows > 0 and dimension > 0:
        row = torch.arange(rows, device=offsets.device)
        video = torch.bucketize(row, offsets[1:], right=True)
        settings = launch_settings("resample_backward", BACKWARD_DEFAULTS)
        grid = (triton.cdiv(rows, settings["BLOCK_ROWS"]), triton.cdiv(dimension, settings["BLOCK_D"]))
        videos = offsets.shape[0] - 1
        kernel[grid](gradient, offsets, video, output, rows, videos, dimension, STEPS=steps, **settings)
    return output


@custom_op("ahernet_kernels::resample_cpu", mutates_args=(), device_types="cpu")
def _resample_cpu(features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    check_offset_values("offsets", offsets.numpy(), features.shape[0])
    band = resample_band(offsets.numpy(), steps)
    return band.multiply(features.float()).view(offsets.shape[0] - 1, steps, features.shape[1]).to(dtype)


@_resample_cpu.register_fake
def _(features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    return features.new_empty((offsets.shape[0] - 1, steps, features.shape[1]), dtype=dtype)


@custom_op("ahernet_kernels::resample_backward_cpu", mutates_args=(), device_types="cpu")
def _resample_backward_cpu(gradient: Tensor, offsets: Tensor, rows: int) -> Tensor:
    band = resample_band(offsets.numpy(), gradient.shape[1]).transposed(rows)
    return band.multiply(gradient.flatten(0, 1).float())


@_resample_backward_cpu.register_fake
def _(gradient: Tensor, offsets: Tensor, rows: int) -> Tensor:
    return gradient.new_empty((rows, gradient.shape[2]), dtype=torch.float32)


@triton_op("ahernet_kernels::resample", mutates_args=())
def _resample(features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    if features.device.type == "cpu":
        return _resample_cpu(features, offsets, steps, dtype)
    return resample_launch(wrap_triton(resample_kernel), features, offsets, steps, dtype)


@triton_op("ahernet_kernels::resample_checked", mutates_args=())
def _resample_checked(features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if features.device.type == "cpu":
        sequence = _resample_cpu(features, offsets, steps, dtype)
        return sequence, sequence.isfinite().flatten(1).all(dim=1)
    return resample_checked_launch(wrap_triton(resample_kernel), features, offsets, steps, dtype)


@triton_op("ahernet_kernels::resample_backward", mutates_args=())
def _resample_backward(gradient: Tensor, offsets: Tensor, rows: int) -> Tensor:
    if gradient.device.type == "cpu":
        return _resample_backward_cpu(gradient, offsets, rows)
    return resample_backward_launch(wrap_triton(resample_backward_kernel), gradient, offsets, rows)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, int, torch.dtype], output: Tensor) -> None:
    features, offsets, _, _ = inputs
    ctx.save_for_backward(offsets)
    ctx.rows, ctx.dtype = features.shape[0], features.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    (offsets,) = ctx.saved_tensors
    return _resample_backward(gradient.contiguous(), offsets, ctx.rows).to(ctx.dtype), None, None, None


_resample.register_autograd(_backward, setup_context=_save_for_backward)


def resample(features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring ragged sequences to one length; once differentiable in `features`.

    Args:
        features: `(R, D)` rows of all videos; fp16, bf16 or fp32.
        offsets: `(B + 1,)` int64 with `offsets[0] = 0` and `offsets[B] <= R`; rows `offsets[b]:offsets[b + 1]`
            belong to video b, rows from `offsets[B]` on to none. A video of one row repeats it; one without rows
            gives zeros. The values are checked on a CPU alone.
        steps: T >= 1, the number of output steps.
        dtype: of the output, fp16, bf16 or fp32; means are taken in fp32 whatever it is.

    Returns:
        `(B, T, D)` of that dtype.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    _check(features, offsets, steps, dtype)
    return _resample(features.contiguous(), offsets.contiguous(), steps, dtype)


def resample_checked(
    features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """`resample`, and which videos are finite, without reading anything a second time; not differentiable.

    Returns:
        sequences: `(B, T, D)`, what `resample` gives.
        finite: `(B,)` bool, False where the rows of a video hold NaN or infinity, or a mean is beyond `dtype`.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range; the message names it.
    """
    _check(features, offsets, steps, dtype)
    return _resample_checked(features.detach().contiguous(), offsets.contiguous(), steps, dtype)


def _check(features: Tensor, offsets: Tensor, steps: int, dtype: torch.dtype) -> None:
    check_tensor("features", features, FLOATS, ("R", "D"), {})
    check_offsets("offsets", offsets, features.device)
    check_count("steps", steps)
    if dtype not in FLOATS:
        raise TypeError(f"dtype: expected float16 or bfloat16 or float32, got {str(dtype).removeprefix('torch.')}")
