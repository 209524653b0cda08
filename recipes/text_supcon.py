"""Contrastive learning of texts: by class, by dropout (SimCSE), or from parallel texts; and a cross-entropy baseline.

    uv run accelerate launch recipes/text_supcon.py                                   # bundled names, two CPU cores
    uv run accelerate launch recipes/text_supcon.py --objective parallel
    uv run accelerate launch recipes/text_supcon.py --data reviews.csv --label stars --encoder owner/model

Text has no easy augmentation, so the choice of the batch replaces it: the class-aware sampler fills a batch with
several texts per class. Parallel texts (translations, title and body) are natural views of one sample. The bundled
texts are the names of emoji in six languages, labeled by group; no concept is in both splits. The embedding bag trains
on them in a minute or two on two CPU cores.

After Khosla et al. 2020 (SupCon), Gao et al. 2021 (SimCSE) and Gunel et al. 2021 (supervised contrastive fine-tuning,
reported to help most with few labels: --labels-per-class 8).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from mmcon_views.text.tokens import load_tokenizer
from torch import Tensor

import mmcon
from mmcon.affinity import SameLabel, SameSample
from mmcon.batch import Index
from mmcon.errors import ConfigError
from mmcon.evaluation.shown_samples import show_samples
from mmcon.evaluation.text import bag_of_words, evaluate_texts, text_metrics_json, text_metrics_table
from mmcon.models.classifier import Classifier
from mmcon.models.export import export_sentence_transformers
from mmcon.objective.baseline_objectives import CrossEntropy
from mmcon.registry import create
from mmcon.samplers.base import BatchSampler
from mmcon.sources.base import Source, Subset
from mmcon.sources.text import TextSource
from mmcon.training.optim import create_optimizer_and_schedule

BUNDLED = "samples/emoji-names"
BAG = "text/embedding-bag"


@dataclass(frozen=True, kw_only=True)
class Config(mmcon.RunConfig):
    """What to train, on what, and for how long."""

    data: str = BUNDLED
    """bundled names (samples/emoji-names), or a table: .csv, .jsonl or .parquet"""
    columns: tuple[str, ...] = ()
    """text columns of a table; several are parallel texts; default: "text" """
    negatives: tuple[str, ...] = ()
    """parallel: text columns with hard negatives of the first column, as `mine_hard_negatives` writes them"""
    label: str = "label"
    """column of a table with class names"""
    objective: Literal["supcon", "simcse", "parallel", "cross-entropy"] = "supcon"
    encoder: str = BAG
    """text/embedding-bag, or a transformers text model: a hub name or a local folder"""
    pooling: Literal["mean", "cls", "weighted", "last"] = "mean"
    max_tokens: int = 64
    word_delete: float = 0.1
    """fraction of words deleted from each view"""
    sampler: Literal["class-aware", "no-duplicates", "uniform"] | None = None
    """default: class-aware if the objective uses labels, no-duplicates otherwise"""
    temperature: float | None = None
    """default: .1, and .05 for SimCSE"""
    epochs: int = 40
    tuned_rate: ClassVar[float] = 2e-3


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.negatives and (config.objective != "parallel" or config.data == BUNDLED):
        raise ConfigError("--negatives", expected="--objective parallel and a table", got=config.objective)
    config = config.apply_tiny(max_steps=8)
    run = mmcon.Run.from_config(config, name=f"text_{config.objective}")

    # Data: texts with stable ids, the views of each, and the samples of each batch.
    table: dict[str, Any] = {}
    if config.data != BUNDLED:  # texts, not ids, decide what is held out: equal texts stay in one split
        label = None if config.label == "label" else config.label
        table = {"text_columns": (*(config.columns or ("text",)), *config.negatives), "label_column": label}
        table |= {"id_column": "none", "test_share": 0.2}
    train, test = (
        mmcon.create_source(config.data, modality="text", split=split, **table) for split in ("train", "test")
    )
    if not isinstance(train, TextSource):
        raise ConfigError("--data", expected="a table of texts", got=train.name, fix="save it as .csv or .jsonl")
    for name in config.negatives:
        test.texts.pop(name)  # type: ignore[union-attr]  # they are not translations, which the evaluation retrieves
    whole, train = train, config.labeled_subset(train)
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    loader = run.loader(train, {"text": make_views(config, whole)}, make_sampler(config, train, whole))

    # Model: an encoder, and a projection head that the second stage drops.
    bag = config.encoder == BAG
    options: dict[str, Any] = {} if bag else {"path": config.encoder, "pooling": config.pooling}
    encoder = mmcon.create_encoder(BAG if bag else "text/transformer", modality="text", pretrained=not bag, **options)
    model = mmcon.ContrastiveModel({"text": encoder}, {"shared": config.shared_space(encoder)})
    untrained = copy.deepcopy(model)
    temperature = config.temperature or (0.05 if config.objective == "simcse" else 0.1)
    affinity = SameLabel() if config.objective == "supcon" else SameSample()
    settings = {"affinity": affinity, "temperature": temperature, "truncate": config.truncate_dims}
    if config.negatives:  # each is a view of the sample, which its first text is repelled from
        negatives = tuple(f"text:{number + 2}" for number in range(len(config.negatives)))
        settings |= {"affinity": partners, "blocks": [mmcon.Block("text:0", ("text:1", *negatives))]}
    network, objective = model, mmcon.Objective(**settings)
    if config.objective == "cross-entropy":
        network = Classifier(encoder, len(train.classes), modality="text")
        objective = CrossEntropy(train, modality="text")
    optimizer, schedule = create_optimizer_and_schedule(config, [network, objective], steps_per_epoch=len(loader))
    trained = run.prepare(network, optimizer, schedule, objective=objective)

    # Stage one.
    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)

    # Stage two: features once per column, then every metric from them.
    model = run.full_model(model)
    if not run.is_main:
        return run.close()
    views = {"text": [make_tokens(config)]}
    mmcon.inference.save_model(model, run.folder / "model", views=views, source=train)
    if not bag:
        folder, tokenizer = run.folder / "sentence-transformers", load_tokenizer(config.encoder)
        export_sentence_transformers(encoder, tokenizer, folder, max_tokens=config.max_tokens)
    untrained = untrained.to(run.device)
    encoders = {"trained encoder": model, "untrained encoder": untrained, "bag of words": bag_of_words}
    # The bundled names also have the subgroups of emoji, a taxonomy that grades pairs of names.
    bundled = config.data == BUNDLED
    subgroups = mmcon.create_source(BUNDLED, split="test", labels="subgroup").labels if bundled else None
    options = {"tokens": make_tokens(config), "device": run.device, "seed": config.seed, "subgroups": subgroups}
    folders = {"trained encoder": run.folder / "model"}
    metrics = {
        name: evaluate_texts(encode, train, test, model_folder=folders.get(name), **options)
        for name, encode in encoders.items()
    }
    run.print(text_metrics_table(metrics, len(test)))
    first = mmcon.Chain(mmcon.create_view("text/column", column=next(iter(whole.texts))), options["tokens"])
    show_samples(run, test, {"text": [first]}, {"trained encoder": model, "untrained encoder": untrained})
    run.finish(text_metrics_json(metrics))


# --- views and batches -----------------------------------------------------------------------------------------------


def make_tokens(config: Config) -> mmcon.ViewGenerator:
    """The tokenizer of the encoder."""
    name = "words" if config.encoder == BAG else config.encoder
    return mmcon.create_view("text/tokens", tokenizer=name, max_tokens=config.max_tokens)


def make_views(config: Config, train: Any) -> list[mmcon.ViewGenerator]:
    """Two views of a sample: any two columns, the same text twice (SimCSE), or the first column and another."""
    first, *others = [name for name in train.texts if name not in config.negatives]
    tokens, words = make_tokens(config), mmcon.create_view("text/word-delete", share=config.word_delete)
    if config.objective == "simcse":
        same = mmcon.Chain(mmcon.create_view("text/column", column=first), tokens)
        return [same, same]
    if config.objective == "parallel":
        if not others:
            raise ConfigError(
                "--objective parallel", expected="two columns of text or more", got=f"{first!r} alone", fix="--columns"
            )
        columns = [mmcon.create_view("text/column", column=name) for name in (first, *config.negatives)]
        one, *negatives = (mmcon.Chain(column, words, tokens) for column in columns)
        other = mmcon.Chain(mmcon.create_view("text/any-column", columns=tuple(others)), words, tokens)
        return [one, other, *negatives]
    view = mmcon.Chain(mmcon.create_view("text/any-column"), words, tokens)
    return [view, view]


def partners(anchors: Index, candidates: Index) -> Bool[Tensor, "a c"]:
    """Texts of one sample are positives, its hard negatives (views from the third on) excepted."""
    same = anchors["sample"][:, None] == candidates["sample"]
    return same & (candidates["view"] < 2)


def make_sampler(config: Config, train: Source, whole: Any) -> BatchSampler:
    """Global batches of several samples per class, or of texts that all differ."""
    supervised = config.objective in ("supcon", "cross-entropy")
    if supervised and train.labels is None:
        raise ConfigError(f"--objective {config.objective}", expected="labels", got="none", fix="--label COLUMN")
    name = config.sampler or ("class-aware" if supervised else "no-duplicates")
    labels = train.labels
    if name != "class-aware" or labels is None:
        indices = train.rows.tolist() if isinstance(train, Subset) else range(len(train))
        texts = next(iter(whole.texts.values()))
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        labels = torch.tensor([number[texts[index]] for index in indices])
    return create("sampler", f"sampler/{name}", labels=labels, batch_size=config.batch_size, seed=config.seed)


if __name__ == "__main__":
    mmcon.run_recipe(main, Config)
