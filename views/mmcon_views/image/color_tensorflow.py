"""SimCLR's color jitter as in its TensorFlow code, and the linear hue.

In TensorFlow brightness may be additive, contrast blends with each channel's own mean, and saturation scales S of HSV;
hue is that of `mmcon_views.image.color`. The linear hue rotates the chroma plane of YIQ: faster, but not HSV's hue.
"""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.color import (
    Factor,
    Images,
    Operation,
    brightness_,
    check_strengths,
    draw_jitter,
    hue_,
    jitter_,
    simclr_ranges,
)  # fmt: skip
from mmcon_views.image.pixels import as_columns, channel_means, copy_as_float, float_copy, to_device, to_float

BRIGHTNESS = ("added", "multiplied")

# From red, green, blue to Y, I, Q (NTSC 1953), with three digits.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def added_brightness(x: Images, amount: Factor) -> Images:
    """X + amount, clipped."""
    return x.add(amount).clamp_(0, 1)


def contrast_of_channels(x: Images, factor: Factor) -> Images:
    """Blend with each channel's mean: factor · x + (1 − factor) · mean, clipped."""
    means = channel_means(x).view(len(x), -1, 1, 1)
    return x.mul(factor).add_(means * (1 - factor)).clamp_(0, 1)


def hsv_saturation(x: Images, factor: Factor) -> Images:
    """S of HSV times factor, at most 1, at constant value and hue: each channel's distance from the maximum is scaled.

    With S = (max − min)/max the distances scale by min(factor, 1/S).
    """
    if x.shape[1] == 1:
        return x
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    # Gray pixels have no saturation to scale: any finite limit leaves them unchanged.
    most = high / (high - low).clamp_(min=1e-12)
    return (high - (high - x).mul_(torch.minimum(factor.expand_as(most), most))).clamp_(0, 1)


def linear_hue(x: Images, factor: Factor) -> Images:
    """Rotate I and Q of YIQ by a fraction of the circle, at constant Y, clipped."""
    if x.shape[1] == 1:
        return x
    forth = torch.tensor(YIQ, dtype=torch.float64)
    angle = 2 * math.pi * factor.view(-1).to(torch.float64)
    turn = torch.zeros(len(x), 3, 3, dtype=torch.float64, device=factor.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 2, 1], turn[:, 1, 2] = angle.sin(), -angle.sin()
    # The inverse of the rounded digits, not the published inverse: an angle of 0 must change nothing.
    back, forth = to_device(factor.device, forth.inverse(), forth)
    matrix = (back @ turn @ forth).to(x.device, x.dtype)
    red, green, blue = (matrix[:, :, i, None, None] * x[:, i : i + 1] for i in range(3))
    return red.add_(green).add_(blue).clamp_(0, 1)


@register_view("image/color-jitter-tf", modality="image")
@final
class TensorFlowJitter(ViewGenerator):
    """SimCLR's color jitter as in its TensorFlow code: four adjustments in a drawn order, clipped after each.

    Factors of contrast and saturation are uniform in [max(0, 1 − s), 1 + s]; the hue rotates by a uniform fraction in
    [−s, s] of the circle. Brightness gets such a factor, or a uniform addend in [−s, s].

    >>> jitter = mmcon.create_view("image/color-jitter-tf", brightness_is="added")

    Args:
        brightness: s, from 0.
        contrast: s, from 0.
        saturation: s, from 0.
        hue: s, from 0 to .5.
        p: the probability of any jitter.
        brightness_is: "added" (SimCLR's first version) or "multiplied" (its second).
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)

    def __init__(
        self,
        *,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        p: float = 0.8,
        brightness_is: str = "multiplied",
    ) -> None:
        self.strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        self.p, self.brightness_is = p, brightness_is
        check_strengths("image/color-jitter-tf", **self.strengths)
        if brightness_is not in BRIGHTNESS:
            raise InputError(
                "image/color-jitter-tf", expected='brightness "added" or "multiplied"', got=repr(brightness_is)
            )

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `apply` (`b` bool), `order` (`b 4`; 0 brightness, 1 contrast, 2 saturation, 3 hue) and four factors."""
        return draw_jitter(keys, self.strengths, self.p, added=self.brightness_is == "added")

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Adjust the colors of the selected images."""
        out = float_copy(batch, self.name or "image/color-jitter-tf")
        self.apply_(out, params)
        return out

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Adjust the colors in place."""
        first: Operation = added_brightness if self.brightness_is == "added" else brightness_
        jitter_(batch, params, (first, contrast_of_channels, hsv_saturation, hue_))


def simclr_jitter_tf(strength: float, brightness: str) -> TensorFlowJitter:
    """TensorFlow's color jitter at strength s: 0.8s, 0.8s, 0.8s and 0.2s, with probability 0.8."""
    return TensorFlowJitter(**simclr_ranges(strength), brightness_is=brightness)


@register_view("image/linear-hue", modality="image")
@final
class LinearHue(ViewGenerator):
    """Rotate the hue in the I-Q plane of YIQ, which is linear up to clipping and differs from the hue of HSV.

    Args:
        hue: the rotation is a uniform fraction in [−hue, hue] of the circle; from 0 to .5.
        p: the probability.
    """

    modality: ClassVar[str] = "image"

    def __init__(self, *, hue: float = 0.2, p: float = 0.8) -> None:
        self.hue, self.p = hue, p
        if not 0 <= hue <= 0.5:
            raise InputError("image/linear-hue", expected="hue from 0 to .5", got=f"hue={hue}")

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `apply` (`b` bool) and `hue` (`b`, fractions of the circle)."""
        return {"apply": keys.bernoulli("apply", self.p), "hue": keys.uniform("hue", -self.hue, self.hue)}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Rotate the hue of the selected images."""
        x = to_float(batch, self.name or "image/linear-hue")
        (where,) = as_columns(x, params["apply"])
        return torch.where(where.bool(), linear_hue(x, params["hue"].to(torch.float32).view(-1, 1, 1, 1)), x)
