"""Write docs/results.md from the result files in benchmarks/results: each run has one, and a run without is a dash.

python tools/results_page.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from mmcon.evaluation.comparison import LEVEL
from mmcon.evaluation.statistics import bootstrap, holm, paired_permutation, t_interval

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "figures" / "sweeps.svg"
TITLES = {
    "supcon": "SupCon, out",
    "supcon-in": "SupCon, in",
    "simclr": "SimCLR",
    "cross-entropy": "cross-entropy",
    "max-margin": "max-margin",
}
OWN, DASH = "supcon", "–"
BETTER, SAME = "the first is better", "not different"
#: Of each sweep: the title, the values of the setting, and the methods that have it.
SWEEPS = {
    "temperature": ("Temperature", ("0.02", "0.05", "0.1", "0.2"), ("supcon", "supcon-in", "simclr")),
    "batch-size": ("Batch size", ("16", "64", "256"), tuple(TITLES)),
}
#: The values of the other studies.
PLAIN = {"temperature": "0.1", "batch-size": "64"}

#: The runs of one name by seed.
Runs = Mapping[int, Mapping[str, Any]]
Results = Mapping[str, Mapping[str, Runs]]
#: The parts of a section, and what was found: each finding, and whether it shows the claim of the method.
Section = tuple[list[str], list[tuple[str, bool]]]
#: From a run to a number.
NumberOf = Callable[[Mapping[str, Any]], float]


def read(folder: Path = RESULTS) -> Results:
    """The runs by group, name and seed."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for file in sorted(folder.glob("*/*-seed-*.json")):
        name, _, seed = file.stem.rpartition("-seed-")
        found.setdefault(file.parent.name, {}).setdefault(name, {})[int(seed)] = json.loads(file.read_text())
    return found


def runs_of(results: Results, group: str, name: str) -> Runs:
    return results.get(group, {}).get(name, {})


def cell(runs: Runs, figure: NumberOf) -> str:
    """The mean over seeds with Student's interval, the figure of a single seed, or a dash."""
    values = [figure(run) for run in runs.values()]
    if not values:
        return DASH
    return f"{values[0]:.3f}" if len(values) == 1 else str(t_interval(values))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(head), "|".join(["---"] * len(head)), *(" | ".join(row) for row in rows)]
    return "\n".join(f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines)


def is_correct(run: Mapping[str, Any]) -> torch.Tensor:
    """Whether the linear probe is correct, by test image."""
    packed = np.frombuffer(bytes.fromhex(run["correct"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=run["test_images"])).double()


def accuracy_differences(pairs: Mapping[str, tuple[Runs, Runs]]) -> tuple[str, dict[str, str]]:
    """A table of paired tests over the test images, corrected for their number, and the result of each.

    Args:
        pairs: by name, two kinds of runs; their common seeds are compared.
    """
    found = {}
    for name, (first, second) in pairs.items():
        if seeds := sorted({*first} & {*second}):
            a, b = (torch.stack([is_correct(runs[seed]) for seed in seeds]).mean(0) for runs in (first, second))
            found[name] = (bootstrap(a - b, draws=1000), paired_permutation(a, b).p_value, len(seeds))
    corrected = dict(zip(found, holm([p for _, p, _ in found.values()]), strict=True))
    results = {name: verdict(difference.value, corrected[name]) for name, (difference, _, _) in found.items()}
    rows = []
    for name in pairs:
        if name in found:
            difference, p, seeds = found[name]
            rows.append([name, str(difference), f"{p:.4f}", f"{corrected[name]:.4f}", str(seeds), results[name]])
        else:
            rows.append([name, *[DASH] * 5])
    head = ["comparison", "difference of accuracy [95 %]", "p", "corrected", "seeds", "result"]
    return table(head, rows), results


def verdict(difference: float, p: float) -> str:
    return SAME if p >= LEVEL else BETTER if difference > 0 else "the second is better"


def seed_differences(results: Results, figures: Mapping[str, tuple[NumberOf, bool]], other: str) -> dict[str, str]:
    """By figure of the main runs, SupCon (out) against another method, by the interval of the difference over seeds.

    Args:
        results: of all runs.
        figures: by name, the number, and whether higher is better.
        other: the other method.
    """
    first, second = runs_of(results, "main", OWN), runs_of(results, "main", other)
    seeds, found = sorted({*first} & {*second}), {}
    for name, (figure, higher) in figures.items() if len(seeds) > 1 else ():
        found[name] = seed_result([figure(first[seed]) - figure(second[seed]) for seed in seeds], higher)
    return found


def seed_result(differences: Sequence[float], higher: bool) -> str:
    """What the interval of differences by seed says: better, worse or not different."""
    interval = t_interval(differences)
    if interval.low <= 0 <= interval.high:
        return f"not different: {interval}"
    return f"{'better' if (interval.value > 0) == higher else 'worse'}, by {interval}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main_figures() -> dict[str, tuple[NumberOf, bool]]:
    """The figures of a main run beside its accuracy, and whether higher is better."""
    found: dict[str, tuple[NumberOf, bool]] = {"k-NN": (lambda run: run["knn"], True)}
    for budget in ("1 a class", "5 a class", "25 a class"):
        found[f"probe with {budget}"] = (lambda run, budget=budget: mean(run["few_labels"][budget]), True)
    found["error under corruptions"] = (lambda run: run["corruptions"]["mean_error"], False)
    found["the same less the clean error"] = (
        lambda run: run["corruptions"]["mean_error"] - run["corruptions"]["clean_error"],
        False,
    )
    found["flips under perturbations"] = (lambda run: run["perturbations"]["mean_flip_probability"], False)
    for kind in ("digits", "emoji in gray"):
        for score in ("max-softmax", "mahalanobis", "neighbors"):
            title = f"AUROC of {kind}, {score}"
            found[title] = (lambda run, kind=kind, score=score: run["outliers"][kind][score]["auroc"], True)
    return found


def accuracy_tables(methods: Mapping[str, Runs]) -> tuple[str, str, dict[str, str]]:
    """The accuracy of each method beside the baselines, the tests of SupCon (out) against each, and their results."""
    rows = [
        [TITLES[name], rate_of(runs), cell(runs, lambda r: r["linear_probe"]), cell(runs, lambda r: r["knn"])]
        for name, runs in methods.items()
    ]
    measured = next((runs for runs in methods.values() if runs), {})
    for title, key in (("random encoder", "random_encoder"), ("raw pixels", "raw_pixels")):
        rows.append([title, DASH, cell(measured, lambda run, key=key: run[key]), DASH])
    pairs = {f"{TITLES[OWN]} and {TITLES[name]}": (methods[OWN], runs) for name, runs in methods.items() if name != OWN}
    tests, verdicts = accuracy_differences(pairs)
    return table(["method", "rate", "linear probe", "k-NN"], rows), tests, verdicts


def larger_section(results: Results) -> Section:
    """The studies of fewer methods at a larger budget."""
    parts, findings = ["## Larger budgets", LARGER_NOTE], list[tuple[str, bool]]()
    for group, (title, about) in LARGER.items():
        methods = {name: runs_of(results, group, name) for name in ("supcon", "simclr", "cross-entropy")}
        accuracy, tests, verdicts = accuracy_tables(methods)
        parts += [f"### {title}", about, accuracy, tests]
        findings += [(f"{title}, {n}: {result}", result == BETTER) for n, result in verdicts.items()]
    return parts, findings


def main_section(results: Results) -> Section:
    methods = {name: runs_of(results, "main", name) for name in TITLES}
    accuracy, tests, verdicts = accuracy_tables(methods)
    figures = main_figures()
    rows = [[name, *(cell(runs, of) for runs in methods.values())] for name, (of, _) in figures.items()]
    against = seed_differences(results, figures, "cross-entropy")
    findings = [(f"{name}: {result}", result == BETTER) for name, result in verdicts.items()]
    suffix = "SupCon (out) and cross-entropy"
    findings += [(f"{name}, {suffix}: {result}", result.startswith("better")) for name, result in against.items()]
    parts = [
        "## Methods under one budget",
        accuracy,
        tests,
        "### Few labels, corruptions, perturbations, outliers",
        "Errors and flips are better if low; the others, if high.",
        table(["figure", *TITLES.values()], rows),
    ]
    return parts, findings


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "Nothing was found."


def rate_of(runs: Runs) -> str:
    rates = sorted({f"{run['flags']['learning_rate']:g}" for run in runs.values()})
    return ", ".join(rates) or DASH


def sweep_of(results: Results, group: str, method: str) -> dict[str, Runs]:
    """The runs of a method by the value of a setting; those at the value of the other studies are the main ones."""
    values = SWEEPS[group][1]
    main = runs_of(results, "main", method)
    return {v: main if v == PLAIN[group] else runs_of(results, group, f"{method}-{v}") for v in values}


def by_seed(of: Mapping[str, Runs]) -> dict[int, list[float]]:
    """The accuracies at all values of a setting, by seed that every value has."""
    seeds = set.intersection(*(set(runs) for runs in of.values()))
    return {seed: [runs[seed]["linear_probe"] for runs in of.values()] for seed in sorted(seeds)}


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
    _, verdicts = accuracy_differences(pairs)
    rows, findings = [], list[tuple[str, bool]]()
    for method, of in found.items():
        cells = [
            cell(runs, lambda run: run["linear_probe"])
            + ("" if verdicts.get(f"{method} {value}", SAME) == SAME else " *")
            for value, runs in of.items()
        ]
        spread = spreads(of)
        rows.append(
            [TITLES[method], *cells, str(t_interval([*spread.values()], shares=True)) if len(spread) > 1 else DASH]
        )
        own = spreads(found[OWN])
        seeds = sorted({*own} & {*spread})
        if method != OWN and len(seeds) > 2:  # two seeds may differ by the same, which says nothing
            result = seed_result([own[seed] - spread[seed] for seed in seeds], higher=False)
            text = f"{title.lower()}, best less worst, {TITLES[OWN]} and {TITLES[method]}: {result}"
            findings.append((text, result.startswith("better")))
    return [f"### {title}", table(["linear probe", *values, "best less worst"], rows)], findings


def batch_size_tests(results: Results) -> Section:
    """SupCon (out) against cross-entropy at each batch size."""
    own, other = (sweep_of(results, "batch-size", method) for method in (OWN, "cross-entropy"))
    names = f"{TITLES[OWN]} and {TITLES['cross-entropy']}"
    tests, verdicts = accuracy_differences({f"{names}, {v}": (own[v], other[v]) for v in own})
    return [tests], [(f"batch size, {n}: {result}", result == BETTER) for n, result in verdicts.items()]


def sweeps_section(results: Results) -> Section:
    """Both sweeps."""
    sections = [*(sweep_section(results, group) for group in SWEEPS), batch_size_tests(results)]
    parts = ["## Temperature and batch size", SWEEP, *(part for of, _ in sections for part in of)]
    return parts, [finding for _, of in sections for finding in of]


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


def cue_section(results: Results) -> Section:
    columns = ("biased, cue as in training", "biased, cue broken", "follows a conflicting cue", "fair, cue broken")
    rows, findings = [], []
    for cue in ("patch", "color"):
        of = {method: runs_of(results, "cues", f"{cue}-{method}") for method in ("cross-entropy", "supcon", "simclr")}
        for method, runs in of.items():
            rows.append([cue, TITLES[method], *(cell(runs, lambda r, c=c: r["cues"][c]) for c in columns)])
        for method in ("supcon", "simclr"):
            seeds = sorted({*of[method]} & {*of["cross-entropy"]})
            for figure, higher in (("biased, cue broken", True), ("follows a conflicting cue", False)):
                values = [of[method][s]["cues"][figure] - of["cross-entropy"][s]["cues"][figure] for s in seeds]
                if len(values) > 1:
                    result = seed_result(values, higher)
                    text = f"{cue}: {figure}, {TITLES[method]} and cross-entropy: {result}"
                    findings.append((text, result.startswith("better")))
    return ["## Planted cues", CUES, table(["cue", "method", *columns], rows)], findings


def few_label_section(results: Results) -> Section:
    names = {"supcon-10": TITLES["supcon"], "cross-entropy-10": TITLES["cross-entropy"]}
    runs = {name: runs_of(results, "few-labels", name) for name in names}
    rows = [[title, cell(runs[name], lambda r: r["linear_probe"]), cell(runs[name], lambda r: r["knn"])]
            for name, title in names.items()]  # fmt: skip
    tests, verdicts = accuracy_differences(
        {f"{TITLES[OWN]} and {TITLES['cross-entropy']}": (runs["supcon-10"], runs["cross-entropy-10"])}
    )
    text = "Encoder and probe see 10 images a class alone, for 100 epochs."
    findings = [(f"10 images a class, {n}: {result}", result == BETTER) for n, result in verdicts.items()]
    parts = ["## Few labels for the training itself", text, table(["method", "linear probe", "k-NN"], rows), tests]
    return parts, findings


def search_section(results: Results) -> list[str]:
    found = results.get("search", {})
    rates = sorted({run["flags"]["learning_rate"] for runs in found.values() for run in runs.values()})
    rows = [
        [
            title,
            *(cell(runs_of(results, "search", f"{name}-rate-{rate:g}"), lambda r: r["linear_probe"]) for rate in rates),
        ]
        for name, title in TITLES.items()
    ]
    return [
        "### The search of the rate",
        SEARCH,
        table(["linear probe on held-out training images", *map("{:g}".format, rates)], rows),
    ]


def command_of(run: Mapping[str, Any]) -> str:
    """The command that trains a run."""
    flags = {name.replace("_", "-"): value for name, value in run["flags"].items()} | {"seed": run["seed"]}
    return " ".join(["mmcon train imagenet_supcon", *(f"--{name} {value}" for name, value in flags.items())])


def budget(results: Results) -> str:
    """What each main run gets, from its file."""
    runs = [run for of in results.get("main", {}).values() for run in of.values()]
    if not runs:
        return "No run is there yet."
    flags, seconds = runs[0]["flags"], mean([run["cpu_seconds"] for run in runs])
    count = sum(len(of) for group in results.values() for of in group.values())
    return BUDGET.format(
        per_class=flags["labels_per_class"],
        size=flags["image_size"],
        epochs=flags["epochs"],
        batch_size=flags["batch_size"],
        test_images=runs[0]["test_images"],
        seconds=seconds,
        count=count,
        command=command_of(runs[0]),
    )


def page(folder: Path = RESULTS) -> str:
    results = read(folder)
    makers = main_section, larger_section, few_label_section, sweeps_section, cue_section
    sections = [make(results) for make in makers]
    methods, larger, few, sweeps, cues = (parts for parts, _ in sections)
    findings = [finding for _, found in sections for finding in found]
    parts = [
        HEAD,
        budget(results),
        NOTES,
        "## Where the claim of the method shows here",
        bullets([text for text, shows in findings if shows]),
        "## Where it does not",
        bullets([text for text, shows in findings if not shows]),
        *methods,
        *search_section(results),
        *larger,
        *few,
        *sweeps,
        *cues,
        "## Figures of other pages",
        "These were measured for the pages that they link to, and are not made from the files of this page.",
        (folder / "elsewhere.md").read_text(encoding="utf-8").rstrip(),
        TAIL,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


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

HEAD = """# Results

    python benchmarks/results.py       # each run without a file: trains, evaluates, and leaves a file
    python tools/results_page.py       # this page, from the files

Cross-entropy, max-margin, SimCLR and both forms of SupCon under one budget, as it came out. A dash is a run that has
not been made."""

BUDGET = """**The budget is small**: {per_class} images a class of the bundled Fashion-MNIST at {size} × {size} pixels,
{epochs} epochs of two views, batches of {batch_size}, the smallest encoder (`mmcon/resnet-tiny`), AdamW, the views of
SimCLR for every method, and {test_images:,} test images; about {seconds:.0f} seconds of one core (AMD EPYC, shared with
other work) for training and evaluation of a run. {count} runs are in the files. One of them by hand:

    {command}"""

NOTES = """The rate of each method is the better one of two on held-out training images; everything else is the same, so
no method is tuned to its best. Means are over seeds with Student's 95 % interval (two or three seeds make it wide).
Differences of accuracy are tested by paired permutations over the test images, on the mean over seeds, with Holm's
correction for the comparisons of a table. Other figures are compared by the interval of their difference over seeds,
without a correction. "Not different" means that no difference was found, not that there is none. Max-margin has the
margin 4 from the first step on, without the annealing that its paper suggests for margins that large."""

SWEEP = """The runs and their rates are those above, but for the one setting. The rate was searched at temperature .1
and batches of 64, with the same budget for all methods; at other batch sizes it follows the root of the batch size. The
passes are the same, so a larger batch has fewer steps. A star marks a value that differs from .1, or from 64, by paired
permutations over the test images, for the seeds that both have, with Holm's correction for all values of a table: it
says nothing of other seeds, whose intervals are wide. "Best less worst" is the mean over seeds; a figure without an
interval is of one seed. The picture has the seeds that all values of a method have. The same for any data, method and
setting: [`recipes/stability.py`](stability.md).

![Linear probe by temperature and by batch size](figures/sweeps.svg)"""

SEARCH = """Half of the images of a main run, one seed, the same for all methods."""

CUES = """A mark that goes with the class in 95 % of the training images. The encoder is trained on 1,000 of these, and
the "biased" probe is fitted to them; the "fair" probe is fitted to the same images with broken cues, which shows what
the features still hold of the class. `python benchmarks/planted_cues.py` makes such runs alone, at any size."""

TAIL = """## How figures are made

- Settings are compared on held-out *training* samples, never on the test set; where a page deviates, it says so.
- Intervals over seeds are Student's; intervals over samples are bootstrap intervals of whole groups. Comparisons are
  paired permutation tests where there are predictions by sample.
- Each figure stands beside baselines: a random encoder of the same shape, and raw inputs.
- Bundled data are small, and some are synthetic:
  [what to know before reading a figure](samples.md#what-to-know-before-reading-a-figure).

The published presets of the reference recipe (ResNet-50 on ImageNet) have not been trained to their end with this
package."""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    write_figure(read())
    print(PAGE)
