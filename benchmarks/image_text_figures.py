"""CLIP's objective beside class-aware and graded ones on pictures and texts: one budget, several seeds, with intervals.

    uv run python benchmarks/image_text_figures.py --output figures

Every objective trains the recipe's towers on the bundled pairs for the same steps. A line is added to `figures.jsonl`
when a run ends, so a run that is stopped loses nothing: runs that have their line are passed over. The interval is that
of the mean over seeds, Student's t at 95 %.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parent.parent / "recipes" / "image_text.py"
OBJECTIVES = ("clip", "class-aware", "graded", "cwcl")
SETS = ("training_pairs", "another_vendor", "held_out", "held_out_another_vendor")
# Of Student's distribution, 97.5 %, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("image-text-figures"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for objective in options.objectives:
            if (objective, seed) not in [(line["objective"], line["seed"]) for line in read(options.output)]:
                line = train(objective, seed, options.output)
                with (options.output / "figures.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
            print(table(read(options.output)), flush=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines that there are."""
    file = folder / "figures.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def train(objective: str, seed: int, output: Path) -> dict[str, Any]:
    """One run of the recipe, in this process."""
    spec: Any = importlib.util.spec_from_file_location("image_text", RECIPE)
    recipe: Any = importlib.util.module_from_spec(spec)
    sys.modules["image_text"] = recipe
    spec.loader.exec_module(recipe)
    folder, begin = output / f"{objective}-{seed}", time.time()
    recipe.main(recipe.Config(objective=objective, seed=seed, output_dir=folder, cpu=True, log_every=100))
    figures = json.loads((folder / "results.json").read_text())
    return {"objective": objective, "seed": seed, "seconds": time.time() - begin, "figures": figures}


def table(lines: list[dict[str, Any]]) -> str:
    """Recall from pictures to texts at 1 and 10 on each set, zero-shot top-1, and the gap: means and half intervals."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        columns.setdefault(line["objective"], []).append(line["figures"])
    columns["random towers"] = [line["figures"]["random_towers"] for line in lines if line["objective"] == "clip"]
    names = " | ".join(name.replace("_", " ") for name in SETS)
    said = [f"| | seeds | {names} | zero-shot, held out | gap, held out |", "|---|---|" + "---|" * (len(SETS) + 2)]
    for name, runs in columns.items():
        if not runs:
            continue
        ways = [[run[part]["there"] for run in runs] for part in SETS]
        cells = [" / ".join(interval([way[f"recall_at_{k}"] for way in part]) for k in (1, 10)) for part in ways]
        cells.append(interval([run["zero_shot"]["held_out"] for run in runs]))
        cells.append(interval([run["held_out"]["gap"] for run in runs]))
        said.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(said)


def interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = STUDENT[min(4, len(values) - 1)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
