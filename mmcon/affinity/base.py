# ruff: noqa: D102 — an override does what its base says
"""The interface of affinities, and their sums, products, multiples and complements."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmcon.affinity.factors import ClassFactor, Factor, factor_row_sums, self_mask
from mmcon.affinity.graph_arguments import flattens
from mmcon.affinity.groups import Groups, coarser
from mmcon.batch import Index
from mmcon.errors import InputError
from mmcon.errors import check_choice as check_choice  # of settings of affinities too

#: Rows at a time, to bound memory.
CHUNK = 512


class Affinity(ABC):
    """Positive weights of pairs of an anchor and a candidate, computed by tiles.

    Attributes:
        never_zero: whether every pair has a weight above 0, so that there are no negatives.
    """

    never_zero: bool = False

    def __init_subclass__(cls, *, flattened: Sequence[str] | None = None, **options: Any) -> None:
        """Register a class.

        Args:
            flattened: the attributes that describe an object (`flatten`), in a class whose constructor reads no values
                where there are none (`has_values`). Then objects are made and used within a graph of `torch.compile`;
                else the graph ends before them.
            options: of other bases.
        """
        super().__init_subclass__(**options)
        cls._flat = None
        if flattened is not None:
            flattens(*flattened)(cls)
        elif "__init__" in cls.__dict__:
            cls.__init__ = torch.compiler.disable(cls.__init__, reason="it may read values")  # pyright: ignore

    @property
    def infinite_support(self) -> bool:
        """Whether the equation of W is above 0 for every pair, so that negative weights alone define negatives.

        In floating point the weight of a distant pair may be 0 all the same, and then `never_zero` is False.
        """
        return self.never_zero

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """The numbers of anchors and candidates, (a, c)."""

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether the candidates are the anchors and `W[i, j] == W[j, i]`, so that one tile serves both directions."""

    @abstractmethod
    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        """The affinity with column names replaced by the columns of two tables; `columns` None: the anchors' table."""

    @abstractmethod
    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        """The weights of a tile of pairs."""

    def check_values(self) -> None:
        """Raise InputError for refused values; constructors call it, and cannot within a graph of `torch.compile`."""
        return

    def factors(self) -> tuple[Factor, ...] | None:
        """Terms whose sum is W, each of which multiplies a matrix in O(n); None where W has no such structure."""
        return None

    def groups(self) -> Groups | None:
        """Groups of rows such that all pairs across groups have one weight; None where no such groups are known."""
        return None

    def reordered(self, rows: Int[Tensor, " a"], columns: Int[Tensor, " c"]) -> Affinity | None:
        """The affinity of the anchors `rows` and the candidates `columns`; None where it cannot be reordered."""
        return None

    def with_dtype(self, dtype: torch.dtype) -> Affinity:
        """The affinity with weights computed in `dtype`, or in a wider dtype of its values."""
        return self

    def parameters(self) -> Iterator[Float[Tensor, "..."]]:
        """The tensors that receive a gradient, such as a learnable kernel width."""
        return iter(())

    def map_parameters(self, f: Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]) -> Affinity:
        """The affinity with `f` applied to each of `parameters()`, in their order."""
        return self

    def row_sums(self, self_index: Int[Tensor, " a"] | None = None) -> tuple[Float[Tensor, " a"], Bool[Tensor, " a"]]:
        """For each anchor the sum of its weights without self, and whether any of them is above 0.

        The latter counts positives and does not compare the sum with 0: after rounding, an anchor without positives
        may have a sum above 0.

        Args:
            self_index: the candidate that is the anchor itself, or -1; None: no anchor is a candidate.
        """
        if (factors := self.factors()) is not None:
            return factor_row_sums(factors, self_index)
        sums, valid = [], []
        for start in range(0, self.shape[0], CHUNK):
            rows = slice(start, min(start + CHUNK, self.shape[0]))
            weights = self.tile(rows, slice(0, self.shape[1]))
            if self_index is not None:
                weights = weights.masked_fill(self_mask(self_index[rows], self.shape[1]), 0)
            sums.append(weights.sum(1))
            valid.append((weights > 0).any(1))
        return (torch.cat(sums), torch.cat(valid)) if sums else (torch.zeros(0), torch.zeros(0, dtype=torch.bool))

    def dense(self) -> Float[Tensor, "a c"]:
        """The full matrix."""
        return self.tile(slice(0, self.shape[0]), slice(0, self.shape[1]))

    def __mul__(self, other: Affinity | float) -> Affinity:
        """The product of weights, pair by pair; a number scales them."""
        return Product(self, other) if isinstance(other, Affinity) else Scaled(self, float(other))

    __rmul__ = __mul__

    def __add__(self, other: Affinity) -> Affinity:
        """The sum of weights, pair by pair."""
        return Sum(self, other)

    def __invert__(self) -> Affinity:
        """The complement `1 - W`; as `negative_weights=~SameLabel()` it drops negatives of the same label."""
        return Complement(self)


