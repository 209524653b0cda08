# pyright: reportArgumentType=false
"""Triton kernels of image views on a GPU: resampling, color jitter and blur, each in one or two passes over memory.

A module that is imported only where it runs (`kernels_for`). A view needs few launches, so that it is limited by memory
and not by the host. Results equal those on a CPU up to the rounding of float32; an image is computed by itself, so that
it does not depend on its batch. `no_type_check` keeps the import hook of jaxtyping from wrapping kernels.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int, Num
from torch import Tensor

PIXELS = 1024


# --- resampling ------------------------------------------------------------------------------------------------------


@triton.jit
@no_type_check
def _filter(distance, CUBIC: tl.constexpr):
    """The triangle, or Keys' cubic with a = -1/2, as in `resample`."""
    x = tl.abs(distance)
    if CUBIC:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    else:
        return tl.maximum(1.0 - x, 0.0)


@triton.jit
@no_type_check
def _resample_rows(
    x, top, left, box_height, box_width, out, channels, height, width, out_height, scale,
    CUBIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0).to(tl.int64)
    image, row = plane // channels, tl.program_id(1)
    count, begin = tl.load(box_height + image).to(tl.int32), tl.load(top + image).to(tl.int32)
    step = count.to(tl.float32) / out_height
    center, wide = (row + 0.5) * step, tl.maximum(step, 1.0)
    support = (2.0 if CUBIC else 1.0) * wide
    first = tl.maximum(tl.floor(center - support + 0.5), 0.0).to(tl.int32)
    last = tl.minimum(tl.floor(center + support + 0.5).to(tl.int32), count)
    columns = tl.load(left + image).to(tl.int32) + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < tl.load(box_width + image).to(tl.int32)
    total = 0.0
    mixed = tl.zeros((BLOCK,), tl.float32)
    for tap in range(first, last):
        weight = _filter((tap - center + 0.5) / wide, CUBIC)
        pixels = tl.load(x + (plane * height + begin + tap) * width + columns, mask=inside, other=0)
        mixed += weight * pixels.to(tl.float32)
        total += weight
    at = (plane * out_height + row) * width + tl.arange(0, BLOCK)
    tl.store(out + at, mixed * (scale / total), mask=inside)


@triton.jit
@no_type_check
def _resample_columns(
    x, box_width, out, channels, width, out_height, out_width, CUBIC: tl.constexpr, BLOCK: tl.constexpr
):
    plane = tl.program_id(0).to(tl.int64)
    count = tl.load(box_width + plane // channels).to(tl.int32)
    step = count.to(tl.float32) / out_width
    wide = tl.maximum(step, 1.0)
    support = (2.0 if CUBIC else 1.0) * wide
    columns = tl.arange(0, BLOCK)
    center = (columns + 0.5) * step
    first = tl.maximum(tl.floor(center - support + 0.5), 0.0).to(tl.int32)
    last = tl.minimum(tl.floor(center + support + 0.5).to(tl.int32), count)
    row = x + (plane * out_height + tl.program_id(1)) * width
    total = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK,), tl.float32)
    for tap in range(0, tl.ceil(2.0 * support).to(tl.int32)):
        at = first + tap
        inside = (at < last) & (columns < out_width)
        weight = tl.where(inside, _filter((at - center + 0.5) / wide, CUBIC), 0.0)
        mixed += weight * tl.load(row + at, mask=inside, other=0.0)
        total += weight
    # Weights sum to 1 up to rounding, and a cubic filter overshoots.
    value = tl.minimum(tl.maximum(mixed / tl.where(columns < out_width, total, 1.0), 0.0), 1.0)
    tl.store(out + (plane * out_height + tl.program_id(1)) * out_width + columns, value, mask=columns < out_width)


def resample(
    batch: Num[Tensor, "b c h w"],
    box: list[Int[Tensor, " b"]],
    size: tuple[int, int],
    *,
    cubic: bool,
    scale: float,
) -> Float32[Tensor, "b c h2 w2"]:
    """A region of each image at one size, antialiased: rows, then columns.

    Args:
        batch: the images.
        box: top, left, height and width of the regions, on the device.
        size: height and width of the result.
        cubic: the cubic filter in place of the triangle.
        scale: multiplies the pixels.
    """
    (b, c, h, w), (height, width) = batch.shape, size
    rows = torch.empty(b, c, height, w, device=batch.device)
    out = torch.empty(b, c, height, width, device=batch.device)
    grid, (top, left, box_height, box_width) = (b * c, height), box
    _resample_rows[grid](
        batch.contiguous(), top, left, box_height, box_width, rows, c, h, w, height, scale,
        CUBIC=cubic, BLOCK=triton.next_power_of_2(w),
    )  # fmt: skip
    _resample_columns[grid](rows, box_width, out, c, w, height, width, CUBIC=cubic, BLOCK=triton.next_power_of_2(width))
    return out


# --- color jitter ----------------------------------------------------------------------------------------------------


@triton.jit
@no_type_check
def _unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
@no_type_check
def _luma(red, green, blue):
    return red * 0.2989 + green * 0.587 + blue * 0.114


