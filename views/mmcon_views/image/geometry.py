"""Crops, sizes and flips of images: where a view looks.

These generators stand at the front of a chain. They take undecoded handles, tensors of differing sizes, or a stacked
batch, and leave a stacked float32 batch `b c h w` in [0, 1]. Resampling is antialiased, as Pillow's is.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.pixels import change_rows, check_picture, check_stacked, copy_as_float, names_of, on_rows
from mmcon_views.image.resample import Interpolation, check_interpolation, resample
from mmcon_views.image.sizes import leaves_size, pair, sizes_in


@register_view("image/random-resized-crop", modality="image")
@final
class RandomResizedCrop(ViewGenerator):
    """A part of random area and aspect, brought to one size (Szegedy et al. 2015; torchvision's RandomResizedCrop).

    Up to ten times, an area fraction is drawn evenly and an aspect ratio (width over height) log-evenly; the first that
    fits is placed at random. Where none fits, the centre is taken, at the nearest admissible aspect.

    >>> crop = mmcon.create_view("image/random-resized-crop", size=96, area=(0.2, 1.0))
    >>> views = crop(photos, mmcon.keys(seed=0, epoch=0, sample=ids))

    Args:
        size: side of the square that leaves, or (height, width).
        area: fractions of the picture's area.
        aspect: ratios of width to height.
        interpolation: "bilinear", "bicubic" or "nearest".
        bytes: leave what is resampled in bytes as uint8, for a chain whose later parts turn it into floats: a quarter
            of the memory and of the way to a GPU.
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
        self.size, self.area, self.aspect, self.interpolation = pair(size), area, aspect, interpolation
        self.bytes = bytes
        check_interpolation("image/random-resized-crop", interpolation)
        if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
            raise InputError(
                "image/random-resized-crop",
                expected="0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]",
                got=f"area={area}, aspect={aspect}",
            )

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw top, left, height and width, `b` int64 each, in pixels of the picture."""
        full_height, full_width = sizes_in(meta, "image/random-resized-crop")
        # Most rows fit at the first try: the other nine are drawn for the rest alone (the first is the same number).
        height, width, none = self._first_that_fits(keys, full_height, full_width, 1)
        again = none.nonzero().view(-1)
        if len(again):
            height[again], width[again], none[again] = self._first_that_fits(
                keys[again], full_height[again], full_width[again], self.TRIES
            )
        widest, highest = self._admissible(full_height, full_width)
        width, height = torch.where(none, widest, width), torch.where(none, highest, height)
        top = keys.integers("top", 0, full_height - height + 1)
        left = keys.integers("left", 0, full_width - width + 1)
        return {
            "top": torch.where(none, (full_height - height) // 2, top),
            "left": torch.where(none, (full_width - width) // 2, left),
            "height": height,
            "width": width,
        }

    def _first_that_fits(self, keys: Keys, full_height: Tensor, full_width: Tensor, tries: int) -> tuple[Tensor, ...]:
        """Height and width of the first try that lies inside the picture, and whether none does."""
        area = keys.uniform("area", *self.area, shape=(tries,)) * (full_height * full_width)[:, None]
        aspect = keys.log_uniform("aspect", *self.aspect, shape=(tries,))
        width = torch.round(torch.sqrt(area * aspect)).to(torch.int64)
        height = torch.round(torch.sqrt(area / aspect)).to(torch.int64)
        fits = (width > 0) & (height > 0) & (width <= full_width[:, None]) & (height <= full_height[:, None])
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
        return height.gather(1, first)[:, 0], width.gather(1, first)[:, 0], ~fits.any(dim=1)

    def _admissible(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """The largest centred part whose aspect is within bounds: width and height."""
        low, high = self.aspect
        ratio = width / height
        wide = torch.where(ratio > high, torch.round(height * high).to(torch.int64), width)
        tall = torch.where(ratio < low, torch.round(width / low).to(torch.int64), height)
        return torch.minimum(wide.clamp(min=1), width), torch.minimum(tall.clamp(min=1), height)

    def apply(self, batch: Any, params: Params) -> Num[Tensor, "b c h w"]:
        """Cut and resample; of handles, only what the crop needs is decoded."""
        where = self.name or "image/random-resized-crop"
        return resample(batch, params, self.size, self.interpolation, where, bytes=self.bytes)

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Every picture has the one size."""
        return leaves_size(meta, self.size)


@register_view("image/resize", modality="image")
@final
class Resize(ViewGenerator):
    """The whole picture, or its centre, brought to one size: nothing is drawn.

    Args:
        size: side of the square that leaves, or (height, width).
        keep: the fraction of the shorter side that is kept: 1 keeps the largest centred part of the target's aspect,
            224/256 is the usual "resize to 256, crop 224 from the centre", made in one resampling.
        stretch: squeeze the whole picture into the size instead, whatever its aspect.
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
        self.size, self.keep, self.stretch, self.interpolation = pair(size), keep, stretch, interpolation
        check_interpolation("image/resize", interpolation)
        if not 0 < keep <= 1:
            raise InputError("image/resize", expected="keep in (0, 1]", got=str(keep))

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw nothing: top, left, height and width, `b` int64 each, follow from the sizes."""
        height, width = sizes_in(meta, "image/resize")
        kept_height, kept_width = height, width
        if not self.stretch:
            # The largest part of the target's aspect, in whole numbers.
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
        """Cut and resample."""
        return resample(batch, params, self.size, self.interpolation, self.name or "image/resize")

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Every picture has the one size."""
        return leaves_size(meta, self.size)


@register_view("image/crop", modality="image")
@final
class Crop(ViewGenerator):
    """A part of fixed size at a random place, or at the centre, without resampling (torchvision's RandomCrop).

    Args:
        size: side of the square that leaves, or (height, width).
        padding: pixels that are added on each side first.
        fill: what they hold: a grey from 0 to 1, or "reflect".
        centre: take the middle; nothing is drawn.
    """

    modality: ClassVar[str] = "image"
    ragged: ClassVar[bool] = True

    def __init__(
        self,
        *,
        size: int | tuple[int, int] = 224,
        padding: int = 0,
        fill: float | Literal["reflect"] = 0.0,
        centre: bool = False,
    ) -> None:
        self.size, self.padding, self.fill, self.centre = pair(size), padding, fill, centre
        if padding < 0 or not (fill == "reflect" or 0 <= float(fill) <= 1):
            raise InputError(
                "image/crop", expected="padding >= 0, fill in [0, 1]", got=f"padding={padding}, fill={fill!r}"
            )

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw top and left, `b` int64 each, in pixels of the padded picture."""
        height, width = (side + 2 * self.padding for side in sizes_in(meta, "image/crop"))
        small = (height < self.size[0]) | (width < self.size[1])
        if bool(small.any()):
            row = int(small.nonzero()[0])
            raise InputError(
                "image/crop",
                expected=f"pictures of at least {self.size[0]} × {self.size[1]} pixels, padding included",
                got=f"{int(height[row])} × {int(width[row])} in row {row}",
                fix="raise padding, lower size, or use image/random-resized-crop or image/resize",
                key=keys.describe(row),
            )
        if self.centre:
            return {"top": (height - self.size[0]) // 2, "left": (width - self.size[1]) // 2}
        return {
            "top": keys.integers("top", 0, height - self.size[0] + 1),
            "left": keys.integers("left", 0, width - self.size[1] + 1),
        }

    def apply(self, batch: Any, params: Params) -> Float[Tensor, "b c h w"]:
        """Cut."""
        where, names = self.name or "image/crop", names_of(batch)
        cut = []
        for row, (top, left) in enumerate(zip(params["top"].tolist(), params["left"].tolist(), strict=True)):
            picture = _decoded(batch[row])
            check_picture(picture, where, names[row])
            if self.padding:
                picture = pad(picture, self.padding, self.fill)
            cut.append(_unit(picture[:, top : top + self.size[0], left : left + self.size[1]]))
        return torch.stack(cut).contiguous()

    def output_meta(self, meta: Meta, params: Params) -> Meta:
        """Every picture has the one size."""
        return leaves_size(meta, self.size)


@register_view("image/flip", modality="image")
@final
class Flip(ViewGenerator):
    """Left and right exchanged with probability p.

    Args:
        p: the probability.
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether to flip, `b` bool."""
        return {"flip": keys.bernoulli("flip", self.p)}

    def apply(self, batch: Tensor, params: Params) -> Num[Tensor, "b c h w"]:
        """Exchange left and right where drawn; the type stays."""
        check_stacked(batch, self.name or "image/flip")
        return on_rows(batch, params["flip"], _mirrored)

    def apply_(self, batch: Tensor, params: Params) -> None:
        """Exchange in place."""
        change_rows(batch, params["flip"], _mirrored)


def _mirrored(pictures: Tensor) -> Tensor:
    return pictures.flip(-1)


def pad(picture: Num[Tensor, "c h w"], by: int, fill: float | str) -> Num[Tensor, "c h2 w2"]:
    """A picture with `by` pixels added on each side; a grey is in the picture's own units."""
    if fill == "reflect":
        return F.pad(picture[None], (by, by, by, by), mode="reflect")[0]
    value = float(fill) * (255 if picture.dtype == torch.uint8 else 1)
    return F.pad(picture, (by, by, by, by), value=value)


def _decoded(sample: Any) -> Tensor:
    return sample if isinstance(sample, Tensor) else sample.decode()


def _unit(picture: Tensor) -> Tensor:
    return picture.to(torch.float32) / 255 if picture.dtype == torch.uint8 else picture.to(torch.float32)
