"""Graded weights against binary positives, under one budget: many synthetic clips, and a few real ones.

    uv run python benchmarks/video_figures.py --output figures scenes
    uv run python benchmarks/video_figures.py --output figures real --videos path/to/videos

`scenes`: the bundled synthetic clips with nuisance, 160 for training and 80 held out; three seeds. Intervals are over
clips, of the means over seeds; the paired permutation test exchanges the objectives within clips.

`few`: the same with six training clips, as many as a fold of eight real videos has.

`real`: a folder of videos, split by video in four folds, so that every video is held out once for each seed. They are
cut into windows of three seconds; frame times are compared within a window, and the value of a video is the mean over
its windows and over seeds.

Finished runs are skipped. `summary` reads the finished runs, and `picture` plots the cosine of two frame times against
the time between them.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

import mmcon
from mmcon.evaluation.features import Features
from mmcon.evaluation.statistics import bootstrap, paired_permutation
from mmcon.evaluation.temporal_report import space_embeddings
from mmcon.report.video_sheet import write_similarity_by_lag

FIGURES = ("lag_correlation", "retrieval_seconds", "lag_error_seconds", "order_accuracy")
ENCODERS = ("trained", "slow", "fast", "random", "raw_pixels")
STATES = ("plain", "disturbed")
FOLDS = 4


def recipe() -> Any:
    """The recipe as a module."""
    path = Path(__file__).parents[1] / "recipes" / "video_graded.py"
    spec = importlib.util.spec_from_file_location("video_graded", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["video_graded"] = module
    spec.loader.exec_module(module)
    return module


def train(experiment: str, options: argparse.Namespace) -> None:
    """All runs of an experiment, seed by seed, so that the first seed is complete first."""
    video_graded = recipe()
    folds = range(FOLDS) if experiment == "real" else [None]
    for seed, fold, objective in itertools.product(options.seeds, folds, ("graded", "binary")):
        folder = options.output / experiment / f"{objective}-seed{seed}" / ("all" if fold is None else f"fold{fold}")
        if (folder / "results.json").is_file():
            continue
        settings: dict[str, Any] = {"objective": objective, "seed": seed, "output_dir": folder, "cpu": True}
        if experiment == "few":
            settings |= {"train_rows": 6, "epochs": 320}
        elif experiment == "real":
            settings |= {"data": str(options.videos), "fold": fold, "folds": FOLDS, "window_seconds": 3.0}
            settings |= {"slow_seconds": 0.6, "fast_seconds": 0.15, "framing": 0.3, "crop_area": 0.9, "eval_views": 13}
            # Few clips and many frame times: with many clips in a batch, the loss only separates clips.
            settings |= {"batch_size": 3, "views": 32}
            settings["epochs"] = epochs_of(video_graded, settings, options.real_steps)
        started = time.perf_counter()
        video_graded.main(video_graded.Config(**settings, resume=folder.exists(), log_every=100))
        print(f"{folder}: {time.perf_counter() - started:.0f} s", flush=True)


def epochs_of(video_graded: Any, settings: dict[str, Any], steps: int) -> int:
    """Epochs for this number of steps, so that folds of few and of many videos have one budget."""
    config = video_graded.Config(**settings)
    return math.ceil(steps / (len(video_graded.open_split(config, "train")) // config.batch_size))


def summary(output: Path) -> None:
    """Means over clips with intervals, and the paired test, of every finished experiment."""
    for experiment in ("scenes", "few", "real"):
        found = {objective: collect(output / experiment, objective) for objective in ("graded", "binary")}
        for state, encoder, figure in itertools.product(STATES, ENCODERS, FIGURES):
            graded, binary = (found[objective][state, encoder, figure] for objective in ("graded", "binary"))
            clips = sorted(set(graded) & set(binary))
            if not clips:
                continue
            seeds = min(len(of[clip]) for of in (graded, binary) for clip in clips)
            ours, theirs = (torch.tensor([sum(of[c][:seeds]) / seeds for c in clips]) for of in (graded, binary))
            line = f"{experiment} {state:9} {len(clips):3} clips {seeds} seeds  {encoder:11} {figure:18}"
            line += f" graded {bootstrap(ours)}"
            if encoder not in ("random", "raw_pixels"):
                test = paired_permutation(ours, theirs)
                spread = [sum(of[c][s] for c in clips) / len(clips) for of in (graded, binary) for s in range(seeds)]
                by_seed = " ".join(f"{value:.3f}" for value in spread)
                line += f"  binary {bootstrap(theirs)}  {test}  by seed {by_seed}"
            print(line)


def picture(output: Path, experiment: str) -> None:
    """Cosine by lag in the fast space on held-out clips, for both objectives, with the first seed."""
    lines: dict[str, list[Features]] = defaultdict(list)
    for objective in ("graded", "binary"):
        for run in sorted((output / experiment / f"{objective}-seed0").glob("*/model")):
            features = Features.load(run.parent / "features" / "trained_plain-test.safetensors")
            model = mmcon.ContrastiveModel.from_pretrained(run)
            lines[f"{objective}, fast space"].append(space_embeddings(model, "fast", features))
    by_line = {name: Features.cat(tables) for name, tables in lines.items()}
    write_similarity_by_lag(output / f"{experiment}_similarity_by_lag.png", by_line)


def collect(folder: Path, objective: str) -> dict[tuple[str, str, str], dict[int, list[float]]]:
    """By state of the frames, encoder and metric, the values of every clip, one a seed."""
    found: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob(f"{objective}-seed*/*/results.json")):
        results = json.loads(file.read_text())
        for state, encoder, figure in itertools.product(STATES, ENCODERS, FIGURES):
            of = results[state][encoder]
            for clip, value in zip(of["clip_ids"], of["by_clip"][figure], strict=True):
                found[state, encoder, figure][clip].append(value)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=("scenes", "few", "real", "summary", "picture"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--videos", type=Path, help="folder of real videos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--real-steps", type=int, default=200)
    given = parser.parse_args()
    if given.experiment == "real" and given.videos is None:
        parser.error("real needs --videos FOLDER")
    if given.experiment == "picture":
        for experiment in ("scenes", "few", "real"):
            if (given.output / experiment).is_dir():
                picture(given.output, experiment)
    else:
        if given.experiment != "summary":
            train(given.experiment, given)
        summary(given.output)