@triton.jit
@no_type_check
def _turned(angle, chroma, high, low, turn):
    """A channel after the rotation of the hue: see `color.hue_`."""
    turn = turn - 6.0 * tl.floor(turn / 6.0 + 0.5)
    value = tl.abs(tl.abs(angle + chroma * turn) - 3.0 * chroma) + (low - chroma)
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
@no_type_check
def _adjusted(red, green, blue, operation, factor, mean):
    """One operation: 0 brightness, 1 contrast, 2 saturation, 3 hue; the mean is that of the gray image."""
    if operation == 0:
        red, green, blue = _unit(red * factor), _unit(green * factor), _unit(blue * factor)
    elif operation == 1:
        add = mean * (1.0 - factor)
        red, green, blue = _unit(red * factor + add), _unit(green * factor + add), _unit(blue * factor + add)
    elif operation == 2:
        add = _luma(red, green, blue) * (1.0 - factor)
        red, green, blue = _unit(red * factor + add), _unit(green * factor + add), _unit(blue * factor + add)
    else:
        high, low = tl.maximum(tl.maximum(red, green), blue), tl.minimum(tl.minimum(red, green), blue)
        chroma, difference = high - low, green - blue
        angle = tl.abs(difference)
        angle = angle + (high - red) * (3.0 - 2.0 * angle / tl.maximum(chroma, 1e-12))
        angle = tl.where(difference < 0, -angle, angle)
        red = _turned(angle, chroma, high, low, 6.0 * factor)
        green = _turned(angle, chroma, high, low, 6.0 * factor - 2.0)
        blue = _turned(angle, chroma, high, low, 6.0 * factor + 2.0)
    return red, green, blue


@triton.jit
@no_type_check
def _jitter(
    x, images, order, factors, sums, pixels, parts, LAST: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Without LAST, the sums of the gray image before the contrast; with it, all four operations, in place."""
    number, part = tl.program_id(0), tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    plane = x + tl.load(images + number).to(tl.int64) * 3 * pixels + at
    red = tl.load(plane, mask=inside, other=0.0)
    green = tl.load(plane + pixels, mask=inside, other=0.0)
    blue = tl.load(plane + 2 * pixels, mask=inside, other=0.0)
    mean = 0.0
    if LAST:
        each = tl.arange(0, PARTS)
        mean = tl.sum(tl.load(sums + number * parts + each, mask=each < parts, other=0.0), 0) / pixels
    # Without LAST, operations end at the contrast.
    running = number >= 0
    for place in tl.static_range(4):
        operation = tl.load(order + number * 4 + place).to(tl.int32)
        factor = tl.load(factors + number * 4 + operation)
        if not LAST:
            running = running & (operation != 1)
        if running:
            red, green, blue = _adjusted(red, green, blue, operation, factor, mean)
    if LAST:
        tl.store(plane, red, mask=inside)
        tl.store(plane + pixels, green, mask=inside)
        tl.store(plane + 2 * pixels, blue, mask=inside)
    else:
        tl.store(sums + number * parts + part, tl.sum(tl.where(inside, _luma(red, green, blue), 0.0), 0))


def jitter_(
    x: Float32[Tensor, "b 3 h w"],
    images: Int[Tensor, " k"],
    order: Int[Tensor, "k 4"],
    factors: Float[Tensor, "k 4"],
) -> None:
    """Brightness, contrast, saturation and hue of some images, in each image's own order, in place.

    Args:
        x: a contiguous batch.
        images: their indices, on the device.
        order: the operations by place.
        factors: by operation.
    """
    pixels = x.shape[-2] * x.shape[-1]
    parts = triton.cdiv(pixels, PIXELS)
    sums = torch.empty(len(images), parts, device=x.device)
    for last in (False, True):
        _jitter[(len(images), parts)](
            x, images, order, factors, sums, pixels, parts,
            LAST=last, PARTS=triton.next_power_of_2(parts), BLOCK=PIXELS,
        )  # fmt: skip


# --- blur ------------------------------------------------------------------------------------------------------------


@triton.jit
@no_type_check
def _reflected(at, size):
    at = tl.where(at < 0, -at, at)
    return tl.where(at >= size, 2 * size - 2 - at, at)


@triton.jit
@no_type_check
def _convolve(
    x, out, weights, reaches, channels, height, width, taps, outside,
    ROWS: tl.constexpr, CONSTANT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
    image, columns = plane // channels, tl.arange(0, BLOCK)
    base, inside = x + plane * height * width, columns < width
    weights += image * taps
    total = tl.load(base + row * width + columns, mask=inside, other=0.0) * tl.load(weights)
    for tap in range(1, tl.load(reaches + image).to(tl.int32) + 1):
        both = tl.zeros((BLOCK,), tl.float32)
        for side in tl.static_range(2):
            if ROWS:
                at = row + (2 * side - 1) * tap
                known = inside & (at >= 0) & (at < height)
                pointer = base + _reflected(at, height) * width + columns
            else:
                at = columns + (2 * side - 1) * tap
                known = inside & (at >= 0) & (at < width)
                pointer = base + row * width + _reflected(at, width)
            both += tl.load(pointer, mask=known if CONSTANT else inside, other=outside)
        total += both * tl.load(weights + tap)
    # Weights may sum to slightly above 1.
    total = total if ROWS else tl.minimum(total, 1.0)
    tl.store(out + (plane * height + row) * width + columns, total, mask=inside)


def convolve(
    x: Float32[Tensor, "b c h w"],
    weights: Float32[Tensor, "b taps"],
    reaches: Int[Tensor, " b"],
    outside: float | None,
) -> Float32[Tensor, "b c h w"]:
    """Each image convolved with its own symmetric kernel, along columns, then along rows.

    Args:
        x: the images.
        weights: the right half of each kernel, from the center.
        reaches: the taps of each kernel on each side.
        outside: the gray of a constant border, instead of reflection.
    """
    (b, c, h, w), block = x.shape, triton.next_power_of_2(x.shape[-1])
    between, out = (torch.empty(x.shape, device=x.device) for _ in range(2))
    for source, target, rows in ((x.contiguous(), between, True), (between, out, False)):
        _convolve[(b * c, h)](
            source, target, weights, reaches, c, h, w, weights.shape[1], 0.0 if outside is None else outside,
            ROWS=rows, CONSTANT=outside is not None, BLOCK=block,
        )  # fmt: skip
    return out
