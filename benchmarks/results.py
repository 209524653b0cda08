"""The runs behind docs/results.md: training by the reference recipe, evaluation, and a JSON file for each run.

    python benchmarks/results.py                     # every run that has no file yet, the most important first
    python benchmarks/results.py --list              # the runs, and which are there
    python benchmarks/results.py --groups main cues --part 0 2      # every second of these runs
    python benchmarks/results.py --groups emoji --seeds 0 1 2       # these seeds alone

Each method gets the same images, steps and number of learning rates to choose among. The rate is chosen on held-out
*training* images (group `search`); the test images choose nothing. `python tools/results_page.py` writes the page from
the files in `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import planted_cues
import torch
from sklearn.datasets import load_digits

import mmcon
from mmcon.evaluation.corruptions import evaluate_corruptions
from mmcon.evaluation.evaluation_list import EvaluationInput
from mmcon.evaluation.features import extract_features
from mmcon.evaluation.few_label_curve import few_label_curve
from mmcon.evaluation.imagenet_c import BENCHMARK
from mmcon.evaluation.outliers import evaluate_outliers
from mmcon.evaluation.perturbations import evaluate_perturbations
from mmcon.evaluation.probe import fit_probe, held_out_samples
from mmcon.evaluation.saved_predictions import read_predictions
from mmcon.loading.loader import one_pass
from mmcon.random import keys
from mmcon.registry import register_source
from mmcon.sources.base import Source, Subset
from mmcon.sources.few_labels import few_labels

RESULTS = Path(__file__).parent / "results"
DATA, SIDE = "samples/fashion", 14
#: Flags of the methods.
METHODS: dict[str, dict[str, Any]] = {
    "supcon": {"objective": "supcon"},
    "supcon-in": {"objective": "supcon", "form": "in"},
    "simclr": {"objective": "simclr"},
    "cross-entropy": {"objective": "cross-entropy"},
    "max-margin": {"objective": "max-margin"},
}
RATES = (1.5e-3, 6e-3)
SEEDS = (0, 1, 2)
#: With six seeds, the interval of a difference over seeds is half as wide as with three.
MORE_SEEDS = (3, 4, 5)
#: The budgets: images a class, passes over them, and the batch.
BUDGET = {"labels_per_class": 100, "epochs": 10, "batch_size": 64}
SEARCH_BUDGET = {"labels_per_class": 50, "epochs": 10, "batch_size": 64}
#: Studies of fewer methods at a larger budget, each with a search of its own.
LARGER: dict[str, dict[str, Any]] = {
    "pixels-28": {"data": DATA, "image_size": 28, "labels_per_class": 300, "epochs": 20, "batch_size": 128},
    "emoji": {"data": "samples/emoji", "image_size": 28, "epochs": 30, "batch_size": 128},
}
THREE, LARGER_SEEDS = ("supcon", "cross-entropy", "simclr"), (0, 1, 2, 3, 4)
#: What differs from the budget where the method is said to gain; the rates are those of the budget.
REGIMES: dict[str, dict[str, Any]] = {
    "noisy-labels": {"data": "results/noisy-labels"},
    "long-tail": {"data": "results/long-tail", "labels_per_class": None, "label_fraction": 0.5},
    "longer": {"epochs": 3 * BUDGET["epochs"]},
    "stronger-views": {"strength": 1.0, "crop_area": 0.08},
}
#: The share of labels that are redrawn, the images of the most frequent class, and how many times those of the rarest.
REDRAWN, MOST, IMBALANCE = 0.4, 800, 100
#: Of the test images, how many are corrupted and perturbed, and how strongly.
ALTERED, SEVERITIES, STEPS = 300, (1, 3, 5), 3
CORRELATION, CUED = 0.95, 1000


@dataclass(frozen=True)
class Trial:
    """A run.

    Attributes:
        group: what it is part of.
        name: of the file, without the seed.
        method: of `METHODS`.
        seed: of the run.
        flags: of the recipe, beside those of the method.
    """

    group: str
    name: str
    method: str
    seed: int
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Where the result is, once there is one."""
        return RESULTS / self.group / f"{self.name}-seed-{self.seed}.json"


