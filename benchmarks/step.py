"""What a run adds to a training step: Run's step beside the same step written by hand, in turns, on the same batches.

    uv run python benchmarks/step.py                  # a few minutes on two cores; on a GPU with --device cuda
    uv run python benchmarks/step.py --steps 400 --batch-size 256
    uv run python benchmarks/step.py --spaces         # pictures and texts in two spaces, CLIP's loss in each
    uv run python benchmarks/step.py --device cuda --encoder resnet50 --image-size 224 --photos 4096 --workers 8

Both sides train a copy of the reference recipe's encoder with the same loss and optimizer. The run's side is timed from
asking for a batch, which is ready in memory, to the return of `run.step`: guard, clip, schedule, log, progress and the
seeding of dropout are in it. On a GPU a third side waits for the check of loss and gradients, as on several GPUs. Then
the time of the views beside the step, and of a checkpoint every hundred steps. Ratios are within pairs of neighbouring
steps, whose order alternates; intervals are bootstrapped over pairs. With
`--photos` the source is a folder of so many JPEG files of 500 × 375 pixels, written for the benchmark, and a loop over
the loader shows the share of the time in which the run waits for data.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.io import write_jpeg

import mmcon
from mmcon.affinity import SameLabel
from mmcon.batch import ViewBatch
from mmcon.evaluation.statistics import Interval, bootstrap
from mmcon.loading.loader import ViewLoader
from mmcon.losses import presets, weighted_supcon
from mmcon.models.encoders import create_encoder
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.factory import create_source
from mmcon.training.run import Run, RunSettings

TEMPERATURE = 0.1
CLOCK: Callable[[], float] = time.perf_counter


class Ready:
    """A loader whose batches are in memory already."""

    def __init__(self, loader: ViewLoader, batches: list[ViewBatch], steps: int) -> None:
        self.loader, self.batches, self.steps = loader, batches, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return self.steps

    def each_step(self) -> Iterator[ViewBatch]:
        """The batches in turn."""
        return (self.batches[i % len(self.batches)] for i in range(self.steps))


def parts_for(model: nn.Module, device: torch.device, steps: int) -> tuple[nn.Module, Any, Any]:
    """A copy of the model, its optimizer and its schedule."""
    own = copy.deepcopy(model).to(device)
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-3, fused=True if device.type == "cuda" else None)
    return own, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def by_hand(model: nn.Module, optimizer: Any, schedule: Any, precision: str) -> Callable[[ViewBatch], None]:
    """A step in plain PyTorch."""

    def step(batch: ViewBatch) -> None:
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=precision == "bf16"):
            z = model(batch)["shared"]["image"]
        loss = weighted_supcon(z.float(), None, SameLabel(batch.index["image"]["label"]), temperature=TEMPERATURE)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def by_hand_in_spaces(model: nn.Module, optimizer: Any, schedule: Any, precision: str) -> Callable[[ViewBatch], None]:
    """A step of CLIP in two spaces in plain PyTorch, with the same towers and heads."""
    encoders, heads = (getattr(model, name) for name in ("encoders", "heads"))

    def step(batch: ViewBatch) -> None:
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=precision == "bf16"):
            features = {name: encoders[name](batch.views[name][0]) for name in ("image", "text")}
            rows = [[head[name](features[name]) for name in ("image", "text")] for head in heads.values()]
        loss = torch.zeros((), device=features["image"].device)
        for first, second in rows:
            logits, target = first @ second.T / TEMPERATURE, torch.arange(len(first), device=first.device)
            loss = loss + 0.5 * nn.functional.cross_entropy(logits, target)
            loss = loss + 0.5 * nn.functional.cross_entropy(logits.T, target)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of some work, the device's queue emptied before and after."""
    wait(device)
    start = CLOCK()
    work()
    wait(device)
    return CLOCK() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_photo(path: Path) -> None:
    """A JPEG file of smooth noise, about as large as a photograph of its size."""
    g = torch.Generator().manual_seed(int(path.stem))
    coarse, fine = torch.rand(1, 3, 24, 32, generator=g), torch.rand(1, 3, 375, 500, generator=g)
    smooth = nn.functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1)
    write_jpeg(((0.9 * smooth + 0.1 * fine)[0] * 255).to(torch.uint8), str(path), quality=85)


def photos(folder: Path, count: int) -> Path:
    """A folder with `count` photos in 16 classes."""
    paths = [folder / "photos" / f"class-{number % 16:02}" / f"{number}.jpg" for number in range(count)]
    for path in paths[:16]:
        path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write_photo, paths))
    return folder / "photos"


def loader_of(batch_size: int, device: torch.device, workers: int, size: int, folder: Path | None) -> ViewLoader:
    source = create_source("samples/fashion" if folder is None else str(folder), modality="image", split="train")
    assert source.labels is not None
    area = (0.5, 1.0) if folder is None else (0.08, 1.0)
    view = mmcon.create_view("image/simclr", size=size, area=area, strength=0.5)
    sampler = UniformSampler(source.labels, batch_size=batch_size, seed=0)
    return ViewLoader(source, {"image": [view, view]}, sampler, seed=0, workers=workers, device=device)


def loader_of_pairs(batch_size: int, device: torch.device, workers: int, *_: object) -> ViewLoader:
    source = create_source("samples/emoji-pairs", split="train")
    views = {"image": [mmcon.create_view("image/simclr", size=28)], "text": [mmcon.create_view("text/words")]}
    sampler = UniformSampler(source.ids, batch_size=batch_size, seed=0)
    return ViewLoader(source, views, sampler, seed=0, workers=workers, device=device)


