"""Graded similarity of video: the affinity of two frame times of one video falls with the time between them.

    uv run accelerate launch recipes/video_graded.py                            # bundled clips, two CPU cores
    uv run accelerate launch recipes/video_graded.py --data path/to/videos      # a folder, or a manifest (.csv, .jsonl)
    uv run accelerate launch recipes/video_graded.py --data videos --scores scores.csv     # your annotators' grades

Each step samples frame times from a few videos. `graded` weighs pairs of one video by the time between them, in two
spaces with a wide and a narrow kernel; with --scores, all pairs by the difference of their scores. `binary` makes all
pairs of one video positive, with the same model and budget; `supervised` adds a weight for pairs of one class. Metrics
are of whole held-out videos, with intervals over videos. A random encoder and raw pixels are the baselines.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

import mmcon
from mmcon.affinity import Affinity, SameLabel, ScoreKernel, TimeKernel
from mmcon.evaluation.temporal_report import evaluate_videos
from mmcon.loading.loader import Views
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Subset
from mmcon.sources.scores import Scores, read_scores
from mmcon.training.optim import create_optimizer_and_schedule

Width = Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class Config(mmcon.RunConfig):
    """What to train, on what, and for how long."""

    data: str = "samples/scenes"
    """bundled clips (samples/scenes, samples/motion), a folder of videos, or a manifest (.csv, .tsv, .jsonl)"""
    fold: int | None = None
    """hold out every --folds-th video from this one on, for cross-validation; default: a quarter, by name"""
    folds: int = 4
    train_rows: int | None = None
    """train on this many samples, spread evenly"""
    window_seconds: float = 0.0
    """cut videos into windows of this length, each a sample of its own; 0: a video is a sample"""
    scores: str | None = None
    """a table of annotators' scores with the columns video, seconds and score, which grade pairs in place of time"""
    score_width: float | None = None
    """with --scores, the width of the wide kernel; default: half the standard deviation of the scores"""
    objective: Literal["graded", "binary", "supervised"] = "graded"
    kernel: Literal["gaussian", "exponential", "linear", "step"] = "gaussian"
    slow_seconds: float | None = None
    """without --scores, the width of the wide kernel; default: an eighth of the median duration of a sample"""
    fast_seconds: float | None = None
    """without --scores, the width of the narrow kernel; default, as with --scores: a quarter of the wide one"""
    widths: Literal["fixed", "scheduled", "learned"] = "fixed"
    """scheduled: times --final-width by the end, evenly in the logarithm; learned: by the loss, within fourfold"""
    final_width: float = 0.5
    class_weight: float = 0.2
    """supervised: the weight of two frame times of different videos of one class"""
    encoder: str = "mmcon/frames"
    """mmcon/frames (--frame-encoder on each frame, and --pooling), r3d_18, …, or a transformers model or folder"""
    frame_encoder: str = "mmcon/resnet-tiny"
    pooling: Literal["mean", "max", "motion"] = "mean"
    image_size: int = 32
    frames: int = 1
    rate_hz: float = 12.0
    views: int = 12
    """frame times per sample in a batch"""
    crop_area: float = 0.95
    """smallest fraction of a frame that a crop keeps"""
    strength: float = 0.3
    framing: float = 1.0
    """below 1: a crop of at least this fraction of the image, the same for all views of a sample in a batch"""
    batch_size: int = 8
    """samples per step, over all ranks; at most as many as there are"""
    temperature: float = 0.1
    projection_dim: int = 64
    epochs: int = 16
    tuned_rate: ClassVar[float] = 3e-3
    checkpoint_every: int | None = None
    """steps between two checkpoints; default: ten in a run"""
    eval_views: int = 16
    """frame times per sample in the evaluation"""
    cache_gigabytes: float = 1.0
    """cache decoded frames up to this size in each process"""


