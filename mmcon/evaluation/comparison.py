"""Comparison of runs on the same held-out samples: intervals, and paired tests with a correction for their number.

    result = compare_runs(["runs/supcon", "runs/cross_entropy"])
    print(result.table())

A run of several seeds (folders `seed-0`, `seed-1`, …) counts with all of them. The test over samples exchanges the two
runs sample by sample: it answers for these trained models on other samples. The test over seeds exchanges them seed by
seed: it answers for other trainings, and needs six seeds to find anything at the level of 5 %. "Not different" means
that no difference was found, not that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.batch import Index
from mmcon.errors import DataError, InputError
from mmcon.evaluation.saved_predictions import FOLDER, read_predictions
from mmcon.evaluation.statistics import Interval, bootstrap, holm, paired_permutation, t_interval, wilson

LEVEL = 0.05
#: With fewer exchanges, p-values near the level of 5 % are too coarse.
FEWEST_DRAWS = 1000


@dataclass(frozen=True)
class RunAccuracy:
    """The accuracy of a run by one metric.

    Attributes:
        run: the name of the run.
        metric: the name of the classifier.
        by_seed: the accuracy of each seed; of one training under "".
        interval: Wilson's over samples or, of several seeds, Student's over seeds; 95 %.
        samples: the number of held-out samples.
    """

    run: str
    metric: str
    by_seed: dict[str, float]
    interval: Interval
    samples: int


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two runs by one metric.

    Attributes:
        first: the name of a run.
        second: the name of the other.
        metric: the name of the classifier.
        difference: accuracy of the first minus that of the second, with its 95 % bootstrap interval over samples.
        p_samples: p-value of the paired permutation test over samples.
        p_corrected: the same after Holm's correction for all pairs and metrics.
        p_seeds: p-value of the paired permutation test over the seeds of both; None with fewer than two.
        seeds: the number of seeds of both.
    """

    first: str
    second: str
    metric: str
    difference: Interval
    p_samples: float
    p_corrected: float
    p_seeds: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """The better run, or "not different", by the corrected test over samples at the level of 5 %."""
        if self.p_corrected >= LEVEL:
            return "not different"
        return f"{self.first if self.difference.value > 0 else self.second} better"


