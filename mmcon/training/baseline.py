"""The supervised baseline: the same encoder under a linear classifier, trained by cross-entropy."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmcon.batch import ViewBatch
from mmcon.data.source import Source, class_counts, class_weights
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


@final
class CrossEntropy(nn.Module):
    """The mean over rows, in which each class weighs n^-power; of mixed rows both labels count, by their share.

    Args:
        source: whose classes are counted.
        power: 0 weighs all rows alike, 1 gives every class the same total weight.
        modality: whose labels are read.
    """

    weights: Tensor | None

    def __init__(self, source: Source, *, power: float = 0.0, modality: str = "image") -> None:
        super().__init__()
        self.modality = modality
        weights = class_weights(class_counts(source), power=power) if power else None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, scores: Tensor, batch: ViewBatch) -> Tensor:
        """From scores `n classes` to a scalar."""
        table = batch.index[self.modality]
        labels = [(table["label"], torch.ones_like(scores[:, 0]))]
        if "partner_label" in table:
            share = table["share"].to(scores)
            labels = [(table["label"], share), (table["partner_label"], 1 - share)]
        losses, weights = scores.new_zeros(()), scores.new_zeros(())
        for label, share in labels:
            losses = losses + (share * functional.cross_entropy(scores, label, self.weights, reduction="none")).sum()
            weights = weights + (share if self.weights is None else share * self.weights[label]).sum()
        return losses / weights
