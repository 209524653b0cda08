"""Shared spaces: the width of a space, and the projection head from the features of an encoder into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmcon.errors import ConfigError


@dataclass(frozen=True)
class SharedSpace:
    """A space in which embeddings of several modalities are compared.

    Attributes:
        dim: embedding width.
        head: the projection head: "linear", or "mlp" (one hidden layer, ReLU).
        hidden_dim: width of the hidden layer; by default that of the features.
        unit_features: normalize features to length one before the head, as SupCon's ImageNet runs do.
        modalities: the modalities with a head in this space; None: all.
    """

    dim: int = 128
    head: Literal["linear", "mlp"] = "mlp"
    hidden_dim: int | None = None
    unit_features: bool = False
    modalities: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.dim < 1 or self.head not in ("linear", "mlp"):
            raise ConfigError(
                "SharedSpace", expected="dim >= 1 and head 'linear' or 'mlp'", got=f"dim={self.dim}, head={self.head!r}"
            )


@final
class ProjectionHead(nn.Module):
    """From features to unit embeddings of a space. Training uses it; evaluation reads the features before it."""

    def __init__(self, feature_dim: int, space: SharedSpace) -> None:
        super().__init__()
        self.unit_features = space.unit_features
        hidden_dim = space.hidden_dim or feature_dim
        self.layers = (
            nn.Linear(feature_dim, space.dim)
            if space.head == "linear"
            else nn.Sequential(
                nn.Linear(feature_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, space.dim)
            )
        )

    def forward(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n d"]:
        """Unit rows."""
        if self.unit_features:
            features = normalize(features, dim=1)
        # At least float32: a row normalized in bfloat16 has length one to three digits only.
        projected = self.layers(features)
        return normalize(projected.float() if projected.dtype.itemsize < 4 else projected, dim=1)