@dataclass(frozen=True)
class ComparisonResult:
    """Accuracies of several runs, and the differences of all pairs.

    Attributes:
        accuracies: of each metric and run.
        differences: of each metric and pair.
        folders: by run, the folders of the predictions that were read.
    """

    accuracies: tuple[RunAccuracy, ...]
    differences: tuple[PairedDifference, ...]
    folders: dict[str, tuple[str, ...]]

    def table(self) -> str:
        """The accuracies and the differences as text."""
        width = max(len(a.run) for a in self.accuracies)
        names = max(len(a.metric) for a in self.accuracies)
        lines = [f"{'metric':{names}}  {'run':{width}}  top-1 [95 % interval]  seeds  samples"]
        for a in self.accuracies:
            lines.append(f"{a.metric:{names}}  {a.run:{width}}  {a.interval!s:21}  {len(a.by_seed):5}  {a.samples:7,}")
        lines += ["", f"{'metric':{names}}  difference [95 % interval]  p      corrected  over seeds  result"]
        for d in self.differences:
            seeds = "–" if d.p_seeds is None else f"{d.p_seeds:.3f} ({d.seeds})"
            pair = f"{d.verdict}: {d.first} − {d.second}"
            lines.append(
                f"{d.metric:{names}}  {d.difference!s:26}  {d.p_samples:.4f} {d.p_corrected:.4f}     {seeds:10}  {pair}"
            )
        lines.append(
            f"paired permutation tests over samples, corrected by Holm for {len(self.differences)} comparisons"
        )
        seeds = max((d.seeds for d in self.differences if d.p_seeds is not None), default=0)
        if seeds:
            lines.append(f"a test over {seeds} seeds cannot give less than p = {2 / 2**seeds:.3g}")
        lines += [f"{run}: predictions in {', '.join(read)}" for run, read in self.folders.items()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The accuracies and the differences as plain values."""

        def ends(interval: Interval) -> list[float]:
            return [interval.low, interval.high]

        accuracies = [
            {"run": a.run, "metric": a.metric, "top1": a.interval.value, "interval": ends(a.interval)}
            | {"by_seed": a.by_seed, "samples": a.samples}
            for a in self.accuracies
        ]
        differences = [
            {"first": d.first, "second": d.second, "metric": d.metric, "difference": d.difference.value}
            | {"interval": ends(d.difference), "p_samples": d.p_samples, "p_corrected": d.p_corrected}
            | {"p_seeds": d.p_seeds, "seeds": d.seeds, "result": d.verdict}
            for d in self.differences
        ]
        folders = {run: list(read) for run, read in self.folders.items()}
        return {"accuracies": accuracies, "differences": differences, "predictions": folders}

    def plot(self) -> Any:
        """A figure: the accuracy of each run with its interval, an axis for each metric."""
        from matplotlib.figure import Figure

        metrics = list(dict.fromkeys(a.metric for a in self.accuracies))
        runs = list(dict.fromkeys(a.run for a in self.accuracies))
        size = (4 * len(metrics) + 2, 1 + 0.4 * len(runs))
        figure = Figure(figsize=size, layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            for a in self.accuracies:
                if a.metric == metric:
                    y, i = runs.index(a.run), a.interval
                    axes.errorbar(
                        i.value, y, xerr=[[i.value - i.low], [i.high - i.value]], fmt="o", capsize=3, color="C0"
                    )
                    axes.scatter([*a.by_seed.values()], [y] * len(a.by_seed), s=8, color="gray", zorder=3)
            axes.set(
                yticks=range(len(runs)), yticklabels=runs, xlabel="top-1", title=metric, ylim=(len(runs) - 0.5, -0.5)
            )
        return figure


def compare_runs(
    folders: Sequence[str | Path], *, metrics: Sequence[str] = (), draws: int = 10_000, seed: int = 0
) -> ComparisonResult:
    """Compare runs by the predictions that their recipes, or `mmcon evaluate`, saved.

    Args:
        folders: run folders, folders of several seeds, or folders of evaluations; at least two.
        metrics: names of classifiers; default: all that every run has.
        draws: exchanges of a permutation test, 1,000 or more.
        seed: of the exchanges and the resampling.

    Raises:
        InputError: there are fewer than two runs or too few draws, or a metric is not in all runs.
        DataError: a folder has no predictions, or the runs were not evaluated on the same samples and labels.
    """
    if len(folders) < 2:
        raise InputError("compare", expected="two runs or more", got=str(len(folders)))
    if draws < FEWEST_DRAWS:
        raise InputError("compare, draws", expected=f"{FEWEST_DRAWS:,} exchanges or more", got=str(draws))
    runs = {name: _seeds_of(Path(folder)) for name, folder in zip(distinct_names(folders), folders, strict=True)}
    shared = [m for m in _metrics(next(iter(runs.values()))) if all(m in _metrics(seeds) for seeds in runs.values())]
    unknown = [metric for metric in metrics if metric not in shared]
    if unknown or not shared:
        got = f"{unknown or 'no metric'} in all of {list(runs)}"
        fix = "mmcon evaluate RUN --data DATA, with the same data, for each"
        raise InputError("compare", expected=f"metrics among {shared}", got=got, fix=fix)
    accuracies, differences = [], []
    for metric in metrics or shared:
        of_run = {name: {s: tables[metric] for s, tables in seeds.items()} for name, seeds in runs.items()}
        _check_same_samples(metric, of_run)
        correct = {name: _correct(tables) for name, tables in of_run.items()}
        accuracies += [_accuracy(name, metric, list(of_run[name]), rows) for name, rows in correct.items()]
        differences += [
            _difference(metric, (a, correct[a], list(of_run[a])), (b, correct[b], list(of_run[b])), draws, seed)
            for a, b in combinations(correct, 2)
        ]
    corrected = holm([d.p_samples for d in differences])
    paired = zip(differences, corrected, strict=True)
    read = {name: _folders_of(Path(folder)) for name, folder in zip(runs, folders, strict=True)}
    return ComparisonResult(tuple(accuracies), tuple(replace(d, p_corrected=p) for d, p in paired), read)


def distinct_names(folders: Sequence[str | Path]) -> list[str]:
    """The last parts of paths that tell them apart.

    >>> distinct_names(["a/runs/supcon", "b/runs/simclr"])
    ['supcon', 'simclr']

    Raises:
        InputError: two paths are the same.
    """
    parts = [Path(folder).resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("compare", expected="different runs", got=str([str(folder) for folder in folders]))


def _seeds_of(folder: Path) -> dict[str, dict[str, Index]]:
    """By seed, the predictions of a run by metric; a run of one training has the seed "".

    Those of `mmcon evaluate` come before those that the recipe saved, since they may be of other data.
    """
    single = read_predictions(folder) | read_predictions(folder / "evaluation")
    if single:
        return {"": single}
    seeds = {path.name.removeprefix("seed-"): _seeds_of(path)[""] for path in sorted(folder.glob("seed-*"))}
    if not seeds:
        fix = f"mmcon evaluate {folder} --data DATA" if folder.is_dir() else "check the path"
        raise DataError(str(folder), expected="a run with predictions/*.parquet", got="none", fix=fix)
    return seeds


def _folders_of(folder: Path) -> tuple[str, ...]:
    """The folders that `_seeds_of` read, the first of which is taken where both have a metric."""
    of_run = [path for path in (folder / "evaluation" / FOLDER, folder / FOLDER) if path.is_dir()]
    return tuple(map(str, of_run or sorted(folder.glob(f"seed-*/**/{FOLDER}"))))


def _metrics(seeds: dict[str, dict[str, Index]]) -> list[str]:
    """The metrics that all seeds of a run have."""
    first, *others = seeds.values()
    return [metric for metric in first if all(metric in other for other in others)]


def _check_same_samples(metric: str, of_run: dict[str, dict[str, Index]]) -> None:
    tables = {f"{run} {seed}".strip(): table for run, seeds in of_run.items() for seed, table in seeds.items()}
    (name, (first, labels)), *others = ((name, _by_sample(table, "label")) for name, table in tables.items())
    fix = "evaluate both on the same data: mmcon evaluate RUN --data DATA --output FOLDER, and compare these"
    for other, (samples, own) in others:
        if not torch.equal(first, samples):
            shared = int(torch.isin(first, samples).sum())
            expected = f"the {len(first):,} held-out samples of {name}"
            got = f"{len(samples):,} samples of {other}, of which {shared:,} are the same"
            raise DataError(f"compare {metric}", expected=expected, got=got, fix=fix)
        if not torch.equal(labels, own):
            got = f"other labels of {int((labels != own).sum()):,} of {len(own):,} samples of {other}"
            raise DataError(f"compare {metric}", expected=f"the labels of {name}", got=got, fix=fix)


def _by_sample(table: Index, column: str) -> tuple[Int[Tensor, " n"], Shaped[Tensor, " n"]]:
    """The ids of the samples, ascending, and a column in their order."""
    samples, order = table["sample"].sort()
    return samples, table[column][order]


def _correct(tables: dict[str, Index]) -> Float[Tensor, "seeds n"]:
    """Whether each sample is predicted correctly, by seed, in the order of the samples' ids."""
    return torch.stack([_by_sample(table, "correct")[1].double() for table in tables.values()])


def _accuracy(run: str, metric: str, seeds: list[str], correct: Float[Tensor, "seeds n"]) -> RunAccuracy:
    values, n = correct.mean(1).tolist(), correct.shape[1]
    interval = wilson(int(correct.sum()), n) if len(values) == 1 else t_interval(values, shares=True)
    return RunAccuracy(run, metric, dict(zip(seeds, values, strict=True)), interval, n)


def _difference(
    metric: str,
    first: tuple[str, Float[Tensor, "s n"], list[str]],
    second: tuple[str, Float[Tensor, "z n"], list[str]],
    draws: int,
    seed: int,
) -> PairedDifference:
    (a, x, of_a), (b, y, of_b) = first, second
    test = paired_permutation(x.mean(0), y.mean(0), draws=draws, seed=seed)
    interval = bootstrap(x.mean(0) - y.mean(0), seed=seed)
    both = [s for s in of_a if s in of_b]
    p_seeds = None
    if len(both) > 1:
        by_seed = (torch.stack([rows[of.index(s)].mean() for s in both]) for rows, of in ((x, of_a), (y, of_b)))
        p_seeds = paired_permutation(*by_seed, draws=draws, seed=seed).p_value
    return PairedDifference(a, b, metric, interval, test.p_value, test.p_value, p_seeds, len(both))
