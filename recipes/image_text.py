r"""Contrastive learning of images and texts in one space: by pair as CLIP does, by class, or by graded similarity.

    uv run accelerate launch recipes/image_text.py                                   # bundled emoji, two CPU cores
    uv run accelerate launch recipes/image_text.py --objective graded
    uv run accelerate launch recipes/image_text.py --data pairs.csv --image-encoder timm/vit_small_patch16_224 \
        --pretrained --image-tuning low-rank

The bundled pairs are drawings of emoji with their names and keywords; no concept is in both splits. Retrieval is
reported on training pairs (memorization), on the same concepts drawn by another vendor, and on held-out concepts.

After Radford et al. 2021 (CLIP), Khosla et al. 2020 (positives by class), Sobal et al. 2024 (X-CLR: graded positives)
and Srinivasa et al. 2023 (CWCL: graded in one direction).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

import mmcon
from mmcon.affinity import SameLabel, SameSample, SideFeatures
from mmcon.batch import Index
from mmcon.errors import ConfigError
from mmcon.evaluation.cross_modal_report import class_prompts, evaluate_image_text
from mmcon.evaluation.features import Features, extract_features, precompute_features
from mmcon.evaluation.second_stage import results_json
from mmcon.evaluation.shown_samples import show_samples
from mmcon.evaluation.text import bag_of_words
from mmcon.loading.loader import one_pass
from mmcon.losses import LearnableTemperature, presets
from mmcon.models.fine_tuning import merge_lora, set_trainable
from mmcon.samplers.uniform import UniformSampler
from mmcon.sources.image_text import ImageTextPairs, open_image_text_pairs
from mmcon.training.config import ImageRunConfig
from mmcon.training.optim import create_optimizer_and_schedule

BAG = "text/embedding-bag"
TEMPLATES = ("{}", "{} emoji", "a picture of {}", "a drawing of {}", "an icon of {}")


@dataclass(frozen=True, kw_only=True)
class Config(ImageRunConfig):
    """What to train, on what, and for how long."""

    data: str = "samples/emoji"
    """bundled pairs (samples/emoji), or a table of images and texts: .csv, .tsv, .jsonl or .parquet"""
    image_column: str | None = None
    text_column: str = "text"
    label_column: str | None = None
    """column of a table with the classes of the images, for class-aware and for zero-shot classification"""
    negatives: tuple[str, ...] = ()
    """clip: text columns of a table with hard negatives of the image, as `mine_hard_negatives` writes them"""
    objective: Literal["clip", "class-aware", "graded", "cwcl"] = "clip"
    """clip: the paired sample alone is positive; class-aware: others of its class too; graded: all, by the similarity
    of their texts under a frozen encoder (both directions); cwcl: graded from images to texts, clip from texts to
    images"""
    class_weight: float = 0.2
    """class-aware: the weight of samples of the same class, beside 1 for the paired sample"""
    side_encoder: str | None = None
    """graded: the frozen encoder, a transformers model (hub name or folder); default: counts of words"""
    side_temperature: float = 0.1
    image_encoder: str = "mmcon/resnet-tiny"
    text_encoder: str = BAG
    """text/embedding-bag, or a transformers text model: a hub name or a local folder"""
    pretrained: bool = False
    """start the image encoder from its published weights (a transformers text model always does)"""
    image_tuning: str = "full"
    """full, frozen, low-rank (LoRA), or name patterns of the parameters to train, such as "*layer4*" """
    text_tuning: str = "full"
    precompute: bool = False
    """both encoders frozen: run them once, and train the heads on their features"""
    max_tokens: int = 32
    word_delete: float = 0.1
    """fraction of words deleted from each text"""
    temperature: float = 0.07
    """initial value of the learnable temperature"""
    epochs: int = 40
    tuned_rate: ClassVar[float] = 3e-3
    weight_decay: float = 1e-2


def main(config: Config) -> None:
    """Train, then evaluate."""
    config = config.apply_tiny(max_steps=6)
    if config.precompute and {config.image_tuning, config.text_tuning} != {"frozen"}:
        raise ConfigError("--precompute", expected="--image-tuning frozen --text-tuning frozen", got="trained encoders")
    if config.negatives and (config.objective != "clip" or config.data == "samples/emoji" or config.precompute):
        got = f"--objective {config.objective} --data {config.data}{' --precompute' * config.precompute}"
        expected = "--objective clip and --data TABLE, without --precompute"
        raise ConfigError("--negatives", expected=expected, got=got)
    run = mmcon.Run.from_config(config, name=f"image_text_{config.objective}")

    # Model: an encoder per modality, and a projection head of each into the shared space.
    encoders = make_encoders(config)
    model = mmcon.ContrastiveModel(encoders, {"shared": config.shared_space(*encoders.values())})
    untrained = copy.deepcopy(model)

    # Data: images and texts joined by sample; either may be missing.
    columns = config.image_column, config.text_column, config.label_column
    pairs = open_image_text_pairs(config.data, *columns, negatives=config.negatives)
    run.print("\n".join(f"{name}: {source.describe()}" for name, source in pairs.tests.items()))
    if config.objective in ("graded", "cwcl"):
        side = side_features(config, pairs, run.device)
        pairs.train.add_column("side", side.index["sample"], side.values)
    plain = plain_views(config, pairs.text)
    source, views, network = config.labeled_subset(pairs.train), training_views(config), model
    if config.precompute:
        source = precompute_features(model.to(run.device), source, plain, device=run.device)
        views, network = {name: [mmcon.views.Identity()] for name in plain}, model.with_precomputed_features()
    config = config.fit_batch_size(len(source), run.print, ranks=run.world_size)
    sampler = UniformSampler(source.ids, batch_size=config.batch_size, seed=config.seed)
    loader = run.loader(source, views, sampler)

    # Loss: both directions, with a learnable temperature.
    objective = make_objective(config, pairs)
    optimizer, schedule = create_optimizer_and_schedule(config, [network, objective], steps_per_epoch=len(loader))
    trained = run.prepare(network, optimizer, schedule, objective=objective)

    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)

    # Embeddings once per test set and modality, then every metric from them.
    model = run.full_model(model)
    if not run.is_main:
        return run.close()
    for encoder in model.encoders.values():
        merge_lora(encoder)
    mmcon.inference.save_model(model, run.folder / "model", views=plain, source=pairs.train, objective=objective)
    prompts = class_prompts(pairs.train, TEMPLATES, column=pairs.text)
    results = {}
    for name, subject in {"trained": model.to(run.device), "random_towers": untrained.to(run.device)}.items():
        results[name], text = evaluate_image_text(subject, pairs.tests, views=plain, prompts=prompts, device=run.device)
        run.print(f"{name}\n{text}")
    show_samples(run, pairs.tests["held out"], plain, {"trained": model, "random towers": untrained})
    run.finish(results_json(results))


# --- encoders, data, views and objective -----------------------------------------------------------------------------


def make_encoders(config: Config) -> dict[str, nn.Module]:
    """An encoder of images and one of texts, with the parameters that the tuning flags select trainable."""
    image = mmcon.create_encoder(config.image_encoder, pretrained=config.pretrained, image_size=config.side)
    bag = config.text_encoder == BAG
    options: dict[str, Any] = {} if bag else {"path": config.text_encoder}
    text = mmcon.create_encoder(BAG if bag else "text/transformer", modality="text", pretrained=not bag, **options)
    return {"image": set_trainable(image, config.image_tuning), "text": set_trainable(text, config.text_tuning)}


def tokens(config: Config) -> mmcon.ViewGenerator:
    """The tokenizer of the text encoder."""
    name = "words" if config.text_encoder == BAG else config.text_encoder
    return mmcon.create_view("text/tokens", tokenizer=name, max_tokens=config.max_tokens)


def training_views(config: Config) -> dict[str, list[mmcon.ViewGenerator]]:
    """A crop of the image; one of its texts (captions, or name and keywords), and its negatives, less some words."""
    image = mmcon.create_view("image/simclr", size=config.side, area=(0.6, 1.0), strength=0.3, grayscale=0.0)
    columns = [mmcon.create_view("text/any-column")]
    if config.negatives:
        named = config.text_column, *config.negatives
        columns = [mmcon.create_view("text/column", column=name) for name in named]
    instance, words = mmcon.create_view("any/instance"), mmcon.create_view("text/word-delete", share=config.word_delete)
    return {"image": [image], "text": [mmcon.Chain(instance, column, words, tokens(config)) for column in columns]}


def plain_views(config: Config, column: str) -> dict[str, list[mmcon.ViewGenerator]]:
    """Deterministic views: the whole image, and one column of the first text."""
    choose = mmcon.create_view("any/instance", random=False), mmcon.create_view("text/column", column=column)
    plain = mmcon.create_view("image/plain", size=config.side)
    return {"image": [plain], "text": [mmcon.Chain(*choose, tokens(config))]}


def make_objective(config: Config, pairs: ImageTextPairs) -> mmcon.Objective:
    """Between the modalities in both directions; the objectives differ in the affinity."""
    temperature = LearnableTemperature(initial=config.temperature)
    if config.objective == "cwcl":
        settings = presets.cwcl(graded="image", other="text", temperature=temperature)
    else:
        settings = presets.clip(first="image", second="text", temperature=temperature)
    if config.negatives:  # each is a view of the text, which the image is repelled from
        texts = tuple(f"text:{number}" for number in range(1 + len(config.negatives)))
        blocks = [mmcon.Block("image", texts, weight=0.5), mmcon.Block("text:0", "image", weight=0.5)]
        settings |= {"affinity": partners, "blocks": blocks}
    if config.objective == "class-aware":
        if pairs.train.labels is None:
            raise ConfigError("--objective class-aware", expected="labels", got="none", fix="--label-column COLUMN")
        settings["affinity"] = SameSample() * (1 - config.class_weight) + SameLabel() * config.class_weight
    if config.objective == "graded":
        settings["affinity"] = SideFeatures("side", temperature=config.side_temperature)
    return mmcon.Objective(**settings, truncate=config.truncate_dims)


def partners(anchors: Index, candidates: Index) -> Bool[Tensor, "a c"]:
    """Image and text of one sample are positives, its hard negatives (texts from the second view on) excepted."""
    return (anchors["sample"][:, None] == candidates["sample"]) & (candidates["view"] == 0)


def side_features(config: Config, pairs: ImageTextPairs, device: torch.device) -> Features:
    """Features of the training texts by a frozen encoder: counts of words, or a pretrained model."""
    texts = pairs.train.members["text"]
    if config.side_encoder is None:
        longest = next(iter(reversed(texts.open([0])[0].names)), pairs.text)
        words = mmcon.create_view("text/tokens", tokenizer="words", max_tokens=4 * config.max_tokens)
        column = mmcon.create_view("text/column", column=longest)
        view = mmcon.Chain(mmcon.create_view("any/instance", random=False), column, words)
        return extract_features(bag_of_words, one_pass(texts, {"text": [view]}))
    side = replace(config, text_encoder=config.side_encoder, text_tuning="frozen")
    model = mmcon.ContrastiveModel({"text": make_encoders(side)["text"].to(device)})
    return extract_features(model, one_pass(texts, {"text": plain_views(side, pairs.text)["text"]}))


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
