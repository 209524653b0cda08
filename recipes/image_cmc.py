"""Contrastive learning between channels of an image: luminance, chroma and edges, each with an encoder of its own.

    uv run accelerate launch recipes/image_cmc.py                                   # bundled emoji, two CPU cores
    uv run accelerate launch recipes/image_cmc.py --channels luminance chroma edges --pairs all
    uv run accelerate launch recipes/image_cmc.py --data photos/ --encoder resnet50 --image-size 224

Each view is one group of channels of the same crop and has its own encoder. The embeddings share one space, where each
view is contrasted with every other view over all images of the batch. No color jitter is needed: the channels are the
augmentation. The evaluation concatenates the features of all encoders.

After Tian et al. 2020, "Contrastive Multiview Coding". With `--objective supcon` all images of a class are positives.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

import mmcon
from mmcon.affinity import SameLabel
from mmcon.errors import ConfigError
from mmcon.evaluation.features import Features
from mmcon.evaluation.second_stage import evaluate_features, extract_all, pixels, results_json
from mmcon.losses import presets
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Source, channels_of
from mmcon.training.config import ImageRunConfig
from mmcon.training.logging import QUARANTINE
from mmcon.training.optim import create_optimizer_and_schedule

CHANNELS = {"luminance": 1, "chroma": 2, "edges": 1}


@dataclass(frozen=True, kw_only=True)
class Config(ImageRunConfig):
    """What to train, on what, and for how long."""

    data: str = "samples/emoji"
    """bundled drawings (samples/emoji); a folder with one sub-folder per class, tar shards, parquet files, a manifest,
    or a hub name"""
    objective: Literal["cmc", "supcon"] = "cmc"
    """cmc: positives are the other views of the same image; supcon: of all images of its class"""
    channels: tuple[Literal["luminance", "chroma", "edges"], ...] = ("luminance", "chroma")
    """the views of an image, two or more, in the order of their encoders"""
    pairs: Literal["all", "core"] = "all"
    """all: every view with every other; core: each other view with the first"""
    color_space: Literal["lab", "ycbcr", "ydbdr"] = "lab"
    encoder: str = "mmcon/resnet-tiny"
    """built once per view"""
    crop_area: float | None = None
    """smallest fraction of an image that a crop keeps; default: .5 up to 64 pixels, .2 above"""
    temperature: float = 0.1
    epochs: int = 40
    tuned_rate: ClassVar[float] = 3e-3


def main(config: Config) -> None:
    """Train, then evaluate."""
    if len(set(config.channels)) < max(2, len(config.channels)):
        raise ConfigError("--channels", expected="two different views or more", got=str(config.channels))
    config = config.apply_tiny(max_steps=6)
    run = mmcon.Run.from_config(config, name=f"image_{config.objective}")

    # Data: all views of an image have the same crop.
    train, test = config.open_splits(quarantine=run.folder / QUARANTINE)
    train = config.labeled_subset(train)
    config = config.fit_batch_size(len(train), run.print, ranks=run.world_size)
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    if channels_of(train) != 3:
        raise ConfigError("--data", expected="images in color", got=f"{train.name}: gray", fix="--data samples/emoji")
    sampler = UniformSampler(train.ids, batch_size=config.batch_size, seed=config.seed)
    loader = run.loader(train, {"image": training_views(config)}, sampler)

    # Model: an encoder and a head for each view. The objective lists the pairs of views.
    encoders = [
        mmcon.create_encoder(config.encoder, image_size=config.side, in_channels=CHANNELS[channels])
        for channels in config.channels
    ]
    model = mmcon.ContrastiveModel({"image": encoders}, {"shared": config.shared_space(*encoders)})
    untrained = copy.deepcopy(model)
    objective = make_objective(config, train)
    optimizer, schedule = create_optimizer_and_schedule(config, [model, objective], steps_per_epoch=len(loader))
    trained = run.prepare(model, optimizer, schedule, objective=objective)

    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)

    # Features once, then every metric from them.
    model = run.full_model(model)
    views = {"image": plain_views(config)}
    if run.is_main:
        mmcon.inference.save_model(model, run.folder / "model", views=views, source=train)
    if train.labels is None:
        return run.finish({})
    raw = {"image": [mmcon.create_view("image/plain", size=config.side)]}
    subjects = {"trained": (model, views), "random_encoders": (untrained, views), "raw_pixels": (pixels, raw)}
    features = extract_all(run, subjects, train, test)
    if not run.is_main:
        return run.close()
    metrics: dict[str, dict[str, float]] = {}
    for name in ("trained", "random_encoders"):
        train_views, test_views = ([split.take(split.index["view"] == view) for view in range(len(encoders))]
                                   for split in features[name])  # fmt: skip
        saved = {"model_folder": run.folder / "model", "classes": train.classes} if name == "trained" else {}
        metrics[name] = evaluate(concatenated(train_views), concatenated(test_views), **saved)
        for number, channels in enumerate(config.channels):
            metrics[f"{name}, {channels} alone"] = evaluate(train_views[number], test_views[number])
    metrics["raw_pixels"] = evaluate(*features["raw_pixels"])
    run.print(f"classes of {len(test):,} held-out images")
    for name, values in metrics.items():
        run.print(f"  {name:<34} linear probe {values['linear_probe']:.3f}   k-NN {values['knn']:.3f}")
    run.finish(results_json(metrics, n=len(test)))


# --- views, objective and metrics ------------------------------------------------------------------------------------


def training_views(config: Config) -> list[mmcon.ViewGenerator]:
    """The channels of one crop, one view each."""
    area = config.crop_area or (0.5 if config.side <= 64 else 0.2), 1.0
    options: dict[str, Any] = {"space": config.color_space, "size": config.side, "area": area}
    return [mmcon.create_view("image/cmc", channels=channels, **options) for channels in config.channels]


def plain_views(config: Config) -> list[mmcon.ViewGenerator]:
    """The channels of the whole image."""
    plain = mmcon.create_view("image/plain", size=config.side)

    def channels_view(channels: str) -> mmcon.ViewGenerator:
        if channels == "edges":
            return mmcon.create_view("image/edges")
        return mmcon.create_view("image/color-channels", space=config.color_space, channels=channels)

    return [mmcon.Chain(plain, channels_view(channels)) for channels in config.channels]


def make_objective(config: Config, train: Source) -> mmcon.Objective:
    """Each view against every other one, or all against the first."""
    names = [f"image:{number}" for number in range(len(config.channels))]
    settings = presets.cmc(
        temperature=config.temperature, views=names, core=names[0] if config.pairs == "core" else None
    )
    if config.objective == "supcon":
        if train.labels is None:
            raise ConfigError("--objective supcon", expected="labels", got="none", fix="--objective cmc")
        settings["affinity"] = SameLabel()
    return mmcon.Objective(**settings, truncate=config.truncate_dims)


def concatenated(views: list[Features]) -> Features:
    """One row per image: the unit features of all encoders, concatenated."""
    return Features(torch.cat([features.normalized() for features in views], 1), views[0].index)


def evaluate(train: Features, test: Features, **saved: Any) -> dict[str, float]:
    """Top-1 of a linear probe and of k-NN; the probe is saved where `saved` says."""
    return {name: result.top1 for name, result in evaluate_features(train, test, neighbors=20, **saved).items()}


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
