"""Resampling a region of each image to one size, antialiased as in Pillow.

Two algorithms: torch's own kernels, image by image (large images, and images that are not stacked), and a gather of
weighted taps for all images at once (small stacked images, and any batch on a GPU). The choice never depends on the
number of images, so that a view does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int, Num
from torch import Tensor

from mmcon.errors import InputError
from mmcon.media.decoding import pillow_is_quiet
from mmcon.views import Params, empty_buffer, map_parts
from mmcon_views.image.one_pass import compiled_loops, takes_compiled_loops
from mmcon_views.image.pixels import check_batch, check_image, chunks, kernels_for, sample_names, to_device

Interpolation = Literal["bilinear", "bicubic", "nearest"]

# Up to this many pixels in and out, one call an image takes longer than one gather of all images' taps.
SMALL = 64 * 64


def check_interpolation(where: str, interpolation: str) -> None:
    """Raise InputError for an unknown filter."""
    if interpolation not in ("bilinear", "bicubic", "nearest"):
        raise InputError(where, expected="interpolation bilinear, bicubic or nearest", got=repr(interpolation))


def resample(
    batch: Any, box: Params, size: tuple[int, int], interpolation: str, where: str, *, bytes: bool = False
) -> Num[Tensor, "b c h w"]:
    """Resample a region of each image to one size, antialiased as in Pillow.

    uint8 images above SMALL pixels are resampled in uint8 on a CPU, rounded to 1/255 as in other uint8 pipelines; all
    others are resampled in float32.

    Args:
        batch: handles, images `c h w`, or a stacked batch `b c h w`.
        box: `top`, `left`, `height`, `width`, `b` int64 each.
        size: output height and width.
        interpolation: the filter: a triangle, Keys' cubic (a = −1/2), or the nearest pixel.
        where: the name of the generator, for messages.
        bytes: whether images that are resampled in bytes stay uint8.

    Returns:
        `b c h w` float32 in [0, 1], or uint8.
    """
    if not len(batch):
        raise InputError(where, expected="at least one image", got="an empty batch")
    if isinstance(batch, Tensor):
        check_batch(batch, where)
        small = max(batch.shape[-1] * batch.shape[-2], size[0] * size[1]) <= SMALL
        if small or batch.device.type != "cpu":
            return _resample_stacked(batch, box, size, interpolation)
    boxes = torch.stack([box[name] for name in ("top", "left", "height", "width")], dim=1).tolist()
    return _resample_each(batch, boxes, size, interpolation, where, bytes)


def _resample_each(
    batch: Sequence[Any] | Num[Tensor, "b c h w"],
    boxes: list[list[int]],
    size: tuple[int, int],
    interpolation: str,
    where: str,
    bytes: bool = False,
) -> Num[Tensor, "b c h2 w2"]:
    names = sample_names(batch)

    def views_of(rows: list[int]) -> list[Num[Tensor, "c h2 w2"]]:
        """The views of one sample, which is decoded once for all of them."""
        sample, own = batch[rows[0]], [boxes[row] for row in rows]
        if isinstance(sample, Tensor):
            if not isinstance(batch, Tensor):
                check_image(sample, where, names[rows[0]])
            regions = [sample[:, top : top + height, left : left + width] for top, left, height, width in own]
        elif hasattr(sample, "decode_regions"):
            regions = sample.decode_regions([(tuple(box), size) for box in own])
        else:
            regions = [sample.decode(region=tuple(box), size=size) for box in own]
        return [resize_image(region, size, interpolation) for region in regions]

    samples = _rows_of_samples(batch)
    with pillow_is_quiet():  # here, since filters of warnings belong to the process, and not in each thread
        (first,) = map_parts(views_of, samples[:1])
        kept = bytes and first[0].dtype == torch.uint8
        out = _empty_views(len(boxes), first[0], kept)

        def write(some: range) -> None:
            for sample in some:
                views = first if sample == 0 else views_of(samples[sample])
                for row, view in zip(samples[sample], views, strict=True):
                    _write_view(view, out, row, where, names[row])

        map_parts(write, _runs(len(samples)))
    return out


def _empty_views(count: int, view: Num[Tensor, "c h w"], kept: bool) -> Num[Tensor, "b c h w"]:
    """Memory for views; bytes that stay bytes keep the layout of decoders, since another takes a copy by pixels."""
    if kept and view.permute(1, 2, 0).is_contiguous():
        c, h, w = view.shape
        return empty_buffer((count, h, w, c), torch.uint8).permute(0, 3, 1, 2)
    return empty_buffer((count, *view.shape), torch.uint8 if kept else torch.float32)


def _rows_of_samples(batch: Sequence[Any] | Num[Tensor, "b c h w"]) -> list[list[int]]:
    """The rows of each sample; several rows with the same file are views of one sample."""
    if isinstance(batch, Tensor):
        return [[row] for row in range(len(batch))]
    rows: dict[Hashable, list[int]] = {}
    for row, sample in enumerate(batch):
        rows.setdefault(getattr(sample, "content", row), []).append(row)
    return list(rows.values())


def _runs(count: int) -> list[range]:
    """Consecutive samples for each thread, in small runs, since some images take longer than others."""
    few = -(-count // (4 * torch.get_num_threads()))
    return [range(start, min(start + few, count)) for start in range(0, count, few)]


def _write_view(view: Num[Tensor, "c h w"], out: Num[Tensor, "b c2 h2 w2"], row: int, where: str, name: str) -> None:
    if view.shape != out.shape[1:]:
        raise InputError(
            where,
            expected=f"{out.shape[1]} channels, as in the batch's first image",
            got=f"{view.shape[0]} in sample {name}",
            fix="open files with one number of channels: ImageHandle(..., channels=3)",
        )
    if view.dtype != torch.uint8 and out.dtype == torch.uint8:
        expected = "images of one type in a batch"
        raise InputError(where, expected=expected, got=f"{view.dtype} in sample {name} after uint8")
    out[row] = view
    if view.dtype == torch.uint8 and out.dtype != torch.uint8:
        out[row] /= 255


def resize_image(image: Num[Tensor, "c h w"], size: tuple[int, int], interpolation: str) -> Num[Tensor, "c h2 w2"]:
    """One image at another size; uint8 stays uint8."""
    if image.shape[-2:] == size:
        return image
    if interpolation == "nearest":
        return F.interpolate(image[None], size, mode="nearest-exact")[0]
    if image.dtype == torch.uint8:
        # torch's byte kernel keeps the memory layout; a conversion between layouts takes longer than it saves.
        layout = torch.channels_last if image.stride(0) == 1 else torch.contiguous_format
        whole = image[None].contiguous(memory_format=layout)
        return F.interpolate(whole, size, mode=interpolation, antialias=True)[0]
    # torch has no antialiasing of half precision on a CPU.
    image = image.to(torch.float32)
    # If neither side shrinks, the filter is not widened: the kernel without antialiasing is equal and twice as fast.
    shrinks = image.shape[-2] > size[0] or image.shape[-1] > size[1]
    smooth = shrinks or interpolation != "bilinear"
    return F.interpolate(image[None], size, mode=interpolation, antialias=smooth)[0].clamp_(0, 1)


def _resample_stacked(
    batch: Num[Tensor, "b c h w"], box: Params, size: tuple[int, int], interpolation: str
) -> Float32[Tensor, "b c h2 w2"]:
    """All images at once: weighted sums of rows, then, on the transposed result, of columns."""
    scale = 1 / 255 if batch.dtype == torch.uint8 else 1.0
    if interpolation != "nearest" and (kernels := kernels_for(batch)) is not None:
        on_device = to_device(batch.device, *(box[name] for name in ("top", "left", "height", "width")))
        return kernels.resample(batch, on_device, size, cubic=interpolation == "bicubic", scale=scale)
    if interpolation != "nearest" and takes_compiled_loops(batch) and (loops := compiled_loops()) is not None:
        return _resample_compiled(loops, batch, box, size, interpolation == "bicubic", scale)
    most = [_most_taps(box[name], out, interpolation) for name, out in zip(("height", "width"), size, strict=True)]
    top, height, left, width = to_device(batch.device, *(box[name] for name in ("top", "height", "left", "width")))
    down = taps(top, height, size[0], interpolation, scale, most=most[0])
    across = taps(left, width, size[1], interpolation, most=most[1])
    out = torch.empty(*batch.shape[:2], *size, device=batch.device)

    def write(some: Int[Tensor, " few"]) -> None:
        few = slice(int(some[0]), int(some[-1]) + 1)
        rows = _gather_rows(batch[few], [(i[few], w[few]) for i, w in down])
        # Columns are gathered as rows of the transposed image, since rows are contiguous in memory.
        columns = _gather_rows(rows.transpose(2, 3), [(i[few], w[few]) for i, w in across])
        # Weights sum to 1 up to rounding, so that white may get slightly above 1.
        out[few] = columns.clamp_(0, 1).transpose(2, 3)

    map_parts(write, list(chunks(out)))
    return out


def _resample_compiled(
    loops: Any, batch: Num[Tensor, "b c h w"], box: Params, size: tuple[int, int], cubic: bool, scale: float
) -> Float32[Tensor, "b c h2 w2"]:
    """`_resample_stacked` on a CPU, an image at a time while it is in the cache."""
    batch = batch if batch.dtype == torch.uint8 else batch.to(torch.float32)
    boxes = torch.stack([box[name] for name in ("top", "left", "height", "width")], dim=1).numpy()
    images, out = batch.numpy(), torch.empty(*batch.shape[:2], *size)

    def write(some: range) -> None:
        few = slice(some.start, some.stop)
        loops.resample(images[few], boxes[few], out[few].numpy(), cubic, scale)

    map_parts(write, _runs(len(batch)))
    return out


def _gather_rows(
    batch: Num[Tensor, "b c h w"], taps_of_rows: list[tuple[Int[Tensor, "b out"], Float[Tensor, "b out"]]]
) -> Float32[Tensor, "b c out w"]:
    """Weighted sums of rows, tap by tap."""
    b, c, h, w = batch.shape
    flat = batch.contiguous().to(torch.float32).view(b * c * h, w)
    starts = (torch.arange(b * c, device=batch.device) * h).view(b, c, 1)
    total: Tensor | None = None
    for index, weight in taps_of_rows:
        at = (starts + index[:, None]).view(-1)
        rows = flat.index_select(0, at).view(b, c, -1, w)
        weight = weight[:, None, :, None]
        total = rows.mul_(weight) if total is None else total.addcmul_(rows, weight)
    assert total is not None
    return total


def taps(
    start: Int[Tensor, " b"],
    length: Int[Tensor, " b"],
    out: int,
    interpolation: str,
    scale: float = 1.0,
    most: int | None = None,
) -> list[tuple[Int[Tensor, "b out"], Float[Tensor, "b out"]]]:
    """Indices and weights for resampling `length` pixels from `start` on to `out` pixels, one pair per tap.

    As in Pillow: the filter is widened by the reduction and clipped at the edges of the region, and its weights sum to
    1. Sums go tap by tap, so that the weights of one image do not depend on the number of taps of another.

    Args:
        start: the first pixel of each region.
        length: the pixels of each region.
        out: the output pixels.
        interpolation: the filter.
        scale: the sum of the weights.
        most: at least the number of taps, where the lengths are on a GPU: the host would wait for their maximum.
    """
    step = (length.to(torch.float64) / out)[:, None]
    center = (torch.arange(out, dtype=torch.float64, device=start.device) + 0.5) * step
    if interpolation == "nearest":
        nearest = torch.minimum(center.floor().to(torch.int64), length[:, None] - 1)
        return [(start[:, None] + nearest, torch.full_like(center, scale).to(torch.float32))]
    wide = step.clamp(min=1.0)
    support = (1.0 if interpolation == "bilinear" else 2.0) * wide
    first = (center - support + 0.5).floor().clamp(min=0)
    last = torch.minimum((center + support + 0.5).floor(), length[:, None].to(torch.float64))
    kernel = _triangle if interpolation == "bilinear" else _cubic
    positions, weights = [], []
    for tap in range(int((last - first).max()) if most is None or start.device.type == "cpu" else most):
        at = first + tap
        weights.append(torch.where(at < last, kernel((at - center + 0.5) / wide), 0.0))
        positions.append(start[:, None] + torch.minimum(at, length[:, None] - 1.0).to(torch.int64))
    # In a fixed order, so that an image gets the same weights in any batch.
    total = weights[0].clone()
    for weight in weights[1:]:
        total += weight
    return [(at, (weight / total * scale).to(torch.float32)) for at, weight in zip(positions, weights, strict=True)]


def _most_taps(length: Int[Tensor, " b"], out: int, interpolation: str) -> int:
    """A bound of the number of taps: the width of the widest filter."""
    return math.ceil((2 if interpolation == "bilinear" else 4) * max(1.0, int(length.max()) / out))


def _triangle(x: Float64[Tensor, " *shape"]) -> Float64[Tensor, " *shape"]:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Float64[Tensor, " *shape"]) -> Float64[Tensor, " *shape"]:
    """Keys' cubic convolution with a = −1/2 (1981, equation 15)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