def main(config: Config) -> None:
    """Train, then evaluate."""
    config = config.apply_tiny(max_steps=4, eval_views=6)

    # Data: videos (or windows of them), and many frame times of each as views.
    train, test = (open_split(config, split) for split in ("train", "test"))
    scores = read_scores(config.scores, [train, test]) if config.scores else None
    train = config.labeled_subset(train)
    if config.tiny:
        train, test = (Subset(split, range(0, len(split), max(1, len(split) // 16))) for split in (train, test))
    if config.train_rows is not None:
        train = Subset(train, torch.linspace(0, len(train) - 1, config.train_rows).long())
    sampler = UniformSampler(train.ids, batch_size=min(config.batch_size, len(train)), seed=config.seed)
    steps = config.epochs * sampler.steps_per_epoch
    checkpoint_every = config.checkpoint_every or max(1, steps // 10)
    run = mmcon.Run.from_config(config, name=f"video_{config.objective}", checkpoint_every=checkpoint_every)
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    views, evaluation_views = make_views(config)
    loader = run.loader(train, views, sampler)

    # Model: an encoder of short clips, and a head in each of two spaces.
    options: dict[str, Any] = {"pretrained": "/" in config.encoder}
    if config.encoder == "mmcon/frames":
        options = {"frame_encoder": config.frame_encoder, "pooling": config.pooling, "image_size": config.image_size}
    encoder = mmcon.create_encoder(config.encoder, modality="video", **options)
    spaces = {name: config.shared_space(encoder) for name in ("slow", "fast")}
    model = mmcon.ContrastiveModel({"video": encoder}, spaces)
    untrained = copy.deepcopy(model)

    # Loss: affinity by time within a video, or by scores, at two scales.
    widths = make_widths(config, train, scores, run.device)
    affinity = {name: make_affinity(config, width, scores) for name, width in widths.items()}
    settings = {"temperature": config.temperature, "truncate": config.truncate_dims}
    objective = mmcon.Objective(affinity=affinity, **settings)
    run.print("kernel widths: " + ", ".join(f"{name} {float(width):.3g}" for name, width in widths.items()))
    config = replace(config, batch_size=sampler.batch_size)  # which the default learning rate follows
    optimizer, schedule = create_optimizer_and_schedule(
        config, [model, objective], steps_per_epoch=len(loader), warmup_steps=steps // 10
    )
    trained = run.prepare(model, optimizer, schedule, objective=objective)
    first = {name: float(width) for name, width in widths.items()}
    for batch in run.batches(loader):
        set_widths(config, widths, first, run.global_step / steps)
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)

    # Features once, then every metric from them.
    model = run.full_model(model)
    if run.is_main:
        mmcon.inference.save_model(model, run.folder / "model", views=evaluation_views["plain"], source=train)
    metrics = evaluate_videos(run, {"trained": model, "random": untrained}, train, test, views=evaluation_views)
    if not run.is_main:
        return run.close()
    unit, last = "scores" if config.scores else "seconds", {name: float(width) for name, width in widths.items()}
    run.finish(metrics | {f"widths_{unit}": first, f"last_widths_{unit}": last})


# --- data, views, kernel widths and affinity -------------------------------------------------------------------------


def open_split(config: Config, split: str) -> Any:
    """A split of the data, cut into windows if requested."""
    fold = None if config.fold is None else (config.fold, config.folds)
    options = {"cache_gigabytes": config.cache_gigabytes, "fold": fold}
    source: Any = mmcon.create_source(config.data, modality="video", split=split, optional=options)
    return source.windows(config.window_seconds) if config.window_seconds else source


def make_views(config: Config) -> tuple[Views, dict[str, Views]]:
    """Views of training, and of evaluation at even frame times: plain, or with a crop and color that hide the time."""
    clip: dict[str, Any] = {"size": config.image_size, "frames": config.frames, "rate_hz": config.rate_hz}
    disturbed = clip | {"area": (config.crop_area, 1.0), "strength": config.strength}
    framing = (config.framing, 1.0) if config.framing < 1 else None
    training = mmcon.create_view("video/graded", framing=framing, **disturbed)
    evaluation = {
        "plain": mmcon.create_view("video/plain", views=config.eval_views, **clip),
        "disturbed": mmcon.create_view("video/graded", positions=config.eval_views, **disturbed),
    }
    repeated: dict[str, Views] = {kind: {"video": [view] * config.eval_views} for kind, view in evaluation.items()}
    return {"video": [training] * config.views}, repeated


def make_widths(config: Config, train: Any, scores: Scores | None, device: torch.device) -> dict[str, Width]:
    """The widths of the kernels in seconds, or in scores, as tensors that a schedule or the loss can change."""
    slow, fast = config.slow_seconds or float(train.facts["duration_seconds"].median()) / 8, config.fast_seconds
    if scores is not None:
        slow, fast = config.score_width or scores.spread / 2, None
    widths = {"slow": slow, "fast": fast or slow / 4}
    tensors = {name: torch.tensor(seconds, device=device) for name, seconds in widths.items()}
    return {n: nn.Parameter(t) for n, t in tensors.items()} if config.widths == "learned" else tensors


@torch.no_grad()
def set_widths(config: Config, widths: dict[str, Width], first: dict[str, float], progress: float) -> None:
    """Set the widths at a fraction of the training, in place, since the affinities hold these tensors."""
    for name, width in widths.items():
        if config.widths == "scheduled":
            width.fill_(first[name] * config.final_width**progress)
        elif config.widths == "learned":  # bounded, since the easiest target is a kernel of width 0
            width.clamp_(first[name] / 4, first[name] * 4)


def make_affinity(config: Config, width: Width, scores: Scores | None) -> Affinity:
    """Affinity by time or scores; 0 or 1; or by time or scores and, with less weight, by class."""
    if config.objective == "binary":
        return SameLabel("group")
    by_time = TimeKernel(width_seconds=width, kernel=config.kernel)
    graded = by_time if scores is None else ScoreKernel(scores, width=width, kernel=config.kernel)
    return graded if config.objective == "graded" else graded + config.class_weight * SameLabel("label")


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
