# ruff: noqa: D102 — an override does what its base says
"""What an affinity is, and how affinities combine."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from mmcon.affinity.factors import ClassFactor, Factor, factor_sums, self_mask
from mmcon.batch import Index
from mmcon.errors import InputError, nearest

ROWS_AT_ONCE = 512


class Affinity(ABC):
    """Weights of pairs, read by tiles.

    Attributes:
        never_zero: whether every pair has a weight above 0, so that there are no negatives.
    """

    never_zero: bool = False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Anchors and candidates: (a, c)."""

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether candidates are the anchors and `W[i, j] == W[j, i]`, so that one tile serves both sides."""

    @abstractmethod
    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        """Look column names up in the table of anchors and of candidates (None: the anchors themselves)."""

    @abstractmethod
    def tile(self, rows: slice, columns: slice) -> Tensor:
        """The weights of a block, `r c`."""

    def factors(self) -> tuple[Factor, ...] | None:
        """Parts whose sum is W and that multiply a matrix in O(n), or None where there are none."""
        return None

    def parameters(self) -> Iterator[Tensor]:
        """The tensors that receive a gradient, such as a learnable kernel width."""
        return iter(())

    def map_parameters(self, f: Callable[[Tensor], Tensor]) -> Affinity:
        """The affinity with `f` applied to each of `parameters()`, in their order."""
        return self

    def row_sums(self, self_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """For each anchor the sum of its weights, self left out, and whether any of them is above 0.

        The second is counted, not compared with the first, so that no rounding makes a positive of a singleton.

        Args:
            self_index: the candidate that is the anchor itself, int64 `a`, or -1; None: no anchor is a candidate.
        """
        if (factors := self.factors()) is not None:
            return factor_sums(factors, self_index)
        sums, valid = [], []
        for start in range(0, self.shape[0], ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, self.shape[0]))
            weights = self.tile(rows, slice(0, self.shape[1]))
            if self_index is not None:
                weights = weights.masked_fill(self_mask(self_index[rows], self.shape[1]), 0)
            sums.append(weights.sum(1))
            valid.append((weights > 0).any(1))
        return (torch.cat(sums), torch.cat(valid)) if sums else (torch.zeros(0), torch.zeros(0, dtype=torch.bool))

    def dense(self) -> Tensor:
        """The whole matrix, `a c`: only where it is wanted."""
        return self.tile(slice(0, self.shape[0]), slice(0, self.shape[1]))

    def __mul__(self, other: Affinity | float) -> Affinity:
        """Pairs weighted by both; a number scales."""
        return Product(self, other) if isinstance(other, Affinity) else Scaled(self, float(other))

    __rmul__ = __mul__

    def __add__(self, other: Affinity) -> Affinity:
        """Pairs weighted by either."""
        return Sum(self, other)

    def __invert__(self) -> Affinity:
        """The complement `1 - W`: negative weights that drop W's pairs, as in `negative_weights=~SameLabel()`."""
        return Complement(self)


class _Composed(Affinity):
    """Parts that are bound, checked and learned together."""

    def __init__(self, *parts: Affinity) -> None:
        self.parts = parts

    def _with(self, parts: Sequence[Affinity]) -> Affinity:
        made = copy.copy(self)
        made.parts = tuple(parts)
        return made

    @property
    def shape(self) -> tuple[int, int]:
        shapes = {part.shape for part in self.parts}
        if len(shapes) > 1:
            raise InputError(type(self).__name__, expected="parts of one shape `a c`", got=str(sorted(shapes)))
        return shapes.pop()

    @property
    def symmetric(self) -> bool:
        return all(part.symmetric for part in self.parts)

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        return self._with([part.bind(rows, columns) for part in self.parts])

    def parameters(self) -> Iterator[Tensor]:
        return (parameter for part in self.parts for parameter in part.parameters())

    def map_parameters(self, f: Callable[[Tensor], Tensor]) -> Affinity:
        return self._with([part.map_parameters(f) for part in self.parts])


class Product(_Composed):
    """`W = A · B`, pair by pair: alike by both."""

    @property
    def never_zero(self) -> bool:  # pyright: ignore
        return all(part.never_zero for part in self.parts)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        first, second = self.parts
        return first.tile(rows, columns) * second.tile(rows, columns)

    def factors(self) -> tuple[Factor, ...] | None:
        """Same class by both is same class by the pair of labels; other products are read by tiles."""
        parts = [part.factors() for part in self.parts]
        if not all(
            p is not None and len(p) == 1 and isinstance(p[0], ClassFactor) and p[0].table is None for p in parts
        ):
            return None
        a, b = cast(ClassFactor, parts[0][0]), cast(ClassFactor, parts[1][0])  # pyright: ignore
        pairs = torch.cat([a.rows * b.classes + b.rows, a.columns * b.classes + b.columns])
        known, ids = torch.unique(pairs, return_inverse=True)
        return (ClassFactor(ids[: len(a.rows)], ids[len(a.rows) :], len(known), None, a.scale * b.scale),)


class Sum(_Composed):
    """`W = A + B`: alike by either."""

    @property
    def never_zero(self) -> bool:  # pyright: ignore
        return any(part.never_zero for part in self.parts)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        first, second = self.parts
        return first.tile(rows, columns) + second.tile(rows, columns)

    def factors(self) -> tuple[Factor, ...] | None:
        parts = [part.factors() for part in self.parts]
        return None if any(p is None for p in parts) else sum(parts, ())  # pyright: ignore


class Scaled(_Composed):
    """`W = scale · A`."""

    def __init__(self, part: Affinity, scale: float) -> None:
        if not 0 <= scale < float("inf"):
            raise InputError("Affinity", expected="a finite scale >= 0", got=str(scale))
        super().__init__(part)
        self.scale = scale

    @property
    def never_zero(self) -> bool:  # pyright: ignore
        return self.scale > 0 and self.parts[0].never_zero

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return self.parts[0].tile(rows, columns) * self.scale

    def factors(self) -> tuple[Factor, ...] | None:
        parts = self.parts[0].factors()
        return None if parts is None else tuple(replace(part, scale=part.scale * self.scale) for part in parts)


class Complement(_Composed):
    """`W = max(0, 1 - A)`: all that A leaves."""

    def tile(self, rows: slice, columns: slice) -> Tensor:
        return (1 - self.parts[0].tile(rows, columns)).clamp_min(0)


def check_weights(where: str, weights: Tensor) -> None:
    """Refuse NaN, infinite and negative weights; one pass over them."""
    if weights.numel() == 0 or weights.dtype == torch.bool:
        return
    low, high = (float(bound) for bound in torch.aminmax(weights.detach()))
    if not (low >= 0 and high < float("inf")):
        fix = "clamp or shift the weights to be non-negative, and mask NaN"
        raise InputError(where, expected="finite weights >= 0", got=f"weights from {low} to {high}", fix=fix)


def check_choice(where: str, name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a setting that is not one of the known ones."""
    if value not in known:
        raise InputError(
            where, expected=f"{name} one of {', '.join(known)}", got=repr(value), fix=nearest(value, list(known))
        )


def as_number(value: float | Tensor) -> float:
    """The value of a setting, which may be a tensor with a gradient."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
