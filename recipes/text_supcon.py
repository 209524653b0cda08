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
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Int
from mmcon_views.text.tokens import load_tokenizer
from torch import Tensor

import mmcon
from mmcon.affinity import SameLabel, SameSample
from mmcon.errors import ConfigError
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.retrieval import retrieve
from mmcon.evaluation.second_stage import evaluate_features
from mmcon.evaluation.text import bag_of_words, clustering_nmi, rank_correlation, text_metrics_json, text_metrics_table
from mmcon.loading.loader import one_pass
from mmcon.models.classifier import Classifier
from mmcon.models.encoders import create_encoder
from mmcon.models.export import export_sentence_transformers
from mmcon.objective.cross_entropy import CrossEntropy
from mmcon.random import keys
from mmcon.registry import create
from mmcon.samplers.base import BatchSampler
from mmcon.sources.base import Source, Subset
from mmcon.sources.factory import create_source
from mmcon.training.config import RunConfig
from mmcon.training.optim import create_optimizer_and_schedule
from mmcon.training.recipe import run_recipe
from mmcon.training.run import Run
from mmcon.views import Chain

BUNDLED = "samples/emoji-names"
BAG = "text/embedding-bag"


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """What to train, on what, and for how long."""

    data: str = BUNDLED
    """bundled names (samples/emoji-names), or a table: .csv, .jsonl or .parquet"""
    columns: tuple[str, ...] = ()
    """text columns of a table; several are parallel texts; default: "text" """
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
    labels_per_class: int | None = None
    """train on this many samples of each class"""
    temperature: float | None = None
    """default: .1, and .05 for SimCSE"""
    projection_dim: int = 128
    epochs: int = 40
    learning_rate: float | None = None
    """default: 2e-3 for the embedding bag, 3e-5 for a pretrained model"""


def main(config: Config) -> None:
    """Train, then evaluate."""
    config = config.apply_tiny(max_steps=8)
    run = Run.from_config(config, name=f"text_{config.objective}")

    # Data: texts with stable ids, the views of each, and the samples of each batch.
    table: dict[str, Any] = {}
    if config.data != BUNDLED:  # texts, not ids, decide what is held out: equal texts stay in one split
        label = None if config.label == "label" else config.label
        table = {"text_columns": config.columns or ("text",), "label_column": label}
        table |= {"id_column": "none", "test_share": 0.2}
    whole, test = (create_source(config.data, modality="text", split=split, **table) for split in ("train", "test"))
    train = Subset(whole, few_labels(whole, config)) if config.labels_per_class else whole
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    loader = run.loader(train, {"text": make_views(config, whole)}, make_sampler(config, train, whole))

    # Model: an encoder, and a projection head that the second stage drops.
    bag = config.encoder == BAG
    options: dict[str, Any] = {} if bag else {"path": config.encoder, "pooling": config.pooling}
    encoder = create_encoder(BAG if bag else "text/transformer", modality="text", pretrained=not bag, **options)
    model = mmcon.ContrastiveModel({"text": encoder}, {"shared": mmcon.SharedSpace(dim=config.projection_dim)})
    untrained = copy.deepcopy(model)
    temperature = config.temperature or (0.05 if config.objective == "simcse" else 0.1)
    affinity = SameLabel() if config.objective == "supcon" else SameSample()
    network, objective = model, mmcon.Objective(affinity=affinity, temperature=temperature)
    if config.objective == "cross-entropy":
        network = Classifier(encoder, len(train.classes), modality="text")
        objective = CrossEntropy(train, modality="text")
    rates = replace(config, learning_rate=config.learning_rate or (2e-3 if bag else 3e-5))
    optimizer, schedule = create_optimizer_and_schedule(rates, [network, objective], steps_per_epoch=len(loader))
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
    model.save_pretrained(run.folder / "model")
    if not bag:
        folder, tokenizer = run.folder / "sentence-transformers", load_tokenizer(config.encoder)
        export_sentence_transformers(encoder, tokenizer, folder, max_tokens=config.max_tokens)
    untrained = untrained.to(run.device)
    encoders = {"trained encoder": model, "untrained encoder": untrained, "bag of words": bag_of_words}
    metrics = {name: evaluate(config, encode, run.device, train, test) for name, encode in encoders.items()}
    run.print(text_metrics_table(metrics, len(test)))
    run.finish(text_metrics_json(metrics))


