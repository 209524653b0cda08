"""Temperature and batch size: tables, the tests between their values, and a picture."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure

from evidence.comparisons import (
    DASH,
    SAME,
    Finding,
    Section,
    accuracy_differences,
    accuracy_tests,
    cell,
    finding,
    seed_findings,
    table,
)
from evidence.runs import OWN, ROOT, TITLES, Results, Runs, common_seeds, linear_probe, mean, runs_of
from mmcon.evaluation.statistics import t_interval

FIGURE = ROOT / "docs" / "figures" / "sweeps.svg"
#: Of each sweep: the title, the values of the setting, and the methods that have it.
SWEEPS = {
    "temperature": ("Temperature", ("0.02", "0.05", "0.1", "0.2"), ("supcon", "supcon-in", "simclr")),
    "batch-size": ("Batch size", ("16", "64", "256"), tuple(TITLES)),
}
#: The values of the other studies.
PLAIN = {"temperature": "0.1", "batch-size": "64"}

SWEEP = """The runs and their rates are those above, but for the one setting. The rate was searched at temperature .1
and batches of 64, with the same budget for all methods; at other batch sizes it follows the root of the batch size. The
passes are the same, so a larger batch has fewer steps. A star marks a value that differs from .1, or from 64, by paired
permutations over the test images, for the seeds that both have, with Holm's correction for all values of a table: it
says nothing of other seeds, whose intervals are wide. "Best less worst" is the mean over seeds; a figure without an
interval is of one seed. The picture has the seeds that all values of a method have. The same for any data, method and
setting: [`recipes/stability.py`](stability.md).

![Linear probe by temperature and by batch size](figures/sweeps.svg)"""

BATCHES = """SupCon against cross-entropy at the other batch sizes; at 64, the first table of tests has it."""


def sweep_of(results: Results, group: str, method: str) -> dict[str, Runs]:
    """The runs of a method by the value of a setting; those at the value of the other studies are the main ones."""
    values = SWEEPS[group][1]
    main = runs_of(results, "main", method)
    return {v: main if v == PLAIN[group] else runs_of(results, group, f"{method}-{v}") for v in values}


def by_seed(of: Mapping[str, Runs]) -> dict[int, list[float]]:
    """The accuracies at all values of a setting, by seed that every value has."""
    return {seed: [runs[seed]["linear_probe"] for runs in of.values()] for seed in common_seeds(*of.values())}


def spreads(of: Mapping[str, Runs]) -> dict[int, float]:
    """By seed that every value has, the best accuracy less the worst."""
    return {seed: max(found) - min(found) for seed, found in by_seed(of).items()}


def sweep_section(results: Results, group: str) -> Section:
    """A table of accuracies by the value of one setting, and which values differ from that of the other studies."""
    title, values, methods = SWEEPS[group]
    found, plain = {method: sweep_of(results, group, method) for method in methods}, PLAIN[group]
    pairs = {
        f"{method} {value}": (runs, of[plain])
        for method, of in found.items()
        for value, runs in of.items()
        if value != plain
    }
    verdicts = {name: test.result for name, test in accuracy_tests(pairs).items()}
    rows, findings, own = [], list[Finding](), spreads(found[OWN])
    for method, of in found.items():
        stars = {value: "" if verdicts.get(f"{method} {value}", SAME) == SAME else " *" for value in of}
        cells = [cell(runs, linear_probe) + stars[value] for value, runs in of.items()]
        spread = spreads(of)
        several = str(t_interval([*spread.values()], shares=True)) if len(spread) > 1 else DASH
        rows.append([TITLES[method], *cells, several])
        if method != OWN:
            text = f"{title.lower()}, best less worst, {TITLES[OWN]} and {TITLES[method]}"
            findings += seed_findings(text, own, spread, float, higher=False)
    return [f"### {title}", table(["linear probe", *values, "best less worst"], rows)], findings


def batch_size_tests(results: Results) -> Section:
    """SupCon (out) against cross-entropy at each batch size but that of the main runs, whose table has it."""
    own, other = (sweep_of(results, "batch-size", method) for method in (OWN, "cross-entropy"))
    names = f"{TITLES[OWN]} and {TITLES['cross-entropy']}"
    pairs = {f"batches of {v}, {names}": (own[v], other[v]) for v in own if v != PLAIN["batch-size"]}
    tests, verdicts = accuracy_differences(pairs)
    return [BATCHES, tests], [finding(name, result) for name, result in verdicts.items()]


def sweeps_section(results: Results) -> Section:
    """Both sweeps."""
    sections = [*(sweep_section(results, group) for group in SWEEPS), batch_size_tests(results)]
    parts = ["## Temperature and batch size", SWEEP, *(part for of, _ in sections for part in of)]
    return parts, [one for _, found in sections for one in found]


def sweep_figure(results: Results) -> Figure:
    """The means by temperature and by batch size over the seeds that every value has, and each seed as a point."""
    drawn = Figure(figsize=(9, 3.8), layout="constrained")
    every = drawn.subplots(1, len(SWEEPS), sharey=True)
    for axes, (group, (title, values, methods)) in zip(every, SWEEPS.items(), strict=True):
        for method in methods:
            seeds = [*by_seed(sweep_of(results, group, method)).values()]
            accuracies = {float(v): list(found) for v, found in zip(values, zip(*seeds, strict=True), strict=False)}
            color = f"C{[*TITLES].index(method)}"
            axes.plot([*accuracies], [*map(mean, accuracies.values())], "o-", color=color, label=TITLES[method])
            for at, own in accuracies.items():
                axes.scatter([at] * len(own), own, s=8, alpha=0.4, color=color)
        axes.set(xscale="log", xlabel=title.lower())
        axes.set_xticks([*map(float, values)], values)
        axes.minorticks_off()
    every[0].set(ylabel="linear probe")
    drawn.legend(*every[-1].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return drawn


def write_figure(results: Results) -> None:
    """The picture of both sweeps; equal files make an equal picture."""
    matplotlib.rcParams["svg.hashsalt"] = "mmcon"
    matplotlib.rcParams["svg.fonttype"] = "none"
    sweep_figure(results).savefig(FIGURE, format="svg", metadata={"Date": None})
