"""Trials of the default settings: no combination of encoder, batch size and data may collapse.

    python benchmarks/default_settings.py --seeds 0 1 2

Each trial trains a few steps of SupCon with the reference recipe's defaults, and prints a row of the table in
docs/encoders.md: the family of the encoder, its default learning rate, the loss of identical embeddings, the mean loss
of the last ten steps, and the spread of the embeddings at the end and at its least from the fifteenth step on, which is
near 0 if they collapsed. Made pictures show a kind of shape at any place, size and color. The texture
and color of the ground go with the kind, but not in "shapes", which are the hardest.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import mmcon
from mmcon.affinity import SameLabel
from mmcon.samplers.factory import create_batch_sampler
from mmcon.sources.base import Source, Subset, channels_of
from mmcon.training.collapse import COLLAPSED_SPREAD, FIRST_WARNING
from mmcon.training.default_rates import default_rates, encoder_family
from mmcon.training.logging import MetricsLog
from mmcon.training.optim import create_optimizer_and_schedule


@dataclass(frozen=True)
class Trial:
    """An encoder, a batch size, data, and the length of the training.

    Attributes:
        encoder: by name.
        batch_size: samples a step.
        data: "pictures" or "shapes" and the numbers of kinds and pictures, or the name of a bundled set.
        size: side of the views in pixels.
        steps: of the whole schedule.
    """

    encoder: str
    batch_size: int
    data: str
    size: int
    steps: int


TRIALS = (
    Trial("mmcon/resnet-tiny", 8, "pictures 3 88", 28, 100),
    Trial("mmcon/resnet-tiny", 32, "samples/emoji", 28, 100),
    Trial("mmcon/resnet-tiny", 128, "samples/fashion", 28, 40),
    Trial("resnet18", 32, "pictures 3 88", 66, 28),
    Trial("resnet18", 32, "shapes 3 88", 66, 28),
    Trial("timm/resnet10t", 16, "pictures 5 200", 66, 40),
    Trial("mobilenet_v3_small", 32, "pictures 3 88", 66, 60),
    Trial("timm/mobilenetv3_small_050", 16, "pictures 5 200", 66, 60),
    Trial("timm/vit_tiny_patch16_224", 32, "pictures 3 88", 64, 40),
    Trial("timm/vit_tiny_patch16_224", 64, "samples/emoji", 64, 30),
    Trial("timm/convnext_atto", 32, "pictures 5 200", 64, 30),
)


def make_pictures(folder: Path, kinds: int, count: int, *, shapes_alone: bool = False, seed: int = 0) -> Path:
    """Write pictures of about 100 pixels, a folder for each kind; with `shapes_alone`, a ground tells nothing."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind = number % kinds
        height, width = rng.integers(90, 130, 2)
        y, x = np.mgrid[:height, :width] / min(height, width)
        x0, y0, radius, angle = *rng.uniform(0.35, 0.65, 2), rng.uniform(0.15, 0.35), rng.uniform(0, np.pi)
        u = (x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)
        v = (y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)
        shapes = (
            np.hypot(u, v) < radius,
            np.maximum(abs(u), abs(v)) < radius,
            np.minimum(abs(u), abs(v)) < radius / 4,
            abs(np.hypot(u, v) - radius) < radius / 4,
            (np.sin(30 * u) > 0) & (np.hypot(u, v) < radius),
        )
        ground_kind = int(rng.integers(5)) if shapes_alone else kind
        waves = (1.5, 4, 9, 6, 2.5)[ground_kind] * rng.uniform(0.7, 1.4)
        colors = ((0.8, 0.5, 0.3), (0.3, 0.6, 0.4), (0.4, 0.5, 0.8), (0.7, 0.7, 0.3), (0.6, 0.3, 0.6))
        tilt, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * waves * (x * np.cos(tilt) + y * np.sin(tilt)) + phase)
        ground = (colors[ground_kind] + rng.normal(0, 0.15, 3)).clip(0, 1) * (0.6 + 0.4 * wave)[..., None]
        picture = np.where(shapes[kind][..., None], rng.uniform(0, 1, 3), ground)
        picture = (picture + rng.normal(0, 0.05, picture.shape)).clip(0, 1)
        file = folder / f"kind {kind}" / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 255).astype(np.uint8)).save(file)
    return folder


def open_data(name: str, folder: Path) -> Source:
    """Made pictures, or at most 2,000 samples of a bundled set."""
    if name.startswith(("pictures", "shapes")):
        what, kinds, count = name.split()
        made = make_pictures(folder / name, int(kinds), int(count), shapes_alone=what == "shapes")
        return mmcon.create_source(str(made), split="train")
    source = mmcon.create_source(name, split="train")
    return Subset(source, range(0, len(source), max(1, len(source) // 2000)))


def run_trial(trial: Trial, *, seed: int, folder: Path) -> str:
    """Train, and return a row of the table."""
    source = open_data(trial.data, folder)
    sampler = create_batch_sampler(
        source, "uniform", batch_size=trial.batch_size, objective="supcon", views=2, seed=seed
    )
    epochs = math.ceil(trial.steps / sampler.steps_per_epoch)
    output = folder / f"run {trial.encoder.replace('/', ' ')} {trial.batch_size} {trial.data.replace('/', ' ')} {seed}"
    steps = {"epochs": epochs, "max_steps": trial.steps, "log_every": 1, "checkpoint_every": 10**6}
    config = mmcon.RunConfig(batch_size=trial.batch_size, seed=seed, cpu=True, output_dir=output, **steps)
    run = mmcon.Run.from_config(config, name="trial")
    # The crops and the color jitter of the recipe at this size.
    area, strength = (0.5, 0.5) if trial.size <= 64 else (0.08, 1.0)
    view = mmcon.create_view("image/simclr", size=trial.size, area=(area, 1.0), strength=strength)
    loader = run.loader(source, {"image": [view, view]}, sampler)
    options = {"image_size": trial.size, "in_channels": channels_of(source)}
    encoder = mmcon.create_encoder(trial.encoder, **options)
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": config.shared_space(encoder)})
    objective = mmcon.Objective(affinity=SameLabel(), temperature=0.1)
    optimizer, schedule = create_optimizer_and_schedule(config, [model, objective], steps_per_epoch=len(loader))
    trained = run.prepare(model, optimizer, schedule, objective=objective)
    for batch in run.batches(loader):
        run.step(objective(trained(batch), batch))
    run.close()
    lines = MetricsLog(output / "metrics.jsonl").lines()
    identical, last = math.log(2 * trial.batch_size - 1), sum(line["loss"] for line in lines[-10:]) / 10
    spreads = [line["embedding_spread"] for line in lines]
    least = min(spreads[FIRST_WARNING - 1 :])
    rate = max(rate for rate, _ in default_rates(config, [model]).values())
    return (
        f"| {trial.encoder}, {encoder_family(encoder)} | {trial.batch_size} | {trial.data} | {trial.steps} | {rate:.2g}"
        f" | {seed} | {identical:.2f} | {last:.2f} | {spreads[-1]:.2f} | {least:.3f} |"
        f" {'yes' if least < COLLAPSED_SPREAD else 'no'} |"
    )


def main() -> None:
    """Run the chosen trials, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--trials", type=int, nargs="+", default=list(range(len(TRIALS))))
    options = parser.parse_args()
    print(
        "| encoder | batch | data | steps | rate | seed | identical | last loss | spread | least spread | collapsed |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        for number in options.trials:
            with tempfile.TemporaryDirectory() as folder:
                print(run_trial(TRIALS[number], seed=seed, folder=Path(folder)), flush=True)


if __name__ == "__main__":
    main()
