"""Supervised contrastive learning of images in two stages: the reference recipe.

    uv run accelerate launch recipes/imagenet_supcon.py                          # bundled images, two CPU cores
    uv run accelerate launch recipes/imagenet_supcon.py --data path/to/photos    # a folder a class, or train/ and val/
    uv run accelerate launch recipes/imagenet_supcon.py --objective simclr

Stage one trains an encoder contrastively in a small projection space; stage two drops the projection head and trains a
linear classifier on the frozen features, which are computed once. The same figures for a random encoder of the same
shape and for raw pixels stand beside the result, for without them no figure means much.

After Khosla et al. 2020, "Supervised Contrastive Learning", and Chen et al. 2020, "A Simple Framework for Contrastive
Learning of Visual Representations".
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import mmcon
from mmcon.affinity import SameLabel, SameSample
from mmcon.batch import ViewBatch
from mmcon.data.loading import ViewLoader, one_pass
from mmcon.data.samplers import BatchSampler
from mmcon.data.sources import Source, Subset, TensorSource, create_source
from mmcon.errors import ConfigError, MmconError
from mmcon.evaluation.features import Features, extract
from mmcon.evaluation.probe import linear_probe
from mmcon.evaluation.retrieval import knn
from mmcon.models.encoders import create_encoder
from mmcon.registry import create, lookup
from mmcon.training.config import parse
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.run import QUARANTINE, Run, Settings, unused_folder


@dataclass(frozen=True, kw_only=True)
class Config:
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
    """an encoder by name: mmcon/resnet-tiny, resnet50, timm/…"""
    view: str = "image/simclr"
    """a view generator by name; `mmcon views` lists them"""
    views: int = 2
    """views of each sample in a batch"""
    image_size: int | None = None
    """side of the views in pixels; by default 28 for bundled images and 224 for folders"""
    crop_area: float | None = None
    """the smallest share of an image that a crop keeps; by default .5 up to 64 pixels and .08 above"""
    sampler: Literal["uniform", "class-aware"] = "uniform"
    epochs: int = 30
    max_steps: int | None = None
    """stop after so many steps; the schedule stays that of --epochs"""
    batch_size: int = 128
    """samples in a step, over all processes"""
    temperature: float = 0.1
    projection_dim: int = 128
    optimizer: Literal["sgd", "lars", "adamw"] = "adamw"
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    warmup_share: float = 0.1
    """share of the steps in which the learning rate rises"""
    seed: int = 0
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
    on_nonfinite: Literal["stop", "skip"] = "stop"
    tiny: bool = False
    """a run of seconds that goes through everything"""


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.tiny:
        config = replace(config, epochs=1, max_steps=min(config.max_steps or 8, 8), log_every=1)
    run = Run(
        config.output_dir or unused_folder(Path("runs") / f"imagenet_{config.objective}", resume=config.resume),
        config=config,
        seed=config.seed,
        settings=Settings(
            epochs=config.epochs,
            max_steps=config.max_steps,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            on_nonfinite=config.on_nonfinite,
            force=config.force,
        ),
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
    view = make_view(config, size)
    loader = ViewLoader(
        train,
        {"image": [view] * config.views},
        make_sampler(config, train),
        seed=config.seed,
        workers=config.workers,
        device=run.device,
        process=run.process,
        processes=run.processes,
    )

    # Model: an encoder, and a projection head that the second stage drops.
    encoder = create_encoder(config.encoder, image_size=size, in_channels=channels(train))
    model = mmcon.ContrastiveModel({"image": encoder}, {"shared": mmcon.SharedSpace(dim=config.projection_dim)})
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    untrained = copy.deepcopy(model)
    affinity = SameLabel() if config.objective == "supcon" else SameSample()
    network, objective = model, mmcon.Objective(affinity=affinity, temperature=config.temperature)
    if config.objective == "cross-entropy":
        network, objective = Classifier(encoder, len(train.classes)), CrossEntropy()
    rate, decay = config.learning_rate, config.weight_decay
    optimizer = create_optimizer([network, objective], config.optimizer, learning_rate=rate, weight_decay=decay)
    steps = config.epochs * len(loader)
    schedule = create_schedule(optimizer, "cosine", steps=steps, warmup_steps=round(config.warmup_share * steps))
    trained = run.prepare(network, optimizer, schedule, objective=objective)

    # Stage one.
    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)

    # Stage two: features once, then every figure from them.
    if run.is_main:
        model.save_pretrained(run.folder / "model")
    plain = {"image": [mmcon.create_view("image/plain", size=size)]}
    small = {"image": [mmcon.create_view("image/plain", size=min(size, 32))]}
    encoders = {
        "trained encoder": (model, plain),
        "random encoder": (untrained.to(run.device), plain),
        "raw pixels": (pixels, small),
    }
    features = {name: dump(run, name, encode, views, train, test) for name, (encode, views) in encoders.items()}
    if run.is_main:
        figures = {name: judge(*pair) for name, pair in features.items()}
        run.print(table(figures, len(test)))
        run.finish(results(figures))
    else:
        run.close()


# --- the parts, each by name -----------------------------------------------------------------------------------------


def make_view(config: Config, size: int) -> mmcon.ViewGenerator:
    """The view by name, with those of the recipe's settings that it takes."""
    small = size <= 64
    settings: dict[str, Any] = {
        "size": size,
        "area": (config.crop_area or (0.5 if small else 0.08), 1.0),
        "strength": 0.5 if small else 1.0,
    }
    taken = lookup("view", config.view).options
    return mmcon.create_view(config.view, **{name: value for name, value in settings.items() if name in taken})


