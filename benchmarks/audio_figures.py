"""Results of the audio recipe: objectives under one budget, several seeds, with intervals.

    uv run python benchmarks/audio_figures.py                                   # the bundled speech
    uv run python benchmarks/audio_figures.py --debian FOLDER --output full     # all prompts of the Debian packages

FOLDER holds the unpacked `asterisk-core-sounds-{en,es,fr}-wav` (`apt-get download`, then `dpkg-deb -x` each into it;
`/` where they are installed). Every prompt that all three languages have becomes three rows of a manifest, and a fifth
of the prompts is held out, by their names. Each finished run adds a line to `figures.jsonl`. After an interruption,
finished runs are skipped, and the unfinished one resumes from its last checkpoint. ± is Student's interval of the mean
over seeds at 95 %; brackets hold the bootstrap interval over held-out prompts of the mean over seeds.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mmcon
from mmcon.evaluation.audio import across_languages
from mmcon.evaluation.features import Features
from mmcon.evaluation.retrieval import retrieve
from mmcon.evaluation.statistics import bootstrap, paired_permutation, t_interval
from mmcon.random import stable_ids
from mmcon.sources.splits import held_out

RECIPE = Path(__file__).parent.parent / "recipes" / "audio_supcon.py"
NO_SPEECH = re.compile(r"silence|beep|2tone|^tt-monkeys$")
TEST_SHARE = 0.2
KS = (1, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debian", type=Path, help="the unpacked packages; by default the bundled speech")
    parser.add_argument("--objectives", nargs="+", default=["cross-lingual", "supcon", "simclr", "cola"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80, help="the budget, in batches of 96 recordings")
    parser.add_argument("--window-seconds", type=float, help="the width of views; by default the recipe's")
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
            print(table(known, options.output), flush=True)


def manifest(folder: Path, output: Path) -> Path:
    """A table of the prompts that every language has, without silences, beeps, tones and jokes."""
    sounds: dict[str, dict[str, Path]] = {}
    for voice in sorted((folder / "usr/share/asterisk/sounds").iterdir()):
        files = {str(f.relative_to(voice).with_suffix("")): f.resolve() for f in voice.rglob("*.wav")}
        sounds[voice.name[:2]] = {p: f for p, f in files.items() if not NO_SPEECH.search(p)}
    shared = sorted(set.intersection(*(set(files) for files in sounds.values())))
    splits = ["test" if out else "train" for out in held_out(stable_ids(shared), TEST_SHARE).tolist()]
    with (output / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "label", "prompt", "language", "split"])
        writer.writerows(
            [sounds[code][prompt], prompt, prompt, code, split]
            for prompt, split in zip(shared, splits, strict=True)
            for code in sounds
        )
    return output / "manifest.csv"


def train(data: str, objective: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of the recipe, in this process; the learning-rate schedule ends with the budget."""
    recipe = the_recipe()
    folder, begin = options.output / f"{objective}-{seed}", time.time()
    settings = {"data": data, "objective": objective, "seed": seed, "output_dir": folder}
    settings |= {"window_seconds": options.window_seconds} if options.window_seconds else {}
    config = recipe.Config(**settings, max_steps=options.steps, cpu=True, log_every=20, force=True, resume=True)
    train = mmcon.create_source(config.data, modality="audio", split="train", rate_hz=config.sample_rate_hz)
    sampler = recipe.make_sampler(config, train)
    epochs = -(-options.steps // sampler.steps_per_epoch)
    recipe.main(replace(config, epochs=epochs))
    figures = json.loads((folder / "results.json").read_text())
    return {"objective": objective, "seed": seed, "seconds": time.time() - begin, "figures": figures}


def the_recipe() -> Any:
    if "audio_supcon" not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location("audio_supcon", RECIPE)
        sys.modules["audio_supcon"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["audio_supcon"])
    return sys.modules["audio_supcon"]


def table(lines: list[dict[str, Any]], folder: Path) -> str:
    """Voice probe and recall at 1, 5 and 10: mean ± the interval over seeds [the interval over prompts]."""
    lines_of_table = [
        f"| | seeds | voice probe | {' | '.join(f'recall@{k}' for k in KS)} |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in by_name(lines).items():
        cells = [over_seeds([line["figures"].get(subject, line["figures"])["voice_probe"] for subject, line in runs])]
        found = [queries(folder, subject, line) for subject, line in runs]
        for k in KS:
            hits = torch.stack([(rank <= k).double() for rank, _ in found])
            over_prompts = bootstrap(hits.mean(0), groups=found[0][1])
            cells.append(f"{over_seeds(hits.mean(1).tolist())} [{over_prompts.low:.3f}, {over_prompts.high:.3f}]")
        lines_of_table.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    chance = [lines[0]["figures"]["recall_chance"][f"at_{k}"] for k in KS]
    lines_of_table.append(f"| chance | | | {' | '.join(f'{value:.3f}' for value in chance)} |")
    return "\n".join([*lines_of_table, *comparisons(lines, folder)])


def by_name(lines: list[dict[str, Any]]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The rows of the table: by name, the encoder and its runs."""
    rows = [(line["objective"], "trained_encoder", line) for line in lines]
    # The random encoder depends on the seed only, except that COLA has another sample rate.
    first = lines[0]["objective"]
    rows += [("random encoder", "random_encoder", line) for line in lines if line["objective"] == first]
    if first != "cola":
        rows += [("random, at cola's rate", "random_encoder", line) for line in lines if line["objective"] == "cola"]
    rows += [("log-mel statistics", "log-mel_statistics", lines[0])]
    names = dict.fromkeys(name for name, _, _ in rows)
    return {name: [(subject, line) for called, subject, line in rows if called == name] for name in names}


def comparisons(lines: list[dict[str, Any]], folder: Path, k: int = 5) -> list[str]:
    """The first objective against each other row: mean difference over seeds, and a permutation test over prompts."""
    hits, prompts = {}, torch.tensor([])
    for name, runs in by_name(lines).items():
        found = [queries(folder, subject, line) for subject, line in runs]
        hits[name], prompts = torch.stack([(rank <= k).double() for rank, _ in found]).mean(0), found[0][1]
    first, *others = hits
    tests = {name: paired_permutation(hits[first], hits[name], groups=prompts) for name in others}
    return [
        f"{first} - {name}, recall@{k}: {test.difference:+.3f}, p = {test.p_value:.4f} over {test.n} prompts"
        for name, test in tests.items()
    ]


def queries(folder: Path, subject: str, line: dict[str, Any]) -> tuple[Any, Any]:
    """Of each held-out recording, the rank of its prompt in another language, and the prompt."""
    run = folder / f"{line['objective']}-{line['seed']}"
    features = Features.load(run / "features" / f"{subject}-test.safetensors")
    found = retrieve(features, features, relevance=across_languages, exclude_same="language")
    return found.first_rank, features.index["prompt"]


def over_seeds(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    interval = t_interval(values)
    return f"{interval.value:.3f} ± {interval.value - interval.low:.3f}"


if __name__ == "__main__":
    main()
