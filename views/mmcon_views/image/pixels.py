"""What a batch of images is, and what every operation on pixels needs.

A batch is `b c h w`, uint8 or float in [0, 1]; what comes out of an operation is float32 in [0, 1]. One sample alone
gives the same bits as in any batch. Three habits keep it so: operations are elementwise, or gather with their taps in a
fixed order; a sum over an image goes by rows, then by columns, never over the flattened batch; and which of two
algorithms runs depends on an image's size and device, never on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from mmcon.errors import DataError, InputError

# Images are taken together in chunks of about this many numbers, so that an operation's several passes stay in a
# core's cache; tried from 2^14 to 2^20 on two machines.
CHUNK = 1 << 17


def to_float(batch: Tensor, where: str) -> Float[Tensor, "b c h w"]:
    """Check a stacked batch and give it as float32 in [0, 1]; the same tensor where it is that already."""
    check_batch(batch, where)
    if batch.dtype == torch.uint8:
        return batch.to(torch.float32).div_(255)
    return batch.to(torch.float32)


def copy_as_float(batch: Tensor, out: Tensor, where: str) -> None:
    """Check a stacked batch and write it to `out` as float32 in [0, 1]."""
    check_batch(batch, where)
    out.copy_(batch)
    if batch.dtype == torch.uint8:
        out.div_(255)


def float_copy(batch: Tensor, where: str) -> Float[Tensor, "b c h w"]:
    """As `to_float`, in memory that may be written over."""
    out = torch.empty(batch.shape, device=batch.device)
    copy_as_float(batch, out, where)
    return out


def check_batch(batch: Any, where: str) -> None:
    """Refuse what is not a batch of images: wrong axes, channels, types, and (on a CPU) numbers outside [0, 1]."""
    if not isinstance(batch, Tensor) or batch.dim() != 4:
        got = f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
        raise InputError(
            where,
            expected="stacked images `b c h w`",
            got=got,
            fix="begin the chain with a generator that brings images to one size, such as image/random-resized-crop",
        )
    check_image(batch, where)


def check_image(image: Tensor, where: str, sample: str = "") -> None:
    """Refuse a tensor whose last axes are not `c h w` of one or three channels, or whose numbers are no pixels."""
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
    # On an accelerator the check would make the host wait for the device at every operation.
    if image.is_floating_point() and image.device.type == "cpu" and image.numel():
        low, high = torch.aminmax(image.detach())
        if not (float(low) >= 0.0 and float(high) <= 1.0):
            raise DataError(
                where,
                expected="finite numbers in [0, 1]",
                got=f"a minimum of {float(low):g} and a maximum of {float(high):g}",
                fix="divide by 255 where pixels are bytes; normalize in the encoder, after the views",
            )


def as_columns(batch: Tensor, *columns: Tensor) -> list[Tensor]:
    """Parameters `b` as float32 columns `b 1 1 1` where the batch is."""
    return [c.to(batch.device, torch.float32, non_blocking=True).view(-1, 1, 1, 1) for c in columns]


def chunks(batch: Tensor, rows: Tensor | None = None) -> Iterator[Tensor]:
    """Positions of a few images at a time, about CHUNK numbers on a CPU, all at once elsewhere."""
    positions = torch.arange(len(batch)) if rows is None else rows
    if not len(positions):
        return
    few = max(1, CHUNK // max(1, batch[0].numel())) if batch.device.type == "cpu" else len(positions)
    yield from positions.split(few)


def map_selected(
    batch: Num[Tensor, "b c h w"], rows: Tensor, function: Any, *parameters: Tensor
) -> Num[Tensor, "b c h w"]:
    """The batch with a function applied to some of its images.

    Args:
        batch: is not changed.
        rows: `b` bool on the CPU, which images.
        function: `f(images, *parameters) -> images`; it may work in place.
        parameters: `b …` each, of which it gets the rows.
    """
    if not bool(rows.any()):
        return batch
    out = torch.empty_like(batch, memory_format=torch.contiguous_format)
    # One pass through the batch: a second over a copy of it costs more than the function itself.
    for some in chunks(batch):
        few = slice(int(some[0]), int(some[-1]) + 1)
        map_selected_(out[few].copy_(batch[few]), rows[few], function, *(p[few] for p in parameters))
    return out


def map_selected_(batch: Num[Tensor, "b c h w"], rows: Tensor, function: Any, *parameters: Tensor) -> None:
    """As `map_selected`, in the batch itself."""
    map_indices_(batch, rows.nonzero().view(-1), function, *parameters)


def map_indices_(batch: Num[Tensor, "b c h w"], positions: Tensor, function: Any, *parameters: Tensor) -> None:
    """As `map_selected_`, of the images at some positions."""
    for some in chunks(batch, positions):
        if len(some) == 1 or len(some) == len(batch):
            few = slice(int(some[0]), int(some[-1]) + 1)
            part = batch[few]
            changed = function(part, *(p[few] for p in parameters))
            if changed.data_ptr() != part.data_ptr():
                part.copy_(changed)
        else:
            there = some.to(batch.device, non_blocking=True)
            changed = function(batch.index_select(0, there), *(p[some] for p in parameters))
            batch.index_copy_(0, there, changed)


def channel_means(batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """The mean of each channel, summed along rows, then along columns."""
    return batch.sum(-1).sum(-1) / (batch.shape[-1] * batch.shape[-2])


def sample_names(samples: Any) -> list[str]:
    """What to call each sample in a message: its handle's id, or its position."""
    return [str(getattr(sample, "id", position)) for position, sample in enumerate(samples)]


def check_choice(where: str, option: str, value: str, known: Any) -> None:
    """Refuse a value of an option that is not known."""
    if value not in known:
        raise InputError(where, expected=f"{option} among {sorted(known)}", got=repr(value))
