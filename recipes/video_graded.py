"""Graded similarity of video: the nearer two moments, the more alike they are meant to be.

    uv run accelerate launch recipes/video_graded.py                            # bundled clips, two CPU cores
    uv run accelerate launch recipes/video_graded.py --data path/to/videos      # a folder, or a manifest (.csv, .jsonl)
    uv run accelerate launch recipes/video_graded.py --objective binary         # same video or not, nothing between

Each step draws a few short clips from each of a few videos. `graded` weighs every pair of one video by the time between
them, in two shared spaces with a wide and a narrow kernel: what moves slowly is read from the one, what moves fast from
the other. `binary` calls all pairs of one video alike, under the same model and budget. `supervised` adds a weight for
pairs of one class.

The figures come from frozen features of videos that were held out whole, with intervals over videos: how well distance
follows time, how far in time the nearest neighbour is, the order and the lag of two moments read linearly, the class,
and how slow the features are. A random encoder of the same shape and raw pixels stand beside them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import mmcon
from mmcon.affinity import SameLabel, TimeKernel
from mmcon.affinity.base import Affinity
from mmcon.batch import ViewBatch
from mmcon.data.clips import ClipSource
from mmcon.data.loading import ViewLoader, one_pass
from mmcon.data.samplers import UniformSampler
from mmcon.data.sources import Subset, create_source
from mmcon.errors import MmconError
from mmcon.evaluation.features import Features, extract
from mmcon.evaluation.probe import linear_probe
from mmcon.evaluation.slowness import (
    clips_of,
    lag_correlation,
    lag_error,
    order_accuracy,
    retrieval_seconds,
    slowness_spectrum,
)
from mmcon.evaluation.statistics import bootstrap
from mmcon.models.spaces import SharedSpace
from mmcon.models.video import create_video_encoder
from mmcon.training.config import parse
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.run import Run, Settings, unused_folder


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train, on what, and for how long."""

    data: str = "samples/motion"
    """bundled synthetic clips (samples/motion), a folder of videos, or a manifest (.csv, .tsv, .jsonl)"""
    fold: int | None = None
    """hold out every --folds-th video from this one on, for cross-validation of few; by default a quarter, by name"""
    folds: int = 4
    output_dir: Path | None = None
    """the run folder; by default a new one under runs/"""
    objective: Literal["graded", "binary", "supervised"] = "graded"
    kernel: Literal["gaussian", "exponential", "linear", "step"] = "gaussian"
    slow_seconds: float | None = None
    """width of the wide kernel; by default an eighth of the median video"""
    fast_seconds: float | None = None
    """width of the narrow kernel; by default a quarter of the wide one"""
    final_width: float = 1.0
    """both widths are multiplied by this by the end of training, evenly in their logarithm"""
    class_weight: float = 0.2
    """supervised: the weight of two moments of different videos of one class"""
    encoder: str = "mmcon/frames"
    """mmcon/frames (an image encoder on each frame), r3d_18, …, or a transformers model by name or folder"""
    frame_encoder: str = "mmcon/resnet-tiny"
    """the image encoder of mmcon/frames"""
    pooling: Literal["mean", "max", "motion"] = "mean"
    """how mmcon/frames pools over time"""
    image_size: int = 32
    """side of the views in pixels"""
    frames: int = 2
    """frames in a view"""
    rate_hz: float = 12.0
    """frames a second in a view"""
    views: int = 6
    """moments of each video in a batch"""
    crop_area: float = 0.6
    """the smallest share of a frame that a crop keeps"""
    strength: float = 0.3
    """of the colour jitter"""
    batch_size: int = 32
    """videos in a step, over all processes; at most as many as there are"""
    epochs: int = 40
    max_steps: int | None = None
    """stop after so many steps; the schedule stays that of --epochs"""
    temperature: float = 0.1
    projection_dim: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    eval_views: int = 16
    """moments of each video at which features are judged"""
    cache_gigabytes: float = 1.0
    """keep decoded frames, up to so much in each process"""
    seed: int = 0
    resume: bool = False
    """go on from the newest good checkpoint in the output folder, or start"""
    force: bool = False
    """resume although settings changed that alter what is computed"""
    workers: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    cpu: bool = False
    log_every: int = 10
    checkpoint_every: int | None = None
    """steps between two checkpoints; by default ten in a run"""
    tiny: bool = False
    """a run of seconds that goes through everything"""


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.tiny:
        config = replace(config, epochs=1, max_steps=min(config.max_steps or 4, 4), log_every=1, eval_views=6)
    train, test = (open_videos(config, split) for split in ("train", "test"))
    if config.tiny:
        train, test = (Subset(part, range(0, len(part), max(1, len(part) // 16))) for part in (train, test))
    batch_size = min(config.batch_size, len(train))
    view = mmcon.create_view(
        "video/graded",
        size=config.image_size,
        frames=config.frames,
        rate_hz=config.rate_hz,
        area=(config.crop_area, 1.0),
        strength=config.strength,
    )
    sampler = UniformSampler(torch.arange(len(train)), batch_size=batch_size, seed=config.seed)
    steps = config.epochs * sampler.steps_per_epoch
    run = Run(
        config.output_dir or unused_folder(Path("runs") / f"video_{config.objective}", resume=config.resume),
        config=config,
        seed=config.seed,
        settings=Settings(
            epochs=config.epochs,
            max_steps=config.max_steps,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every or max(1, steps // 10),
            force=config.force,
        ),
        resume=config.resume,
        mixed_precision=config.mixed_precision,
        cpu=config.cpu,
    )
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    loader = ViewLoader(
        train,
        {"video": [view] * config.views},
        sampler,
        seed=config.seed,
        workers=config.workers,
        device=run.device,
        process=run.process,
        processes=run.processes,
    )

    # Model: an encoder of short clips, and a head in each of two spaces.
    spaces = {name: SharedSpace(dim=config.projection_dim) for name in ("slow", "fast")}
    model = mmcon.ContrastiveModel({"video": make_encoder(config)}, spaces)
    untrained = copy.deepcopy(model)

    # Who is alike: by time within a video, at two scales.
    widths = make_widths(config, train, run.device)
    affinity = {name: make_affinity(config, width) for name, width in widths.items()}
    objective = mmcon.Objective(affinity=affinity, temperature=config.temperature)
    run.print("kernels: " + ", ".join(f"{name} {float(width):.3g} s" for name, width in widths.items()))

    optimizer = create_optimizer(
        [model, objective], "adamw", learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = create_schedule(optimizer, "cosine", steps=steps, warmup_steps=steps // 10)
    trained = run.prepare(model, optimizer, schedule, objective=objective)

    first = {name: float(width) for name, width in widths.items()}
    for batch in run.batches(loader):
        for name, width in widths.items():  # the affinity holds these tensors, so a schedule is a change in place
            width.fill_(first[name] * config.final_width ** (run.global_step / steps))
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)

    # Features once, then every figure from them.
    if run.is_main:
        model.save_pretrained(run.folder / "model")
        places = mmcon.create_view(
            "video/plain",
            size=config.image_size,
            frames=config.frames,
            rate_hz=config.rate_hz,
            views=config.eval_views,
        )
        views = {"video": [places] * config.eval_views}
        encoders = {"trained": model.to(run.device), "random": untrained.to(run.device), "raw_pixels": pixels}
        dumps = {
            name: [extract(encode, one_pass(part, views, batch_size=16, device=run.device)) for part in (train, test)]
            for name, encode in encoders.items()
        }
        for part, features in zip(("train", "test"), dumps["trained"], strict=True):
            features.save(run.folder / "features" / f"{part}.safetensors")
        figures = {name: judge(*pair, seed=config.seed) for name, pair in dumps.items()}
        run.print(table(figures, len(test)))
        run.finish({**figures, "clips": len(test), "widths_seconds": first})
    else:
        run.close()


# --- the parts, each by name -----------------------------------------------------------------------------------------


def open_videos(config: Config, split: str) -> Any:
    """The source by what was asked for."""
    path = Path(config.data).expanduser()
    options: dict[str, Any] = {"split": split}
    if config.data.startswith("samples/"):
        return create_source(config.data, **options)
    options["cache_gigabytes"] = config.cache_gigabytes
    if config.fold is not None:
        options["fold"] = (config.fold, config.folds)
    return create_source("folder/videos" if path.is_dir() else "manifest/videos", path=path, **options)


def make_encoder(config: Config) -> nn.Module:
    """The encoder by name."""
    if config.encoder != "mmcon/frames":
        return create_video_encoder(config.encoder, pretrained="/" in config.encoder)
    return create_video_encoder(
        config.encoder, frame_encoder=config.frame_encoder, pooling=config.pooling, image_size=config.image_size
    )


def make_widths(config: Config, train: ClipSource | Subset, device: torch.device) -> dict[str, Tensor]:
    """The kernels' widths in seconds, as tensors that a schedule can change."""
    slow = config.slow_seconds or float(train.facts["duration_seconds"].median()) / 8
    fast = config.fast_seconds or slow / 4
    return {"slow": torch.tensor(slow, device=device), "fast": torch.tensor(fast, device=device)}


def make_affinity(config: Config, width: Tensor) -> Affinity:
    """Graded by time; alike or not; or graded by time and, less, by class."""
    if config.objective == "binary":
        return SameLabel("group")
    by_time = TimeKernel(width_seconds=width, kernel=config.kernel)
    if config.objective == "graded":
        return by_time
    return by_time + config.class_weight * SameLabel("label")


def pixels(batch: ViewBatch) -> Tensor:
    """The frames themselves, at 16 pixels a side, as features."""
    clips = batch.views["video"][0].flatten(0, 1)
    small = nn.functional.interpolate(clips, size=(16, 16), mode="bilinear", antialias=True)
    return small.unflatten(0, (batch.index["video"].n, -1)).flatten(1)


# --- figures ---------------------------------------------------------------------------------------------------------


def judge(train: Features, test: Features, *, seed: int) -> dict[str, Any]:
    """Every figure of one encoder, by clip, with the mean and its interval over clips where there are two or more."""
    by_clip = {
        "lag_correlation": lag_correlation(test),
        "retrieval_seconds": retrieval_seconds(test),
        "order_accuracy": order_accuracy(train, test),
        "lag_error_seconds": lag_error(train, test),
    }
    figures: dict[str, Any] = {"by_clip": {name: values.tolist() for name, values in by_clip.items()}}
    figures["clip_ids"] = clips_of(test).tolist()
    for name, values in by_clip.items():
        figures[name] = float(values.mean())
        if len(values) > 1:
            interval = bootstrap(values, seed=seed)
            figures[f"{name}_interval"] = [interval.low, interval.high]
    figures["slowness_spectrum"] = slowness_spectrum(train)[:16].tolist()
    if "label" in test.index and len(train.index["label"].unique()) > 1:
        figures["class_probe_top1"] = linear_probe(train, test).top1
    return figures


def table(figures: dict[str, dict[str, Any]], clips: int) -> str:
    """The figures for a person to read."""
    names = {
        "lag_correlation": "distance follows time (Spearman)",
        "retrieval_seconds": "nearest neighbour off by, seconds",
        "order_accuracy": "order of two moments, share right",
        "lag_error_seconds": "lag of two moments off by, seconds",
        "class_probe_top1": "class, top-1",
    }
    lines = [f"held-out videos: {clips}; 95 % intervals over videos", f"{'':36}" + "".join(f"{n:>26}" for n in figures)]
    for key, text in names.items():
        cells = []
        for of in figures.values():
            ends = of.get(f"{key}_interval")
            cells.append(
                "" if key not in of else f"{of[key]:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
            )
        if any(cells):
            lines.append(f"{text:36}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(parse(Config, description=__doc__ or ""))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
