"""The frozen linear probe: multinomial logistic regression on features that were computed once.

The strength of the regulariser is chosen on a part of the training set that its own samples' keys hold out; then the
probe is fitted again on all of the training set. The test set is read once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.statistics import Classification, class_indices, classify
from mmcon.random import keys

L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: logits are `scaled(features) @ weight + bias`.

    Attributes:
        weight: `d k`.
        bias: `k`.
        mean: `d`, taken off before, under standard scaling.
        scale: `d`, divided by, under standard scaling.
        unit: whether rows are brought to length one first.
        classes: `k` labels, ascending.
        l2: the regulariser's strength that was chosen.
        held_out: by strength, the top-1 on the held-out part of the training set from which it was chosen.
    """

    weight: Float[Tensor, "d k"]
    bias: Float[Tensor, " k"]
    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    unit: bool
    classes: Int[Tensor, " k"]
    l2: float
    held_out: dict[float, float]

    def logits(self, values: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """The scores of each class."""
        if self.unit:
            values = torch.nn.functional.normalize(values, dim=1)
        return ((values - self.mean) / self.scale) @ self.weight + self.bias

    def evaluate(self, test: Features) -> Classification:
        """Judge the probe on features with labels, once."""
        _same_width("LinearProbe", len(self.weight), test)
        device = self.weight.device
        logits = self.logits(test.values.to(device, self.weight.dtype))
        return classify(logits, test.labels.to(device), self.classes)


def linear_probe(train: Features, test: Features, **options: object) -> Classification:
    """Fit a probe on one dump of features and judge it on another; the options are those of `fit_probe`.

    >>> print(linear_probe(train, test).interval())  # doctest: +SKIP
    0.869 [0.854, 0.883]
    """
    return fit_probe(train, **options).evaluate(test)  # pyright: ignore[reportArgumentType]


def fit_probe(
    train: Features,
    *,
    scaling: str = "standard",
    l2: float | Sequence[float] = L2_GRID,
    held_out_share: float = 0.2,
    max_iterations: int = 100,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LinearProbe:
    """Fit a linear probe: min mean cross-entropy + l2/2 ‖weight‖², by full-batch L-BFGS; the bias is free.

    In scikit-learn's terms C = 1 / (l2 · n). The strengths are visited from the strongest to the weakest, each from the
    solution of the one before, until two in a row do worse on the held-out part than the best; of equally good ones the
    strongest is kept. There is no random initial point: the same features give the same probe.

    Args:
        train: features with labels; whatever is held out comes from these alone.
        scaling: `standard` (each column to mean 0 and variance 1), `unit` (each row to length one), or `none`.
        l2: the strengths to choose among, or one number, which is then taken.
        held_out_share: share of the training samples that chooses; all rows of a sample fall on the same side.
        max_iterations: L-BFGS steps at most for each strength.
        seed: seeds the keys that hold samples out.
        device: where to fit; by default where the features are.

    Raises:
        InputError: fewer than two classes, a strength below 0, or a part of the split without samples.
    """
    if scaling not in ("standard", "unit", "none"):
        raise InputError("fit_probe", expected="scaling 'standard', 'unit' or 'none'", got=repr(scaling))
    strengths = sorted([l2] if isinstance(l2, int | float) else l2, reverse=True)
    if not strengths or strengths[-1] < 0:
        raise InputError("fit_probe", expected="one or more l2 >= 0", got=str(strengths))
    labels = train.labels.to(device or train.values.device)
    classes = labels.unique()
    if len(classes) < 2:
        raise InputError("fit_probe", expected="at least two classes", got=f"{len(classes)}")
    values = train.values.to(labels.device)
    mean, scale = _statistics(values, scaling)
    x = ((torch.nn.functional.normalize(values, dim=1) if scaling == "unit" else values) - mean) / scale
    y = class_indices(labels, classes, where="fit_probe")

    table: dict[float, float] = {}
    theta, chosen = x.new_zeros(x.shape[1] + 1, len(classes)), strengths[0]
    if len(strengths) > 1:
        out = held_out_rows(train, share=held_out_share, seed=seed).to(x.device)
        theta, chosen, table = _choose(x, y, out, strengths, theta, max_iterations)
    theta = _minimise(x, y, chosen, theta, max_iterations)
    return LinearProbe(theta[:-1], theta[-1], mean, scale, scaling == "unit", classes, chosen, table)


def held_out_rows(features: Features, *, share: float, seed: int = 0) -> Bool[Tensor, " n"]:
    """Which rows are held out: those of samples whose key draws below the share, wherever they stand."""
    ids = features.index["sample"] if "sample" in features.index else torch.arange(len(features))
    out = keys(seed=seed, sample=ids.cpu()).uniform("held out") < share
    if not 0 < int(out.sum()) < len(out):
        raise InputError(
            "fit_probe",
            expected=f"samples on both sides of a split that holds out {share}",
            got=f"{int(out.sum())} of {len(out)} rows held out",
            fix="pass one l2, or more samples",
        )
    return out


def _choose(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    out: Bool[Tensor, " n"],
    strengths: list[float],
    theta: Float[Tensor, "p k"],
    max_iterations: int,
) -> tuple[Float[Tensor, "p k"], float, dict[float, float]]:
    """The parameters and the strength that are best on the held-out rows, and the top-1 of each strength."""
    best, chosen, worse = theta, strengths[0], 0
    table: dict[float, float] = {}
    for strength in strengths:
        theta = _minimise(x[~out], y[~out], strength, theta, max_iterations)
        table[strength] = ((x[out] @ theta[:-1] + theta[-1]).argmax(1) == y[out]).double().mean().item()
        if strength == strengths[0] or table[strength] > table[chosen]:
            best, chosen = theta, strength
        worse = worse + 1 if table[strength] < table[chosen] else 0
        if worse == 2:
            break
    return best, chosen, table


def _minimise(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], l2: float, start: Float[Tensor, "p k"], max_iterations: int
) -> Float[Tensor, "p k"]:
    """L-BFGS from a starting point; the last row of the parameters is the bias."""
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=max_iterations, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ theta[:-1] + theta[-1], y) + 0.5 * l2 * theta[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return theta.detach()


def _statistics(values: Float[Tensor, "n d"], scaling: str) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """What is taken off and divided by; a column that never varies is only centred."""
    if scaling != "standard":
        return torch.zeros_like(values[0]), torch.ones_like(values[0])
    mean, deviation = values.mean(0), values.std(0, correction=0)
    varies = deviation > 1e-6 * mean.abs()  # what is left below is rounding
    return mean, torch.where(varies, deviation, torch.ones_like(deviation))


def _same_width(where: str, width: int, features: Features) -> None:
    if features.values.shape[1] != width:
        raise InputError(where, expected=f"features of width {width}", got=f"width {features.values.shape[1]}")
