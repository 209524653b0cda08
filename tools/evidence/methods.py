"""The methods under one budget: accuracy, few labels, corruptions, perturbations, outliers; and larger budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from evidence.comparisons import (
    DASH,
    Finding,
    Section,
    accuracy_differences,
    cell,
    finding,
    seed_findings,
    table,
)
from evidence.runs import OWN, THREE, TITLES, NumberOf, Results, Runs, k_nn, linear_probe, mean, runs_of

LARGER = {
    "pixels-28": (
        "Fashion-MNIST at 28 pixels",
        "300 images a class at 28 × 28 pixels, 20 epochs of batches of 128, 2,000 test images.",
    ),
    "emoji": (
        "Emoji in color",
        "The bundled drawings of one vendor by group (9 classes of unequal size), 28 × 28 pixels, 30 epochs of batches "
        "of 128.",
    ),
}
LARGER_NOTE = """Three methods, with two rates each to choose from: on a held-out fifth of the training images, by the
same budget, with one seed. `python benchmarks/results.py --groups pixels-28-search pixels-28` makes the first study."""

SEARCH = """Half of the images of a main run, one seed, the same for all methods."""

FEW = "Encoder and probe see 10 images a class alone, for 100 epochs."


class Measure(NamedTuple):
    """A figure of a run: the number, whether higher is better, and whether it is in [0, 1]."""

    of: NumberOf
    higher: bool = True
    share: bool = True


def measures() -> dict[str, Measure]:
    """The figures of a main run beside its accuracy."""
    found = {"k-NN": Measure(k_nn)}
    for budget in ("1 a class", "5 a class", "25 a class"):
        found[f"probe with {budget}"] = Measure(lambda run, budget=budget: mean(run["few_labels"][budget]))
    found["error under corruptions"] = Measure(lambda run: run["corruptions"]["mean_error"], higher=False)
    found["the same less the clean error"] = Measure(
        lambda run: run["corruptions"]["mean_error"] - run["corruptions"]["clean_error"], higher=False, share=False
    )
    found["flips under perturbations"] = Measure(lambda run: run["perturbations"]["mean_flip_probability"], False)
    for kind in ("digits", "emoji in gray"):
        for score in ("max-softmax", "mahalanobis", "neighbors"):
            title = f"AUROC of {kind}, {score}"
            found[title] = Measure(lambda run, kind=kind, score=score: run["outliers"][kind][score]["auroc"])
    return found


def against_others(methods: Mapping[str, Runs], prefix: str = "") -> tuple[str, list[Finding]]:
    """The paired tests of SupCon (out) against each other method, and what they say."""
    pairs = {f"{TITLES[OWN]} and {TITLES[name]}": (methods[OWN], runs) for name, runs in methods.items() if name != OWN}
    tests, verdicts = accuracy_differences(pairs)
    return tests, [finding(f"{prefix}{name}", result) for name, result in verdicts.items()]


def accuracies(methods: Mapping[str, Runs]) -> str:
    """The accuracy of each method beside the baselines."""
    rows = [[TITLES[name], rate_of(runs), cell(runs, linear_probe), cell(runs, k_nn)] for name, runs in methods.items()]
    return table(
        ["method", "rate", "linear probe", "k-NN"], [*rows, *([t, DASH, c, DASH] for t, c in baselines(methods))]
    )


def baselines(methods: Mapping[str, Runs]) -> list[tuple[str, str]]:
    """The linear probe of a random encoder and of pixels, which is the same beside each method."""
    measured = max(methods.values(), key=len)
    titles = {"random encoder": "random_encoder", "raw pixels": "raw_pixels"}
    return [(title, cell(measured, lambda run, key=key: run[key])) for title, key in titles.items()]


def rate_of(runs: Runs) -> str:
    rates = sorted({f"{run['flags']['learning_rate']:g}" for run in runs.values()})
    return ", ".join(rates) or DASH


def main_section(results: Results) -> Section:
    methods = {name: runs_of(results, "main", name) for name in TITLES}
    tests, findings = against_others(methods)
    figures, suffix = measures(), f"{TITLES[OWN]} and {TITLES['cross-entropy']}"
    rows = []
    for name, measure in figures.items():
        rows.append([name, *(cell(runs, measure.of, share=measure.share) for runs in methods.values())])
        both = methods[OWN], methods["cross-entropy"]
        findings += seed_findings(f"{name}, {suffix}", *both, measure.of, higher=measure.higher)
    parts = [
        "## Methods under one budget",
        accuracies(methods),
        tests,
        "### Few labels, corruptions, perturbations, outliers",
        "Errors and flips are better if low; the others, if high.",
        table(["figure", *TITLES.values()], rows),
        *search(results),
    ]
    return parts, findings


def search(results: Results) -> list[str]:
    """How the rates were found."""
    found = results.get("search", {})
    rates = sorted({run["flags"]["learning_rate"] for runs in found.values() for run in runs.values()})
    rows = [
        [title, *(cell(runs_of(results, "search", f"{name}-rate-{rate:g}"), linear_probe) for rate in rates)]
        for name, title in TITLES.items()
    ]
    head = ["linear probe on held-out training images", *map("{:g}".format, rates)]
    return ["### The search of the rate", SEARCH, table(head, rows)]


def larger_section(results: Results) -> Section:
    """The studies of fewer methods at a larger budget."""
    parts, findings = ["## Larger budgets", LARGER_NOTE], list[Finding]()
    for group, (title, about) in LARGER.items():
        methods = {name: runs_of(results, group, name) for name in THREE}
        tests, found = against_others(methods, f"{title}, ")
        parts += [f"### {title}", about, accuracies(methods), tests]
        findings += found
    return parts, findings


def few_label_section(results: Results) -> Section:
    methods = {name: runs_of(results, "few-labels", f"{name}-10") for name in (OWN, "cross-entropy")}
    tests, findings = against_others(methods, "10 images a class, ")
    return ["## Few labels for the training itself", FEW, accuracies(methods), tests], findings
