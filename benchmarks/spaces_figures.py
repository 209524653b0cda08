"""Results of shared spaces: the variants of each recipe under one budget, several seeds, with intervals.

    uv run python benchmarks/spaces_figures.py image_text --output figures     # objectives of images and texts
    uv run python benchmarks/spaces_figures.py multimodal --output figures     # pairs in training, and one that is not
    uv run python benchmarks/spaces_figures.py image_cmc --output figures      # channels of an image

Every variant of a recipe trains on the bundled data for the same steps. Each finished run adds a line to the recipe's
file; after an interruption, finished runs are skipped. Intervals are Student's t of the mean over seeds at 95 %. The
baselines are untrained encoders of the same seeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent.parent / "recipes"
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "image_text": {name: {"objective": name} for name in ("clip", "class-aware", "graded", "cwcl")},
    "multimodal": {
        "bound through names": {},
        "all pairs met": {"pairs": ("image-text", "text-audio", "image-audio")},
    },
    "image_cmc": {
        "luminance, chroma": {},
        "luminance, chroma, edges": {"channels": ("luminance", "chroma", "edges")},
        "luminance, chroma; by class": {"objective": "supcon"},
    },
}
# Another vendor's drawings come first: retrieval of training pairs measures memorization.
SETS = ("another_vendor", "held_out_another_vendor", "held_out", "training_pairs")
# 97.5 % quantiles of Student's distribution, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=VARIANTS)
    parser.add_argument("--variants", nargs="+", help="by default all of the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("spaces-figures"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"{options.recipe}.jsonl"
    for seed in options.seeds:
        for variant in options.variants or VARIANTS[options.recipe]:
            if (variant, seed) not in [(line["variant"], line["seed"]) for line in read(file)]:
                line = train(options.recipe, variant, seed, options.output)
                with file.open("a") as lines:
                    lines.write(json.dumps(line) + "\n")
            print(TABLES[options.recipe](by_variant(read(file))), flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of the finished runs."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def by_variant(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results of all seeds, by variant; untrained encoders last."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["variant"], []).append(line["figures"])
    first = next(iter(found.values()))
    return found | {"untrained": [run.get("random_towers") or run["random_encoders"] for run in first]}


def train(recipe: str, variant: str, seed: int, output: Path) -> dict[str, Any]:
    """One run of a recipe, in this process."""
    spec: Any = importlib.util.spec_from_file_location(recipe, RECIPES / f"{recipe}.py")
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[recipe] = module
    spec.loader.exec_module(module)
    folder, begin = output / f"{recipe}-{variant.replace(' ', '-')}-{seed}", time.time()
    settings = {"seed": seed, "output_dir": folder, "cpu": True, "log_every": 100}
    module.main(module.Config(**settings, **VARIANTS[recipe][variant]))
    figures = json.loads((folder / "results.json").read_text())
    return {"variant": variant, "seed": seed, "seconds": time.time() - begin, "figures": figures}


# --- tables ----------------------------------------------------------------------------------------------------------

Runs = dict[str, list[dict[str, Any]]]


def of_image_text(found: Runs) -> str:
    """Recall at 1 and 10 from images to texts on each set, zero-shot top-1, and the modality gap."""
    columns: dict[str, Callable[[dict[str, Any]], list[float]]] = {
        f"{name.replace('_', ' ')}, R@1 / R@10": lambda run, name=name: recalls(run[name]["first_to_second"])
        for name in SETS
    }
    columns["zero-shot, another vendor"] = lambda run: [run["zero_shot"]["another_vendor"]]
    columns["zero-shot, held out"] = lambda run: [run["zero_shot"]["held_out"]]
    columns["gap, held out"] = lambda run: [run["held_out"]["gap"]]
    return table(found, columns)


def of_multimodal(found: Runs) -> str:
    """Recall at 1 and 10 of each pair, first to second, on training and on held-out samples."""
    return table(
        found,
        {
            f"{pair}, {split.replace('_', ' ')}": lambda run, split=split, pair=pair: recalls(
                run[split][pair]["first_to_second"]
            )
            for split in ("training_samples", "held_out")
            for pair in ("image-audio", "image-text", "text-audio")
        },
    )


def of_image_cmc(found: Runs) -> str:
    """Linear probe and k-NN on the concatenated features of all encoders."""
    raw = {"raw pixels": [run["raw_pixels"] for run in next(iter(found.values()))][:1]}
    names = {"linear probe": "linear_probe", "k-NN": "knn"}
    return table(found | raw, {title: lambda run, name=name: [run[name]] for title, name in names.items()})


TABLES: dict[str, Callable[[Runs], str]] = {
    "image_text": of_image_text,
    "multimodal": of_multimodal,
    "image_cmc": of_image_cmc,
}


def recalls(way: dict[str, Any]) -> list[float]:
    return [way["recall_at_1"], way["recall_at_10"]]


def table(found: Runs, columns: dict[str, Callable[[dict[str, Any]], list[float]]]) -> str:
    """A line for each variant, with the mean over seeds and half the interval."""
    lines = [f"| | seeds | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for name, runs in found.items():
        values = [[of(run) for run in runs] for of in columns.values()]
        cells = [" / ".join(interval(list(same)) for same in zip(*cell, strict=True)) for cell in values]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = STUDENT[min(4, len(values) - 1)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
