"""The image warp of SupCon's released code: a thin-plate spline through four displaced control points."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.pixels import copy_as_float, map_selected, map_selected_, to_device, to_float


@register_view("image/warp", modality="image")
@final
class Warp(ViewGenerator):
    """A smooth warp: 2 × 2 control points at thirds of the image move by L · N(0, 1) pixels, with L uniform in [0, 23).

    The spline has kernel r² log r and an affine term (order 2, no smoothing); its knots are the displaced points.

    Args:
        strength: the upper bound of L in pixels.
        p: the probability; by default that of SupCon's released functions.
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)

    def __init__(self, *, strength: float = 23.0, p: float = 0.5) -> None:
        self.strength, self.p = strength, p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `apply` (`b` bool) and `moves` (`b 4 2`, pixels down and across)."""
        length = keys.uniform("length", 0.0, self.strength)
        moves = keys.normal("moves", shape=(4, 2)) * length[:, None, None]
        return {"apply": keys.bernoulli("apply", self.p), "moves": moves}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Float[Tensor, "b c h w"]:
        """Warp the selected images, with replicated borders."""
        return map_selected(to_float(batch, self.name or "image/warp"), params["apply"], _warp, params["moves"])

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Warp in place."""
        map_selected_(batch, params["apply"], _warp, params["moves"])


def _warp(x: Float[Tensor, "b c h w"], moves: Float[Tensor, "b 4 2"]) -> Float[Tensor, "b c h w"]:
    h, w = x.shape[-2:]
    points = torch.tensor([[(i + 1) * h / 3, (j + 1) * w / 3] for i in range(2) for j in range(2)], dtype=torch.float64)
    down, across = torch.arange(h, dtype=torch.float32), torch.arange(w, dtype=torch.float32)
    grid = torch.empty(len(x), h, w, 2)
    for own, move in zip(grid, moves, strict=True):
        by_row, by_column = _displacement(points + move, move, down, across)
        own[..., 0] = (across - by_column + 0.5) / (w / 2) - 1
        own[..., 1] = (down[:, None] - by_row + 0.5) / (h / 2) - 1
    (grid,) = to_device(x.device, grid)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _displacement(
    knots: Float[Tensor, "4 2"], moves: Float[Tensor, "4 2"], down: Float[Tensor, " h"], across: Float[Tensor, " w"]
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """The displacement of each pixel, down and across, in the dtype of the positions of rows and columns.

    It is a spline whose value at each knot, a displaced control point, is its move.
    """
    # In float64: the entries of the system reach from 1 to r² log r, about 1e5 at 224 px.
    system = torch.zeros(7, 7, dtype=torch.float64)
    system[:4, :4] = _kernel(((knots[:, None] - knots) ** 2).sum(-1))
    system[:4, 4:] = torch.cat([knots, torch.ones(4, 1, dtype=torch.float64)], dim=1)
    system[4:, :4] = system[:4, 4:].T
    values = torch.cat([moves.to(torch.float64), torch.zeros(3, 2, dtype=torch.float64)])
    weights = torch.linalg.solve(system, values)
    # Float32 is enough for pixels: weights of knots are small, so that its rounding moves none by .01 pixels at 224.
    kernels = [
        _kernel(((down - y) ** 2)[:, None] + ((across - x) ** 2)[None]) for y, x in knots.to(torch.float64).tolist()
    ]

    def along(axis: int) -> Float[Tensor, "h w"]:
        *of_knots, of_row, of_column, constant = weights[:, axis].tolist()
        field = (of_row * down)[:, None] + (of_column * across + constant)[None]
        for weight, kernel in zip(of_knots, kernels, strict=True):
            field = field.add_(kernel, alpha=weight)
        return field

    return along(0), along(1)


def _kernel(squared: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    # As TensorFlow's sparse_image_warp: r² log r from squared distances, which are kept above 1e-10.
    return squared.clamp(min=1e-10).log_().mul_(squared).mul_(0.5)
