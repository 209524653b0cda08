"""Color operations: brightness, contrast, saturation, hue, grayscale and solarization, as in torchvision.

Pure functions of float images `b c h w` in [0, 1] with one factor per image, and generators that draw the factors.
Saturation, hue and grayscale do not change images of one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.one_pass import BRIGHTNESS, GRAY, NOTHING, SOLARIZE, PixelSteps, one_pass
from mmcon_views.image.pixels import (
    channel_means,
    copy_as_float,
    float_copy,
    kernels_for,
    map_indices_,
    map_selected,
    map_selected_,
    to_device,
    to_float,
)

# ITU-R BT.601 luma, with the digits of torchvision and Pillow.
LUMA = (0.2989, 0.587, 0.114)

Images = Float[Tensor, "b c h w"]
Factor = Float[Tensor, "b 1 1 1"]


def luma(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """The gray value of each pixel; an image of one channel is returned unchanged."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def brightness(x: Images, factor: Factor) -> Images:
    """X · factor, clipped."""
    return brightness_(x.clone(), factor)


def contrast(x: Images, factor: Factor) -> Images:
    """Blend with the image's mean gray value: factor · x + (1 − factor) · mean, clipped."""
    return contrast_(x.clone(), factor)


def saturation(x: Images, factor: Factor) -> Images:
    """Blend with each pixel's gray value: factor · x + (1 − factor) · luma, clipped."""
    return saturation_(x.clone(), factor)


def hue(x: Images, factor: Factor) -> Images:
    """Rotate the hue by a fraction of the circle, at constant value and saturation of the HSV hexcone."""
    return hue_(x.clone(), factor)


def gray(x: Images) -> Images:
    """The gray value in every channel."""
    return luma(x).expand_as(x)


# --- in place: with a new tensor for each step, a large image would leave the cache ----------------------------------


def brightness_(x: Images, factor: Factor) -> Images:
    """`brightness`, in place."""
    return x.mul_(factor).clamp_(0, 1)


def contrast_(x: Images, factor: Factor) -> Images:
    """`contrast`, in place."""
    # The gray mean from three channel means: the mean of luma would need a gray image first.
    means = channel_means(x)
    if x.shape[1] == 3:
        means = (means[:, :1] * LUMA[0]).add_(means[:, 1:2] * LUMA[1]).add_(means[:, 2:] * LUMA[2])
    return x.mul_(factor).add_(means.view(-1, 1, 1, 1) * (1 - factor)).clamp_(0, 1)


def saturation_(x: Images, factor: Factor) -> Images:
    """`saturation`, in place."""
    if x.shape[1] == 1:
        return x
    gray = luma(x).mul_(1 - factor)
    return x.mul_(factor).add_(gray).clamp_(0, 1)


