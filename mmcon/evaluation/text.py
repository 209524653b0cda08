"""Figures that the text field reports beside probe and retrieval: clusters against classes, graded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mmcon.batch import ViewBatch
from mmcon.errors import InputError
from mmcon.evaluation.features import Features


def clustering_nmi(features: Features, *, classes: int, seed: int = 0) -> float | None:
    """Normalised mutual information between k-means clusters of unit rows and the labels, 0 to 1.

    Returns:
        None where scikit-learn is not installed.
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


def rank_correlation(features: Features, first: Int[Tensor, " p"], second: Int[Tensor, " p"], scores: Tensor) -> float:
    """Spearman's correlation of cosine and score over pairs of rows, as for semantic textual similarity.

    Args:
        features: the rows.
        first: positions of the pairs' first members.
        second: positions of their second members.
        scores: `p`, how alike people (or a taxonomy) hold each pair to be.
    """
    from scipy.stats import spearmanr

    if len(scores) < 3 or bool((scores == scores[0]).all()):
        raise InputError(
            "rank_correlation", expected="3 pairs or more with differing scores", got=f"{len(scores)} pairs"
        )
    rows = features.normalized()
    return float(spearmanr((rows[first] * rows[second]).sum(1).numpy(), scores.numpy())[0])  # pyright: ignore


def bag_of_words(batch: ViewBatch) -> Tensor:
    """Counts of hashed words and letter triples: what no training at all gives."""
    (tokens,) = batch.views["text"]
    ids = tokens["input_ids"] % 512
    counts = torch.zeros(len(ids), 512, device=ids.device)
    return counts.scatter_add_(1, ids, tokens["attention_mask"].float())


def text_metrics_table(figures: Mapping[str, Mapping[str, Any]], n: int) -> str:
    """The figures for a person to read."""
    lines = [f"figures on {n} held-out texts (± is half of the 95 % interval over texts)"]
    for name, of in figures.items():
        parts = []
        if "linear_probe" in of:
            interval = of["linear_probe"].interval()
            half = (interval.high - interval.low) / 2
            parts.append(f"linear probe {of['linear_probe'].top1:.3f} ± {half:.3f}   k-NN {of['knn'].top1:.3f}")
            parts.append(f"NMI {of['nmi']:.3f}" if of["nmi"] is not None else "NMI needs scikit-learn")
        if "recall_at_1" in of:
            parts.append(f"retrieval {sum(of['recall_at_1'].values()) / len(of['recall_at_1']):.3f}")
        if "rank_correlation" in of:
            parts.append(f"rank correlation {of['rank_correlation']:.3f}")
        lines.append(f"  {name:<18}" + "   ".join(parts))
    return "\n".join(lines)


def text_metrics_json(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What results.json holds: fractions, the baselines beside each."""

    def plain(of: Mapping[str, Any]) -> dict[str, Any]:
        return {k: {"top1": v.top1, "top5": v.top5} if hasattr(v, "top1") else v for k, v in of.items()}

    trained, *_ = figures.values()
    baselines = {name.replace(" ", "_"): plain(of) for name, of in figures.items() if of is not trained}
    return {**plain(trained), **baselines}
