"""Operations of AutoAugment and RandAugment in TensorFlow and Pillow, where they differ from torchvision's.

Names and magnitudes are those of `mmcon_views.image.policy_operations`. The differences follow the code of TensorFlow's
model garden and of timm:

- *TensorFlow*: Contrast blends with the gray h·w/256 (of 255, at most white), since its code takes the number of pixels
  over 256 for the mean. Posterize to 0 bits keeps one bit, since TensorFlow limits the shift to 7. Shears fix the first
  row or column, and a translation need not be whole.
- *Pillow* (timm, InfoMin): geometry is bilinear or bicubic, as drawn, and the fill is a color.

Both round to bytes after each operation. Here values are not rounded, so they differ from theirs by 2/255 at most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmcon_views.image.pixels import map_selected_, to_device
from mmcon_views.image.policy_operations import (
    OPERATIONS,
    Cells,
    Fill,
    Functions,
    Images,
    Magnitude,
    affine,
    affine_grid,
    affine_matrix,
    posterize,
    rotation_cells,
)


def pixel_count_contrast(x: Images, factor: Magnitude) -> Images:
    """Factor · x + (1 − factor) · gray, clipped, with gray = min(⌊h·w/256⌋, 255)/255 for any image."""
    # TensorFlow's code takes the mean of the histogram's 256 counts for the mean gray.
    gray = min(x.shape[-2] * x.shape[-1] // 256, 255) / 255
    return x.mul(factor).add_((1 - factor) * gray).clamp_(0, 1)


def posterize_at_least_one_bit(x: Images, bits: Magnitude) -> Images:
    """X rounded down to so many bits, at least one."""
    return posterize(x, bits.clamp(min=1))


def _tensorflow(cells: Callable[[Float[Tensor, " b"], int, int], Cells]) -> Callable[..., Images]:
    def operation(x: Images, magnitude: Magnitude, fill: float = 0.0) -> Images:
        m = magnitude.view(-1)
        return affine(x, affine_matrix(m, cells(m, x.shape[-2], x.shape[-1])), fill=fill)

    return operation


def _pillow(cells: Callable[[Float[Tensor, " b"], int, int], Cells]) -> Callable[..., Images]:
    def operation(x: Images, drawn: Float[Tensor, "b 2 1 1"], fill: Fill = 0.0) -> Images:
        m, bicubic = drawn[:, 0].view(-1), drawn[:, 1].view(-1) > 0
        matrix = affine_matrix(m, cells(m, x.shape[-2], x.shape[-1]))
        out = x.clone()
        for smooth, mode in ((bicubic, "bicubic"), (~bicubic, "bilinear")):
            map_selected_(out, smooth, partial(_pillow_affine, mode=mode, fill=fill), matrix)
        return out

    return operation


def _pillow_affine(x: Images, matrix: Float[Tensor, "b 2 3"], *, mode: str, fill: Fill) -> Images:
    """A pixel read outside of the image is `fill` alone; taps outside of the border repeat it."""
    grid = affine_grid(matrix, x.shape[-2], x.shape[-1], x.device)
    out = F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False).clamp_(0, 1)
    inside = ((grid >= -1) & (grid < 1)).all(-1)[:, None]
    color = to_device(x.device, torch.tensor(fill, dtype=x.dtype))[0].view(1, -1, 1, 1)
    return torch.where(inside, out, color if color.shape[1] in (1, x.shape[1]) else color.mean())


TENSORFLOW: Functions = {
    **OPERATIONS,
    "Contrast": pixel_count_contrast,
    "Posterize": posterize_at_least_one_bit,
    "ShearX": _tensorflow(lambda m, h, w: {(0, 1): m, (0, 2): m * ((h - 1) / 2)}),
    "ShearY": _tensorflow(lambda m, h, w: {(1, 0): m, (1, 2): m * ((w - 1) / 2)}),
    "TranslateX": _tensorflow(lambda m, h, w: {(0, 2): m}),
    "TranslateY": _tensorflow(lambda m, h, w: {(1, 2): m}),
}
PILLOW: Functions = {
    **OPERATIONS,
    "ShearX": _pillow(lambda m, h, w: {(0, 1): m, (0, 2): m * (h / 2)}),
    "ShearY": _pillow(lambda m, h, w: {(1, 0): m, (1, 2): m * (w / 2)}),
    "TranslateX": _pillow(lambda m, h, w: {(0, 2): m}),
    "TranslateY": _pillow(lambda m, h, w: {(1, 2): m}),
    "Rotate": _pillow(lambda m, h, w: rotation_cells(m)),
}
