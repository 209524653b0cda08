"""Figures that the text field reports beside probe and retrieval: clusters against classes, graded pairs."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

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
    ).fit_predict(features.unit().numpy())
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
    rows = features.unit()
    return float(spearmanr((rows[first] * rows[second]).sum(1).numpy(), scores.numpy())[0])  # pyright: ignore
