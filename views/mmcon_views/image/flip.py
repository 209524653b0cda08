"""Random horizontal flip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float32, Num, Shaped
from torch import Tensor

from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.one_pass import FLIP, NOTHING, PixelSteps, one_pass
from mmcon_views.image.pixels import check_batch, copy_as_float, map_selected, map_selected_


@register_view("image/flip", modality="image")
@final
class Flip(ViewGenerator):
    """Horizontal flip with probability p (torchvision's RandomHorizontalFlip).

    Args:
        p: the probability.
    """

    modality: ClassVar[str] = "image"
    copy_into = staticmethod(copy_as_float)
    one_pass = staticmethod(one_pass)

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw whether to flip, `b` bool."""
        return {"flip": keys.bernoulli("flip", self.p)}

    def apply(self, batch: Shaped[Tensor, "b ..."], params: Params) -> Num[Tensor, "b c h w"]:
        """Flip the selected images; the dtype is unchanged."""
        check_batch(batch, self.name or "image/flip")
        return map_selected(batch, params["flip"], _flipped)

    def apply_(self, batch: Float32[Tensor, "b c h w"], params: Params) -> None:
        """Flip in place."""
        map_selected_(batch, params["flip"], _flipped)

    def pixel_steps(self, params: Params, size: Sequence[int]) -> PixelSteps:
        """The flip as a step."""
        return PixelSteps(torch.where(params["flip"], FLIP, NOTHING)[:, None])


def _flipped(images: Num[Tensor, "b c h w"]) -> Num[Tensor, "b c h w"]:
    return images.flip(-1)