def hue_(x: Images, factor: Factor) -> Images:
    """`hue`, in place, without branches and with one division.

    With max, min and chroma c = max − min of a pixel, p = max − red and d = green − blue, the hue in sextants is
    a / c with a = sign(d) · (|d| + p · (3 − 2|d|/c)), on each of the six edges of the hexagon; and a hue h gives the
    channel whose own hue is o as min + c · clip(||h − o| − 3| − 1, 0, 1), here with c multiplied in: ||a + c·t| − 3c|
    + min − c, between min and max, where t is the rotation minus o.
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    torch.maximum(high, red, out=high)
    torch.minimum(low, red, out=low)
    chroma = high - low
    difference = green - blue
    angle = difference.abs()
    # Gray pixels have a difference of 0 too, so that any finite quotient gives them hue 0.
    steep = chroma.clamp(min=1e-12)
    torch.div(angle, steep, out=steep).mul_(-2).add_(3)
    angle.addcmul_(high - red, steep)
    torch.copysign(angle, difference, out=angle)
    torch.addcmul(angle, chroma, hue_turns(factor), out=x)
    x.abs_().sub_(chroma, alpha=3).abs_().add_(torch.sub(low, chroma, out=chroma))
    torch.maximum(x, low, out=x)
    return torch.minimum(x, high, out=x)


def hue_turns(factor: Factor) -> Float[Tensor, "b 3 1 1"]:
    """The rotation in sextants minus the hue of red, green and blue, in [-3, 3], where no modulo is needed."""
    turn = torch.cat([6 * factor, 6 * factor - 2, 6 * factor + 2], dim=1)
    return turn - 6 * torch.round(turn / 6)


Operation = Callable[[Tensor, Tensor], Tensor]
TORCHVISION: tuple[Operation, ...] = (brightness_, contrast_, saturation_, hue_)


def check_strengths(where: str, **strengths: float) -> None:
    """Raise InputError for strengths below 0 or a hue above half a circle."""
    if min(strengths.values()) < 0 or strengths["hue"] > 0.5:
        got = ", ".join(f"{name}={strength}" for name, strength in strengths.items())
        raise InputError(where, expected="strengths of at least 0, hue at most .5", got=got)


def draw_jitter(keys: Keys, strengths: dict[str, float], p: float, *, added: bool = False) -> Params:
    """Draw `apply` (`b` bool), `order` (`b 4`; 0 brightness, 1 contrast, 2 saturation, 3 hue) and a factor for each.

    Factors are uniform in [max(0, 1 − s), 1 + s]; additive amounts, such as the hue's, in [−s, s].
    """
    params: Params = {"apply": keys.bernoulli("apply", p), "order": keys.permutation("order", 4)}
    for name, s in strengths.items():
        additive = name == "hue" or (added and name == "brightness")
        params[name] = keys.uniform(name, -s if additive else max(0.0, 1 - s), s if additive else 1 + s)
    return params


def jitter_steps(params: Params) -> PixelSteps:
    """The four operations of torchvision's jitter as steps, in each image's own order."""
    factors = torch.stack([params[name] for name in ("brightness", "contrast", "saturation")], dim=1).to(torch.float32)
    values = torch.zeros(len(factors), 4, 3)
    values[:, :3, 0], values[:, :3, 1] = factors, 1 - factors
    values[:, 3] = hue_turns(params["hue"].to(torch.float32).view(-1, 1, 1, 1)).view(-1, 3)
    order = params["order"]
    return PixelSteps(
        torch.where(params["apply"][:, None], order + BRIGHTNESS, NOTHING),
        values.gather(1, order[..., None].expand(-1, -1, 3)),
    )


def jitter_(x: Images, params: Params, operations: tuple[Operation, ...]) -> None:
    """The four operations in place, in each image's own order; images with the same order are processed together."""
    names = ("brightness", "contrast", "saturation", "hue")
    factors = torch.stack([params[name] for name in names], dim=1).to(torch.float32)[..., None, None, None]
    kernels = kernels_for(x) if operations is TORCHVISION and x.shape[1] == 3 and x.is_contiguous() else None
    if kernels is not None:
        rows = params["apply"].nonzero().view(-1)
        if len(rows):
            kernels.jitter_(x, *to_device(x.device, rows, params["order"][rows], factors[rows].view(-1, 4)))
        return None
    if x.device.type == "cuda":
        return _jitter_by_place(x, params, operations, factors)
    (factors,) = to_device(x.device, factors)
    rows_by_order: dict[tuple[int, ...], list[int]] = {}
    for row, (applied, order) in enumerate(zip(params["apply"].tolist(), params["order"].tolist(), strict=True)):
        if applied:
            rows_by_order.setdefault(tuple(order), []).append(row)
    for order, rows in rows_by_order.items():
        map_indices_(x, torch.tensor(rows), partial(_apply_in_order, order, operations), factors)


def _jitter_by_place(
    x: Images, params: Params, operations: tuple[Operation, ...], factors: Float[Tensor, "b 4 1 1 1"]
) -> None:
    """`jitter_` on a GPU: images with the same operation at a place of the order together, 16 groups in place of 24.

    All indices and factors are copied at once, so that the host runs ahead of the device.
    """
    groups = [
        (operation, (params["apply"] & (params["order"][:, place] == operation)).nonzero().view(-1))
        for place in range(4)
        for operation in range(4)
    ]
    factors, *indices = to_device(x.device, factors, *(rows for _, rows in groups))
    for (operation, _), rows in zip(groups, indices, strict=True):
        if len(rows):
            x.index_copy_(0, rows, operations[operation](x.index_select(0, rows), factors[rows, operation]))


