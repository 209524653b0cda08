"""Where the method is said to gain: noisy labels, rare classes, longer training, stronger views; and planted cues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evidence.comparisons import (
    Finding,
    Section,
    accuracy_differences,
    cell,
    finding,
    seed_findings,
    table,
)
from evidence.methods import baselines
from evidence.runs import OWN, THREE, TITLES, Results, Runs, k_nn, linear_probe, runs_of

#: The titles of the regimes, and of those whose training labels or classes differ from the test ones.
REGIMES = {
    "noisy-labels": "noisy labels",
    "long-tail": "long tail",
    "longer": "three times longer",
    "stronger-views": "stronger views",
}
WITH_FAIR_PROBE = ("noisy-labels", "long-tail")

TEXT = """Each regime changes one thing of the first budget, and keeps the rates that were found there.
`python benchmarks/results.py --groups regimes` makes the runs.

- *Noisy labels*: 40 % of the training labels are redrawn from all ten classes, so that about 36 % are wrong. Encoder,
  linear probe and baselines are all trained on them. The test labels are correct.
- *Long tail*: the training classes fall geometrically from 400 images (T-shirts) to 4 (ankle boots), about as many in
  all as above. The classes of the test images are even. Neither sampler nor loss makes up for it. The strength of the
  linear probe is chosen on held-out images with the same tail, and differs between seeds by orders of magnitude, and
  the accuracy with it. There the fair probe compares the encoders, and the linear probe does not.
- *Three times longer*: 30 epochs.
- *Stronger views*: crops keep 8 % of the area at least (above, 50 %), and the color jitter has the strength 1 (above,
  .5), as SimCLR has them for ImageNet.

The *fair probe* is fitted to the features of the training images of a main run, 100 a class, with correct labels. It
shows what the encoder has kept, whatever labels the linear probe gets."""

CUES = """A mark that goes with the class in 95 % of the training images. The encoder is trained on 1,000 of these, and
the "biased" probe is fitted to them; the "fair" probe is fitted to the same images with broken cues, which shows what
the features still hold of the class. `python benchmarks/planted_cues.py` makes such runs alone, at any size."""


def regime_section(results: Results) -> Section:
    """Tables of the methods by regime, and the tests of SupCon (out) against the others in each."""
    of = {regime: {m: runs_of(results, "regimes", f"{m}-{regime}") for m in THREE} for regime in REGIMES}
    tests, findings = regime_tests(of)
    every = [{m: runs_of(results, "main", m) for m in THREE}, *of.values()]
    rows = [[TITLES[m], *(cell(methods[m], linear_probe) for methods in every)] for m in THREE]
    for same in zip(*map(baselines, every), strict=True):
        rows.append([same[0][0], *(shown for _, shown in same)])
    near = [[TITLES[m], *(cell(methods[m], k_nn) for methods in every)] for m in THREE]
    fair = [[TITLES[m], *(cell(of[regime][m], fair_probe) for regime in WITH_FAIR_PROBE)] for m in THREE]
    parts = [
        "## Other regimes",
        TEXT,
        table(["linear probe", "first budget", *REGIMES.values()], rows),
        table(["k-NN", "first budget", *REGIMES.values()], near),
        table(["fair probe", *(REGIMES[regime] for regime in WITH_FAIR_PROBE)], fair),
        tests,
    ]
    return parts, findings


def regime_tests(of: Mapping[str, Mapping[str, Runs]]) -> tuple[str, list[Finding]]:
    """The tests of the linear probe, and what these, k-NN and the fair probes say, by regime and method.

    The linear probe of a long tail is a row of the table alone: its strength, which few held-out images choose, differs
    between runs by more than the encoders do.
    """
    pairs, others = {}, list[Finding]()
    for regime, title in REGIMES.items():
        for method in THREE[1:]:
            name = f"{title}, {TITLES[OWN]} and {TITLES[method]}"
            pairs[name] = of[regime][OWN], of[regime][method]
            others += seed_findings(f"k-NN, {name}", *pairs[name], k_nn, higher=True)
            if regime in WITH_FAIR_PROBE:
                others += seed_findings(f"fair probe, {name}", *pairs[name], fair_probe, higher=True)
    tests, verdicts = accuracy_differences(pairs)
    compared = {name: result for name, result in verdicts.items() if not name.startswith(REGIMES["long-tail"])}
    return tests, [*(finding(name, result) for name, result in compared.items()), *others]


def fair_probe(run: Mapping[str, Any]) -> float:
    return run["fair_probe"]


def cue_section(results: Results) -> Section:
    columns = ("biased, cue as in training", "biased, cue broken", "follows a conflicting cue", "fair, cue broken")
    rows, findings = [], list[Finding]()
    for cue in ("patch", "color"):
        of = {method: runs_of(results, "cues", f"{cue}-{method}") for method in TITLES}
        for method, runs in of.items():
            rows.append([cue, TITLES[method], *(cell(runs, lambda run, c=c: run["cues"][c]) for c in columns)])
        for method in ("supcon", "simclr"):
            for figure, higher in (("biased, cue broken", True), ("follows a conflicting cue", False)):
                text = f"{cue}: {figure}, {TITLES[method]} and cross-entropy"
                both = of[method], of["cross-entropy"]
                findings += seed_findings(text, *both, lambda run, figure=figure: run["cues"][figure], higher=higher)
    return ["## Planted cues", CUES, table(["cue", "method", *columns], rows)], findings
