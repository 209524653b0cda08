"""A figure of merit during training: nearest neighbours, on a part of the training set alone."""

from __future__ import annotations

from typing import final

import torch
from torch import nn

from mmcon.errors import InputError
from mmcon.evaluation.features import extract_features
from mmcon.evaluation.knn import knn
from mmcon.loading.loader import Views, one_pass
from mmcon.sources.base import Source, Subset, held_out


@final
class OnlineKnn:
    """Accuracy of weighted k-NN among features of some training rows; each row is classified by the others.

    For `run.batches(loader, score=...)`: the best checkpoint is then chosen without a look at the test set.

    Args:
        model: whose features are judged.
        train: the training part, with labels.
        views: by modality one view without randomness.
        rows: at most so many, chosen by identity.
        k: how many neighbours.
    """

    def __init__(self, model: nn.Module, train: Source, views: Views, *, rows: int = 2000, k: int = 20) -> None:
        if train.labels is None:
            raise InputError("OnlineKnn", expected="a source with labels", got=f"{train.name} without")
        share = min(0.999, rows / len(train))
        taken = torch.nonzero(held_out(train.ids, share)).flatten() if share < 0.999 else torch.arange(len(train))
        self.model, self.views, self.k = model, views, k
        self.part = Subset(train, taken if len(taken) else torch.arange(min(rows, len(train))))

    def __call__(self) -> float:
        """The accuracy now, between 0 and 1."""
        features = extract_features(self.model, one_pass(self.part, self.views))
        return float(knn(features, features, k=self.k, exclude_same="sample").top1)
