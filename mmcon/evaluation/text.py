"""Metrics of text features: classes, clusters, retrieval between columns, and graded pairs; and their table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.errors import InputError
from mmcon.evaluation.features import Features, extract_features
from mmcon.evaluation.figure_warnings import figure_warnings
from mmcon.evaluation.retrieval import retrieve
from mmcon.evaluation.second_stage import Encode, evaluate_features, results_json, with_warnings
from mmcon.evaluation.statistics import Classification
from mmcon.loading.loader import one_pass
from mmcon.random import keys
from mmcon.registry import create_view
from mmcon.sources.base import Source
from mmcon.sources.text import TextSource
from mmcon.views import Chain, ViewGenerator


def evaluate_texts(
    encode: Encode,
    train: Source,
    test: Source,
    *,
    tokens: ViewGenerator,
    device: torch.device,
    seed: int = 0,
    subgroups: Int[Tensor, " n"] | None = None,
    model_folder: Path | None = None,
) -> dict[str, Any]:
    """Probe, k-NN and clusters of the classes; retrieval from the first column to each other; graded pairs.

    Args:
        encode: from a batch of tokens to features (see `extract_features`).
        train: the training split; without labels there are no metrics of classes.
        test: the held-out split, in one column of text or in several parallel ones.
        tokens: the tokenizer of the encoder.
        device: the device of the batches.
        seed: the seed of the clusters.
        subgroups: classes below the labels of the test split, for `taxonomy_correlation`.
        model_folder: a saved model beside which the probe is saved.
    """
    if not isinstance(test, TextSource):
        raise InputError("evaluate_texts", expected="texts in memory, as a TextSource", got=type(test).__name__)

    def extract(source: Source, column: str) -> Features:
        view = Chain(create_view("text/column", column=column), tokens)
        return extract_features(encode, one_pass(source, {"text": [view]}, device=device))

    (name, first), *others = ((column, extract(test, column)) for column in test.texts)
    metrics: dict[str, Any] = {}
    if train.labels is not None:
        saved: dict[str, Any] = {"model_folder": model_folder, "classes": train.classes, "modality": "text"}
        metrics |= evaluate_features(extract(train, name), first, neighbors=50, **saved)
        metrics["nmi"] = clustering_nmi(first, classes=len(test.classes), seed=seed)
    if others:
        metrics["recall_at_1"] = {column: retrieve(first, other, ks=(1,)).recall[1] for column, other in others}
    if subgroups is not None:
        metrics["rank_correlation"] = taxonomy_correlation(first, subgroups)
    return metrics


def taxonomy_correlation(features: Features, subgroups: Int[Tensor, " n"]) -> float:
    """`rank_correlation` over 4,000 drawn pairs, graded by a taxonomy: same subgroup 2, same label 1, else 0."""
    pairs = keys(seed=0).child("pairs").integers("rows", 0, len(features), shape=(4000, 2))[0]
    a, b = pairs[pairs[:, 0] != pairs[:, 1]].T
    score = (features.labels[a] == features.labels[b]).long() + (subgroups[a] == subgroups[b]).long()
    return rank_correlation(features, a, b, score)


def clustering_nmi(features: Features, *, classes: int, seed: int = 0) -> float | None:
    """Normalized mutual information of the labels and of k-means clusters of unit rows, 0 to 1.

    Returns:
        None if scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.metrics import normalized_mutual_info_score
    except ImportError:
        return None
    if not 2 <= classes <= len(features):
        raise InputError("clustering_nmi", expected=f"2 <= classes <= {len(features)} rows", got=str(classes))
    clusters = KMeans(
        n_clusters=classes,
        n_init=5,  # pyright: ignore
        random_state=seed,
    ).fit_predict(features.normalized().numpy())
    return float(normalized_mutual_info_score(features.labels.numpy(), clusters))


def rank_correlation(
    features: Features, first: Int[Tensor, " p"], second: Int[Tensor, " p"], scores: Shaped[Tensor, " p"]
) -> float:
    """Spearman's correlation of cosine similarity and score over pairs of rows, as in semantic textual similarity.

    Args:
        features: the features of all rows.
        first: the first row of each pair.
        second: the second row of each pair.
        scores: the similarity of each pair by human judgment or by a taxonomy.
    """
    from scipy.stats import spearmanr

    if len(scores) < 3 or bool((scores == scores[0]).all()):
        raise InputError(
            "rank_correlation", expected="3 pairs or more with differing scores", got=f"{len(scores)} pairs"
        )
    rows = features.normalized()
    return float(spearmanr((rows[first] * rows[second]).sum(1).numpy(), scores.numpy())[0])  # pyright: ignore


def bag_of_words(batch: ViewBatch) -> Float[Tensor, "b 512"]:
    """Counts of hashed words and letter triples: a baseline without training."""
    (tokens,) = batch.views["text"]
    ids = tokens["input_ids"] % 512
    counts = torch.zeros(len(ids), 512, device=ids.device)
    return counts.scatter_add_(1, ids, tokens["attention_mask"].float())


def text_metrics_table(metrics: Mapping[str, Mapping[str, Any]], n: int) -> str:
    """The metrics of several encoders on n test texts as text."""
    lines = [f"metrics on {n} held-out texts (± is half of the 95 % interval over texts)"]
    for name, values in metrics.items():
        cells = []
        if "linear_probe" in values:
            interval = values["linear_probe"].interval()
            half = (interval.high - interval.low) / 2
            cells.append(f"linear probe {values['linear_probe'].top1:.3f} ± {half:.3f}   k-NN {values['knn'].top1:.3f}")
            cells.append(f"NMI {values['nmi']:.3f}" if values["nmi"] is not None else "NMI needs scikit-learn")
        if "recall_at_1" in values:
            cells.append(f"retrieval {sum(values['recall_at_1'].values()) / len(values['recall_at_1']):.3f}")
        if "rank_correlation" in values:
            cells.append(f"rank correlation {values['rank_correlation']:.3f}")
        lines.append(f"  {name:<18}" + "   ".join(cells))
    return "\n".join(lines)


def text_metrics_json(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of results.json: the metrics of the trained encoder, and the baselines by name."""

    def plain(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: {"top1": v.top1, "top5": v.top5} if hasattr(v, "top1") else v for k, v in values.items()}

    trained, *_ = metrics.values()
    shares = [value for value in trained.values() if isinstance(value, Classification)]
    found = figure_warnings(metrics, len(shares[0].correct), kind="texts") if shares else []
    return results_json({name: plain(values) for name, values in metrics.items()}) | with_warnings(found)
