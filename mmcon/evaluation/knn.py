"""The k-NN metric: weighted k-nearest-neighbor classification of frozen features."""

from __future__ import annotations

import torch

from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.similarity_blocks import check_same_width, similarity_blocks
from mmcon.evaluation.statistics import Classification, classify


def knn(
    train: Features, test: Features, *, k: int = 200, temperature: float = 0.07, exclude_same: str | None = None
) -> Classification:
    """Weighted k-nearest-neighbor classification by cosine similarity (Wu et al. 2018, section 3.4).

    The score of a class is Σ e^{s/T} over its members among the k nearest. With fewer than k training rows, all vote.

    Args:
        train: labeled features that vote.
        test: labeled features to classify.
        k: number of neighbors.
        temperature: divides the cosine.
        exclude_same: a column such as "sample". A training row does not vote for a test row with the same value in
            this column (leave-one-out on a single set).

    Raises:
        InputError: the widths differ, or a test label does not occur in the training set.
    """
    check_same_width("knn", train, test)
    if k < 1 or temperature <= 0:
        raise InputError("knn", expected="k >= 1 and temperature > 0", got=f"k={k}, temperature={temperature}")
    classes, class_of_row = train.labels.unique(return_inverse=True)
    scores = []
    for rows, similarity in similarity_blocks(test, train):
        if exclude_same is not None:
            same = test.index[exclude_same][rows, None] == train.index[exclude_same]
            similarity.masked_fill_(same, -torch.inf)
        nearest = similarity.topk(min(k, len(train)), dim=1)
        # The constant e^{-1/T} keeps votes at most 1: e^{1/T} overflows float32 below T = .0113.
        votes = ((nearest.values - 1) / temperature).exp()
        scores.append(votes.new_zeros(len(votes), len(classes)).scatter_add(1, class_of_row[nearest.indices], votes))
    return classify(torch.cat(scores), test.labels, classes)
