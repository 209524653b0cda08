r"""Contrastive learning of pictures and texts in one space: pair by pair as CLIP does it, by class, or by degrees.

    uv run accelerate launch recipes/image_text.py                                   # bundled emoji, two CPU cores
    uv run accelerate launch recipes/image_text.py --objective graded
    uv run accelerate launch recipes/image_text.py --data pairs.csv --image-encoder timm/vit_small_patch16_224 \
        --pretrained --image-tuning low-rank

The bundled pairs are drawings of emoji with their names and keywords; no concept is in both splits. Retrieval is told
on training pairs (memory, not skill), on the same concepts drawn by another vendor, and on concepts held out.

After Radford et al. 2021 (CLIP), Khosla et al. 2020 (positives by class), Sobal et al. 2024 (X-CLR: positives by
degrees of likeness) and Srinivasa et al. 2023 (CWCL: degrees in one direction).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from mmcon.training.settings import EngineFlags
from torch import nn

import mmcon
from mmcon.affinity import SameLabel, SameSample, SideFeatures
from mmcon.errors import ConfigError, MmconError
from mmcon.evaluation.cross_modal import (
    SpaceEmbeddings,
    cross_modal_metrics,
    cross_modal_table,
    prompt_texts,
    uniformity_by_modality,
    zero_shot_classification,
)
from mmcon.evaluation.features import Features, extract_features, precompute_features
from mmcon.evaluation.text import bag_of_words
from mmcon.loading.loader import ViewLoader, one_pass
from mmcon.losses import LearnableTemperature, presets
from mmcon.models.encoders import create_encoder
from mmcon.models.fine_tuning import merge_lora, set_trainable
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.factory import JoinedSource
from mmcon.sources.pairs import Pairs, bundled_pairs, read_pairs
from mmcon.sources.text import TextSource
from mmcon.training.config import parse
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.run import Run, RunSettings, unused_folder
from mmcon.views import Chain, Identity

BAG = "text/embedding-bag"
TEMPLATES = ("{}", "{} emoji", "a picture of {}", "a drawing of {}", "an icon of {}")


@dataclass(frozen=True, kw_only=True)
class Config(EngineFlags):
    """What to train, on what, and for how long."""

    data: str = "samples/emoji"
    """bundled pairs (samples/emoji), or a table of pictures and texts: .csv, .tsv, .jsonl or .parquet"""
    image_column: str | None = None
    text_column: str = "text"
    label_column: str | None = None
    """of a table: classes of the pictures, for class-aware and for zero-shot classification"""
    output_dir: Path | None = None
    """the run folder; by default a new one under runs/"""
    objective: Literal["clip", "class-aware", "graded", "cwcl"] = "clip"
    """clip: the partner alone; class-aware: others of its class too; graded: everything, by how alike the texts are for
    a frozen encoder (both ways); cwcl: so from pictures to texts, and clip back"""
    class_weight: float = 0.2
    """class-aware: the weight of samples of the same class beside the partner's 1"""
    side_encoder: str | None = None
    """graded: what says how alike texts are: a transformers model (hub name or folder); by default their words"""
    side_temperature: float = 0.1
    image_encoder: str = "mmcon/resnet-tiny"
    text_encoder: str = BAG
    """text/embedding-bag, or a transformers text model: a hub name or a local folder"""
    pretrained: bool = False
    """start the image encoder from its published weights (a transformers text model always does)"""
    image_tuning: str = "full"
    """full, frozen, low-rank (LoRA), or patterns of the names of parameters that learn, such as "*layer4*" """
    text_tuning: str = "full"
    precompute: bool = False
    """both towers frozen: run them once, and train the heads on their features"""
    image_size: int | None = None
    """side of the views in pixels; by default 28 for bundled pictures and 224 for tables"""
    max_tokens: int = 32
    word_delete: float = 0.1
    """share of words left out of each text"""
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

    @property
    def pixels(self) -> int:
        """The side that was asked for, or the data's."""
        return self.image_size or (28 if self.data == "samples/emoji" else 224)


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.tiny:
        config = replace(config, epochs=1, max_steps=min(config.max_steps or 6, 6), log_every=1)
    if config.precompute and {config.image_tuning, config.text_tuning} != {"frozen"}:
        raise ConfigError(
            "--precompute", expected="--image-tuning frozen --text-tuning frozen", got="towers that learn"
        )
    run = Run(
        config.output_dir or unused_folder(Path("runs") / f"image_text_{config.objective}", resume=config.resume),
        config=config,
        seed=config.seed,
        settings=RunSettings.of(config),
        resume=config.resume,
        mixed_precision=config.mixed_precision,
        cpu=config.cpu,
    )

    # Model: a tower for each modality, and a head of each in the space where they meet.
    model = mmcon.ContrastiveModel(make_encoders(config), {"shared": mmcon.SharedSpace(dim=config.projection_dim)})
    untrained = copy.deepcopy(model)

    # Data: pairs that meet by sample; a picture or a text may be missing.
    pairs = open_pairs(config)
    run.print("\n".join(f"{name}: {source.describe()}" for name, source in pairs.tests.items()))
    if config.objective in ("graded", "cwcl"):
        side = side_features(config, pairs, run.device)
        pairs.train.add_column("side", side.index["sample"], side.values)
    source, views, network = pairs.train, training_views(config), model
    if config.precompute:
        source = precompute_features(
            model.to(run.device), pairs.train, plain_views(config, pairs.text), device=run.device
        )
        views, network = {"image": [Identity()], "text": [Identity()]}, model.with_precomputed_features()
    sampler = UniformSampler(source.ids, batch_size=min(config.batch_size, len(source)), seed=config.seed)
    loader = ViewLoader(
        source,
        views,
        sampler,
        seed=config.seed,
        workers=config.workers,
        device=run.device,
        rank=run.rank,
        world_size=run.world_size,
    )

    objective = make_objective(config, pairs)
    optimizer = create_optimizer(
        [network, objective], "adamw", learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    steps = config.epochs * len(loader)
    schedule = create_schedule(optimizer, "cosine", steps=steps, warmup_steps=round(0.1 * steps))
    trained = run.prepare(network, optimizer, schedule, objective=objective)

    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)
    model = run.whole(model)

    # Every figure from one dump of embeddings a set and a modality.
    if not run.is_main:
        run.close()
        return
    model = model.to(run.device)
    for encoder in model.encoders.values():
        merge_lora(encoder)
    model.save_pretrained(run.folder / "model")
    figures = {
        name: judge(config, subject.to(run.device), pairs, run.device)
        for name, subject in (("trained", model), ("random_towers", untrained))
    }
    for name, of in figures.items():
        run.print(f"{name}\n{of.pop('shown')}")
    run.finish(figures["trained"] | {"random_towers": figures["random_towers"]})


