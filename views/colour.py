"""Colour: brightness, contrast, saturation, hue, grey.

Pure functions of float pictures `b c h w` in [0, 1] with one factor a picture, and the generators that draw the
factors. Where a picture is grey (one channel), saturation, hue and graying leave it as it is: it has no colour to move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.view import Meta, Params, ViewGenerator
from views.pixels import chunks, columns_on, mean_of_picture, on_rows, to_float

# ITU-R BT.601 luma, to the digits that torchvision and Pillow use.
LUMA = (0.2989, 0.587, 0.114)

Pictures = Float[Tensor, "b c h w"]
Factor = Float[Tensor, "b 1 1 1"]


def luma(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """The grey value of each pixel; a grey picture is its own."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def brightness(x: Pictures, factor: Factor) -> Pictures:
    """X · factor, clipped."""
    return x.mul(factor).clamp_(0, 1)


def contrast(x: Pictures, factor: Factor) -> Pictures:
    """Away from the picture's mean grey value: factor · x + (1 − factor) · mean, clipped."""
    means = mean_of_picture(x)
    if x.shape[1] == 3:
        means = (means[:, :1] * LUMA[0]).add_(means[:, 1:2] * LUMA[1]).add_(means[:, 2:] * LUMA[2])
    return x.mul(factor).add_(means.view(-1, 1, 1, 1) * (1 - factor)).clamp_(0, 1)


def saturation(x: Pictures, factor: Factor) -> Pictures:
    """Away from each pixel's grey value: factor · x + (1 − factor) · luma, clipped."""
    if x.shape[1] == 1:
        return x
    return x.mul(factor).add_(luma(x).mul_(1 - factor)).clamp_(0, 1)


