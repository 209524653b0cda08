"""Linear figures of time against scikit-learn's ridge regression and SciPy's generalized eigenvalues."""

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import euclidean_distances

from mmcon.batch import Index
from mmcon.evaluation.features import Features
from mmcon.evaluation.temporal import lag_correlation, lag_error, order_accuracy, slowness_spectrum

CLIPS, TIMES, STEP, L2 = 5, 20, 0.1, 0.5
A, B = np.triu_indices(TIMES, 1)


def drifting(seed):
    """Noise beside a drift in time, whose direction is a little different in each clip."""
    g = torch.Generator().manual_seed(seed)
    time = torch.arange(TIMES, dtype=torch.float64) * STEP
    drift = torch.ones(CLIPS, 1, 4) + 0.5 * torch.randn(CLIPS, 1, 4, generator=g)
    values = torch.randn(CLIPS, TIMES, 4, generator=g) + time.float()[:, None] * drift
    index = {"time": time.repeat(CLIPS), "group": torch.arange(CLIPS).repeat_interleave(TIMES)}
    return Features(values.flatten(0, 1), Index(index))


def by_clip(values):
    return values.double().view(CLIPS, TIMES, -1).numpy()


def test_order_and_lags_are_those_of_ridge_regression():
    """Its penalty is for each pair of times here, and for their sum there."""
    train, test = drifting(0), drifting(1)
    mean, scale = train.values.mean(0), train.values.std(0, correction=0)
    fitted, tested = (by_clip((of.values - mean) / scale) for of in (train, test))
    fitted, tested = fitted[:, B] - fitted[:, A], tested[:, B] - tested[:, A]
    lags = (B - A) * STEP
    every = np.tile(lags, CLIPS)
    ridge = Ridge(alpha=L2 * len(every), fit_intercept=False).fit(fitted.reshape(-1, 4), every)
    ordered = [(clip @ ridge.coef_ > 0).mean() for clip in tested]
    assert order_accuracy(train, test, l2=L2).tolist() == pytest.approx(ordered)
    fitted, tested = (np.pad(np.abs(of), ((0, 0), (0, 0), (0, 1)), constant_values=1) for of in (fitted, tested))
    ridge.fit(fitted.reshape(-1, 5), every)
    errors = [np.abs(ridge.predict(clip) - lags).mean() for clip in tested]
    assert lag_error(train, test, l2=L2).tolist() == pytest.approx(errors, rel=1e-4)


def test_slowness_is_a_generalized_eigenvalue_and_lags_correlate_by_rank():
    features = drifting(0)
    clips = by_clip(features.values)
    change, rows = (np.diff(clips, axis=1) / STEP).reshape(-1, 4), clips.reshape(-1, 4)
    theirs = eigh(change.T @ change / len(change), np.cov(rows.T, bias=True), eigvals_only=True)
    assert slowness_spectrum(features, keep=1.0).tolist() == pytest.approx(theirs, rel=1e-5)
    ranks = [spearmanr((B - A).astype(float), euclidean_distances(clip)[A, B])[0] for clip in clips]
    assert lag_correlation(features).tolist() == pytest.approx(ranks, abs=0.01)  # rounding breaks ties of equal lags
