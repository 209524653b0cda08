"""Contrastive learning of texts: by class, by dropout, or from parallel texts; and cross-entropy under the same budget.

    uv run accelerate launch recipes/text_supcon.py                                   # bundled names, two CPU cores
    uv run accelerate launch recipes/text_supcon.py --objective parallel
    uv run accelerate launch recipes/text_supcon.py --data reviews.csv --label stars --encoder owner/model

Text has no easy augmentation, so the batch is the view generator: the class-aware sampler decides which texts stand
together and the loss does the rest. Parallel texts (translations, title and body) are natural views of one sample.
The bundled texts are the names of emoji in six languages, labelled by group; no concept is in both splits. The
embedding bag trains on them in a minute or two on two CPU cores.

After Khosla et al. 2020 (SupCon), Gao et al. 2021 (SimCSE) and Gunel et al. 2021 (supervised contrastive fine-tuning,
reported to help most where labels are few: --labels-per-class 8).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from mmcon_views.text.tokens import load_tokenizer
from torch import Tensor

import mmcon
from mmcon.affinity import SameLabel, SameSample
from mmcon.errors import ConfigError, MmconError
from mmcon.evaluation.features import Features, extract
from mmcon.evaluation.probe import linear_probe
from mmcon.evaluation.retrieval import knn, retrieve
from mmcon.evaluation.text import bag_of_words, clustering_nmi, rank_correlation, results, table
from mmcon.loading.loader import ViewLoader, one_pass
from mmcon.models.classifier import Classifier
from mmcon.models.encoders import create_encoder
from mmcon.models.export import export_sentence_transformers
from mmcon.objective.cross_entropy import CrossEntropy
from mmcon.random import keys
from mmcon.registry import create
from mmcon.samplers.base import BatchSampler
from mmcon.sources.factory import Source, Subset
from mmcon.sources.text import TextSource, emoji_names, read_texts
from mmcon.training.config import parse
from mmcon.training.optim import create_optimizer, create_schedule
from mmcon.training.run import Run, RunSettings, unused_folder
from mmcon.training.settings import EngineFlags
from mmcon.views import Chain


@dataclass(frozen=True, kw_only=True)
class Config(EngineFlags):
    """What to train, on what, and for how long."""

    data: str = "samples/emoji-names"
    """bundled names (samples/emoji-names), or a table: .csv, .jsonl or .parquet"""
    columns: tuple[str, ...] = ()
    """of a table: the columns that hold text, parallel ones if several; by default "text" """
    label: str = "label"
    """of a table: the column of class names"""
    output_dir: Path | None = None
    """the run folder; by default a new one under runs/"""
    objective: Literal["supcon", "simcse", "parallel", "cross-entropy"] = "supcon"
    encoder: str = "text/embedding-bag"
    """text/embedding-bag, or a transformers text model: a hub name or a local folder"""
    pooling: Literal["mean", "cls", "weighted", "last"] = "mean"
    max_tokens: int = 64
    word_delete: float = 0.1
    """share of words left out of each view"""
    sampler: Literal["class-aware", "no-duplicates", "uniform"] | None = None
    """by default class-aware where labels are trained on, and no-duplicates elsewhere"""
    labels_per_class: int | None = None
    """train on so many samples of each class"""
    epochs: int = 40
    max_steps: int | None = None
    """stop after so many steps; the schedule stays that of --epochs"""
    batch_size: int = 128
    temperature: float | None = None
    """by default .1, and .05 for SimCSE"""
    projection_dim: int = 128
    optimizer: Literal["sgd", "lars", "adamw"] = "adamw"
    learning_rate: float | None = None
    """by default 2e-3 for the embedding bag and 3e-5 for a pretrained model"""
    weight_decay: float = 1e-4
    seed: int = 0
    resume: bool = False
    """go on from the newest good checkpoint in the output folder, or start"""
    force: bool = False
    """resume although settings changed that alter what is computed"""
    workers: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    cpu: bool = False
    log_every: int = 10
    tiny: bool = False
    """a run of seconds that goes through everything"""


def main(config: Config) -> None:
    """Train, then evaluate."""
    if config.tiny:
        config = replace(config, epochs=1, max_steps=min(config.max_steps or 8, 8), log_every=1)
    run = Run(
        config.output_dir or unused_folder(Path("runs") / f"text_{config.objective}", resume=config.resume),
        config=config,
        seed=config.seed,
        settings=RunSettings.of(config),
        resume=config.resume,
        mixed_precision=config.mixed_precision,
        cpu=config.cpu,
    )

    # Data: texts with stable ids, the views of each, and who stands in a batch with whom.
    whole, test = open_texts(config)
    train = Subset(whole, few(whole, config)) if config.labels_per_class else whole
    run.print(f"train {train.describe()}\ntest  {test.describe()}")
    loader = ViewLoader(
        train,
        {"text": make_views(config, whole)},
        make_sampler(config, train, whole),
        seed=config.seed,
        workers=config.workers,
        device=run.device,
        rank=run.rank,
        world_size=run.world_size,
    )

    # Model: an encoder, and a projection head that the second stage drops.
    bag = config.encoder == "text/embedding-bag"
    options: dict[str, Any] = {} if bag else {"path": config.encoder, "pooling": config.pooling}
    encoder = create_encoder(
        config.encoder if bag else "text/transformer", modality="text", pretrained=not bag, **options
    )
    model = mmcon.ContrastiveModel({"text": encoder}, {"shared": mmcon.SharedSpace(dim=config.projection_dim)})
    untrained = copy.deepcopy(model)
    temperature = config.temperature or (0.05 if config.objective == "simcse" else 0.1)
    affinity = SameLabel() if config.objective == "supcon" else SameSample()
    network, objective = (
        (Classifier(encoder, len(train.classes), modality="text"), CrossEntropy(train, modality="text"))
        if config.objective == "cross-entropy"
        else (model, mmcon.Objective(affinity=affinity, temperature=temperature))
    )
    optimizer = create_optimizer(
        [network, objective],
        config.optimizer,
        learning_rate=config.learning_rate or (2e-3 if bag else 3e-5),
        weight_decay=config.weight_decay,
    )
    steps = config.epochs * len(loader)
    schedule = create_schedule(optimizer, "cosine", steps=steps, warmup_steps=round(0.1 * steps))
    trained = run.prepare(network, optimizer, schedule, objective=objective)

    # Stage one.
    for batch in run.batches(loader):
        embeddings = trained(batch)
        loss = objective(embeddings, batch)
        run.step(loss)
    model = run.whole(model)

    # Stage two: features once, then every figure from them.
    if not run.is_main:
        run.close()
        return
    model.save_pretrained(run.folder / "model")
    if not bag:
        tokenizer = load_tokenizer(config.encoder)
        export_sentence_transformers(
            encoder, tokenizer, run.folder / "sentence-transformers", max_tokens=config.max_tokens
        )
    untrained = untrained.to(run.device)
    encoders = {"trained encoder": model, "untrained encoder": untrained, "bag of words": bag_of_words}
    figures = {name: judge(config, encode, run.device, train, test) for name, encode in encoders.items()}
    run.print(table(figures, len(test)))
    run.finish(results(figures))


# --- the parts, each by name -----------------------------------------------------------------------------------------


def open_texts(config: Config) -> tuple[TextSource, TextSource]:
    """Training and test texts; a table is split by the identity of its rows."""
    if config.data == "samples/emoji-names":
        return emoji_names("train"), emoji_names("test")
    return read_texts(config.data, columns=config.columns or ("text",), label=config.label)


def make_tokens(config: Config) -> Any:
    """Where strings become numbers."""
    name = "words" if config.encoder == "text/embedding-bag" else config.encoder
    return mmcon.create_view("text/tokens", tokenizer=name, max_tokens=config.max_tokens)


def make_views(config: Config, train: TextSource) -> list[mmcon.ViewGenerator]:
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


def make_sampler(config: Config, train: Source, whole: TextSource) -> BatchSampler:
    """Whole global batches: P classes × K samples, or texts that are all different."""
    labelled = config.objective in ("supcon", "cross-entropy")
    if labelled and train.labels is None:
        raise ConfigError(f"--objective {config.objective}", expected="labels", got="none", fix="--label COLUMN")
    name = config.sampler or ("class-aware" if labelled else "no-duplicates")
    labels = train.labels
    if name != "class-aware" or labels is None:
        rows = train.rows.tolist() if isinstance(train, Subset) else range(len(train))
        texts = next(iter(whole.texts.values()))
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        labels = torch.tensor([number[texts[row]] for row in rows])
    return create("sampler", f"sampler/{name}", labels=labels, batch_size=config.batch_size, seed=config.seed)


def few(train: Source, config: Config) -> Tensor:
    """The first so many samples of each class, in keyed order."""
    if train.labels is None or config.labels_per_class is None:
        raise ConfigError("--labels-per-class", expected="labels", got="none", fix="--label COLUMN")
    order = keys(seed=config.seed).child("few labels").permutation("order", len(train))[0]
    chosen = [order[train.labels[order] == c][: config.labels_per_class] for c in train.labels.unique().tolist()]
    return torch.cat(chosen).sort().values


# --- stage two -------------------------------------------------------------------------------------------------------


def judge(config: Config, encode: Any, device: torch.device, train: Source, test: TextSource) -> dict[str, Any]:
    """Classes by probe, neighbours and clusters; retrieval from the first column to each other; graded pairs."""
    columns = list(test.texts)

    def of(source: Source, column: str) -> Features:
        view = Chain(mmcon.create_view("text/column", column=column), make_tokens(config))
        return extract(encode, one_pass(source, {"text": [view]}, device=device))

    tests = {column: of(test, column) for column in columns}
    first, figures = tests[columns[0]], {}
    if train.labels is not None:
        known = of(train, columns[0])
        figures["linear_probe"] = linear_probe(known, first)
        figures["knn"] = knn(known, first, k=min(50, len(known)))
        figures["nmi"] = clustering_nmi(first, classes=len(test.classes), seed=config.seed)
    if len(columns) > 1:
        figures["recall_at_1"] = {c: retrieve(first, tests[c], ks=(1,)).recall[1] for c in columns[1:]}
    if config.data == "samples/emoji-names":
        # Pairs are graded by the taxonomy: same subgroup 2, same group 1, else 0.
        fine = emoji_names("test", labels="subgroup").labels
        assert fine is not None
        pairs = keys(seed=0).child("pairs").integers("rows", 0, len(test), shape=(4000, 2))[0]
        a, b = pairs[pairs[:, 0] != pairs[:, 1]].T
        score = (first.labels[a] == first.labels[b]).long() + (fine[a] == fine[b]).long()
        figures["rank_correlation"] = rank_correlation(first, a, b, score)
    return figures


if __name__ == "__main__":
    try:
        main(parse(Config, description=__doc__ or ""))
    except MmconError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
