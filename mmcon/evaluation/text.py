"""Metrics of text features besides probe and retrieval: clusters against classes, and graded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.errors import InputError
from mmcon.evaluation.features import Features


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
    baselines = {name.replace(" ", "_"): plain(values) for name, values in metrics.items() if values is not trained}
    return {**plain(trained), **baselines}
