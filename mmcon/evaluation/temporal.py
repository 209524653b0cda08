"""Temporal metrics of features: slowness, temporal order, lag between frame times, and retrieval in time.

Slow feature analysis (Wiskott and Sejnowski 2002) calls a feature slow if it changes little over time relative to its
variance. Every metric reads features with the columns `time` (seconds) and `group` (the clip). The metrics return one
value a clip, since the frame times of one clip are not independent: compute intervals and tests over clips. If a clip
is cut into windows, each with its own `sample`, frame times are compared within a window, and the clip's value is the
mean over its windows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.evaluation.features import Features

ClipMetric = Callable[[Float[Tensor, "_t _d"], Float[Tensor, " _t"]], float]


def slowness(features: Features) -> Float[Tensor, " d"]:
    """E[(dx/dt)²] / Var(x) of each feature in 1/s², over consecutive frame times of a clip; smaller is slower.

    It is NaN for a constant feature.
    """
    change, x = _time_derivatives(features)
    variance = x.var(0, correction=0)
    varies = variance > 1e-12 * x.square().mean(0).clamp(min=1e-30)  # a smaller variance is rounding
    return torch.where(varies, change.square().mean(0) / torch.where(varies, variance, 1.0), torch.nan)


def slowness_spectrum(features: Features, *, keep: int | float = 0.999) -> Float[Tensor, " k"]:
    """The slowness of the slowest directions of a feature space, slowest first (linear slow feature analysis).

    The features are whitened in the principal directions that hold the share `keep` of their variance; the values are
    the eigenvalues of the second moment of dx/dt there, in 1/s². They do not depend on the basis of the features.
    """
    if not 0 < keep <= 1:
        raise InputError("slowness_spectrum", expected="keep in (0, 1]", got=str(keep))
    change, x = _time_derivatives(features)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    # Rounding may give eigenvalues below 0.
    share = values.flip(0).clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    kept = int((share < keep).sum()) + 1
    # Without the directions of least variance: the division by its root would amplify rounding errors.
    whitening = vectors[:, -kept:] / values[-kept:].sqrt()
    whitened = change @ whitening
    return torch.linalg.eigvalsh(whitened.T @ whitened / len(whitened)).clamp(min=0)


def lag_correlation(features: Features) -> Float[Tensor, " g"]:
    """Spearman's correlation, by clip, between the lag of two frame times and the distance of their features.

    1: the distance increases with the lag. A clip of constant features has correlation 0.
    """

    def correlation(x: Float[Tensor, "t d"], time: Float[Tensor, " t"]) -> float:
        lag, distance = torch.pdist(time[:, None]), torch.pdist(x)
        if float(distance.max() - distance.min()) < 1e-12 or float(lag.max() - lag.min()) == 0:
            return 0.0
        from scipy import stats

        return float(stats.spearmanr(lag.numpy(), distance.numpy())[0])  # pyright: ignore[reportArgumentType]

    return _by_clip(features, correlation, min_times=3)


def retrieval_seconds(features: Features) -> Float[Tensor, " g"]:
    """Mean time, by clip, between a frame time and the nearest neighbor of its features in the same clip.

    A query is not its own candidate, so the optimum is the time to the adjacent frame time.
    """

    def seconds(x: Float[Tensor, "t d"], time: Float[Tensor, " t"]) -> float:
        normalized = torch.nn.functional.normalize(x, dim=1)
        nearest = (normalized @ normalized.T).fill_diagonal_(-torch.inf).argmax(1)
        return float((time[nearest] - time).abs().mean())

    return _by_clip(features, seconds, min_times=2)


def order_accuracy(train: Features, test: Features, *, l2: int | float = 1.0) -> Float[Tensor, " g"]:
    """Share of pairs of frame times, by test clip, that a linear function of the features orders correctly.

    Its weights w come from ridge regression of t_b − t_a on x_b − x_a on training clips. A pair is correct if
    w · (x_b − x_a) has the sign of t_b − t_a; chance is one half.
    """
    weights = _fit_time_differences(train, l2=l2, absolute=False)
    mean, scale = _mean_and_scale(train)

    def accuracy(x: Float[Tensor, "t d"], time: Float[Tensor, " t"]) -> float:
        predicted, true = _differences(((x - mean) / scale) @ weights), _differences(time)
        ordered = true != 0
        return float((predicted[ordered].sign() == true[ordered].sign()).double().mean())

    return _by_clip(test, accuracy, min_times=2)


def lag_error(train: Features, test: Features, *, l2: int | float = 1.0) -> Float[Tensor, " g"]:
    """Mean absolute error in seconds, by test clip, of |t_b − t_a| predicted linearly from |x_b − x_a|.

    The weights come from ridge regression on training clips.
    """
    weights = _fit_time_differences(train, l2=l2, absolute=True)
    mean, scale = _mean_and_scale(train)

    def error(x: Float[Tensor, "t d"], time: Float[Tensor, " t"]) -> float:
        predicted = _absolute_with_intercept(_differences((x - mean) / scale)) @ weights
        return float((predicted - _differences(time).abs()).abs().mean())

    return _by_clip(test, error, min_times=2)


def clip_ids(features: Features) -> Int[Tensor, " g"]:
    """The clips, ascending: the order of the values that the functions above return."""
    return features.index["group"].unique()


# --- clip by clip ----------------------------------------------------------------------------------------------------


def _windows(features: Features) -> list[tuple[int, Float[Tensor, "_t d"], Float[Tensor, " _t"]]]:
    """The clip of each window, and its features and frame times in the order of time, float64."""
    index, group = features.index, features.index["group"]
    window = index.get("sample", group)
    windows = []
    for clip, sample in torch.stack([group, window], 1).unique(dim=0).tolist():
        rows = ((group == clip) & (window == sample)).nonzero()[:, 0]
        time, order = index["time"][rows].double().sort(stable=True)
        windows.append((clip, features.values[rows][order].double(), time))
    return windows


def _by_clip(features: Features, metric: ClipMetric, *, min_times: int) -> Float[Tensor, " g"]:
    """The mean of a metric over the windows of each clip."""
    by_clip: dict[int, list[float]] = {}
    for clip, x, time in _windows(features):
        if len(x) < min_times:
            raise InputError(
                "temporal metrics",
                expected=f"at least {min_times} frame times of every clip",
                got=f"{len(x)} of clip {clip}",
                fix="draw more views a clip, such as video/grid-clip with views=24",
            )
        by_clip.setdefault(clip, []).append(metric(x, time))
    return torch.tensor([sum(values) / len(values) for values in by_clip.values()], dtype=torch.float64)


def _time_derivatives(features: Features) -> tuple[Float[Tensor, "m d"], Float[Tensor, "n d"]]:
    """dx/dt between consecutive frame times of the windows, and all features; both float64."""
    derivatives = []
    for _, x, time in _windows(features):
        lag = time.diff()
        distinct = lag > 0
        derivatives.append(x.diff(dim=0)[distinct] / lag[distinct, None])
    change = torch.cat(derivatives)
    if not len(change):
        raise InputError("slowness", expected="clips with two frame times or more", got="none")
    return change, features.values.double()


def _differences(x: Float[Tensor, "t ..."]) -> Float[Tensor, "p ..."]:
    """x_b − x_a of all pairs a < b."""
    a, b = torch.triu_indices(len(x), len(x), 1)
    return x[b] - x[a]


def _absolute_with_intercept(x: Float[Tensor, "p d"]) -> Float[Tensor, "p d+1"]:
    return torch.cat([x.abs(), torch.ones(len(x), 1, dtype=x.dtype)], 1)


def _mean_and_scale(train: Features) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    x = train.values.double()
    return x.mean(0), x.std(0, correction=0).clamp(min=1e-6)


def _fit_time_differences(train: Features, *, l2: int | float, absolute: bool) -> Float[Tensor, " p"]:
    """Ridge weights from feature differences to time differences; `absolute`: of absolute values, with an intercept.

    The normal equations are summed over clips, so that memory holds the pairs of one window at a time.
    """
    mean, scale = _mean_and_scale(train)
    width = train.values.shape[1] + (1 if absolute else 0)
    gram, moment, count = torch.zeros(width, width).double(), torch.zeros(width).double(), 0
    for _, x, time in _windows(train):
        d, t = _differences((x - mean) / scale), _differences(time)
        if absolute:
            d, t = _absolute_with_intercept(d), t.abs()
        gram, moment, count = gram + d.T @ d, moment + d.T @ t, count + len(d)
    return torch.linalg.solve(gram / max(count, 1) + l2 * torch.eye(width).double(), moment / max(count, 1))
