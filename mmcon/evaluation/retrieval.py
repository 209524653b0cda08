"""Retrieval metrics between two feature sets: recall at k, mean average precision, nDCG, and the rank of a hit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.similarity_blocks import check_same_width, similarity_blocks

# The underscore leaves the axes unchecked: a reversed direction passes the transposed weights.
Relevance = str | Shaped[Tensor, "_q _c"] | Callable[[Index, Index], Shaped[Tensor, "_q _c"]]


@dataclass(frozen=True)
class RetrievalMetrics:
    """Retrieval metrics in one direction; means are over queries with at least one relevant candidate.

    Attributes:
        recall: by k, the share of queries with at least one relevant candidate among the first k (recall at k of the
            image-text literature).
        chance: by k, the expected recall for candidates in random order.
        mean_average_precision: of relevant (weight above 0) against irrelevant candidates.
        ndcg: discounted cumulative gain of the weights, divided by that of the ideal order.
        median_rank: of the first relevant candidate, counted from 1.
        first_rank: rank of the first relevant candidate of each query; 0 for a query without one.
        average_precision: of each query; NaN for a query without a relevant candidate.
        queries_without_relevant: number of queries without a relevant candidate; no mean includes them.
    """

    recall: dict[int, float]
    chance: dict[int, float]
    mean_average_precision: float
    ndcg: float
    median_rank: float
    first_rank: Int[Tensor, " q"]
    average_precision: Float[Tensor, " q"]
    queries_without_relevant: int


def retrieve(
    queries: Features,
    candidates: Features,
    *,
    relevance: Relevance = "sample",
    ks: Sequence[int] = (1, 5, 10),
    exclude_same: str | None = None,
) -> RetrievalMetrics:
    """Rank all candidates of each query by cosine similarity, and compute retrieval metrics.

    Candidates of equal similarity keep their order.

    Args:
        queries: `q` rows.
        candidates: `c` rows.
        relevance: a column (rows with equal values are relevant: "sample", "label"); weights `q c` >= 0; or a function
            from the tables of a block of queries and of all candidates to such weights.
        ks: cutoffs of recall.
        exclude_same: a column such as "sample". Candidates with the query's value in this column are not ranked.

    Raises:
        InputError: widths differ, features are not finite, weights have another shape or are negative, or no query has
            a relevant candidate.
    """
    check_same_width("retrieve", queries, candidates)
    for name, features in (("queries", queries), ("candidates", candidates)):
        lowest, highest = features.values.aminmax()  # NaN if one is; no copy, since features may lie in a large file
        if not bool(torch.stack([lowest, highest]).isfinite().all()):
            raise InputError("retrieve", expected=f"finite features of {name}", got="NaN or infinite ones")
    blocks = []
    for rows, similarity in similarity_blocks(queries, candidates):
        weights = _relevance_weights(relevance, queries, candidates, rows)
        if exclude_same is not None:
            excluded = queries.index[exclude_same][rows, None] == candidates.index[exclude_same]
            similarity.masked_fill_(excluded, -torch.inf)
            weights = weights.masked_fill(excluded, 0)
        blocks.append(_metrics_by_query(similarity, weights, ks))
    first_rank, average_precision, ndcg, chance = (torch.cat(columns) for columns in zip(*blocks, strict=True))
    found = first_rank > 0
    if not bool(found.any()):
        raise InputError("retrieve", expected="queries with a relevant candidate", got=f"none of {len(queries)}")
    ranks = first_rank[found]
    return RetrievalMetrics(
        recall={k: (ranks <= k).double().mean().item() for k in ks},
        chance={k: float(share) for k, share in zip(ks, chance[found].mean(0), strict=True)},
        mean_average_precision=average_precision[found].mean().item(),
        ndcg=ndcg[found].mean().item(),
        median_rank=ranks.double().quantile(0.5).item(),
        first_rank=first_rank,
        average_precision=average_precision,
        queries_without_relevant=int((~found).sum()),
    )


def retrieve_both_directions(
    first: Features,
    second: Features,
    *,
    relevance: Relevance = "sample",
    ks: Sequence[int] = (1, 5, 10),
    exclude_same: str | None = None,
) -> tuple[RetrievalMetrics, RetrievalMetrics]:
    """Retrieval from the first set to the second and from the second to the first; weights are transposed."""
    forward = retrieve(first, second, relevance=relevance, ks=ks, exclude_same=exclude_same)
    return forward, retrieve(second, first, relevance=_transposed(relevance), ks=ks, exclude_same=exclude_same)


def _metrics_by_query(
    similarity: Float[Tensor, "q c"], weights: Float[Tensor, "q c"], ks: Sequence[int]
) -> tuple[Int[Tensor, " q"], Float[Tensor, " q"], Float[Tensor, " q"], Float[Tensor, "q k"]]:
    """First rank, average precision, nDCG and chance recall of each query; -inf marks excluded candidates.

    Sums are over the relevant candidates alone, which mostly are a small part of all.
    """
    q, c = similarity.shape
    ordered = weights.gather(1, _descending(similarity))
    relevant = ordered > 0
    counts = relevant.sum(1)
    first_rank = torch.where(counts > 0, relevant.int().argmax(1) + 1, 0)
    rows, places = relevant.nonzero(as_tuple=True)
    nth = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]  # among the relevant ones of its query, from 0

    def total(values: Float[Tensor, " r"]) -> Float[Tensor, " q"]:
        return values.new_zeros(q).index_add_(0, rows, values)

    average_precision = total((nth + 1) / (places + 1).double()) / counts
    # Discounted cumulative gain Σ w_r / log2(r + 1) in rank order (Järvelin and Kekäläinen 2002), and in ideal order.
    discount, gains = 1 / (torch.arange(c, dtype=torch.float64) + 2).log2(), ordered[rows, places].double()
    ideal = gains
    if bool((gains != gains[:1]).any()):
        ideal = weights.sort(dim=1, descending=True).values[rows, nth].double()
    ndcg = total(gains * discount[places]) / total(ideal * discount[nth])
    ranked = (similarity > -torch.inf).sum(1)
    chance = torch.stack([_chance_recall(counts, ranked, k) for k in ks], 1)
    return first_rank, average_precision, ndcg, chance


def _descending(similarity: Float[Tensor, "q c"]) -> Int[Tensor, "q c"]:
    """The indices by falling similarity; equal ones keep their order."""
    if similarity.dtype != torch.float32:
        return similarity.argsort(dim=1, descending=True, stable=True)
    # One integer of the similarity and the index: NumPy sorts integers several times as fast as torch sorts floats.
    bits = (similarity + 0.0).view(torch.int32)  # the addition makes 0 of −0
    rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)  # as the floats: the bits of negative ones fall
    keys = (~rising << 32) | torch.arange(similarity.shape[1])
    keys.numpy().sort(axis=1)
    return keys.bitwise_and_(0xFFFFFFFF)


def _relevance_weights(
    relevance: Relevance, queries: Features, candidates: Features, rows: Int[Tensor, " r"]
) -> Float[Tensor, "r c"]:
    if isinstance(relevance, str):
        return (queries.index[relevance][rows, None] == candidates.index[relevance]).float()
    shape = len(queries), len(candidates)
    if isinstance(relevance, Tensor):
        weights = relevance[rows] if tuple(relevance.shape) == shape else relevance
    else:
        weights = relevance(queries.index.take(rows), candidates.index)
    if tuple(weights.shape) != (len(rows), len(candidates)) or bool((weights < 0).any()):
        got = f"shape {tuple(weights.shape)}, least {weights.min().item():.3g}"
        raise InputError("retrieve", expected=f"relevance `q c` of {shape}, each >= 0", got=got)
    return weights.float()


def _transposed(relevance: Relevance) -> Relevance:
    if isinstance(relevance, str):
        return relevance
    if isinstance(relevance, Tensor):
        return relevance.T
    return lambda queries, candidates: relevance(candidates, queries).T


def _chance_recall(relevant: Int[Tensor, " q"], ranked: Int[Tensor, " q"], k: int) -> Float[Tensor, " q"]:
    """Probability that k of n candidates in random order contain one of r relevant: 1 − C(n−r, k) / C(n, k)."""
    n, r = ranked.double(), relevant.double()
    taken = torch.full_like(n, k).minimum(n)
    misses = n - r - taken

    def log_factorial(x: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
        return torch.lgamma(x.clamp(min=0) + 1)

    # Logarithms: the binomials overflow float64 for a few hundred candidates.
    log_miss = log_factorial(n - r) - log_factorial(misses) - log_factorial(n) + log_factorial(n - taken)
    return torch.where(misses < 0, torch.ones_like(n), 1 - log_miss.exp())
