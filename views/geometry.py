"""Crops, sizes and flips of images: where a view looks.

These generators stand at the front of a chain. They take undecoded handles, tensors of differing sizes, or a stacked
batch, and leave a stacked float32 batch `b c h w` in [0, 1]. Resampling is antialiased, as Pillow's is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, Num
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.view import Meta, Params, ViewGenerator
from views.pixels import check_picture, check_stacked, chunks, names_of, on_rows

Interpolation = Literal["bilinear", "bicubic", "nearest"]

# Up to this many pixels in and out, a call for each picture costs more than gathering all pictures' taps at once.
SMALL = 64 * 64


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

    def leaves(self, meta: Meta, params: Params) -> Meta:
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

    def leaves(self, meta: Meta, params: Params) -> Meta:
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

    def leaves(self, meta: Meta, params: Params) -> Meta:
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

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether to flip, `b` bool."""
        return {"flip": keys.bernoulli("flip", self.p)}

    def apply(self, batch: Tensor, params: Params) -> Num[Tensor, "b c h w"]:
        """Exchange left and right where drawn; the type stays."""
        check_stacked(batch, self.name or "image/flip")
        return on_rows(batch, params["flip"], lambda some: some.flip(-1))


# --- resampling ------------------------------------------------------------------------------------------------------


def resample(
    batch: Any, box: Params, size: tuple[int, int], interpolation: str, where: str, *, bytes: bool = False
) -> Num[Tensor, "b c h w"]:
    """Bring a part of each picture to one size, antialiased as Pillow does it.

    Photos (uint8) above SMALL pixels are resampled in bytes on a CPU, rounded to 1/255 as they are in any pipeline of
    bytes; all else is resampled in float32.

    Args:
        batch: handles, pictures `c h w`, or a stacked batch `b c h w`.
        box: `top`, `left`, `height`, `width`, `b` int64 each.
        size: height and width that leave.
        interpolation: the filter: a triangle, Keys' cubic (a = −1/2), or the nearest pixel.
        where: the generator's name, for messages.
        bytes: what is resampled in bytes stays uint8.

    Returns:
        `b c h w` float32 in [0, 1], or uint8.
    """
    if isinstance(batch, Tensor):
        check_stacked(batch, where)
        small = max(batch.shape[-1] * batch.shape[-2], size[0] * size[1]) <= SMALL
        if small or batch.device.type != "cpu":
            return _resample_stacked(batch, box, size, interpolation)
    boxes = torch.stack([box[name] for name in ("top", "left", "height", "width")], dim=1).tolist()
    return _resample_each(batch, boxes, size, interpolation, where, bytes)


def _resample_each(
    batch: Sequence[Any] | Tensor,
    boxes: list[list[int]],
    size: tuple[int, int],
    interpolation: str,
    where: str,
    bytes: bool = False,
) -> Tensor:
    names = names_of(batch)
    out: Tensor | None = None
    for row, (top, left, height, width) in enumerate(boxes):
        sample = batch[row]
        if isinstance(sample, Tensor):
            if not isinstance(batch, Tensor):
                check_picture(sample, where, names[row])
            part = sample[:, top : top + height, left : left + width]
        else:
            part = sample.decode(region=(top, left, height, width), size=size)
        view = resize_picture(part, size, interpolation)
        if out is None:
            out = torch.empty(len(boxes), *view.shape, dtype=view.dtype if bytes else torch.float32)
        if view.shape != out.shape[1:]:
            raise InputError(
                where,
                expected=f"{out.shape[1]} channels, as in the batch's first picture",
                got=f"{view.shape[0]} in sample {names[row]}",
                fix="open files with one number of channels: ImageHandle(..., channels=3)",
            )
        if view.dtype != torch.uint8 and out.dtype == torch.uint8:
            raise InputError(
                where,
                expected="pictures of one type in a batch",
                got=f"{view.dtype} in sample {names[row]} after uint8",
            )
        out[row] = view
        if view.dtype == torch.uint8 and out.dtype != torch.uint8:
            out[row] /= 255
    if out is None:
        raise InputError(where, expected="at least one picture", got="an empty batch")
    return out


def resize_picture(picture: Num[Tensor, "c h w"], size: tuple[int, int], interpolation: str) -> Num[Tensor, "c h2 w2"]:
    """One picture at another size; bytes stay bytes."""
    if picture.shape[-2:] == size:
        return picture
    if interpolation == "nearest":
        return F.interpolate(picture[None], size, mode="nearest-exact")[0]
    if picture.dtype == torch.uint8:
        # torch's byte kernel is more than twice as fast on channels that lie together.
        together = picture[None].contiguous(memory_format=torch.channels_last)
        return F.interpolate(together, size, mode=interpolation, antialias=True)[0]
    # Where neither side shrinks the triangle is not widened: the plain kernel is the same, and more than twice as fast.
    shrinks = picture.shape[-2] > size[0] or picture.shape[-1] > size[1]
    smooth = shrinks or interpolation != "bilinear"
    return F.interpolate(picture[None], size, mode=interpolation, antialias=smooth)[0].clamp_(0, 1)


