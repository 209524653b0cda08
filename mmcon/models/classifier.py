"""An encoder under a linear classifier: the network of the cross-entropy baseline."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.errors import InputError


@final
class Classifier(nn.Module):
    """An encoder under a linear classifier.

    Args:
        encoder: a module with `feature_dim`; it is not copied.
        classes: how many there are.
        modality: whose views are classified.
    """

    def __init__(self, encoder: nn.Module, classes: int, *, modality: str = "image") -> None:
        super().__init__()
        width = getattr(encoder, "feature_dim", None)
        if not isinstance(width, int):
            raise InputError("Classifier", expected="an encoder with `feature_dim`", got=type(encoder).__name__)
        self.encoder, self.modality = encoder, modality
        self.layer = nn.Linear(width, classes)

    def forward(self, batch: ViewBatch) -> Tensor:
        """Scores of the classes, `n classes`."""
        return self.layer(torch.cat([self.encoder(part) for part in batch.views[self.modality]]))
