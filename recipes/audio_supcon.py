"""Contrastive learning of sound: supervised, self-supervised, and across languages.

    uv run accelerate launch recipes/audio_supcon.py                                   # bundled speech, two CPU cores
    uv run accelerate launch recipes/audio_supcon.py --objective simclr                # without labels
    uv run accelerate launch recipes/audio_supcon.py --data path/to/recordings --rate-hz 16000

Objectives: `supcon`, sounds of one class are alike; `simclr`, views of one recording are; `cola`, two windows of one
recording are, with COLA's view (Saeed et al. 2020; with `--similarity bilinear` as published); `cross-lingual`, the
same prompt is alike across languages with a weight of its own, and within a language fully.

Figures are read from features of held-out recordings. Where the data have prompts in several languages: retrieval of
the same prompt in another language, and a linear probe and k-NN of the language, which in the bundled speech is no more
than a voice on a recording chain. Else: a linear probe, k-NN and retrieval of the class. Beside each figure stand those
of a random encoder and of statistics of the log-mel spectrogram.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from mmcon.training.settings import EngineFlags
from torch import Tensor, nn

import mmcon
from mmcon.affinity import Affinity, SameLabel, SameSample
from mmcon.errors import ConfigError, MmconError
from mmcon.evaluation.audio import judge, log_mel_statistics, table
from mmcon.evaluation.features import extract_features
from mmcon.loading.loader import ViewLoader, one_pass
from mmcon.models.encoders import create_encoder
from mmcon.registry import lookup
from mmcon.samplers.base import BatchSampler
from mmcon.samplers.class_balanced import ClassAwareSampler
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.audio import open_source
from mmcon.sources.factory import Source
from mmcon.training.config import parse
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.run import Run, RunSettings, unused_folder

OURS = "mmcon/log-mel-conv"


@dataclass(frozen=True, kw_only=True)
class Config(EngineFlags):
    """What to train, on what, and for how long."""

    data: str = "samples/speech"
    """bundled speech, a folder (one sub-folder a class), a manifest (.csv, .jsonl, .parquet), or a data set's name"""
    output_dir: Path | None = None
    """the run folder; by default a new one under runs/"""
    objective: Literal["supcon", "simclr", "cola", "cross-lingual"] = "cross-lingual"
    cross_weight: float = 0.7
    """cross-lingual: the weight of the same prompt in another language, beside 1 for the same recording"""
    similarity: Literal["cosine", "bilinear"] = "cosine"
    """of embeddings; bilinear, aᵀWb with a W that is learned, is COLA's"""
    encoder: str = OURS
    """mmcon/log-mel-conv, or a transformers model by name or folder (then views stay waveforms)"""
    pretrained: bool = False
    """load published weights of a transformers model"""
    view: str = "audio/speech"
    """a view generator by name; `mmcon views` lists them"""
    views: int = 2
    rate_hz: int | None = None
    """what every file is resampled to; by default 8,000 Hz, as the bundled speech has, and 16,000 Hz for cola and for
    transformers' models, as published"""
    window_seconds: float = 1.6
    strength: float = 1.0
    """of the views' ranges"""
    batch_size: int = 96
    epochs: int = 60
    max_steps: int | None = None
    """stop after so many steps; the schedule stays that of --epochs"""
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
    checkpoint_every: int | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    tiny: bool = False
    """a run of seconds that goes through everything"""

    @property
    def hertz(self) -> int:
        """The rate that was asked for, or the one that view and encoder were published with."""
        published = self.objective == "cola" or self.encoder != OURS
        return self.rate_hz or (16_000 if published else 8_000)


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.tiny:
        config = replace(config, epochs=1, max_steps=min(config.max_steps or 4, 4), log_every=1, batch_size=16)
    run = Run(
        config.output_dir or unused_folder(Path("runs") / f"audio_{config.objective}", resume=config.resume),
        config=config,
        seed=config.seed,
        settings=RunSettings.of(config),
        resume=config.resume,
        mixed_precision=config.mixed_precision,
        cpu=config.cpu,
    )

    # Data.
    train, test = (open_source(config.data, split, rate_hz=config.hertz) for split in ("train", "test"))
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    loader = ViewLoader(
        train,
        {"audio": [make_view(config)] * config.views},
        make_sampler(config, train, world_size=run.world_size),
        seed=config.seed,
        workers=config.workers,
        device=run.device,
        rank=run.rank,
        world_size=run.world_size,
    )

    if loader.sampler.batch_size != config.batch_size:
        run.print(f"batches of {loader.sampler.batch_size} recordings: whole groups, in equal parts for the processes")

    # Model, and who is meant to be alike.
    objective = make_objective(config, train)
    encoder = create_encoder(config.encoder, modality="audio", pretrained=config.pretrained)
    model = mmcon.ContrastiveModel({"audio": encoder}, {"shared": mmcon.SharedSpace(dim=config.projection_dim)})
    untrained = copy.deepcopy(model)
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
    plain = {"audio": [evaluation_view(config)]}
    spectrograms = {
        "audio": [mmcon.create_view("audio/plain", window_seconds=config.window_seconds, rate_hz=config.hertz)]
    }
    subjects: dict[str, tuple[Any, Any]] = {
        "trained encoder": (model, plain),
        "random encoder": (untrained.to(run.device), plain),
        "log-mel statistics": (log_mel_statistics, spectrograms),
    }
    figures, read, lost = {}, 0, 0
    for name, (encode, view) in subjects.items():
        dumps = [extract_features(encode, one_pass(part, view, device=run.device)) for part in (train, test)]
        dumps[1].save(run.folder / "features" / f"{name.replace(' ', '_')}-test.safetensors")
        figures[name], read = judge(*dumps), len(dumps[1])
        lost = len(train) + len(test) - len(dumps[0]) - read
    run.print(table(figures, read, unreadable=lost))
    others = {name.replace(" ", "_"): f for name, f in figures.items() if "trained" not in name}
    run.finish(figures["trained encoder"] | others | {"held_out_recordings": read, "unreadable_recordings": lost})


