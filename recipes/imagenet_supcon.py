"""Supervised contrastive learning of images in two stages: the reference recipe.

    uv run accelerate launch recipes/imagenet_supcon.py                          # bundled images, two CPU cores
    uv run accelerate launch recipes/imagenet_supcon.py --data path/to/photos    # a folder a class, or train/ and val/
    uv run accelerate launch recipes/imagenet_supcon.py --objective simclr
    uv run accelerate launch recipes/imagenet_supcon.py --preset resnet50-autoaugment --data path/to/imagenet
    uv run accelerate launch recipes/imagenet_supcon.py --preset resnet50-autoaugment --dry-run     # what will it need?

Stage one trains an encoder contrastively in a small projection space; stage two drops the projection head and trains a
linear classifier on the frozen features, which are computed once. The same figures for a random encoder of the same
shape and for raw pixels stand beside the result, for without them no figure means much.

After Khosla et al. 2020, "Supervised Contrastive Learning", and Chen et al. 2020, "A Simple Framework for Contrastive
Learning of Visual Representations".
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

import mmcon
from mmcon.affinity import MixedLabel, SameLabel, SameSample
from mmcon.errors import ConfigError, MmconError
from mmcon.evaluation.linear_classifier import LinearStage
from mmcon.evaluation.online_knn import TrainingKnn
from mmcon.evaluation.online_probe import OnlineProbe
from mmcon.evaluation.second_stage import features_of, judge, pixels, published_stage, results, table
from mmcon.loading.loader import ViewLoader
from mmcon.models.classifier import Classifier
from mmcon.models.ema import MomentumEncoder
from mmcon.models.encoders import create_encoder
from mmcon.objective.cross_entropy import CrossEntropy
from mmcon.objective.queue import Queue
from mmcon.operations import dry_run
from mmcon.registry import lookup
from mmcon.samplers.factory import sampler_for
from mmcon.sources.factory import Subset, channels_of, create_source
from mmcon.training.config import parse
from mmcon.training.gradient_caching import cached
from mmcon.training.optim import create_optimizer, create_schedule, weight_average
from mmcon.training.run import QUARANTINE, Run, RunSettings, unused_folder
from mmcon.training.seeds import over_seeds
from mmcon.training.settings import EngineFlags
from mmcon.views import Chain


@dataclass(frozen=True, kw_only=True)
class Config(EngineFlags):
    """What to train, on what, and for how long."""

    data: str = "samples/fashion"
    """bundled images (samples/fashion); a folder with a sub-folder a class, or train/ and val/ of such; tar shards,
    parquet files, a manifest (.csv, .jsonl, .parquet), or a hub name"""
    output_dir: Path | None = None
    """the run folder; by default a new one under runs/"""
    objective: Literal["supcon", "simclr", "cross-entropy"] = "supcon"
    image_column: str | None = None
    """of a table (hub, parquet, manifest): the column of images; by default guessed, and printed"""
    label_column: str | None = None
    max_unreadable: float = 0.1
    """the share of unreadable images that is left out (and named in quarantine.jsonl) rather than refused"""
    encoder: str = "mmcon/resnet-tiny"
    """an encoder by name: mmcon/resnet-tiny, resnet50, timm/…, owner/model of a hub, or a local folder"""
    pretrained: bool = False
    """start from the encoder's published weights"""
    view: str = "image/simclr"
    """a view generator by name; `mmcon views` lists them"""
    views: int = 2
    """views of each sample in a batch"""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """mix each view with that of another sample; both labels then count, by their shares"""
    image_size: int | None = None
    """side of the views in pixels; by default 28 for bundled images and 224 for folders"""
    crop_area: float | None = None
    """the smallest share of an image that a crop keeps; by default .5 up to 64 pixels and .08 above"""
    strength: float | None = None
    """of the colour jitter; by default .5 up to 64 pixels and 1 above"""
    sampler: Literal["uniform", "class-aware", "balanced", "tempered"] = "uniform"
    """class-aware: classes as often as they are; for long tails balanced (alike) or tempered (by √n)"""
    class_weight_power: float = 0.0
    """classes weigh n^-power in the losses of classifiers (cross-entropy, the second stage)"""
    epochs: int = 30
    max_steps: int | None = None
    """stop after so many steps; the schedule stays that of --epochs"""
    batch_size: int = 128
    """samples in a step, over all processes"""
    chunk_size: int | None = None
    """rows that fit in memory at once: larger batches are embedded in chunks, by gradient caching"""
    temperature: float = 0.1
    loss_scale: Literal["none", "temperature"] = "none"
    """what multiplies the loss; SupCon's published settings: temperature"""
    projection_dim: int = 128
    projection_head: Literal["linear", "mlp"] = "mlp"
    unit_features: bool = False
    """bring features to length one before the projection head"""
    queue_size: int = 0
    """rows of earlier steps that serve as candidates, embedded by a momentum encoder"""
    momentum: float = 0.999
    """of the momentum encoder"""
    ema_decay: float | None = None
    """keep an exponential moving average of the weights, and evaluate it too"""
    optimizer: Literal["sgd", "lars", "adamw"] = "adamw"
    learning_rate: float = 4e-3
    """the peak, for this batch size"""
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = False
    """also decay (and under LARS, adapt) norms and biases"""
    schedule: Literal["cosine", "step", "polynomial", "constant"] = "cosine"
    warmup_share: float = 0.1
    """share of the steps in which the learning rate rises"""
    warmup_epochs: float | None = None
    """the same in epochs"""
    online_probe: bool = False
    """log how well a linear probe classifies during stage one; the encoder gets no gradient of it"""
    linear_stage: Literal["probe", "published"] = "probe"
    """published: besides the probe, train a classifier on views of its own, as --linear.… say"""
    linear_view: str = "image/crop-flip"
    linear_batch_size: int = 256
    linear: LinearStage = field(default_factory=LinearStage)
    seed: int = 0
    seeds: tuple[int, ...] = ()
    """several runs, one a seed: all their figures, means and intervals (needs --output-dir)"""
    resume: bool = False
    """go on from the newest good checkpoint in the output folder, or start"""
    force: bool = False
    """resume although settings changed that alter what is computed"""
    workers: int = 0
    """processes that prepare batches; 0 prepares them in the training process"""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    cpu: bool = False
    """stay on the CPU although there is a GPU"""
    log_every: int = 10
    checkpoint_every: int | None = None
    """steps between two checkpoints; by default one an epoch"""
    keep_best: bool = False
    """keep also the checkpoint that is best by k-NN among training images"""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    tiny: bool = False
    """a run of seconds that goes through everything"""
    dry_run: bool = False
    """build everything, make one step at a small batch, and tell what memory and hours the run needs"""


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.objective == "cross-entropy" and (config.queue_size or config.chunk_size):
        raise ConfigError("--queue-size and --chunk-size", expected="a contrastive objective", got="cross-entropy")
    if config.tiny:
        config = replace(config, epochs=1, max_steps=min(config.max_steps or 8, 8), log_every=1)
    asked = config
    if config.dry_run:
        config = replace(config, batch_size=dry_run.SMALL_BATCH, max_steps=1, output_dir=Path(tempfile.mkdtemp()))
    run = Run(
        config.output_dir or unused_folder(Path("runs") / f"imagenet_{config.objective}", resume=config.resume),
        config=config,
        seed=config.seed,
        settings=RunSettings.of(config),
        resume=config.resume,
        mixed_precision=config.mixed_precision,
        cpu=config.cpu,
    )

    # Data: rows with stable ids, the views of each, and who stands in a batch with whom.
    columns = {"media_column": config.image_column, "label_column": config.label_column}
    unreadable = {"max_failures": config.max_unreadable, "quarantine": run.folder / QUARANTINE}
    train, test = (
        create_source(config.data, split=split, where_taken=columns | unreadable) for split in ("train", "test")
    )
    if config.tiny:
        train, test = Subset(train, range(0, len(train), 10)), Subset(test, range(0, len(test), 10))
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    size = config.image_size or (28 if config.data.startswith("samples/") else 224)
    view = make_view(config, size, config.view)
    if config.mix != "none":
        view = Chain(view, mmcon.create_view(f"image/{config.mix}"))
    loader = ViewLoader(
        train,
        {"image": [view] * config.views},
        sampler_for(
            train,
            config.sampler,
            batch_size=config.batch_size,
            seed=config.seed,
            objective=config.objective,
            views=config.views,
        ),
        seed=config.seed,
        workers=config.workers,
        device=run.device,
        rank=run.rank,
        world_size=run.world_size,
    )

    # Model: an encoder, and a projection head that the second stage drops.
    # Published weights know colour, and a dry run counts with it; a grey channel is repeated for them.
    channels = 3 if config.pretrained or config.dry_run else channels_of(train)
    encoder = create_encoder(config.encoder, pretrained=config.pretrained, image_size=size, in_channels=channels)
    head = {"dim": config.projection_dim, "head": config.projection_head, "unit_features": config.unit_features}
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(**head)})
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    untrained = copy.deepcopy(model)
    affinity = SameLabel() if config.objective == "supcon" else SameSample()
    if config.mix != "none":
        affinity = MixedLabel() if config.objective == "supcon" else MixedLabel("sample", "partner_sample")
    queue = Queue(size=config.queue_size) if config.queue_size else None
    knobs = {"temperature": config.temperature, "scale": config.loss_scale, "queue": queue}
    network, objective = model, mmcon.Objective(affinity=affinity, **knobs)
    if config.objective == "cross-entropy":
        network = Classifier(encoder, len(train.classes))
        objective = CrossEntropy(train, power=config.class_weight_power)
    decay = {"weight_decay": config.weight_decay, "decay_norm_and_bias": config.decay_norm_and_bias}
    optimizer = create_optimizer([network, objective], config.optimizer, learning_rate=config.learning_rate, **decay)
    steps = config.epochs * len(loader)
    warmup = config.warmup_share * steps if config.warmup_epochs is None else config.warmup_epochs * len(loader)
    schedule = create_schedule(optimizer, config.schedule, steps=steps, warmup_steps=round(warmup))
    momentum = MomentumEncoder(model, momentum=config.momentum) if queue else None
    average = weight_average(model, decay=config.ema_decay) if config.ema_decay else None
    probe = OnlineProbe(encoder, classes=len(train.classes)) if config.online_probe else None
    beside = {"queue": queue, "momentum": momentum, "average": average, "probe": probe}
    beside = {name: part for name, part in beside.items() if part is not None}
    trained = run.prepare(network, optimizer, schedule, objective=objective, **beside)

    # Stage one.
    plain = {"image": [mmcon.create_view("image/plain", size=size)]}
    for batch in run.batches(loader, score=TrainingKnn(model, train, plain) if config.keep_best else None):
        if config.chunk_size:
            loss = cached(trained, objective, batch, chunk_size=config.chunk_size)
        else:
            embeddings = trained(batch)
            loss = objective(embeddings, batch)
        run.step(loss)
        if queue and momentum:
            momentum.update(trained)
            queue.push(momentum(batch), batch)
        if average:
            average.update_parameters(model)
        if probe:
            run.note(**probe.update(batch.index["image"]["label"]))

    if config.dry_run:
        run.print(dry_run.report(asked, network, optimizer, batch, train, beside=beside.values()))
        return run.close()
    if probe:
        probe.close()

    # Stage two: features once, then every figure from them.
    model = run.whole(model)
    if run.is_main:
        model.save_pretrained(run.folder / "model")
    small = {"image": [mmcon.create_view("image/plain", size=min(size, 32))]}
    encoders = {
        "trained encoder": (model, plain),
        "random encoder": (untrained.to(run.device), plain),
        "raw pixels": (pixels, small),
    }
    if average:
        encoders["averaged encoder"] = (average.module, plain)
    features = features_of(run, encoders, train, test)
    more = {}
    if config.linear_stage == "published":
        more["linear_stage"] = published_stage(
            run, model, train, test,
            views={"image": [make_view(config, size, config.linear_view)]}, test_views=plain,
            batch_size=config.linear_batch_size, stage=config.linear, weight_power=config.class_weight_power,
        )  # fmt: skip
        run.print(f"linear classifier, trained as published: {more['linear_stage']}")
    if run.is_main:
        figures = {name: judge(*pair) for name, pair in features.items()}
        run.print(table(figures, len(test)))
        run.finish(results(figures, test.classes) | more)
    else:
        run.close()


def make_view(config: Config, size: int, name: str) -> mmcon.ViewGenerator:
    """The view by name, with those of the recipe's settings that it takes."""
    small = size <= 64
    settings: dict[str, Any] = {
        "size": size,
        "area": (config.crop_area or (0.5 if small else 0.08), 1.0),
        "strength": config.strength or (0.5 if small else 1.0),
    }
    taken = lookup("view", name).options
    return mmcon.create_view(name, **{option: value for option, value in settings.items() if option in taken})


if __name__ == "__main__":
    try:
        over_seeds(main, parse(Config, description=__doc__ or "", recipe=__file__))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
