"""Small perturbations of a given amount, for measuring the stability of predictions in the manner of ImageNet-P.

An amount of 0 changes nothing. The direction (of a shift, a turn, a zoom, a change of brightness) and the noise are
drawn by key, and do not depend on the amount: growing amounts are a sequence of images along one path, as in ImageNet-P
(Hendrycks and Dietterich 2019). Deviations from its published videos: five of its ten kinds; uncovered borders are
mirrored, where the published frames are cut from larger images; the noise of a sequence is one pattern that grows.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from mmcon.errors import InputError
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.pixels import check_choice, to_float

Kind = Literal["translation", "rotation", "scale", "brightness", "noise"]
KINDS: tuple[Kind, ...] = ("translation", "rotation", "scale", "brightness", "noise")


@register_view("image/perturbation", modality="image")
@final
class Perturbation(ViewGenerator):
    """A perturbation of a given amount in a drawn direction; the docstring of the module lists the deviations.

    >>> turned = mmcon.create_view("image/perturbation", kind="rotation", amount=5.0)

    Args:
        kind: "translation" (a fraction of the shorter side), "rotation" (degrees), "scale" (the zoom minus 1, in or
            out), "brightness" (added or subtracted, of 1) or "noise" (the standard deviation of Gaussian noise, of 1).
        amount: 0 or more, in the unit of the kind.
    """

    modality: ClassVar[str] = "image"

    def __init__(self, *, kind: Kind = "translation", amount: float = 0.1) -> None:
        check_choice("image/perturbation", "kind", kind, KINDS)
        if not 0 <= amount < math.inf:
            raise InputError("image/perturbation", expected="a finite amount of 0 or more", got=str(amount))
        self.kind, self.amount = kind, amount

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `direction` (`b`, of 0 to 1, a fraction of a full turn) and `seed` (`b` int64)."""
        return {"direction": keys.uniform("direction"), "seed": keys.bits("seed")}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Perturb each image; noise is generated on the CPU."""
        x = to_float(batch, self.name or "image/perturbation")
        if self.amount == 0:
            return x
        sign = torch.where(params["direction"] < 0.5, 1.0, -1.0).to(x)
        if self.kind == "brightness":
            return (x + self.amount * sign[:, None, None, None]).clamp(0, 1)
        if self.kind == "noise":
            noise = [
                torch.randn(x.shape[1:], generator=Generator().manual_seed(seed)) for seed in params["seed"].tolist()
            ]
            return (x + self.amount * torch.stack(noise).to(x)).clamp(0, 1) if noise else x
        return self._moved(x, params["direction"].to(x), sign)

    def _moved(
        self, x: Float[Tensor, "b c h w"], direction: Float[Tensor, " b"], sign: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Shift, turn or zoom about the center, bilinear, with mirrored borders."""
        h, w = x.shape[-2:]
        down = torch.arange(h, device=x.device, dtype=x.dtype) - (h - 1) / 2
        across = torch.arange(w, device=x.device, dtype=x.dtype) - (w - 1) / 2
        down, across = down[None, :, None], across[None, None, :]
        one = torch.ones_like(sign)
        turn = self.amount * math.pi / 180 * sign if self.kind == "rotation" else 0 * sign
        zoom = (1 + self.amount) ** sign if self.kind == "scale" else one
        shift = self.amount * min(h, w) * one if self.kind == "translation" else 0 * sign
        angle = direction * 2 * math.pi
        cos, sin = (f(turn)[:, None, None] / zoom[:, None, None] for f in (torch.cos, torch.sin))
        at_x = cos * across - sin * down - (shift * torch.cos(angle))[:, None, None]
        at_y = sin * across + cos * down - (shift * torch.sin(angle))[:, None, None]
        # From pixels about the center to the interval from −1 to 1 between the outer edges.
        grid = torch.stack([at_x / (w / 2), at_y / (h / 2)], dim=-1)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
