"""Tiled backend for anchors that are the candidates: each pair is computed once (upper triangle).

It supports the out form over all candidates, which most presets have. The loss of row i is

    ℓ_i = R_i lse_i - Σ_j Ŵ_ij s_ij          lse_i = log Σ_{k≠i} e^{s_ik},  R_i = Σ_j Ŵ_ij  (1 when rows are normalized)

and with incoming gradients g the gradient of s is G_ij = g_i (R_i e^{s_ij - lse_i} - Ŵ_ij). As s is symmetric, both
directions of a pair share one exponential:

    G_ij + G_ji = e^{s_ij} (u_i + u_j) - (v_i W_ij + v_j W_ji)         u = g R e^{-lse},  v = g / Σ_j W_ij

Only embeddings, lse and row sums are kept between the passes. e^{s} itself must be finite, so the backend requires |s|
below about 80 in float32 (unit rows: temperatures above .0125); `tiled` handles the rest. Weights with factors (class
labels, multi-labels, time within groups) are never computed as tiles: their terms cost O(n).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mmcon.affinity import Affinity, Factor, factor_row_sums
from mmcon.losses.backends.matmul import matmul_nn, matmul_nt, matmul_tn
from mmcon.losses.problem import AnchorLosses, Problem, check_single_backward

#: The fastest of 384 to 1024 on an AMD EPYC with 1 MiB of cache a core, by a tenth; a multiple of a vector's width.
TILE_SIZE = 704


def supports(problem: Problem) -> bool:
    """Whether the problem has this form and its exponentials are finite."""
    settings = problem.settings
    plain = problem.square and settings.form == "out" and settings.denominator == "all"
    if not plain or settings.negative_weights is not None or settings.similarity is not None:
        return False
    if any(True for _ in problem.affinity.parameters()):
        return False
    n = len(problem.anchors)
    if not (problem.diagonal or torch.equal(problem.self_index, torch.arange(n, device=problem.self_index.device))):
        return False
    # |s| is at most the largest squared norm over T (Cauchy-Schwarz); log(n + 1) bounds the growth of a row's sum.
    norm = float(problem.anchors.detach().square().sum(1).max()) if n else 0.0
    log_largest = 0.95 * math.log(torch.finfo(problem.anchors.dtype).max)
    return norm / float(problem.temperature.detach()) + math.log(n + 1) < log_largest


def symmetric_losses(problem: Problem, tile_size: int = TILE_SIZE) -> AnchorLosses:
    """The loss of each anchor, and whether the anchor is valid."""
    losses, valid = _SymmetricLoss.apply(
        problem.anchors, problem.temperature, problem.affinity, problem.settings.row_normalize, tile_size
    )
    return AnchorLosses(losses, valid)


class _SymmetricLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Float[Tensor, "n d"],
        temperature: Float[Tensor, ""],
        affinity: Affinity,
        row_normalize: bool,
        tile_size: int,
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        inverse = 1 / temperature
        tiles = _TriangleTiles(z, inverse, tile_size)
        factors, products = affinity.factors(), []
        if factors is None:
            sums = _sums_by_tiles(tiles, affinity)
        else:
            exponentials = _exponential_sums(tiles)
            weight_sum, valid = factor_row_sums(factors, torch.arange(len(z), device=z.device))
            products = [_times_without_diagonal(factors, z)]
            sums = _Sums(exponentials, (products[0] * z).sum(1) * inverse, weight_sum.to(z.dtype), valid)
        valid, weights = sums.valid, sums.weights
        # No shift by a row's maximum: `supports` bounds every exponential and every sum.
        log_sum = torch.where(valid, sums.exponentials, 1).log()
        divisor = torch.where(valid, weights, 1) if row_normalize else torch.ones_like(weights)
        # With normalized rows the log-sum stays as it is: times the weights and divided by them it would lose digits.
        log_part = log_sum if row_normalize else weights * log_sum
        losses = torch.where(valid, log_part - sums.weighted / divisor, 0)
        ctx.save_for_backward(z, inverse, log_sum, weights, divisor, valid, *products)
        ctx.affinity, ctx.factors, ctx.tile_size = affinity, factors, tile_size
        ctx.mark_non_differentiable(valid)
        return losses, valid

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, " n"]) -> tuple[Float[Tensor, "..."] | None, ...]:
        check_single_backward("tiled")
        z, inverse, log_sum, weights, divisor, valid, *products = ctx.saved_tensors
        v = torch.where(valid, gradients[0], 0) / divisor
        u = v * weights * torch.exp(-log_sum)
        tiles = _TriangleTiles(z, inverse, ctx.tile_size)
        of_z = _gradient_by_tiles(tiles, u, v, None if ctx.factors else ctx.affinity)
        if ctx.factors:
            transposed = tuple(factor.transpose() for factor in ctx.factors)
            # In place: copies of the embeddings were half of the extra memory.
            of_z.addcmul_(v[:, None], products[0], value=-1).sub_(_times_without_diagonal(transposed, v[:, None] * z))
        # Σ_ij G_ij ⟨z_i, z_j⟩, each pair counted from both ends.
        of_inverse = (z * of_z).sum() / 2
        return of_z.mul_(inverse), -of_inverse * inverse * inverse, None, None, None


class _TriangleTiles:
    """Similarities of the upper triangle, tile by tile, and a buffer for one more tile."""

    def __init__(self, z: Float[Tensor, "n d"], inverse: Float[Tensor, ""], tile_size: int) -> None:
        self.z, self.inverse, self.tile_size = z, inverse, tile_size
        self.memory = z.new_empty(min(tile_size, max(len(z), 1)) ** 2)

    def __iter__(self) -> Iterator[tuple[slice, slice, Float[Tensor, "r c"]]]:
        n = len(self.z)
        tiles = [slice(start, min(start + self.tile_size, n)) for start in range(0, n, self.tile_size)]
        for i, rows in enumerate(tiles):
            scaled = self.z[rows] * self.inverse
            for columns in tiles[i:]:
                yield rows, columns, matmul_nt(scaled, self.z[columns])

    def buffer(self, tile: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        """Memory of the shape of a tile, reused by the next call."""
        return self.memory[: tile.numel()].view(tile.shape)


class _Sums(NamedTuple):
    """For each row Σ e^s, Σ W s and Σ W over all others, and whether any weight is above 0."""

    exponentials: Float[Tensor, " n"]
    weighted: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    valid: Bool[Tensor, " n"]


def _exponential_sums(tiles: _TriangleTiles) -> Float[Tensor, " n"]:
    """Σ_{k≠i} e^{s_ik}; each exponential is added to both of its rows."""
    sums = tiles.z.new_zeros(len(tiles.z))
    for rows, columns, s in tiles:
        _add_exponentials(sums, rows, columns, s)
    return sums


def _add_exponentials(sums: Float[Tensor, " n"], rows: slice, columns: slice, s: Float[Tensor, "r c"]) -> None:
    """Add e^s to the sums of both sides; overwrites s."""
    s.exp_()
    if rows == columns:
        s.fill_diagonal_(0)
    else:
        sums[columns] += s.sum(0)
    sums[rows] += s.sum(1)


def _sums_by_tiles(tiles: _TriangleTiles, affinity: Affinity) -> _Sums:
    """The sums where W is read by tiles."""
    n = len(tiles.z)
    exponentials, weighted, weight_sum = (tiles.z.new_zeros(n) for _ in range(3))
    valid = torch.zeros(n, dtype=torch.bool, device=tiles.z.device)
    symmetric = affinity.symmetric
    for rows, columns, s in tiles:
        weights = affinity.tile(rows, columns)
        if rows == columns:
            directions = [(rows, 1, weights.clone().fill_diagonal_(0))]
        else:
            reverse = weights if symmetric else affinity.tile(columns, rows).T
            directions = [(rows, 1, weights), (columns, 0, reverse)]
        product = tiles.buffer(s)
        for i, (side, axis, weights) in enumerate(directions):
            if i == 0 or not symmetric:
                torch.mul(s, weights, out=product)
            weighted[side] += product.sum(axis)
            weight_sum[side] += weights.sum(axis)
            valid[side] |= weights.amax(axis) > 0
        _add_exponentials(exponentials, rows, columns, s)
    return _Sums(exponentials, weighted, weight_sum, valid)


def _gradient_by_tiles(
    tiles: _TriangleTiles, u: Float[Tensor, " n"], v: Float[Tensor, " n"], affinity: Affinity | None
) -> Float[Tensor, "n d"]:
    """`Σ_j (G_ij + G_ji) z_j` for every row; without the terms in W where no affinity is given."""
    z = tiles.z
    gradient = torch.zeros_like(z)
    symmetric = affinity is not None and affinity.symmetric
    for rows, columns, s in tiles:
        pair_sum = tiles.buffer(s)
        s.exp_().mul_(torch.add(u[rows, None], u[columns], out=pair_sum))
        if affinity is not None:
            weights = affinity.tile(rows, columns)
            if symmetric:
                torch.add(v[rows, None], v[columns], out=pair_sum)
                s.addcmul_(pair_sum, weights.to(s.dtype), value=-1)
            else:
                s.addcmul_(v[rows, None], weights.to(s.dtype), value=-1)
                s.addcmul_(v[columns], affinity.tile(columns, rows).T.to(s.dtype), value=-1)
        if rows == columns:
            s.fill_diagonal_(0)
        else:
            gradient[columns] += matmul_tn(s, z[rows])
        gradient[rows] += matmul_nn(s, z[columns])
    return gradient


def _times_without_diagonal(factors: tuple[Factor, ...], z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """`W z`, W without its diagonal."""
    diagonal = torch.arange(len(z), device=z.device)
    first, *rest = (
        factor.matmul(z).addcmul_(factor.weights_at(diagonal, diagonal).to(z.dtype)[:, None], z, value=-1)
        for factor in factors
    )
    return sum(rest, first)
