"""Cross-entropy as an objective: the supervised baseline of the contrastive losses."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mmcon.batch import ViewBatch
from mmcon.losses.baselines import check_labels
from mmcon.sources.base import Source, class_counts, class_weights


@final
class CrossEntropy(nn.Module):
    """The mean cross-entropy over rows; rows of mixed samples count both labels, by their share.

    Args:
        source: the data, whose classes are counted.
        power: a class of n samples has the weight n^-power: 0 gives all samples the same weight, 1 all classes.
        modality: the modality whose labels are used.
    """

    weights: Float[Tensor, " classes"] | None
    supports_sharding = False  # its encoder is evaluated without the classifier, which needs full weights

    def __init__(self, source: Source, *, power: float = 0.0, modality: str = "image") -> None:
        super().__init__()
        self.modality = modality
        weights = class_weights(class_counts(source), power=power) if power else None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, scores: Float[Tensor, "n classes"], batch: ViewBatch) -> Float[Tensor, ""]:
        """The loss of classifier scores.

        Raises:
            InputError: a label is not among the classes.
        """
        table = batch.index[self.modality]
        labels = [(table["label"], torch.ones_like(scores[:, 0]))]
        if "partner_label" in table:
            share = table["share"].to(scores)
            labels = [(table["label"], share), (table["partner_label"], 1 - share)]
        losses, weights = scores.new_zeros(()), scores.new_zeros(())
        for label, share in labels:
            check_labels("cross-entropy", label, scores.shape[1])
            losses = losses + (share * functional.cross_entropy(scores, label, self.weights, reduction="none")).sum()
            weights = weights + (share if self.weights is None else share * self.weights[label]).sum()
        return losses / weights
