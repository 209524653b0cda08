"""The warp of SupCon's released code: four control points moved, a thin-plate spline between them."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.view import Meta, Params, ViewGenerator
from views.pixels import on_rows, to_float


@register_view("image/warp", modality="image")
@final
class Warp(ViewGenerator):
    """A smooth warp: 2 × 2 control points at thirds of the picture are moved by L · N(0, 1) pixels, L even in [0, 23).

    The spline has kernel r² log r and an affine part and passes through the four points (order 2, no smoothing).
    SupCon's released hyper-parameters leave its probability at 0.

    Args:
        strength: the upper bound of L in pixels.
        p: the probability.
    """

    modality: ClassVar[str] = "image"

    def __init__(self, *, strength: float = 23.0, p: float = 0.0) -> None:
        self.strength, self.p = strength, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether (`b` bool) and the displacements (`b 4 2`, pixels down and across)."""
        length = keys.uniform("length", 0.0, self.strength)
        moves = keys.normal("moves", shape=(4, 2)) * length[:, None, None]
        return {"apply": keys.bernoulli("apply", self.p), "moves": moves}

    def apply(self, batch: Tensor, params: Params) -> Float[Tensor, "b c h w"]:
        """Warp where drawn; what comes from outside repeats the border."""
        return on_rows(to_float(batch, self.name or "image/warp"), params["apply"], _warp, params["moves"])


def _warp(x: Tensor, moves: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    points = torch.tensor([[(i + 1) * h / 3, (j + 1) * w / 3] for i in range(2) for j in range(2)], dtype=torch.float64)
    rows = torch.cartesian_prod(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64))
    # The spline that is 1 at one point and 0 at the others, at every pixel: `pixels 4`.
    system = torch.zeros(7, 7, dtype=torch.float64)
    system[:4, :4] = _kernel(points, points)
    system[:4, 4:] = torch.cat([points, torch.ones(4, 1, dtype=torch.float64)], dim=1)
    system[4:, :4] = system[:4, 4:].T
    at = torch.cat([_kernel(rows, points), rows, torch.ones(h * w, 1, dtype=torch.float64)], dim=1)
    basis = (at @ torch.linalg.inv(system)[:, :4]).view(1, h, w, 4)
    moved = basis[..., 0, None] * moves[:, None, None, 0]
    for point in range(1, 4):
        moved = moved + basis[..., point, None] * moves[:, None, None, point]
    # A pixel that leaves at y comes from y − displacement.
    at_y = (rows[:, 0].view(1, h, w) - moved[..., 0] + 0.5) / (h / 2) - 1
    at_x = (rows[:, 1].view(1, h, w) - moved[..., 1] + 0.5) / (w / 2) - 1
    grid = torch.stack([at_x, at_y], dim=-1).to(x.device, torch.float32)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return 0.5 * squared * torch.log(squared.clamp(min=1e-10))
