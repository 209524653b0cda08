"""A module that returns precomputed features in place of an encoder."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.registry import register_encoder


@final
@register_encoder("mmcon/precomputed-features", modality="any")
class PrecomputedFeatures(nn.Module):
    """Return the input: features that a frozen encoder computed once (`mmcon.evaluation.features`).

    Args:
        feature_dim: width of the features.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, views: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the features unchanged."""
        if views.shape[1] != self.feature_dim:
            raise InputError(
                "mmcon/precomputed-features", expected=f"width {self.feature_dim}", got=f"width {views.shape[1]}"
            )
        return views
