"""Precomputed features in the role of an encoder."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from mmcon.errors import InputError
from mmcon.registry import register_encoder


@final
@register_encoder("mmcon/precomputed-features", modality="any")
class PrecomputedFeatures(nn.Module):
    """Returns its input, the features of a frozen encoder that ran once (`mmcon.evaluation.features`).

    Args:
        feature_dim: width of the features.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, views: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The features themselves."""
        if views.shape[1] != self.feature_dim:
            raise InputError(
                "mmcon/precomputed-features", expected=f"width {self.feature_dim}", got=f"width {views.shape[1]}"
            )
        return views
