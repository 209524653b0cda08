"""Tiled backend for the out form over all candidates, which most presets have: one exponential a pair.

The loss of anchor i is

    ℓ_i = R_i lse_i - Σ_j Ŵ_ij s_ij          lse_i = log Σ_{k≠i} e^{s_ik},  R_i = Σ_j Ŵ_ij  (1 when rows are normalized)

and with incoming gradients g the gradient of s is G_ij = g_i (R_i e^{s_ij - lse_i} - Ŵ_ij). Where the anchors are the
candidates, and for both directions of a pair of modalities, the directions of a pair of rows share one exponential:

    G_ij + G_ji = e^{s_ij} (u_i + u_j) - (v_i W_ij + v_j W_ji)         u = g R e^{-lse},  v = g / Σ_j W_ij

Only embeddings, lse and row sums are kept between the passes. Weights with factors (class labels, multi-labels, time
within groups) are never computed as tiles: their terms cost O(n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mmcon.affinity import Factor, factor_row_sums
from mmcon.losses.backends.autograd_node import BackwardState, ForwardPass, LossNode, PassKind
from mmcon.losses.backends.exponentials import (
    LOG_2,
    PairTiles,
    Term,
    TileFunction,
    are_exact,
    exponential_gradients,
    exponential_sums,
    transpose,
)
from mmcon.losses.loss_inputs import AnchorLosses, Problem


def supports(problem: Problem) -> bool:
    """Whether the problem has this form."""
    settings = problem.settings
    if settings.form != "out" or settings.denominator != "all":
        return False
    if settings.negative_weights is not None or settings.similarity is not None:
        return False
    if any(True for _ in problem.affinity.parameters()):
        return False
    return not problem.square or problem.is_diagonal()


def plain_losses(problem: Problem, reverse: Problem | None, tile_size: int) -> list[AnchorLosses] | None:
    """The losses of a problem, and of its reverse; None where `plain_pass` is."""
    with torch.no_grad():
        found = plain_pass(problem, reverse, tile_size)
    return None if found is None else found.by_direction()


def plain_pass(problem: Problem, reverse: Problem | None, tile_size: int) -> PlainPass | None:
    """The sums of a problem, and of its reverse; None where exponentials leave the range of the dtype.

    None too for one problem whose weights have no factors: `weight_tiles` computes their sums in several threads.

    Args:
        problem: one that `supports` accepts.
        reverse: the candidates of `problem` as anchors, its anchors as candidates; None: not asked for.
        tile_size: the rows and the columns of a tile.
    """
    first = _Direction.of(problem)
    if reverse is None and first.factors is None:
        return None
    second = first if problem.square else None if reverse is None else _Direction.of(reverse)
    found = PlainPass(problem, first, second, tile_size, both=reverse is not None)
    ((of_rows, of_columns),) = exponential_sums(found.pairs, read=found.reader())
    if not first.has_exact(of_rows) or not (second is None or second.has_exact(of_columns)):
        return None
    for direction, sums in zip(found.directions, (of_rows, of_columns), strict=False):
        direction.complete(torch.where(direction.valid, sums, 1).log())
    return found


def restored(problem: Problem, tile_size: int, saved: Float[Tensor, "_ a"]) -> PlainPass:
    """The pass of a problem without its reverse from what it saved."""
    first = _Direction.of(problem)
    first.complete(saved[0])
    return PlainPass(problem, first, first if problem.square else None, tile_size, both=False)


@dataclass
class _Direction:
    """The weights of anchors for their candidates, and the sums of each anchor.

    Attributes:
        problem: of this direction.
        factors: of the weights, or None.
        products: Σ_j W_ij c_j, from factors.
        weighted, weights: Σ W s and Σ W; from tiles, complete after the pass over them.
        valid: whether any weight is above 0.
        log_sum: lse; 0 for invalid anchors.
        divisor: the sum of weights, or 1.
    """

    problem: Problem
    factors: tuple[Factor, ...] | None
    products: Float[Tensor, "a d"] | None
    weighted: Float[Tensor, " a"]
    weights: Float[Tensor, " a"]
    valid: Bool[Tensor, " a"]
    log_sum: Float[Tensor, " a"]
    divisor: Float[Tensor, " a"]

    @staticmethod
    def of(problem: Problem) -> _Direction:
        """The direction before the pass over the tiles."""
        z, factors = problem.anchors, problem.affinity.factors()
        zeros = z.new_zeros(len(z))
        if factors is None:
            valid = torch.zeros(len(z), dtype=torch.bool, device=z.device)
            return _Direction(problem, None, None, zeros, zeros.clone(), valid, zeros, zeros)
        products = _product(factors, problem.candidates, problem)
        weights, valid = factor_row_sums(factors, problem.self_index if problem.has_self else None)
        weighted = (products * z).sum(1) * (1 / problem.temperature)
        return _Direction(problem, factors, products, weighted, weights.to(z.dtype), valid, zeros, zeros)

    def has_exact(self, sums: Float[Tensor, " a"]) -> bool:
        """Whether sums of exponentials are exact, for anchors that have candidates."""
        return are_exact(sums, len(self.problem.candidates) - (self.problem.self_index >= 0).long())

    def complete(self, log_sum: Float[Tensor, " a"]) -> None:
        """Set what follows from the sums over all tiles."""
        if self.factors is None:
            self.weighted = self.weighted * LOG_2
        normalize, self.log_sum = self.problem.settings.row_normalize, log_sum
        self.divisor = torch.where(self.valid, self.weights, 1) if normalize else torch.ones_like(self.weights)

    def losses(self) -> Float[Tensor, " a"]:
        """The losses, from complete sums."""
        normalize, valid = self.problem.settings.row_normalize, self.valid
        # With normalized rows the log-sum stays as it is: times the weights and divided by them it would lose digits.
        log_part = self.log_sum if normalize else self.weights * self.log_sum
        return torch.where(valid, log_part - self.weighted / self.divisor, 0)

    def add(self, rows: slice, axis: int, weights: Float[Tensor, "_ _"], product: Float[Tensor, "_ _"]) -> None:
        """Add the weights of a tile, and their products with similarities, over an axis."""
        self.weighted[rows] += product.sum(axis)
        self.weights[rows] += weights.sum(axis)
        self.valid[rows] |= weights.amax(axis) > 0

    def coefficients(self, gradients: Shaped[Tensor, " a"]) -> Float[Tensor, " a"]:
        """v, from the gradients of the losses."""
        return torch.where(self.valid, gradients, 0) / self.divisor

    def softmax_factors(self, v: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """u, the factors of exponentials in the gradient of s."""
        return v * self.weights * torch.exp(-self.log_sum)

    def subtract_numerator(
        self, v: Float[Tensor, " a"], of_anchors: Float[Tensor, "a d"], of_candidates: Float[Tensor, "c d"] | None
    ) -> None:
        """Subtract the gradient of Σ_i v_i Σ_j W_ij ⟨a_i, c_j⟩, from factors."""
        if self.factors is None or self.products is None:
            return
        # In place: copies of the embeddings were half of the extra memory.
        of_anchors.addcmul_(v[:, None], self.products, value=-1)
        if of_candidates is not None:
            scaled = v[:, None] * self.problem.anchors.detach()
            of_candidates.sub_(_product(self.factors, scaled, self.problem, transposed=True))


@dataclass(frozen=True)
class PlainPass(BackwardState, ForwardPass):
    """What the backward pass needs beside the embeddings."""

    problem: Problem
    first: _Direction
    second: _Direction | None
    tile_size: int
    both: bool

    @property
    def kind(self) -> PassKind:
        """The path of this module."""
        return PassKind.PLAIN

    @property
    def directions(self) -> list[_Direction]:
        """The directions whose losses are asked for."""
        return [self.first] if self.second is None or not self.both else [self.first, self.second]

    def losses(self) -> AnchorLosses:
        """The losses of the first direction."""
        return self.by_direction()[0]

    def by_direction(self) -> list[AnchorLosses]:
        """The losses of each direction."""
        problem = self.problem
        with torch.no_grad():
            losses = [direction.losses() for direction in self.directions]
        candidates = None if problem.square else problem.candidates
        found = LossNode.apply(self, problem.anchors, candidates, problem.temperature, *losses)
        return [AnchorLosses(x, direction.valid) for x, direction in zip(found, self.directions, strict=True)]

    def saved(self) -> Float[Tensor, "1 a"]:
        """The logarithms of the sums; the rest costs O(n)."""
        return self.first.log_sum[None]

    @property
    def pairs(self) -> PairTiles:
        """The pairs of the problem."""
        problem = self.problem
        anchors = problem.anchors.detach()
        return PairTiles(
            anchors,
            anchors if problem.square else problem.candidates.detach(),
            1 / problem.temperature.detach(),
            self.tile_size,
            both=self.both,
            self_index=problem.self_index if problem.has_self and not problem.square else None,
        )

    def of_rows(
        self, gradients: Sequence[Shaped[Tensor, " _"]], *, of_candidates: bool
    ) -> tuple[Float[Tensor, "a d"], Float[Tensor, "c d"] | None]:
        """The gradients of the embeddings, times the temperature."""
        first, second = self.first, self.second
        v = first.coefficients(gradients[0])
        v_second = v if second is first else None if second is None else second.coefficients(gradients[1])
        of_columns = None if second is None or v_second is None else second.softmax_factors(v_second)
        term = Term(1.0, first.softmax_factors(v), of_columns)
        of_anchors, found = exponential_gradients(
            self.pairs, [term], self.subtracter(v, v_second), of_candidates=of_candidates or self.both
        )
        first.subtract_numerator(v, of_anchors, found)
        if self.both and second is not None and v_second is not None and found is not None:
            second.subtract_numerator(v_second, found, of_anchors)
        return of_anchors, found

    @property
    def symmetric(self) -> bool:
        """Whether one tile of weights serves both directions."""
        return self.first is self.second and self.problem.affinity.symmetric

    def _needs_tiles(self) -> bool:
        return any(direction is not None and direction.factors is None for direction in (self.first, self.second))

    def reader(self) -> TileFunction | None:
        """Adds the weights of tiles to the sums of the directions; None where all weights have factors."""
        first, second, symmetric = self.first, self.second, self.symmetric

        def read(tiles: PairTiles, rows: slice, columns: slice, s: Float[Tensor, "r c"]) -> None:
            weights = product = tiles.buffer(s)
            if first.factors is None:
                weights = tiles.without_self(rows, columns, first.problem.affinity.tile(rows, columns))
                product = torch.mul(s, weights, out=product)
                first.add(rows, 1, weights, product)
            if second is None or second.factors is not None or not tiles.has_second_direction(rows, columns):
                return
            if not symmetric:
                weights = transpose(second.problem.affinity.tile(columns, rows))
                product = torch.mul(s, weights, out=tiles.buffer(s))
            second.add(columns, 0, weights, product)

        return read if self._needs_tiles() else None

    def subtracter(self, v: Float[Tensor, " a"], v_second: Float[Tensor, " c"] | None) -> TileFunction | None:
        """Subtracts `v_i W_ij`, and `v_j W_ji` of the other direction, from tiles of the gradient."""
        first, second, symmetric = self.first, self.second, self.symmetric

        def subtract(tiles: PairTiles, rows: slice, columns: slice, of_s: Float[Tensor, "r c"]) -> None:
            factor = v[rows, None]
            if symmetric:
                factor = torch.add(factor, v[columns], out=tiles.buffer(of_s))
            if first.factors is None:
                of_s.addcmul_(factor, first.problem.affinity.tile(rows, columns).to(of_s.dtype), value=-1)
            if second is not None and second.factors is None and v_second is not None and not symmetric:
                reverse = transpose(second.problem.affinity.tile(columns, rows))
                of_s.addcmul_(v_second[columns], reverse.to(of_s.dtype), value=-1)

        return subtract if self._needs_tiles() else None


def _product(
    factors: tuple[Factor, ...], x: Float[Tensor, "_ d"], problem: Problem, *, transposed: bool = False
) -> Float[Tensor, "_ d"]:
    """`W x`, or `Wᵀ x`, without self pairs."""
    total, own = None, problem.self_index
    for factor in factors:
        product = (factor.transpose() if transposed else factor).matmul(x)
        if problem.has_self:
            column = own.clamp_min(0)
            weights = factor.weights_at(torch.arange(len(own), device=own.device), column).to(x.dtype) * (own >= 0)
            if problem.square:
                product.addcmul_(weights[:, None], x, value=-1)
            elif transposed:
                product.index_add_(0, column, weights[:, None] * x, alpha=-1)
            else:
                product.addcmul_(weights[:, None], x[column], value=-1)
        total = product if total is None else total.add_(product)
    assert total is not None
    return total