# --- the parts, each by name -----------------------------------------------------------------------------------------


def make_encoders(config: Config) -> dict[str, nn.Module]:
    """A tower for pictures and one for texts, and how much of each learns."""
    image = create_encoder(config.image_encoder, pretrained=config.pretrained, image_size=config.pixels)
    bag = config.text_encoder == BAG
    options: dict[str, Any] = {} if bag else {"path": config.text_encoder}
    text = create_encoder(BAG if bag else "text/transformer", modality="text", pretrained=not bag, **options)
    return {"image": set_trainable(image, config.image_tuning), "text": set_trainable(text, config.text_tuning)}


def open_pairs(config: Config) -> Pairs:
    """Bundled pairs, or a table's."""
    if config.data == "samples/emoji":
        return bundled_pairs()
    columns = {"image_column": config.image_column, "text_column": config.text_column}
    return read_pairs(config.data, label_column=config.label_column, **columns)


def tokens(config: Config) -> mmcon.ViewGenerator:
    """Where strings become numbers."""
    name = "words" if config.text_encoder == BAG else config.text_encoder
    return mmcon.create_view("text/tokens", tokenizer=name, max_tokens=config.max_tokens)


def training_views(config: Config) -> dict[str, list[mmcon.ViewGenerator]]:
    """One view of each: a crop of the picture; one of its texts (captions, or name and keywords), some words out."""
    picture = mmcon.create_view("image/simclr", size=config.pixels, area=(0.6, 1.0), strength=0.3, grayscale=0.0)
    choose = mmcon.create_view("any/instance"), mmcon.create_view("text/any-column")
    words = mmcon.create_view("text/word-delete", share=config.word_delete)
    return {"image": [picture], "text": [Chain(*choose, words, tokens(config))]}


