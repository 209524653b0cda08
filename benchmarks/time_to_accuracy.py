"""Training time until a linear probe reaches a target accuracy, on all of Fashion-MNIST.

    apt-get install dataset-fashion-mnist
    uv run python benchmarks/time_to_accuracy.py                         # two cores, about an hour
    uv run python benchmarks/time_to_accuracy.py --device cuda --target 0.94 --encoder resnet18 --mixed-precision bf16
    uv run python benchmarks/time_to_accuracy.py --board supcon simclr   # some rows only
    uv run python benchmarks/time_to_accuracy.py --rates supcon=0.008 supcontrast=0.1   # searched before

Every row trains the same encoder from the same initial weights. First, the learning rate is searched with the first
seed: four rates, from half the row's default to four times it in factors of two, are trained for two epochs on 55,000
images and compared by a probe on the 5,000 held-out images. Then schedules of one, two, three, four, six, … epochs are
trained from the beginning on all 60,000 images, until the probe on the 10,000 test images reaches the target in the
mean over seeds: the shortest complete schedule that suffices. (If a seed misses the target by more than .01, the
remaining seeds are skipped.) The time is that of training under this schedule, views included, in the mean over seeds;
the time of the probe is reported separately. Core-seconds are summed over all processes of a row; they stay comparable
on a shared machine.

`supcon` has the settings of the reference recipe, through Run; `in`, `simclr` and `cross-entropy` are the recipe with
another objective; `supcontrast` is SupContrast's published procedure in plain PyTorch (`supcontrast_procedure.py`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import supcontrast_procedure
import torch
from torch import Tensor, nn

import mmcon
from mmcon.affinity import SameLabel, SameSample
from mmcon.batch import Index
from mmcon.evaluation.features import Features
from mmcon.evaluation.probe import linear_probe
from mmcon.loading.loader import ViewLoader
from mmcon.models.classifier import Classifier
from mmcon.models.encoders import create_encoder
from mmcon.objective.baseline_objectives import CrossEntropy
from mmcon.random import keys
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import TensorSource
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.run import Run, RunSettings

FOLDER = Path("/usr/share/datasets/fashion-mnist")
HELD_OUT = 5_000 / 60_000
NEAR = 0.01
SEARCHED = (0.5, 1, 2, 4)
DEFAULTS = {"supcontrast": supcontrast_procedure.LEARNING_RATE, "cross-entropy": 4e-3}
RECIPE_RATE = 4e-3


@dataclass(frozen=True)
class Images:
    """Images `n h w` uint8 and labels `n`."""

    pixels: Tensor
    labels: Tensor

    def take(self, rows: Tensor) -> Images:
        """The images at indices, or under a mask."""
        return Images(self.pixels[rows], self.labels[rows])


def read(folder: Path, split: str) -> Images:
    """A split of Fashion-MNIST, as Debian installs it."""
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16)
    return Images(torch.tensor(pixels).view(len(labels), 28, 28), torch.tensor(labels).long())


# --- training --------------------------------------------------------------------------------------------------------


def by_recipe(
    encoder: nn.Module,
    data: Images,
    options: argparse.Namespace,
    row: str,
    *,
    seed: int,
    epochs: int,
    learning_rate: float,
) -> float:
    """Train the encoder in place as the reference recipe does, and return the seconds of training."""
    source = TensorSource(data.pixels[:, None], labels=data.labels)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            Path(folder) / "run",
            seed=seed,
            settings=RunSettings(epochs=epochs),
            mixed_precision=options.mixed_precision,
            cpu=options.device == "cpu",
        )
        view = mmcon.create_view("image/simclr", size=28, area=(0.5, 1.0), strength=0.5)
        sampler = UniformSampler(data.labels, batch_size=options.batch_size, seed=seed)
        loader = ViewLoader(
            source, {"image": [view] * 2}, sampler, seed=seed, workers=options.workers, device=run.device
        )
        network: nn.Module = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=128)})
        affinity = SameSample() if row == "simclr" else SameLabel()
        objective: nn.Module = mmcon.Objective(affinity=affinity, temperature=0.1, form="in" if row == "in" else "out")
        if row == "cross-entropy":
            network, objective = Classifier(encoder, 10), CrossEntropy(source)
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = create_optimizer([network, objective], "adamw", learning_rate=learning_rate, weight_decay=1e-4)
        steps = epochs * len(loader)
        schedule = create_schedule(optimizer, "cosine", steps=steps, warmup_steps=round(0.1 * steps))
        trained = run.prepare(network, optimizer, schedule, objective=objective)
        began = time.perf_counter()
        for batch in run.batches(loader):
            run.step(objective(trained(batch), batch))
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        run.close()
        *_, last = (run.folder / "metrics.jsonl").read_text().splitlines()
        phases = ("waiting_for_data", "views", "forward", "backward", "optimizer")
        print("shares of a step:", {name: round(json.loads(last).get(name, 0), 3) for name in phases}, flush=True)
    return seconds


def core_seconds() -> float:
    """Processor time of this process and of its finished child processes."""
    used = (resource.getrusage(processes) for processes in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def train(
    row: str, data: Images, seed: int, options: argparse.Namespace, *, epochs: int, learning_rate: float
) -> tuple[nn.Module, float, float]:
    """A trained encoder, and the seconds and core-seconds of its training."""
    began = core_seconds()
    device = torch.device(options.device)
    torch.manual_seed(seed)
    encoder = create_encoder(options.encoder, image_size=28, in_channels=1).to(device)
    settings: dict[str, Any] = {"seed": seed, "epochs": epochs, "learning_rate": learning_rate}
    if row == "supcontrast":
        seconds = supcontrast_procedure.train(encoder, data.pixels, data.labels, device=device, **settings)
    else:
        seconds = by_recipe(encoder, data, options, row, **settings)
    return encoder, seconds, core_seconds() - began


# --- evaluation ------------------------------------------------------------------------------------------------------


def features(encoder: nn.Module, data: Images, device: torch.device) -> Features:
    """Features of the images without augmentation."""
    encoder.eval()
    with torch.no_grad():
        blocks = [encoder(x[:, None].to(device) / 255.0).float() for x in data.pixels.split(1000)]
    return Features(torch.cat(blocks), Index({"label": data.labels}))


def probe(encoder: nn.Module, train: Images, test: Images, device: torch.device) -> float:
    """Top-1 of a linear probe; one L2 strength for all rows."""
    return linear_probe(features(encoder, train, device), features(encoder, test, device), l2=1e-4).top1


def search(row: str, data: Images, options: argparse.Namespace) -> tuple[float, list[str]]:
    """The best learning rate after a short schedule, and the accuracy of each rate."""
    out = keys(sample=torch.arange(len(data.labels))).uniform("held out") < HELD_OUT
    kept, held = data.take(~out), data.take(out)
    accuracies = {}
    for factor in SEARCHED:
        rate = factor * DEFAULTS.get(row, RECIPE_RATE)
        encoder, *_ = train(row, kept, options.seeds[0], options, epochs=options.search_epochs, learning_rate=rate)
        accuracies[rate] = probe(encoder, kept, held, torch.device(options.device))
        print(f"{row}: learning rate {rate:g}: {accuracies[rate]:.4f} on held-out training images", flush=True)
    return max(accuracies, key=lambda rate: accuracies[rate]), [
        f"{rate:g} {top1:.3f}" for rate, top1 in accuracies.items()
    ]


@dataclass(frozen=True)
class Trial:
    """One seed under one schedule: the accuracy of its probe, and the times of training and probe."""

    top1: float
    seconds: float
    core_seconds: float
    probe_seconds: float


def attempt(
    row: str, data: Images, test: Images, seed: int, options: argparse.Namespace, *, epochs: int, rate: float
) -> Trial:
    """Train under a schedule from its beginning, and fit the probe."""
    encoder, seconds, cores = train(row, data, seed, options, epochs=epochs, learning_rate=rate)
    began = time.perf_counter()
    top1 = probe(encoder, data, test, torch.device(options.device))
    probe_seconds = time.perf_counter() - began
    print(
        f"{row}: {epochs} epoch(s), learning rate {rate:g}, seed {seed}: {top1:.4f} after {seconds:.1f} s,"
        f" {cores:.1f} core-seconds, and {probe_seconds:.1f} s of probe",
        flush=True,
    )
    return Trial(top1, seconds, cores, probe_seconds)


@dataclass(frozen=True)
class Finish:
    """The result of a row: its learning rate, its last schedule, and the trials under it, one a seed."""

    row: str
    rate: float
    searched: list[str]
    epochs: int
    trials: list[Trial]
    reached: bool

    def mean(self, quantity: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(getattr(trial, quantity) for trial in self.trials)

    def summary(self, quantity: str, spec: str) -> str:
        """The mean over seeds, and for several seeds the minimum and the maximum."""
        values = [getattr(trial, quantity) for trial in self.trials]
        around = f" ({min(values):{spec}} to {max(values):{spec}})" if len(values) > 1 else ""
        return f"{self.mean(quantity):{spec}}{around}"


def shortest_schedule(row: str, data: Images, test: Images, options: argparse.Namespace) -> Finish:
    """The shortest schedule of a row that reaches the target."""
    known = options.rates.get(row)
    rate, searched = (known, []) if known else search(row, data, options)
    for epochs in options.schedules:
        trials: list[Trial] = []
        for seed in options.seeds:
            trials.append(attempt(row, data, test, seed, options, epochs=epochs, rate=rate))
            if trials[-1].top1 < options.target - NEAR:
                break
        finish = Finish(row, rate, searched, epochs, trials, reached=False)
        if len(trials) == len(options.seeds) and finish.mean("top1") >= options.target:
            return replace(finish, reached=True)
    return finish


def table(found: list[Finish], target: float) -> str:
    """The rows, with times relative to the first."""
    first = found[0]
    lines = [
        f"| until a probe of {target:.3f} | learning rate (searched) | epochs | seconds | core-seconds"
        f" | times {first.row}, seconds | core-seconds | top-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        more = "" if one.reached else "more than "
        searched = f" ({', '.join(one.searched)})" if one.searched else ""
        times = [one.mean(quantity) / first.mean(quantity) for quantity in ("seconds", "core_seconds")]
        lines.append(
            f"| {one.row} | {one.rate:g}{searched} | {more}{one.epochs} | {more}{one.summary('seconds', '.0f')}"
            f" | {more}{one.summary('core_seconds', '.0f')} | {more}{times[0]:.2f} | {more}{times[1]:.2f}"
            f" | {one.summary('top1', '.4f')} |"
        )
    return "\n".join(lines)


def named_rate(text: str) -> tuple[str, float]:
    """`row=rate`."""
    row, _, rate = text.partition("=")
    return row, float(rate)


def main() -> None:
    rows = ("supcon", "supcontrast", "in", "simclr", "cross-entropy")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", nargs="+", choices=rows, default=rows, help="rows; times are relative to the first")
    parser.add_argument("--data", type=Path, default=FOLDER, help="the folder of the data set's idx.gz files")
    parser.add_argument("--target", type=float, default=0.9, help="top-1 of the probe on the test images")
    parser.add_argument("--schedules", nargs="+", type=int, default=(1, 2, 3, 4, 6, 8, 12), help="in epochs, ascending")
    parser.add_argument("--search-epochs", type=int, default=2)
    parser.add_argument(
        "--rates",
        nargs="+",
        action="extend",
        type=named_rate,
        default=[],
        metavar="ROW=RATE",
        help="learning rates, not searched; the last of a row counts",
    )
    parser.add_argument("--encoder", default="mmcon/resnet-tiny")
    parser.add_argument("--batch-size", type=int, default=128, help="of the recipe")
    parser.add_argument("--workers", type=int, default=0, help="of the recipe")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="of the recipe")
    parser.add_argument("--images", type=int, help="train on so many images only, to try the script")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    options.rates = dict(options.rates)
    if not options.data.is_dir():
        raise SystemExit(f"{options.data} is missing: apt-get install dataset-fashion-mnist, or give --data FOLDER")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    data, test = read(options.data, "train"), read(options.data, "t10k")
    if options.images:
        data = data.take(torch.arange(options.images))
    found = [shortest_schedule(row, data, test, options) for row in options.board]
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    print(f"\n{where}, {torch.get_num_threads()} thread(s), {len(data.labels):,} images, seeds {options.seeds}\n")
    print(table(found, options.target))


if __name__ == "__main__":
    main()
