"""The backward pass of the tiled backend."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmcon.affinity import Affinity
from mmcon.losses.backends.exponentials import PairTiles, Term, exponential_gradients
from mmcon.losses.backends.matmul import matmul_nn, matmul_tn
from mmcon.losses.backends.row_statistics import (
    EMPTY,
    RowResults,
    RowStatistics,
    negative_exponents,
    negative_powers,
    pair_losses,
)
from mmcon.losses.backends.tiles import Tile
from mmcon.losses.loss_inputs import Problem


class TiledGradients:
    """Gradients of the embeddings, the temperature and further parameters, accumulated over tiles.

    Args:
        problem: the inputs of the forward pass.
        statistics: of its anchors.
        results: of its anchors.
        gradient: of the losses.
        parameters: the further inputs that receive a gradient.
        candidates_too: whether candidates receive a gradient; a queue does not.
    """

    def __init__(
        self,
        problem: Problem,
        statistics: RowStatistics,
        results: RowResults,
        gradient: Float[Tensor, " a"],
        parameters: tuple[Float[Tensor, "..."], ...],
        *,
        candidates_too: bool = True,
    ) -> None:
        self.problem, self.statistics, self.results, self.parameters = problem, statistics, results, parameters
        self.gradient = torch.where(results.valid, gradient, 0)
        self.scaled_gradient = self.gradient / results.divisor
        self.of_anchors = torch.zeros_like(problem.anchors)
        of_candidates = torch.zeros_like(problem.candidates) if candidates_too and not problem.square else None
        self.of_candidates = self.of_anchors if problem.square else of_candidates
        self.of_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        self.of_inverse_temperature = torch.zeros_like(problem.temperature)
        self.of_temperature = torch.zeros_like(problem.temperature)
        self.of_log_denominator = self._of_log_denominator()
        self.negative_share = torch.exp(results.log_negatives - results.log_denominator)

    def add(self, tiles: list[Tile]) -> None:
        """Add a tile, or a tile and its transpose."""
        of_s = self._of_similarities(tiles[0])
        if len(tiles) == 2:
            of_s = of_s + self._of_similarities(tiles[1]).T
        rows, columns = tiles[0].rows, tiles[0].columns
        if self.problem.settings.similarity is None:
            self.of_anchors[rows] += matmul_nn(of_s, self.problem.candidates[columns])
            if self.of_candidates is not None:
                self.of_candidates[columns] += matmul_tn(of_s, self.problem.anchors[rows])
        else:
            self._add_through_similarity(rows, columns, of_s)

    def add_negatives(self, pairs: PairTiles) -> None:
        """Add negatives of weight 1, the pairs across blocks."""
        statistics, hard = self.statistics, self.problem.hard_negatives
        powers = negative_powers(self.problem)
        of_log_negatives = self.of_log_denominator
        if self.problem.settings.denominator == "all":
            of_log_negatives = of_log_negatives * self.negative_share
        # As `_negative_softmax`: the log-sums come with factors of the gradient, not with exponents.
        of_sums = of_log_negatives * torch.exp(-_finite(statistics.log_negative_sum))
        if len(powers) == 2 and hard is not None and not hard.detach:
            of_concentrated = of_log_negatives * torch.exp(-_finite(statistics.log_concentrated_sum))
            factors = [powers[0] * of_sums, -powers[1] * of_concentrated]
        else:
            factors = [of_sums]
        both = self.problem.square
        terms = [Term(p, f, f if both else None) for p, f in zip(powers, factors, strict=False)]
        wanted = self.of_candidates is not None
        of_anchors, of_candidates = exponential_gradients(pairs, terms, of_candidates=wanted)
        self.of_anchors += of_anchors
        if not both and self.of_candidates is not None and of_candidates is not None:
            self.of_candidates += of_candidates

    def of_inputs(self) -> tuple[Float[Tensor, "..."] | None, ...]:
        """The gradients in the order of the inputs: anchors, candidates, temperature, parameters."""
        problem, inverse = self.problem, 1 / self.problem.temperature
        if problem.settings.similarity is None:
            # Σ_ij G_ij ⟨a_i, c_j⟩; where the anchors are the candidates, each pair was added from both ends.
            self.of_inverse_temperature = (problem.anchors * self.of_anchors).sum() / (2 if problem.square else 1)
            self.of_anchors.mul_(inverse)
            if self.of_candidates is not None and not problem.square:
                self.of_candidates.mul_(inverse)
        of_temperature = self.of_temperature - self.of_inverse_temperature * inverse * inverse
        # Where the anchors are the candidates, both inputs are one tensor, which receives its gradient once.
        of_candidates = None if problem.square else self.of_candidates
        return self.of_anchors, of_candidates, of_temperature, *self.of_parameters

    # ------------------------------------------------------------------------------------------ similarities

    def _of_similarities(self, tile: Tile) -> Float[Tensor, "r c"]:
        """The gradient of s; the gradients of the parameters of the weights are added too."""
        settings, rows, results = self.problem.settings, tile.rows, self.results
        of_log_sum = of_log_negatives = self.of_log_denominator[rows, None]
        apart = settings.denominator == "all" and not self.problem.is_softmax
        if apart:
            of_log_negatives = of_log_sum * self.negative_share[rows, None]
        of_s = self._negative_softmax(tile).mul_(of_log_negatives)
        if apart:
            positives = _masked_exp(tile.positive, tile.s - results.log_denominator[rows, None])
            of_s.addcmul_(of_log_sum, positives)
        if settings.form == "in":
            of_s.addcmul_(self.gradient[rows, None], self._positive_softmax(tile), value=-1)
        elif settings.denominator == "one":
            count, log_negatives = self.statistics.negative_count[rows], results.log_negatives[rows]
            pairs = pair_losses(self.problem, tile, count, log_negatives, derivatives_alone=True)
            of_s.addcmul_(self.scaled_gradient[rows, None] * tile.weights, pairs.by_s)
            self.of_temperature += (self.scaled_gradient[rows] * pairs.by_temperature).sum()
        else:
            of_s.addcmul_(self.scaled_gradient[rows, None], tile.weights, value=-1)
        self._add_to_weights(tile, of_log_negatives)
        return of_s

    def _of_log_denominator(self) -> Float[Tensor, " a"]:
        """The gradient of log D; with denominator `one`, of log N, the negatives' sum."""
        if self.problem.settings.form == "in":
            return self.gradient
        one = self.problem.settings.denominator == "one"
        return self.scaled_gradient * (self.statistics.negative_share if one else self.statistics.weight_sum)

    def _negative_softmax(self, tile: Tile) -> Float[Tensor, "r c"]:
        """∂ log N / ∂ s, N the negatives' sum."""
        rows, hard = tile.rows, self.problem.hard_negatives
        log_sum = _finite(self.statistics.log_negative_sum[rows])[:, None]
        softmax = _masked_exp(tile.negative, negative_exponents(self.problem, tile) - log_sum)
        if hard is None or hard.concentration == 0 or hard.detach:
            return softmax
        beta = hard.concentration
        log_sum = _finite(self.statistics.log_concentrated_sum[rows])[:, None]
        return (1 + beta) * softmax - beta * _masked_exp(tile.negative, beta * tile.s - log_sum)

    def _positive_softmax(self, tile: Tile) -> Float[Tensor, "r c"]:
        """W e^s / Σ W e^s, for the in form."""
        log_sum = _finite(self.statistics.log_weighted_sum[tile.rows])[:, None]
        return _masked_exp(tile.positive, tile.s + tile.log_weights() - log_sum)

    def _add_through_similarity(self, rows: slice, columns: slice, of_s: Float[Tensor, "r c"]) -> None:
        """Backpropagate through a similarity that is not the dot product."""
        problem, similarity = self.problem, self.problem.settings.similarity
        assert similarity is not None
        parameters: list[Tensor] = []
        if isinstance(similarity, nn.Module):
            parameters = [p for p in similarity.parameters() if p.requires_grad]
        with torch.enable_grad():
            anchors = problem.anchors[rows].detach().requires_grad_()
            candidates = problem.candidates[columns].detach().requires_grad_()
            values = similarity(anchors, candidates)
        self.of_inverse_temperature += (of_s * values.detach()).sum()
        inputs = [anchors, candidates, *parameters]
        of_values = of_s / problem.temperature
        of_anchors, of_candidates, *found = torch.autograd.grad(values, inputs, of_values, allow_unused=True)
        self.of_anchors[rows] += 0 if of_anchors is None else of_anchors
        if self.of_candidates is not None and of_candidates is not None:
            self.of_candidates[columns] += of_candidates
        self._add_to_parameters(parameters, tuple(found))

    # ----------------------------------------------------------------------------------------------- weights

    def _add_to_weights(self, tile: Tile, of_log_negatives: Float[Tensor, "r 1"]) -> None:
        """Backpropagate to the parameters of positive and negative weights."""
        problem, negatives = self.problem, self.problem.negative_affinity
        if positive_parameters := list(problem.affinity.parameters()):
            self._add_through_tile(positive_parameters, problem.affinity, tile, self._of_weights(tile))
        if negatives is not None and (negative_parameters := list(negatives.parameters())):
            gap = tile.s - _finite(self.results.log_negatives[tile.rows])[:, None]
            self._add_through_tile(
                negative_parameters, negatives, tile, of_log_negatives * _masked_exp(tile.negative, gap)
            )

    def _of_weights(self, tile: Tile) -> Float[Tensor, "r c"]:
        """The gradient of W, of which the row sum is a function too."""
        rows, settings, results = tile.rows, self.problem.settings, self.results
        if settings.form == "in":
            # ∂ log Σ W e^s / ∂W = e^s / Σ W e^s, the softmax over W; 1 replaces weights of 0 behind the mask.
            of_weights = -self._positive_softmax(tile) / torch.where(tile.positive, tile.weights, 1)
            of_sum = -1 / results.divisor[rows, None] if settings.row_normalize else 0.0
            return self.gradient[rows, None] * torch.where(tile.not_self, of_weights - of_sum, 0)
        if settings.denominator == "one":
            count, log_negatives = self.statistics.negative_count[rows], results.log_negatives[rows]
            losses = pair_losses(self.problem, tile, count, log_negatives).losses
        else:
            log_denominator = _finite(results.log_denominator[rows])[:, None]
            losses = torch.where(tile.positive, log_denominator - tile.s, 0)
        of_sum = results.losses[rows, None] if settings.row_normalize else 0.0
        return self.scaled_gradient[rows, None] * torch.where(tile.not_self, losses - of_sum, 0)

    def _add_through_tile(
        self, parameters: list[Float[Tensor, "..."]], affinity: Affinity, tile: Tile, of_weights: Float[Tensor, "r c"]
    ) -> None:
        with torch.enable_grad():
            weights = affinity.tile(tile.rows, tile.columns)
        found = torch.autograd.grad(weights, parameters, of_weights.to(weights.dtype), allow_unused=True)
        self._add_to_parameters(parameters, found)

    def _add_to_parameters(
        self, parameters: list[Float[Tensor, "..."]], found: tuple[Float[Tensor, "..."] | None, ...]
    ) -> None:
        for parameter, gradient in zip(parameters, found, strict=True):
            i = next(i for i, known in enumerate(self.parameters) if known is parameter)
            if gradient is not None:
                self.of_parameters[i] += gradient


def _masked_exp(mask: Bool[Tensor, "r c"], exponents: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    return torch.where(mask, exponents, EMPTY).exp_()


def _finite(log_sums: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    """Empty sums are used only behind a mask; 0 replaces their -inf, which would give NaN."""
    return torch.where(torch.isfinite(log_sums), log_sums, 0)
