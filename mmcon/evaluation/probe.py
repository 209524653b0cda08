"""The linear probe: multinomial logistic regression on cached features.

The L2 strength is chosen on validation samples that are held out of the training set by their ids; then the probe is
fitted again on the whole training set. The test set is used once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmcon.distributed.collectives import get_rank
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.statistics import Classification, class_indices, classify
from mmcon.random import keys
from mmcon.training.progress import Progress

L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
#: The largest matrix whose eigenvectors are computed, which takes seconds; above it, columns are scaled one by one.
LARGEST_ROTATION = 4096
#: With more rows for each column, the coefficients are rotated in every step, and not the rows once.
ROWS_A_COLUMN = 8
#: The change of the loss at which a fit ends that serves the choice of the strength only.
SEARCH_CHANGE = 1e-5


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: logits are `scaled(features) @ weight + bias`.

    Attributes:
        weight: coefficients of the scaled features.
        bias: of each class.
        mean: subtracted from the features under standard scaling.
        scale: divides the centered features under standard scaling.
        unit: normalize rows to length one first.
        classes: the labels, ascending.
        l2: the chosen L2 strength.
        held_out: by L2 strength, the top-1 accuracy on the validation samples; empty for a fixed strength. Of a probe
            fitted by SGD, by learning rate and L2 strength, as "rate, strength".
        learning_rate: the chosen one of SGD; None of L-BFGS.
    """

    weight: Float[Tensor, "d k"]
    bias: Float[Tensor, " k"]
    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    unit: bool
    classes: Int[Tensor, " k"]
    l2: float
    held_out: dict[float, float] | dict[str, float]
    learning_rate: float | None = None

    def logits(self, values: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """The logits of each class."""
        if self.unit:
            values = torch.nn.functional.normalize(values, dim=1)
        return ((values - self.mean) / self.scale) @ self.weight + self.bias

    def evaluate(self, test: Features) -> Classification:
        """Accuracy of the probe on labeled features."""
        if test.values.shape[1] != len(self.weight):
            got = f"width {test.values.shape[1]}"
            raise InputError("LinearProbe", expected=f"features of width {len(self.weight)}", got=got)
        device = self.weight.device
        logits = self.logits(test.values.to(device, self.weight.dtype))
        return classify(logits, test.labels.to(device), self.classes)


def linear_probe(train: Features, test: Features, **options: object) -> Classification:
    """Fit a probe on the training features and evaluate it on the test features; options are those of `fit_probe`.

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
    title: str = "linear probe",
) -> LinearProbe:
    """Fit a linear probe: min mean cross-entropy + l2/2 ‖weight‖², by full-batch L-BFGS; the bias is free.

    In scikit-learn's parametrization C = 1 / (l2 · n). Strengths are tried from the largest to the smallest, each
    starting at the previous solution, until two in a row are worse on the validation samples than the best; of equally
    good ones the largest is kept. The start is deterministic: the same features give the same probe.

    Args:
        train: labeled features; the validation samples are held out of these.
        scaling: `standard` (each column to mean 0 and variance 1), `unit` (each row to length one), or `none`.
        l2: the strengths to choose among, or one number, which is used as it is.
        held_out_share: share of the training samples for validation; all rows of a sample are on one side.
        max_iterations: maximum number of L-BFGS steps at each strength.
        seed: seed of the validation split.
        device: device of the fit; by default that of the features.
        title: the name of the phase, for the progress.

    Raises:
        InputError: there are fewer than two classes, a strength is below 0, or a side of the split is empty.
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
    mean, scale = scaling_statistics(values, scaling)
    # A copy of the features that is changed in place: there may be gigabytes of them.
    x = torch.nn.functional.normalize(values, dim=1) if scaling == "unit" else values.clone()
    x.sub_(mean).div_(scale)
    problem = _Problem.of(x, class_indices(labels, classes, where="fit_probe"), len(classes), max_iterations)

    accuracies: dict[float, float] = {}
    theta, chosen = x.new_zeros(problem.x.shape[1] + 1, len(classes)), strengths[0]
    if len(strengths) > 1:
        out = held_out_rows(train, share=held_out_share, seed=seed).to(x.device)
        with Progress(f"{title}, L2 strength", len(strengths), enabled=get_rank() == 0) as progress:
            theta, chosen, accuracies = _choose_strength(problem, out, strengths, theta, progress)
    weight, bias = problem.restore(problem.minimize(chosen, theta))
    return LinearProbe(weight, bias, mean, scale, scaling == "unit", classes, chosen, accuracies)


def held_out_rows(features: Features, *, share: float, seed: int = 0) -> Bool[Tensor, " n"]:
    """Whether each row is held out. It depends on the sample's id and the seed only, not on order or on other rows."""
    ids = features.index["sample"] if "sample" in features.index else torch.arange(len(features))
    return held_out_samples(ids, share=share, seed=seed)


def held_out_samples(ids: Int[Tensor, " n"], *, share: float, seed: int = 0) -> Bool[Tensor, " n"]:
    """Whether each sample is held out, by its id and the seed."""
    out = keys(seed=seed, sample=ids.cpu()).uniform("held out") < share
    if not 0 < int(out.sum()) < len(out):
        raise InputError(
            "fit_probe",
            expected=f"samples on both sides of a split that holds out {share}",
            got=f"{int(out.sum())} of {len(out)} rows held out",
            fix="pass one l2, or more samples",
        )
    return out


@dataclass(frozen=True)
class _Problem:
    """The regression in coordinates in which L-BFGS needs few steps; its solution is that of the given columns.

    The columns are centered, which the free bias allows. The coefficients are those along the principal axes, which
    leaves the penalty as it is; they are scaled by the root of the curvature, which along an axis of variance σ² is
    about σ²/k + l2.

    Attributes:
        x: the rows; rotated, if they are few.
        y: the class of each row.
        classes: the number of classes k.
        max_iterations: maximum number of L-BFGS steps.
        center: what was subtracted from the columns.
        axes: the principal axes of the columns; None: the columns themselves.
        variance: of the columns along the axes.
        rotated: whether `x` is along the axes.
    """

    x: Float[Tensor, "n r"]
    y: Int[Tensor, " n"]
    classes: int
    max_iterations: int
    center: Float[Tensor, " d"]
    axes: Float[Tensor, "d r"] | None
    variance: Float[Tensor, " r"]
    rotated: bool

    @staticmethod
    def of(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], classes: int, max_iterations: int) -> _Problem:
        """The regression on rows that are centered in place."""
        center = x.mean(0)
        x.sub_(center)
        if min(x.shape) > LARGEST_ROTATION:
            return _Problem(x, y, classes, max_iterations, center, None, x.square().mean(0), False)
        axes, variance = _principal_axes(x)
        if len(x) < ROWS_A_COLUMN * x.shape[1]:
            return _Problem(x @ axes, y, classes, max_iterations, center, axes, variance, True)
        return _Problem(x, y, classes, max_iterations, center, axes, variance, False)

    def rows(self, keep: Bool[Tensor, " n"]) -> _Problem:
        """The regression on some of the rows, in the same coordinates."""
        return replace(self, x=self.x[keep], y=self.y[keep])

    def top1(self, theta: Float[Tensor, "p k"]) -> float:
        """The share of the rows whose class has the highest logit."""
        return (self.logits(theta).argmax(1) == self.y).double().mean().item()

    def logits(self, theta: Float[Tensor, "p k"]) -> Float[Tensor, "n k"]:
        """The logits of the rows."""
        weight = theta[:-1] if self.axes is None or self.rotated else self.axes @ theta[:-1]
        return torch.addmm(theta[-1], self.x, weight)

    def minimize(self, l2: float, start: Float[Tensor, "p k"], least_change: float = 1e-9) -> Float[Tensor, "p k"]:
        """L-BFGS from `start`, until the loss changes less; the last row of the parameters is the bias."""
        curvature = torch.cat([self.variance / self.classes + l2, self.variance.new_tensor([1 / self.classes])])
        # A column without variance and without penalty has no curvature, and no gradient either.
        scale = curvature.clamp(min=1e-12).rsqrt()[:, None]
        phi = (start / scale).requires_grad_()
        options = {"tolerance_grad": 1e-5, "tolerance_change": least_change, "line_search_fn": "strong_wolfe"}
        optimizer = torch.optim.LBFGS([phi], max_iter=self.max_iterations, **options)  # pyright: ignore

        def closure() -> Float[Tensor, ""]:
            optimizer.zero_grad()
            theta = phi * scale
            loss = torch.nn.functional.cross_entropy(self.logits(theta), self.y) + 0.5 * l2 * theta[:-1].square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        return phi.detach() * scale

    def restore(self, theta: Float[Tensor, "p k"]) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
        """Weight and bias for the columns as they were given."""
        weight = theta[:-1] if self.axes is None else self.axes @ theta[:-1]
        return weight, theta[-1] - self.center @ weight


