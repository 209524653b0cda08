"""Contrastive learning of audio: supervised, self-supervised, and across languages.

    uv run accelerate launch recipes/audio_supcon.py                                   # bundled speech, two CPU cores
    uv run accelerate launch recipes/audio_supcon.py --objective simclr                # without labels
    uv run accelerate launch recipes/audio_supcon.py --data path/to/recordings --rate-hz 16000

Positives of the objectives: `supcon`, recordings of one class; `simclr`, views of one recording; `cola`, two windows of
one recording, with COLA's view (Saeed et al. 2020; with `--similarity bilinear` as published); `cross-lingual`, the
same prompt, fully within a language and with a weight of its own across languages.

The metrics come from features of held-out recordings. If the data have prompts in several languages: retrieval of the
same prompt in another language, and a linear probe and k-NN of the language, which in the bundled speech is no more
than a voice on a recording chain. Otherwise: a linear probe, k-NN and retrieval of the class. A random encoder and
statistics of the log-mel spectrogram are the baselines.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import mmcon
from mmcon.affinity import Affinity, SameLabel, SameSample
from mmcon.errors import ConfigError
from mmcon.evaluation.audio import audio_metrics_table, evaluate_audio, log_mel_statistics
from mmcon.evaluation.second_stage import extract_all, results_json
from mmcon.losses.bilinear_similarity import BilinearSimilarity
from mmcon.registry import supported_options
from mmcon.samplers.base import BatchSampler
from mmcon.samplers.class_balanced import ClassAwareSampler
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Source
from mmcon.training.optim import create_optimizer_and_schedule

BUILT_IN = "mmcon/log-mel-conv"
# Columns of the data by objective.
NEEDED: dict[str | None, tuple[str, ...]] = {"cross-lingual": ("prompt", "language"), "supcon": ("label",)}


@dataclass(frozen=True, kw_only=True)
class Config(mmcon.RunConfig):
    """What to train, on what, and for how long."""

    data: str = "samples/speech"
    """bundled speech, a folder (one sub-folder per class), a manifest (.csv, .jsonl, .parquet), or a hub name"""
    objective: Literal["supcon", "simclr", "cola", "cross-lingual"] | None = None
    """default: cross-lingual for data with prompts in languages, supcon for other labels, simclr without labels"""
    cross_weight: float = 0.7
    """cross-lingual: the weight of the same prompt in another language, beside 1 in the same language"""
    similarity: Literal["cosine", "bilinear"] = "cosine"
    """similarity of embeddings; bilinear, aᵀWb with a learned W, is COLA's"""
    encoder: str = BUILT_IN
    """mmcon/log-mel-conv, or a transformers model by name or folder (then views are waveforms)"""
    pretrained: bool = False
    """load the published weights of a transformers model"""
    view: str = "audio/speech"
    """view generator by name; `mmcon views` lists them"""
    views: int = 2
    rate_hz: int | None = None
    """sample rate to which every file is resampled; default: 8,000 Hz, the rate of the bundled speech, and 16,000 Hz
    for cola and for transformers' models, as published"""
    window_seconds: float = 1.6
    strength: float = 1.0
    """scales the ranges of the views"""
    temperature: float = 0.1
    batch_size: int = 96
    epochs: int = 60
    tuned_rate: ClassVar[float] = 3e-3

    @property
    def sample_rate_hz(self) -> int:
        """The sample rate of the flag, or the one that view and encoder were published with."""
        return self.rate_hz or (16_000 if self.objective == "cola" or self.encoder != BUILT_IN else 8_000)


def main(config: Config) -> None:
    """Train, then evaluate."""
    config = config.apply_tiny(max_steps=4, batch_size=16)

    # Data: recordings, and the views and batches of them.
    opened: dict[str, Any] = {"modality": "audio", "rate_hz": config.sample_rate_hz}
    train, test = (mmcon.create_source(config.data, split=split, **opened) for split in ("train", "test"))
    train = config.labeled_subset(train)
    config = replace(config, objective=config.objective or fitting_objective(train))
    run = mmcon.Run.from_config(config, name=f"audio_{config.objective}")
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    sampler = make_sampler(config, train, world_size=run.world_size)
    loader = run.loader(train, {"audio": [make_view(config)] * config.views}, sampler)
    if sampler.batch_size != config.batch_size:
        run.print(f"batches of {sampler.batch_size} recordings: whole groups, in equal shards for the ranks")
    config = replace(config, batch_size=sampler.batch_size)  # which the default learning rate follows

    # Model and loss.
    objective = make_objective(config, train)
    encoder = mmcon.create_encoder(config.encoder, modality="audio", pretrained=config.pretrained)
    model = mmcon.ContrastiveModel({"audio": encoder}, {"shared": config.shared_space(encoder)})
    untrained = copy.deepcopy(model)
    optimizer, schedule = create_optimizer_and_schedule(config, [model, objective], steps_per_epoch=len(loader))
    trained = run.prepare(model, optimizer, schedule, objective=objective)

    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)

    # Features once, then every metric from them.
    model = run.full_model(model)
    plain = {"audio": [evaluation_view(config)]}
    if run.is_main:
        mmcon.inference.save_model(model, run.folder / "model", views=plain, source=train)
    log_mel = mmcon.create_view("audio/plain", window_seconds=config.window_seconds, rate_hz=config.sample_rate_hz)
    encoders = {
        "trained encoder": (model, plain),
        "random encoder": (untrained, plain),
        "log-mel statistics": (log_mel_statistics, {"audio": [log_mel]}),
    }
    features = extract_all(run, encoders, train, test)
    if not run.is_main:
        return run.close()
    saved = {"trained encoder": {"model_folder": run.folder / "model", "classes": train.classes}}
    metrics = {name: evaluate_audio(*splits, **saved.get(name, {})) for name, splits in features.items()}
    read, held_out = map(len, features["trained encoder"])
    unreadable = len(train) + len(test) - read - held_out
    run.print(audio_metrics_table(metrics, held_out, unreadable=unreadable))
    counts = {"held_out_recordings": held_out, "unreadable_recordings": unreadable}
    run.finish(results_json(metrics, n=held_out) | counts)


