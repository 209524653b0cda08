"""Contrastive learning between channels of a picture: luminance, chroma and edges, each with an encoder of its own.

    uv run accelerate launch recipes/image_cmc.py                                   # bundled emoji, two CPU cores
    uv run accelerate launch recipes/image_cmc.py --channels luminance chroma edges --pairs all
    uv run accelerate launch recipes/image_cmc.py --data photos/ --encoder resnet50 --image-size 224

Every view of a picture has its own encoder; their embeddings meet in one space, where each view finds its partner among
all pictures of each other view. No colour jitter is needed: the channels are the augmentation. What is learned is
judged on the features of all encoders side by side.

After Tian et al. 2020 (contrastive multiview coding); `--objective supcon` takes all pictures of a class as partners.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from mmcon.training.settings import EngineFlags

import mmcon
from mmcon.affinity import SameLabel
from mmcon.errors import ConfigError, MmconError
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.knn import knn
from mmcon.evaluation.probe import linear_probe
from mmcon.loading.loader import ViewLoader, one_pass
from mmcon.losses import presets
from mmcon.models.encoders import create_encoder
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.factory import Source, channels_of, create_source
from mmcon.training.config import parse
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.run import Run, RunSettings, unused_folder
from mmcon.views import Chain

CHANNELS = {"luminance": 1, "chroma": 2, "edges": 1}


@dataclass(frozen=True, kw_only=True)
class Config(EngineFlags):
    """What to train, on what, and for how long."""

    data: str = "samples/emoji"
    """bundled drawings (samples/emoji); a folder with a sub-folder a class, tar shards, parquet files, a manifest, or a
    hub name"""
    output_dir: Path | None = None
    """the run folder; by default a new one under runs/"""
    objective: Literal["cmc", "supcon"] = "cmc"
    """cmc: partners are views of the same picture; supcon: of all pictures of its class"""
    channels: tuple[Literal["luminance", "chroma", "edges"], ...] = ("luminance", "chroma")
    """the views of a picture, two or more, in the order of their encoders"""
    pairs: Literal["all", "core"] = "all"
    """all: every view with every other; core: each other view with the first"""
    colours: Literal["lab", "ycbcr", "ydbdr"] = "lab"
    encoder: str = "mmcon/resnet-tiny"
    """made once for each view"""
    image_size: int | None = None
    """side of the views in pixels; by default 28 for bundled drawings and 224 for folders"""
    crop_area: float | None = None
    """the smallest share of a picture that a crop keeps; by default .5 up to 64 pixels and .2 above"""
    epochs: int = 40
    max_steps: int | None = None
    """stop after so many steps; the schedule stays that of --epochs"""
    batch_size: int = 128
    temperature: float = 0.1
    projection_dim: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    seed: int = 0
    resume: bool = False
    """go on from the newest good checkpoint in the output folder, or start"""
    force: bool = False
    workers: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    cpu: bool = False
    log_every: int = 10
    tiny: bool = False
    """a run of seconds that goes through everything"""

    @property
    def pixels(self) -> int:
        """The side that was asked for, or the data's."""
        return self.image_size or (28 if self.data.startswith("samples/") else 224)


