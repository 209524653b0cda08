"""Write docs/results.md from the result files in benchmarks/results: each run has one, and a run without is a dash.

python tools/results_page.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.comparisons import Finding, bullets
from evidence.methods import few_label_section, larger_section, main_section
from evidence.regimes import cue_section, regime_section
from evidence.runs import RESULTS, ROOT, Results, mean, read
from evidence.sweeps import sweeps_section, write_figure

PAGE = ROOT / "docs" / "results.md"
SECTIONS = main_section, larger_section, few_label_section, regime_section, sweeps_section, cue_section

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

TAIL = """## How figures are made

- Settings are compared on held-out *training* samples, never on the test set; where a page deviates, it says so.
- Intervals over seeds are Student's; intervals over samples are bootstrap intervals of whole groups. Comparisons are
  paired permutation tests where there are predictions by sample.
- Each figure stands beside baselines: a random encoder of the same shape, and raw inputs.
- Bundled data are small, and some are synthetic:
  [what to know before reading a figure](samples.md#what-to-know-before-reading-a-figure).

The published presets of the reference recipe (ResNet-50 on ImageNet) have not been trained to their end with this
package."""


def page(folder: Path = RESULTS) -> str:
    """The text of the page."""
    results = read(folder)
    sections = [section(results) for section in SECTIONS]
    parts = [
        HEAD,
        budget(results),
        NOTES,
        *conclusions([finding for _, found in sections for finding in found]),
        *(part for parts, _ in sections for part in parts),
        "## Figures of other pages",
        "These were measured for the pages that they link to, and are not made from the files of this page.",
        (folder / "elsewhere.md").read_text(encoding="utf-8").rstrip(),
        TAIL,
    ]
    return "\n\n".join(parts) + "\n"


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


def command_of(run: Mapping[str, Any]) -> str:
    """The command that trains a run."""
    flags = {name.replace("_", "-"): value for name, value in run["flags"].items()} | {"seed": run["seed"]}
    return " ".join(["mmcon train imagenet_supcon", *(f"--{name} {value}" for name, value in flags.items())])


def conclusions(findings: Sequence[Finding]) -> list[str]:
    """What shows the claim of the method, what refutes it, and what leaves it open."""
    shows, refuted, left = (
        bullets([finding.text for finding in findings if finding.claim == claim]) or "Nothing was found."
        for claim in ("shows", "refuted", "open")
    )
    heads = "## Where the claim of the method shows here", "## Where it does not"
    return [heads[0], shows, heads[1], "The opposite shows:", refuted, "No difference was found:", left]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    write_figure(read())
    print(PAGE)
