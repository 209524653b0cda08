"""Alignment, uniformity and the modality gap against double loops and other libraries."""

import math

import numpy as np
import pytest
import torch
from evaluation_cases import labeled_features
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import paired_distances
from sklearn.preprocessing import normalize

from mmcon.errors import InputError
from mmcon.evaluation.embedding_geometry import alignment, modality_gap, uniformity


@pytest.mark.usefixtures("block")
def test_alignment_and_uniformity_against_double_loops():
    x, y = labeled_features(30, 0).values, labeled_features(30, 1).values
    u, w = torch.nn.functional.normalize(x, dim=1).double(), torch.nn.functional.normalize(y, dim=1).double()
    assert alignment(x, y) == pytest.approx(sum(float((a - b).square().sum()) for a, b in zip(u, w, strict=True)) / 30)
    pairs = [math.exp(-2 * float((u[i] - u[j]).square().sum())) for i in range(30) for j in range(30) if i != j]
    assert uniformity(x) == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-6)
    assert modality_gap(x, x) == 0
    assert modality_gap(x, y) == pytest.approx(float((u.mean(0) - w.mean(0)).norm()), abs=1e-6)


def test_geometry_agrees_with_scipy_and_scikit_learn():
    x, y = labeled_features(30, 0).values, labeled_features(30, 1).values
    u, w = (normalize(values.double().numpy()) for values in (x, y))
    assert alignment(x, y) == pytest.approx((paired_distances(u, w) ** 2).mean(), rel=1e-6)
    assert uniformity(x) == pytest.approx(np.log(np.exp(-2 * pdist(u, "sqeuclidean")).mean()), rel=1e-6)
    assert modality_gap(x, y) == pytest.approx(np.linalg.norm(u.mean(0) - w.mean(0)), rel=1e-5)


def test_power_and_scale_by_hand():
    """Two orthogonal rows are at distance √2 and squared distance 2."""
    x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert alignment(x, y, power=1.0) == pytest.approx(2**0.5)
    assert alignment(x, y, power=3.0) == pytest.approx(2**1.5)
    assert uniformity(torch.cat([x, y]), t=0.5) == pytest.approx(-1.0)


def test_one_row_has_no_uniformity():
    with pytest.raises(InputError, match="two rows"):
        uniformity(torch.ones(1, 3))
    assert uniformity(torch.ones(2, 3)) == pytest.approx(0.0, abs=1e-6)
