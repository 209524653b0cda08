"""Confidence intervals of proportions and means, tests of paired differences, and classification accuracy.

Items of one clip, speaker or document are not independent: pass `groups`, and whole groups are resampled or exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import keys

# Resamples times units in memory at once: 32 MB in float64.
_BLOCK_SIZE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        level: confidence level.
        n: number of independent units (items, groups or seeds).
    """

    value: float
    low: float
    high: float
    level: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class PairedTest:
    """The difference between two systems on the same units, and its p-value under no difference.

    Attributes:
        difference: mean of the first minus mean of the second.
        p_value: two-sided.
        n: number of independent units (items or groups).
    """

    difference: float
    p_value: float
    n: int


@dataclass(frozen=True)
class Classification:
    """The accuracy of a classifier on a test set.

    Attributes:
        top1: share of items whose class of highest score is the true one.
        top5: share of items whose true class is among the five of highest score (of fewer classes: 1).
        per_class: by label, the top-1 accuracy on the items of that class.
        predicted: the predicted label of each item.
        correct: whether the prediction of each item is correct; paired tests compare these.
    """

    top1: float
    top5: float
    per_class: dict[int, float]
    predicted: Int[Tensor, " n"]
    correct: Bool[Tensor, " n"]

    def interval(self, level: float = 0.95) -> Interval:
        """Wilson's interval of `top1` over items."""
        return wilson(int(self.correct.sum()), len(self.correct), level=level)


def classify(scores: Float[Tensor, "n k"], labels: Int[Tensor, " n"], classes: Int[Tensor, " k"]) -> Classification:
    """Compare the scores of `k` classes with true labels; among equal scores the first class is predicted.

    Args:
        scores: higher is likelier.
        labels: the true labels.
        classes: the label of each column, ascending.

    Raises:
        InputError: there are no items, or a label is not among the classes.
    """
    target = class_indices(labels, classes, where="classify")
    own = scores.gather(1, target[:, None])
    earlier = torch.arange(len(classes), device=scores.device) < target[:, None]
    # Ties are broken by the order of classes, so that a constant score is correct for one class only.
    rank = ((scores > own) | ((scores == own) & earlier)).sum(1)
    correct = rank == 0
    per_class = {int(label): correct[labels == label].double().mean().item() for label in labels.unique()}
    return Classification(
        top1=correct.double().mean().item(),
        top5=(rank < 5).double().mean().item(),
        per_class=per_class,
        predicted=classes[scores.argmax(1)].cpu(),
        correct=correct.cpu(),
    )


