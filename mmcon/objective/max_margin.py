"""Large-margin softmax as a baseline: an encoder with a classifier whose own-class logit is lowered by an angle."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmcon.batch import ViewBatch
from mmcon.errors import InputError
from mmcon.losses.baselines import margin_logits


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
