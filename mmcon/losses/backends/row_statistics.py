"""Row statistics: the numbers that the tiled backend keeps for each anchor between its passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmcon.losses.backends.tiles import Tile
from mmcon.losses.loss_inputs import Problem
from mmcon.losses.negative_weights import debiased_with_derivatives

EMPTY = float("-inf")


@dataclass
class RowStatistics:
    """Sums over the candidates of each anchor, accumulated over tiles.

    Attributes:
        weight_sum: Σ W.
        has_positive: whether any W is above 0.
        weighted: Σ W s; with denominator `one`, Σ W log(D/e^s).
        log_positive_sum: log Σ_P e^s, unless the denominator is a softmax over all candidates.
        log_weighted_sum: log Σ W e^s.
        log_negative_sum: log Σ_N V e^s, with hard negatives log Σ_N e^{(1+β)s}; in a softmax, of all candidates.
        log_concentrated_sum: log Σ_N e^{βs}.
        negative_count: |N|, for hard negatives.
        negative_share: Σ W ∂log(D/e^s)/∂log N, with denominator `one`.
    """

    weight_sum: Float[Tensor, " a"]
    has_positive: Bool[Tensor, " a"]
    weighted: Float[Tensor, " a"]
    log_positive_sum: Float[Tensor, " a"]
    log_weighted_sum: Float[Tensor, " a"]
    log_negative_sum: Float[Tensor, " a"]
    log_concentrated_sum: Float[Tensor, " a"]
    negative_count: Float[Tensor, " a"]
    negative_share: Float[Tensor, " a"]

    @staticmethod
    def empty(problem: Problem) -> RowStatistics:
        """The statistics before the first tile."""

        def full(value: float) -> Float[Tensor, " a"]:
            return problem.anchors.new_full((len(problem.anchors),), value)

        return RowStatistics(
            weight_sum=full(0.0),
            has_positive=torch.zeros(len(problem.anchors), dtype=torch.bool, device=problem.anchors.device),
            weighted=full(0.0),
            log_positive_sum=full(EMPTY),
            log_weighted_sum=full(EMPTY),
            log_negative_sum=full(EMPTY),
            log_concentrated_sum=full(EMPTY),
            negative_count=full(0.0),
            negative_share=full(0.0),
        )

    def add(self, problem: Problem, tile: Tile) -> None:
        """Add the pairs of a tile."""
        rows, settings = tile.rows, problem.settings
        self.weight_sum[rows] += tile.weights.sum(1)
        self.has_positive[rows] |= tile.positive.any(1)
        if problem.hard_negatives is not None:
            self.negative_count[rows] += tile.negative.sum(1)
        if settings.form == "in":
            _add_logsumexp(self.log_weighted_sum, rows, tile.positive, tile.s + tile.log_weights())
        elif settings.denominator != "one":
            self.weighted[rows] += (tile.weights * tile.s).sum(1)
        if settings.denominator == "all" and not problem.is_softmax:
            _add_logsumexp(self.log_positive_sum, rows, tile.positive, tile.s)
        _add_logsumexp(self.log_negative_sum, rows, tile.negative, negative_exponents(problem, tile))
        if (beta := _concentration(problem)) > 0:
            _add_logsumexp(self.log_concentrated_sum, rows, tile.negative, beta * tile.s)

    def add_negatives(self, problem: Problem, sums: Sequence[Float[Tensor, " a"]], counts: Int[Tensor, " a"]) -> None:
        """Add negatives of weight 1: for each anchor their number and their sums of `negative_powers`."""
        self.negative_count += counts
        self.log_negative_sum = torch.logaddexp(self.log_negative_sum, sums[0].log())
        if _concentration(problem) > 0:
            self.log_concentrated_sum = torch.logaddexp(self.log_concentrated_sum, sums[1].log())

    def log_negatives(self, problem: Problem) -> Float[Tensor, " a"]:
        """Log of the negatives' sum in the denominator, N."""
        if (hard := problem.hard_negatives) is None:
            return self.log_negative_sum
        log_count = self.negative_count.log()
        spread = self.log_concentrated_sum if hard.concentration > 0 else log_count
        return torch.where(self.negative_count > 0, log_count + self.log_negative_sum - spread, EMPTY)


class RowResults(NamedTuple):
    """The losses, and the numbers that the backward pass needs of each anchor.

    Attributes:
        valid: whether the anchor has a loss.
        divisor: the sum of weights, or 1.
        log_negatives: log of the negatives' sum N.
        log_denominator: log D, +inf for invalid anchors.
        losses: 0 for invalid anchors.
    """

    valid: Bool[Tensor, " a"]
    divisor: Float[Tensor, " a"]
    log_negatives: Float[Tensor, " a"]
    log_denominator: Float[Tensor, " a"]
    losses: Float[Tensor, " a"]


