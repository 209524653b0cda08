"""The cross-entropy baseline: an encoder with a linear classification head."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.errors import InputError


@final
class Classifier(nn.Module):
    """An encoder with a linear classification head, trained together.

    Args:
        encoder: a module with `feature_dim`; it is not copied.
        classes: number of classes.
        modality: the modality of the views.
    """

    def __init__(self, encoder: nn.Module, classes: int, *, modality: str = "image") -> None:
        super().__init__()
        width = getattr(encoder, "feature_dim", None)
        if not isinstance(width, int):
            raise InputError("Classifier", expected="an encoder with `feature_dim`", got=type(encoder).__name__)
        self.encoder, self.modality = encoder, modality
        self.layer = nn.Linear(width, classes)

    def forward(self, batch: ViewBatch) -> Float[Tensor, "n classes"]:
        """Logits of every row of the batch, in order."""
        return self.layer(torch.cat([self.encoder(stack) for stack in batch.views[self.modality]]))
