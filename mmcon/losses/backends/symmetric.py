"""The quickest tiles: anchors are the candidates, and each unordered pair is visited once.

Serves the out form over all candidates, which is most of the family. Row i of the loss is

    ℓ_i = R_i lse_i - Σ_j Ŵ_ij s_ij          lse_i = log Σ_{k≠i} e^{s_ik},  R_i = Σ_j Ŵ_ij  (1 when rows are normalised)

and with incoming gradients g the gradient of s is G_ij = g_i (R_i e^{s_ij - lse_i} - Ŵ_ij). As s is symmetric, both
directions of a pair share one exponential:

    G_ij + G_ji = e^{s_ij} (u_i + u_j) - (v_i W_ij + v_j W_ji)         u = g R e^{-lse},  v = g / Σ_j W_ij

Only embeddings, lse and row sums are kept. That asks for e^{s} itself to
be finite, so it is for |s| below about 80 in float32 (unit rows: temperatures above .0125); `tiled` has the rest.
Weights with factors (class labels, multi-labels, time within groups) never become tiles: their part costs O(n).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmcon.affinity import Affinity, Factor, factor_sums
from mmcon.losses.backends.matmul import inner, times, transposed_times
from mmcon.losses.problem import Problem, RowLosses, refuse_double_backward

#: The quickest of 384 to 1024 on an AMD EPYC with 1 MiB of cache a core, by a tenth; a multiple of a vector's width.
TILE = 704


def fits(problem: Problem) -> bool:
    """Whether the problem is of this kind and its exponentials are finite."""
    plain = problem.square and problem.form == "out" and problem.denominator == "all"
    if not plain or problem.negatives is not None or problem.similarity is not None:
        return False
    if any(True for _ in problem.affinity.parameters()):
        return False
    n = len(problem.anchors)
    if not torch.equal(problem.self_index, torch.arange(n, device=problem.self_index.device)):
        return False
    norm = float(problem.anchors.detach().square().sum(1).max()) if n else 0.0
    return norm / float(problem.temperature.detach()) + math.log(n + 1) < _log_largest(problem.anchors.dtype)


def triangle_rows(problem: Problem, tile: int = TILE) -> RowLosses:
    """The loss of every anchor and which are valid, as `dense_rows`."""
    losses, valid = _Triangle.apply(problem.anchors, problem.temperature, problem.affinity, problem.row_normalize, tile)
    return RowLosses(losses, valid)


def _log_largest(dtype: torch.dtype) -> float:
    return 0.95 * math.log(torch.finfo(dtype).max)


class _Triangle(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, temperature: Tensor, affinity: Affinity, normalize: bool, tile: int
    ) -> tuple[Tensor, Tensor]:
        inverse = 1 / temperature
        tiles = _Tiles(z, inverse, tile)
        factors = affinity.factors()
        if factors is None:
            exponentials, weighted, sums, valid = _forward_by_tiles(tiles, affinity)
            pulled = None
        else:
            exponentials = _row_sums(tiles)
            sums, valid = factor_sums(factors, torch.arange(len(z), device=z.device))
            sums = sums.to(z.dtype)
            pulled = _without_self(factors, z)
            weighted = (pulled * z).sum(1) * inverse
        log_sum = torch.where(valid, exponentials, 1).log()
        divisor = torch.where(valid, sums, 1) if normalize else torch.ones_like(sums)
        losses = torch.where(valid, (sums * log_sum - weighted) / divisor, 0)
        ctx.save_for_backward(z, inverse, log_sum, sums, divisor, valid, *([] if pulled is None else [pulled]))
        ctx.affinity, ctx.factors, ctx.tile = affinity, factors, tile
        ctx.mark_non_differentiable(valid)
        return losses, valid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("tiled")
        z, inverse, log_sum, sums, divisor, valid, *pulled = ctx.saved_tensors
        v = torch.where(valid, gradients[0], 0) / divisor
        u = v * sums * torch.exp(-log_sum)
        tiles = _Tiles(z, inverse, ctx.tile)
        pull = _backward(tiles, u, v, None if ctx.factors else ctx.affinity)
        if ctx.factors:
            transposed = tuple(factor.transpose() for factor in ctx.factors)
            pull.addcmul_(v[:, None], pulled[0], value=-1).sub_(_without_self(transposed, v[:, None] * z))
        # Σ_ij G_ij ⟨z_i, z_j⟩, each pair having been counted from both ends.
        at_inverse = (z * pull).sum() / 2
        return pull.mul_(inverse), -at_inverse * inverse * inverse, None, None, None


class _Tiles:
    """Similarities of the upper triangle, tile after tile, and room for one more tile."""

    def __init__(self, z: Tensor, inverse: Tensor, tile: int) -> None:
        self.z, self.inverse, self.tile = z, inverse, tile
        self.room = z.new_empty(min(tile, max(len(z), 1)) ** 2)

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        n = len(self.z)
        blocks = [slice(start, min(start + self.tile, n)) for start in range(0, n, self.tile)]
        for i, rows in enumerate(blocks):
            scaled = self.z[rows] * self.inverse
            for columns in blocks[i:]:
                yield rows, columns, inner(scaled, self.z[columns])

    def spare(self, tile: Tensor) -> Tensor:
        """Memory of a tile's shape, used again each time."""
        return self.room[: tile.numel()].view(tile.shape)