def _principal_axes(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "d r"], Float[Tensor, " r"]]:
    """Orthonormal axes that span the rows, and the variance along each.

    They are all directions or, of fewer rows than columns, those of the rows.
    """
    n, d = x.shape
    if d <= n:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        return vectors, values.clamp(min=0)
    rows = x.double()  # the eigenvalues are squares, which float32 would cut off
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    kept = values > 1e-12 * values[-1]
    return (rows.T @ (vectors[:, kept] / values[kept].sqrt())).to(x.dtype), (values[kept] / n).to(x.dtype)


def _choose_strength(
    problem: _Problem,
    out: Bool[Tensor, " n"],
    strengths: list[float],
    theta: Float[Tensor, "p k"],
    progress: Progress,
) -> tuple[Float[Tensor, "p k"], float, dict[float, float]]:
    """The parameters and the strength with the best top-1 on held-out rows, and the top-1 of each strength."""
    kept, held_out = problem.rows(~out), problem.rows(out)
    best, chosen, worse = theta, strengths[0], 0
    accuracies: dict[float, float] = {}
    for number, strength in enumerate(strengths):
        theta = kept.minimize(strength, theta, SEARCH_CHANGE)
        progress.advance(number + 1)
        accuracies[strength] = held_out.top1(theta)
        if strength == strengths[0] or accuracies[strength] > accuracies[chosen]:
            best, chosen = theta, strength
        worse = worse + 1 if accuracies[strength] < accuracies[chosen] else 0
        if worse == 2:
            break
    return best, chosen, accuracies


def scaling_statistics(values: Float[Tensor, "n d"], scaling: str) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and scale of each column; a constant column is only centered."""
    if scaling != "standard":
        return torch.zeros_like(values[0]), torch.ones_like(values[0])
    mean, deviation = values.mean(0), values.std(0, correction=0)
    varies = deviation > 1e-6 * mean.abs()  # a smaller deviation is rounding
    return mean, torch.where(varies, deviation, torch.ones_like(deviation))