class _Composed(Affinity, flattened=()):
    """A function of other affinities, the terms."""

    scale: float = 1.0

    def __init__(self, *terms: Affinity) -> None:
        self.terms = terms

    def _with(self, terms: Sequence[Affinity]) -> Affinity:
        made = copy.copy(self)
        made.terms = tuple(terms)
        return made

    @property
    def shape(self) -> tuple[int, int]:
        shapes = {term.shape for term in self.terms}
        if len(shapes) > 1:
            raise InputError(type(self).__name__, expected="affinities of one shape `a c`", got=str(sorted(shapes)))
        return shapes.pop()

    @property
    def symmetric(self) -> bool:
        return all(term.symmetric for term in self.terms)

    @staticmethod
    def _above_zero(scale: float, terms: Sequence[bool]) -> bool:
        """Whether the function is above 0 for every pair, from the same of its terms."""
        return False

    @property
    def never_zero(self) -> bool:  # pyright: ignore
        return self._above_zero(self.scale, [term.never_zero for term in self.terms])

    @property
    def infinite_support(self) -> bool:
        return self._above_zero(self.scale, [term.infinite_support for term in self.terms])

    def bind(self, rows: Index, columns: Index | None = None) -> Affinity:
        return self._with([term.bind(rows, columns) for term in self.terms])

    def reordered(self, rows: Int[Tensor, " a"], columns: Int[Tensor, " c"]) -> Affinity | None:
        terms = [term.reordered(rows, columns) for term in self.terms]
        return None if any(term is None for term in terms) else self._with(cast("list[Affinity]", terms))

    def with_dtype(self, dtype: torch.dtype) -> Affinity:
        return self._with([term.with_dtype(dtype) for term in self.terms])

    def check_values(self) -> None:
        for term in self.terms:
            term.check_values()

    def parameters(self) -> Iterator[Float[Tensor, "..."]]:
        return (parameter for term in self.terms for parameter in term.parameters())

    def map_parameters(self, f: Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]) -> Affinity:
        return self._with([term.map_parameters(f) for term in self.terms])


class Product(_Composed, flattened=("terms",)):
    """`W = A · B`, pair by pair."""

    @staticmethod
    def _above_zero(scale: float, terms: Sequence[bool]) -> bool:
        return all(terms)

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        first, second = self.terms
        return first.tile(rows, columns) * second.tile(rows, columns)

    def groups(self) -> Groups | None:
        """Those of a term that is 0 across its groups, whatever the other is."""
        known = [groups for term in self.terms if (groups := term.groups()) is not None]
        return next((groups for groups in known if groups.across == 0), None)

    def factors(self) -> tuple[Factor, ...] | None:
        """The product of two class factors is the class factor of pairs of labels; other products have no factors."""
        factors = [term.factors() for term in self.terms]
        if not all(
            p is not None and len(p) == 1 and isinstance(p[0], ClassFactor) and p[0].table is None for p in factors
        ):
            return None
        a, b = cast(ClassFactor, factors[0][0]), cast(ClassFactor, factors[1][0])  # pyright: ignore
        pairs = torch.cat([a.rows * b.classes + b.rows, a.columns * b.classes + b.columns])
        known, ids = torch.unique(pairs, return_inverse=True)
        return (ClassFactor(ids[: len(a.rows)], ids[len(a.rows) :], len(known), None, a.scale * b.scale),)