def compare(
    run: Run, loader: ViewLoader, batches: list[ViewBatch], model: nn.Module, steps: int, spaces: bool
) -> list[Tensor]:
    """Seconds of every step by hand, of every step of the run, and on a GPU of those whose check the host waits for."""
    precision = run.accelerator.mixed_precision
    plain = (by_hand_in_spaces if spaces else by_hand)(*parts_for(model, run.device, steps), precision)
    own, optimizer, schedule = parts_for(model, run.device, steps)
    settings = presets.clip(temperature=TEMPERATURE) if spaces else presets.supcon_out(temperature=TEMPERATURE)
    objective = mmcon.Objective(**settings)
    network = run.prepare(own, optimizer, schedule, objective=objective)
    late_or_not = (True, False) if run.device.type == "cuda" else (False,)
    stream = run.batches(Ready(loader, batches, len(late_or_not) * steps))  # pyright: ignore[reportArgumentType]

    def ours(checks_late: bool) -> None:
        run._stepper.checks_late = checks_late
        batch = next(stream)
        run.step(objective(network(batch), batch))

    spent = torch.zeros(1 + len(late_or_not), steps, dtype=torch.float64)
    for step in range(steps):
        works = [lambda step=step: plain(batches[step % len(batches)]), *(partial(ours, late) for late in late_or_not)]
        for side in sorted(range(len(works)), reverse=step % 2 == 1):
            spent[side, step] = timed(works[side], run.device)
    next(stream, None)
    return [*spent]


def ratio(ours: Tensor, theirs: Tensor) -> Interval:
    """The mean of a trimmed set of ratios within pairs: the outer fifths, where something else ran, are left out."""
    ratios = (ours / theirs).sort().values
    cut = len(ratios) // 5
    return bootstrap(ratios[cut : len(ratios) - cut])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--encoder", default="mmcon/resnet-tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--spaces", action="store_true", help="two modalities in two spaces")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--photos", type=int, default=0, help="a source of so many JPEG files")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time: on one core of a busy machine")
    options = parser.parse_args()
    if options.cpu_time:
        global CLOCK
        CLOCK = time.process_time
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(epochs=1, log_every=10, checkpoint_every=10 * options.steps)
        run = Run(
            Path(folder) / "run",
            settings=settings,
            cpu=options.device == "cpu",
            mixed_precision=options.mixed_precision,
        )
        report(run, options, photos(Path(folder), options.photos) if options.photos else None)
        run.close()


def report(run: Run, options: argparse.Namespace, folder: Path | None) -> None:
    """Measure and print the tables."""
    make = loader_of_pairs if options.spaces else loader_of
    loader = make(options.batch_size, run.device, options.workers, options.image_size, folder)
    stream = itertools.chain.from_iterable(itertools.repeat(loader))
    first = [next(stream) for _ in range(8)]
    channels = 3 if options.spaces or folder else 1
    encoders = {"image": create_encoder(options.encoder, image_size=options.image_size, in_channels=channels)}
    if options.spaces:
        encoders["text"] = create_encoder("text/embedding-bag", modality="text", dropout=0.0)
    names = ("first", "second") if options.spaces else ("shared",)
    model = mmcon.ContrastiveModel(encoders, {name: mmcon.SharedSpace(dim=128) for name in names})
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    theirs, ours, *waited = (side[10:] for side in compare(run, loader, first, model, options.steps, options.spaces))
    views = torch.tensor([timed(lambda: next(stream), run.device) for _ in range(20)], dtype=torch.float64).median()
    saving = torch.tensor([timed(run.save, run.device) for _ in range(5)], dtype=torch.float64).median()
    step = ours.median()
    rows = "pictures and texts in two spaces" if options.spaces else "× 2 views"
    print(f"\n{options.encoder}, batch {options.batch_size} {rows}, {run.threads} threads on {run.device}\n")
    print("| | ms | share |\n|---|---|---|")
    print(f"| a step by hand | {theirs.median() * 1e3:.1f} | |")
    print(f"| a step of Run | {step * 1e3:.1f} | {ratio(ours, theirs)} of the step by hand, in pairs |")
    for side in waited:
        print(f"| the same, the host waits for its check | {side.median() * 1e3:.1f} | {ratio(side, theirs)} |")
    source = "in the training process" if not options.workers else f"waited for, {options.workers} workers"
    print(f"| its views, {source} | {views * 1e3:.1f} | {views / (views + step):.3f} of step and views |")
    print(f"| a checkpoint | {saving * 1e3:.1f} | {saving / (100 * (step + views)):.4f} of a hundred steps |")
    if folder is not None:
        share, seconds = waiting(model, stream, run, 40)
        print(
            f"| a step with its data, {options.workers} workers | {seconds * 1e3:.1f} | {share:.3f} waiting for data |"
        )


def waiting(model: nn.Module, stream: Iterator[ViewBatch], run: Run, steps: int) -> tuple[float, float]:
    """The share of the time that a loop over a loader waits for its batches, and the seconds of a step."""
    step = by_hand(*parts_for(model, run.device, steps), run.accelerator.mixed_precision)
    waited, began, before = 0.0, 0.0, lambda: None
    for number in range(steps):
        if number == steps // 4:  # the workers have filled their queues, and the first steps have warmed up
            wait(run.device)
            waited, began = 0.0, CLOCK()
        asked = CLOCK()
        batch = next(stream)
        waited += CLOCK() - asked
        step(batch)
        before()  # the step before, as the run waits for its check
        if run.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            before = event.synchronize
    wait(run.device)
    seconds = CLOCK() - began
    return waited / seconds, seconds / (steps - steps // 4)


if __name__ == "__main__":
    main()
