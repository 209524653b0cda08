"""The bilinear similarity of COLA, in place of the cosine: `Objective(similarity=BilinearSimilarity(dim), ...)`."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn


@final
class BilinearSimilarity(nn.Module):
    """aᵀWb with a learned W (Saeed et al. 2020). W starts as the identity, which gives the cosine of unit rows.

    Args:
        dim: embedding width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, anchors: Float[Tensor, "a d"], candidates: Float[Tensor, "c d"]) -> Float[Tensor, "a c"]:
        """The similarity of every anchor to every candidate."""
        return anchors @ self.weight @ candidates.T
