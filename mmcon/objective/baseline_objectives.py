"""The baselines of the contrastive objective, by batch: cross-entropy, large-margin softmax and the triplet loss.

Their formulas are in `mmcon.losses.baselines`.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mmcon.batch import ViewBatch
from mmcon.distributed import collectives
from mmcon.errors import ConfigError, InputError
from mmcon.losses.baselines import check_labels, margin_logits, triplet
from mmcon.objective.candidates import Embeddings, rows_by_name, tables_by_modality
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


@final
class MarginClassifier(nn.Module):
    """An encoder with a linear classifier, trained together by large-margin softmax (Liu et al. 2016).

    Its outputs are `margin_logits` of the labels of the batch, so that `CrossEntropy` of them is `max_margin`.

    Args:
        encoder: a module with `feature_dim`; it is not copied.
        classes: number of classes.
        margin: the integer m >= 1 that multiplies the angle to the row's own class.
        modality: the modality of the views.
    """

    def __init__(self, encoder: nn.Module, classes: int, *, margin: int = 4, modality: str = "image") -> None:
        super().__init__()
        if margin < 1:
            raise InputError("max-margin", expected="an integer margin of 1 or more", got=repr(margin))
        width = getattr(encoder, "feature_dim", None)
        if not isinstance(width, int):
            raise InputError("MarginClassifier", expected="an encoder with `feature_dim`", got=type(encoder).__name__)
        self.encoder, self.modality, self.margin = encoder, modality, margin
        self.layer = nn.Linear(width, classes, bias=False)

    def forward(self, batch: ViewBatch) -> Float[Tensor, "n classes"]:
        """Logits of every row of the batch, in order.

        Raises:
            InputError: samples are mixed, and so have two labels.
        """
        table = batch.index[self.modality]
        if "partner_label" in table:
            fix = "--mix none, or --objective cross-entropy"
            raise InputError("max-margin", expected="one label a sample", got="mixed samples", fix=fix)
        features = torch.cat([self.encoder(stack) for stack in batch.views[self.modality]])
        return margin_logits(features, self.layer.weight, table["label"], margin=self.margin)


@final
class TripletLoss(nn.Module):
    """The triplet loss of each row's farthest positive and nearest negative (Hermans et al. 2017, batch hard).

    Positives and negatives are found among the rows of all ranks.

    Args:
        margin: by how much the negative must be farther than the positive, as a Euclidean distance of embeddings, of
            which unit rows have at most 2.
    """

    def __init__(self, *, margin: float) -> None:
        super().__init__()
        if not margin > 0:
            raise ConfigError("triplet", expected="a margin above 0", got=str(margin))
        self.margin = margin

    def forward(self, embeddings: Embeddings, batch: ViewBatch) -> Float[Tensor, ""]:
        """The loss of embeddings in one space and of one modality.

        Raises:
            InputError: there are several spaces or modalities, or samples are mixed and have two labels.
        """
        tables = tables_by_modality(embeddings, batch)
        # Each rank computes the loss of all rows. The gather sums the gradients of the ranks, and their average over
        # ranks, which data parallelism takes, is then that of one rank with the whole batch.
        gathered = collectives.gather(*rows_by_name(embeddings, tables, None))
        if len(gathered.embeddings) != 1:
            raise InputError("triplet", expected="one space, one modality", got=str(sorted(gathered.embeddings)))
        ((name, rows),) = gathered.embeddings.items()
        table = gathered.tables[name]
        if "partner_label" in table:
            fix = "--mix none, or --objective supcon"
            raise InputError("triplet", expected="one label a sample", got="mixed samples", fix=fix)
        return triplet(rows, table["label"], margin=self.margin)
