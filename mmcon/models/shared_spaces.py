"""Shared spaces: the width of an embedding space, and the kind of projection head that maps features into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmcon.errors import ConfigError


@dataclass(frozen=True)
class SharedSpace:
    """A space in which embeddings of several modalities are compared.

    Attributes:
        dim: embedding width.
        head: the projection head: "linear"; "mlp" (one hidden layer, ReLU); or "mlp-batch-norm", the same with a batch
            norm after the hidden layer (BYOL; Grill et al. 2020), which keeps embeddings apart early in a training.
        hidden_dim: width of the hidden layer; by default that of the features.
        unit_features: normalize features to length one before the head, as SupCon's ImageNet runs do.
        modalities: the modalities with a head in this space; None: all.
    """

    dim: int = 128
    head: Literal["linear", "mlp", "mlp-batch-norm"] = "mlp"
    hidden_dim: int | None = None
    unit_features: bool = False
    modalities: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        heads = ("linear", "mlp", "mlp-batch-norm")
        if self.dim < 1 or self.head not in heads:
            got = f"dim={self.dim}, head={self.head!r}"
            raise ConfigError("SharedSpace", expected=f"dim >= 1 and head among {heads}", got=got)
