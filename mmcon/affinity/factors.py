"""Weights with structure: parts of an affinity that multiply a matrix in O(n)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassFactor:
    """`W[i, j] = table[rows[i], columns[j]]`: class indices, never one-hot. No table: 1 for the same class.

    Attributes:
        rows, columns: class indices from 0, int64 `a` and `c`.
        classes: how many there are.
        table: weights of class pairs, `classes classes`, or None.
        scale: multiplies the weights.
    """

    rows: Tensor
    columns: Tensor
    classes: int
    table: Tensor | None = None
    scale: float = 1.0

    def times(self, candidates: Tensor) -> Tensor:
        """`W @ candidates`, through sums by class."""
        sums = candidates.new_zeros(self.classes, candidates.shape[1]).index_add_(0, self.columns, candidates)
        if self.table is not None:
            sums = self.table.to(sums.dtype) @ sums
        return sums[self.rows].mul_(self.scale)

    def transpose(self) -> ClassFactor:
        """The same weights seen from the candidates."""
        table = None if self.table is None else self.table.T
        return ClassFactor(self.columns, self.rows, self.classes, table, self.scale)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The weights of single pairs."""
        if self.table is None:
            return (self.rows[rows] == self.columns[columns]) * self.scale
        return self.table[self.rows[rows], self.columns[columns]] * self.scale

    def positive_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """How much of `positives` single pairs account for."""
        return (self.at(rows, columns) > 0).long()

    def positives(self, anchors: Tensor) -> Tensor:
        """How many candidates each of `anchors` has with a weight above 0."""
        counts = torch.bincount(self.columns, minlength=self.classes)
        if self.table is not None:
            counts = ((self.table > 0).double() @ counts.double()).long()
        return counts[self.rows[anchors]]


@dataclass(frozen=True)
class MixtureFactor:
    """`W[i, j] = Σ_xy row_weights[i, x] column_weights[j, y] [rows[i, x] = columns[j, y]]`: a few classes a row.

    Attributes:
        rows, columns: class indices from 0, int64 `a m` and `c m`.
        row_weights, column_weights: of the classes, >= 0, of the same shapes.
        classes: how many there are.
        scale: multiplies the weights.
    """

    rows: Tensor
    row_weights: Tensor
    columns: Tensor
    column_weights: Tensor
    classes: int
    scale: float = 1.0

    def times(self, candidates: Tensor) -> Tensor:
        """`W @ candidates`, through sums by class."""
        sums = candidates.new_zeros(self.classes, candidates.shape[1])
        for classes, weights in zip(self.columns.T, self.column_weights.to(candidates.dtype).T, strict=True):
            sums.index_add_(0, classes, candidates * weights[:, None])
        product = torch.zeros_like(sums[self.rows[:, 0]])
        for classes, weights in zip(self.rows.T, self.row_weights.to(candidates.dtype).T, strict=True):
            product.addcmul_(sums[classes], weights[:, None])
        return product.mul_(self.scale)

    def transpose(self) -> MixtureFactor:
        """The same weights seen from the candidates."""
        return MixtureFactor(self.columns, self.column_weights, self.rows, self.row_weights, self.classes, self.scale)

    def _pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The weights of single pairs by their classes, `n m m`."""
        same = self.rows[rows][:, :, None] == self.columns[columns][:, None]
        return same * (self.row_weights[rows][:, :, None] * self.column_weights[columns][:, None])

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The weights of single pairs."""
        return self._pairs(rows, columns).sum((1, 2)) * self.scale

    def positives(self, anchors: Tensor) -> Tensor:
        """How many classes candidates share with each of `anchors`: 0 exactly where no weight is above 0."""
        counts = torch.zeros(self.classes, dtype=torch.int64, device=self.columns.device)
        counts.index_add_(0, self.columns.flatten(), (self.column_weights > 0).long().flatten())
        return (counts[self.rows[anchors]] * (self.row_weights[anchors] > 0)).sum(1)

    def positive_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """How much of `positives` single pairs account for."""
        return (self._pairs(rows, columns) > 0).sum((1, 2))