def _row_sums(tiles: _Tiles) -> Tensor:
    """Σ_{k≠i} e^{s_ik}, each exponential serving both of its rows."""
    sums = tiles.z.new_zeros(len(tiles.z))
    for rows, columns, s in tiles:
        s.exp_()
        if rows == columns:
            s.fill_diagonal_(0)
        else:
            sums[columns] += s.sum(0)
        sums[rows] += s.sum(1)
    return sums


def _forward_by_tiles(tiles: _Tiles, affinity: Affinity) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of exponentials, of W s, and of W, and whether any weight is above 0, where W is read by tiles."""
    n = len(tiles.z)
    exponentials, weighted, sums = (tiles.z.new_zeros(n) for _ in range(3))
    valid = torch.zeros(n, dtype=torch.bool, device=tiles.z.device)
    symmetric = affinity.symmetric
    for rows, columns, s in tiles:
        sides = [(rows, 1, affinity.tile(rows, columns))]
        if rows == columns:
            sides[0] = (rows, 1, sides[0][2].clone().fill_diagonal_(0))
        elif symmetric:
            sides.append((columns, 0, sides[0][2]))
        else:
            sides.append((columns, 0, affinity.tile(columns, rows).T))
        product = tiles.spare(s)
        for i, (_, _, weights) in enumerate(sides):
            if i == 0 or not symmetric:
                torch.mul(s, weights, out=product)
            side, axis, _ = sides[i]
            weighted[side] += product.sum(axis)
            sums[side] += weights.sum(axis)
            valid[side] |= weights.amax(axis) > 0
        s.exp_()
        if rows == columns:
            s.fill_diagonal_(0)
        else:
            exponentials[columns] += s.sum(0)
        exponentials[rows] += s.sum(1)
    return exponentials, weighted, sums, valid


def _backward(tiles: _Tiles, u: Tensor, v: Tensor, affinity: Affinity | None) -> Tensor:
    """`Σ_j (G_ij + G_ji) z_j` for every row, the factors' part left out."""
    z = tiles.z
    pull = torch.zeros_like(z)
    symmetric = affinity is not None and affinity.symmetric
    for rows, columns, s in tiles:
        both = tiles.spare(s)
        s.exp_().mul_(torch.add(u[rows, None], u[columns], out=both))
        if affinity is not None:
            weights = affinity.tile(rows, columns)
            if symmetric:
                torch.add(v[rows, None], v[columns], out=both)
                s.addcmul_(both, weights.to(s.dtype), value=-1)
            else:
                s.addcmul_(v[rows, None], weights.to(s.dtype), value=-1)
                s.addcmul_(v[columns], affinity.tile(columns, rows).T.to(s.dtype), value=-1)
        if rows == columns:
            s.fill_diagonal_(0)
        else:
            pull[columns] += transposed_times(s, z[rows])
        pull[rows] += times(s, z[columns])
    return pull


def _without_self(factors: tuple[Factor, ...], z: Tensor) -> Tensor:
    """`W z` with the diagonal of W left out."""
    own = torch.arange(len(z), device=z.device)
    first, *rest = (
        factor.times(z).addcmul_(factor.at(own, own).to(z.dtype)[:, None], z, value=-1) for factor in factors
    )
    return sum(rest, first)
