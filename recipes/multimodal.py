r"""Contrastive learning of any number of modalities in one space, some missing in some samples, some pairs never met.

    uv run accelerate launch recipes/multimodal.py                                   # bundled emoji, two CPU cores
    uv run accelerate launch recipes/multimodal.py --pairs image-text text-audio image-audio
    uv run accelerate launch recipes/multimodal.py --data series=series/oscillators --objective same-label \
        --view series=series/window --encoder series=series/conv                     # docs/new-modality.md

The bundled samples are emoji: a drawing, the English name and keywords, and the name as a synthesiser speaks it in up
to four languages (two thirds have a recording, some several). By default pictures never meet sounds in training; both
meet names, and the recipe tells how well a picture finds its sound through them.

A modality is what its source, view and encoder say it is; nothing here knows them by name but the defaults.
After Girdhar et al. 2023 (ImageBind: modalities that never met are bound through a third).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from mmcon.training.settings import EngineFlags
from torch import nn

import mmcon
from mmcon.affinity import SameLabel, SameSample
from mmcon.errors import ConfigError, MmconError
from mmcon.evaluation.cross_modal import (
    SpaceEmbeddings,
    cross_modal_table,
    metrics_by_modality_pair,
    uniformity_by_modality,
)
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.probe import linear_probe
from mmcon.loading.loader import ViewLoader, one_pass
from mmcon.losses import LearnableTemperature
from mmcon.models.encoders import create_encoder
from mmcon.objective.objective import Block
from mmcon.registry import lookup
from mmcon.samplers.base import BatchSampler
from mmcon.samplers.class_balanced import ClassAwareSampler
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.factory import JoinedSource, create_source
from mmcon.training.config import parse
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.run import Run, RunSettings, unused_folder
from mmcon.views import Chain

BUNDLED = "image=samples/emoji", "text=samples/emoji-texts", "audio=samples/emoji-spoken"
ENCODERS = {"image": "mmcon/resnet-tiny", "text": "text/embedding-bag", "audio": "mmcon/log-mel-conv"}
VIEWS = {"image": "image/simclr", "text": "text/words", "audio": "audio/speech"}


@dataclass(frozen=True, kw_only=True)
class Config(EngineFlags):
    """What to train, on what, and for how long. Entries of tuples are MODALITY=VALUE."""

    data: tuple[str, ...] = BUNDLED
    """a source for each modality, by registered name or path; samples meet by their ids"""
    view: tuple[str, ...] = ()
    """a view generator for each modality that has none by default; its evaluation view is MODALITY/plain"""
    plain: tuple[str, ...] = ()
    """an evaluation view in place of MODALITY/plain"""
    encoder: tuple[str, ...] = ()
    """an encoder by name for each modality that has none by default"""
    pairs: tuple[str, ...] = ()
    """which modalities meet in training, such as image-text; by default all, but of the bundled data image-text and
    text-audio"""
    views: int | None = None
    """views of each modality in a batch; by default 1, and 2 where a modality meets itself"""
    objective: Literal["same-sample", "same-label"] = "same-sample"
    """who is meant to be alike"""
    output_dir: Path | None = None
    """the run folder; by default a new one under runs/"""
    image_size: int = 28
    rate_hz: int = 16_000
    window_seconds: float = 1.6
    max_tokens: int = 16
    epochs: int = 40
    max_steps: int | None = None
    """stop after so many steps; the schedule stays that of --epochs"""
    batch_size: int = 128
    temperature: float = 0.07
    """where the temperature starts; it learns"""
    projection_dim: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
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


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.tiny:
        config = replace(config, epochs=1, max_steps=min(config.max_steps or 4, 4), log_every=1, batch_size=32)
    sources = by_modality("--data", config.data)
    pairs = make_pairs(config, list(sources))
    views = config.views or (2 if any(a == c for a, c in pairs) else 1)
    run = Run(
        config.output_dir or unused_folder(Path("runs") / "multimodal", resume=config.resume),
        config=config,
        seed=config.seed,
        settings=RunSettings.of(config),
        resume=config.resume,
        mixed_precision=config.mixed_precision,
        cpu=config.cpu,
        find_unused_parameters=len(sources) > 1,  # a batch may lack a modality
    )

    # Data: a source for each modality; rows meet by the sample's id, and a sample may lack some.
    train, test = (open_sources(sources, split) for split in ("train", "test"))
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    training = {modality: [make_view(config, modality)] * views for modality in sources}
    loader = ViewLoader(
        train,
        training,
        make_sampler(config, train),
        seed=config.seed,
        workers=config.workers,
        device=run.device,
        rank=run.rank,
        world_size=run.world_size,
    )

    # Model: an encoder and a head for each modality; the objective says which pairs meet.
    model = mmcon.ContrastiveModel(
        make_encoders(config, list(sources)), {"shared": mmcon.SharedSpace(dim=config.projection_dim)}
    )
    untrained = copy.deepcopy(model)
    objective = mmcon.Objective(
        affinity=SameSample() if config.objective == "same-sample" else SameLabel(),
        temperature=LearnableTemperature(initial=config.temperature),
        blocks=[
            Block(*way, weight=1 / len({pair, pair[::-1]})) for pair in pairs for way in sorted({pair, pair[::-1]})
        ],
    )
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

    # One dump of embeddings and of features a modality and a part; every figure from them.
    if not run.is_main:
        run.close()
        return
    model.save_pretrained(run.folder / "model")
    met = ["-".join(pair) for pair in pairs]
    results = {}
    for name, subject in {"trained": model, "random_encoders": untrained.to(run.device)}.items():
        results[name], shown = judge(config, subject, train, test, met, run.device)
        run.print(f"{name}\n{shown}")
    run.finish(results["trained"] | {"random_encoders": results["random_encoders"]})


# --- the parts, each by name -----------------------------------------------------------------------------------------


def by_modality(flag: str, entries: Sequence[str]) -> dict[str, str]:
    """Values by modality, from MODALITY=VALUE."""
    wrong = [entry for entry in entries if not all(entry.partition("="))]
    if wrong:
        raise ConfigError(flag, expected="MODALITY=VALUE, such as image=photos/", got=str(wrong))
    return dict(entry.split("=", 1) for entry in entries)


def make_pairs(config: Config, modalities: list[str]) -> list[tuple[str, str]]:
    """Which modalities meet in training; one alone meets itself."""
    if not config.pairs:
        if config.data == BUNDLED:
            return [("image", "text"), ("text", "audio")]
        return list(combinations(modalities, 2)) or [(modalities[0], modalities[0])]
    pairs = [(first, second) for first, _, second in (pair.partition("-") for pair in config.pairs)]
    if unknown := sorted({name for pair in pairs for name in pair} - set(modalities)):
        raise ConfigError("--pairs", expected=f"pairs such as a-b of {modalities}", got=str(unknown))
    return pairs


def open_sources(sources: dict[str, str], split: str) -> JoinedSource:
    """The sources of all modalities, joined."""
    opened = [create_source(name, split=split, modality=m) for m, name in sources.items()]
    wrong = {m: source.modality for m, source in zip(sources, opened, strict=True) if source.modality != m}
    if wrong:
        raise ConfigError("--data", expected="MODALITY=SOURCE with a source of that modality", got=str(wrong))
    return JoinedSource(*opened)


def named(config: Config, name: str) -> mmcon.ViewGenerator:
    """A view generator with those of the recipe's settings that it takes."""
    settings: dict[str, Any] = {
        "size": config.image_size,
        "rate_hz": config.rate_hz,
        "window_seconds": config.window_seconds,
    }
    settings |= {"max_tokens": config.max_tokens}
    if name.startswith("image/"):  # what names a picture is its colour and outline: little may be changed
        settings |= {"area": (0.6, 1.0), "strength": 0.3, "grayscale": 0.0}
    taken = lookup("view", name).options
    return mmcon.create_view(name, **{key: value for key, value in settings.items() if key in taken})


