# ruff: noqa: D102 — an override does what its base says
"""Affinities that are a function of columns of the anchors and of the candidates."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.affinity.base import Affinity, has_values
from mmcon.affinity.graph_arguments import flattens
from mmcon.batch import Index, Numbers, as_column
from mmcon.errors import InputError

#: Values of rows (a tensor, an array or a list), or the name of a column to bind.
Column = Numbers | str
#: Values of the anchors and of the candidates of a tile.
Pair = tuple[Shaped[Tensor, "r ..."], Shaped[Tensor, "c ..."]]
#: The attributes that describe a function of columns, besides those of its own.
OF_COLUMNS = ("column_pairs", "_dtype")


@flattens("rows", "columns", "name")
@dataclass(frozen=True)
class ColumnPair:
    """The values of anchors and of candidates (None: the same), as tensors or as names of columns to bind.

    Attributes:
        rows: of the anchors.
        columns: of the candidates.
        name: the name of the column that `rows` was bound to, for messages.
    """

    rows: Column
    columns: Column | None = None
    name: str = ""

    def as_tensors(self, where: str) -> ColumnPair:
        """The pair with arrays and lists converted to tensors."""
        rows, columns = (
            values if values is None or isinstance(values, str) else as_column(where, values)
            for values in (self.rows, self.columns)
        )
        return ColumnPair(self.rows if rows is None else rows, columns, self.name)

    def with_dtype(self, dtype: torch.dtype) -> ColumnPair:
        """The pair with floats in `dtype`, or in their own if it is wider."""

        def widened(values: Column | None) -> Column | None:
            if not isinstance(values, Tensor) or not values.is_floating_point():
                return values
            return values.to(torch.promote_types(values.dtype, dtype))

        return ColumnPair(widened(self.rows), widened(self.columns), self.name)  # pyright: ignore

    def reordered(self, rows: Int[Tensor, " a"], columns: Int[Tensor, " c"]) -> ColumnPair:
        """The pair of the anchors `rows` and the candidates `columns`; the same order twice keeps one column."""
        own = cast(Tensor, self.rows)
        if self.columns is None and rows is columns:
            return ColumnPair(own[rows], None, self.name)
        return ColumnPair(own[rows], cast(Tensor, own if self.columns is None else self.columns)[columns], self.name)

    def bind(self, rows: Index, columns: Index | None) -> ColumnPair:
        """The pair with names replaced by tensors."""
        if isinstance(self.rows, Tensor):
            return self
        own = str(self.rows)
        if columns is None and self.columns is None:
            return ColumnPair(rows[own], None, own)
        name = own if self.columns is None else self.columns
        candidates = rows if columns is None else columns
        return ColumnPair(rows[own], candidates[name] if isinstance(name, str) else name, own)


class Pairwise(Affinity, flattened=()):
    """Weights that are a function of values of an anchor and of a candidate.

    A subclass passes its column pairs to `__init__`, names its learnable attributes, and implements `pair_weights`.
    """

    learnable_attributes: tuple[str, ...] = ()
    symmetric_weights: bool = True
    _dtype: torch.dtype | None = None

    def __init__(self, *column_pairs: ColumnPair) -> None:
        self.column_pairs = tuple(pair.as_tensors(type(self).__name__) for pair in column_pairs)
        lengths = [len(pair.rows) for pair in self.column_pairs if isinstance(pair.rows, Tensor)]
        if any(length != lengths[0] for length in lengths):
            got = f"lengths {sorted(set(lengths))}"
            raise InputError(type(self).__name__, expected="columns of one length", got=got)

    @abstractmethod
    def pair_weights(self, *values: Pair) -> Float[Tensor, "r c"]:
        """The weights of a tile, from the values of each column pair."""

    def check(self, rows: Shaped[Tensor, "..."], columns: Shaped[Tensor, "..."]) -> None:
        """Raise InputError for values of the wrong type or shape; called when names are replaced by tensors."""

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        bound = copy.copy(self)
        bound.column_pairs = tuple(pair.bind(rows, columns) for pair in self.column_pairs)
        bound._check_columns()
        return bound

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights that are made from integers."""
        return torch.get_default_dtype() if self._dtype is None else self._dtype

    def with_dtype(self, dtype: torch.dtype) -> Affinity:
        made = copy.copy(self)
        made._dtype = dtype
        made.column_pairs = tuple(pair.with_dtype(dtype) for pair in self.column_pairs)
        return made

    def check_values(self) -> None:
        self._check_columns()

    def _check_columns(self) -> None:
        for pair in self.column_pairs:
            if isinstance(pair.rows, Tensor):
                columns = pair.rows if pair.columns is None else pair.columns
                for values in (pair.rows,) if columns is pair.rows else (pair.rows, columns):
                    check_finite(type(self).__name__, pair.name, values)  # pyright: ignore
                self.check(pair.rows, columns)  # pyright: ignore

    def values(self) -> list[tuple[Shaped[Tensor, "a ..."], Shaped[Tensor, "c ..."]]]:
        """For each column pair the values of anchors and of candidates."""
        values = []
        for pair in self.column_pairs:
            if not isinstance(pair.rows, Tensor) or isinstance(pair.columns, str):
                raise InputError(
                    type(self).__name__,
                    expected="tensors",
                    got=f"the column name {pair.rows!r}",
                    fix="bind it to a batch's tables, affinity.bind(rows, columns), or build it from tensors",
                )
            values.append((pair.rows, pair.rows if pair.columns is None else pair.columns))
        return values

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values()[0]
        return len(rows), len(columns)

    @property
    def symmetric(self) -> bool:
        return self.symmetric_weights and all(pair.columns is None for pair in self.column_pairs)

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        return self.pair_weights(*((r[rows], c[columns]) for r, c in self.values()))

    def reordered(self, rows: Int[Tensor, " a"], columns: Int[Tensor, " c"]) -> Affinity:
        made = copy.copy(self)
        made.column_pairs = tuple(pair.reordered(rows, columns) for pair in self.column_pairs)
        return made

    def parameters(self) -> Iterator[Float[Tensor, "..."]]:
        values = (getattr(self, name) for name in self.learnable_attributes)
        return (value for value in values if isinstance(value, Tensor) and value.requires_grad)

    def map_parameters(self, f: Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]) -> Affinity:
        mapped = copy.copy(self)
        for name in self.learnable_attributes:
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.requires_grad:
                setattr(mapped, name, f(value))
        return mapped


