"""The warp of SupCon's released code: four control points moved, a thin-plate spline between them."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.pixels import copy_as_float, map_selected, map_selected_, to_float


@register_view("image/warp", modality="image")
@final
class Warp(ViewGenerator):
    """A smooth warp: 2 × 2 control points at thirds of the image are moved by L · N(0, 1) pixels, L even in [0, 23).

    The spline has kernel r² log r and an affine part (order 2, no smoothing), and knows the moves where the four points
    arrive. SupCon's released hyper-parameters leave its probability at 0.

    Args:
        strength: the upper bound of L in pixels.
        p: the probability.
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)

    def __init__(self, *, strength: float = 23.0, p: float = 0.0) -> None:
        self.strength, self.p = strength, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether (`b` bool) and the displacements (`b 4 2`, pixels down and across)."""
        length = keys.uniform("length", 0.0, self.strength)
        moves = keys.normal("moves", shape=(4, 2)) * length[:, None, None]
        return {"apply": keys.bernoulli("apply", self.p), "moves": moves}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Warp where drawn; what comes from outside repeats the border."""
        return map_selected(to_float(batch, self.name or "image/warp"), params["apply"], _warp, params["moves"])

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Warp in place."""
        map_selected_(batch, params["apply"], _warp, params["moves"])


def _warp(x: Tensor, moves: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    points = torch.tensor([[(i + 1) * h / 3, (j + 1) * w / 3] for i in range(2) for j in range(2)], dtype=torch.float64)
    places = torch.cartesian_prod(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64))
    comes = torch.stack([places - _displacement(points + move, move, places) for move in moves]).view(-1, h, w, 2)
    grid = (comes.flip(-1) + 0.5) / torch.tensor([w / 2, h / 2], dtype=torch.float64) - 1
    grid = grid.to(x.device, torch.float32)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _displacement(
    knots: Float[Tensor, "4 2"], moves: Float[Tensor, "4 2"], places: Float[Tensor, "n 2"]
) -> Float[Tensor, "n 2"]:
    """The spline that at each knot, where a control point arrives, is its move: a pixel comes from there minus this."""
    system = torch.zeros(7, 7, dtype=torch.float64)
    system[:4, :4] = _kernel(knots, knots)
    system[:4, 4:] = torch.cat([knots, torch.ones(4, 1, dtype=torch.float64)], dim=1)
    system[4:, :4] = system[:4, 4:].T
    values = torch.cat([moves.to(torch.float64), torch.zeros(3, 2, dtype=torch.float64)])
    weights = torch.linalg.solve(system, values)
    return torch.cat([_kernel(places, knots), places, torch.ones(len(places), 1, dtype=torch.float64)], 1) @ weights


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return 0.5 * squared * torch.log(squared.clamp(min=1e-10))