def trials() -> Iterator[Trial]:
    """All runs, the most important first."""
    for rate in RATES:
        for method in METHODS:
            yield Trial("search", f"{method}-rate-{rate:g}", method, 0, SEARCH_BUDGET | {"learning_rate": rate})
    for seed in SEEDS:
        for method in METHODS:
            yield Trial("main", method, method, seed, BUDGET)
    for seed in SEEDS:
        for temperature in (0.02, 0.05, 0.2):
            for method in ("supcon", "supcon-in", "simclr"):
                flags = BUDGET | {"temperature": temperature}
                yield Trial("temperature", f"{method}-{temperature:g}", method, seed, flags)
        for cue in ("patch", "color"):
            for method in METHODS:
                flags = {"data": f"planted/{cue}", "epochs": BUDGET["epochs"], "batch_size": BUDGET["batch_size"]}
                yield Trial("cues", f"{cue}-{method}", method, seed, flags)
        for batch_size in (16, 256):
            for method in METHODS:
                flags = BUDGET | {"batch_size": batch_size}
                yield Trial("batch-size", f"{method}-{batch_size}", method, seed, flags)
        for method in ("supcon", "cross-entropy"):
            flags = BUDGET | {"labels_per_class": 10, "epochs": 100}
            yield Trial("few-labels", f"{method}-10", method, seed, flags)
    for seed in SEEDS:
        for name, flags in REGIMES.items():
            for method in THREE:
                yield Trial("regimes", f"{method}-{name}", method, seed, BUDGET | flags)
    for seed in MORE_SEEDS:
        for method in METHODS:
            yield Trial("main", method, method, seed, BUDGET)
    for rate in RATES:
        for group, larger in LARGER.items():
            for method in THREE:
                yield Trial(f"{group}-search", f"{method}-rate-{rate:g}", method, 0, larger | {"learning_rate": rate})
    for seed in LARGER_SEEDS:
        for group, larger in LARGER.items():
            for method in THREE:
                yield Trial(group, method, method, seed, larger)


def best_rate(method: str, search: str) -> float:
    """The rate of a search with the highest accuracy on held-out training images; of equal ones the lowest."""
    found = {}
    for trial in trials():
        if trial.group == search and trial.method == method:
            if not trial.file.exists():
                raise SystemExit(f"{trial.file} is missing: run the group {search} first")
            found[trial.flags["learning_rate"]] = json.loads(trial.file.read_text())["linear_probe"]
    return max(sorted(found), key=lambda rate: found[rate])


@register_source("results/held-out", modality="image")
def held_out(split: str = "train", data: str = DATA) -> Source:
    """The training images in two parts: a fifth is held out as the test split."""
    source = mmcon.create_source(data, split="train")
    out = held_out_samples(source.ids, share=0.2, seed=1)  # not the samples that the probe holds out of its training
    return Subset(source, (out if split == "test" else ~out).nonzero()[:, 0])


@register_source("results/held-out-emoji", modality="image")
def held_out_emoji(split: str = "train") -> Source:
    """The same of the emoji."""
    return held_out(split, "samples/emoji")


@register_source("results/noisy-labels", modality="image")
def noisy_labels(split: str = "train") -> Source:
    """The images with noisy training labels: 40 % are redrawn from all ten classes. The test labels are correct."""
    source = mmcon.create_source(DATA, split=split)
    draws = keys(seed=0, sample=source.ids).child("noisy labels")
    redrawn = draws.bernoulli("redrawn", REDRAWN if split == "train" else 0.0)
    labels = torch.where(redrawn, draws.integers("label", 0, len(source.classes)), source.labels)
    images, about = source.open(range(len(source))), {"ids": source.ids, "classes": source.classes}
    return mmcon.TensorSource(images, labels=labels, name=f"results/noisy-labels ({split})", **about)


@register_source("results/long-tail", modality="image")
def long_tail(split: str = "train") -> Source:
    """The images with a long tail of training classes, geometric from 800 images to 8. The test classes are even."""
    source = mmcon.create_source(DATA, split=split)
    if split != "train":
        return source
    order = keys(seed=0, sample=source.ids).child("long tail").uniform("order").argsort()
    power = torch.arange(len(source.classes)) / (len(source.classes) - 1)
    counts = (MOST / IMBALANCE**power).round().long().tolist()
    rows = [order[source.labels[order] == label][:count] for label, count in enumerate(counts)]
    return Subset(source, torch.cat(rows), name="results/long-tail (train)")


def digits() -> Source:
    """Handwritten digits, gray."""
    images = torch.from_numpy(load_digits().images.astype(np.float32))
    return mmcon.TensorSource((images * 255 / 16).round().to(torch.uint8)[:500, None])


def gray_emoji() -> Source:
    """Emoji in gray."""
    source = mmcon.create_source("samples/emoji", split="test")
    images = torch.stack([image.float().mean(0, keepdim=True).round() for image in source.open(range(len(source)))])
    return mmcon.TensorSource(images.to(torch.uint8))