def make_view(config: Config, modality: str) -> mmcon.ViewGenerator:
    """One of the sample's instances, and a view of it."""
    name = by_modality("--view", config.view).get(modality) or VIEWS.get(modality)
    if name is None:
        fix = f"--view {modality}=NAME, one of {mmcon.list_views(modality)}"
        raise ConfigError("--view", expected=f"a view generator for {modality!r}", got="none", fix=fix)
    return Chain(mmcon.create_view("any/instance"), named(config, name))


def plain_view(config: Config, modality: str) -> mmcon.ViewGenerator:
    """The first instance, with nothing drawn."""
    name = by_modality("--plain", config.plain).get(modality, f"{modality}/plain")
    return Chain(mmcon.create_view("any/instance", random=False), named(config, name))


def make_encoders(config: Config, modalities: list[str]) -> dict[str, nn.Module]:
    """An encoder for each modality."""
    names = ENCODERS | by_modality("--encoder", config.encoder)
    if missing := [modality for modality in modalities if modality not in names]:
        raise ConfigError("--encoder", expected=f"an encoder for {missing}", got="none", fix="--encoder MODALITY=NAME")
    return {m: create_encoder(names[m], modality=m, image_size=config.image_size) for m in modalities}


def make_sampler(config: Config, train: JoinedSource) -> BatchSampler:
    """Samples at random; where classes are positives, two or more of each."""
    size = min(config.batch_size, len(train))
    if config.objective == "same-sample":
        return UniformSampler(train.ids, batch_size=size, seed=config.seed)
    if train.labels is None:
        raise ConfigError("--objective same-label", expected="a label for every sample", got=train.describe())
    classes = min(len(train.classes), size // 2)
    each = size // classes
    return ClassAwareSampler(train.labels, batch_size=classes * each, seed=config.seed, samples_per_class=each)


# --- figures ---------------------------------------------------------------------------------------------------------


def judge(
    config: Config, model: nn.Module, train: JoinedSource, test: JoinedSource, met: list[str], device: torch.device
) -> tuple[dict[str, Any], str]:
    """Retrieval between every two modalities, of training samples and of held-out ones; classes where there are any."""
    results: dict[str, Any] = {}
    told = []
    for part, source in (("training_samples", train), ("held_out", test)):
        dumps = {m: dump(config, SpaceEmbeddings(model), source, m, device) for m in source.members}
        found = metrics_by_modality_pair(dumps)
        results[part] = {name: of.results() for name, of in found.items()} | {
            "uniformity": uniformity_by_modality(dumps)
        }
        if found:
            told.append(f"{part.replace('_', ' ')}: {cross_modal_table(found, met=met)}")
    for modality in train.members:
        known, asked = (dump(config, model, source, modality, device) for source in (train, test))
        if "label" in known.index:
            results.setdefault("linear_probe", {})[modality] = linear_probe(known, asked).top1
    if "linear_probe" in results:
        told.append("linear probe  " + "   ".join(f"{m} {top1:.3f}" for m, top1 in results["linear_probe"].items()))
    return results, "\n".join(told)


def dump(config: Config, encode: nn.Module, source: JoinedSource, modality: str, device: torch.device) -> Features:
    """What is said of every sample that has the modality."""
    views = {modality: [plain_view(config, modality)]}
    return extract_features(encode, one_pass(source.members[modality], views, device=device), modality=modality)


if __name__ == "__main__":
    try:
        main(parse(Config, description=__doc__ or ""))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