# --- the parts -------------------------------------------------------------------------------------------------------


def make_view(config: Config) -> mmcon.ViewGenerator:
    """The view by name, with those of the recipe's settings that it takes."""
    name = "audio/cola" if config.objective == "cola" and config.view == "audio/speech" else config.view
    if name == "audio/cola" and config.hertz != 16_000:
        raise ConfigError("audio/cola", expected="--rate-hz 16000, as published", got=str(config.hertz))
    if config.encoder != OURS and name == "audio/speech":
        name = "audio/speech-waveform"
    settings = {"window_seconds": config.window_seconds, "rate_hz": config.hertz, "strength": config.strength}
    if name == "audio/cola":
        return mmcon.create_view(name)
    taken = lookup("view", name).options
    return mmcon.create_view(name, **{key: value for key, value in settings.items() if key in taken})


def evaluation_view(config: Config) -> mmcon.ViewGenerator:
    """The middle of the recording, as the encoder takes it."""
    if config.encoder != OURS:
        options: dict[str, Any] = {"window_seconds": config.window_seconds, "rate_hz": config.hertz}
        return mmcon.create_view("audio/crop", position="center", **options)
    if config.objective == "cola" and config.view == "audio/speech":
        options = {"window_seconds": config.window_seconds, "position": "center", "noise_std": 0.0}
        return mmcon.create_view("audio/cola", **options)
    return mmcon.create_view("audio/plain", window_seconds=config.window_seconds, rate_hz=config.hertz)


class Bilinear(nn.Module):
    """aᵀWb; W is learned, and begins as the identity: as the cosine of unit rows."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """Similarities `r c` of rows `r d` and `c d`."""
        return anchors @ self.weight @ candidates.T


def make_objective(config: Config, train: Source) -> mmcon.Objective:
    """Who is meant to be alike, and how strongly."""
    similarity = Bilinear(config.projection_dim) if config.similarity == "bilinear" else None

    def objective(affinity: Affinity) -> mmcon.Objective:
        return mmcon.Objective(affinity=affinity, temperature=config.temperature, similarity=similarity)

    if config.objective in ("simclr", "cola"):
        return objective(SameSample())
    needed = ("prompt", "language") if config.objective == "cross-lingual" else ("label",)
    missing = [name for name in needed if name not in train.columns]
    if missing:
        raise ConfigError(
            f"--objective {config.objective}",
            expected=f"columns {needed} in the data",
            got=f"columns {sorted(train.columns)}",
            fix="add them to the manifest, use one sub-folder a class with supcon, or --objective simclr",
        )
    if config.objective == "supcon":
        return objective(SameLabel())
    # w for the same prompt, and (1 − w) more where the language is the same too.
    same_prompt = SameLabel("prompt")
    return objective(
        same_prompt * config.cross_weight + same_prompt * SameLabel("language") * (1 - config.cross_weight)
    )


def make_sampler(config: Config, train: Source, *, world_size: int = 1) -> BatchSampler:
    """Batches at random; or, where classes or prompts are positives, with several recordings of each.

    Of a prompt as many meet as there are languages, so that all translations do; and there are as many prompts less as
    it takes for the processes to divide the batch.
    """
    size = min(config.batch_size, len(train))
    column = {"supcon": "label", "cross-lingual": "prompt"}.get(config.objective)
    if column is None or column not in train.columns:
        return UniformSampler(train.ids, batch_size=size, seed=config.seed)
    labels, languages = train.columns[column], train.columns.get("language")
    least = 2 if languages is None else max(2, len(languages.unique()))
    classes = min(len(labels.unique()), max(2, size // least))
    each = max(2, size // classes)
    share = world_size // math.gcd(world_size, each)
    classes = max(share, classes - classes % share)
    return ClassAwareSampler(labels, batch_size=classes * each, seed=config.seed, samples_per_class=each)


if __name__ == "__main__":
    try:
        main(parse(Config, description=__doc__ or ""))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