def _apply_in_order(
    order: tuple[int, ...], operations: tuple[Operation, ...], images: Images, factors: Float[Tensor, "b 4 1 1 1"]
) -> Images:
    for operation in order:
        images = operations[operation](images, factors[:, operation])
    return images


@register_view("image/color-jitter", modality="image")
@final
class ColorJitter(ViewGenerator):
    """Brightness, contrast, saturation and hue in a drawn order, clipped after each (torchvision's ColorJitter).

    Factors of the first three are uniform in [max(0, 1 − s), 1 + s]; the hue rotates by a uniform fraction in [−s, s]
    of the circle. Images of one channel get brightness and contrast only.

    >>> jitter = mmcon.create_view("image/color-jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)

    Args:
        brightness: s, from 0.
        contrast: s, from 0.
        saturation: s, from 0.
        hue: s, from 0 to .5.
        p: the probability of any jitter.
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)
    one_pass = staticmethod(one_pass)
    OPERATIONS: ClassVar[tuple[Operation, ...]] = TORCHVISION

    def __init__(
        self,
        *,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        p: float = 0.8,
    ) -> None:
        self.strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        self.p = p
        check_strengths("image/color-jitter", **self.strengths)

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `apply` (`b` bool), `order` (`b 4`; 0 brightness, 1 contrast, 2 saturation, 3 hue) and four factors."""
        return draw_jitter(keys, self.strengths, self.p)

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Adjust the colors of the selected images."""
        out = float_copy(batch, self.name or "image/color-jitter")
        self.apply_(out, params)
        return out

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Adjust the colors in place."""
        jitter_(batch, params, self.OPERATIONS)

    def pixel_steps(self, params: Params, size: Sequence[int]) -> PixelSteps:
        """The four operations as steps."""
        return jitter_steps(params)


def simclr_jitter(strength: float, p: float = 0.8) -> ColorJitter:
    """SimCLR's color jitter at strength s: 0.8s, 0.8s, 0.8s and 0.2s, with probability p."""
    return ColorJitter(**simclr_ranges(strength), p=p)


def simclr_ranges(s: float) -> dict[str, float]:
    """SimCLR's ranges of brightness, contrast, saturation and hue at strength s."""
    return {"brightness": 0.8 * s, "contrast": 0.8 * s, "saturation": 0.8 * s, "hue": 0.2 * s}


@register_view("image/grayscale", modality="image")
@final
class Grayscale(ViewGenerator):
    """Convert to gray, with all channels kept, with probability p.

    Args:
        p: the probability.
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)
    one_pass = staticmethod(one_pass)

    def __init__(self, *, p: float = 0.2) -> None:
        self.p = p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `apply`, `b` bool."""
        return {"apply": keys.bernoulli("apply", self.p)}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Convert the selected images to gray."""
        return map_selected(to_float(batch, self.name or "image/grayscale"), params["apply"], gray)

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Convert to gray in place."""
        map_selected_(batch, params["apply"], gray)

    def pixel_steps(self, params: Params, size: Sequence[int]) -> PixelSteps:
        """Gray as a step."""
        return PixelSteps(torch.where(params["apply"], GRAY, NOTHING)[:, None])


@register_view("image/solarize", modality="image")
@final
class Solarize(ViewGenerator):
    """Invert values at or above a threshold, with probability p (DINO's second global crop).

    Args:
        threshold: from 0 to 1; 128/255 is the threshold of uint8 pipelines.
        p: the probability.
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)
    one_pass = staticmethod(one_pass)

    def __init__(self, *, threshold: float = 128 / 255, p: float = 0.2) -> None:
        self.threshold, self.p = threshold, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `apply`, `b` bool."""
        return {"apply": keys.bernoulli("apply", self.p)}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Invert the selected images."""
        return map_selected(to_float(batch, self.name or "image/solarize"), params["apply"], self._invert)

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Invert in place."""
        map_selected_(batch, params["apply"], self._invert)

    def pixel_steps(self, params: Params, size: Sequence[int]) -> PixelSteps:
        """The inversion as a step."""
        codes = torch.where(params["apply"], SOLARIZE, NOTHING)[:, None]
        return PixelSteps(codes, torch.full((*codes.shape, 3), self.threshold))

    def _invert(self, x: Images) -> Images:
        return torch.where(x >= self.threshold, 1 - x, x)
