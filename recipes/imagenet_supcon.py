"""Supervised contrastive learning of images in two stages: the reference recipe.

    uv run accelerate launch recipes/imagenet_supcon.py                          # bundled images, two CPU cores
    uv run accelerate launch recipes/imagenet_supcon.py --data path/to/photos    # one folder per class
    uv run accelerate launch recipes/imagenet_supcon.py --objective simclr
    uv run accelerate launch recipes/imagenet_supcon.py --preset resnet50-autoaugment --data path/to/imagenet
    uv run accelerate launch recipes/imagenet_supcon.py --preset resnet50-autoaugment --dry-run     # memory and hours

Stage one trains an encoder and a projection head contrastively. Stage two drops the head, extracts the frozen features
once, and fits a linear classifier to them. A random encoder of the same shape and raw pixels are the baselines.

After Khosla et al. 2020, "Supervised Contrastive Learning", and Chen et al. 2020, "A Simple Framework for Contrastive
Learning of Visual Representations".
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import mmcon
from mmcon.affinity import MixedLabel, SameLabel, SameSample
from mmcon.errors import ConfigError
from mmcon.evaluation import second_stage
from mmcon.evaluation.linear_classifier import LinearStage
from mmcon.evaluation.online_knn import OnlineKnn
from mmcon.evaluation.online_probe import OnlineProbe
from mmcon.losses import LearnableTemperature
from mmcon.models.classifier import Classifier
from mmcon.models.ema import MomentumEncoder
from mmcon.objective.baseline_objectives import CrossEntropy, MarginClassifier, TripletLoss
from mmcon.objective.queue import Queue
from mmcon.operations import dry_run
from mmcon.registry import supported_options
from mmcon.samplers.factory import create_batch_sampler
from mmcon.sources.base import channels_of
from mmcon.training.config import ImageRunConfig
from mmcon.training.gradient_caching import cached
from mmcon.training.logging import QUARANTINE
from mmcon.training.optim import create_optimizer_and_schedule, weight_average


@dataclass(frozen=True, kw_only=True)
class Config(ImageRunConfig):
    """What to train, on what, and for how long."""

    data: str = "samples/fashion"
    """bundled images (samples/fashion); a folder with one sub-folder per class, or train/ and val/ of such; tar shards,
    parquet files, a manifest (.csv, .jsonl, .parquet), or a hub name"""
    objective: Literal["supcon", "simclr", "drop-same-class", "triplet", "cross-entropy", "max-margin"] = "supcon"
    form: Literal["out", "in"] = "out"
    """where the sum over positives stands in the contrastive loss: outside the logarithm, or inside"""
    encoder: str = "mmcon/resnet-tiny"
    """encoder by name: mmcon/resnet-tiny, resnet50, timm/NAME, owner/model of a hub, or a local folder"""
    pretrained: bool = False
    """start from the encoder's published weights"""
    view: str = "image/simclr"
    """view generator by name; `mmcon views` lists them"""
    views: int = 2
    """views per sample in a batch"""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """mix each view with that of another sample; both labels count, by their shares"""
    crop_area: float | None = None
    """smallest fraction of an image that a crop keeps; default: .5 up to 64 pixels, .08 above"""
    strength: float | None = None
    """strength of the color jitter; default: .5 up to 64 pixels, 1 above"""
    warp: float | None = None
    """probability of SupCon's image warp, for views that have it; default: that of the view"""
    sampler: Literal["uniform", "class-aware", "balanced", "tempered", "fixed-order"] = "uniform"
    """class-aware: classes at their own frequency; for long tails balanced or tempered (√n); fixed-order: one order"""
    class_weight_power: float = 0.0
    """classes of n samples weigh n^-power in the losses of classifiers (cross-entropy, the second stage)"""
    chunk_size: int | None = None
    """rows that fit in memory at once: larger batches are embedded in chunks, by gradient caching"""
    temperature: float = 0.1
    learn_temperature: bool = False
    loss_scale: Literal["none", "temperature"] = "none"
    """factor of the loss; SupCon's published settings: temperature"""
    unit_features: bool = False
    """L2-normalize features before the projection head"""
    queue_size: int = 0
    """rows of earlier steps that are candidates, embedded by a momentum encoder"""
    momentum: float = 0.999
    """momentum of the momentum encoder"""
    ema_decay: float | None = None
    """keep an exponential moving average of the weights, and evaluate it too"""
    online_probe: bool = False
    """log the accuracy of a linear probe during stage one; it sends no gradient to the encoder"""
    linear_stage: Literal["probe", "published"] = "probe"
    """published: besides the probe, train a classifier on augmented views, by the --linear.* flags"""
    linear_view: str = "image/crop-flip"
    linear_batch_size: int = 256
    linear: LinearStage = field(default_factory=LinearStage)
    epochs: int = 30
    keep_best: bool = False
    """also keep the checkpoint with the best k-NN accuracy among training images"""
    dry_run: bool = False
    """build everything, make one step of a small batch, and report the memory and the hours of the run"""


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.objective in ("triplet", "cross-entropy", "max-margin") and (config.queue_size or config.chunk_size):
        raise ConfigError("--queue-size and --chunk-size", expected="a contrastive objective", got=config.objective)
    full_config = config.apply_tiny(max_steps=8)
    config = dry_run.one_step(full_config) if config.dry_run else full_config
    run = mmcon.Run.from_config(config, name=f"imagenet_{config.objective}")

    # Data: samples with stable ids, the views of each, and the samples of each batch.
    train, test = config.open_splits(quarantine=run.folder / QUARANTINE, tiny_step=10)
    train = config.labeled_subset(train)
    config = config.fit_batch_size(len(train), run.print, ranks=run.world_size)
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    size, view = config.side, make_view(config, config.view)
    if config.mix != "none":
        view = mmcon.Chain(view, mmcon.create_view(f"image/{config.mix}"))
    batches = {"batch_size": config.batch_size, "objective": config.objective, "views": config.views}
    sampler = create_batch_sampler(train, config.sampler, seed=config.seed, **batches)
    loader = run.loader(train, {"image": [view] * config.views}, sampler)

    # Model: an encoder (of three channels for published weights and in a dry run), and a projection head for stage one.
    channels = 3 if config.pretrained or config.dry_run else channels_of(train)
    encoder = mmcon.create_encoder(config.encoder, pretrained=config.pretrained, image_size=size, in_channels=channels)
    space = config.shared_space(encoder, unit_features=config.unit_features)
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": space})
    untrained = copy.deepcopy(model)

    # Loss: which pairs are positive, and how strongly.
    affinity = SameLabel() if config.objective == "supcon" else SameSample()
    if config.mix != "none":
        affinity = MixedLabel() if config.objective == "supcon" else MixedLabel("sample", "partner_sample")
    queue = Queue(size=config.queue_size) if config.queue_size else None
    learned = LearnableTemperature(initial=config.temperature) if config.learn_temperature else None
    settings = {"temperature": learned or config.temperature, "scale": config.loss_scale, "form": config.form}
    settings["negative_weights"] = ~SameLabel() if config.objective == "drop-same-class" else None
    settings |= {"queue": queue, "truncate": config.truncate_dims}
    network, objective = model, mmcon.Objective(affinity=affinity, **settings)
    objective = TripletLoss(margin=0.5) if config.objective == "triplet" else objective
    if config.objective in ("cross-entropy", "max-margin"):
        network = (Classifier if config.objective == "cross-entropy" else MarginClassifier)(encoder, len(train.classes))
        objective = CrossEntropy(train, power=config.class_weight_power)
    optimizer, schedule = create_optimizer_and_schedule(config, [network, objective], steps_per_epoch=len(loader))
    momentum = MomentumEncoder(model, momentum=config.momentum) if queue else None
    average = weight_average(model, decay=config.ema_decay) if config.ema_decay else None
    probe = OnlineProbe(encoder, classes=len(train.classes)) if config.online_probe else None
    state = {"queue": queue, "momentum": momentum, "average": average, "probe": probe}
    state = {name: module for name, module in state.items() if module is not None}
    trained = run.prepare(network, optimizer, schedule, objective=objective, **state)

    # Stage one.
    plain = {"image": [mmcon.create_view("image/plain", size=size)]}
    for batch in run.batches(loader, score=OnlineKnn(model, train, plain) if config.keep_best else None):
        if config.chunk_size:
            loss = cached(trained, objective, batch, chunk_size=config.chunk_size)
        else:
            loss = objective(trained(batch), batch)
        weights_changed = run.step(loss)  # not within a group of --accumulate; the queue takes every batch
        if momentum and weights_changed:
            momentum.update(trained)
        if queue and momentum:
            queue.push(momentum(batch), batch)
        if average and weights_changed:
            average.update_parameters(model)
        if probe:
            run.note(**probe.update(batch.index["image"]["label"]))
    if probe:
        probe.close()

    if config.dry_run:
        run.print(dry_run.report(full_config, network, optimizer, batch, train, others=state.values()))
        return run.close()

    # Stage two: features once, then every metric from them.
    model = run.full_model(model)
    if run.is_main:
        mmcon.inference.save_model(model, run.folder / "model", views=plain, source=train)
    encoders: dict[str, Any] = {"trained encoder": (model, plain), "random encoder": (untrained, plain)}
    encoders["raw pixels"] = second_stage.pixels, {"image": [mmcon.create_view("image/plain", size=min(size, 32))]}
    encoders |= {"averaged encoder": (average.module, plain)} if average else {}
    features = second_stage.extract_all(run, encoders, train, test)
    linear_views = {"image": [make_view(config, config.linear_view)]}
    linear_stage = second_stage.published_stage(run, config, model, train, test, views=linear_views, test_views=plain)
    if not run.is_main:
        return run.close()
    metrics = second_stage.evaluate_all(features, model_folder=run.folder / "model", classes=test.classes)
    run.print(second_stage.metrics_table(metrics, len(test)))
    run.finish(second_stage.metrics_json(metrics, test.classes) | linear_stage)


def make_view(config: Config, name: str) -> mmcon.ViewGenerator:
    """The view generator by name, with the options among the recipe's flags that it supports."""
    area, strength = (0.5, 0.5) if config.side <= 64 else (0.08, 1.0)
    options = {"size": config.side, "area": (config.crop_area or area, 1.0), "strength": config.strength or strength}
    asked = {} if config.warp is None or name != config.view else {"warp": config.warp}
    return mmcon.create_view(name, **supported_options("view", name, options), **asked)


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