def class_indices(labels: Int[Tensor, " n"], classes: Int[Tensor, " k"], *, where: str) -> Int[Tensor, " n"]:
    """The index of each label among the ascending classes.

    Raises:
        InputError: there are no labels, or a label is not among the classes.
    """
    if not len(labels):
        raise InputError(where, expected="at least one item", got="none")
    index = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    unknown = labels[classes[index] != labels].unique().tolist()
    if unknown:
        raise InputError(
            where,
            expected=f"labels among the {len(classes)} of the training set",
            got=f"others: {unknown[:5]}",
            fix="take both sets from one source, or drop the items whose class is not in the training set",
        )
    return index


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), over `n` independent items.

    >>> print(wilson(1738, 2000))
    0.869 [0.854, 0.883]
    """
    if not 0 <= successes <= n or n == 0:
        raise InputError("wilson", expected="0 <= successes <= n and n > 0", got=f"successes={successes}, n={n}")
    from scipy import stats  # imported late: it takes as long as half of torch

    ends = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(ends.low), float(ends.high), level, n)


def bootstrap(
    values: Shaped[Tensor, " n"],
    *,
    groups: Int[Tensor, " n"] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean (Efron 1979), over items or over groups of items.

    Args:
        values: a number or a boolean for each item.
        groups: the group of each item; whole groups are then resampled.
        level: confidence level.
        draws: number of resamples.
        seed: seed of the resampling; the same seed gives the same interval.
    """
    totals, counts = _sums_by_unit(values, groups, "bootstrap")
    n = len(totals)
    means = []
    for chunk in torch.arange(draws).split(max(1, _BLOCK_SIZE // n)):
        rows = keys(seed=seed, sample=chunk).integers("bootstrap", 0, n, shape=(n,))
        means.append(totals[rows].sum(1) / counts[rows].sum(1))
    # Percentiles of the resampled means, not ± a deviation: proportions near 0 or 1 have skewed distributions.
    ends = torch.quantile(torch.cat(means), torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(float(totals.sum() / counts.sum()), float(ends[0]), float(ends[1]), level, n)


def t_interval(values: Sequence[float], *, level: float = 0.95, shares: bool = False) -> Interval:
    """Student's t interval of a mean over at least two independent runs, such as seeds.

    Args:
        values: one a run.
        level: of confidence.
        shares: whether values are in [0, 1], as accuracies are; the ends then are too.
    """
    n = len(values)
    if n < 2:
        raise InputError("t_interval", expected="at least two runs", got=f"{n}", fix="repeat with other seeds")
    numbers = torch.tensor(values, dtype=torch.float64)
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(numbers.std()) / n**0.5
    mean = float(numbers.mean())
    low, high = mean - half, mean + half
    return Interval(mean, max(low, 0.0) if shares else low, min(high, 1.0) if shares else high, level, n)


def mcnemar(first: Bool[Tensor, " n"], second: Bool[Tensor, " n"]) -> PairedTest:
    """Exact McNemar test (1947) that two classifiers have equal accuracy on the same items.

    Args:
        first: whether the first classifier is correct, by item.
        second: whether the second classifier is correct, by item.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    from scipy import stats

    p = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return PairedTest((only_first - only_second) / len(first), float(p), len(first))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): p-values for which the chance of any false finding among all of them is at most α.

    The i-th smallest of m, counted from 0, is multiplied by m − i; then none is below a smaller one, and none above 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = highest
    return corrected


def paired_permutation(
    first: Shaped[Tensor, " n"],
    second: Shaped[Tensor, " n"],
    *,
    groups: Int[Tensor, " n"] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Permutation test of a mean paired difference: the two systems are exchanged by item, or by group.

    If the m units that differ have at most `draws` exchanges (2^m), all are counted. Otherwise `draws` random exchanges
    are counted together with the observed one, so that p is never 0 (Phipson and Smyth 2010).

    Args:
        first: a number or a boolean for each item, of the first system.
        second: those of the second system on the same items.
        groups: the group of each item; the items of a group are then exchanged together.
        draws: number of random exchanges.
        seed: seed of the exchanges.
    """
    totals, _ = _sums_by_unit(first.double() - second.double(), groups, "paired_permutation")
    differing = totals[totals != 0]
    observed = differing.sum().abs()
    # Sums that differ by rounding only are ties.
    threshold = observed - 1e-12 * differing.abs().sum()
    m = len(differing)
    exact = 2**m <= draws
    count = 2**m if exact else draws
    extreme = 0
    for chunk in torch.arange(count).split(max(1, _BLOCK_SIZE // max(m, 1))):
        if exact:
            # The bits of a number from 0 to 2^m - 1 are one exchange each, so that all are counted once.
            flipped = (chunk[:, None] >> torch.arange(m)) & 1
        else:
            flipped = keys(seed=seed, sample=chunk).integers("exchange", 0, 2, shape=(m,))
        extreme += int((((1 - 2 * flipped).double() @ differing).abs() >= threshold).sum())
    p = extreme / count if exact else (extreme + 1) / (count + 1)
    return PairedTest(float(totals.sum()) / len(first), p, len(totals))


def _sums_by_unit(
    values: Shaped[Tensor, " n"], groups: Int[Tensor, " n"] | None, where: str
) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"]]:
    """Sum and count of each independent unit: of each group, or of each item."""
    if not len(values):
        raise InputError(where, expected="at least one value", got="none")
    numbers = values.detach().cpu().double()
    if groups is None:
        return numbers, torch.ones_like(numbers)
    distinct, member = groups.cpu().unique(return_inverse=True)
    if len(distinct) < 2:
        raise InputError(where, expected="at least two groups", got="one", fix="an interval over groups needs several")
    zeros = torch.zeros(len(distinct), dtype=torch.float64)
    return zeros.index_add(0, member, numbers), zeros.index_add(0, member, torch.ones_like(numbers))