# --- views, objective and batches ------------------------------------------------------------------------------------


def make_view(config: Config) -> mmcon.ViewGenerator:
    """The view generator by name, with the options among the recipe's flags that it supports."""
    name = "audio/cola" if config.objective == "cola" and config.view == "audio/speech" else config.view
    if name == "audio/cola":
        if config.sample_rate_hz != 16_000:
            raise ConfigError("audio/cola", expected="--rate-hz 16000, as published", got=str(config.sample_rate_hz))
        return mmcon.create_view(name)
    if config.encoder != BUILT_IN and name == "audio/speech":
        name = "audio/speech-waveform"
    options = {"window_seconds": config.window_seconds, "rate_hz": config.sample_rate_hz, "strength": config.strength}
    return mmcon.create_view(name, **supported_options("view", name, options))


def evaluation_view(config: Config) -> mmcon.ViewGenerator:
    """The center of the recording, in the form that the encoder takes."""
    window: dict[str, Any] = {"window_seconds": config.window_seconds}
    if config.encoder != BUILT_IN:
        return mmcon.create_view("audio/crop", position="center", rate_hz=config.sample_rate_hz, **window)
    if config.objective == "cola" and config.view == "audio/speech":
        return mmcon.create_view("audio/cola", position="center", noise_std=0.0, **window)
    return mmcon.create_view("audio/plain", rate_hz=config.sample_rate_hz, **window)


def fitting_objective(train: Source) -> str:
    """The objective that takes the most of the labels."""
    return next((str(name) for name, needed in NEEDED.items() if {*needed} <= {*train.columns}), "simclr")


def make_objective(config: Config, train: Source) -> mmcon.Objective:
    """The loss with the affinity of the objective."""
    similarity = BilinearSimilarity(config.projection_dim) if config.similarity == "bilinear" else None

    def objective(affinity: Affinity) -> mmcon.Objective:
        options = {"similarity": similarity, "truncate": config.truncate_dims}
        return mmcon.Objective(affinity=affinity, temperature=config.temperature, **options)

    if config.objective in ("simclr", "cola"):
        return objective(SameSample())
    needed = NEEDED[config.objective]
    if any(name not in train.columns for name in needed):
        raise ConfigError(
            f"--objective {config.objective}",
            expected=f"columns {needed} in the data",
            got=f"columns {sorted(train.columns)}",
            fix="add them to the manifest, use one sub-folder a class with supcon, or --objective simclr",
        )
    if config.objective == "supcon":
        return objective(SameLabel())
    # w for the same prompt, and (1 − w) more if the language is the same too.
    prompt, weight = SameLabel("prompt"), config.cross_weight
    return objective(prompt * weight + prompt * SameLabel("language") * (1 - weight))


def make_sampler(config: Config, train: Source, *, world_size: int = 1) -> BatchSampler:
    """Uniform batches; if classes or prompts are positives, batches with several recordings of each.

    A batch has as many recordings of a prompt as there are languages, so that all translations are in it. The number of
    prompts is rounded down until the ranks divide the batch.
    """
    size = min(config.batch_size, len(train))
    column = NEEDED.get(config.objective, (None,))[0]
    if column is None or column not in train.columns:
        return UniformSampler(train.ids, batch_size=size, seed=config.seed)
    labels, languages = train.columns[column], train.columns.get("language")
    least = 2 if languages is None else max(2, len(languages.unique()))
    classes = min(len(labels.unique()), max(2, size // least))
    per_class = max(2, size // classes)
    divisor = world_size // math.gcd(world_size, per_class)
    classes = max(divisor, classes - classes % divisor)
    return ClassAwareSampler(labels, batch_size=classes * per_class, seed=config.seed, samples_per_class=per_class)


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
