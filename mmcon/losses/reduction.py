"""The reduction of losses outside the weighted family, in which every anchor is valid."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mmcon.affinity import check_choice


def reduce_losses(where: str, losses: Float[Tensor, " a"], reduction: str) -> Float[Tensor, ""] | Float[Tensor, " a"]:
    """The mean over anchors, their sum, or the losses themselves; any other `reduction` raises InputError."""
    check_choice(where, "reduction", reduction, ("mean", "sum", "none"))
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()
