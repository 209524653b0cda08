"""How sure a figure is: intervals for proportions and means, and tests of paired differences.

Every interval and test says what it is over. Items of one clip, speaker or document are not independent: pass `groups`,
and whole groups are resampled or exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats
from torch import Tensor

from mmcon.errors import InputError
from mmcon.random import keys

# Draws times items held at once by the resampling functions.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and its confidence interval.

    Attributes:
        value: the figure itself.
        low: lower end.
        high: upper end.
        level: confidence level.
        n: how many independent units it is over (items, groups or seeds).
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
    """A difference between two systems on the same units, and how likely as large a one is by chance.

    Attributes:
        difference: mean of the first minus mean of the second.
        p_value: two-sided.
        n: how many independent units (items or groups) it is over.
    """

    difference: float
    p_value: float
    n: int


@dataclass(frozen=True)
class Classification:
    """How often a classifier is right on a held-out set.

    Attributes:
        top1: share of items whose best class is the true one.
        top5: share of items whose true class is among the best five (or among all, where there are fewer).
        per_class: by label, the share of that class's items which are right.
        predicted: the label that is given to each item.
        correct: which items are right: what paired tests compare.
    """

    top1: float
    top5: float
    per_class: dict[int, float]
    predicted: Int[Tensor, " n"]
    correct: Bool[Tensor, " n"]

    def interval(self, level: float = 0.95) -> Interval:
        """Wilson's interval of `top1`, over items."""
        return wilson(int(self.correct.sum()), len(self.correct), level=level)


def classify(scores: Float[Tensor, "n k"], labels: Int[Tensor, " n"], classes: Int[Tensor, " k"]) -> Classification:
    """Judge scores of `k` classes against true labels; equal scores go to the class that comes first.

    Args:
        scores: `n k`, higher is likelier.
        labels: `n`, the true labels.
        classes: `k`, the label of each column, ascending.

    Raises:
        InputError: no items, or a label that is none of the classes.
    """
    target = class_indices(labels, classes, where="classify")
    own = scores.gather(1, target[:, None])
    earlier = torch.arange(len(classes), device=scores.device) < target[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(1)
    correct = rank == 0
    seen = {int(label): correct[labels == label].double().mean().item() for label in labels.unique()}
    return Classification(
        top1=correct.double().mean().item(),
        top5=(rank < 5).double().mean().item(),
        per_class=seen,
        predicted=classes[scores.argmax(1)].cpu(),
        correct=correct.cpu(),
    )


def class_indices(labels: Int[Tensor, " n"], classes: Int[Tensor, " k"], *, where: str) -> Int[Tensor, " n"]:
    """The position of each label among the ascending classes; an error where one is missing."""
    if not len(labels):
        raise InputError(where, expected="at least one item", got="none")
    position = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    strange = labels[classes[position] != labels].unique().tolist()
    if strange:
        raise InputError(
            where,
            expected=f"labels among the {len(classes)} of the training set",
            got=f"others: {strange[:5]}",
            fix="take both sets from one source, or drop the items whose class was never trained",
        )
    return position


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), over `n` independent items.

    >>> print(wilson(1738, 2000))
    0.869 [0.854, 0.883]
    """
    if not 0 <= successes <= n or n == 0:
        raise InputError("wilson", expected="0 <= successes <= n and n > 0", got=f"successes={successes}, n={n}")
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
    """Percentile bootstrap interval of a mean (Efron 1979), over items or over whole groups of them.

    Args:
        values: `n`, a number or a truth value an item.
        groups: `n`, the group of each item; whole groups are then drawn with replacement.
        level: confidence level.
        draws: how many resamples.
        seed: the key's seed; the same seed gives the same interval.
    """
    totals, counts = _by_group(values, groups, "bootstrap")
    n = len(totals)
    means = []
    for chunk in torch.arange(draws).split(max(1, _BLOCK // n)):
        rows = keys(seed=seed, sample=chunk).integers("bootstrap", 0, n, shape=(n,))
        means.append(totals[rows].sum(1) / counts[rows].sum(1))
    ends = torch.quantile(torch.cat(means), torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(float(totals.sum() / counts.sum()), float(ends[0]), float(ends[1]), level, n)


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student's interval of a mean over independent runs, such as seeds (at least two)."""
    n = len(values)
    if n < 2:
        raise InputError("t_interval", expected="at least two runs", got=f"{n}", fix="repeat with other seeds")
    numbers = torch.tensor(values, dtype=torch.float64)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(numbers.std()) / n**0.5
    mean = float(numbers.mean())
    return Interval(mean, mean - half, mean + half, level, n)


def mcnemar(first: Bool[Tensor, " n"], second: Bool[Tensor, " n"]) -> PairedTest:
    """Exact test of McNemar (1947): do two classifiers err equally often on the same items?

    Args:
        first: `n`, which items the first gets right.
        second: `n`, which items the second gets right.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return PairedTest((only_first - only_second) / len(first), float(p), len(first))


def paired_permutation(
    first: Shaped[Tensor, " n"],
    second: Shaped[Tensor, " n"],
    *,
    groups: Int[Tensor, " n"] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Test a mean paired difference by exchanging the two systems, item by item or group by group.

    All 2^m exchanges of the m units that differ are counted where they are no more than `draws`; else random ones,
    with the observed one among them, so that p is never 0 (Phipson and Smyth 2010).

    Args:
        first: `n`, a number or a truth value an item, of the first system.
        second: `n`, of the second system, on the same items.
        groups: `n`, the group of each item; the items of a group are then exchanged together.
        draws: how many exchanges.
        seed: the key's seed.
    """
    totals, _ = _by_group(first.double() - second.double(), groups, "paired_permutation")
    differing = totals[totals != 0]
    observed = differing.sum().abs()
    # Sums that differ by rounding alone are ties.
    bar = observed - 1e-12 * differing.abs().sum()
    m = len(differing)
    exact = 2**m <= draws
    count = 2**m if exact else draws
    extreme = 0
    for chunk in torch.arange(count).split(max(1, _BLOCK // max(m, 1))):
        if exact:
            flipped = (chunk[:, None] >> torch.arange(m)) & 1
        else:
            flipped = keys(seed=seed, sample=chunk).integers("exchange", 0, 2, shape=(m,))
        extreme += int((((1 - 2 * flipped).double() @ differing).abs() >= bar).sum())
    p = extreme / count if exact else (extreme + 1) / (count + 1)
    return PairedTest(float(totals.sum()) / len(first), p, len(totals))


def _by_group(
    values: Shaped[Tensor, " n"], groups: Int[Tensor, " n"] | None, where: str
) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"]]:
    """Sums and counts of the independent units: of each group, or of each item."""
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
