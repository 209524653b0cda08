"""Mixup and CutMix: views that mix a sample with a partner from the global batch.

A number u in [0, 1) is drawn for each sample. In a global batch of n samples, the partner of sample i is sample
(i + 1 + ⌊u (n − 1)⌋) mod n (`partner_positions`). The global batch does not depend on the world size, and neither does
the partner. A loader passes the partners' views to `apply`; without them, the given batch is taken as the global batch.

The mixed label has weight `share` on the sample's class and 1 − share on the partner's class. The generator adds the
column `share` to the index table, and the loader `partner_label` and `partner_sample`, for `mmcon.affinity.MixedLabel`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, final

import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.portable_math import exp, log
from mmcon.random import Keys
from mmcon.registry import register_view
from mmcon.views import Meta, Params, Scope, ViewGenerator
from mmcon_views.image.pixels import as_columns, to_float
from mmcon_views.image.sizes import input_sizes

Images = Float[Tensor, "b c h w"]


def partner_positions(chosen: Float[Tensor, " b"], positions: Int[Tensor, " b"], n: int) -> Int[Tensor, " b"]:
    """Positions of the partners in the global batch.

    Args:
        chosen: the drawn `partner`, in [0, 1).
        positions: the samples' own positions.
        n: the size of the global batch; with 1, a sample is its own partner.
    """
    return (positions + 1 + torch.floor(chosen * max(n - 1, 1)).to(torch.int64)) % n


def soft_labels(
    labels: Int[Tensor, " b"], partners: Int[Tensor, " b"], share: Float[Tensor, " b"], classes: int
) -> Float[Tensor, "b classes"]:
    """Mixed labels as class weights: `share` on the own class, 1 − share on the partner's; rows sum to 1.

    Args:
        labels: the samples' own classes.
        partners: the partners' classes.
        share: the weight of the own class.
        classes: the number of classes.
    """
    own = torch.nn.functional.one_hot(labels, classes) * share[:, None]
    return (own + torch.nn.functional.one_hot(partners, classes) * (1 - share[:, None])).to(torch.float32)


def beta(keys: Keys, name: str, alpha: float) -> Float64[Tensor, " b"]:
    """Draw from Beta(α, α) for 0 < α ≤ 1 (Jöhnk 1964) or a whole α (an order statistic)."""
    if alpha >= 1 and alpha == int(alpha):
        return keys.uniform(name, shape=(2 * int(alpha) - 1,)).sort(dim=1).values[:, int(alpha) - 1]
    if not 0 < alpha < 1:
        raise InputError("beta", expected="alpha in (0, 1] or a whole number", got=str(alpha))
    # A pair is accepted with a probability above 1/2, so 60 tries fail less than once in 10^18 draws.
    # 2^-54 keeps the logarithm of a uniform of 0 finite.
    powers = exp(log(keys.uniform(name, shape=(60, 2)) + 2.0**-54) / alpha)
    total = powers[..., 0] + powers[..., 1]
    first = (total <= 1).to(torch.uint8).argmax(dim=1, keepdim=True)
    own, both = powers[..., 0].gather(1, first)[:, 0], total.gather(1, first)[:, 0]
    return torch.where(both > 0, own / both.clamp(min=1e-300), 0.5)


class _Mixing(ViewGenerator):
    modality: ClassVar[str] = "image"
    scope: ClassVar[Scope] = "partner"

    def __init__(self, *, alpha: float = 1.0) -> None:
        self.alpha = alpha
        if not (0 < alpha <= 1 or alpha == int(alpha) > 0):
            raise InputError(type(self).__name__, expected="alpha in (0, 1] or a whole number", got=str(alpha))

    def columns(self, meta: Meta, params: Params) -> dict[str, Float64[Tensor, " b"]]:
        """The `share` of the own label."""
        return {"share": params["share"]}

    def partners(self, params: Params, positions: Int[Tensor, " b"], n: int) -> Int[Tensor, " b"]:
        """The positions of the partners, by `partner_positions`."""
        return partner_positions(params["partner"], positions, n)

    def apply(
        self, batch: Shaped[Tensor, "b ..."], params: Params, partners: Shaped[Tensor, "n ..."] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Mix each sample with its partner.

        Args:
            batch: the views of this rank.
            params: the drawn parameters.
            partners: the partners' views, row by row; without them, rows of the batch itself.

        Raises:
            InputError: a batch of one without partners, or partners of another size.
        """
        where = self.name or type(self).__name__
        x = to_float(batch, where)
        if partners is None:
            if len(x) == 1:
                fix = "give it a batch, or apply(batch, params, partners=...); a ViewLoader supplies partners"
                raise InputError(where, expected="a partner for every sample", got="a batch of one", fix=fix)
            rows = self.partners(params, torch.arange(len(x)), len(x))
            other = x.index_select(0, rows.to(x.device))
        else:
            other = to_float(partners, where)
        if other.shape != x.shape:
            raise InputError(where, expected=f"partners of shape {tuple(x.shape)}", got=f"{tuple(other.shape)}")
        return self._mix(x, other, params)

    @abstractmethod
    def _mix(self, x: Images, other: Images, params: Params) -> Images: ...


@register_view("image/mixup", modality="image")
@final
class Mixup(_Mixing):
    """Mixup: share · sample + (1 − share) · partner, with share from Beta(α, α) (Zhang et al. 2018).

    Args:
        alpha: α.
    """

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `share` and `partner`, `b` float64 each."""
        return {"share": beta(keys, "share", self.alpha), "partner": keys.uniform("partner")}

    def _mix(self, x: Images, other: Images, params: Params) -> Images:
        (share,) = as_columns(x, params["share"])
        return x * share + other * (1 - share)


@register_view("image/cutmix", modality="image")
@final
class CutMix(_Mixing):
    """CutMix: a box of the partner's view replaces that of the sample (Yun et al. 2019).

    The sides of the box are √(1 − λ) times those of the image, with λ from Beta(α, α); its center is uniform. The box
    is clipped at the edges, and `share` is the fraction of the image outside of the box.

    Args:
        alpha: α.
    """

    def draw(self, keys: Keys, meta: Meta) -> Params:
        """Draw `top`, `left`, `bottom`, `right` (`b` int64), `share` and `partner` (`b` float64)."""
        height, width = input_sizes(meta, "image/cutmix")
        side = torch.sqrt(1 - beta(keys, "share", self.alpha))
        edges = {}
        for low, high, size in (("top", "bottom", height), ("left", "right", width)):
            half = torch.floor(side * size).to(torch.int64) // 2
            center = keys.integers(low, 0, size)
            edges[low] = (center - half).clamp(min=0)
            edges[high] = torch.minimum(center + half, size)
        # λ is replaced by the area of the clipped box, as in the authors' code.
        area = (edges["bottom"] - edges["top"]) * (edges["right"] - edges["left"])
        share = 1 - area.to(torch.float64) / (height * width)
        return {**edges, "share": share, "partner": keys.uniform("partner")}

    def _mix(self, x: Images, other: Images, params: Params) -> Images:
        top, left, bottom, right = as_columns(x, *(params[n] for n in ("top", "left", "bottom", "right")))
        down = torch.arange(x.shape[-2], device=x.device).view(1, 1, -1, 1)
        across = torch.arange(x.shape[-1], device=x.device).view(1, 1, 1, -1)
        inside = (down >= top) & (down < bottom) & (across >= left) & (across < right)
        return torch.where(inside, other, x)
