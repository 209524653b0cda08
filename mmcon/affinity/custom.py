# ruff: noqa: D102 — an override does what its base says
"""Weights supplied by the user: a matrix or a function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmcon.affinity.base import Affinity, check_weights
from mmcon.batch import Index
from mmcon.errors import InputError


class Dense(Affinity, flattened=("weights", "rows", "columns", "dtype")):
    """A matrix of weights, graded or not, symmetric or not.

    Args:
        weights: finite and >= 0, `a c`; a tensor that requires it receives its gradient.
        rows: the row of `weights` for each anchor; None: the n-th row for the n-th anchor. With it one `b b` matrix
            serves all views of `b` samples.
        columns: the column of `weights` for each candidate; None: as `rows`.

    Raises:
        InputError: weights that are not a matrix, or not finite and >= 0.
    """

    def __init__(
        self,
        weights: Shaped[Tensor, "..."],
        rows: Int[Tensor, " a"] | None = None,
        columns: Int[Tensor, " c"] | None = None,
    ) -> None:
        if weights.ndim != 2:
            raise InputError("Dense", expected="weights `a c`", got=f"shape {tuple(weights.shape)}")
        self.weights, self.rows, self.dtype = weights, rows, cast("torch.dtype | None", None)
        self.columns = rows if columns is None else columns
        self.check_values()

    def check_values(self) -> None:
        check_weights("Dense", self.weights)

    @property
    def shape(self) -> tuple[int, int]:
        a = self.weights.shape[0] if self.rows is None else len(self.rows)
        return a, self.weights.shape[1] if self.columns is None else len(self.columns)

    @property
    def symmetric(self) -> bool:
        square = self.weights.shape[0] == self.weights.shape[1] and self.rows is self.columns
        return square and bool(torch.equal(self.weights, self.weights.T))

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        return self

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        block = self.weights[rows if self.rows is None else self.rows[rows]]
        block = block[:, columns if self.columns is None else self.columns[columns]]
        dtype = torch.get_default_dtype() if self.dtype is None else self.dtype
        # Numbers that are given in a wider dtype than the rows keep it until they are used.
        return block.to(torch.promote_types(block.dtype, dtype) if block.is_floating_point() else dtype)

    def reordered(self, rows: Int[Tensor, " a"], columns: Int[Tensor, " c"]) -> Affinity:
        made = copy.copy(self)
        made.rows = rows if self.rows is None else self.rows[rows]
        same = rows is columns and self.rows is self.columns
        made.columns = made.rows if same else columns if self.columns is None else self.columns[columns]
        return made

    def with_dtype(self, dtype: torch.dtype) -> Affinity:
        made = copy.copy(self)
        made.dtype = dtype
        return made

    def parameters(self) -> Iterator[Float[Tensor, "..."]]:
        return iter([self.weights] if self.weights.requires_grad else [])

    def map_parameters(self, f: Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]) -> Affinity:
        mapped = copy.copy(self)
        mapped.weights = f(self.weights) if self.weights.requires_grad else self.weights
        return mapped


class CandidateWeights(Affinity, flattened=("weights", "anchors")):
    """Weights that depend on the candidate alone: as negative weights, 0 drops a candidate from all denominators.

    Args:
        weights: finite and >= 0, one a candidate, or whether to keep it.
        anchors: the number of anchors.

    Raises:
        InputError: weights that are not one a candidate, or not finite and >= 0.

    >>> CandidateWeights(torch.tensor([True, False]), anchors=2).dense().tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """

    def __init__(self, weights: Shaped[Tensor, "..."], *, anchors: int) -> None:
        if weights.ndim != 1:
            got = f"shape {tuple(weights.shape)}"
            raise InputError("CandidateWeights", expected="weights `c`, one a candidate", got=got)
        self.weights, self.anchors = weights, anchors
        self.check_values()

    def check_values(self) -> None:
        check_weights("CandidateWeights", self.weights)

    @property
    def shape(self) -> tuple[int, int]:
        return self.anchors, len(self.weights)

    @property
    def symmetric(self) -> bool:
        return False

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        return self

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        weights = self.weights if self.weights.is_floating_point() else self.weights.to(torch.get_default_dtype())
        return weights[columns].expand(len(range(*rows.indices(self.anchors))), -1)

    def reordered(self, rows: Int[Tensor, " a"], columns: Int[Tensor, " c"]) -> Affinity:
        return CandidateWeights(self.weights[columns], anchors=len(rows))

    def with_dtype(self, dtype: torch.dtype) -> Affinity:
        weights = self.weights
        wide = torch.promote_types(weights.dtype, dtype) if weights.is_floating_point() else dtype
        return CandidateWeights(weights.to(wide), anchors=self.anchors)


class Computed(Affinity):
    """A function `f(rows, columns) -> weights` of two tables as an affinity.

    Args:
        function: takes the tables (`Index`) of a tile's anchors and candidates and returns weights >= 0, `r c`.
        rows: the table of the anchors; None: `bind` supplies it.
        columns: the table of the candidates; None: that of the anchors.
    """

    def __init__(
        self,
        function: Callable[[Index, Index], Shaped[Tensor, "r c"]],
        rows: Index | None = None,
        columns: Index | None = None,
    ) -> None:
        self.function, self.rows, self.columns = function, rows, columns

    @property
    def symmetric(self) -> bool:
        return False

    def _tables(self) -> tuple[Index, Index]:
        if self.rows is None:
            raise InputError("Computed", expected="tables of rows", got="none", fix="bind it: affinity.bind(rows)")
        return self.rows, self.rows if self.columns is None else self.columns

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self._tables()
        return rows.n, columns.n

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        return self if self.rows is not None else Computed(self.function, rows, columns)

    def reordered(self, rows: Int[Tensor, " a"], columns: Int[Tensor, " c"]) -> Affinity:
        anchors, candidates = self._tables()
        return Computed(self.function, anchors.take(rows), candidates.take(columns))

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        anchors, candidates = self._tables()
        weights = self.function(anchors.take(rows), candidates.take(columns))
        check_weights("Computed", weights)
        return weights if weights.is_floating_point() else weights.to(torch.get_default_dtype())


def as_affinity(affinity: Any) -> Affinity:
    """An affinity from an affinity, a matrix of weights, or a function of two tables."""
    if isinstance(affinity, Affinity):
        return affinity
    if isinstance(affinity, Tensor):
        return Dense(affinity)
    if callable(affinity):
        return Computed(cast(Callable[[Index, Index], Tensor], affinity))
    raise InputError("affinity", expected="an Affinity, a tensor `a c` or a function", got=type(affinity).__name__)
