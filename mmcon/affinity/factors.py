"""Factors of weights with structure: terms of an affinity that multiply a matrix in O(n)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: Rows at a time whose sums by class are computed in float64.
SUM_CHUNK = 1024


@dataclass(frozen=True)
class ClassFactor:
    """`W[i, j] = table[rows[i], columns[j]]`: class indices, never one-hot. No table: 1 for the same class.

    Attributes:
        rows, columns: class indices from 0 of anchors and of candidates.
        classes: the number of classes.
        table: weights of class pairs, or None.
        scale: multiplies the weights.
    """

    rows: Int[Tensor, " a"]
    columns: Int[Tensor, " c"]
    classes: int
    table: Float[Tensor, "classes classes"] | None = None
    scale: float = 1.0

    def matmul(self, candidates: Float[Tensor, "c d"]) -> Float[Tensor, "a d"]:
        """`W @ candidates`, through sums by class."""
        sums = _class_sums(self.columns, candidates, None, self.classes)
        if self.table is not None:
            sums = self.table.to(sums.dtype) @ sums
        return sums.to(candidates.dtype)[self.rows].mul_(self.scale)

    def transpose(self) -> ClassFactor:
        """The factor of Wᵀ."""
        table = None if self.table is None else self.table.T
        return ClassFactor(self.columns, self.rows, self.classes, table, self.scale)

    def weights_at(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The weights of single pairs."""
        if self.table is None:
            return (self.rows[rows] == self.columns[columns]) * self.scale
        return self.table[self.rows[rows], self.columns[columns]] * self.scale

    def positive_count_at(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The contribution of single pairs to `positive_counts`."""
        return (self.weights_at(rows, columns) > 0).long()

    def positive_counts(self, anchors: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The number of candidates with a weight above 0 for each of `anchors`."""
        counts = torch.bincount(self.columns, minlength=self.classes)
        if self.table is not None:
            counts = ((self.table > 0).double() @ counts.double()).long()
        return counts[self.rows[anchors]]


@dataclass(frozen=True)
class MixtureFactor:
    """`W[i, j] = Σ_xy row_weights[i, x] column_weights[j, y] [rows[i, x] = columns[j, y]]`: m classes a row.

    Attributes:
        rows, columns: class indices from 0 of anchors and of candidates.
        row_weights, column_weights: of the classes, >= 0.
        classes: the number of classes.
        scale: multiplies the weights.
    """

    rows: Int[Tensor, "a m"]
    row_weights: Float[Tensor, "a m"]
    columns: Int[Tensor, "c m"]
    column_weights: Float[Tensor, "c m"]
    classes: int
    scale: float = 1.0

    def matmul(self, candidates: Float[Tensor, "c d"]) -> Float[Tensor, "a d"]:
        """`W @ candidates`, through sums by class."""
        sums = _class_sums(self.columns, candidates, self.column_weights, self.classes).to(candidates.dtype)
        product = torch.zeros_like(sums[self.rows[:, 0]])
        for classes, weights in zip(self.rows.T, self.row_weights.to(candidates.dtype).T, strict=True):
            product.addcmul_(sums[classes], weights[:, None])
        return product.mul_(self.scale)

    def transpose(self) -> MixtureFactor:
        """The factor of Wᵀ."""
        return MixtureFactor(self.columns, self.column_weights, self.rows, self.row_weights, self.classes, self.scale)

    def _class_pairs(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Float[Tensor, "n m m"]:
        """The weights of single pairs by their classes."""
        same = self.rows[rows][:, :, None] == self.columns[columns][:, None]
        return same * (self.row_weights[rows][:, :, None] * self.column_weights[columns][:, None])

    def weights_at(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The weights of single pairs."""
        return self._class_pairs(rows, columns).sum((1, 2)) * self.scale

    def positive_counts(self, anchors: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The number of classes that candidates share with each of `anchors`; 0 exactly where no weight is above 0."""
        counts = torch.zeros(self.classes, dtype=torch.int64, device=self.columns.device)
        counts.index_add_(0, self.columns.flatten(), (self.column_weights > 0).long().flatten())
        return (counts[self.rows[anchors]] * (self.row_weights[anchors] > 0)).sum(1)

    def positive_count_at(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The contribution of single pairs to `positive_counts`."""
        return (self._class_pairs(rows, columns) > 0).sum((1, 2))


@dataclass(frozen=True)
class LowRankFactor:
    """`W = rows @ columns.T` with non-negative factors."""

    rows: Float[Tensor, "a rank"]
    columns: Float[Tensor, "c rank"]
    scale: float = 1.0

    def matmul(self, candidates: Float[Tensor, "c d"]) -> Float[Tensor, "a d"]:
        """`W @ candidates`, through the product `rank d`."""
        rows, columns = self.rows.to(candidates.dtype), self.columns.to(candidates.dtype)
        return rows @ (columns.T @ candidates) * self.scale

    def transpose(self) -> LowRankFactor:
        """The factor of Wᵀ."""
        return LowRankFactor(self.columns, self.rows, self.scale)

    def weights_at(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The weights of single pairs."""
        return (self.rows[rows] * self.columns[columns]).sum(1) * self.scale

    def positive_counts(self, anchors: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The number of coordinates that candidates share with `anchors`; 0 exactly where no weight is above 0."""
        support = (self.columns > 0).sum(0).double()
        return ((self.rows[anchors] > 0).double() @ support).long()

    def positive_count_at(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The contribution of single pairs to `positive_counts`."""
        return ((self.rows[rows] > 0) & (self.columns[columns] > 0)).sum(1)


@dataclass(frozen=True)
class BandFactor:
    """Weights that are 0 across groups: with rows and columns sorted by group, W is a band of tiles.

    Attributes:
        rows, columns: the orders that sort anchors and candidates by group.
        bands: pairs of slices of the two orders, which together contain every weight above 0.
        tile_weights: weights of a tile, from indices of anchors and of candidates.
        weights_of_pairs: weights of single pairs, from the same.
        scale: multiplies the weights.
        transposed: whether `tile_weights` and `weights_of_pairs` take candidates first.
    """

    rows: Int[Tensor, " a"]
    columns: Int[Tensor, " c"]
    bands: tuple[tuple[slice, slice], ...]
    tile_weights: Callable[[Int[Tensor, " r"], Int[Tensor, " c"]], Float[Tensor, "r c"]]
    weights_of_pairs: Callable[[Int[Tensor, " m"], Int[Tensor, " m"]], Float[Tensor, " m"]]
    scale: float = 1.0
    transposed: bool = False

    def _tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        anchors, candidates = self.rows[rows], self.columns[columns]
        return self.tile_weights(candidates, anchors).T if self.transposed else self.tile_weights(anchors, candidates)

    def matmul(self, candidates: Float[Tensor, "c d"]) -> Float[Tensor, "a d"]:
        """`W @ candidates`, tile by tile."""
        product = candidates.new_zeros(len(self.rows), candidates.shape[1])
        for rows, columns in self.bands:
            tile = self._tile(rows, columns).to(candidates.dtype)
            product[self.rows[rows]] += tile @ candidates[self.columns[columns]]
        return product.mul_(self.scale)

    def transpose(self) -> BandFactor:
        """The factor of Wᵀ."""
        bands = tuple((columns, rows) for rows, columns in self.bands)
        return replace(self, rows=self.columns, columns=self.rows, bands=bands, transposed=not self.transposed)

    def weights_at(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The weights of single pairs."""
        return (
            self.weights_of_pairs(columns, rows) if self.transposed else self.weights_of_pairs(rows, columns)
        ) * self.scale

    def positive_count_at(self, rows: Int[Tensor, " n"], columns: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The contribution of single pairs to `positive_counts`."""
        return (self.weights_at(rows, columns) > 0).long()

    def positive_counts(self, anchors: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The number of candidates with a weight above 0 for each of `anchors`."""
        counts = torch.zeros_like(self.rows)
        for rows, columns in self.bands:
            counts[self.rows[rows]] += (self._tile(rows, columns) * self.scale > 0).sum(1)
        return counts[anchors]


def _class_sums(
    classes: Int[Tensor, "c ..."], values: Float[Tensor, "c d"], weights: Float[Tensor, "c m"] | None, count: int
) -> Float[Tensor, "count d"]:
    """The sums of values by class, times weights, in float64: a long sum in float32 loses digits that a row's loss has.

    By chunks, so that no copy of all values is in memory.
    """
    sums = values.new_zeros(count, values.shape[1], dtype=torch.float64)
    size = SUM_CHUNK if values.device.type == "cpu" else 64 * SUM_CHUNK  # a GPU waits for the launches of small chunks
    for start in range(0, len(values), size):
        chunk = slice(start, start + size)
        wide = values[chunk].double()
        if weights is None:
            sums.index_add_(0, classes[chunk], wide)
            continue
        for column, weight in zip(classes[chunk].T, weights[chunk].double().T, strict=True):
            sums.index_add_(0, column, wide * weight[:, None])
    return sums


def group_bands(
    rows: Int[Tensor, " a"], columns: Int[Tensor, " c"], max_rows: int = 256, max_columns: int = 1024
) -> tuple[Int[Tensor, " a"], Int[Tensor, " c"], list[tuple[slice, slice]]]:
    """The orders that sort anchors and candidates by group, and tiles that contain all pairs of one group."""
    ordered_rows, row_order = rows.sort(stable=True)
    ordered_columns, column_order = columns.sort(stable=True)
    starts = torch.arange(0, len(rows), max_rows, device=rows.device)
    ends = (starts + max_rows).clamp_max(len(rows))
    low = torch.searchsorted(ordered_columns, ordered_rows[starts])
    high = torch.searchsorted(ordered_columns, ordered_rows[ends - 1], right=True)
    edges = torch.stack([starts, ends, low, high], 1).tolist()
    tiles = [(a, b, c, min(c + max_columns, d)) for a, b, low, d in edges for c in range(low, d, max_columns)]
    return row_order, column_order, [(slice(a, b), slice(c, d)) for a, b, c, d in tiles]


Factor = ClassFactor | MixtureFactor | LowRankFactor | BandFactor


def factor_row_sums(
    factors: Sequence[Factor], self_index: Int[Tensor, " a"] | None
) -> tuple[Float[Tensor, " a"], Bool[Tensor, " a"]]:
    """`Affinity.row_sums` from factors: sums in float64, positives counted in integers."""
    n, device = factors[0].rows.shape[0], factors[0].rows.device
    anchors = torch.arange(n, device=device)
    sums = torch.zeros(n, dtype=torch.float64, device=device)
    valid = torch.zeros(n, dtype=torch.bool, device=device)
    has_self = torch.zeros_like(valid) if self_index is None else self_index >= 0
    self_column = torch.zeros_like(anchors) if self_index is None else self_index.clamp_min(0)
    for factor in factors:
        # In float64: the anchor's own weight is subtracted from a sum, which loses digits in float32.
        ones = torch.ones(factor.columns.shape[0], 1, dtype=torch.float64, device=device)
        sums += factor.matmul(ones)[:, 0] - factor.weights_at(anchors, self_column) * has_self
        self_count = factor.positive_count_at(anchors, self_column) * has_self
        valid |= (factor.positive_counts(anchors) - self_count > 0) & (factor.scale > 0)
    return torch.where(valid, sums, 0), valid


def self_mask(self_index: Int[Tensor, " r"], candidates: int) -> Bool[Tensor, "r c"]:
    """True at the candidate that is the anchor itself."""
    return self_index[:, None] == torch.arange(candidates, device=self_index.device)
