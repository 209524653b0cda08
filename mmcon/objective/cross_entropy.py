"""Cross-entropy as an objective: the supervised baseline beside the contrastive losses."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmcon.batch import ViewBatch
from mmcon.sources.base import Source, class_counts, class_weights


@final
class CrossEntropy(nn.Module):
    """The mean over rows, in which each class weighs n^-power; of mixed rows both labels count, by their share.

    Args:
        source: whose classes are counted.
        power: 0 weighs all rows alike, 1 gives every class the same total weight.
        modality: whose labels are read.
    """

    weights: Tensor | None
    supports_sharding = False  # its encoder is evaluated without the classifier, which needs whole weights

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
