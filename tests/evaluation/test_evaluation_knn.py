"""Weighted k-NN against scikit-learn, its defaults, and what it refuses."""

import numpy as np
import pytest
import torch
from evaluation_cases import labeled_features
from sklearn.neighbors import KNeighborsClassifier

from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.knn import knn


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("k", [1, 7, 500])
def test_knn_is_scikit_learns_with_the_same_weights(k):
    train, test = labeled_features(200, 0), labeled_features(90, 1)

    def weights(distance):  # of unit rows: cosine = 1 − distance² / 2
        return np.exp(-(distance**2) / 2 / 0.07)

    theirs = KNeighborsClassifier(min(k, 200), weights=weights).fit(train.normalized(), train.labels)
    ours = knn(train, test, k=k)
    assert ours.predicted.tolist() == theirs.predict(test.normalized()).tolist()


def test_knn_can_leave_a_sample_out_of_its_own_vote():
    train = labeled_features(100, 0)
    assert knn(train, train, k=1).top1 == 1.0
    assert knn(train, train, k=1, exclude_same="sample").top1 < 1.0


def test_two_hundred_neighbors_vote_by_default():
    """Votes are equal at a huge temperature: after 200 neighbors the classes are even, and the first class wins."""
    angle = torch.linspace(0, 1.5, 201)
    label = torch.tensor([1] * 100 + [0] * 100 + [1])
    train = Features(torch.stack([angle.cos(), angle.sin()], 1), Index({"label": label}))
    query = Features(torch.tensor([[1.0, 0.0]]), Index({"label": torch.tensor([0])}))
    assert knn(train, query, temperature=1e9).predicted.tolist() == [0]
    assert knn(train, query, temperature=1e9, k=199).predicted.tolist() == [1]
    assert knn(train, query, temperature=1e9, k=201).predicted.tolist() == [1]


def test_two_far_votes_against_a_near_one_by_temperature():
    """Cosines 1 against 2 × .96: e^{0} beats 2 e^{−.04/T} where T < .04 / log 2 = .0577; the default is .07."""
    near, far = [1.0, 0.0], [0.96, 0.28]
    train = Features(torch.tensor([near, far, far]), Index({"label": torch.tensor([0, 1, 1])}))
    query = Features(torch.tensor([near]), Index({"label": torch.tensor([0])}))
    assert knn(train, query, temperature=0.05).predicted.tolist() == [0]
    assert knn(train, query).predicted.tolist() == [1]
    # 3 votes of .85: log 3 = .15 / T at .137, above the default and below its double.
    far = [0.85, (1 - 0.85**2) ** 0.5]
    train = Features(torch.tensor([near, far, far, far]), Index({"label": torch.tensor([0, 1, 1, 1])}))
    assert knn(train, query).predicted.tolist() == [0]


def test_votes_of_a_small_temperature_neither_overflow_nor_vanish():
    """At T = .009, e^{1/T} is above float32 and e^{−1/T} below; the votes are 1 and e^{−.01/T}."""
    train = Features(torch.tensor([[1.0, 0.0], [0.99, (1 - 0.99**2) ** 0.5]]), Index({"label": torch.tensor([1, 0])}))
    query = Features(torch.tensor([[1.0, 0.0]]), Index({"label": torch.tensor([1])}))
    assert knn(train, query, temperature=0.009).predicted.tolist() == [1]


def test_bad_input_is_named():
    a, b = labeled_features(10, 0), labeled_features(12, 1)
    for options in ({"k": 0}, {"temperature": 0.0}, {"k": 0, "temperature": 0.0}):
        with pytest.raises(InputError, match="k >= 1 and temperature > 0"):
            knn(a, b, **options)
    with pytest.raises(InputError, match="10 × 8, 12 × 3"):
        knn(a, labeled_features(12, 1, d=3))
    with pytest.raises(InputError, match="0 × 8, 12 × 8"):
        knn(a.take(slice(0, 0)), b)
    with pytest.raises(InputError, match="10 × 8, 0 × 8"):
        knn(a, b.take(slice(0, 0)))