# --- views, batches and metrics --------------------------------------------------------------------------------------


def make_tokens(config: Config) -> mmcon.ViewGenerator:
    """The tokenizer of the encoder."""
    name = "words" if config.encoder == BAG else config.encoder
    return mmcon.create_view("text/tokens", tokenizer=name, max_tokens=config.max_tokens)


def make_views(config: Config, train: Any) -> list[mmcon.ViewGenerator]:
    """Two views of a sample: any two columns, the same text twice (SimCSE), or the first column and another."""
    first, *others = train.texts
    tokens, words = make_tokens(config), mmcon.create_view("text/word-delete", share=config.word_delete)
    if config.objective == "simcse":
        same = Chain(mmcon.create_view("text/column", column=first), tokens)
        return [same, same]
    if config.objective == "parallel":
        if not others:
            raise ConfigError(
                "--objective parallel", expected="two columns of text or more", got=f"{first!r} alone", fix="--columns"
            )
        one = Chain(mmcon.create_view("text/column", column=first), words, tokens)
        return [one, Chain(mmcon.create_view("text/any-column", columns=tuple(others)), words, tokens)]
    view = Chain(mmcon.create_view("text/any-column"), words, tokens)
    return [view, view]


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


def few_labels(train: Source, config: Config) -> Int[Tensor, " n"]:
    """The indices of the first `--labels-per-class` samples of each class, in keyed order."""
    if train.labels is None or config.labels_per_class is None:
        raise ConfigError("--labels-per-class", expected="labels", got="none", fix="--label COLUMN")
    order = keys(seed=config.seed).child("few labels").permutation("order", len(train))[0]
    chosen = [order[train.labels[order] == c][: config.labels_per_class] for c in train.labels.unique().tolist()]
    return torch.cat(chosen).sort().values


def evaluate(config: Config, encode: Any, device: torch.device, train: Source, test: Any) -> dict[str, Any]:
    """Probe, k-NN and clusters of the classes; retrieval from the first column to each other; graded pairs."""

    def extract(source: Source, column: str) -> Features:
        view = Chain(mmcon.create_view("text/column", column=column), make_tokens(config))
        return extract_features(encode, one_pass(source, {"text": [view]}, device=device))

    by_column = {column: extract(test, column) for column in test.texts}
    (name, first), *others = by_column.items()
    metrics: dict[str, Any] = {}
    if train.labels is not None:
        metrics |= evaluate_features(extract(train, name), first, neighbors=50)
        metrics["nmi"] = clustering_nmi(first, classes=len(test.classes), seed=config.seed)
    if others:
        metrics["recall_at_1"] = {column: retrieve(first, other, ks=(1,)).recall[1] for column, other in others}
    if config.data == BUNDLED:
        # Pairs are graded by the taxonomy of emoji: same subgroup 2, same group 1, else 0.
        subgroups = create_source(BUNDLED, split="test", labels="subgroup").labels
        assert subgroups is not None
        pairs = keys(seed=0).child("pairs").integers("rows", 0, len(test), shape=(4000, 2))[0]
        a, b = pairs[pairs[:, 0] != pairs[:, 1]].T
        score = (first.labels[a] == first.labels[b]).long() + (subgroups[a] == subgroups[b]).long()
        metrics["rank_correlation"] = rank_correlation(first, a, b, score)
    return metrics


if __name__ == "__main__":
    run_recipe(main, Config)
