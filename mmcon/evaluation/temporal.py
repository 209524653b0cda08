"""How features move in time: slowness, order, lag, and finding a moment again.

Slow feature analysis (Wiskott and Sejnowski 2002) calls a feature slow when it changes little from moment to moment for
the variance that it has. Everything here reads features with the columns `time` (seconds) and `group` (the clip), and
gives a figure for every clip, since moments of one clip are not independent: intervals and tests go over clips. Where
a clip is cut into windows, rows of their own with another `sample` each, moments are compared within a window, and the
clip counts by the mean over its windows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from mmcon.errors import InputError
from mmcon.evaluation.features import Features


def slowness(features: Features) -> Float[Tensor, " d"]:
    """Of each feature, E[(dx/dt)²] / Var(x) in 1/s², over neighbouring moments of one clip: small is slow.

    A feature that never varies has no slowness and is not a number.
    """
    change, x = _changes(features)
    variance = x.var(0, correction=0)
    varies = variance > 1e-12 * x.square().mean(0).clamp(min=1e-30)
    return torch.where(varies, change.square().mean(0) / torch.where(varies, variance, 1.0), torch.nan)


def slowness_spectrum(features: Features, *, keep: int | float = 0.999) -> Float[Tensor, " k"]:
    """The slowest directions in a feature space, slowest first, as linear slow feature analysis finds them.

    Features are whitened on the directions that hold `keep` of their variance; the values are the eigenvalues of the
    second moment of dx/dt there, in 1/s². They do not depend on the basis in which features happen to be written.
    """
    if not 0 < keep <= 1:
        raise InputError("slowness_spectrum", expected="keep in (0, 1]", got=str(keep))
    change, x = _changes(features)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    share = values.flip(0).clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    kept = int((share < keep).sum()) + 1
    white = vectors[:, -kept:] / values[-kept:].sqrt()
    moved = change @ white
    return torch.linalg.eigvalsh(moved.T @ moved / len(moved)).clamp(min=0)


def lag_correlation(features: Features) -> Float[Tensor, " g"]:
    """Of each clip, Spearman's correlation of the time between two moments and the distance of their features.

    1: the further apart in time, the further apart in the space. Clips whose features do not vary count 0.
    """

    def of_clip(x: Tensor, time: Tensor) -> float:
        lag, distance = _pairs(time[:, None]), _pairs(x)
        if float(distance.max() - distance.min()) < 1e-12 or float(lag.max() - lag.min()) == 0:
            return 0.0
        return float(stats.spearmanr(lag.numpy(), distance.numpy())[0])  # pyright: ignore[reportArgumentType]

    return _by_clip(features, of_clip, least=3)


def retrieval_seconds(features: Features) -> Float[Tensor, " g"]:
    """Of each clip, how many seconds the nearest moment of the same clip in the space is away, on average.

    Every moment asks among the others of its clip, so the best that can be is the time to the nearest neighbour.
    """

    def of_clip(x: Tensor, time: Tensor) -> float:
        unit = torch.nn.functional.normalize(x, dim=1)
        nearest = (unit @ unit.T).fill_diagonal_(-torch.inf).argmax(1)
        return float((time[nearest] - time).abs().mean())

    return _by_clip(features, of_clip, least=2)


def order_accuracy(train: Features, test: Features, *, l2: int | float = 1.0) -> Float[Tensor, " g"]:
    """Of each test clip, the share of pairs of moments that a linear reading of the features puts in order.

    The reading w is fitted on training clips by ridge regression of t_b − t_a on x_b − x_a; a pair is in order where
    w · (x_b − x_a) has the sign of t_b − t_a. Chance is one half.
    """
    weight = _ridge(train, lambda x: x, signed=True, l2=l2)
    mean, scale = _scale(train)

    def of_clip(x: Tensor, time: Tensor) -> float:
        said, true = _differences(((x - mean) / scale) @ weight), _differences(time)
        some = true != 0
        return float((said[some].sign() == true[some].sign()).double().mean())

    return _by_clip(test, of_clip, least=2)


def lag_error(train: Features, test: Features, *, l2: int | float = 1.0) -> Float[Tensor, " g"]:
    """Of each test clip, the mean error in seconds of |t_b − t_a| read linearly from |x_b − x_a|,
    fitted on training clips by ridge regression.
    """
    weight = _ridge(train, torch.abs, signed=False, l2=l2)
    mean, scale = _scale(train)

    def of_clip(x: Tensor, time: Tensor) -> float:
        d = _differences((x - mean) / scale).abs()
        said = torch.cat([d, torch.ones(len(d), 1, dtype=d.dtype)], 1) @ weight
        return float((said - _differences(time).abs()).abs().mean())

    return _by_clip(test, of_clip, least=2)


def clip_ids(features: Features) -> Int[Tensor, " g"]:
    """The clips, ascending: what the values of the functions above are of."""
    return features.index["group"].unique()


# --- clip by clip ----------------------------------------------------------------------------------------------------


def _windows(features: Features) -> list[tuple[int, Tensor, Tensor]]:
    """Of each window, which clip it is of, its features, and its times, in the order of time, float64."""
    index, group = features.index, features.index["group"]
    window = index.get("sample", group)
    found = []
    for clip, part in torch.stack([group, window], 1).unique(dim=0).tolist():
        rows = ((group == clip) & (window == part)).nonzero()[:, 0]
        time, order = index["time"][rows].double().sort(stable=True)
        found.append((clip, features.values[rows][order].double(), time))
    return found


def _by_clip(features: Features, figure: Callable[[Tensor, Tensor], float], *, least: int) -> Tensor:
    found: dict[int, list[float]] = {}
    for clip, x, time in _windows(features):
        if len(x) < least:
            raise InputError(
                "evaluation in time",
                expected=f"at least {least} moments of every clip",
                got=f"{len(x)} of clip {clip}",
                fix="draw more views a clip, such as video/grid-clip with views=24",
            )
        found.setdefault(clip, []).append(figure(x, time))
    return torch.tensor([sum(of) / len(of) for of in found.values()], dtype=torch.float64)


def _changes(features: Features) -> tuple[Tensor, Tensor]:
    """dx/dt between neighbouring moments, and all features; both float64."""
    changes = []
    for _, x, time in _windows(features):
        lag = time.diff()
        apart = lag > 0
        changes.append(x.diff(dim=0)[apart] / lag[apart, None])
    change = torch.cat(changes)
    if not len(change):
        raise InputError("slowness", expected="clips with two moments or more", got="none")
    return change, features.values.double()


def _pairs(x: Tensor) -> Tensor:
    """Distances of all pairs, each once."""
    return torch.nn.functional.pdist(x)


def _differences(x: Tensor) -> Tensor:
    """x_b − x_a of all pairs a < b."""
    a, b = torch.triu_indices(len(x), len(x), 1)
    return x[b] - x[a]


def _scale(train: Features) -> tuple[Tensor, Tensor]:
    x = train.values.double()
    return x.mean(0), x.std(0, correction=0).clamp(min=1e-6)


def _ridge(train: Features, of_difference: Callable[[Tensor], Tensor], *, signed: bool, l2: int | float) -> Tensor:
    """Weights by which differences of features tell differences of time, from normal equations summed over clips."""
    mean, scale = _scale(train)
    width = train.values.shape[1] + (0 if signed else 1)
    gram, moment, count = torch.zeros(width, width).double(), torch.zeros(width).double(), 0
    for _, x, time in _windows(train):
        d, t = of_difference(_differences((x - mean) / scale)), _differences(time)
        if not signed:
            d, t = torch.cat([d, torch.ones(len(d), 1, dtype=d.dtype)], 1), t.abs()
        gram, moment, count = gram + d.T @ d, moment + d.T @ t, count + len(d)
    return torch.linalg.solve(gram / max(count, 1) + l2 * torch.eye(width).double(), moment / max(count, 1))