def equal(rows: Shaped[Tensor, " r"], columns: Shaped[Tensor, " c"], dtype: torch.dtype) -> Float[Tensor, "r c"]:
    """1 for equal values of an anchor and a candidate, else 0."""
    if has_values(rows):
        # At once as floats: the conversion of booleans takes twice as long as the comparison.
        weights = torch.empty(len(rows), len(columns), dtype=dtype, device=rows.device)
        return torch.eq(rows[:, None], columns, out=weights)
    return (rows[:, None] == columns).to(dtype)


#: Weights below it are 0: an anchor with no larger one would divide its gradient by a sum that float32 cannot invert.
LEAST_WEIGHT = 2.0**-100


def at_least(weights: Float[Tensor, "*shape"], floor: float) -> Float[Tensor, "*shape"]:
    """The weights, with 0 for those below a floor or `LEAST_WEIGHT`; weights without a gradient are overwritten."""
    floor = max(floor, LEAST_WEIGHT)
    # Not by a product with `weights >= floor`: booleans take ten times as long.
    limit, below = (torch.tensor(value, dtype=weights.dtype, device="cpu") for value in (floor, -torch.inf))
    inplace = has_values(weights) and not weights.requires_grad
    return torch.nn.functional.threshold(weights, float(torch.nextafter(limit, below)), 0.0, inplace=inplace)


def check_finite(where: str, name: str, values: Shaped[Tensor, "..."]) -> None:
    """Raise InputError for NaN or infinite values on the CPU; on a GPU this would wait for the device in every step."""
    if not values.is_floating_point() or values.is_cuda or not has_values(values) or bool(values.isfinite().all()):
        return
    wrong = (~values.isfinite()).flatten(1).any(1) if values.ndim > 1 else ~values.isfinite()
    rows = wrong.nonzero()[:, 0].tolist()
    raise InputError(
        where,
        expected=f"finite values of column {name!r}" if name else "finite values",
        got=f"{len(rows)} of {len(values)} rows with NaN or infinity, first at rows {rows[:5]}",
        fix="leave these samples out, or give them a value in the source",
    )
