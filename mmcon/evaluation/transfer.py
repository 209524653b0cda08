"""Transfer: several methods on many data sets, compared by paired tests over samples, over seeds and over data sets.

    result = compare_transfer("transfer", data=["flowers", "birds"], methods=["supcon", "cross-entropy"])
    print(result.table())

The folder of a data set has one of predictions for each method: `DATA/METHOD/predictions`, or of several seeds
`DATA/METHOD/seed-0/predictions`. Holm's correction is for all data sets, classifiers and pairs together, in each test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from mmcon.errors import InputError
from mmcon.evaluation.comparison import LEVEL, PairedDifference, RunAccuracy, compare_runs
from mmcon.evaluation.statistics import Interval, bootstrap, holm, paired_permutation


@dataclass(frozen=True)
class TransferDifference:
    """The difference of two methods on one data set.

    Attributes:
        data: the name of the data set.
        of_samples: the difference with its tests; `p_corrected` is for all data sets, classifiers and pairs.
        p_seeds_corrected: the p-value of the test over seeds, corrected in the same way; None with fewer than two.
    """

    data: str
    of_samples: PairedDifference
    p_seeds_corrected: float | None = None


@dataclass(frozen=True)
class MeanDifference:
    """The mean difference of two methods over data sets, where each data set counts once.

    Attributes:
        first: a method.
        second: the other.
        metric: the classifier.
        difference: the mean with its bootstrap interval over data sets; of one data set without.
        p_data: p-value of the paired permutation test that exchanges the methods by data set; None of one data set.
        p_corrected: the same after Holm's correction for all pairs and classifiers.
        wins: on how many data sets the first, the second, or none of them is better, by the tests over samples.
    """

    first: str
    second: str
    metric: str
    difference: Interval
    p_data: float | None
    p_corrected: float | None
    wins: tuple[int, int, int]

    @property
    def verdict(self) -> str:
        """The better method over data sets at the level of 5 %, or "not different"."""
        if self.p_corrected is None:
            return "one data set"
        if self.p_corrected >= LEVEL:
            return "not different"
        return f"{self.first if self.difference.value > 0 else self.second} better"


@dataclass(frozen=True)
class TransferResult:
    """Accuracies of methods on data sets, and the differences of all pairs.

    Attributes:
        accuracies: by data set, of each classifier and method.
        differences: of each data set, classifier and pair.
        means: of each classifier and pair, over data sets.
    """

    accuracies: dict[str, tuple[RunAccuracy, ...]]
    differences: tuple[TransferDifference, ...]
    means: tuple[MeanDifference, ...]

    @property
    def methods(self) -> list[str]:
        """The names of the methods."""
        return list(dict.fromkeys(a.run for of in self.accuracies.values() for a in of))

    def table(self) -> str:
        """Accuracies by data set, then what the tests found, as text."""
        width = max(23, *map(len, self.methods))
        names = max(4, *map(len, self.accuracies))
        kinds = max(6, *(len(a.metric) for of in self.accuracies.values() for a in of))
        head = "  ".join(f"{method:{width}}" for method in self.methods)
        lines = ["top-1 [95 % interval]", f"{'data':{names}}  {'metric':{kinds}}  {head}".rstrip()]
        for data, of in self.accuracies.items():
            for metric in dict.fromkeys(a.metric for a in of):
                found = {a.run: str(a.interval) for a in of if a.metric == metric}
                cells = "  ".join(f"{found.get(method, '–'):{width}}" for method in self.methods)
                lines.append(f"{data:{names}}  {metric:{kinds}}  {cells}".rstrip())
        lines += ["", "differences [95 % interval]; p over samples and over seeds, both corrected by Holm"]
        for found in self.differences:
            d, by_seeds = found.of_samples, "–"
            if found.p_seeds_corrected is not None:
                by_seeds = f"{found.p_seeds_corrected:.3f} ({d.seeds} seeds)"
            lines.append(
                f"{found.data:{names}}  {d.metric:{kinds}}  {d.difference!s:26}  {d.p_corrected:.4f}  {by_seeds:15}  "
                f"{d.verdict}: {d.first} − {d.second}"
            )
        lines += ["", f"means over {len(self.accuracies)} data sets; p over data sets, corrected by Holm"]
        for mean in self.means:
            p = "–" if mean.p_corrected is None else f"{mean.p_corrected:.4f}"
            better = f"{mean.wins[0]} better, {mean.wins[1]} worse, {mean.wins[2]} not different"
            lines.append(
                f"{mean.metric:{kinds}}  {mean.difference!s:26}  {p:6}  {mean.verdict}: {mean.first} − {mean.second} "
                f"({better})"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Accuracies, differences and means as plain values."""

        def ends(interval: Interval) -> list[float]:
            return [interval.low, interval.high]

        accuracies = [
            {"data": data, "method": a.run, "metric": a.metric, "top1": a.interval.value, "interval": ends(a.interval)}
            | {"by_seed": a.by_seed, "samples": a.samples}
            for data, of in self.accuracies.items()
            for a in of
        ]
        differences = [
            {"data": found.data, "first": d.first, "second": d.second, "metric": d.metric, "seeds": d.seeds}
            | {"difference": d.difference.value, "interval": ends(d.difference), "p_samples": d.p_samples}
            | {"p_samples_corrected": d.p_corrected, "p_seeds": d.p_seeds}
            | {"p_seeds_corrected": found.p_seeds_corrected, "result": d.verdict}
            for found in self.differences
            for d in [found.of_samples]
        ]
        means = [
            {"first": m.first, "second": m.second, "metric": m.metric, "difference": m.difference.value}
            | {"interval": ends(m.difference), "p_data": m.p_data, "p_corrected": m.p_corrected, "result": m.verdict}
            | {"better_worse_not_different": list(m.wins)}
            for m in self.means
        ]
        return {"accuracies": accuracies, "differences": differences, "means": means}

    def plot(self) -> Any:
        """A figure: the accuracy of each method by data set, an axis for each classifier."""
        from matplotlib.figure import Figure

        data = list(self.accuracies)
        metrics = list(dict.fromkeys(a.metric for of in self.accuracies.values() for a in of))
        figure = Figure(figsize=(4.5 * len(metrics) + 2, 1.5 + 0.6 * len(data)), layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            for number, method in enumerate(self.methods):
                own = [(data.index(name), a) for name, of in self.accuracies.items() for a in of
                       if (a.run, a.metric) == (method, metric)]  # fmt: skip
                y = [row + 0.15 * (number - (len(self.methods) - 1) / 2) for row, _ in own]
                values = [a.interval.value for _, a in own]
                ends = [[a.interval.value - a.interval.low for _, a in own],
                        [a.interval.high - a.interval.value for _, a in own]]  # fmt: skip
                axes.errorbar(values, y, xerr=ends, fmt="o", capsize=3, label=method)
            axes.set(
                yticks=range(len(data)), yticklabels=data, ylim=(len(data) - 0.5, -0.5), xlabel="top-1", title=metric
            )
        figure.axes[0].legend()
        return figure


def compare_transfer(
    folder: str | Path,
    *,
    data: Sequence[str],
    methods: Sequence[str],
    metrics: Sequence[str] = (),
    draws: int = 10_000,
    seed: int = 0,
) -> TransferResult:
    """Compare methods by their predictions in `folder/DATA/METHOD`.

    Args:
        folder: of all predictions.
        data: names of data sets.
        methods: names of methods, two or more.
        metrics: names of classifiers; default: all that every method has on a data set.
        draws: exchanges of a permutation test.
        seed: of the exchanges and the resampling.

    Raises:
        InputError: there are fewer than two methods, or no data set.
        DataError: predictions are missing, or those of a data set are not of the same samples.
    """
    if len(set(methods)) < 2 or not data:
        got = f"{list(methods)} on {list(data)}"
        raise InputError("compare_transfer", expected="two methods or more, and a data set", got=got)
    settings: dict[str, Any] = {"metrics": metrics, "draws": draws, "seed": seed}
    found = {name: compare_runs([Path(folder, name, method) for method in methods], **settings) for name in data}
    pairs = [(name, difference) for name, result in found.items() for difference in result.differences]
    by_samples = holm([d.p_samples for _, d in pairs])
    seeds = [i for i, (_, d) in enumerate(pairs) if d.p_seeds is not None]
    by_seeds = dict(zip(seeds, holm([pairs[i][1].p_seeds or 0.0 for i in seeds]), strict=True))
    differences = tuple(
        TransferDifference(name, replace(d, p_corrected=by_samples[i]), by_seeds.get(i))
        for i, (name, d) in enumerate(pairs)
    )
    accuracies = {name: result.accuracies for name, result in found.items()}
    return TransferResult(accuracies, differences, _means(differences, methods, draws, seed))


def _means(
    differences: Sequence[TransferDifference], methods: Sequence[str], draws: int, seed: int
) -> tuple[MeanDifference, ...]:
    """The mean over data sets of each classifier and pair."""
    means = []
    for metric in dict.fromkeys(found.of_samples.metric for found in differences):
        for first, second in combinations(dict.fromkeys(methods), 2):
            own = [d for found in differences for d in [found.of_samples]
                   if (d.metric, d.first, d.second) == (metric, first, second)]  # fmt: skip
            if not own:
                continue
            values = torch.tensor([d.difference.value for d in own], dtype=torch.float64)
            verdicts = [d.verdict for d in own]
            wins = (
                verdicts.count(f"{first} better"), verdicts.count(f"{second} better"), verdicts.count("not different")
            )  # fmt: skip
            p = paired_permutation(values, torch.zeros_like(values), draws=draws, seed=seed).p_value
            several = len(own) > 1
            value = float(values[0])
            interval = bootstrap(values, seed=seed) if several else Interval(value, value, value, 0.95, 1)
            means.append(MeanDifference(first, second, metric, interval, p if several else None, None, wins))
    tested = [i for i, mean in enumerate(means) if mean.p_data is not None]
    corrected = dict(zip(tested, holm([means[i].p_data or 0.0 for i in tested]), strict=True))
    return tuple(replace(mean, p_corrected=corrected.get(i)) for i, mean in enumerate(means))
