"""Deterministic resizing and center crops, for evaluation."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.resample import Interpolation, check_interpolation, resample
from mmcon_views.image.sizes import Size, height_and_width, input_sizes, with_size


@register_view("image/resize", modality="image")
@final
class Resize(ViewGenerator):
    """The whole image, or its center, resized to one size; nothing is drawn.

    Args:
        size: side of the square output, or (height, width).
        keep: the fraction of the shorter side that is kept: 1 keeps the largest center crop of the target's aspect;
            224/256 is the usual "resize to 256, center crop 224", in one resampling.
        stretch: resize the whole image without regard to its aspect.
        interpolation: "bilinear", "bicubic" or "nearest".
    """

    modality: ClassVar[str] = "image"
    ragged: ClassVar[bool] = True

    def __init__(
        self,
        *,
        size: int | tuple[int, int] = 224,
        keep: float = 1.0,
        stretch: bool = False,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        self.size, self.keep, self.stretch, self.interpolation = height_and_width(size), keep, stretch, interpolation
        check_interpolation("image/resize", interpolation)
        if not 0 < keep <= 1:
            raise InputError("image/resize", expected="keep in (0, 1]", got=str(keep))

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing: `top`, `left`, `height` and `width`, `b` int64 each, follow from the sizes."""
        height, width = input_sizes(meta, "image/resize")
        kept_height, kept_width = height, width
        if not self.stretch:
            # The largest crop of the target's aspect, in whole numbers.
            kept_height = torch.minimum(height, width * self.size[0] // self.size[1]).clamp(min=1)
            kept_width = torch.minimum(width, height * self.size[1] // self.size[0]).clamp(min=1)
        kept_height = torch.round(kept_height * self.keep).to(torch.int64).clamp(min=1)
        kept_width = torch.round(kept_width * self.keep).to(torch.int64).clamp(min=1)
        return {
            "top": (height - kept_height) // 2,
            "left": (width - kept_width) // 2,
            "height": kept_height,
            "width": kept_width,
        }

    def apply(self, batch: Any, params: Params) -> Float[Tensor, "b c h w"]:
        """Crop and resample."""
        return resample(batch, params, self.size, self.interpolation, self.name or "image/resize")

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """All views have one size."""
        return with_size(meta, self.size)


@register_view("image/center-crop", modality="image")
def center_crop(*, size: Size = 224, keep: float = 224 / 256, interpolation: Interpolation = "bilinear") -> Resize:
    """The evaluation view: a center crop; nothing is drawn.

    The default keeps 224/256 of the shorter side: "resize to 256, center crop 224", in one resampling.

    Args:
        size: side of the square output, or (height, width).
        keep: the fraction of the shorter side that is kept.
        interpolation: the filter.
    """
    return Resize(size=size, keep=keep, interpolation=interpolation)


@register_view("image/plain", modality="image")
def plain(*, size: Size = 224, interpolation: Interpolation = "bilinear") -> Resize:
    """The image at one size: the largest center crop of the target's aspect, resized; nothing is drawn.

    Args:
        size: side of the square output, or (height, width).
        interpolation: the filter.
    """
    return Resize(size=size, interpolation=interpolation)
