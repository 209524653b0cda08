"""Iterate over the pairs of a problem in tiles of anchors × candidates.

Where the anchors are the candidates, the similarity of a pair is computed once for both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmcon.losses.backends.exponentials import Block, slices
from mmcon.losses.backends.matmul import matmul_nt
from mmcon.losses.loss_inputs import Problem


class Tile(NamedTuple):
    """A tile of pairs; tensors are `r c`.

    Attributes:
        rows, columns: the anchors and the candidates.
        s: similarities over temperature.
        weights: W, 0 for self.
        positive, negative: masks of pairs; `negative` has all but self where the denominator is a softmax over all.
        log_negative_weights: the logarithm of V; None: V = 1.
        not_self: mask of all pairs but self.
    """

    rows: slice
    columns: slice
    s: Float[Tensor, "r c"]
    weights: Float[Tensor, "r c"]
    positive: Bool[Tensor, "r c"]
    negative: Bool[Tensor, "r c"]
    log_negative_weights: Float[Tensor, "r c"] | None
    not_self: Bool[Tensor, "r c"]

    def log_weights(self) -> Float[Tensor, "r c"]:
        """The logarithm of weights above 0."""
        return _log(self.weights)


def iterate_tiles(problem: Problem, tile_size: int, blocks: Sequence[Block]) -> Iterator[list[Tile]]:
    """The pairs of blocks, tile by tile; for a dot product of rows with themselves, the upper triangle with transposes.

    Args:
        problem: the inputs.
        tile_size: the most rows and columns of a tile.
        blocks: slices of rows and columns; of equal slices where the anchors are the candidates.
    """
    similarity = problem.settings.similarity or matmul_nt
    triangle_only = problem.square and problem.settings.similarity is None
    inverse = 1 / problem.temperature
    pairs = (
        (rows, columns)
        for block_rows, block_columns in blocks
        for rows in slices(block_rows.stop, tile_size, block_rows.start)
        for columns in slices(block_columns.stop, tile_size, block_columns.start)
    )
    for rows, columns in pairs:
        if triangle_only and columns.start < rows.start:
            continue
        s = similarity(problem.anchors[rows], problem.candidates[columns]) * inverse
        tiles = [_tile(problem, rows, columns, s)]
        if triangle_only and columns.start > rows.start:
            tiles.append(_tile(problem, columns, rows, s.T.contiguous()))
        yield tiles


def _tile(problem: Problem, rows: slice, columns: slice, s: Float[Tensor, "r c"]) -> Tile:
    weights = problem.affinity.tile(rows, columns).detach().to(s.dtype)
    if problem.has_self and not (problem.diagonal and (columns.stop <= rows.start or rows.stop <= columns.start)):
        own_column = problem.self_index[rows, None]
        not_self = own_column != torch.arange(columns.start, columns.stop, device=s.device)
        weights = torch.where(not_self, weights, 0)
    else:
        not_self = torch.ones(1, 1, dtype=torch.bool, device=s.device).expand(s.shape)
    positive = weights > 0
    # A softmax over all candidates has no need to tell them apart.
    negative = not_self if problem.all_are_negatives or problem.is_softmax else not_self & ~positive
    log_negative_weights = None
    if problem.negative_affinity is not None:
        v = problem.negative_affinity.tile(rows, columns).detach().to(s.dtype)
        negative, log_negative_weights = negative & (v > 0), _log(v)
    return Tile(rows, columns, s, weights, positive, negative, log_negative_weights, not_self)


def _log(weights: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """The logarithm where weights are above 0; 0, which masks leave out, elsewhere: the logarithm of 0 is slow."""
    return torch.where(weights > 0, weights, 1).log()