def _resample_stacked(batch: Tensor, box: Params, size: tuple[int, int], interpolation: str) -> Tensor:
    """All pictures at once: rows of each are gathered and weighted tap by tap, then columns, as rows of the turned."""
    scale = 1 / 255 if batch.dtype == torch.uint8 else 1.0
    down = taps(box["top"], box["height"], size[0], interpolation, scale)
    across = taps(box["left"], box["width"], size[1], interpolation)
    out = torch.empty(*batch.shape[:2], *size, device=batch.device)
    for some in chunks(out):
        part = slice(int(some[0]), int(some[-1]) + 1)
        rows = _gather_rows(batch[part], [(i[part], w[part]) for i, w in down])
        turned = _gather_rows(rows.transpose(2, 3), [(i[part], w[part]) for i, w in across])
        out[part] = turned.transpose(2, 3)
    # Weights sum to one but for rounding, so that white may come out a bit above 1.
    return out.clamp_(0, 1)


def _gather_rows(batch: Tensor, taps_of_rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Weighted sums of rows: `b c h w` to `b c out w`, one tap after another."""
    b, c, h, w = batch.shape
    flat = batch.contiguous().to(torch.float32).view(b * c * h, w)
    starts = (torch.arange(b * c, device=batch.device) * h).view(b, c, 1)
    total: Tensor | None = None
    for index, weight in taps_of_rows:
        at = (starts + index.to(batch.device, non_blocking=True)[:, None]).view(-1)
        rows = flat.index_select(0, at).view(b, c, -1, w)
        weight = weight.to(batch.device, non_blocking=True)[:, None, :, None]
        total = rows.mul_(weight) if total is None else total.addcmul_(rows, weight)
    assert total is not None
    return total


def taps(
    start: Int[Tensor, "b"], length: Int[Tensor, "b"], out: int, interpolation: str, scale: float = 1.0
) -> list[tuple[Int[Tensor, "b out"], Float[Tensor, "b out"]]]:
    """Positions and weights that resample `length` pixels from `start` to `out`, a pair for each tap.

    As Pillow: the filter is widened by the reduction, cut at the part's edges, and its weights sum to 1. Sums go tap
    by tap, so that a row's weights do not depend on how many taps another row needs.

    Args:
        start: first pixel of each part.
        length: pixels of each part.
        out: pixels that leave.
        interpolation: the filter.
        scale: what the weights sum to.
    """
    step = (length.to(torch.float64) / out)[:, None]
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) * step
    if interpolation == "nearest":
        nearest = torch.minimum(centre.floor().to(torch.int64), length[:, None] - 1)
        return [(start[:, None] + nearest, torch.full_like(centre, scale).to(torch.float32))]
    wide = step.clamp(min=1.0)
    support = (1.0 if interpolation == "bilinear" else 2.0) * wide
    first = (centre - support + 0.5).floor().clamp(min=0)
    last = torch.minimum((centre + support + 0.5).floor(), length[:, None].to(torch.float64))
    kernel = _triangle if interpolation == "bilinear" else _cubic
    positions, weights = [], []
    for tap in range(int((last - first).max())):
        at = first + tap
        weights.append(torch.where(at < last, kernel((at - centre + 0.5) / wide), 0.0))
        positions.append(start[:, None] + torch.minimum(at, length[:, None] - 1.0).to(torch.int64))
    total = weights[0].clone()
    for weight in weights[1:]:
        total += weight
    return [(at, (weight / total * scale).to(torch.float32)) for at, weight in zip(positions, weights, strict=True)]


def _triangle(x: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Keys' cubic convolution with a = −1/2 (1981, equation 15)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


# --- sizes -----------------------------------------------------------------------------------------------------------


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width; a number is the side of a square."""
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if height < 1 or width < 1:
        raise InputError("image size", expected="at least one pixel a side", got=f"{height} × {width}")
    return height, width


def sizes_in(meta: Meta, where: str) -> tuple[Int[Tensor, "b"], Int[Tensor, "b"]]:
    """Heights and widths of the pictures that come, from what is known of them."""
    if "height" not in meta or "width" not in meta:
        raise InputError(
            where,
            expected="pictures whose height and width are known before they are decoded",
            got=f"facts {sorted(meta)}",
            fix="pass mmcon.media.ImageHandle or tensors `c h w`",
        )
    height, width = meta["height"].to(torch.int64), meta["width"].to(torch.int64)
    if bool(((height < 1) | (width < 1)).any()):
        raise InputError(where, expected="at least one pixel a side", got=f"{int(height.min())} × {int(width.min())}")
    return height, width


def leaves_size(meta: Meta, size: tuple[int, int]) -> Meta:
    """The facts with one height and width for all."""
    some = meta["height"]
    return {**meta, "height": torch.full_like(some, size[0]), "width": torch.full_like(some, size[1])}


def check_interpolation(where: str, interpolation: str) -> None:
    """Refuse a filter that is not known."""
    if interpolation not in ("bilinear", "bicubic", "nearest"):
        raise InputError(where, expected="interpolation bilinear, bicubic or nearest", got=repr(interpolation))


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