def make_sampler(config: Config, train: Source) -> BatchSampler:
    """Whole global batches; with the class-aware sampler at least two classes and two samples of each."""
    labels = train.labels if train.labels is not None else torch.zeros(len(train), dtype=torch.int64)
    if config.objective != "simclr" and (train.labels is None or len(train.labels.unique()) < 2):
        raise ConfigError(
            f"--objective {config.objective}",
            expected="labels of at least two classes",
            got=train.describe().partition("\n")[0],
            fix="use one sub-folder a class, or --objective simclr",
        )
    lone = config.objective == "supcon" and config.views < 2 and config.sampler == "uniform"
    if lone and config.batch_size < 2 * len(train.classes):
        raise ConfigError(
            "--batch-size",
            expected=f"two samples a class: {2 * len(train.classes)} or more for {len(train.classes)} classes",
            got=f"{config.batch_size}, and one view a sample",
            fix="raise --batch-size, give --views 2, or use --sampler class-aware",
        )
    return create("sampler", f"sampler/{config.sampler}", labels=labels, batch_size=config.batch_size, seed=config.seed)


class Classifier(nn.Module):
    """The baseline's network: the same encoder under a linear classifier."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.layer = nn.Linear(encoder.feature_dim, classes)  # pyright: ignore[reportArgumentType]

    def forward(self, batch: ViewBatch) -> Tensor:
        """Scores of the classes, `n classes`."""
        return self.layer(self.encoder(torch.cat(batch.views["image"])))


class CrossEntropy(nn.Module):
    """The baseline's loss, the mean over rows."""

    def forward(self, scores: Tensor, batch: ViewBatch) -> Tensor:
        """From scores `n classes` to a scalar."""
        return nn.functional.cross_entropy(scores, batch.index["image"]["label"])


def channels(source: Source) -> int:
    """Channels of images in memory; files are decoded to colour."""
    inner = source.source if isinstance(source, Subset) else source
    return inner.values.shape[1] if isinstance(inner, TensorSource) else 3


def pixels(batch: ViewBatch) -> Tensor:
    """The images themselves as features."""
    return batch.views["image"][0].flatten(1)


# --- stage two -------------------------------------------------------------------------------------------------------


def dump(run: Run, name: str, encode: Any, views: Any, train: Source, test: Source) -> tuple[Features, Features]:
    """Features of both parts, each row computed once, by as many processes as there are."""

    def of(part: str, source: Source) -> Features:
        rows = one_pass(source, views, device=run.device, process=run.process, processes=run.processes)
        files = [run.folder / "features" / f"{name}, {part}, {p}.safetensors" for p in range(run.processes)]
        extract(encode, rows).save(files[run.process])
        run.accelerator.wait_for_everyone()
        return Features.cat([Features.load(file) for file in files])

    return of("train", train), of("test", test)


def judge(train: Features, test: Features) -> dict[str, Any]:
    """The linear probe and the nearest neighbours."""
    return {"linear_probe": linear_probe(train, test), "knn": knn(train, test, k=min(200, len(train)))}


def table(figures: dict[str, dict[str, Any]], n: int) -> str:
    """The figures for a person to read."""
    lines = [f"top-1 [95 % interval over images] / top-5 on {n} held-out images"]
    for name, of in figures.items():
        probe, near = of["linear_probe"], of["knn"]
        lines.append(f"  {name:<16} linear probe {probe.interval()} / {probe.top5:.3f}")
        lines.append(f"  {'':<16} k-NN         {near.interval()} / {near.top5:.3f}")
    return "\n".join(lines)


def results(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What results.json holds."""
    trained = figures["trained encoder"]
    baselines = {
        name.replace(" ", "_"): {"linear_probe_top1": of["linear_probe"].top1, "knn_top1": of["knn"].top1}
        for name, of in figures.items()
        if of is not trained
    }
    interval = trained["linear_probe"].interval()
    return {
        **{name: {"top1": c.top1, "top5": c.top5} for name, c in trained.items()},
        "linear_probe_top1_interval": [interval.low, interval.high],
        **baselines,
    }


if __name__ == "__main__":
    try:
        main(parse(Config, description=__doc__ or ""))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
