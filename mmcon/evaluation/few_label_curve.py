"""Accuracy with few labels: a probe on stratified subsets of the training features, several draws of each size.

    print(few_label_curve(train, test).table())

Only the labels of the probe are scarce: the encoder may have been trained with all of them. Labels are scarce for the
training itself under the flags `--label-fraction` and `--labels-per-class` of the recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmcon.errors import InputError
from mmcon.evaluation.evaluation_list import EvaluationInput, number_option
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import LinearProbe, fit_probe
from mmcon.evaluation.statistics import Interval, t_interval
from mmcon.sources.few_labels import stratified_rows
from mmcon.training.progress import Progress

SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
PER_CLASS = (1, 5, 10)
#: With fewer labels a class, or fewer in all, none are held out to choose the L2 strength.
FEWEST_A_CLASS, FEWEST = 5, 50
FIXED_STRENGTH = 0.01


@dataclass(frozen=True)
class LabelBudget:
    """The accuracy with a number of labels.

    Attributes:
        name: the budget, such as "1 %" or "5 a class".
        labels: the number of labeled samples.
        top1: the top-1 accuracy of each draw.
        top5: the top-5 accuracy of each draw.
    """

    name: str
    labels: int
    top1: tuple[float, ...]
    top5: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean top-1 over the draws."""
        return sum(self.top1) / len(self.top1)

    @property
    def interval(self) -> Interval | None:
        """Student's 95 % interval of the mean over draws; None for one draw."""
        return t_interval(self.top1, shares=True) if len(self.top1) > 1 else None


@dataclass(frozen=True)
class FewLabelResult:
    """Accuracies by number of labels, ascending.

    Attributes:
        budgets: the accuracies of each budget.
        classes: the number of classes.
        samples: the number of held-out samples.
    """

    budgets: tuple[LabelBudget, ...]
    classes: int
    samples: int

    def table(self) -> str:
        """The accuracies as text."""
        lines = [
            f"linear probe with few labels, on {self.samples:,} held-out samples of {self.classes} classes",
            f"{'labels':>10}  {'number':>8}  draws  top-1 [95 % interval over draws]  top-5",
        ]
        for budget in self.budgets:
            top1 = str(budget.interval) if budget.interval else f"{budget.mean:.3f}"
            top5 = f"{sum(budget.top5) / len(budget.top5):.3f}"
            lines.append(f"{budget.name:>10}  {budget.labels:8,}  {len(budget.top1):5}  {top1:32}  {top5}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The accuracies as plain values."""

        def plain(budget: LabelBudget) -> dict[str, Any]:
            ends = {} if budget.interval is None else {"interval": [budget.interval.low, budget.interval.high]}
            draws = {"top1_by_draw": list(budget.top1), "top5_by_draw": list(budget.top5)}
            return {"labels": budget.labels, "top1": budget.mean, **ends, **draws}

        budgets = {budget.name: plain(budget) for budget in self.budgets}
        return {"classes": self.classes, "samples": self.samples, "budgets": budgets}

    def plot(self) -> Any:
        """A figure: top-1 over the number of labels, with the lowest and the highest draw."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        labels, means = [b.labels for b in self.budgets], [b.mean for b in self.budgets]
        axes.fill_between(labels, [min(b.top1) for b in self.budgets], [max(b.top1) for b in self.budgets], alpha=0.25)
        axes.plot(labels, means, marker="o", label="linear probe")
        axes.axhline(1 / self.classes, color="gray", linestyle="--", linewidth=1, label="chance")
        axes.set(xscale="log", xlabel="labeled samples", ylabel="top-1", ylim=(0, 1), title="few labels")
        axes.legend()
        return figure


def few_label_curve(
    train: Features,
    test: Features,
    *,
    shares: Sequence[float] = SHARES,
    per_class: Sequence[int] = PER_CLASS,
    draws: int = 3,
    seed: int = 0,
) -> FewLabelResult:
    """Fit a linear probe on subsets of the training features with the same share, or number, of every class.

    A draw is a keyed order of the samples: its larger subsets contain its smaller ones. Budgets that reach all labels
    have one draw. The L2 strength is chosen by held-out labels of the subset itself; with fewer than 5 labels a class,
    or 50 in all, it is 0.01.

    Args:
        train: labeled features.
        test: held-out labeled features.
        shares: fractions of each class, at least one sample.
        per_class: numbers of samples of each class.
        draws: subsets of each size.
        seed: the seed of the first draw; the others follow it.

    Raises:
        InputError: a share is not in (0, 1], a number is below 1, or there are no draws.
    """
    named: list[tuple[str, dict[str, Any]]] = [(f"{100 * share:g} %", {"share": share}) for share in shares]
    named += [(f"{number} a class", {"per_class": number}) for number in per_class]
    if draws < 1 or not named:
        raise InputError("few_label_curve", expected="a budget and a draw", got=f"{len(named)} budgets, {draws} draws")
    classes = len(train.labels.unique())
    budgets = []
    with Progress("few labels, probe", len(named) * draws) as progress:
        for name, budget in named:
            top1, top5, count = [], [], 0
            for draw in range(draws):
                rows = stratified_rows(train.labels, seed=seed + draw, **budget)
                probe = _fit(train.take(rows), classes)
                found = probe.evaluate(test)
                top1, top5, count = [*top1, found.top1], [*top5, found.top5], len(rows)
                progress.advance(progress.done + 1)
                if count == len(train):
                    break
            budgets.append(LabelBudget(name, count, tuple(top1), tuple(top5)))
    return FewLabelResult(tuple(sorted(budgets, key=lambda budget: budget.labels)), classes, len(test))


def _fit(few: Features, classes: int) -> LinearProbe:
    """A probe on a subset; its own labels choose the strength if there are enough of them."""
    return fit_probe(few) if len(few) >= max(FEWEST, FEWEST_A_CLASS * classes) else fit_probe(few, l2=FIXED_STRENGTH)


def evaluate_few_labels(given: EvaluationInput) -> FewLabelResult:
    """The curve, by the option `draws` (3)."""
    draws = number_option(given.options, "draws", 3, lowest=1)
    return few_label_curve(given.train, given.test, draws=draws, seed=given.seed)
