"""The k-NN metric: weighted k-nearest-neighbor classification of frozen features."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.similarity_blocks import check_same_width, nearest_rows
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
    scores, classes = knn_scores(train, test, k=k, temperature=temperature, exclude_same=exclude_same)
    return classify(scores, test.labels, classes)


def knn_scores(
    train: Features, test: Features, *, k: int = 200, temperature: float = 0.07, exclude_same: str | None = None
) -> tuple[Float[Tensor, "n k"], Int[Tensor, " k"]]:
    """The votes of each class for each test row, and the labels of the classes; arguments are those of `knn`."""
    check_same_width("knn", train, test)
    if k < 1 or temperature <= 0:
        raise InputError("knn", expected="k >= 1 and temperature > 0", got=f"k={k}, temperature={temperature}")
    classes, class_of_row = train.labels.unique(return_inverse=True)
    scores = []
    for similarity, rows in nearest_rows(test, train, k=k, exclude_same=exclude_same):
        # The constant e^{-1/T} keeps votes at most 1: e^{1/T} overflows float32 below T = .0113.
        votes = ((similarity - 1) / temperature).exp()
        scores.append(votes.new_zeros(len(votes), len(classes)).scatter_add(1, class_of_row[rows], votes))
    return torch.cat(scores), classes