class Sum(_Composed, flattened=("terms",)):
    """`W = A + B`, pair by pair."""

    @staticmethod
    def _above_zero(scale: float, terms: Sequence[bool]) -> bool:
        return any(terms)

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        first, second = self.terms
        return first.tile(rows, columns) + second.tile(rows, columns)

    def groups(self) -> Groups | None:
        first, second = (term.groups() for term in self.terms)
        found = coarser(first, second)
        return None if found is None else found._replace(across=first.across + second.across)  # pyright: ignore

    def factors(self) -> tuple[Factor, ...] | None:
        factors = [term.factors() for term in self.terms]
        return None if any(p is None for p in factors) else sum(factors, ())  # pyright: ignore


class Scaled(_Composed, flattened=("terms", "scale")):
    """`W = scale · A`."""

    def __init__(self, term: Affinity, scale: float) -> None:
        if not 0 <= scale < float("inf"):
            raise InputError("Affinity", expected="a finite scale >= 0", got=str(scale))
        super().__init__(term)
        self.scale = scale

    @staticmethod
    def _above_zero(scale: float, terms: Sequence[bool]) -> bool:
        return scale > 0 and terms[0]

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        return self.terms[0].tile(rows, columns) * self.scale

    def groups(self) -> Groups | None:
        groups = self.terms[0].groups()
        return None if groups is None else groups._replace(across=groups.across * self.scale)

    def factors(self) -> tuple[Factor, ...] | None:
        factors = self.terms[0].factors()
        return (
            None if factors is None else tuple(replace(factor, scale=factor.scale * self.scale) for factor in factors)
        )


class Complement(_Composed, flattened=("terms",)):
    """`W = max(0, 1 - A)`."""

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "r c"]:
        return (1 - self.terms[0].tile(rows, columns)).clamp_min(0)

    def groups(self) -> Groups | None:
        groups = self.terms[0].groups()
        return None if groups is None else groups._replace(across=max(0.0, 1 - groups.across))


def check_weights(where: str, weights: Shaped[Tensor, "..."]) -> None:
    """Raise InputError for NaN, infinite or negative weights; reads the tensor once."""
    if weights.numel() == 0 or weights.dtype == torch.bool or not has_values(weights):
        return
    low, high = (float(bound) for bound in torch.aminmax(weights.detach()))
    if not (low >= 0 and high < float("inf")):
        fix = "clamp or shift the weights to be non-negative, and mask NaN"
        raise InputError(where, expected="finite weights >= 0", got=f"weights from {low} to {high}", fix=fix)


def transforms_active() -> bool:
    """Whether a transform of `torch.func` (grad, vmap, jvp, ...) is at work."""
    # `torch.func` has no public question for this; PyTorch itself asks here before it calls a function.
    return torch._C._are_functorch_transforms_active()


def has_values(tensor: Shaped[Tensor, "..."]) -> bool:
    """Whether values can be read for a check: not on the meta device, in a compiled graph, or under `torch.func`."""
    return not (tensor.is_meta or torch.compiler.is_compiling() or transforms_active())


def can_check(value: float | Shaped[Tensor, "..."]) -> bool:
    """Whether the value of a setting can be read for a check: a number, or a tensor that `has_values`."""
    return not isinstance(value, Tensor) or has_values(value)


def as_number(value: float | Shaped[Tensor, "..."]) -> float:
    """The value of a setting as a float; a tensor is detached."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