def run_trial(trial: Trial, runs: Path) -> dict[str, Any]:
    """Train by the recipe, evaluate, and return what goes into the file."""
    recipe = planted_cues.load_recipe()
    flags: dict[str, Any] = {"image_size": SIDE} | METHODS[trial.method] | trial.flags
    cues = Namespace(data=DATA, samples=CUED, correlation=CORRELATION, size=SIDE)
    if trial.group == "cues" and flags["data"] not in mmcon.list_sources("image"):
        planted_cues.register_planted(cues, flags["data"].partition("/")[2])
    flags.setdefault("data", DATA)
    if trial.group.endswith("search"):
        flags["data"] = "results/held-out" if flags["data"] == DATA else "results/held-out-emoji"
    if "learning_rate" not in flags and trial.group in LARGER:
        flags["learning_rate"] = best_rate(trial.method, f"{trial.group}-search")
    elif "learning_rate" not in flags:  # chosen at another batch size: AdamW's follows the root, as the default does
        scale = (flags["batch_size"] / SEARCH_BUDGET["batch_size"]) ** 0.5
        flags["learning_rate"] = best_rate(trial.method, "search") * scale
    folder = runs / trial.group / f"{trial.name}-seed-{trial.seed}"
    started = time.process_time()
    recipe.main(recipe.Config(seed=trial.seed, output_dir=folder, cpu=True, resume=True, log_every=50, **flags))
    found = json.loads((folder / "results.json").read_text())
    correct = read_predictions(folder)["linear_probe"]["correct"]
    values: dict[str, Any] = {
        "method": trial.method,
        "seed": trial.seed,
        "flags": flags,
        "linear_probe": found["linear_probe"]["top1"],
        "knn": found["knn"]["top1"],
        "random_encoder": found["random_encoder"]["linear_probe_top1"],
        "raw_pixels": found["raw_pixels"]["linear_probe_top1"],
        "test_images": len(correct),
        "correct": np.packbits(correct.numpy()).tobytes().hex(),
    }
    if trial.group == "main":
        values |= evaluate(folder, trial.seed, flags["labels_per_class"])
    if trial.group == "regimes" and flags["data"] != DATA:
        values |= {"fair_probe": fair_probe(folder, trial.seed)}
    if trial.group == "cues":
        values |= {"cues": planted_cues.measure(cues, folder, flags["data"].partition("/")[2])}
    about = {"cpu_seconds": round(time.process_time() - started), "machine": platform.machine()}
    return values | about | {"torch": torch.__version__}


def fair_probe(folder: Path, seed: int) -> float:
    """The accuracy of a probe that is fitted to the training images of a main run, with their correct labels."""
    model = mmcon.ContrastiveModel.from_pretrained(folder / "model")
    train = few_labels(mmcon.create_source(DATA, split="train"), per_class=BUDGET["labels_per_class"], seed=seed)
    sources = train, mmcon.create_source(DATA, split="test")
    trained, tested = (planted_cues.features_of(model, source, SIDE) for source in sources)
    return fit_probe(trained).evaluate(tested).top1


def evaluate(folder: Path, seed: int, per_class: int) -> dict[str, Any]:
    """Few labels, corruptions, perturbations and outliers of a trained encoder."""
    model = mmcon.ContrastiveModel.from_pretrained(folder / "model")
    train = few_labels(mmcon.create_source(DATA, split="train"), per_class=per_class, seed=seed)
    test = mmcon.create_source(DATA, split="test")
    view = mmcon.create_view("image/plain", size=SIDE)
    trained, tested = (extract_features(model, one_pass(s, {"image": [view]}), modality="image") for s in (train, test))
    shared: dict[str, Any] = {"train": trained, "train_source": train, "encode": model, "view": view}
    shared |= {"modality": "image", "classes": tuple(train.classes)}
    far = {"far": {"digits": digits(), "emoji in gray": gray_emoji()}}
    outliers = evaluate_outliers(EvaluationInput(test=tested, test_source=test, **far, **shared)).to_json()
    altered = {"test": tested.take(slice(0, ALTERED)), "test_source": Subset(test, range(ALTERED))}
    options = {"effects": list(BENCHMARK), "severities": list(SEVERITIES), "perturbation_steps": STEPS}
    given = EvaluationInput(options=options, **altered, **shared)
    corruptions, perturbations = evaluate_corruptions(given).to_json(), evaluate_perturbations(given).to_json()
    kept = ("mean_error", "clean_error", "errors", "samples")
    curve = few_label_curve(trained, tested, shares=(), per_class=(1, 5, 25))
    return {
        "few_labels": {budget.name: list(budget.top1) for budget in curve.budgets},
        "corruptions": {name: corruptions[name] for name in kept},
        "perturbations": perturbations,
        "outliers": outliers["sets"],
    }


def main() -> None:
    """Run what is missing."""
    groups = list(dict.fromkeys(trial.group for trial in trials()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=groups, default=groups)
    parser.add_argument("--seeds", nargs="+", type=int, help="only runs of these seeds")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), help="the run folders")
    parser.add_argument("--list", action="store_true", help="print the runs, and which are there")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="of N processes, number I"
    )
    options = parser.parse_args()
    every = [trial for trial in trials() if trial.group in options.groups]
    chosen = [trial for trial in every if options.seeds is None or trial.seed in options.seeds]
    for trial in chosen[options.part[0] :: options.part[1]]:
        if options.list:
            print(f"{'done' if trial.file.exists() else '    '}  {trial.group}/{trial.name} seed {trial.seed}")
        elif not trial.file.exists():
            values = run_trial(trial, options.runs)
            trial.file.parent.mkdir(parents=True, exist_ok=True)
            lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
            trial.file.write_text("{\n" + ",\n".join(lines) + "\n}\n")  # a line for each figure
            print(f"{time.strftime('%H:%M:%S')}  {trial.file}: {values['linear_probe']:.3f}", flush=True)


if __name__ == "__main__":
    main()