def main(config: Config) -> None:
    """Train, then evaluate."""
    if len(set(config.channels)) < max(2, len(config.channels)):
        raise ConfigError("--channels", expected="two different views or more", got=str(config.channels))
    if config.tiny:
        config = replace(config, epochs=1, max_steps=min(config.max_steps or 6, 6), log_every=1)
    run = Run(
        config.output_dir or unused_folder(Path("runs") / f"image_{config.objective}", resume=config.resume),
        config=config,
        seed=config.seed,
        settings=RunSettings.of(config),
        resume=config.resume,
        mixed_precision=config.mixed_precision,
        cpu=config.cpu,
    )

    # Data: all views of a picture see the same crop.
    train, test = (create_source(config.data, split=split) for split in ("train", "test"))
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    if channels_of(train) != 3:
        raise ConfigError(
            "--data", expected="pictures in colour", got=f"{train.name}: grey", fix="--data samples/emoji"
        )
    sampler = UniformSampler(train.ids, batch_size=min(config.batch_size, len(train)), seed=config.seed)
    loader = ViewLoader(
        train,
        {"image": training_views(config)},
        sampler,
        seed=config.seed,
        workers=config.workers,
        device=run.device,
        rank=run.rank,
        world_size=run.world_size,
    )

    # Model: an encoder and a head for each view; which views find each other is the objective's table of pairs.
    encoders = [
        create_encoder(config.encoder, image_size=config.pixels, in_channels=CHANNELS[channels])
        for channels in config.channels
    ]
    model = mmcon.ContrastiveModel({"image": encoders}, {"shared": mmcon.SharedSpace(dim=config.projection_dim)})
    untrained = copy.deepcopy(model)
    objective = make_objective(config, train)
    optimizer = create_optimizer(
        [model, objective], "adamw", learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    steps = config.epochs * len(loader)
    schedule = create_schedule(optimizer, "cosine", steps=steps, warmup_steps=round(0.1 * steps))
    trained = run.prepare(model, optimizer, schedule, objective=objective)

    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)
    model = run.whole(model)

    # Features once, then every figure from them.
    if not run.is_main:
        run.close()
        return
    model.save_pretrained(run.folder / "model")
    if train.labels is None:
        run.finish({})
        return
    figures: dict[str, dict[str, float]] = {}
    for name, subject in {"trained": model, "random_encoders": untrained.to(run.device)}.items():
        parts = [side_by_side(config, subject, source, run.device) for source in (train, test)]
        figures[name] = judge(*(together(part) for part in parts))
        for number, channels in enumerate(config.channels):
            figures[f"{name}, {channels} alone"] = judge(*(part[number] for part in parts))
    pixels = mmcon.create_view("image/plain", size=config.pixels)
    raw = [extract_features(flat, one_pass(source, {"image": [pixels]}, device=run.device)) for source in (train, test)]
    figures["raw_pixels"] = judge(*raw)
    run.print(f"classes of {len(test):,} held-out pictures")
    for name, of in figures.items():
        run.print(f"  {name:<34} linear probe {of['linear_probe']:.3f}   k-NN {of['knn']:.3f}")
    run.finish(figures.pop("trained") | {name.replace(", ", "_").replace(" ", "_"): of for name, of in figures.items()})


# --- the parts, each by name -----------------------------------------------------------------------------------------


def training_views(config: Config) -> list[mmcon.ViewGenerator]:
    """The channels of one crop, a view each."""
    area = config.crop_area or (0.5 if config.pixels <= 64 else 0.2), 1.0
    options: dict[str, Any] = {"space": config.colours, "size": config.pixels, "area": area}
    return [mmcon.create_view("image/cmc", part=channels, **options) for channels in config.channels]


def plain_views(config: Config) -> list[mmcon.ViewGenerator]:
    """The channels of the whole picture."""
    plain = mmcon.create_view("image/plain", size=config.pixels)

    def channels_view(channels: str) -> mmcon.ViewGenerator:
        if channels == "edges":
            return mmcon.create_view("image/edges")
        return mmcon.create_view("image/color-channels", space=config.colours, part=channels)

    return [Chain(plain, channels_view(channels)) for channels in config.channels]


def make_objective(config: Config, train: Source) -> mmcon.Objective:
    """Each view against each other one, or all against the first."""
    names = [f"image:{number}" for number in range(len(config.channels))]
    settings = presets.cmc(
        temperature=config.temperature, views=names, core=names[0] if config.pairs == "core" else None
    )
    if config.objective == "supcon":
        if train.labels is None:
            raise ConfigError("--objective supcon", expected="labels", got="none", fix="--objective cmc")
        settings["affinity"] = SameLabel()
    return mmcon.Objective(**settings)


# --- figures ---------------------------------------------------------------------------------------------------------


def side_by_side(config: Config, model: torch.nn.Module, source: Source, device: torch.device) -> list[Features]:
    """Features of each view's encoder, rows in one order."""
    dump = extract_features(model, one_pass(source, {"image": plain_views(config)}, device=device))
    return [dump.take(dump.index["view"] == number) for number in range(len(config.channels))]


def together(parts: list[Features]) -> Features:
    """The features of all encoders of a picture, each at length one, as one row."""
    return Features(torch.cat([part.normalized() for part in parts], 1), parts[0].index)


def flat(batch: Any) -> torch.Tensor:
    """Pixels as they are."""
    return batch.views["image"][0].flatten(1)


def judge(train: Features, test: Features) -> dict[str, float]:
    """Classes by a linear probe and by neighbours."""
    return {"linear_probe": linear_probe(train, test).top1, "knn": knn(train, test, k=min(20, len(train))).top1}


if __name__ == "__main__":
    try:
        main(parse(Config, description=__doc__ or ""))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