def row_results(problem: Problem, statistics: RowStatistics) -> RowResults:
    """The losses from complete statistics; with denominator `one`, after `add_pair_losses`."""
    settings, log_negatives, valid = problem.settings, statistics.log_negatives(problem), statistics.has_positive
    if settings.denominator == "negatives":
        valid = valid & torch.isfinite(log_negatives)
    weight_sum = statistics.weight_sum
    divisor = torch.where(valid, weight_sum, 1) if settings.row_normalize else torch.ones_like(weight_sum)
    log_denominator = log_negatives
    if settings.denominator == "all":
        log_denominator = torch.logaddexp(statistics.log_positive_sum, log_negatives)
    if settings.form == "in":
        losses = log_denominator - statistics.log_weighted_sum + divisor.log()
    elif settings.denominator == "one":
        losses = statistics.weighted / divisor
    else:
        # With normalized rows log D stays as it is: times the weights and divided by them again it would lose digits.
        log_part = log_denominator if settings.row_normalize else weight_sum * log_denominator
        losses = log_part - statistics.weighted / divisor
    # Invalid anchors get a zero gradient: e^{s - inf} = 0 for every s.
    log_denominator = torch.where(valid, log_denominator, float("inf"))
    return RowResults(valid, divisor, log_negatives, log_denominator, torch.where(valid, losses, 0))


def add_pair_losses(problem: Problem, statistics: RowStatistics, pairs: Iterator[list[Tile]]) -> None:
    """The denominator of each positive needs the complete sum of negatives, and so a second pass."""
    log_negatives = statistics.log_negatives(problem)
    for tiles in pairs:
        for tile in tiles:
            found = pair_losses(problem, tile, statistics.negative_count[tile.rows], log_negatives[tile.rows])
            statistics.weighted[tile.rows] += (tile.weights * found.losses).sum(1)
            statistics.negative_share[tile.rows] += (tile.weights * found.by_log_negatives).sum(1)


class PairLosses(NamedTuple):
    """With denominator `one`, the loss of each positive, log(D_ij / e^{s_ij}), and its derivatives.

    Attributes:
        losses: 0 except at positives; `1 c` zeros where derivatives alone were asked for.
        by_s: the derivative by s_ij.
        by_log_negatives: the derivative by log N_i.
        by_temperature: the derivative by the temperature of the debiasing floor, weighted and summed over positives.
    """

    losses: Float[Tensor, "_ c"]
    by_s: Float[Tensor, "r c"]
    by_log_negatives: Float[Tensor, "r c"]
    by_temperature: Float[Tensor, " r"]


def pair_losses(
    problem: Problem,
    tile: Tile,
    negative_count: Float[Tensor, " r"],
    log_negatives: Float[Tensor, " r"],
    *,
    derivatives_alone: bool = False,
) -> PairLosses:
    """The loss of each positive of a tile, for denominator `one`; `derivatives_alone` leaves losses at 0."""
    hard = problem.hard_negatives
    if hard is None or hard.class_prior == 0:
        gap = torch.where(tile.positive, log_negatives[:, None] - tile.s, EMPTY)
        # log(1 + N / e^s) = softplus(log N - s): finite where N / e^s overflows. From its default threshold of 20 on
        # PyTorch's softplus is the identity, which is off by 2e-9.
        share = torch.sigmoid(gap)
        losses = torch.zeros_like(gap[:1]) if derivatives_alone else nn.functional.softplus(gap, threshold=50)
        return PairLosses(losses, -share, share, torch.zeros_like(log_negatives))
    each = debiased_with_derivatives(
        tile.s, log_negatives[:, None], negative_count[:, None], problem.temperature, hard.class_prior
    )
    gap = torch.where(tile.positive, each.log_sum - tile.s, EMPTY)
    share = torch.sigmoid(gap)
    losses = torch.zeros_like(gap[:1]) if derivatives_alone else nn.functional.softplus(gap, threshold=50)
    by_temperature = (tile.weights * share * each.by_temperature).sum(1)
    return PairLosses(losses, share * (each.by_s - 1), share * each.by_log_sum, by_temperature)


def negative_powers(problem: Problem) -> list[float]:
    """The factors of similarities in the exponents of `log_negative_sum` and of `log_concentrated_sum`."""
    beta = _concentration(problem)
    return [1 + beta, beta] if beta > 0 else [1.0]


def negative_exponents(problem: Problem, tile: Tile) -> Float[Tensor, "r c"]:
    """The exponents of the terms in `log_negative_sum`."""
    if tile.log_negative_weights is not None:
        return tile.s + tile.log_negative_weights
    return tile.s * (1 + _concentration(problem))


def _concentration(problem: Problem) -> float:
    return 0.0 if problem.hard_negatives is None else problem.hard_negatives.concentration


def _add_logsumexp(
    log_sums: Float[Tensor, " a"], rows: slice, mask: Bool[Tensor, "r c"], exponents: Float[Tensor, "r c"]
) -> None:
    """Add the terms of a tile to a running log-sum-exp, in place."""
    # Sums stay in logarithms between tiles, so that no tile needs the maximum of the whole row.
    log_sums[rows] = torch.logaddexp(log_sums[rows], torch.where(mask, exponents, EMPTY).logsumexp(1))
