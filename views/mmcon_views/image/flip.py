"""Horizontal flip."""

from __future__ import annotations

from typing import ClassVar, final

from jaxtyping import Num
from torch import Tensor

from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, ViewGenerator
from mmcon_views.image.pixels import check_batch, copy_as_float, map_selected, map_selected_


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
        check_batch(batch, self.name or "image/flip")
        return map_selected(batch, params["flip"], _mirrored)

    def apply_(self, batch: Tensor, params: Params) -> None:
        """Exchange in place."""
        map_selected_(batch, params["flip"], _mirrored)


def _mirrored(images: Tensor) -> Tensor:
    return images.flip(-1)
