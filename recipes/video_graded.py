"""Graded similarity of video: the nearer two moments, the more alike they are meant to be.

    uv run accelerate launch recipes/video_graded.py                            # bundled clips, two CPU cores
    uv run accelerate launch recipes/video_graded.py --data path/to/videos      # a folder, or a manifest (.csv, .jsonl)
    uv run accelerate launch recipes/video_graded.py --objective binary         # same video or not, nothing between

Each step draws a few moments from each of a few videos. `graded` weighs every pair of one video by the time between
them, in two shared spaces with a wide and a narrow kernel: what moves slowly is read from the one, what moves fast from
the other. `binary` calls all pairs of one video alike, under the same model and budget. `supervised` adds a weight for
pairs of one class. Long videos are cut into windows, so that a batch holds moments that are near as well as moments of
the same video that are far, which `graded` tells apart and `binary` does not.

The figures come from videos that were held out whole, with intervals over videos: how well distance follows time, how
far in time the nearest neighbour is, the order and the lag of two moments read linearly, the class, and how slow the
features are; of frozen features, and of the embeddings in either space; with moments as they are, and with every moment
under a crop and colours of its own, as in training. A random encoder and raw pixels stand beside.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from mmcon.training.settings import EngineFlags
from torch import Tensor, nn

import mmcon
from mmcon.affinity import SameLabel, TimeKernel
from mmcon.affinity.base import Affinity
from mmcon.batch import ViewBatch
from mmcon.errors import MmconError
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.temporal_report import judge_in_time, table_in_time
from mmcon.loading.loader import ViewLoader, one_pass
from mmcon.models.shared_spaces import SharedSpace
from mmcon.models.encoders import create_encoder
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.factory import Subset, create_source
from mmcon.training.config import parse
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.run import Run, RunSettings, unused_folder


@dataclass(frozen=True, kw_only=True)
class Config(EngineFlags):
    """What to train, on what, and for how long."""

    data: str = "samples/scenes"
    """bundled clips (samples/scenes, samples/motion), a folder of videos, or a manifest (.csv, .tsv, .jsonl)"""
    fold: int | None = None
    """hold out every --folds-th video from this one on, for cross-validation of few; by default a quarter, by name"""
    folds: int = 4
    train_rows: int | None = None
    """train on so many rows only, evenly from all: what more videos bring"""
    window_seconds: float = 0.0
    """cut videos into windows of this length, each a row of its own; 0: a video is a row"""
    output_dir: Path | None = None
    """the run folder; by default a new one under runs/"""
    objective: Literal["graded", "binary", "supervised"] = "graded"
    kernel: Literal["gaussian", "exponential", "linear", "step"] = "gaussian"
    slow_seconds: float | None = None
    """width of the wide kernel; by default an eighth of the median row, which is a video or a window"""
    fast_seconds: float | None = None
    """width of the narrow kernel; by default a quarter of the wide one"""
    widths: Literal["fixed", "scheduled", "learned"] = "fixed"
    """scheduled: times --final-width by the end, evenly in the logarithm; learned: by the loss, within fourfold"""
    final_width: float = 0.5
    """for --widths scheduled"""
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
    frames: int = 1
    """frames in a view"""
    rate_hz: float = 12.0
    """frames a second in a view"""
    views: int = 12
    """moments of each row in a batch"""
    crop_area: float = 0.95
    """the smallest share of a frame that a crop keeps"""
    strength: float = 0.3
    """of the colour jitter"""
    framing: float = 1.0
    """below 1: each time another part of the picture, at least this share of it, alike for all moments of a row"""
    batch_size: int = 8
    """rows in a step, over all processes; at most as many as there are"""
    epochs: int = 16
    max_steps: int | None = None
    """stop after so many steps; the schedule stays that of --epochs"""
    temperature: float = 0.1
    projection_dim: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    eval_views: int = 16
    """moments of each row at which features are judged"""
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
    if config.train_rows is not None:
        train = Subset(train, torch.linspace(0, len(train) - 1, config.train_rows).long())
    batch_size = min(config.batch_size, len(train))
    view = mmcon.create_view(
        "video/graded",
        size=config.image_size,
        frames=config.frames,
        rate_hz=config.rate_hz,
        area=(config.crop_area, 1.0),
        strength=config.strength,
        framing=(config.framing, 1.0) if config.framing < 1 else None,
    )
    sampler = UniformSampler(torch.arange(len(train)), batch_size=batch_size, seed=config.seed)
    steps = config.epochs * sampler.steps_per_epoch
    run = Run(
        config.output_dir or unused_folder(Path("runs") / f"video_{config.objective}", resume=config.resume),
        config=config,
        seed=config.seed,
        settings=replace(RunSettings.of(config), checkpoint_every=config.checkpoint_every or max(1, steps // 10)),
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
        rank=run.rank,
        world_size=run.world_size,
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
        set_widths(config, widths, first, run.global_step / steps)
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)
    model = run.whole(model)

    # Features once, then every figure from them.
    if run.is_main:
        model.save_pretrained(run.folder / "model")
        encoders = {"trained": model.to(run.device), "random": untrained.to(run.device), "raw_pixels": pixels}
        figures: dict[str, Any] = {}
        for state, places in make_places(config).items():
            views = {"video": [places] * config.eval_views}
            dumps = {
                name: [
                    extract_features(encode, one_pass(part, views, batch_size=16, device=run.device))
                    for part in (train, test)
                ]
                for name, encode in encoders.items()
            }
            for part, features in zip(("train", "test"), dumps["trained"], strict=True):
                features.save(run.folder / "features" / f"{part}-{state}.safetensors")
            dumps |= {name: [embedded(model, name, part) for part in dumps["trained"]] for name in spaces}
            figures[state] = {name: judge_in_time(*pair, seed=config.seed) for name, pair in dumps.items()}
            run.print(f"{state}\n{table_in_time(figures[state])}")
        videos = len(figures["plain"]["trained"]["clip_ids"])
        run.print(f"held-out videos: {videos}; 95 % intervals over videos")
        last = {name: float(width) for name, width in widths.items()}
        run.finish({**figures, "clips": videos, "widths_seconds": first, "last_widths_seconds": last})
    else:
        run.close()


# --- the parts, each by name -----------------------------------------------------------------------------------------


def open_videos(config: Config, split: str) -> Any:
    """The source by what was asked for, cut into windows where these are."""
    options: dict[str, Any] = {"cache_gigabytes": config.cache_gigabytes}
    if config.fold is not None:
        options["fold"] = (config.fold, config.folds)
    source: Any = create_source(config.data, split=split, optional=options)
    return source.windows(config.window_seconds) if config.window_seconds else source


def make_encoder(config: Config) -> nn.Module:
    """The encoder by name."""
    if config.encoder != "mmcon/frames":
        return create_encoder(config.encoder, modality="video", pretrained="/" in config.encoder)
    return create_encoder(
        config.encoder, modality="video", frame_encoder=config.frame_encoder, pooling=config.pooling, image_size=config.image_size
    )


def make_places(config: Config) -> dict[str, mmcon.ViewGenerator]:
    """Even places of a row: as they are, and each under its own crop and colours, through which time has to be told."""
    options: dict[str, Any] = {"size": config.image_size, "frames": config.frames, "rate_hz": config.rate_hz}
    disturbance: dict[str, Any] = {"area": (config.crop_area, 1.0), "strength": config.strength}
    return {
        "plain": mmcon.create_view("video/plain", views=config.eval_views, **options),
        "disturbed": mmcon.create_view("video/graded", positions=config.eval_views, **options, **disturbance),
    }


def make_widths(config: Config, train: Any, device: torch.device) -> dict[str, Tensor]:
    """The kernels' widths in seconds, as tensors that a schedule can change or the loss can teach."""
    slow = config.slow_seconds or float(train.facts["duration_seconds"].median()) / 8
    widths = {"slow": slow, "fast": config.fast_seconds or slow / 4}
    tensors = {name: torch.tensor(seconds, device=device) for name, seconds in widths.items()}
    return {n: nn.Parameter(t) for n, t in tensors.items()} if config.widths == "learned" else tensors


@torch.no_grad()
def set_widths(config: Config, widths: dict[str, Tensor], first: dict[str, float], progress: float) -> None:
    """Widths at a share of the training; the affinities hold these tensors, so a change in place is all it takes."""
    for name, width in widths.items():
        if config.widths == "scheduled":
            width.fill_(first[name] * config.final_width**progress)
        elif config.widths == "learned":  # a target that narrows to a point is the easiest: hence the bounds
            width.clamp_(first[name] / 4, first[name] * 4)


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


@torch.no_grad()
def embedded(model: mmcon.ContrastiveModel, space: str, features: Features) -> Features:
    """Features through the head of a space."""
    head: Any = model.heads[space]
    device = next(head.parameters()).device
    return Features(head["video"](features.values.to(device)).cpu(), features.index)


if __name__ == "__main__":
    try:
        main(parse(Config, description=__doc__ or ""))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