def plain_views(config: Config, version: str) -> dict[str, list[mmcon.ViewGenerator]]:
    """Nothing drawn: the whole picture, and the first of its texts."""
    choose = mmcon.create_view("any/instance", random=False), mmcon.create_view("text/column", column=version)
    plain = mmcon.create_view("image/plain", size=config.pixels)
    return {"image": [plain], "text": [Chain(*choose, tokens(config))]}


def make_objective(config: Config, pairs: Pairs) -> mmcon.Objective:
    """Both directions between the modalities; who is meant to be alike is what the objectives differ in."""
    temperature = LearnableTemperature(initial=config.temperature)
    if config.objective == "cwcl":
        return mmcon.Objective(**presets.cwcl(graded="image", other="text", temperature=temperature))
    both = presets.clip(first="image", second="text", temperature=temperature)
    if config.objective == "class-aware":
        if pairs.train.labels is None:
            raise ConfigError("--objective class-aware", expected="labels", got="none", fix="--label-column COLUMN")
        both["affinity"] = SameSample() * (1 - config.class_weight) + SameLabel() * config.class_weight
    if config.objective == "graded":
        both["affinity"] = SideFeatures("side", temperature=config.side_temperature)
    return mmcon.Objective(**both)


def side_features(config: Config, pairs: Pairs, device: torch.device) -> Features:
    """What a frozen encoder says of the training texts: counts of their words, or a pretrained model."""
    if config.side_encoder is None:
        first = mmcon.create_view("any/instance", random=False)
        longest = next(iter(reversed(pairs.train.members["text"].open([0])[0].names)), pairs.text)
        words = mmcon.create_view("text/tokens", tokenizer="words", max_tokens=4 * config.max_tokens)
        view = Chain(first, mmcon.create_view("text/column", column=longest), words)
        return extract_features(bag_of_words, one_pass(pairs.train.members["text"], {"text": [view]}))
    side = replace(config, text_encoder=config.side_encoder, text_tuning="frozen")
    encoder = make_encoders(side)["text"].to(device)
    model = mmcon.ContrastiveModel({"text": encoder})
    return extract_features(
        model, one_pass(pairs.train.members["text"], {"text": plain_views(side, pairs.text)["text"]})
    )


# --- figures ---------------------------------------------------------------------------------------------------------


def judge(config: Config, model: nn.Module, pairs: Pairs, device: torch.device) -> dict[str, Any]:
    """Retrieval both ways on every test set, uniformity, and classes by their names alone."""
    embed, views = SpaceEmbeddings(model), plain_views(config, pairs.text)

    def dumps(source: JoinedSource) -> dict[str, Features]:
        return {
            name: extract_features(embed, one_pass(member, {name: views[name]}, device=device), modality=name)
            for name, member in source.members.items()
        }

    sets = {name: dumps(source) for name, source in pairs.tests.items()}
    found = {name: cross_modal_metrics(of["image"], of["text"]) for name, of in sets.items()}
    results: dict[str, Any] = {name.replace(" ", "_").replace(",", ""): of.results() for name, of in found.items()}
    results["uniformity"] = uniformity_by_modality(next(of for name, of in sets.items() if name == "held out"))
    shown = cross_modal_table(found)
    if pairs.train.labels is not None:
        classes = {c: [name.replace("-", " ")] for c, name in enumerate(pairs.train.classes)}
        texts, labels = prompt_texts(classes, TEMPLATES)
        prompts = TextSource({pairs.text: texts}, ids=texts, labels=labels, classes=pairs.train.classes)
        dump = extract_features(embed, one_pass(prompts, {"text": views["text"]}, device=device))
        results["zero_shot"] = {
            name.replace(" ", "_").replace(",", ""): zero_shot_classification(of["image"], dump).top1
            for name, of in sets.items()
        }
        told = "   ".join(f"{name} {value:.3f}" for name, value in results["zero_shot"].items())
        shown += f"\nzero-shot classification among {len(classes)} classes by their names: {told}"
    return results | {"shown": shown}


if __name__ == "__main__":
    try:
        main(parse(Config, description=__doc__ or ""))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