def hue(x: Pictures, factor: Factor) -> Pictures:
    """Turn the hue by a fraction of the circle, at constant value and saturation of the HSV hexcone.

    Branch-free. With max, min and chroma c = max − min of a pixel, P = (max − red)/c and D = (green − blue)/c, the hue
    in sextants is sign(D) · (|D| + P · (3 − 2|D|)), on each of the six edges of the hexagon; and a hue h gives the
    channel whose own hue is o as min + c · clip(||h − o| − 3| − 1, 0, 1).
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    inverse = chroma.clamp(min=1e-12).reciprocal_()
    difference = (green - blue).mul_(inverse)
    size = difference.abs()
    angle = (high.sub_(red)).mul_(inverse).mul_(3 - 2 * size).add_(size)
    angle = torch.copysign(angle, difference)
    own = torch.tensor([0.0, 2.0, -2.0], device=x.device).view(1, 3, 1, 1)
    turn = 6 * factor - own
    turn = turn - 6 * torch.round(turn / 6)
    out = (angle + turn).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
    return out.mul_(chroma).add_(low)


def gray(x: Pictures) -> Pictures:
    """The grey value in every channel."""
    return luma(x).expand_as(x)


Operation = Callable[[Tensor, Tensor], Tensor]


def in_drawn_order(x: Pictures, params: Params, operations: tuple[Operation, ...]) -> Pictures:
    """The four operations, where drawn, in each picture's own order; pictures that share an order go together."""
    factors = torch.stack([params[n] for n in ("brightness", "contrast", "saturation", "hue")], dim=1)
    out = x.clone(memory_format=torch.contiguous_format)
    code = (params["order"] * torch.tensor([64, 16, 4, 1])).sum(1)
    code = torch.where(params["apply"], code, -1)
    for value in code.unique().tolist():
        if value < 0:
            continue
        order = [value // 64, value // 16 % 4, value // 4 % 4, value % 4]
        for some in chunks(x, (code == value).nonzero().view(-1)):
            there = some.to(x.device, non_blocking=True)
            part = x.index_select(0, there)
            columns = columns_on(x, *factors[some].unbind(1))
            for operation in order:
                part = operations[operation](part, columns[operation])
            out.index_copy_(0, there, part)
    return out


def check_strengths(where: str, **strengths: float) -> None:
    """Refuse a jitter's strengths below 0, and a hue above half a circle."""
    if min(strengths.values()) < 0 or strengths["hue"] > 0.5:
        got = ", ".join(f"{name}={strength}" for name, strength in strengths.items())
        raise InputError(where, expected="strengths of at least 0, hue at most .5", got=got)


def draw_jitter(keys: Keys, strengths: dict[str, float], p: float, *, added: bool = False) -> Params:
    """Draw whether (`b` bool), the order (`b 4`; 0 brightness, 1 contrast, 2 saturation, 3 hue) and factors.

    Factors are even in [max(0, 1 − s), 1 + s]; what is added, as the hue is, in [−s, s].
    """
    drawn: Params = {"apply": keys.bernoulli("apply", p), "order": keys.permutation("order", 4)}
    for name, s in strengths.items():
        sums = name == "hue" or (added and name == "brightness")
        drawn[name] = keys.uniform(name, -s if sums else max(0.0, 1 - s), s if sums else 1 + s)
    return drawn


@register_view("image/colour-jitter", modality="image")
@final
class ColourJitter(ViewGenerator):
    """Brightness, contrast, saturation and hue, in drawn order, clipped after each (torchvision's ColorJitter).

    Factors of the first three are even in [max(0, 1 − s), 1 + s]; the hue turns by an even fraction in [−s, s] of the
    circle. Grey pictures take brightness and contrast alone.

    >>> jitter = mmcon.create_view("image/colour-jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)

    Args:
        brightness: s, from 0.
        contrast: s, from 0.
        saturation: s, from 0.
        hue: s, from 0 to .5.
        p: the probability that a picture is jittered at all.
    """

    modality: ClassVar[str] = "image"
    OPERATIONS: ClassVar[tuple[Operation, ...]] = (brightness, contrast, saturation, hue)

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
        check_strengths("image/colour-jitter", **self.strengths)

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether (`b` bool), the order (`b 4`; 0 brightness, 1 contrast, 2 saturation, 3 hue) and factors."""
        return draw_jitter(keys, self.strengths, self.p)

    def apply(self, batch: Tensor, params: Params) -> Float[Tensor, "b c h w"]:
        """Adjust; pictures that share an order go together."""
        x = to_float(batch, self.name or "image/colour-jitter")
        return in_drawn_order(x, params, self.OPERATIONS)


def jitter_of(strength: float, p: float = 0.8) -> ColourJitter:
    """SimCLR's colour jitter at strength s: .8s, .8s, .8s and .2s, with probability p."""
    return ColourJitter(
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        p=p,
    )


@register_view("image/grayscale", modality="image")
@final
class Grayscale(ViewGenerator):
    """All channels set to the grey value with probability p.

    Args:
        p: the probability.
    """

    modality: ClassVar[str] = "image"

    def __init__(self, *, p: float = 0.2) -> None:
        self.p = p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether, `b` bool."""
        return {"apply": keys.bernoulli("apply", self.p)}

    def apply(self, batch: Tensor, params: Params) -> Float[Tensor, "b c h w"]:
        """Set to grey where drawn."""
        return on_rows(to_float(batch, self.name or "image/grayscale"), params["apply"], gray)


@register_view("image/solarize", modality="image")
@final
class Solarize(ViewGenerator):
    """Values at or above a threshold inverted, with probability p (DINO's second global crop).

    Args:
        threshold: from 0 to 1; 128/255 is what pipelines of bytes use.
        p: the probability.
    """

    modality: ClassVar[str] = "image"

    def __init__(self, *, threshold: float = 128 / 255, p: float = 0.2) -> None:
        self.threshold, self.p = threshold, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether, `b` bool."""
        return {"apply": keys.bernoulli("apply", self.p)}

    def apply(self, batch: Tensor, params: Params) -> Float[Tensor, "b c h w"]:
        """Invert where drawn."""
        x = to_float(batch, self.name or "image/solarize")
        return on_rows(x, params["apply"], lambda some: torch.where(some >= self.threshold, 1 - some, some))
