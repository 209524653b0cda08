"""Tiled backend for weights without factors, in every form without hard negatives: one exponential a pair and pass.

With e_ij = e^{s_ij} and factors M_ij of the terms in the denominator (1, V or 0), the sums of anchor i are

    D_i = Σ_j M_ij e_ij        A_i = Σ_j W_ij e_ij        Q_i = Σ_j W_ij / (e_ij + D_i)

With incoming gradients g, R_i = Σ_j Ŵ_ij (1 when rows are normalized) and v_i = g_i Ŵ_ij / W_ij, the losses and the
gradients of s are

    out:       ℓ_i = R_i log D_i - Σ_j Ŵ_ij s_ij           G_ij = g_i R_i M_ij e_ij / D_i - v_i W_ij
    out, one:  ℓ_i = Σ_j Ŵ_ij log(1 + D_i / e_ij)          G_ij = v_i Q_i M_ij e_ij - v_i W_ij D_i / (e_ij + D_i)
    in:        ℓ_i = log D_i - log A_i + log Σ_j W_ij       G_ij = g_i e_ij (M_ij / D_i - W_ij / A_i)

Where the anchors are the candidates, a pair is visited once, and its exponential serves both rows; so do its weights
where they are symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmcon.affinity import Affinity
from mmcon.losses.backends.autograd_node import BackwardState, ForwardPass, LossNode, PassKind
from mmcon.losses.backends.exponentials import LOG_2, Block, PairTiles, are_exact, by_threads, tile_gradients, transpose
from mmcon.losses.loss_inputs import AnchorLosses, Problem

SumsOfTiles = Callable[[PairTiles, Sequence[Block]], tuple[Float[Tensor, " a"], ...]]


def supports(problem: Problem) -> bool:
    """Whether the problem has these forms, and no parameters but the embeddings and the temperature."""
    settings, negatives = problem.settings, problem.negative_affinity
    if settings.similarity is not None or problem.hard_negatives is not None:
        return False
    if any(True for _ in problem.affinity.parameters()):
        return False
    if negatives is not None and any(True for _ in negatives.parameters()):
        return False
    return not problem.square or problem.is_diagonal()


def weight_tile_losses(problem: Problem, tile_size: int) -> AnchorLosses | None:
    """The losses of a problem that `supports` accepts; None where `weight_tile_pass` is."""
    with torch.no_grad():
        found = weight_tile_pass(problem, tile_size)
    return None if found is None else found.losses()


def weight_tile_pass(problem: Problem, tile_size: int) -> WeightedPass | None:
    """The sums of a problem that `supports` accepts; None where exponentials leave the range of the dtype."""
    return _pass(_Weights.of(problem, tile_size)) if _in_range(problem) else None


def restored(problem: Problem, tile_size: int, saved: Float[Tensor, "_ a"]) -> WeightedPass:
    """The pass of a problem from what it saved."""
    weight_sum, denominators, weighted, losses, valid = saved[:5]
    divisor = _divisor(problem, valid > 0, weight_sum)
    return WeightedPass(_Weights.of(problem, tile_size), valid > 0, divisor, weight_sum, denominators, weighted, losses)


def _in_range(problem: Problem) -> bool:
    """Whether no exponential, and with denominator `one` no ratio D / e, comes near the limits of the dtype."""
    largest = [float(rows.norm(dim=1).amax()) if len(rows) else 0.0 for rows in (problem.anchors, problem.candidates)]
    share = 0.4 if problem.settings.denominator == "one" else 0.9
    return largest[0] * largest[1] <= -share * math.log(torch.finfo(problem.anchors.dtype).tiny) * float(
        problem.temperature
    )


class _Side(NamedTuple):
    """The weights of a tile, for its rows as anchors, for its columns, or for both.

    Attributes:
        weights: W, 0 for self pairs.
        factors: M; None: 1.
        anchors: slices of the anchors, with the axis of their candidates.
    """

    weights: Float[Tensor, "r c"]
    factors: Float[Tensor, "r c"] | None
    anchors: tuple[tuple[slice, int], ...]

    def add(self, sums: Float[Tensor, " a"], values: Float[Tensor, "r c"]) -> None:
        """Add the values of a tile to the sums of its anchors."""
        for anchors, axis in self.anchors:
            sums[anchors] += values.sum(axis)

    def spread(self, values: Float[Tensor, " a"], out: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        """The values of the anchors of each pair, added where both rows are anchors; written to `out`."""
        first, *rest = (_along(values[anchors], axis) for anchors, axis in self.anchors)
        return torch.add(first, rest[0], out=out) if rest else out.copy_(first)


@dataclass(frozen=True)
class _Weights:
    """The pairs of a problem with their weights.

    Attributes:
        problem: the inputs.
        pairs: its pairs, in tiles.
        symmetric: whether the weights of a pair hold for both rows.
    """

    problem: Problem
    pairs: PairTiles
    symmetric: bool

    @staticmethod
    def of(problem: Problem, tile_size: int) -> _Weights:
        """The weights of a problem."""
        anchors, negatives = problem.anchors.detach(), problem.negative_affinity
        pairs = PairTiles(
            anchors,
            anchors if problem.square else problem.candidates.detach(),
            1 / problem.temperature.detach(),
            tile_size,
            self_index=problem.self_index if problem.has_self and not problem.square else None,
        )
        symmetric = problem.affinity.symmetric and (negatives is None or negatives.symmetric)
        return _Weights(problem, pairs, symmetric)

    def sides(
        self, pairs: PairTiles, rows: slice, columns: slice, *, gradient: bool = False, factors: bool = True
    ) -> list[_Side]:
        """The weights of a tile for its rows, and for its columns where these are anchors too.

        A tile on the diagonal has both directions in its rows: its sums have one side, its gradient two. Without
        `factors` those of the terms in the denominator are left out.
        """
        both = pairs.square if gradient else pairs.has_second_direction(rows, columns)
        weights = self._of_tile(pairs, rows, columns, transposed=False, factors=factors)
        if not both:
            return [_Side(*weights, ((rows, 1),))]
        if self.symmetric:
            return [_Side(*weights, ((rows, 1), (columns, 0)))]
        reverse = self._of_tile(pairs, rows, columns, transposed=True, factors=factors)
        return [_Side(*weights, ((rows, 1),)), _Side(*reverse, ((columns, 0),))]

    def _of_tile(
        self, pairs: PairTiles, rows: slice, columns: slice, *, transposed: bool, factors: bool
    ) -> tuple[Float[Tensor, "r c"], Float[Tensor, "r c"] | None]:
        """W and M of a tile; `transposed`: of its columns for its rows."""
        problem, dtype = self.problem, pairs.anchors.dtype
        at = (columns, rows) if transposed else (rows, columns)

        def tile(affinity: Affinity) -> Float[Tensor, "r c"]:
            values = affinity.tile(*at).to(dtype)
            return transpose(values) if transposed else values

        weights = pairs.without_self(rows, columns, tile(problem.affinity))
        if problem.is_softmax or not factors:
            return weights, None
        # Numbers, not booleans, whose products and `where` take ten to thirty times as long. Self pairs have a factor
        # here, and an exponential of 0.
        is_zero = torch.eq(weights, 0, out=pairs.buffer(weights, 3 + transposed))
        if problem.negative_affinity is None:
            return weights, is_zero
        terms = tile(problem.negative_affinity)
        if not problem.all_are_negatives:
            terms = terms * is_zero
        return weights, terms + (1 - is_zero) if problem.settings.denominator == "all" else terms


@dataclass(frozen=True)
class WeightedPass(BackwardState, ForwardPass):
    """What the backward pass needs beside the embeddings.

    Attributes:
        weights: of the pairs.
        valid: whether the anchor has a loss.
        divisor: Σ W, or 1.
        weight_sum: Σ W.
        denominators: D; 1 for invalid anchors.
        weighted: A in the form `in`, Q with denominator `one`.
        values: the losses.
    """

    weights: _Weights
    valid: Bool[Tensor, " a"]
    divisor: Float[Tensor, " a"]
    weight_sum: Float[Tensor, " a"]
    denominators: Float[Tensor, " a"]
    weighted: Float[Tensor, " a"]
    values: Float[Tensor, " a"]

    @property
    def kind(self) -> PassKind:
        """The path of this module."""
        return PassKind.WEIGHTS

    def losses(self) -> AnchorLosses:
        """The losses, with their node."""
        problem = self.weights.problem
        candidates = None if problem.square else problem.candidates
        (losses,) = LossNode.apply(self, problem.anchors, candidates, problem.temperature, self.values)
        return AnchorLosses(losses, self.valid)

    def saved(self) -> Float[Tensor, "5 a"]:
        """The sums, the losses, and which anchors have one."""
        valid = self.valid.to(self.values.dtype)
        return torch.stack([self.weight_sum, self.denominators, self.weighted, self.values, valid])

    @property
    def pairs(self) -> PairTiles:
        """The pairs of the problem."""
        return self.weights.pairs

    def of_rows(
        self, gradients: Sequence[Float[Tensor, " a"]], *, of_candidates: bool
    ) -> tuple[Float[Tensor, "a d"], Float[Tensor, "c d"] | None]:
        """The gradients of the embeddings, times the temperature."""
        settings = self.weights.problem.settings
        form = "one" if settings.denominator == "one" else settings.form
        g = torch.where(self.valid, gradients[0], 0)
        v, d = g / self.divisor, self.denominators
        if form == "in":
            of_exponentials, of_weights = g / d, g / torch.where(self.valid, self.weighted, 1)
        else:
            of_exponentials = v * (self.weighted if form == "one" else self.weight_sum / d)
            of_weights = v
        of_positives = v * d

        def of_tile(pairs: PairTiles, rows: slice, columns: slice, s: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
            e, total = s.exp2_(), None
            for i, side in enumerate(self.weights.sides(pairs, rows, columns, gradient=True)):
                other, part = pairs.buffer(e), side.spread(of_exponentials, pairs.buffer(e, 1 + i))
                if side.factors is not None:
                    part.mul_(side.factors)
                if form == "in":
                    part.addcmul_(side.spread(of_weights, other), side.weights, value=-1).mul_(e)
                elif form == "out":
                    part.mul_(e).addcmul_(side.spread(of_weights, other), side.weights, value=-1)
                else:
                    part.mul_(e)
                    for anchors, axis in side.anchors:
                        share = torch.add(e, _along(d[anchors], axis), out=other).reciprocal_()
                        part.addcmul_(share.mul_(side.weights), _along(of_positives[anchors], axis), value=-1)
                total = part if total is None else total.add_(part)
            assert total is not None
            return total

        return tile_gradients(self.pairs, of_tile, of_candidates=of_candidates)


def _divisor(problem: Problem, valid: Bool[Tensor, " a"], weight_sum: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
    return torch.where(valid, weight_sum, 1) if problem.settings.row_normalize else torch.ones_like(weight_sum)


def _pass(weights: _Weights) -> WeightedPass | None:
    """The sums and the losses; None where a sum is not exact."""
    settings = weights.problem.settings
    weight_sum, denominators, weighted = _sums(weights)
    valid = weight_sum > 0
    if settings.denominator == "negatives":
        valid = valid & (denominators > 0)
    counts = torch.full_like(weights.problem.self_index, len(weights.pairs.candidates))
    # A denominator without a term is 0, exactly; the sum over positives has one for each valid anchor.
    if not are_exact(denominators, torch.where(valid & (denominators != 0), counts, 0)):
        return None
    if settings.form == "in" and not are_exact(weighted, torch.where(valid, counts, 0)):
        return None
    divisor = _divisor(weights.problem, valid, weight_sum)
    known = torch.where(valid, denominators, 1)
    if settings.denominator == "one":
        losses, weighted = _pair_sums(weights, known)
        if not are_exact(weighted, torch.where(valid, counts, 0)):
            return None
        losses = losses / divisor
    elif settings.form == "in":
        losses = known.log() - torch.where(valid, weighted, 1).log() + divisor.log()
    else:
        # With normalized rows log D stays as it is: times the weights and divided by them again it would lose digits.
        log_part = known.log() if settings.row_normalize else weight_sum * known.log()
        losses = log_part - weighted / divisor
    return WeightedPass(weights, valid, divisor, weight_sum, known, weighted, torch.where(valid, losses, 0))


def _sums(weights: _Weights) -> tuple[Float[Tensor, " a"], ...]:
    """Σ W, D, and A or Σ W s, of every anchor."""
    settings = weights.problem.settings

    def of_tiles(pairs: PairTiles, tiles: Sequence[Block]) -> tuple[Float[Tensor, " a"], ...]:
        weight_sum, denominators, weighted = (pairs.anchors.new_zeros(len(pairs.anchors)) for _ in range(3))
        for rows, columns, s in pairs.similarities(tiles):
            sides = weights.sides(pairs, rows, columns)
            for side in sides:
                side.add(weight_sum, side.weights)
                if settings.form == "out" and settings.denominator != "one":
                    side.add(weighted, torch.mul(s, side.weights, out=pairs.buffer(s)))
            e = s.exp2_()
            pairs.leave_out(rows, columns, e)
            for side in sides:
                terms = e if side.factors is None else torch.mul(e, side.factors, out=pairs.buffer(e))
                side.add(denominators, terms)
                if settings.form == "in":
                    side.add(weighted, torch.mul(e, side.weights, out=pairs.buffer(e)))
        return weight_sum, denominators, weighted.mul_(LOG_2) if settings.form == "out" else weighted

    return _total(weights, of_tiles)


def _pair_sums(weights: _Weights, denominators: Float[Tensor, " a"]) -> tuple[Float[Tensor, " a"], ...]:
    """`Σ_j W_ij log(1 + D_i / e_ij)` and Q, which need the complete sums of negatives."""

    def of_tiles(pairs: PairTiles, tiles: Sequence[Block]) -> tuple[Float[Tensor, " a"], ...]:
        losses, shares = (pairs.anchors.new_zeros(len(pairs.anchors)) for _ in range(2))
        for rows, columns, s in pairs.similarities(tiles):
            e = s.exp2_()
            for side in weights.sides(pairs, rows, columns, factors=False):
                for anchors, axis in side.anchors:
                    own = _along(denominators[anchors], axis)
                    shares[anchors] += torch.add(e, own, out=pairs.buffer(e)).reciprocal_().mul_(side.weights).sum(axis)
                    found = torch.div(own, e, out=pairs.buffer(e)).log1p_().mul_(side.weights)
                    losses[anchors] += found.sum(axis)
        return losses, shares

    return _total(weights, of_tiles)


def _total(weights: _Weights, of_tiles: SumsOfTiles) -> tuple[Float[Tensor, " a"], ...]:
    """Sums over all tiles, from those of the parts of all threads."""
    first, *rest = by_threads(weights.pairs, of_tiles)
    for others in rest:
        for of_all, of_part in zip(first, others, strict=True):
            of_all.add_(of_part)
    return first


def _along(values: Float[Tensor, " n"], axis: int) -> Float[Tensor, "_ _"]:
    """The values of anchors, to be combined with a tile whose candidates are along an axis."""
    return values[:, None] if axis == 1 else values[None]
