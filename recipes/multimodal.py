r"""Contrastive learning of any number of modalities in one space; samples may lack some, and pairs may go untrained.

    uv run accelerate launch recipes/multimodal.py                                   # bundled emoji, two CPU cores
    uv run accelerate launch recipes/multimodal.py --pairs image-text text-audio image-audio
    uv run accelerate launch recipes/multimodal.py --pairs video-text                # or any two of the four modalities
    uv run accelerate launch recipes/multimodal.py --data video=clips/ audio=clips/  # videos and their sound
    uv run accelerate launch recipes/multimodal.py --data series=series/oscillators --objective same-label \
        --view series=series/window --encoder series=series/conv                     # docs/new-modality.md

The bundled samples are emoji: a drawing, the English name and keywords, and the name in synthesized speech in up to
four languages (two thirds have one). By default images and audio are both paired with text but never with each other,
and the recipe reports how well an image retrieves its audio nevertheless. Pairs with video are of bundled clips, with a
sentence and a still of each, or of windows of a film and their sound.
A modality is defined by its source, view and encoder; only the defaults know modalities by name.

After Girdhar et al. 2023 (ImageBind: modalities that are never paired are aligned through a third).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar, Literal

from torch import nn

import mmcon
from mmcon.affinity import SameLabel, SameSample
from mmcon.errors import ConfigError
from mmcon.evaluation.cross_modal_report import evaluate_modalities
from mmcon.evaluation.second_stage import results_json
from mmcon.evaluation.shown_samples import show_samples
from mmcon.losses import LearnableTemperature
from mmcon.registry import supported_options
from mmcon.samplers.base import BatchSampler
from mmcon.samplers.class_balanced import ClassAwareSampler
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.base import Source
from mmcon.training.config_values import by_modality
from mmcon.training.optim import create_optimizer_and_schedule

BUNDLED = (
    {"image": "samples/emoji", "text": "samples/emoji-texts", "audio": "samples/emoji-spoken"},
    {"video": "samples/motion", "text": "samples/motion-texts", "image": "samples/motion-images"},
    {"video": "samples/film", "audio": "samples/film-sound"},
)
VIEWS = {"image": "image/simclr", "text": "text/words", "audio": "audio/speech", "video": "video/graded"}
ENCODERS = {"image": "mmcon/resnet-tiny", "text": "text/embedding-bag", "audio": "mmcon/log-mel-conv"}
ENCODERS["video"] = "mmcon/frames"


@dataclass(frozen=True, kw_only=True)
class Config(mmcon.RunConfig):
    """What to train, on what, and for how long. Entries of tuples are MODALITY=VALUE."""

    data: tuple[str, ...] = ()
    """a source per modality, by name or path, joined by the ids of samples; default: bundled data, by --pairs"""
    view: tuple[str, ...] = ()
    """a view generator for each modality that has none by default; its evaluation view is MODALITY/plain"""
    plain: tuple[str, ...] = ()
    """an evaluation view instead of MODALITY/plain"""
    encoder: tuple[str, ...] = ()
    """an encoder by name for each modality that has none by default"""
    pairs: tuple[str, ...] = ()
    """the pairs to train, such as image-text; default: all, but image-text and text-audio of the bundled data"""
    views: int | None = None
    """views per modality in a batch; default: 1, and 2 if a modality is paired with itself"""
    objective: Literal["same-sample", "same-label"] = "same-sample"
    """positives: the other modalities of the sample, or of all samples of its class"""
    image_size: int = 28
    rate_hz: int = 16_000
    window_seconds: float = 1.6
    frames: int = 8
    """frames of a video in a view, over --window-seconds"""
    max_tokens: int = 16
    temperature: float = 0.07
    """initial value of the learnable temperature"""
    epochs: int = 40
    tuned_rate: ClassVar[float] = 3e-3
    weight_decay: float = 1e-2


def main(config: Config) -> None:
    """Train, then evaluate."""
    config = config.apply_tiny(max_steps=4, batch_size=32)
    names = by_modality("--data", config.data) or bundled_data(config)
    pairs = make_pairs(config, list(names))
    views = config.views or (2 if any(first == second for first, second in pairs) else 1)
    # A batch may lack a modality, whose encoder then gets no gradient.
    run = mmcon.Run.from_config(config, name="multimodal", find_unused_parameters=len(names) > 1)

    # Data: a source per modality, joined by the ids of samples; a sample may lack some modalities.
    train, test = (
        mmcon.JoinedSource(*(mmcon.create_source(data, modality=name, split=split) for name, data in names.items()))
        for split in ("train", "test")
    )
    train = config.labeled_subset(train)
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    training_views = {modality: [make_view(config, modality)] * views for modality in names}
    sampler = make_sampler(config, train)
    loader = run.loader(train, training_views, sampler)

    # Model: an encoder and a head for each modality. The objective lists the pairs of modalities, in both directions.
    encoders = make_encoders(config, list(names))
    model = mmcon.ContrastiveModel(encoders, {"shared": config.shared_space(*encoders.values())})
    untrained = copy.deepcopy(model)
    directions = [(direction, pair) for pair in pairs for direction in sorted({pair, pair[::-1]})]
    objective = mmcon.Objective(
        affinity=SameSample() if config.objective == "same-sample" else SameLabel(),
        temperature=LearnableTemperature(initial=config.temperature),
        blocks=[mmcon.Block(*direction, weight=1 / len({pair, pair[::-1]})) for direction, pair in directions],
        truncate=config.truncate_dims,
    )
    config = replace(config, batch_size=sampler.batch_size)  # which the default learning rate follows
    optimizer, schedule = create_optimizer_and_schedule(config, [model, objective], steps_per_epoch=len(loader))
    trained = run.prepare(model, optimizer, schedule, objective=objective)

    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)

    # Embeddings and features once per modality and split, then every metric from them.
    model = run.full_model(model)
    if not run.is_main:
        return run.close()
    plain = {modality: [plain_view(config, modality)] for modality in names}
    mmcon.inference.save_model(model, run.folder / "model", views=plain, source=train, objective=objective)
    trained_pairs = ["-".join(pair) for both in pairs for pair in (both, both[::-1])]
    results: dict[str, Any] = {}
    options: dict[str, Any] = {"views": plain, "trained_pairs": trained_pairs, "device": run.device}
    for name, subject in {"trained": model, "random_encoders": untrained.to(run.device)}.items():
        options["model_folder"] = run.folder / "model" if name == "trained" else None
        results[name], text = evaluate_modalities(subject, train, test, **options)
        run.print(f"{name}\n{text}")
    show_samples(run, test, plain, {"trained": model, "random encoders": untrained})
    run.finish(results_json(results))


def bundled_data(config: Config) -> dict[str, str]:
    """The first bundled data that have all modalities of the pairs."""
    named = {name for pair in config.pairs for name in pair.split("-")}
    found = next((bundle for bundle in BUNDLED if named <= set(bundle)), BUNDLED[0])
    return {name: data for name, data in found.items() if name in named or found is BUNDLED[0]}


def make_pairs(config: Config, modalities: list[str]) -> list[tuple[str, str]]:
    """The pairs of modalities to train; a single modality is paired with itself."""
    if not config.pairs:
        if not config.data:
            return [("image", "text"), ("text", "audio")]
        return list(combinations(modalities, 2)) or [(modalities[0], modalities[0])]
    pairs = [(first, second) for first, _, second in (pair.partition("-") for pair in config.pairs)]
    if unknown := sorted({name for pair in pairs for name in pair} - set(modalities)):
        raise ConfigError("--pairs", expected=f"pairs such as a-b of {modalities}", got=str(unknown))
    return pairs


def with_options(config: Config, name: str) -> mmcon.ViewGenerator:
    """A view generator with the options among the recipe's flags that it supports."""
    options: dict[str, Any] = {"size": config.image_size, "rate_hz": config.rate_hz, "max_tokens": config.max_tokens}
    options |= {"window_seconds": config.window_seconds, "frames": config.frames}
    if name.startswith("image/"):  # color and outline identify an emoji, so they change little
        options |= {"area": (0.6, 1.0), "strength": 0.3, "grayscale": 0.0}
    if name.startswith("video/"):
        options["rate_hz"] = config.frames / config.window_seconds
    return mmcon.create_view(name, **supported_options("view", name, options))


