"""Heights and widths of a `size` option, and of the input and the output of a generator."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.views import Meta

Size = int | tuple[int, int]


def height_and_width(size: Size) -> tuple[int, int]:
    """Height and width of a `size` option; a number is the side of a square."""
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if height < 1 or width < 1:
        raise InputError("image size", expected="at least one pixel a side", got=f"{height} × {width}")
    return height, width


def input_sizes(meta: Meta, where: str) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """Heights and widths of the input images, from their meta."""
    if "height" not in meta or "width" not in meta:
        raise InputError(
            where,
            expected="images whose height and width are known before they are decoded",
            got=f"facts {sorted(meta)}",
            fix="pass mmcon.media.ImageHandle or tensors `c h w`",
        )
    height, width = meta["height"].to(torch.int64), meta["width"].to(torch.int64)
    if not len(height):
        raise InputError(where, expected="at least one image", got="an empty batch")
    if bool(((height < 1) | (width < 1)).any()):
        raise InputError(where, expected="at least one pixel a side", got=f"{int(height.min())} × {int(width.min())}")
    return height, width


def with_size(meta: Meta, size: tuple[int, int]) -> Meta:
    """The meta with one height and width for all images."""
    some = meta["height"]
    return {**meta, "height": torch.full_like(some, size[0]), "width": torch.full_like(some, size[1])}
