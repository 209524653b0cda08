"""Sums over exponentials of similarities, and their gradients, tile by tile: one exponential a pair.

Where the anchors are the candidates, the upper triangle alone is visited, and each exponential serves both rows. The
same holds for the two directions of a pair of modalities. Exponentials are not shifted by the maximum of a row, which
would differ by direction: the caller tests the sums by `are_exact`, and takes logarithms tile by tile otherwise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmcon.losses.backends.matmul import matmul_nn, matmul_nt, matmul_tn
from mmcon.views.thread_pool import map_parts

Block = tuple[slice, slice]
#: Tiles hold similarities in units of log 2, since `exp2` takes a third of the time of `exp` on a CPU: PyTorch computes
#: the one by vectors of the processor and the other by MKL, on an AMD EPYC 155 against 405 µs for 704² numbers.
LOG_2 = math.log(2)
#: Reads the similarities of a tile (pairs, rows, columns, s) before they are overwritten, or changes their gradient.
TileFunction = Callable[["PairTiles", slice, slice, Float[Tensor, "r c"]], None]
#: The gradient of the similarities of a tile (pairs, rows, columns, s).
TileGradient = Callable[["PairTiles", slice, slice, Float[Tensor, "r c"]], Float[Tensor, "r c"]]
Sums = list[tuple[Float[Tensor, " a"], Float[Tensor, " c"]]]
Result = TypeVar("Result")


def _size_for_cache() -> int:
    """The side of a square tile of float32 of twice the second-level cache, a multiple of a vector's width.

    704 for 1 MiB: the fastest of 384 to 1024 on an AMD EPYC, by a tenth.
    """
    try:
        cache = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (ValueError, OSError, AttributeError):
        cache = 0
    return min(1024, max(512, int(math.sqrt(2 * max(cache, 2**20) / 4)) // 64 * 64))


TILE_SIZE = _size_for_cache()
#: On a GPU a tile of 16 MiB stays in its cache, and is large enough that no operation waits for its launch.
GPU_TILE_SIZE = 2048


@dataclass(frozen=True)
class PairTiles:
    """The pairs of anchors and candidates, without self pairs and the pairs of some blocks.

    Attributes:
        anchors, candidates: one tensor where the anchors are the candidates, each its own self.
        inverse: one over the temperature.
        tile_size: the rows and the columns of a tile.
        both: whether candidates are anchors too, of the anchors: sums over rows and over columns are asked for.
        self_index: the candidate that is the anchor itself, or -1; None: the diagonal, or no anchor is a candidate.
        blocks: slices of rows and columns whose pairs are left out; they have no row and no column in common.
        kept: candidates whose pairs are not left out; None: all.
    """

    anchors: Float[Tensor, "a d"]
    candidates: Float[Tensor, "c d"]
    inverse: Float[Tensor, ""]
    tile_size: int
    both: bool = False
    self_index: Int[Tensor, " a"] | None = None
    blocks: Sequence[Block] = ()
    kept: Bool[Tensor, " c"] | None = None
    _memory: list[Float[Tensor, " m"]] = field(default_factory=list, repr=False)

    @property
    def square(self) -> bool:
        """Whether the anchors are the candidates."""
        return self.candidates is self.anchors

    def tiles(self) -> list[Block]:
        """Rows and columns of all tiles."""
        return [
            (rows, columns)
            for rows in slices(len(self.anchors), self.tile_size)
            for columns in slices(len(self.candidates), self.tile_size)
            if not (self.square and columns.start < rows.start) and not self._is_left_out(rows, columns)
        ]

    def similarities(self, tiles: Sequence[Block]) -> Iterator[tuple[slice, slice, Float[Tensor, "r c"]]]:
        """The similarities of tiles, over temperature and log 2: the logarithms to base 2 of their exponentials."""
        last, scaled = None, self.anchors
        for rows, columns in tiles:
            if rows != last:
                last, scaled = rows, self.anchors[rows] * (self.inverse / LOG_2)
            yield rows, columns, matmul_nt(scaled, self.candidates[columns])

    def buffer(self, tile: Float[Tensor, "r c"], place: int = 0) -> Float[Tensor, "r c"]:
        """Memory of the shape of a tile, reused by the next call of the same place: new memory takes as long again."""
        while len(self._memory) <= place:
            self._memory.append(tile.new_empty(self.tile_size**2))
        return self._memory[place][: tile.numel()].view(tile.shape)

    def leave_out(self, rows: slice, columns: slice, values: Float[Tensor, "r c"]) -> None:
        """Set the values of self pairs and of the pairs of blocks to 0."""
        for block_rows, block_columns in self.blocks:
            top, bottom = max(block_rows.start, rows.start), min(block_rows.stop, rows.stop)
            left, right = max(block_columns.start, columns.start), min(block_columns.stop, columns.stop)
            if top < bottom and left < right:
                values[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start] = 0
        if self.kept is not None and not bool(self.kept[columns].all()):
            values.mul_(self.kept[columns])
        if self.square and rows == columns:
            values.fill_diagonal_(0)
        if self.self_index is not None:
            own = self.self_index[rows]
            here = ((own >= columns.start) & (own < columns.stop)).nonzero()[:, 0]
            values[here, own[here] - columns.start] = 0

    def without_self(self, rows: slice, columns: slice, values: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        """The values with 0 for self pairs; a copy where there may be any."""
        if self.self_index is None and not (self.square and rows == columns):
            return values
        values = values.clone()
        self.leave_out(rows, columns, values)
        return values

    def has_second_direction(self, rows: slice, columns: slice) -> bool:
        """Whether a tile serves its columns too; a tile on the diagonal has both directions in its rows."""
        return self.both or (self.square and rows != columns)

    def _is_left_out(self, rows: slice, columns: slice) -> bool:
        if self.kept is not None and not bool(self.kept[columns].any()):
            return True
        return any(
            r.start <= rows.start and rows.stop <= r.stop and c.start <= columns.start and columns.stop <= c.stop
            for r, c in self.blocks
        )


def slices(n: int, size: int, start: int = 0) -> list[slice]:
    """Consecutive slices of `size`, from `start` to `n`."""
    return [slice(i, min(i + size, n)) for i in range(start, n, size)]


def transpose(tile: Float[Tensor, "r c"]) -> Float[Tensor, "c r"]:
    """The transpose of a tile of a matrix, in order: operations on strided memory take five times as long."""
    # From a copy in order: PyTorch transposes by blocks only such a tile.
    return tile.contiguous().T.contiguous()


def exponential_sums(pairs: PairTiles, powers: Sequence[float] = (1.0,), read: TileFunction | None = None) -> Sums:
    """Σ e^{power · s} of the rows, and of the columns, for each power.

    Args:
        pairs: where the anchors are the candidates, both sums are in one tensor.
        powers: factors of the similarities.
        read: called with each tile before it is overwritten, in the thread of the caller.
    """

    def sums_of(own: PairTiles, tiles: Sequence[Block]) -> Sums:
        found = []
        for _ in powers:
            of_rows = own.anchors.new_zeros(len(own.anchors))
            found.append((of_rows, of_rows if own.square else own.anchors.new_zeros(len(own.candidates))))
        for rows, columns, s in own.similarities(tiles):
            if read is not None:
                read(own, rows, columns, s)
            for i, (power, (of_rows, of_columns)) in enumerate(zip(powers, found, strict=True)):
                e = _exponential(s, power, last=i + 1 == len(powers))
                own.leave_out(rows, columns, e)
                if own.has_second_direction(rows, columns):
                    of_columns[columns] += e.sum(0)
                of_rows[rows] += e.sum(1)
        return found

    first, *rest = by_threads(pairs, sums_of, alone=read is not None)
    for others in rest:
        for of_all, of_part in zip(first, others, strict=True):
            _add(of_all, of_part)
    return first


class Term(NamedTuple):
    """A term `factor · e^{power · s}` of the gradient of s.

    Attributes:
        power: factor of the similarities.
        of_rows: factors of the anchors.
        of_columns: factors of the candidates, where they are anchors too; the terms of both directions are added.
    """

    power: float
    of_rows: Float[Tensor, " a"]
    of_columns: Float[Tensor, " c"] | None


def exponential_gradients(
    pairs: PairTiles, terms: Sequence[Term], change: TileFunction | None = None, *, of_candidates: bool = True
) -> tuple[Float[Tensor, "a d"], Float[Tensor, "c d"] | None]:
    """`Σ_j G_ij c_j` of every anchor and `Σ_i G_ij a_i` of every candidate, G the sum of the terms.

    Args:
        pairs: where the anchors are the candidates, both are in one tensor.
        terms: of G.
        change: called with each tile of G, which it may change in place.
        of_candidates: whether those of the candidates are asked for; a queue has no gradient.
    """

    def gradient_of(own: PairTiles, rows: slice, columns: slice, s: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        of_s = _gradient_of_tile(own, rows, columns, s, terms)
        if change is not None:
            change(own, rows, columns, of_s)
        return of_s

    return tile_gradients(pairs, gradient_of, of_candidates=of_candidates)


def tile_gradients(
    pairs: PairTiles, gradient_of: TileGradient, *, of_candidates: bool = True
) -> tuple[Float[Tensor, "a d"], Float[Tensor, "c d"] | None]:
    """`exponential_gradients` of any G, whose tiles are given by a function of the similarities, which it may change.

    Tiles of G have the sum of both directions of their pairs; self pairs and the pairs of blocks are left out here.
    """

    def gradients_of(
        own: PairTiles, tiles: Sequence[Block]
    ) -> tuple[Float[Tensor, "a d"], Float[Tensor, "c d"] | None]:
        of_a = torch.zeros_like(own.anchors)
        of_c = of_a if own.square else torch.zeros_like(own.candidates) if of_candidates else None
        for rows, columns, s in own.similarities(tiles):
            of_s = gradient_of(own, rows, columns, s)
            own.leave_out(rows, columns, of_s)
            if of_c is not None and not (own.square and rows == columns):
                of_c[columns] += matmul_tn(of_s, own.anchors[rows])
            of_a[rows] += matmul_nn(of_s, own.candidates[columns])
        return of_a, of_c

    first, *rest = by_threads(pairs, gradients_of)
    for others in rest:
        _add(first, others)
    return first


def _gradient_of_tile(
    pairs: PairTiles, rows: slice, columns: slice, s: Float[Tensor, "r c"], terms: Sequence[Term]
) -> Float[Tensor, "r c"]:
    """The sum of the terms, in place of the similarities."""
    total = None
    for i, (power, of_rows, of_columns) in enumerate(terms):
        last = i + 1 == len(terms)
        e = _exponential(s, power, last=last)
        if of_columns is None:
            e.mul_(of_rows[rows, None])
        else:
            e.mul_(torch.add(of_rows[rows, None], of_columns[columns], out=pairs.buffer(s) if last else None))
        total = e if total is None else e.add_(total)
    assert total is not None
    return total


def _exponential(s: Float[Tensor, "r c"], power: float, *, last: bool) -> Float[Tensor, "r c"]:
    """2^{power · s}, in place of the similarities where these are not needed again."""
    scaled = s.mul_(power) if last and power != 1 else s if last else s * power
    return scaled.exp2_()


def by_threads(
    pairs: PairTiles, act: Callable[[PairTiles, Sequence[Block]], Result], *, alone: bool = False
) -> list[Result]:
    """The results for parts of the tiles, one a thread: within a tile, threads would wait for one another.

    Args:
        pairs: each part has memory of its own.
        act: of pairs and tiles.
        alone: whether the caller's thread computes all tiles.
    """
    tiles, threads = pairs.tiles(), torch.get_num_threads()
    if alone or threads == 1 or pairs.anchors.device.type != "cpu" or len(tiles) < 2 * threads:
        return [act(pairs, tiles)]
    parts = [tiles[i::threads] for i in range(threads)]
    return map_parts(lambda part: act(replace(pairs, _memory=[]), part), parts)


def _add(total: tuple[Tensor | None, ...], part: tuple[Tensor | None, ...]) -> None:
    """Add the tensors of a part to those of the first; both may be one tensor."""
    for i, (of_all, of_part) in enumerate(zip(total, part, strict=True)):
        if of_all is not None and of_part is not None and not (i == 1 and of_all is total[0]):
            of_all.add_(of_part)


def are_exact(sums: Float[Tensor, " n"], terms: Int[Tensor, " n"]) -> bool:
    """Whether sums of exponentials have neither overflowed nor lost terms below the smallest number.

    Args:
        sums: of each row.
        terms: the number of terms of each; a row without terms has no sum to be exact.
    """
    limits = torch.finfo(sums.dtype)
    # A term below `tiny` is rounded: so many of them are below the rounding error of a sum of at least this.
    # The gradient multiplies by the inverse of a sum, which must be as far from `tiny`.
    exact = (sums >= terms * (limits.tiny / limits.eps)) & (sums <= limits.eps / limits.tiny)
    return bool((exact | (terms == 0)).all())