def make_view(config: Config, modality: str) -> mmcon.ViewGenerator:
    """One of the instances of a sample, and a view of it."""
    names = by_modality("--view", config.view, defaults=VIEWS, needed=[modality])
    return mmcon.Chain(mmcon.create_view("any/instance"), with_options(config, names[modality]))


def plain_view(config: Config, modality: str) -> mmcon.ViewGenerator:
    """The first instance of a sample, without augmentation."""
    name = by_modality("--plain", config.plain).get(modality, f"{modality}/plain")
    return mmcon.Chain(mmcon.create_view("any/instance", random=False), with_options(config, name))


def make_encoders(config: Config, modalities: list[str]) -> dict[str, nn.Module]:
    """An encoder for each modality."""
    names = by_modality("--encoder", config.encoder, defaults=ENCODERS, needed=modalities)
    return {m: mmcon.create_encoder(names[m], modality=m, image_size=config.image_size) for m in modalities}


def make_sampler(config: Config, train: Source) -> BatchSampler:
    """Uniform batches; if classes are positives, batches with two or more samples per class."""
    size = min(config.batch_size, len(train))
    if config.objective == "same-sample":
        return UniformSampler(train.ids, batch_size=size, seed=config.seed)
    if train.labels is None:
        raise ConfigError("--objective same-label", expected="a label for every sample", got=train.describe())
    classes = min(len(train.classes), size // 2)
    size -= size % classes
    return ClassAwareSampler(train.labels, batch_size=size, seed=config.seed, samples_per_class=size // classes)


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
