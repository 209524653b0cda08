"""Neighbours: weighted k-NN classification, retrieval between two sets of features, and the geometry of a space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.evaluation.features import Features
from mmcon.evaluation.statistics import Classification, classify

# Similarities held at once.
_BLOCK = 8_000_000

Relevance = str | Tensor | Callable[[Index, Index], Tensor]


def knn(
    train: Features, test: Features, *, k: int = 200, temperature: float = 0.07, same: str | None = None
) -> Classification:
    """Weighted k-nearest-neighbour classification by cosine (Wu et al. 2018, section 3.4).

    A class scores Σ e^{s/T} over its members among the k nearest; where there are fewer than k, all of them vote.

    Args:
        train: features that vote, with labels.
        test: features that are classified, with labels.
        k: how many neighbours.
        temperature: divides the cosine.
        same: a column such as "sample": rows that agree in it do not vote for one another (to leave each out of its
            own set).

    Raises:
        InputError: widths differ, or a test label is none of the training set's.
    """
    _check_pair("knn", train, test)
    if k < 1 or temperature <= 0:
        raise InputError("knn", expected="k >= 1 and temperature > 0", got=f"k={k}, temperature={temperature}")
    classes, member = train.labels.unique(return_inverse=True)
    scores = []
    for rows, similarity in _similarities(test, train):
        if same is not None:
            similarity.masked_fill_(test.index[same][rows, None] == train.index[same], -torch.inf)
        near = similarity.topk(min(k, len(train)), dim=1)
        votes = ((near.values - 1) / temperature).exp()
        scores.append(votes.new_zeros(len(votes), len(classes)).scatter_add(1, member[near.indices], votes))
    return classify(torch.cat(scores), test.labels, classes)


@dataclass(frozen=True)
class Retrieval:
    """How well queries find what is relevant to them, in one direction.

    Attributes:
        recall: by k, the share of queries with at least one relevant candidate among the first k (what image–text work
            calls recall at k).
        chance: by k, the same for candidates in random order.
        mean_average_precision: of relevant (weight above 0) against irrelevant.
        ndcg: discounted gain of the weights over the whole order, as a share of the best order's.
        median_rank: of the first relevant candidate, counted from 1.
        first_rank: that rank for each query, 0 where nothing is relevant.
        average_precision: for each query, not a number where nothing is relevant.
        without: how many queries have nothing relevant; they are left out of every mean.
    """

    recall: dict[int, float]
    chance: dict[int, float]
    mean_average_precision: float
    ndcg: float
    median_rank: float
    first_rank: Int[Tensor, " q"]
    average_precision: Float[Tensor, " q"]
    without: int


def retrieve(
    queries: Features,
    candidates: Features,
    *,
    relevance: Relevance = "sample",
    ks: Sequence[int] = (1, 5, 10),
    same: str | None = None,
) -> Retrieval:
    """Rank all candidates for each query by cosine, and judge the order; equal ones stand in the candidates' order.

    Args:
        queries: `q` rows.
        candidates: `c` rows.
        relevance: a column (rows that agree in it are relevant: "sample", "label"), weights `q c` >= 0, or a function
            of the tables of some queries and of all candidates that gives such weights.
        ks: where recall is read.
        same: a column such as "sample": candidates that agree with the query in it are left out of its order.

    Raises:
        InputError: widths differ, weights have another shape or are negative, or no query has anything relevant.
    """
    _check_pair("retrieve", queries, candidates)
    first, precision, gain, chance = [], [], [], []
    for rows, similarity in _similarities(queries, candidates):
        weights = _weights(relevance, queries, candidates, rows)
        if same is not None:
            left_out = queries.index[same][rows, None] == candidates.index[same]
            similarity.masked_fill_(left_out, -torch.inf)
            weights = weights.masked_fill(left_out, 0)
        ordered = weights.gather(1, similarity.argsort(dim=1, descending=True, stable=True))
        relevant = ordered > 0
        first.append(torch.where(relevant.any(1), relevant.int().argmax(1) + 1, 0))
        precision.append(_average_precision(relevant))
        gain.append(_discounted(ordered) / _discounted(weights.sort(dim=1, descending=True).values))
        present = (similarity > -torch.inf).sum(1)
        chance.append(torch.stack([_chance(relevant.sum(1), present, k) for k in ks], 1))
    first_rank, average_precision = torch.cat(first), torch.cat(precision)
    found = first_rank > 0
    if not bool(found.any()):
        raise InputError("retrieve", expected="queries with something relevant", got=f"none of {len(queries)}")
    ranks, expected = first_rank[found], torch.cat(chance)[found].mean(0)
    return Retrieval(
        recall={k: (ranks <= k).double().mean().item() for k in ks},
        chance={k: float(e) for k, e in zip(ks, expected, strict=True)},
        mean_average_precision=average_precision[found].mean().item(),
        ndcg=torch.cat(gain)[found].mean().item(),
        median_rank=ranks.double().quantile(0.5).item(),
        first_rank=first_rank,
        average_precision=average_precision,
        without=int((~found).sum()),
    )


def retrieve_both_ways(
    first: Features,
    second: Features,
    *,
    relevance: Relevance = "sample",
    ks: Sequence[int] = (1, 5, 10),
    same: str | None = None,
) -> tuple[Retrieval, Retrieval]:
    """Retrieval from the first to the second, and back; weights `first second` are transposed for the way back."""
    there = retrieve(first, second, relevance=relevance, ks=ks, same=same)
    return there, retrieve(second, first, relevance=_transposed(relevance), ks=ks, same=same)


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], *, power: float = 2.0) -> float:
    """E ‖x − y‖^power over pairs of unit rows that belong together (Wang and Isola 2020, eq. 1); 0 is perfect."""
    return (_unit(first) - _unit(second)).norm(dim=1).pow(power).mean().item()


def uniformity(rows: Float[Tensor, "n d"], *, t: float = 2.0) -> float:
    """Logarithm of E e^{−t ‖x − y‖²} over distinct pairs of unit rows (Wang and Isola 2020, eq. 2); low is even."""
    x, n = _unit(rows).double(), len(rows)
    if n < 2:
        raise InputError("uniformity", expected="at least two rows", got=f"{n}")
    total = 0.0
    for part in torch.arange(n).split(max(1, _BLOCK // n)):
        kernel = (2 * t * (x[part] @ x.T - 1)).exp()
        total += float(kernel.sum() - kernel[torch.arange(len(part)), part].sum())
    return math.log(total / (n * (n - 1)))


def modality_gap(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """Distance between the centres of two sets of unit rows (Liang et al. 2022, "Mind the gap")."""
    return (_unit(first).mean(0) - _unit(second).mean(0)).norm().item()


def _unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return torch.nn.functional.normalize(x, dim=1)


def _check_pair(where: str, first: Features, second: Features) -> None:
    widths = first.values.shape[1], second.values.shape[1]
    if widths[0] != widths[1] or not len(first) or not len(second):
        raise InputError(
            where,
            expected="two sets of rows of one width",
            got=f"{len(first)} × {widths[0]}, {len(second)} × {widths[1]}",
        )


def _similarities(rows: Features, columns: Features) -> Iterator[tuple[Int[Tensor, " r"], Float[Tensor, "r c"]]]:
    """Cosines of a few rows at a time with all columns."""
    x, y = rows.unit(), columns.unit()
    for part in torch.arange(len(x)).split(max(1, _BLOCK // len(y))):
        yield part, x[part] @ y.T


def _weights(
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
    return lambda rows, columns: relevance(columns, rows).T


def _average_precision(relevant: Bool[Tensor, "q c"]) -> Float[Tensor, " q"]:
    """Mean precision at the places of the relevant ones."""
    place = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64)
    precision = relevant.cumsum(1) / place
    return (precision * relevant).sum(1) / relevant.sum(1)


def _discounted(weights: Float[Tensor, "q c"]) -> Float[Tensor, " q"]:
    place = torch.arange(2, weights.shape[1] + 2, dtype=torch.float64)
    return (weights / place.log2()).sum(1)


def _chance(relevant: Int[Tensor, " q"], present: Int[Tensor, " q"], k: int) -> Float[Tensor, " q"]:
    """Probability that k of the present candidates, drawn blindly, hold a relevant one: 1 − C(n−r, k) / C(n, k)."""
    n, r = present.double(), relevant.double()
    drawn = torch.full_like(n, k).minimum(n)
    misses = n - r - drawn

    def log_factorial(x: Tensor) -> Tensor:
        return torch.lgamma(x.clamp(min=0) + 1)

    log_miss = log_factorial(n - r) - log_factorial(misses) - log_factorial(n) + log_factorial(n - drawn)
    return torch.where(misses < 0, torch.ones_like(n), 1 - log_miss.exp())
