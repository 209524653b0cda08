"""Projection heads: from encoder features to embeddings in a shared space."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmcon.models.shared_spaces import SharedSpace


@final
class ProjectionHead(nn.Module):
    """Map features to unit-length embeddings of a shared space; evaluation uses the features before the head."""

    def __init__(self, feature_dim: int, space: SharedSpace) -> None:
        super().__init__()
        self.unit_features = space.unit_features
        self.layers = _create_layers(space.head, feature_dim, space.hidden_dim or feature_dim, space.dim)

    def forward(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
        """Unit rows."""
        if self.unit_features:
            features = normalize(features, dim=1)
        # At least float32: a row normalized in bfloat16 has length one to three digits only.
        projected = self.layers(features)
        return normalize(projected.float() if projected.dtype.itemsize < 4 else projected, dim=1)


def _create_layers(head: str, feature_dim: int, hidden_dim: int, dim: int) -> nn.Module:
    if head == "linear":
        return nn.Linear(feature_dim, dim)
    if head == "mlp":
        return nn.Sequential(nn.Linear(feature_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, dim))
    # Features of random weights may differ little between samples; the norm makes them differ by a deviation of 1.
    norm = nn.BatchNorm1d(hidden_dim)
    return nn.Sequential(
        nn.Linear(feature_dim, hidden_dim, bias=False), norm, nn.ReLU(inplace=True), nn.Linear(hidden_dim, dim)
    )
