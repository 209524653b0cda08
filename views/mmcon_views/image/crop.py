"""Random crops: RandomResizedCrop (the SimCLR crop), a crop of fixed size, and a crop inside a shared region.

Crops are the first generators of a chain. They take undecoded handles, tensors of differing sizes, or a stacked batch,
and return a stacked batch `b c h w`, float32 in [0, 1] or uint8. Resampling is antialiased, as in Pillow.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Chain, Meta, Params, ViewGenerator
from mmcon_views.image.flip import Flip
from mmcon_views.image.pixels import check_image, sample_names
from mmcon_views.image.resample import Interpolation, check_interpolation, resample
from mmcon_views.image.sizes import Size, height_and_width, input_sizes, with_size
from mmcon_views.shared_draws import without_view


@register_view("image/random-resized-crop", modality="image")
@final
class RandomResizedCrop(ViewGenerator):
    """A crop of random area and aspect, resized to one size (Szegedy et al. 2015; torchvision's RandomResizedCrop).

    Up to ten times, an area fraction is drawn uniformly and an aspect ratio (width over height) log-uniformly; the
    first crop that fits gets a random position. Where none fits, the crop is central, at the nearest admissible aspect.

    >>> crop = mmcon.create_view("image/random-resized-crop", size=96, area=(0.2, 1.0))
    >>> views = crop(photos, mmcon.keys(seed=0, epoch=0, sample=ids))

    Args:
        size: side of the square output, or (height, width).
        area: bounds of the crop's area, as fractions of the image's.
        aspect: bounds of width over height.
        interpolation: "bilinear", "bicubic" or "nearest".
        bytes: keep images that are resampled in uint8 as uint8, for a chain whose later children convert to float32:
            this takes a quarter of the memory and of the transfer to a GPU.
    """

    modality: ClassVar[str] = "image"
    ragged: ClassVar[bool] = True
    TRIES: ClassVar[int] = 10

    def __init__(
        self,
        *,
        size: int | tuple[int, int] = 224,
        area: tuple[float, float] = (0.08, 1.0),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
        bytes: bool = False,
    ) -> None:
        self.size, self.area, self.aspect, self.interpolation = height_and_width(size), area, aspect, interpolation
        self.bytes = bytes
        check_interpolation("image/random-resized-crop", interpolation)
        if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
            raise InputError(
                "image/random-resized-crop",
                expected="0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]",
                got=f"area={area}, aspect={aspect}",
            )

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `top`, `left`, `height` and `width`, `b` int64 each, in pixels of the image."""
        full_height, full_width = input_sizes(meta, "image/random-resized-crop")
        # Most crops fit at the first try: nine more are drawn for the other samples only (the first stays the same).
        height, width, none = self._first_that_fits(keys, full_height, full_width, 1)
        again = none.nonzero().view(-1)
        if len(again):
            height[again], width[again], none[again] = self._first_that_fits(
                keys[again], full_height[again], full_width[again], self.TRIES
            )
        widest, highest = self._largest_within_aspect(full_height, full_width)
        width, height = torch.where(none, widest, width), torch.where(none, highest, height)
        top = keys.integers("top", 0, full_height - height + 1)
        left = keys.integers("left", 0, full_width - width + 1)
        return {
            "top": torch.where(none, (full_height - height) // 2, top),
            "left": torch.where(none, (full_width - width) // 2, left),
            "height": height,
            "width": width,
        }

    def _first_that_fits(
        self, keys: Keys, full_height: Int[Tensor, " b"], full_width: Int[Tensor, " b"], tries: int
    ) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"], Bool[Tensor, " b"]]:
        """Height and width of the first try inside the image, and whether there is none."""
        area = keys.uniform("area", *self.area, shape=(tries,)) * (full_height * full_width)[:, None]
        aspect = keys.log_uniform("aspect", *self.aspect, shape=(tries,))
        width = torch.round(torch.sqrt(area * aspect)).to(torch.int64)
        height = torch.round(torch.sqrt(area / aspect)).to(torch.int64)
        fits = (width > 0) & (height > 0) & (width <= full_width[:, None]) & (height <= full_height[:, None])
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
        return height.gather(1, first)[:, 0], width.gather(1, first)[:, 0], ~fits.any(dim=1)

    def _largest_within_aspect(
        self, height: Int[Tensor, " b"], width: Int[Tensor, " b"]
    ) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """Width and height of the largest crop whose aspect is within bounds."""
        low, high = self.aspect
        ratio = width / height
        wide = torch.where(ratio > high, torch.round(height * high).to(torch.int64), width)
        tall = torch.where(ratio < low, torch.round(width / low).to(torch.int64), height)
        return torch.minimum(wide.clamp(min=1), width), torch.minimum(tall.clamp(min=1), height)

    def apply(self, batch: Any, params: Params) -> Num[Tensor, "b c h w"]:
        """Crop and resample; of handles, only the region of the crop is decoded."""
        where = self.name or "image/random-resized-crop"
        return resample(batch, params, self.size, self.interpolation, where, bytes=self.bytes)

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """All views have one size."""
        return with_size(meta, self.size)


@register_view("image/crop", modality="image")
@final
class Crop(ViewGenerator):
    """A crop of fixed size at a random position, or at the center, without resampling (torchvision's RandomCrop).

    Args:
        size: side of the square output, or (height, width).
        padding: pixels that are first added on each side.
        fill: the value of added pixels: a gray from 0 to 1, or "reflect".
        center: crop at the center; nothing is drawn.
    """

    modality: ClassVar[str] = "image"
    ragged: ClassVar[bool] = True

    def __init__(
        self,
        *,
        size: int | tuple[int, int] = 224,
        padding: int = 0,
        fill: float | Literal["reflect"] = 0.0,
        center: bool = False,
    ) -> None:
        self.size, self.padding, self.fill, self.center = height_and_width(size), padding, fill, center
        if padding < 0 or not (fill == "reflect" or 0 <= float(fill) <= 1):
            raise InputError(
                "image/crop", expected="padding >= 0, fill in [0, 1]", got=f"padding={padding}, fill={fill!r}"
            )

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `top` and `left`, `b` int64 each, in pixels of the padded image."""
        height, width = (side + 2 * self.padding for side in input_sizes(meta, "image/crop"))
        small = (height < self.size[0]) | (width < self.size[1])
        if bool(small.any()):
            row = int(small.nonzero()[0])
            raise InputError(
                "image/crop",
                expected=f"images of at least {self.size[0]} × {self.size[1]} pixels, padding included",
                got=f"{int(height[row])} × {int(width[row])} in row {row}",
                fix="raise padding, lower size, or use image/random-resized-crop or image/resize",
                key=keys.describe(row),
            )
        if self.center:
            return {"top": (height - self.size[0]) // 2, "left": (width - self.size[1]) // 2}
        return {
            "top": keys.integers("top", 0, height - self.size[0] + 1),
            "left": keys.integers("left", 0, width - self.size[1] + 1),
        }

    def apply(self, batch: Any, params: Params) -> Float[Tensor, "b c h w"]:
        """Pad and crop."""
        where, names = self.name or "image/crop", sample_names(batch)
        cut = []
        for row, (top, left) in enumerate(zip(params["top"].tolist(), params["left"].tolist(), strict=True)):
            image = _decoded(batch[row])
            check_image(image, where, names[row])
            if self.padding:
                image = pad(image, self.padding, self.fill)
            cut.append(_unit_range(image[:, top : top + self.size[0], left : left + self.size[1]]))
        return torch.stack(cut).contiguous()

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """All views have one size."""
        return with_size(meta, self.size)


@final
class CropWithin(ViewGenerator):
    """A crop inside a region that all views of a sample share, in one resampling.

    The region changes in each epoch and, since it is shared, keeps the motion between views of one video; the crop
    inside it is drawn for each view.

    Args:
        shared: the generator of the region; only its `area` and `aspect` are used.
        crop: the generator of the crop inside the region.
    """

    modality: ClassVar[str] = "image"
    ragged: ClassVar[bool] = True

    def __init__(self, shared: RandomResizedCrop, crop: RandomResizedCrop) -> None:
        self.shared, self.crop, self.name = shared, crop, crop.name
        self.size, self.interpolation = crop.size, crop.interpolation

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `top`, `left`, `height` and `width`, `b` int64 each, in pixels of the image."""
        region = self.shared.draw(without_view(keys).child("shared"), meta)
        within = self.crop.draw(keys, {**meta, "height": region["height"], "width": region["width"]})
        return {**within, "top": region["top"] + within["top"], "left": region["left"] + within["left"]}

    def apply(self, batch: Any, params: Params) -> Any:
        """Crop and resample."""
        return self.crop.apply(batch, params)

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """All views have one size."""
        return self.crop.output_meta(meta, params)


@register_view("image/crop-flip", modality="image")
def crop_flip(
    *,
    size: Size = 224,
    area: tuple[float, float] = (0.08, 1.0),
    interpolation: Interpolation = "bilinear",
) -> Chain:
    """A random resized crop and a horizontal flip.

    Args:
        size: side of the square output, or (height, width).
        area: bounds of the crop's area, as fractions of the image's.
        interpolation: the filter of the crop.
    """
    return Chain(
        ("crop", RandomResizedCrop(size=size, area=area, interpolation=interpolation)),
        ("flip", Flip()),
        name="image/crop-flip",
    )


def pad(image: Num[Tensor, "c h w"], by: int, fill: float | str) -> Num[Tensor, "c h2 w2"]:
    """Add `by` pixels on each side of an image; a gray is in the units of the image."""
    if fill == "reflect":
        return F.pad(image[None], (by, by, by, by), mode="reflect")[0]
    value = float(fill) * (255 if image.dtype == torch.uint8 else 1)
    return F.pad(image, (by, by, by, by), value=value)


def _decoded(sample: Any) -> Num[Tensor, "c h w"]:
    return sample if isinstance(sample, Tensor) else sample.decode()


def _unit_range(image: Num[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    return image.to(torch.float32) / 255 if image.dtype == torch.uint8 else image.to(torch.float32)
