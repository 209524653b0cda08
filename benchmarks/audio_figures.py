"""What the audio recipe reaches: objectives under one budget, several seeds, with intervals.

    uv run python benchmarks/audio_figures.py                                   # the bundled speech
    uv run python benchmarks/audio_figures.py --debian FOLDER --output full     # all prompts of the Debian packages

FOLDER holds the unpacked `asterisk-core-sounds-{en,es,fr}-wav` (`apt-get download`, then `dpkg-deb -x` each into it).
Every prompt that all three languages have becomes three rows of a manifest; the recipe splits it by prompt. A line is
added to `figures.jsonl` when a run ends, so a run that is stopped loses nothing: runs that have their line are passed
over. The interval is that of the mean over seeds, Student's t at 95 %.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

RECIPE = Path(__file__).parent.parent / "recipes" / "audio_supcon.py"
# Of Student's distribution, 97.5 %, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debian", type=Path, help="the unpacked packages; by default the bundled speech")
    parser.add_argument("--objectives", nargs="+", default=["cross-lingual", "supcon", "simclr"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="the budget, in batches of 96 recordings")
    parser.add_argument("--output", type=Path, default=Path("audio-figures"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    data = str(manifest(options.debian, options.output)) if options.debian else "samples/speech"
    lines = options.output / "figures.jsonl"
    known = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    for seed in range(options.seeds):
        for objective in options.objectives:
            if any((line["objective"], line["seed"]) == (objective, seed) for line in known):
                continue
            known.append(train(data, objective, seed, options))
            with lines.open("a") as file:
                file.write(json.dumps(known[-1]) + "\n")
            print(table(known), flush=True)


def manifest(folder: Path, output: Path) -> Path:
    """The table of all prompts that are spoken in each language; silences and beeps are left out."""
    sounds: dict[str, dict[str, Path]] = {}
    for voice in sorted((folder / "usr/share/asterisk/sounds").iterdir()):
        files = {str(f.relative_to(voice).with_suffix("")): f.resolve() for f in voice.rglob("*.wav")}
        sounds[voice.name[:2]] = {p: f for p, f in files.items() if "silence" not in p and "beep" not in p}
    shared = sorted(set.intersection(*(set(files) for files in sounds.values())))
    with (output / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "label", "prompt", "language"])
        writer.writerows([sounds[code][p], p, p, code] for p in shared for code in sounds)
    return output / "manifest.csv"


def train(data: str, objective: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of the recipe, in this process; the schedule ends with the budget."""
    spec: Any = importlib.util.spec_from_file_location("audio_supcon", RECIPE)
    recipe: Any = importlib.util.module_from_spec(spec)
    sys.modules["audio_supcon"] = recipe
    spec.loader.exec_module(recipe)
    rows = len(recipe.open_source(data, "train", rate_hz=8_000))
    epochs = -(-options.steps // max(1, rows // 96))
    folder, begin = options.output / f"{objective}-{seed}", time.time()
    settings = {"data": data, "objective": objective, "seed": seed, "epochs": epochs, "output_dir": folder}
    recipe.main(recipe.Config(**settings, max_steps=options.steps, cpu=True, log_every=20, force=True))
    figures = json.loads((folder / "results.json").read_text())
    return {"objective": objective, "seed": seed, "seconds": time.time() - begin, "figures": figures}


def table(lines: list[dict[str, Any]]) -> str:
    """Voice probe and recall at 1, 5 and 10, mean and half the interval over seeds."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        of = line["figures"]
        columns.setdefault(line["objective"], []).append(of)
        columns.setdefault("random encoder", []).append(of["random_encoder"])
        columns["log-mel statistics"] = [of["log-mel_statistics"]]
    said = [f"| | seeds | voice probe | {' | '.join(f'recall@{k}' for k in (1, 5, 10))} |", "|---|---|---|---|---|---|"]
    for name, runs in columns.items():
        # A random encoder is the same for one seed under every objective.
        runs = list({json.dumps(run, sort_keys=True): run for run in runs}.values())
        cells = [interval([run["voice_probe"] for run in runs])]
        cells += [interval([run["recall"][f"at_{k}"] for run in runs]) for k in (1, 5, 10)]
        said.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    chance = lines[0]["figures"]["recall_chance"]
    said.append(f"| chance | | | {' | '.join(f'{chance[name]:.3f}' for name in ('at_1', 'at_5', 'at_10'))} |")
    return "\n".join(said)


def interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = STUDENT[min(4, len(values) - 1)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.3f} ± {half:.3f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
