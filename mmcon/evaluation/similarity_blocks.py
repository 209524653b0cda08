"""Cosine similarities of two feature sets, a block at a time, so that neither set is copied if it is large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmcon.errors import InputError
from mmcon.evaluation.features import Features

# Similarities in memory at once: 32 MB in float32.
BLOCK_SIZE = 8_000_000
# Candidates of one product of the nearest rows, beside as many queries as the block allows.
TILE_ROWS = 16_384
# Numbers in a set of candidates of which a normalized copy is made: 256 MB in float32.
COPIED = 64_000_000


def similarity_blocks(
    queries: Features, candidates: Features
) -> Iterator[tuple[Int[Tensor, " r"], Float[Tensor, "r c"]]]:
    """Blocks of the cosine matrix: the indices of `r` queries, and their cosines with all candidates."""
    rows_of = _UnitRows.of(candidates)
    for rows in torch.arange(len(queries)).split(max(1, BLOCK_SIZE // len(candidates))):
        yield rows, rows_of.cosines(queries.take(rows).normalized(), 0, len(candidates))


def nearest_rows(
    queries: Features, candidates: Features, *, k: int, exclude_same: str | None = None
) -> Iterator[tuple[Float[Tensor, "r k"], Int[Tensor, "r k"]]]:
    """The cosines and the indices of the k nearest candidates of every query, in blocks of queries, in order.

    Args:
        queries: of the same width as the candidates.
        candidates: at least one; with fewer than k, all are returned.
        k: number of neighbors.
        exclude_same: a column. A candidate with the query's value in it comes last, with the cosine -inf.
    """
    rows_of, n = _UnitRows.of(candidates), len(candidates)
    tile = min(n, TILE_ROWS)
    for rows in torch.arange(len(queries)).split(max(1, BLOCK_SIZE // tile)):
        unit, values, indices = queries.take(rows).normalized(), [], []
        for start in range(0, n, tile):
            stop = min(start + tile, n)
            cosines = rows_of.cosines(unit, start, stop)
            if exclude_same is not None:
                same = queries.index[exclude_same][rows, None] == candidates.index[exclude_same][start:stop]
                cosines.masked_fill_(same, -torch.inf)
            best = cosines.topk(min(k, stop - start), dim=1)
            values, indices = [*values, best.values], [*indices, best.indices + start]
            if len(values) > 1:  # the best so far and those of this tile
                best = torch.cat(values, 1).topk(min(k, stop), dim=1)
                values, indices = [best.values], [torch.cat(indices, 1).gather(1, best.indices)]
        yield values[0], indices[0]


@dataclass(frozen=True)
class _UnitRows:
    """Candidates of length one, as a copy or, of a large set, as they are with the inverse of their lengths."""

    values: Float[Tensor, "c d"]
    inverse: Float[Tensor, " c"] | None

    @staticmethod
    def of(candidates: Features) -> _UnitRows:
        if candidates.values.numel() <= COPIED:
            return _UnitRows(candidates.normalized(), None)
        # Tile by tile: the rows may lie in a file, and the squares of all would be a copy.
        lengths = torch.cat([tile.norm(dim=1) for tile in candidates.values.split(TILE_ROWS)])
        return _UnitRows(candidates.values, 1 / lengths.clamp(min=1e-12))  # as torch's normalize

    def cosines(self, unit: Float[Tensor, "r d"], start: int, stop: int) -> Float[Tensor, "r t"]:
        """The cosines of unit rows with a range of the candidates."""
        products = unit @ self.values[start:stop].T
        return products if self.inverse is None else products.mul_(self.inverse[start:stop])


def check_same_width(where: str, first: Features, second: Features) -> None:
    """Raise InputError unless both sets have rows, and rows of one width."""
    widths = first.values.shape[1], second.values.shape[1]
    if widths[0] != widths[1] or not len(first) or not len(second):
        raise InputError(
            where,
            expected="two non-empty feature sets of one width",
            got=f"{len(first)} × {widths[0]}, {len(second)} × {widths[1]}",
        )