@dataclass(frozen=True)
class LowRankFactor:
    """`W = rows @ columns.T` with non-negative factors, `a r` and `c r`."""

    rows: Tensor
    columns: Tensor
    scale: float = 1.0

    def times(self, candidates: Tensor) -> Tensor:
        """`W @ candidates`, through the `r d` product."""
        rows, columns = self.rows.to(candidates.dtype), self.columns.to(candidates.dtype)
        return rows @ (columns.T @ candidates) * self.scale

    def transpose(self) -> LowRankFactor:
        """The same weights seen from the candidates."""
        return LowRankFactor(self.columns, self.rows, self.scale)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The weights of single pairs."""
        return (self.rows[rows] * self.columns[columns]).sum(1) * self.scale

    def positives(self, anchors: Tensor) -> Tensor:
        """How many coordinates candidates share with each of `anchors`: 0 exactly where no weight is above 0."""
        support = (self.columns > 0).sum(0).double()
        return ((self.rows[anchors] > 0).double() @ support).long()

    def positive_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """How much of `positives` single pairs account for."""
        return ((self.rows[rows] > 0) & (self.columns[columns] > 0)).sum(1)


@dataclass(frozen=True)
class BandFactor:
    """Weights that are 0 across groups: rows and columns in the order of their groups, W is a band of blocks.

    Attributes:
        rows: order of anchors, int64 `a`.
        columns: order of candidates, int64 `c`.
        bands: pairs of slices into the two orders, which together hold every weight above 0.
        weigh: weights of a block, given positions of anchors and of candidates: `(r), (c) -> r c`.
        pairs: weights of single pairs, `(m), (m) -> m`.
        scale: multiplies the weights.
        transposed: whether `weigh` and `pairs` take candidates first.
    """

    rows: Tensor
    columns: Tensor
    bands: tuple[tuple[slice, slice], ...]
    weigh: Callable[[Tensor, Tensor], Tensor]
    pairs: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0
    transposed: bool = False

    def _block(self, rows: slice, columns: slice) -> Tensor:
        anchors, candidates = self.rows[rows], self.columns[columns]
        return self.weigh(candidates, anchors).T if self.transposed else self.weigh(anchors, candidates)

    def times(self, candidates: Tensor) -> Tensor:
        """`W @ candidates`, block by block."""
        product = candidates.new_zeros(len(self.rows), candidates.shape[1])
        for rows, columns in self.bands:
            block = self._block(rows, columns).to(candidates.dtype)
            product[self.rows[rows]] += block @ candidates[self.columns[columns]]
        return product.mul_(self.scale)

    def transpose(self) -> BandFactor:
        """The same weights seen from the candidates."""
        bands = tuple((columns, rows) for rows, columns in self.bands)
        return replace(self, rows=self.columns, columns=self.rows, bands=bands, transposed=not self.transposed)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The weights of single pairs."""
        return (self.pairs(columns, rows) if self.transposed else self.pairs(rows, columns)) * self.scale

    def positive_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """How much of `positives` single pairs account for."""
        return (self.at(rows, columns) > 0).long()

    def positives(self, anchors: Tensor) -> Tensor:
        """How many candidates each of `anchors` has with a weight above 0."""
        counts = torch.zeros_like(self.rows)
        for rows, columns in self.bands:
            counts[self.rows[rows]] += (self._block(rows, columns) * self.scale > 0).sum(1)
        return counts[anchors]


def bands_of(
    rows: Tensor, columns: Tensor, at_once: int = 256, widest: int = 1024
) -> tuple[Tensor, Tensor, list[tuple[slice, slice]]]:
    """Orders of anchors and candidates by group, and the blocks where their groups meet."""
    ordered_rows, row_order = rows.sort(stable=True)
    ordered_columns, column_order = columns.sort(stable=True)
    starts = torch.arange(0, len(rows), at_once, device=rows.device)
    ends = (starts + at_once).clamp_max(len(rows))
    low = torch.searchsorted(ordered_columns, ordered_rows[starts])
    high = torch.searchsorted(ordered_columns, ordered_rows[ends - 1], right=True)
    edges = torch.stack([starts, ends, low, high], 1).tolist()
    pieces = [(a, b, c, min(c + widest, d)) for a, b, low, d in edges for c in range(low, d, widest)]
    return row_order, column_order, [(slice(a, b), slice(c, d)) for a, b, c, d in pieces]


Factor = ClassFactor | MixtureFactor | LowRankFactor | BandFactor


def factor_sums(factors: Sequence[Factor], self_index: Tensor | None) -> tuple[Tensor, Tensor]:
    """`Affinity.row_sums` from factors: sums in float64, positives counted in integers."""
    n, device = factors[0].rows.shape[0], factors[0].rows.device
    anchors = torch.arange(n, device=device)
    sums = torch.zeros(n, dtype=torch.float64, device=device)
    valid = torch.zeros(n, dtype=torch.bool, device=device)
    has_self = torch.zeros_like(valid) if self_index is None else self_index >= 0
    own = torch.zeros_like(anchors) if self_index is None else self_index.clamp_min(0)
    for factor in factors:
        ones = torch.ones(factor.columns.shape[0], 1, dtype=torch.float64, device=device)
        at_self = factor.at(anchors, own)
        sums += factor.times(ones)[:, 0] - at_self * has_self
        taken = factor.positive_at(anchors, own) * has_self
        valid |= (factor.positives(anchors) - taken > 0) & (factor.scale > 0)
    return torch.where(valid, sums, 0), valid


def self_mask(self_index: Tensor, candidates: int) -> Tensor:
    """True at each anchor's own column, `r c`."""
    return self_index[:, None] == torch.arange(candidates, device=self_index.device)
