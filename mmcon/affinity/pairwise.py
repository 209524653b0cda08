# ruff: noqa: D102 — an override does what its base says
"""Affinities that are a function of what is known about an anchor and about a candidate."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from mmcon.affinity.base import Affinity
from mmcon.batch import Index
from mmcon.errors import InputError

Column = Tensor | str


@dataclass(frozen=True)
class Key:
    """What anchors and candidates are compared by: tensors, or names of columns to bind."""

    rows: Column
    columns: Column | None = None

    def bind(self, rows: Index, columns: Index | None) -> Key:
        """Names resolved to tensors; tensors stay."""
        if isinstance(self.rows, Tensor):
            return self
        if columns is None and self.columns is None:
            return Key(rows[self.rows])
        name = self.rows if self.columns is None else self.columns
        candidates = rows if columns is None else columns
        return Key(rows[self.rows], candidates[name] if isinstance(name, str) else name)


class Pairwise(Affinity):
    """Weights that are a function of an anchor's and a candidate's known values.

    A subclass passes its `Key`s on, names the attributes that may learn, and says in `weigh` what two blocks of values
    give.
    """

    learnable: tuple[str, ...] = ()
    same_both_ways: bool = True

    def __init__(self, *keys: Key) -> None:
        self.keys = keys
        lengths = {len(key.rows) for key in keys if isinstance(key.rows, Tensor)}
        if len(lengths) > 1:
            raise InputError(type(self).__name__, expected="columns of one length", got=f"lengths {sorted(lengths)}")

    @abstractmethod
    def weigh(self, *values: tuple[Tensor, Tensor]) -> Tensor:
        """The weights `r c`, given for every key the values of rows and of columns."""

    def check(self, rows: Tensor, columns: Tensor) -> None:
        """Refuse values that cannot be compared; called once the names are resolved."""

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        bound = copy.copy(self)
        bound.keys = tuple(key.bind(rows, columns) for key in self.keys)
        bound._check_keys()
        return bound

    def _check_keys(self) -> None:
        for key in self.keys:
            if isinstance(key.rows, Tensor):
                self.check(key.rows, key.rows if key.columns is None else key.columns)  # pyright: ignore

    def values(self) -> list[tuple[Tensor, Tensor]]:
        """For every key the values of anchors and of candidates."""
        pairs = []
        for key in self.keys:
            if not isinstance(key.rows, Tensor) or isinstance(key.columns, str):
                raise InputError(
                    type(self).__name__,
                    expected="tensors",
                    got=f"the column name {key.rows!r}",
                    fix="bind it to a batch's tables, affinity.bind(rows, columns), or build it from tensors",
                )
            pairs.append((key.rows, key.rows if key.columns is None else key.columns))
        return pairs

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values()[0]
        return len(rows), len(columns)

    @property
    def symmetric(self) -> bool:
        return self.same_both_ways and all(key.columns is None for key in self.keys)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return self.weigh(*((r[rows], c[columns]) for r, c in self.values()))

    def parameters(self) -> Iterator[Tensor]:
        values = (getattr(self, name) for name in self.learnable)
        return (value for value in values if isinstance(value, Tensor) and value.requires_grad)

    def map_parameters(self, f: Callable[[Tensor], Tensor]) -> Affinity:
        mapped = copy.copy(self)
        for name in self.learnable:
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.requires_grad:
                setattr(mapped, name, f(value))
        return mapped
