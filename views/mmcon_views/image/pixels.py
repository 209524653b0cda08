"""Batches of images: checks, conversion to float32, and operations on some images of a batch.

A batch is `b c h w`, uint8 or float in [0, 1]; operations return float32 in [0, 1]. The bits of a view do not depend on
its batch, by three rules. Operations are elementwise, or gather taps in a fixed order. Sums over an image are along
rows, then along columns, never over the flattened batch. The choice between two algorithms depends on the size and the
device of an image, never on the number of images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int, Num, Shaped
from torch import Tensor

from mmcon.errors import DataError, InputError

# About this many numbers at a time, so that the passes of an operation stay in a core's cache; measured from 2^14 to
# 2^20 on two machines.
CHUNK = 1 << 17
# f(images, *parameters) -> images, with one parameter value per image.
ImageFunction = Callable[..., Tensor]


def to_float(batch: Shaped[Tensor, "..."], where: str) -> Float32[Tensor, "b c h w"]:
    """Check a batch and convert it to float32 in [0, 1]; a float32 batch is returned without a copy."""
    check_batch(batch, where)
    if batch.dtype == torch.uint8:
        return batch.to(torch.float32).div_(255)
    return batch.to(torch.float32)


def copy_as_float(batch: Shaped[Tensor, "..."], out: Float32[Tensor, "..."], where: str) -> None:
    """Check a batch and copy it to `out` as float32 in [0, 1]."""
    check_batch(batch, where)
    out.copy_(batch)
    if batch.dtype == torch.uint8:
        out.div_(255)


def float_copy(batch: Shaped[Tensor, "..."], where: str) -> Float32[Tensor, "b c h w"]:
    """As `to_float`, but always a copy."""
    out = torch.empty(batch.shape, device=batch.device)
    copy_as_float(batch, out, where)
    return out


def check_batch(batch: Any, where: str) -> None:
    """Raise an error for a batch with wrong axes, channels, types, or (on a CPU) values outside [0, 1]."""
    if not isinstance(batch, Tensor) or batch.dim() != 4:
        got = f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise InputError(
            where,
            expected="stacked images `b c h w`",
            got=got,
            fix="begin the chain with a generator that gives all images one size, such as image/random-resized-crop",
        )
    check_image(batch, where)


def check_image(image: Shaped[Tensor, "..."], where: str, sample: str = "") -> None:
    """Raise an error unless the last axes are `c h w` with one or three channels, and the values are pixels."""
    where = f"{where}, sample {sample}" if sample else where
    if image.dim() < 3 or image.shape[-3] not in (1, 3):
        raise InputError(
            where,
            expected="`c h w` with 1 (gray) or 3 (RGB) channels",
            got=f"shape {tuple(image.shape)}",
            fix="move channels to the front with x.permute(2, 0, 1); open files with mmcon.media.ImageHandle",
        )
    if 0 in image.shape[-3:]:
        raise InputError(where, expected="at least one pixel", got=f"shape {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise InputError(
            where,
            expected="uint8 (0 to 255) or float (0 to 1)",
            got=str(image.dtype),
            fix="16-bit images: (x / 65535).float(); other integers in 0..255: x.to(torch.uint8)",
        )
    # On a GPU this check would make the host wait for the device at every operation.
    if image.is_floating_point() and image.device.type == "cpu" and image.numel():
        low, high = torch.aminmax(image.detach())
        if not (float(low) >= 0.0 and float(high) <= 1.0):
            raise DataError(
                where,
                expected="finite numbers in [0, 1]",
                got=f"a minimum of {float(low):g} and a maximum of {float(high):g}",
                fix="divide by 255 where pixels are bytes; normalize in the encoder, after the views",
            )


def to_device(device: torch.device, *values: Shaped[Tensor, "..."]) -> list[Shaped[Tensor, "..."]]:
    """Small tensors of the CPU on the device of the images; to a GPU in one copy that the host does not wait for."""
    if device.type != "cuda":
        return [value.to(device) for value in values]
    # Views of one buffer, each from a multiple of the largest item on.
    starts = [0, *itertools.accumulate(-(-value.nbytes // 8) * 8 for value in values)]
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)

    def part(buffer: Shaped[Tensor, "..."], i: int) -> Shaped[Tensor, "..."]:
        return buffer[starts[i] : starts[i] + values[i].nbytes].view(values[i].dtype).view(values[i].shape)

    for i, value in enumerate(values):
        part(packed, i).copy_(value)
    there = packed.to(device, non_blocking=True)
    return [part(there, i) for i in range(len(values))]


def kernels_for(batch: Shaped[Tensor, "..."]) -> Any:
    """The module of Triton kernels where a batch is on a GPU that has them, else None."""
    if batch.device.type != "cuda" or not _has_triton():
        return None
    from mmcon_views.image import gpu_kernels

    return gpu_kernels


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def as_columns(batch: Num[Tensor, "b c h w"], *columns: Shaped[Tensor, " b"]) -> list[Float32[Tensor, "b 1 1 1"]]:
    """Parameters as float32 columns on the device of the batch."""
    return [c.view(-1, 1, 1, 1) for c in to_device(batch.device, *(c.to(torch.float32) for c in columns))]


def chunks(batch: Num[Tensor, "b c h w"], indices: Int[Tensor, " k"] | None = None) -> Iterator[Int[Tensor, " few"]]:
    """Indices of a few images at a time, about CHUNK numbers on a CPU, all at once elsewhere."""
    indices = torch.arange(len(batch)) if indices is None else indices
    if not len(indices):
        return
    few = max(1, CHUNK // max(1, batch[0].numel())) if batch.device.type == "cpu" else len(indices)
    yield from indices.split(few)


def map_selected(
    batch: Num[Tensor, "b c h w"],
    selected: Bool[Tensor, " b"],
    function: ImageFunction,
    *parameters: Shaped[Tensor, "b ..."],
) -> Num[Tensor, "b c h w"]:
    """The batch with a function applied to the selected images; the batch itself does not change.

    Args:
        batch: the images.
        selected: which images; on the CPU.
        function: `f(images, *parameters) -> images`; it may work in place.
        parameters: the function gets those of the selected images.
    """
    if not bool(selected.any()):
        return batch
    out = torch.empty_like(batch, memory_format=torch.contiguous_format)
    # One pass over the batch: a second pass over a copy takes longer than the function itself.
    for some in chunks(batch):
        few = slice(int(some[0]), int(some[-1]) + 1)
        map_selected_(out[few].copy_(batch[few]), selected[few], function, *(p[few] for p in parameters))
    return out


def map_selected_(
    batch: Num[Tensor, "b c h w"],
    selected: Bool[Tensor, " b"],
    function: ImageFunction,
    *parameters: Shaped[Tensor, "b ..."],
) -> None:
    """As `map_selected`, in place."""
    map_indices_(batch, selected.nonzero().view(-1), function, *parameters)


def map_indices_(
    batch: Num[Tensor, "b c h w"],
    indices: Int[Tensor, " k"],
    function: ImageFunction,
    *parameters: Shaped[Tensor, "b ..."],
) -> None:
    """As `map_selected_`, for the images at some indices."""
    for some in chunks(batch, indices):
        if len(some) == 1 or len(some) == len(batch):
            few = slice(int(some[0]), int(some[-1]) + 1)
            images = batch[few]
            changed = function(images, *(p[few] for p in parameters))
            if changed.data_ptr() != images.data_ptr():
                images.copy_(changed)
        else:
            (on_device,) = to_device(batch.device, some)
            changed = function(batch.index_select(0, on_device), *(p[some] for p in parameters))
            batch.index_copy_(0, on_device, changed)


def channel_means(batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """The mean of each channel; the sum goes along rows, then along columns."""
    return batch.sum(-1).sum(-1) / (batch.shape[-1] * batch.shape[-2])


def sample_names(samples: Any) -> list[str]:
    """Names of samples for messages: the id of a handle, else the index."""
    return [str(getattr(sample, "id", index)) for index, sample in enumerate(samples)]


def check_choice(where: str, option: str, value: str, known: Any) -> None:
    """Raise InputError for an unknown value of an option."""
    if value not in known:
        raise InputError(where, expected=f"{option} among {sorted(known)}", got=repr(value))
