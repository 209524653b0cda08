"""The bundled images of clothing: a balanced subset of Fashion-MNIST."""

from __future__ import annotations

import torch

from mmcon.random import stable_ids
from mmcon.registry import register_source
from mmcon.sources import bundled
from mmcon.sources.base import TensorSource


@register_source("samples/fashion", modality="image")
def fashion(split: str = "train") -> TensorSource:
    """The bundled subset of Fashion-MNIST: 10,000 training and 2,000 test images of ten classes, `1 28 28`."""
    split = bundled.match("fashion", split)
    rows = bundled.rows("fashion", split, ["id", "image", "label"])
    return TensorSource(
        bundled.decode([row["image"] for row in rows], channels=1),
        ids=stable_ids(f"fashion/{row['id']}" for row in rows),
        labels=torch.tensor([row["label"] for row in rows]),
        classes=bundled.card("fashion")["classes"],
        name=f"samples/fashion ({split})",
    )
