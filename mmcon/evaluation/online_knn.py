"""Online k-NN: the k-NN metric on a subset of the training set, for choosing checkpoints."""

from __future__ import annotations

from typing import final

import torch
from torch import nn

from mmcon.errors import InputError
from mmcon.evaluation.features import extract_features
from mmcon.evaluation.knn import knn
from mmcon.loading.loader import Views, one_pass
from mmcon.sources.base import Source, Subset
from mmcon.sources.splits import held_out


@final
class OnlineKnn:
    """Leave-one-out accuracy of weighted k-NN on a subset of the training set.

    Pass it to `run.batches(loader, score=...)`: the best checkpoint is then chosen without the test set.

    Args:
        model: the model to evaluate.
        train: the training set, with labels.
        views: by modality, one deterministic view.
        samples: approximate size of the subset, which is chosen by sample id and so is the same in every run.
        k: number of neighbors.
    """

    def __init__(self, model: nn.Module, train: Source, views: Views, *, samples: int = 2000, k: int = 20) -> None:
        if train.labels is None:
            raise InputError("OnlineKnn", expected="a source with labels", got=f"{train.name} without")
        share = min(0.999, samples / len(train))
        rows = torch.nonzero(held_out(train.ids, share)).flatten() if share < 0.999 else torch.arange(len(train))
        self.model, self.views, self.k = model, views, k
        self.subset = Subset(train, rows if len(rows) else torch.arange(min(samples, len(train))))

    def __call__(self) -> float:
        """The accuracy of the model as it is now, between 0 and 1."""
        features = extract_features(self.model, one_pass(self.subset, self.views))
        # Leave-one-out by sample, not by row: another view of the same sample would vote too.
        return float(knn(features, features, k=self.k, exclude_same="sample").top1)
